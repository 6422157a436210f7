"""The door that every command goes through: composes the configuration, answers mistakes with a sentence."""

from __future__ import annotations

import difflib
import math
import os
import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Idle threads sleep instead of spinning, which on few cores costs more than it gains; must be set before torch starts.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, InstantiationException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dollar.cli.sweeps import FAILED
from dollar.log import speak

ROOT = Path(__file__).resolve().parents[2]
CONF = next(p for p in (ROOT / "dollar" / "conf", ROOT / "conf") if p.is_dir())  # an installed wheel has the first
SHARED = "common"  # the folder of conf/ that holds what several yamls share, and no choices
# Keys whose value is a path, or a list of such, whatever it looks like.
FOLDERS = (
    *("checkpoint", "init", "out", "prompts", "runs", "work", "lrm.path", "observations"),
    *("data.path", "data.paths", "data.nulls", "reward.path"),
)
VALUED = ("--cfg", "-c", "--package", "-p", "--info", "-i")  # those options that a word without = follows
PAIRS = ("betas", "range", "lower_half_over", "noise")  # lists of two numbers
# What a key whose default is null must be, by a value of that kind.
KINDS: dict[str, Any] = {
    "sample.steps": 4,
    "sample.guidance_scale": 1.0,
    "sample.frames": 9,
    "sample.height": 64,
    "sample.width": 64,
    "sample.fps": 8.0,
    "evaluate.steps": [4, 1],
    "export.steps": 4,
    "export.lora": 64,
    "train.balance": 1.0,
    "train.patience": 2,
    "train.rg.frames": 4,
    "fit_reward.reward.frames": 8,
    "train.reward.frames": 8,
    "train.reward.threshold": 0.19,
    "fit_reward.reward.threshold": 0.19,
    "evaluate.reward.threshold": 0.19,
    "train.guard.reward.threshold": 0.19,
    "train.teacher.chunk_frames": 4,
    "train.teacher.shift": 5.0,
    "sample.teacher.shift": 5.0,
    "sample.teacher.chunk_frames": 4,
    "train.student.timesteps": [999, 749],
    "train.student.lora": 16,
    "train.vsd.lower_half": 0.5,
    "train.data.weights": [1.0, 1.0],
}
# Mistakes of the user's, or of his machine, that a sentence explains better than a traceback.
TOLD = (ValueError, OSError, FloatingPointError, OmegaConfBaseException)
OmegaConf.register_new_resolver("embedded", lambda name: str(ROOT / "dollar" / "assets" / name), replace=True)


def enter(main: Callable[[DictConfig], Any], config_name: str) -> None:
    """Run `main` with the composed configuration; a mistake is printed as its sentence, with exit code 2.

    In a sweep an error ends its own job only; the exit code is 2 when any job failed.
    """
    failures = []
    speak()
    sys.argv[1:] = [whole_data(config_name, quote_prompt(a)) for a in options_first(sys.argv[1:])]
    try:
        check_overrides(config_name, sys.argv[1:])
    except ValueError as error:
        _refuse(error)

    def guarded(config: DictConfig) -> Any:
        try:
            check_given(config)
            name_folders(config)
            return main(config)
        except (*TOLD, InstantiationException) as error:
            # Hydra wraps what a constructor raises; the user's sentence is inside.
            told = error.__cause__ if isinstance(error, InstantiationException) else error
            if os.environ.get("DOLLAR_TRACEBACK") or not isinstance(told, TOLD):
                raise
            _refuse(told)

    def job(config: DictConfig) -> Any:
        if HydraConfig.get().mode != RunMode.MULTIRUN:
            return guarded(config)
        try:
            return guarded(config)
        except SystemExit as end:
            if end.code != 2:  # asked to stop: no further job
                raise
        except Exception:  # whatever it was, the other jobs go on and the table names this one
            traceback.print_exc()
        failures.append(HydraConfig.get().job.override_dirname)
        return FAILED

    hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)(job)()
    if failures:
        sys.exit(2)


def _refuse(error: BaseException) -> None:
    print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
    sys.exit(2)


def check_folder_for(key: str, path: Path) -> None:
    """Raise ValueError unless results can be written to this folder, which may not be there yet."""
    there = next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())
    if not there.is_dir():
        raise ValueError(f"{key}={path}: {there} is a file; name a folder")
    if not os.access(there, os.W_OK):
        raise ValueError(f"{key}={path}: nothing may be written to {there}; name another folder")


