"""The commands: every configuration composes, mistakes get a sentence at once, and a run does what it says."""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import PROMPT, ROOT, TINY_DATA, TINY_RUN, compose
from omegaconf import OmegaConf
from safetensors.torch import load_file

from dollar import media
from dollar.data.decoding import read_video

CONF = ROOT / "conf"
COMMANDS = sorted(p.stem for p in CONF.glob("*.yaml"))
CHOICES = [(p.parent.name, p.stem) for p in sorted(CONF.glob("*/*.yaml")) if p.parent.name != "common"]
STAGES = {("experiment", name) for name in ("vip_paper", "vip_shapes")}  # of launch/vip.py


# Configurations


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_configuration_that_composes(name: str) -> None:
    config = compose(name)
    assert (ROOT / "launch" / f"{name}.py").is_file()
    if name != "train":
        OmegaConf.to_container(config, resolve=True, throw_on_missing=True)


@pytest.mark.parametrize(("group", "choice"), [choice for choice in CHOICES if choice not in STAGES])
def test_every_choice_composes(group: str, choice: str, tmp_path: Path) -> None:
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / name).touch()
    (tmp_path / "pairs.csv").write_text("caption,winner,loser\n" + "a red circle,a.mp4,b.mp4\n" * 8)
    pairs = ["data=pairs", f"data.path={tmp_path}"]
    extra = {
        ("data", "clips"): ["data.path=somewhere"],
        ("data", "latents"): ["data.path=somewhere"],
        ("data", "prompts"): ["data.path=somewhere", "beta_cd=0"],
        ("data", "mixture"): ["data.paths=[one,other]"],
        ("reward", "none"): ["beta_ft=0"],
        ("reward", "function"): ["reward.path=my.own"],
        ("experiment", "dollar_paper"): ["beta_ft=0"],
        ("experiment", "wan"): ["data.path=somewhere"],
        **{("loss", loss): pairs for loss in ("redpo", "dpo", "sft")},
        ("data", "pairs"): ["loss=redpo", *pairs],
        ("method", "preference"): ["loss=redpo", *pairs],
    }.get((group, choice), [])
    config = compose("train", f"{group}={choice}", *extra)
    plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    assert plain["cycles"] > 0
    from dollar.cli.build.loop import check

    check(config, processes=1)


def test_every_target_exists() -> None:
    from hydra.utils import get_object

    found = set()
    for path in CONF.rglob("*.yaml"):
        found |= set(re.findall(r"^[^#\n]*_target_: *([\w.]+)", path.read_text(), flags=re.MULTILINE)) - {"null"}
    assert len(found) >= 5
    for target in found:
        assert callable(get_object(target)), target


def test_every_key_has_a_comment() -> None:
    """The configuration is the manual: no key of train.yaml and of the loss goes without a word."""
    for path in (CONF / "train.yaml", CONF / "loss" / "dollar.yaml"):
        for line in path.read_text().split("\nhydra:")[0].splitlines():
            is_value = ":" in line and not line.strip().startswith(("#", "-")) and line.split(":", 1)[1].strip()
            follows = "_target_:" in line or re.fullmatch(r"\s*\w+: \$\{\w+\}", line)  # from a key that has its own
            assert not is_value or follows or "#" in line, f"{path.name}: {line}"


def test_the_papers_setting() -> None:
    """Section 4.1 of the paper, with its guidance weights w written as s = 1 + w."""
    c = compose("train", "experiment=dollar_paper")
    assert (c.teacher.name, c.teacher.frames, c.teacher.height, c.teacher.width, c.teacher.fps) == (
        *("cogvideox_2b", 129, 192, 320, 12),
    )
    assert list(c.student.timesteps) == [999, 749, 499, 249] and list(c.student.steps) == [4]
    assert (c.beta_vsd, c.beta_cd, c.beta_ft) == (1.0, 0.5, 1.0)
    assert c.vsd.guidance_scale == 1 + 3.5 and c.cd.guidance_scale == 1 + 7.5
    assert (c.cd.m, c.cd.grid, c.fake_updates, c.ft.accumulate) == (5, 50, 5, 7)
    assert (c.cycles, c.batch) == (40_000, 8)
    assert all(c.optim[name].lr == 2e-5 for name in ("student", "fake", "lrm"))
    assert c.parallel.dtype == "bfloat16" and c.parallel.activation_checkpointing is True


