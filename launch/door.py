"""The door that every command goes through: composes the configuration, answers mistakes with a sentence."""

from __future__ import annotations

import difflib
import os
import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Idle threads sleep instead of spinning, which on few cores costs more than it gains; must be set before torch starts.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from results_table import FAILED

ROOT = Path(__file__).resolve().parent.parent
CONF = ROOT / "conf"
OmegaConf.register_new_resolver("embedded", lambda name: str(ROOT / "dollar" / "assets" / name), replace=True)


def enter(main: Callable[[DictConfig], Any], config_name: str) -> None:
    """Run `main` with the composed configuration; a ValueError is printed as its sentence, with exit code 2.

    In a sweep an error ends its own job only; the exit code is 2 when any job failed.
    """
    failures = []
    sys.argv[1:] = [quote_prompt(a) for a in sys.argv[1:]]
    try:
        check_overrides(config_name, sys.argv[1:])
    except ValueError as error:
        sys.exit(f"{Path(sys.argv[0]).name}: {error}")

    def guarded(config: DictConfig) -> Any:
        try:
            return main(config)
        except (ValueError, InstantiationException) as error:
            # Hydra wraps what a constructor raises; the user's sentence is inside.
            told = error.__cause__ if isinstance(error, InstantiationException) else error
            if os.environ.get("DOLLAR_TRACEBACK") or not isinstance(told, ValueError):
                raise
            print(f"{Path(sys.argv[0]).name}: {told}", file=sys.stderr)
            sys.exit(2)

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


def quote_prompt(argument: str) -> str:
    """A prompt as one quoted word, so that commas, brackets and apostrophes in it mean nothing to hydra."""
    key, _, value = argument.partition("=")
    if key != "prompt" or value[:1] in ("", "[", '"', "'") or value == "null":
        return argument
    # Within quotes hydra reads a backslash as one, unless a quote follows.
    escaped = re.sub(r'(\\*)("|$)', lambda found: 2 * found[1] + ('\\"' if found[2] else ""), value)
    return f'{key}="{escaped}"'


def check_overrides(config_name: str, arguments: list[str]) -> None:
    """Raise ValueError for an unknown key (naming the nearest) or a value of another type than the default."""
    pairs = [a.split("=", 1) for a in arguments if "=" in a and not a.startswith(("-", "hydra", "+", "~"))]
    groups = {p.name for p in CONF.iterdir() if p.is_dir()}
    chosen = [f"{key}={value.split(',')[0]}" for key, value in pairs if key in groups]
    for key, value in pairs:
        if key in groups:
            _check_choice(key, value)
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        defaults = hydra.compose(config_name, overrides=chosen)
    GlobalHydra.instance().clear()
    known = _keys(defaults)
    for key, value in pairs:
        if key in groups:
            continue
        if key not in known:
            raise ValueError(f"there is no key {key!r}; {_nearest(key, sorted({*known, *groups}))}")
        _check_type(key, value, known[key])


def _check_choice(group: str, value: str) -> None:
    options = sorted(p.stem for p in (CONF / group).glob("*.yaml"))
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


def _check_type(key: str, text: str, default: Any) -> None:
    """Numbers stay numbers and switches stay switches; values with commas between them are a sweep."""
    wanted = {bool: "true or false", int: "a whole number", float: "a number"}.get(type(default))
    if isinstance(default, list) and not text.startswith(("[", "choice(")):
        raise ValueError(f"{key}={text}: {key} is a list (now {default}); write {key}=[{text}]")
    if wanted is None or text.startswith(("range(", "choice(", "interval(")):
        return
    for part in text.split(","):
        given = OmegaConf.create(f"value: {part}").value
        number = isinstance(given, int if isinstance(default, int) else (int, float)) and not isinstance(given, bool)
        fits = isinstance(given, bool) if isinstance(default, bool) else number
        if not fits:
            raise ValueError(f"{key}={part}: {key} is {wanted} (now {default})")
