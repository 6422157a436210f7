"""How a command ends that torchrun started: one sentence and the command's own exit code, however many processes.

torchrun itself answers any exit code but 0 with a traceback and 1. Plugins for rendezvous are loaded in its own process
(setup.cfg's entry point in the group torchrun.handlers), and ours sees to the end of our commands alone.
"""

from __future__ import annotations

import atexit
import hashlib
import logging
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

FOLDER = "DOLLAR_OUTCOMES"  # the variable by which torchrun's processes know where to leave their exit codes
REFUSED = 2  # exit code of a command that was given a mistake
LOGGERS = ("torch.distributed.elastic.multiprocessing.api", "torch.distributed.elastic.agent.server.api")


def leave(code: int) -> None:
    """Tell torchrun that this process ends by this exit code on purpose; nothing without torchrun."""
    if folder := os.environ.get(FOLDER):
        try:
            Path(folder, str(os.getpid())).write_text(str(code))
        except OSError:  # torchrun is gone
            return


def another_left() -> int | None:
    """The exit code by which another of torchrun's processes on this machine ended on purpose, None where none did.

    What then fails in this one, as waiting for it does, comes of that.
    """
    folder = os.environ.get(FOLDER)
    try:
        return max(_left(Path(folder)).values(), default=None) if folder else None
    except OSError:  # torchrun is gone
        return None


def first_to_say(sentence: str) -> bool:
    """Whether none of the processes that torchrun started on this machine has said this sentence before."""
    error_file = os.environ.get("TORCHELASTIC_ERROR_FILE", "")  # .../attempt_0/<local rank>/error.json
    shared = os.environ.get(FOLDER) or (str(Path(error_file).parents[2]) if error_file else None)
    if shared is None:
        return True
    try:
        Path(shared, f"said-{hashlib.sha256(sentence.encode()).hexdigest()[:16]}").touch(exist_ok=False)
    except FileExistsError:
        return False
    except OSError:
        return True
    return True


def handler() -> Callable[[Any], Any]:
    """What torchrun's plugins return, a kind of rendezvous: the usual one. Takes care of the end of our commands."""
    if any(map(_is_ours, sys.argv[1:])) and FOLDER not in os.environ:
        _see_to_the_end()

    def create(parameters: Any) -> Any:
        from torch.distributed.elastic.rendezvous.c10d_rendezvous_backend import create_backend
        from torch.distributed.elastic.rendezvous.dynamic_rendezvous import create_handler

        backend, store = create_backend(parameters)
        return create_handler(store, backend, parameters)

    return create


def exit_code(folder: Path, error: BaseException) -> int | None:
    """The exit code of a command that failed by this error of torchrun's, None where the error has to be shown.

    folder: where processes left their exit codes. A process that left none has failed by itself, unless torchrun ended
    it because of another.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    left = _left(folder)
    code = REFUSED if REFUSED in left.values() else max(left.values(), default=None)
    if isinstance(error, SignalException):
        return 128 + int(error.sigval) if code is None else code
    if isinstance(error, ChildFailedError):
        # SIGKILL is for processes that wait for one that has ended, in a library that heeds no other signal.
        by_torchrun = (-signal.SIGTERM, -signal.SIGKILL)
        ended = [failure for failure in error.failures.values() if failure.exitcode not in by_torchrun]
        return code if all(failure.pid in left for failure in ended) else None
    return None


def _left(folder: Path) -> dict[int, int]:
    """The exit codes that processes left, by their ids."""
    return {int(path.name): int(path.read_text() or 0) for path in folder.iterdir() if path.name.isdigit()}


def _is_ours(word: str) -> bool:
    """Whether a word of torchrun's command line is a file of launch/, by whatever link, or names the console script."""
    path = Path(word).resolve()
    launched = path.suffix == ".py" and (path.parent.parent / "dollar" / "cli" / "commands" / path.name).is_file()
    return launched or (Path(word).name == "dollar" and "=" not in word) or word.startswith("dollar.cli.")


def _see_to_the_end() -> None:
    folder, owner = Path(tempfile.mkdtemp(prefix="dollar-")), os.getpid()
    os.environ[FOLDER] = str(folder)
    before = sys.excepthook

    def remove() -> None:
        if os.getpid() == owner:
            shutil.rmtree(folder, ignore_errors=True)

    def show(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if (code := exit_code(folder, error)) is None:
            before(kind, error, trace)
        else:
            raise SystemExit(code)

    atexit.register(remove)
    sys.excepthook = show
    for name in LOGGERS:  # what they say of processes that ended on purpose has been said better
        logging.getLogger(name).addFilter(lambda _: not any(path.name.isdigit() for path in folder.glob("*")))