def name_folders(config: DictConfig) -> None:
    """Make every key that names a place text, and data.paths a list, for a name may look like a number."""
    for key in FOLDERS:
        given = OmegaConf.select(config, key)
        listed = OmegaConf.is_list(given)
        several = list(given) if listed else [given]
        one_of_several = key == "data.paths" and not listed
        if given is None or (all(isinstance(place, str) for place in several) and not one_of_several):
            continue  # written anew, a name with ${ in it would be looked up
        named = [str(place).replace("${", "\\${") for place in several]
        OmegaConf.update(config, key, named if listed or one_of_several else named[0])


def check_given(config: DictConfig) -> None:
    """Raise ValueError for a key that has no default and was not given."""
    stack: list[tuple[str, Any]] = [("", OmegaConf.to_container(config, resolve=False))]
    while stack:
        prefix, values = stack.pop()
        for key, value in values.items():
            if value == "???":
                raise ValueError(f"{prefix}{key} is missing, and has no default; give {prefix}{key}=VALUE")
            if isinstance(value, dict):
                stack.append((f"{prefix}{key}.", value))


def options_first(arguments: list[str]) -> list[str]:
    """The same words with hydra's options before the key=value ones, since it understands no option between those."""
    words = list(zip(_options(arguments), arguments, strict=True))
    return [word for option, word in words if option] + [word for option, word in words if not option]


def _options(arguments: list[str]) -> list[bool]:
    """Which words are options of hydra's, or what follows one."""
    pairs = zip(["", *arguments], arguments, strict=False)
    return [word.startswith("-") or (before in VALUED and "=" not in word) for before, word in pairs]


def quote_prompt(argument: str) -> str:
    """A prompt as one quoted word, so that commas, brackets, quotes and ${} in it mean nothing to hydra.

    A list [first, second] and what is quoted already stay as they are.
    """
    key, _, value = argument.partition("=")
    enclosed = len(value) > 1 and (value[0], value[-1]) in (("[", "]"), ('"', '"'), ("'", "'"))
    if key != "prompt" or enclosed or value in ("", "null"):
        return argument
    return f"{key}={_quoted(value)}"


def whole_data(config_name: str, argument: str) -> str:
    """data=PATH as data.path="PATH" for a command whose data is no group, for hydra would look for a group's choice."""
    key, _, value = argument.partition("=")
    if key != "data" or OmegaConf.select(OmegaConf.load(CONF / f"{config_name}.yaml"), "data.path", default=0) == 0:
        return argument
    as_it_is = value in ("", "null") or value[0] in "[\"'"
    return f"data.path={value if as_it_is else _quoted(value)}"


def _quoted(text: str) -> str:
    """A value in which nothing means anything to hydra."""
    # Within quotes hydra reads a backslash as one, unless a quote follows.
    escaped = re.sub(r'(\\*)("|$)', lambda found: 2 * found[1] + ('\\"' if found[2] else ""), text)
    return f'"{escaped}"'.replace("${", "\\${")


def check_overrides(config_name: str, arguments: list[str]) -> None:
    """Raise ValueError for an unknown key (naming the nearest) or a value of another type than the default."""
    words = [word for option, word in zip(_options(arguments), arguments, strict=True) if not option]
    if bare := [w for w in words if "=" not in w and not w.startswith("~")]:
        raise ValueError(f"{bare[0]!r} says nothing; everything is given as key=value")
    for word in words:
        try:
            OverridesParser.create().parse_override(word)
        except HydraException as error:
            raise ValueError(f"{word} can't be read: {str(error).splitlines()[0]}") from None
    pairs = [w.lstrip("+").split("=", 1) for w in words if "=" in w and not w.startswith(("hydra", "~"))]
    if not {"-m", "--multirun"} & set(arguments):
        for key, value in pairs:
            if "," in value and not value.startswith(("[", "{", "'", '"')):
                raise ValueError(f"{key}={value} gives several values; add -m to run one after the other, or give one")
    folders = {p.name for p in CONF.iterdir() if p.is_dir()} - {SHARED}
    # reward@guard.reward=NAME is a choice of the folder reward for the keys below guard.reward.
    groups = folders | {key for key, _ in pairs if key.partition("@")[0] in folders}
    chosen = [f"{key}={value.split(',')[0]}" for key, value in pairs if key in groups]
    for key, value in pairs:
        if key in groups:
            _check_choice(key, value)
    try:
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            defaults = hydra.compose(config_name, overrides=chosen)
    except HydraException as error:
        raise ValueError(f"{' '.join(chosen)} can't be read: {str(error).splitlines()[0]}") from None
    finally:
        GlobalHydra.instance().clear()
    known = _keys(defaults)
    given = [leaf for k, v in pairs if k not in groups for leaf in _leaves(k, v, known)]
    for key, value in given:
        if key not in known:
            raise ValueError(f"there is no key {key!r}; {_nearest(key, sorted({*known, *groups}))}")
        default = known[key]
        kind = KINDS.get(f"{'train' if config_name == 'plan' else config_name}.{key}")
        _check_type(key, value, kind if default is None else default, default is None)


