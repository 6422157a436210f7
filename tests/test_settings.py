"""Settings: each key of conf/ is declared once, with a kind that its value fits; what a value may be."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import typing
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, Literal

import pytest
import torch
from conftest import ROOT, compose
from omegaconf import OmegaConf

from dollar.cli import kinds
from dollar.cli.declared import UNDECLARED, arguments_of, flat, kind_of, source_of
from dollar.cli.overrides import CONF, check_overrides
from dollar.cli.settings import COMMANDS, Place, free_keys

GROUPS = sorted(p.name for p in CONF.iterdir() if p.is_dir() and p.name != "common")
CHOICES = [(p.parent.name, p.stem) for group in GROUPS for p in sorted((CONF / group).glob("*.yaml"))]
OF = {"vip_paper": "vip", "vip_shapes": "vip"}  # whose choices these are, where not launch/train.py's
COMPOSED = [(name, ()) for name in COMMANDS] + [
    (OF.get(choice, "train"), (f"{group}={choice}",)) for group, choice in CHOICES
]
COMPOSED += [("evaluate", ("reward=mixture",)), ("fit_reward", ("data=clips",)), ("plan", ("experiment=wan",))]


@cache
def unresolved(name: str, overrides: tuple[str, ...] = ()) -> dict[str, Any]:
    return OmegaConf.to_container(compose(name, *overrides), resolve=False)


@pytest.mark.parametrize(("name", "overrides"), COMPOSED, ids=["-".join((n, *o)) for n, o in COMPOSED])
def test_each_key_is_declared_and_each_value_fits(name: str, overrides: tuple[str, ...]) -> None:
    config = unresolved(name, overrides)
    for key, value in flat(config).items():
        kind = kind_of(COMMANDS[name], config, key)
        assert kind is not UNDECLARED, key
        known = value != "???" and not (isinstance(value, str) and "${" in value)
        assert not known or kinds.accepts(kind, value), f"{key}={value}: {kind}"


def declared(settings: Any, prefix: str = "") -> set[str]:
    """Every key that the dataclasses of a command declare."""
    found = set()
    for name, kind in typing.get_type_hints(settings).items():
        found.add(f"{prefix}{name}")
        if dataclasses.is_dataclass(kind):
            found |= declared(kind, f"{prefix}{name}.")
    return found


def keys(config: Mapping[str, Any], prefix: str = "") -> set[str]:
    """Every key of a configuration, those that hold others included."""
    found = {f"{prefix}{key}" for key in config}
    return found.union(*(keys(v, f"{prefix}{k}.") for k, v in config.items() if isinstance(v, dict)))


@pytest.mark.parametrize("name", COMMANDS)
def test_nothing_is_declared_that_no_yaml_has(name: str) -> None:
    groups = {"train": GROUPS, "plan": GROUPS, "fit_reward": ["data"]}.get(name, ())
    made = [("train" if name == "plan" else name, (f"{g}={choice}",)) for g, choice in CHOICES if g in groups]
    there = set().union(*(keys(unresolved(*which)) for which in ((name, ()), *made)))
    assert declared(COMMANDS[name]) - there == set()


def test_nothing_is_declared_twice() -> None:
    """Where a node names a class, what that takes is declared there alone."""
    for group, choice in CHOICES:
        plain = flat(unresolved("train", (f"{group}={choice}",)))
        made = {key.removesuffix("_target_") for key in plain if key.endswith("._target_")}
        for key in plain:
            if any(key.startswith(node) and "." not in key.removeprefix(node) for node in made):
                assert key.rpartition(".")[2].startswith("_") or kind_of(COMMANDS["train"], {}, key) is UNDECLARED, key


def test_every_command_has_settings() -> None:
    assert set(COMMANDS) == {p.stem for p in CONF.glob("*.yaml")}
    assert set(COMMANDS) == {p.stem for p in (ROOT / "launch").glob("*.py")}


def test_what_may_change_when_a_run_goes_on() -> None:
    free = free_keys(COMMANDS["train"])
    assert {"cycles", "validation", "log", "runs", "parallel.device"} <= set(free)
    assert not {"seed", "batch", "parallel", "parallel.dtype", "validation.every"} & set(free)


# Kinds


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (int, [0, -3], [1.5, True, "a", None, [1]]),
        (float, [0, 0.5], [True, "a", float("nan"), float("inf"), None, [1.0]]),
        (bool, [True, False], [0, "true", None]),
        (str, ["a", 5, True], [None]),
        (float | None, [None, 1], ["a"]),
        (Place | None, [None, "a", 2024], []),
        (int | Literal["all"] | None, [None, 4, "all"], ["some", 1.5, True]),
        (Literal["cnn", "teacher"], ["cnn"], ["vgg", None, 1]),
        (tuple[float, float], [[0, 0.5]], [[0], [0, 1, 2], ["a", 1], 0.5, None]),
        (list[int], [[], [4, 2]], [[4.5], [None], 4, None]),
        (typing.Sequence[float] | None, [None, [1, 2.5]], [["a"], 1]),
        (Mapping[str, float], [{}, {"a": 1}], [1, None]),
        (Callable[..., Any], [None, 1, "a"], []),  # only code can make one, so nothing is said of it
        (Any, [None, 1, "a", [1]], []),
    ],
)
def test_what_a_value_may_be(kind: Any, good: list, bad: list) -> None:
    assert all(kinds.accepts(kind, value) for value in good)
    assert not any(kinds.accepts(kind, value) for value in bad)


def test_the_names_of_kinds() -> None:
    assert kinds.named(int | None) == "a whole number" and kinds.named(list[int]) == "a list"
    assert kinds.named(int | Literal["all"] | None) == "a whole number or all"
    assert kinds.named(Literal["cnn", "teacher"]) == "cnn or teacher"


def test_a_key_that_is_passed_on_has_the_kind_of_where_it_goes() -> None:
    config = unresolved("train", ("data=mixture", "data.paths=[a]"))
    assert kinds.is_text(kind_of(COMMANDS["train"], config, "data.paths"))
    assert kinds.accepts(kind_of(COMMANDS["train"], config, "data.weights"), None)
    assert kind_of(COMMANDS["train"], config, "data.cache_bytes") is int
    assert source_of("${a.b_c}") == "a.b_c"
    assert [source_of(v) for v in ("${embedded:shapes}", "${a}/b", "a", 3, "${a}${b}")] == [None] * 5


def test_a_loader_that_hands_its_settings_on() -> None:
    assert arguments_of("dollar.models.wan.load")["chunk_frames"] == int | None
    assert arguments_of("nowhere.at.all") == {}


NULL = [
    *(("train", key) for key in ("init", "balance", "patience", "keep_best", "student.timesteps", "student.lora")),
    *(("train", key) for key in ("vsd.lower_half", "lrm.path", "teacher.shift", "teacher.chunk_frames")),
    *(("sample", key) for key in ("steps", "frames", "fps", "guidance_scale", "checkpoint", "dtype")),
    *(("evaluate", key) for key in ("steps", "out", "cache")),
    *(("export", key) for key in ("lora", "license", "steps")),
    *(("ablation", key) for key in ("seeds", "only")),
]
NOT_NULL = [
    *(("train", key) for key in ("cycles", "beta_ft", "student.steps", "vsd.range", "teacher.name", "lrm.noised")),
    *(("train", key) for key in ("optim.fake.lr", "guard.action", "runs", "cd.target", "data.cache", "lrm.noise")),
    *(("sample", key) for key in ("seed", "out", "gif")),
    *(("fit_reward", key) for key in ("made", "out", "held_out")),
]


@pytest.mark.parametrize(("name", "key"), NULL)
def test_null_where_null_is_allowed(name: str, key: str) -> None:
    check_overrides(name, [f"{key}=null"])


@pytest.mark.parametrize(
    ("experiment", "key"),
    [
        ("two_steps", "init"),
        ("one_step", "init"),
        ("wan", "teacher.shift"),
        ("dollar_paper", "student.timesteps"),
        ("dollar_paper", "balance"),
    ],
)
def test_null_where_an_experiment_says_otherwise(experiment: str, key: str) -> None:
    check_overrides("train", [f"experiment={experiment}", f"{key}=null"])


@pytest.mark.parametrize(("name", "key"), NOT_NULL)
def test_null_where_it_is_not_allowed(name: str, key: str) -> None:
    with pytest.raises(ValueError, match=rf"{key}=null: {key} is ") as refused:
        check_overrides(name, [f"{key}=null"])
    assert "write" not in str(refused.value)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["reward=pickscore", "reward.frames=some"], "reward.frames is a whole number or all"),
        (["loss=refl", "rg.frames=some"], "rg.frames is a whole number or all"),
        (["loss=ddpo", "ddpo.kernel=none"], "ddpo.kernel is 'none'; use renoise or posterior"),
        (["student.between=steps"], "student.between is 'steps'; use renoise or ddim"),
        (["data=clips", "data.cache=many"], "data.cache is a whole number"),
        (["teacher.chunk_frames=many"], "teacher.chunk_frames is a whole number"),
        (["reward=mixture", "reward.weights.flicker=many"], "reward.weights.flicker is a number"),
        (["reward=mixture", "reward.parts.jpeg_compressibility.quality=x"], "quality is a whole number"),
        (["pull.steps=1.5"], "pull.steps is a whole number"),
        (["beta_pull=x"], "beta_pull is a number"),
        (["-m", "cycles=1,x"], "cycles=x: cycles is a whole number"),
    ],
)
def test_a_value_of_another_kind_is_refused(given: list[str], words: str) -> None:
    with pytest.raises(ValueError) as refused:
        check_overrides("train", given)
    assert words in str(refused.value)


def test_what_is_read_for_a_sweep_or_from_another_key_is_left_alone() -> None:
    for word in ("cycles=range(1,4)", "beta_ft=0.1,0.2", "save_every=${cycles}", "vsd.range=[0.1,0.9],[0.2,0.8]"):
        check_overrides("train", ["-m", word])


def test_a_wrong_key_is_found_without_torch() -> None:
    """Kinds are read of the classes of those keys that are given, and of no others."""
    code = (
        "import sys; from dollar.cli.overrides import check_overrides\n"
        "check_overrides('train', ['cycles=3', 'lrm.noise=[0.1,0.9]', 'run=5'])\n"
        "print('torch' in sys.modules, 'diffusers' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment())
    assert ran.stdout.split() == ["False", "False"], ran.stderr


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def test_what_helps_where_memory_ran_out_may_change_when_a_run_goes_on() -> None:
    import re

    from dollar.training.watch import Watch

    advised = re.findall(r"parallel\.\w+", Watch(torch.device("cpu")).remedies)
    assert len(advised) == 3 and set(advised) <= set(free_keys(COMMANDS["train"]))