# Mistakes


def sentence(said, *words: str) -> None:
    """One line on standard error, no traceback, and an exit code that says no."""
    assert said.code != 0
    assert "Traceback" not in said.err + said.out
    lines = [line for line in said.err.splitlines() if line.strip()]
    assert len(lines) == 1, said.err
    for word in words:
        assert word in lines[0]


@pytest.fixture
def nothing_expensive(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading weights is a mistake by itself."""

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("the mistake must be told before weights are read")

    monkeypatch.setattr("transformers.T5EncoderModel.from_pretrained", forbidden)
    monkeypatch.setattr("diffusers.CogVideoXTransformer3DModel.from_pretrained", forbidden)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["beta_vds=1"], ["no key 'beta_vds'", "'beta_vsd'"]),
        (["student.timestep=[999]"], ["no key 'student.timestep'", "'student.timesteps'"]),
        (["guidance_scale=3"], ["no key 'guidance_scale'", "guidance_scale"]),
        (["loss=dolar"], ["no loss=dolar", "'dollar'"]),
        (["teacher=shape"], ["no teacher=shape", "'shapes'"]),
        (["experiment=dollarpaper"], ["no experiment=dollarpaper", "dollar_paper"]),
        (["experiment=two_steps", "init=nowhere"], ["no student in nowhere"]),
        (["fake_warmup=9", "cycles=9"], ["fake_warmup is 9", "never be updated"]),
        (["beta_ft=1,2"], ["beta_ft=1,2 gives several values", "add -m"]),
        (["cycles=many"], ["cycles=many", "a whole number"]),
        (["cycles=1.5"], ["cycles=1.5", "a whole number"]),
        (["beta_cd=half"], ["beta_cd=half", "a number"]),
        (["lrm.text=3"], ["lrm.text=3", "true or false"]),
        (["student.timesteps=[999,0]"], ["student.timesteps", "positive"]),
        (["student.timesteps=[249,999]"], ["student.timesteps", "use [999, 249]"]),
        (["student.steps=[4,3]"], ["student.steps has 3", "its largest, 4; use some of [4, 2, 1]"]),
        (["student.timesteps=[]"], ["student.timesteps", "positive"]),
        (["beta_cd=-0.5"], ["beta_cd is -0.5"]),
        (["cd.target=fake"], ["cd.target is 'fake'", "student or ema or teacher"]),
        (["batch=0"], ["batch is 0"]),
        (["cycles=0"], ["cycles is 0"]),
        (["teacher.folder=/nowhere/at/all"], ["no teacher at /nowhere/at/all", "teacher=shapes"]),
        (["student.steps=1"], ["student.steps=1", "a list", "student.steps=[1]"]),
        (["student.steps=[]"], ["student.steps is empty"]),
        (["vsd.range=0.5"], ["vsd.range is a list"]),
        (["cycles=null"], ["cycles=null", "a whole number"]),
        (["keep=0"], ["keep is 0"]),
        (["validation.prompts=0"], ["validation.prompts is 0"]),
        (["validation.guidance_steps=0"], ["validation.guidance_steps is 0"]),
        (["balance=0.5", "ft.update=separate"], ["balance is 0.5", "ft.update=joint"]),
        (["data.path=somewhere"], ["no key 'data.path'"]),
        (["data=clips"], ["data.path is missing", "give data.path=VALUE"]),
        (["parallel.device=gpu"], ["parallel.device is 'gpu'", "auto, cpu or cuda"]),
        (["reward=none"], ["beta_ft is above 0", "reward=none"]),
        (["init=nowhere"], ["no student in nowhere", "student.json"]),
        (["parallel.dtype=float8"], ["parallel.dtype is 'float8'", "bfloat16"]),
        (["seed"], ["'seed' says nothing", "key=value"]),
        (["+beta_vds=1"], ["no key 'beta_vds'", "'beta_vsd'"]),
        (["beta_vsd=.nan"], ["beta_vsd=.nan", "a number"]),
        (["balance=0.5", "loss=ddpo", "beta_ft=1"], ["balance is 0.5", "ddpo", "not at x_hat", "balance=null"]),
        (["balance=half"], ["balance=half", "a number"]),
        (["balance=0.5", "beta_ft=0"], ["balance is 0.5", "beta_ft is 0"]),
        (["student.timesteps=[999,abc]"], ["student.timesteps", "'abc' is no number"]),
        (["optim.student.betas=[0.9]"], ["optim.student.betas", "has 2 numbers"]),
        (["optim.fake.lr=-1"], ["optim.fake", "lr must be positive"]),
        (["vsd.range=[0.98,0.02]"], ["vsd.range is [0.98, 0.02]", "rising"]),
        (["vsd.lower_half=half"], ["vsd.lower_half=half", "a number"]),
        (["cycles=[1,2]"], ["cycles=[1,2]", "a whole number"]),
        (["vsd.lower_half=[0.5,0.9]"], ["vsd.lower_half=[0.5,0.9]", "a number"]),
        (["vsd=3"], ["vsd=3", "keys of its own", "vsd.guidance_scale=VALUE"]),
        (["optim.student=null"], ["optim.student=null", "keys of its own"]),
        (["validation={every: abc}"], ["validation.every=abc", "a whole number"]),
        (["vsd={lower_half:2}"], ["vsd.lower_half is 2"]),  # read as hydra reads it
        (["vsd={rang: [0.1, 0.9]}"], ["no key 'vsd.rang'", "'vsd.range'"]),
        (["student.timesteps=[999"], ["student.timesteps=[999 can't be read"]),
        (["student.steps=[4,4]"], ["student.steps has 4 twice"]),
        (["vsd.lower_half=2"], ["vsd.lower_half is 2", "null for even ones"]),
        (["vsd.lower_half_over=[0.5]"], ["vsd.lower_half_over", "has 2 numbers"]),
        (["student.steps=[0]"], ["student.steps has 0", "1 or more"]),
        (["clip_gradient=0"], ["clip_gradient is 0", "positive"]),
        (["cd.guidance_scale=-7"], ["cd.guidance_scale is -7", "1 is no guidance"]),
        (["reward=dynamic_degree", "reward.threshold=abc"], ["reward.threshold=abc", "a number"]),
        (
            ["reward@guard.reward=pickscore", "guard.reward.path=5", "guard.action=stop"],
            ["reward.path is 5", "no such"],
        ),
        (["reward@guard.reward=function", "guard.reward.path=5", "guard.action=stop"], ["'5'", "name a function"]),
        (["lrm.warmup=-3"], ["lrm.warmup is -3"]),
        (["ema=1.0"], ["ema is 1.0", "below 1"]),
        (["log.trackers=[wandb]"], ["names wandb, which is not installed", "pip install wandb", "mlflow"]),
        (["log.trackers=[tensorbord]"], ["names 'tensorbord'", "tensorboard", "my_module.MyTracker"]),
        (["log.trackers=wandb"], ["log.trackers is a list", "log.trackers=[wandb]"]),
        (["run="], ["names no folder", "run=NAME"]),
        (["data=mixture", "data.paths=[a,b]", "data.weights=0.5"], ["data.weights=0.5", "is a list", "[0.5]"]),
        (["data=mixture", "data.paths=a", "data.weights=[1,2]"], ["2 weights for 1 sources"]),
        (["data=mixture", "data.paths=[a,b]", "data.weights=[1,x]"], ["'x' is no number"]),
        (["data=latents", "data.path=a", "data.cache_bytes=-1"], ["data.cache_bytes is -1"]),
        (["data=latents", "data.path=[a,b]"], ["data.path is ['a', 'b']", "one place"]),
        (["data=prompts", "data.path=[a,b]", "beta_cd=0"], ["data.path is ['a', 'b']", "one place"]),
        (["data=latents", "data.path=a", "data.block_bytes=-1"], ["data.block_bytes is -1"]),
        (["run=a/../../b"], ["names no folder", "run=NAME"]),
    ],
)
def test_a_mistake_in_training_is_a_sentence(
    command: Callable, nothing_expensive: None, tmp_path: Path, overrides: list[str], words: list[str]
) -> None:
    place = [] if any(o.startswith("teacher") for o in overrides) else ["teacher.folder=/nowhere"]
    sentence(command("train", f"runs={tmp_path}", *place, *overrides), *words)
    assert list(tmp_path.iterdir()) == []  # nothing was begun


def test_a_mistake_on_the_command_line_itself() -> None:
    """What a shell sees: one process, its standard error and its exit code."""
    said = subprocess.run(
        [sys.executable, str(ROOT / "launch" / "train.py"), "beta_vds=1"],
        capture_output=True,
        text=True,
        cwd="/",
        env={**os.environ, "PYTHONPATH": ""},
    )
    assert said.returncode != 0 and said.stdout == ""
    assert said.stderr.strip() == "train.py: there is no key 'beta_vds'; the nearest is 'beta_vsd'"


def test_mistakes_in_sampling_are_sentences(command: Callable, nothing_expensive: None, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    out = f"out={tmp_path / 'out'}"
    sentence(command("sample", out, f"prompts={tmp_path / 'empty.txt'}"), "has no prompts in it")
    sentence(command("sample", out, f"prompts={tmp_path / 'latin.txt'}"), "not valid UTF-8", "offset 3")
    sentence(command("sample", out, f"prompts={tmp_path / 'none.txt'}"), "does not exist")
    sentence(command("sample", out), "there is no prompt")
    sentence(command("sample", out, f"prompt='{PROMPT}'", "seed=-1"), "seed is -1")
    sentence(command("sample", out, f"prompt='{PROMPT}'", "guidance_scale=-1"), "guidance_scale is -1", "1 is no guid")
    sentence(command("sample", f"prompt='{PROMPT}'", "out="), "out is empty")
    sentence(command("sample", out, f"prompt='{PROMPT}'", "steps=[4,2]"), "steps=[4,2]", "a whole number")
    sentence(command("sample", out, f"prompt='{PROMPT}'", "clips=0"), "clips is 0")
    sentence(command("sample", out, f"prompt='{PROMPT}'", "steps=0"), "steps is 0")
    sentence(command("sample", out, f"prompt='{PROMPT}'", f"prompts={tmp_path / 'empty.txt'}"), "both given")
    sentence(command("sample", f"out={tmp_path / 'empty.txt'}", f"prompt='{PROMPT}'"), "is a file")
    sentence(command("sample", out, "promt=x"), "no key 'promt'", "'prompt'")
    sentence(command("sample", out, f"prompt='{PROMPT}'", "steps=abc"), "steps=abc", "a whole number")
    sentence(command("sample", out, f"prompt='{PROMPT}'", "guidance_scale=abc"), "guidance_scale=abc", "a number")
    sentence(command("sample", out, f"prompt='{PROMPT}'", "checkpoint=5"), "no student in 5")
    sentence(command("sample", out, f"prompt='{PROMPT}'", f"checkpoint={tmp_path}"), "no student in")
    sentence(command("sample", out, f"prompt='{PROMPT}'", "teacher.folder=/nowhere"), "no teacher at /nowhere")
    assert not (tmp_path / "out").exists()


def test_mistakes_in_pretraining_are_sentences_before_the_first_stage(
    command: Callable, nothing_expensive: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = (f"work={tmp_path / 'work'}", f"out={tmp_path / 'out'}")
    for mistake, *parts in (
        ("sharpen.lr=-1", "sharpen.lr is -1", "positive"),
        ("teacher.clip_gradient=0", "teacher.clip_gradient is 0", "positive"),
        ("joint.decay_from=3", "joint.decay_from is 3", "a fraction"),
        ("decoder.batch=0", "decoder.batch is 0", "at least 1"),
        ("finish.steps=-1", "finish.steps is -1", "at least 0"),
        ("sharpen=3", "sharpen=3", "keys of its own"),
        ("ema=2", "ema is 2", "below 1"),
        ("clips=0", "clips is 0"),
        ("text_length=0", "text_length is 0"),
        ("drop_caption=2", "drop_caption is 2"),
        ("seed=-1", "seed is -1"),
    ):
        sentence(command("pretrain", *work, mistake), *parts)
    monkeypatch.setenv("WORLD_SIZE", "3")
    sentence(command("pretrain", *work, "decoder.batch=2"), "decoder.batch is 2", "3 processes")
    assert not (tmp_path / "work").exists()
    monkeypatch.delenv("WORLD_SIZE")
    sentence(command("pretrain", *work, f"init={tmp_path / 'none'}"), "no teacher at")
    sentence(command("pretrain", *work, "parallel.dtype=float8"), "parallel.dtype is 'float8'")
    assert not (tmp_path / "work").exists()  # so that the mended command isn't taken for another run's
    (tmp_path / "work" / "vae_decoder").mkdir(parents=True)
    (tmp_path / "work" / "vae_decoder" / "state.safetensors").touch()
    OmegaConf.save(compose("pretrain", *work, "seed=7"), tmp_path / "work" / "config.yaml")
    sentence(command("pretrain", *work, "teacher.steps=1"), "another configuration", "seed was 7, now 0", "work=FOLDER")


def test_mistakes_in_evaluation_are_sentences(command: Callable, nothing_expensive: None, tmp_path: Path) -> None:
    sentence(command("evaluate", "clips=10"), "at least 64")
    sentence(command("evaluate", "lrm_prompts=-1"), "lrm_prompts is -1")
    sentence(command("evaluate", "steps=4"), "write steps=[4]")
    sentence(command("evaluate", "steps=[4]"), "a student's", "checkpoint=FOLDER")
    sentence(command("evaluate", f"checkpoint={tmp_path / 'student'}"), "no student in")
    (tmp_path / "file").write_text("")
    sentence(command("evaluate", f"out={tmp_path / 'file' / 'below'}"), "is a file; name a folder")
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "student.json").write_text("{}")
    sentence(command("evaluate", f"checkpoint={tmp_path / 'odd'}"), "can't be read (it lacks teacher_name")


@pytest.mark.parametrize(
    ("overrides", "place"),
    [
        (["data=mixture", "data.paths=/nowhere"], "/nowhere does not exist"),
        (["data=mixture", "data.paths=2024"], "the folder of shards 2024 does not exist"),
        (["data=mixture", "data.paths=[2024,x]"], "the folder of shards 2024 does not exist"),
        (["data=latents", "data.path=2024"], "the folder of shards 2024 does not exist"),
        (["data=prompts", "data.path=2024", "beta_cd=0"], "the prompt file 2024 does not exist"),
    ],
)
def test_a_place_of_data_is_a_name_whatever_it_looks_like(
    command: Callable, tiny_teacher_folder: Path, tmp_path: Path, overrides: list[str], place: str
) -> None:
    places = (f"runs={tmp_path}", f"teacher.folder={tiny_teacher_folder}")
    sentence(command("train", *TINY_RUN, *places, *overrides), place)


# A run


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def train(command: Callable, runs: Path, tiny_teacher_folder: Path) -> Callable:
    def run(*overrides: str, flags: tuple[str, ...] = ()):
        places = (f"runs={runs}", f"teacher.folder={tiny_teacher_folder}")
        return command("train", *flags, *TINY_RUN, *TINY_DATA, *places, *overrides)

    return run


@pytest.fixture(scope="module")
def finished(runs: Path) -> list[str]:
    """The arguments of the run that several tests look at; the first of them trains it."""
    return ["run=first", "cycles=2", "student.steps=[4,2]", "validation.every=2", "keep_best=reward_2"]


def test_a_run_is_trained_and_found_finished(train: Callable, runs: Path, finished: list[str]) -> None:
    said = train(*finished)
    assert said.code == 0, said.err
    assert re.search(r"vsd s = 1\.25 \(w = 0\.25\), cd s = 2 \(w = 1\)", said.out)  # in both forms
    folder = runs / "first"
    expected = {"config.yaml", "metrics.jsonl", "checkpoints", "best", "student", "lrm"}
    assert expected <= {p.name for p in folder.iterdir()}
    assert OmegaConf.load(folder / "config.yaml").student.steps == [4, 2]
    card = json.loads((folder / "student" / "student.json").read_text())
    assert card["steps"] == [4, 2] and card["cycle"] == 2 and card["teacher"]["name"] == "tiny"
    # The student is the averaged one.
    saved = load_file(next((folder / "student" / "transformer").glob("*.safetensors")))
    state = load_file(next((folder / "checkpoints").glob("step-*/state.safetensors")))
    assert all(torch.equal(t, state[f"ema/transformer.{n}"]) for n, t in saved.items())
    assert any(not torch.equal(t, state[f"student/transformer.{n}"]) for n, t in saved.items())

    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}
    again = train(*finished)
    assert again.code == 0 and "is finished: 2 of 2 cycles" in again.out
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()} == before


def test_another_configuration_does_not_touch_it(train: Callable, runs: Path, finished: list[str]) -> None:
    train(*finished)
    before = (runs / "first" / "config.yaml").read_text()
    said = train(*finished, "beta_cd=0.25", "seed=5")
    sentence(said, "holds a run of another configuration", "beta_cd was 1.0, now 0.25", "seed was 0, now 5", "run=NAME")
    assert (runs / "first" / "config.yaml").read_text() == before


def test_a_run_from_before_a_key_came_is_the_same_run(train: Callable, runs: Path, finished: list[str]) -> None:
    train(*finished)
    stored = runs / "first" / "config.yaml"
    kept = stored.read_text()
    before = OmegaConf.load(stored)
    for group, name in (("vsd", "lower_half"), ("lrm", "mode"), ("", "patience"), ("guard", "action"), ("", "terms")):
        del (OmegaConf.select(before, group) if group else before)[name]
    OmegaConf.save(before, stored)
    assert train(*finished).code == 0
    sentence(train(*finished, "vsd.lower_half=0.9"), "(vsd.lower_half was None, now 0.9)")
    sentence(train(*finished, "pull.steps=9"), "(pull.steps was 4, now 9)")  # not of what repeats it, too
    before.old = {"seed": 0}  # a repeat that is gone
    OmegaConf.save(before, stored)
    assert train(*finished).code == 0
    before.old = {"unknown": 3}
    OmegaConf.save(before, stored)
    sentence(train(*finished), "(old.unknown was 3, now None)")
    stored.write_text(kept)


def test_a_node_that_repeats_another_is_not_missed(tmp_path: Path) -> None:
    from dollar.cli.same import check_same

    config = OmegaConf.create({"vsd": {"m": 5, "g": 1.0}, "terms": {"vsd": "${vsd}"}, "path": "a"})
    path = tmp_path / "config.yaml"
    for stored in ({"vsd": {"m": 5, "g": 1.0}}, OmegaConf.to_container(config, resolve=True)):
        OmegaConf.save({"path": "a", **stored}, path)
        check_same(path, OmegaConf.to_container(config, resolve=True), "", config=config)
        config.vsd.m = 7
        with pytest.raises(ValueError, match=r"\(vsd.m was 5, now 7\)"):
            check_same(path, OmegaConf.to_container(config, resolve=True), "", config=config)
        check_same(path, OmegaConf.to_container(config, resolve=True), "", ["vsd"], config)
        config.vsd.m = 5
    with pytest.raises(ValueError, match=r"terms.vsd.m was 5, now None"):  # nothing says it was a repeat
        check_same(path, {"path": "a", "vsd": {"k": 5, "g": 1.0}}, "", ["vsd"])


def test_places_of_one_are_the_same_listed_or_not(tmp_path: Path) -> None:
    from dollar.cli.same import check_same

    OmegaConf.save({"paths": ["a"], "steps": [1]}, tmp_path / "config.yaml")
    check_same(tmp_path / "config.yaml", {"paths": "a", "steps": [1]}, "")
    with pytest.raises(ValueError, match=r"steps was \[1\], now 1"):
        check_same(tmp_path / "config.yaml", {"paths": "a", "steps": 1}, "")


def test_more_cycles_go_on_from_there(train: Callable, runs: Path, finished: list[str]) -> None:
    arguments = [a for a in finished if not a.startswith(("run=", "cycles="))]
    train(*arguments, "run=longer", "cycles=1")
    said = train(*arguments, "run=longer", "cycles=2")
    assert said.code == 0 and "going on at cycle 1" in said.out
    lines = [json.loads(line) for line in (runs / "longer" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss/vsd" in line] == [1, 2]
    train(*finished)
    saved = Path("checkpoints", "step-00000002", "state.safetensors")
    kept = [load_file(runs / run / saved) for run in ("first", "longer")]
    assert kept[0].keys() == kept[1].keys() and all(torch.equal(t, kept[1][n]) for n, t in kept[0].items())


def test_another_meaning_of_its_outputs_is_no_place_to_start(
    train: Callable, runs: Path, finished: list[str], nothing_expensive: None
) -> None:
    said = train(*finished, "run=other", f"init={runs / 'first' / 'student'}", "student.parameterization=heterogeneous")
    sentence(said, "is homogeneous and student.parameterization is heterogeneous", "init=null")


def test_a_reward_that_cannot_judge_the_clips_is_told(
    command: Callable, tiny_teacher_folder: Path, tmp_path: Path
) -> None:
    from PIL import Image

    Image.new("RGB", (64, 64)).save(tmp_path / "dog.png")
    (tmp_path / "dog.txt").write_text("a dog")
    places = (f"runs={tmp_path}", f"teacher.folder={tiny_teacher_folder}", "data=clips", f"data.path={tmp_path}")
    reward = "reward._target_=dollar.rewards.shapes.ShapesVerifier"
    said = command("train", *TINY_RUN, *places, reward, "run=dogs")
    sentence(said, "ShapesVerifier can't score", "'a dog'", "reward=none beta_ft=0")


def test_a_student_is_sampled(
    train: Callable, command: Callable, runs: Path, finished: list[str], tmp_path: Path
) -> None:
    train(*finished)
    student, out = f"checkpoint={runs / 'first' / 'student'}", tmp_path / "out"
    other = "a large blue cross standing still on a white background"
    said = command("sample", student, f"out={out}", f"prompt=['{PROMPT}','{other}']", "steps=2", "clips=2", "seed=5")
    assert said.code == 0, said.err
    rows = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
    pairs = [(row["prompt"], row["seed"]) for row in rows]
    assert pairs == list(itertools.product([PROMPT, other], [5, 6]))
    assert all(row["steps"] == 2 and row["by"] == "student" for row in rows)
    for row in rows:
        assert len(read_video(out / row["file"], np.arange(9) / 8)) == 9
        assert (out / row["file"]).with_suffix(".gif").read_bytes().startswith(b"GIF8")
        assert str(out / row["file"]) in said.out
    assert len({(out / row["file"]).read_bytes() for row in rows}) == 4
    name = media.safe_name(PROMPT, 5, 2, "first")
    command("sample", student, f"out={tmp_path / 'again'}", f"prompt={PROMPT}", "steps=2", "seed=5", "gif=false")
    once = (tmp_path / "again" / "manifest.jsonl").read_text()
    command("sample", student, f"out={tmp_path / 'again'}", f"prompt={PROMPT}", "steps=2", "seed=5", "gif=false")
    assert (tmp_path / "again" / "manifest.jsonl").read_text() == once and once.count("\n") == 1
    times = np.arange(9) / 8
    alone, in_company = (read_video(place / f"{name}.mp4", times) for place in (tmp_path / "again", out))
    other_seed = read_video(out / f"{media.safe_name(PROMPT, 6, 2, 'first')}.mp4", times)

    def apart(a: list[np.ndarray], b: list[np.ndarray]) -> float:
        return float(np.abs(np.stack(a).astype(int) - np.stack(b)).mean())

    # Rounding may turn a level here and there, and the video's compression with it.
    assert apart(alone, in_company) < 1 < 0.1 * apart(alone, other_seed)
    assert not list((tmp_path / "again").glob("*.gif"))


def test_a_step_count_it_was_not_trained_for_is_refused(
    train: Callable, command: Callable, runs: Path, finished: list[str], tmp_path: Path
) -> None:
    train(*finished)
    arguments = (f"checkpoint={runs / 'first' / 'student'}", f"prompt={PROMPT}", "steps=3")
    sentence(command("sample", *arguments, f"out={tmp_path / 'a'}"), "steps is 3", "trained for 4 or 2")
    assert not (tmp_path / "a").exists()
    forced = command("sample", *arguments, f"out={tmp_path / 'b'}", "force=true")
    assert forced.code == 0 and len(list((tmp_path / "b").glob("*.mp4"))) == 1


def test_the_teacher_is_sampled_too(command: Callable, tiny_teacher_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text(f"{PROMPT}\n\n{PROMPT}\n")
    size = [o for o in TINY_RUN if o.startswith("teacher.")]
    said = command(
        *("sample", *size, f"teacher.folder={tiny_teacher_folder}", f"prompts={tmp_path / 'prompts.txt'}", "steps=3"),
        f"out={tmp_path / 'out'}",
    )
    assert said.code == 0, said.err
    (row, twin) = (json.loads(line) for line in (tmp_path / "out" / "manifest.jsonl").read_text().splitlines())
    assert row["by"] == "teacher" and row["steps"] == 3 and row["prompt"] == twin["prompt"] == PROMPT


def test_a_sweep_has_a_folder_for_each_job_and_a_table(train: Callable, runs: Path) -> None:
    said = train("run=sweep", "cycles=1", "beta_ft=0", "beta_cd=0,0.5", "validation.every=1", flags=("-m",))
    assert said.code == 0, said.err
    jobs = sorted(p.parent.parent.name for p in (runs / "sweep").glob("*/student/student.json"))
    assert len(jobs) == 2 and all("beta_cd=" in job and len(job) <= 200 for job in jobs)
    rows = json.loads((runs / "sweep" / "sweep.json").read_text())
    assert sorted(row["run"] for row in rows) == jobs
    assert all("validation/reward_4" in row for row in rows)
    assert (runs / "sweep" / "multirun.yaml").is_file() and not Path("multirun.yaml").exists()
    table = said.out[said.out.rindex("\nrun") :]
    assert "reward_4" in table and all(job in table for job in jobs)


def test_a_bad_job_ends_alone_and_the_table_says_so(train: Callable, runs: Path) -> None:
    said = train("run=partly", "cycles=1", "beta_cd=0,-1", "validation.every=1", flags=("-m",))
    assert said.code == 2 and "beta_cd is -1" in said.err
    rows = {row["run"]: row for row in json.loads((runs / "partly" / "sweep.json").read_text())}
    bad = next(name for name in rows if "beta_cd=-1" in name)
    good = next(name for name in rows if "beta_cd=0" in name)
    assert rows[bad] == {"run": bad, "failed": True} and "validation/reward_4" in rows[good]


@pytest.mark.parametrize(
    "text",
    [
        "a dog's tail, wagging",
        "one (black) dog = two [dogs]",
        'say "hi" \\ now',
        "plain",
        "a ${oc.env:HOME} of ${nothing}",
        "'tis a dog",
        "[red dog",
    ],
)
def test_a_prompt_may_hold_anything(text: str) -> None:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    from dollar.cli.arguments import as_they_stand

    (word,) = as_they_stand("sample", [f"prompt={text}"])
    quoted = OverridesParser.create().parse_override(word).value()
    assert OmegaConf.create({"prompt": quoted}).prompt == text
    given = ["prompt=['a','b']", "steps=4"]
    assert as_they_stand("sample", given) == given
