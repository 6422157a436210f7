"""Where every command starts: composes the configuration, runs the command, explains mistakes in a sentence."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

# Idle threads sleep instead of spinning, which on few cores costs more than it gains; must be set before torch starts.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dollar.cli.arguments import as_they_stand
from dollar.cli.help import help_of
from dollar.cli.options import HELP
from dollar.cli.overrides import CONF, PACKAGE, check_overrides
from dollar.cli.sweeps import FAILED, named_by
from dollar.cli.texts import settle_text
from dollar.cli.written import expanded
from dollar.lazy import dotted
from dollar.log import speak
from dollar.parallel.outcome import REFUSED, another_left, first_to_say, leave
from dollar.parallel.signals import STOPPED

__all__ = ["CONF", "ROOT", "check_alone", "check_folder_for", "check_given", "enter"]

ROOT = PACKAGE.parent
INTERRUPTED = 130  # as a shell has it for Ctrl-C
UNREAD = 141  # and for a reader, such as `head`, that has gone
READS_NOTHING = ("plan",)  # commands for which places without a default need not be given
# Mistakes of the user's, or of his machine, that a sentence explains better than a traceback.
EXPLAINED = (ValueError, OSError, FloatingPointError, OmegaConfBaseException)
OmegaConf.register_new_resolver("home", expanded, replace=True)  # for what hydra reads before a command does
OmegaConf.register_new_resolver("embedded", lambda name: str(PACKAGE / "assets" / name), replace=True)


def enter(main: Callable[[DictConfig], Any], config_name: str) -> None:
    """Run `main` with the composed configuration; a mistake is printed as its sentence, with exit code 2.

    In a sweep an error ends its own job only; the exit code is 2 when any job failed. Under torchrun a sentence is
    printed once, and torchrun ends by the same code.
    """
    try:
        _enter(main, config_name)
        sys.stdout.flush()
    except BrokenPipeError:
        _unread()
    except SystemExit as end:
        if end.code in (REFUSED, STOPPED):
            leave(end.code)
        raise
    except KeyboardInterrupt:
        leave(INTERRUPTED)
        sys.exit(INTERRUPTED)


def _unread() -> NoReturn:
    """End without a word where nobody reads what is printed."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter's own last flush complains
    sys.exit(UNREAD)


def _enter(main: Callable[[DictConfig], Any], config_name: str) -> None:
    failures = []
    speak()
    see_own_modules()
    try:
        if {*HELP} & {*sys.argv[1:]}:
            if first_to_say(text := help_of(config_name, sys.argv[1:])):
                print(text)
            return
        words = as_they_stand(config_name, sys.argv[1:])
        given_text = check_overrides(config_name, words)
        sys.argv[1:] = [*words, *named_by(words)]
    except ValueError as error:
        refuse(error)

    def guarded(config: DictConfig) -> Any:
        try:
            if config_name not in READS_NOTHING:
                check_given(config)
            settle_text(config_name, config, given_text)
            return main(config)
        except BrokenPipeError:
            _unread()
        except (*EXPLAINED, InstantiationException) as error:
            # Hydra wraps what a constructor raises; the user's sentence is inside.
            inner = error.__cause__ if isinstance(error, InstantiationException) else error
            if os.environ.get("DOLLAR_TRACEBACK") or not isinstance(inner, EXPLAINED):
                raise
            refuse(inner)
        except Exception:
            if (code := another_left()) is None or os.environ.get("DOLLAR_TRACEBACK"):
                raise
            sys.exit(code)

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
        failures.append(HydraConfig.get().job.num)
        return FAILED

    job.__module__ = config_name  # as which hydra introduces the command
    hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)(job)()
    if failures:
        sys.exit(2)


def see_own_modules() -> None:
    """Let a configuration name modules of the current folder, as `python -m` does; launch/ hides other packages."""
    here = Path.cwd()
    if here != ROOT / "launch" and str(here) not in sys.path and "" not in sys.path:
        sys.path.insert(0, str(here))


def refuse(error: BaseException) -> NoReturn:
    """End the command by the sentence of a mistake."""
    if first_to_say(sentence := _sentence(error)):
        print(f"{Path(sys.argv[0]).name}: {sentence}", file=sys.stderr)
    sys.exit(REFUSED)


def _sentence(error: BaseException) -> str:
    """What an error says; of OmegaConf's, its first line with the key that it is about, of the system's, the file."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: the system says: {error.strerror}"
    if not isinstance(error, OmegaConfBaseException):
        return str(error)
    said = str(error).splitlines()[0].partition("raised while resolving interpolation: ")
    text = (said[2] or said[0]).strip('"')
    return f"{error.full_key}: {text}" if error.full_key else text


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


def check_given(config: DictConfig) -> None:
    """Raise ValueError for a key that has no default and was not given."""
    stack: list[tuple[str, Any]] = [("", OmegaConf.to_container(config, resolve=False))]
    while stack:
        prefix, values = stack.pop()
        for key, value in values.items():
            if key == "_target_" and isinstance(value, str) and (meant := dotted(value)) is not None:
                raise ValueError(f"{prefix}{key} is {value!r}; write it with dots, as {meant}")
            if value == "???":
                raise ValueError(f"{prefix}{key} is missing, and has no default; give {prefix}{key}=VALUE")
            if isinstance(value, dict):
                stack.append((f"{prefix}{key}.", value))
