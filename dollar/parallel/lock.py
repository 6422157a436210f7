"""One command at a time in a folder, that ends in order when it is told to, or when what started it is gone."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from dollar.log import logger

LOCK = ".lock"
STOPPED = 3  # exit code of a command that was asked to stop and kept what it had, as launch/train.py's
SECONDS = 1.0  # between two looks for the process that started this one


class Lock:
    """A folder's lock: one process has it alone while a command begins, and then all of its processes share it.

    So a second command is refused as long as any process of the first lives. It is let go with the process. ValueError
    when others have it.
    """

    def __init__(self, folder: Path, alone: bool) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._file: IO[bytes] = (folder / LOCK).open("ab+")
        if alone:
            self._take(fcntl.LOCK_EX)

    def share(self) -> None:
        """Let the other processes of this command in."""
        self._take(fcntl.LOCK_SH)

    def close(self) -> None:
        """Let the folder go."""
        self._file.close()

    def _take(self, how: int) -> None:
        try:
            fcntl.flock(self._file, how | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise ValueError(
                f"another command writes to out={self.folder}, or processes that it left still run; wait for it, end "
                "it, or name another folder with out=FOLDER"
            ) from None
        except OSError as error:  # some network file systems know no locks
            logger.warning(f"note: {self.folder} can't be locked ({error.strerror}); run one command at a time in it")


class Stop:
    """Whether the command was asked to stop, and whether it has come to an end that loses nothing."""

    def __init__(self) -> None:
        self.asked = False
        self._idle = threading.Event()
        self._idle.set()

    @contextlib.contextmanager
    def in_order(self) -> Iterator[None]:
        """Within this, SIGTERM, SIGINT and SIGUSR1 only ask."""

        def ask(*_: Any) -> None:
            self.asked = True

        before = {s: signal.signal(s, ask) for s in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextlib.contextmanager
    def busy(self) -> Iterator[None]:
        """Within this, `watch` asks and waits for the end of it."""
        self._idle.clear()
        try:
            yield
        finally:
            self._idle.set()

    def watch(self) -> None:
        """Under torchrun: end this process, in order, once torchrun is gone; nobody would end it otherwise."""
        if "TORCHELASTIC_RUN_ID" not in os.environ:
            return
        parent = os.getppid()

        def wait() -> None:
            while os.getppid() == parent:
                time.sleep(SECONDS)
            self.asked = True
            self._idle.wait()
            os._exit(STOPPED)  # the others are leaving too, so what waits for them would wait for ever

        threading.Thread(target=wait, daemon=True).start()