def _check_choice(group: str, value: str) -> None:
    options = sorted(p.stem for p in (CONF / group.partition("@")[0]).glob("*.yaml"))
    for choice in value.split(","):
        if choice not in options:
            raise ValueError(f"there is no {group}={choice}; {_nearest(choice, options)} ({', '.join(options)})")


def _nearest(word: str, options: list[str]) -> str:
    leaf = {o: o.rsplit(".", 1)[-1] for o in options}
    near = difflib.get_close_matches(word, options, 1, 0.5) or [
        o for o, last in leaf.items() if difflib.get_close_matches(word.rsplit(".", 1)[-1], [last], 1, 0.6)
    ]
    return f"the nearest is {near[0]!r}" if near else "--cfg job lists all keys"


def _keys(config: DictConfig) -> dict[str, Any]:
    """Every key below a configuration, dotted, with its default (None where it must be given)."""
    found: dict[str, Any] = {}
    for key in map(str, config):
        value = None if OmegaConf.is_missing(config, key) else OmegaConf.to_container(config)[key]  # type: ignore[index, call-overload]
        found[key] = value
        if isinstance(value, dict):
            found |= {f"{key}.{inner}": v for inner, v in _keys(config[key]).items()}
    return found


def _leaves(key: str, text: str, known: dict[str, Any]) -> list[tuple[str, str]]:
    """A key and its value, or, where the key holds others, those that {inner: value, ...} gives."""
    inner = sorted(k for k in known if k.startswith(f"{key}."))
    if not isinstance(known.get(key), dict) or not inner:
        return [(key, text)]
    given = OverridesParser.create().parse_override(f"{key}={text}")
    if given.is_sweep_override():
        return [(key, text)]
    values = given.value()
    if not isinstance(values, dict):
        raise ValueError(f"{key}={text}: {key} holds keys of its own; give one of them, as {inner[0]}=VALUE")
    written = [(f"{key}.{k}", "null" if v is None else str(v)) for k, v in values.items()]
    return [leaf for k, v in written for leaf in _leaves(k, v, known)]


def _check_type(key: str, text: str, default: Any, optional: bool = False) -> None:
    """Numbers stay numbers, switches stay switches and lists lists of such; commas between values make a sweep."""
    if text.startswith(("range(", "choice(", "interval(", "glob(")) or (optional and text == "null"):
        return
    if text == "all" and re.search(r"(^|\.)(reward|rg|parts\.\w+)\.frames$", key):  # every frame
        return
    if isinstance(default, list):
        _check_list(key, text, default, "" if optional else f" (now {default})")
    elif isinstance(default, (bool, int, float)):
        for part in [text] if text.startswith(("[", "{")) else text.split(","):
            if not _alike(OmegaConf.create(f"value: {part}").value, default):
                raise ValueError(f"{key}={part}: {key} is {_kind(default)}" + ("" if optional else f" (now {default})"))


def _check_list(key: str, text: str, default: list, now: str) -> None:
    try:
        given = OmegaConf.to_container(OmegaConf.create(f"value: {text}"))["value"]  # type: ignore[index, call-overload]
    except Exception:  # whatever the reader of lists says, hydra says it better
        return
    if not isinstance(given, list):
        raise ValueError(f"{key}={text}: {key} is a list{now}; write {key}=[{text}]")
    numbers = bool(default) and isinstance(default[0], (int, float))
    for item in given:
        if numbers and not _alike(item, 1.0):
            raise ValueError(f"{key}={text}: {item!r} is no number, as all in {key} are{now}")
    if key.rsplit(".", 1)[-1] in PAIRS and len(given) != len(default):
        raise ValueError(f"{key}={text}: {key} has {len(default)} numbers{now}")


def _kind(default: Any) -> str:
    return {bool: "true or false", int: "a whole number", float: "a number"}[type(default)]


def _alike(given: Any, default: Any) -> bool:
    if isinstance(given, bool) or isinstance(default, bool):
        return isinstance(given, bool) and isinstance(default, bool)
    if isinstance(default, int):
        return isinstance(given, int)
    return isinstance(given, (int, float)) and math.isfinite(given)
