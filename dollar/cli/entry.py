"""Where every command starts: composes the configuration, runs the command, explains mistakes in a sentence."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

# Idle threads sleep instead of spinning, which on few cores costs more than it gains; must be set before torch starts.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dollar.cli.overrides import CONF, PACKAGE, check_overrides, options_first, quote_prompt, text_keys, whole_data
from dollar.cli.sweeps import FAILED
from dollar.log import speak

__all__ = ["CONF", "ROOT", "check_alone", "check_folder_for", "check_given", "enter", "make_text"]

ROOT = PACKAGE.parent
READS_NOTHING = ("plan",)  # commands for which places without a default need not be given
# Mistakes of the user's, or of his machine, that a sentence explains better than a traceback.
EXPLAINED = (ValueError, OSError, FloatingPointError, OmegaConfBaseException)
OmegaConf.register_new_resolver("embedded", lambda name: str(PACKAGE / "assets" / name), replace=True)


def enter(main: Callable[[DictConfig], Any], config_name: str) -> None:
    """Run `main` with the composed configuration; a mistake is printed as its sentence, with exit code 2.

    In a sweep an error ends its own job only; the exit code is 2 when any job failed.
    """
    failures = []
    speak()
    see_own_modules()
    sys.argv[1:] = [whole_data(config_name, quote_prompt(a)) for a in options_first(sys.argv[1:])]
    try:
        given_text = check_overrides(config_name, sys.argv[1:])
    except ValueError as error:
        _refuse(error)

    def guarded(config: DictConfig) -> Any:
        try:
            if config_name not in READS_NOTHING:
                check_given(config)
            plain: Any = OmegaConf.to_container(config, resolve=False)
            make_text(config, [*given_text, *text_keys(config_name, plain)])
            return main(config)
        except (*EXPLAINED, InstantiationException) as error:
            # Hydra wraps what a constructor raises; the user's sentence is inside.
            inner = error.__cause__ if isinstance(error, InstantiationException) else error
            if os.environ.get("DOLLAR_TRACEBACK") or not isinstance(inner, EXPLAINED):
                raise
            _refuse(inner)

    def job(config: DictConfig) -> Any:
        if HydraConfig.get().mode != RunMode.MULTIRUN:
            return guarded(config)
        try:
            return guarded(config)
        except SystemExit as end:
            if end.code != 2:  # stopped by a signal: no further job
                raise
        except Exception:  # whatever it was, the other jobs go on and the table names this one
            traceback.print_exc()
        failures.append(HydraConfig.get().job.override_dirname)
        return FAILED

    job.__module__ = config_name  # as which --help introduces the command
    hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)(job)()
    if failures:
        sys.exit(2)


def see_own_modules() -> None:
    """Let a configuration name modules of the current folder, as `python -m` does; launch/ hides other packages."""
    here = Path.cwd()
    if here != ROOT / "launch" and str(here) not in sys.path and "" not in sys.path:
        sys.path.insert(0, str(here))


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


def check_alone(what: str) -> None:
    """Raise ValueError where torchrun has started several processes of a command that works in one."""
    if (count := int(os.environ.get("WORLD_SIZE", "1"))) > 1:
        raise ValueError(f"{what} works in one process, and torchrun has started {count}; start it with python")


def make_text(config: DictConfig, keys: Sequence[str]) -> None:
    """Make the values of these keys text, for a name may look like a number."""
    for key in keys:
        given = OmegaConf.select(config, key)
        several = list(given) if OmegaConf.is_list(given) else [given]
        if all(value is None or isinstance(value, str) for value in several):
            continue  # written anew, a name with ${ in it would be looked up
        text = [None if value is None else str(value).replace("${", "\\${") for value in several]
        OmegaConf.update(config, key, text if OmegaConf.is_list(given) else text[0])


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
