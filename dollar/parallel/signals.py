"""A command that ends in order on a signal, or when torchrun, which started it, is gone."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

STOPPED = 3  # exit code of a command that stopped on request and lost nothing
SECONDS = 1.0  # between two looks for the process that started this one


class Stop:
    """Whether a stop was requested, and whether it has come to an end that loses nothing."""

    def __init__(self) -> None:
        self.requested = False
        self._idle = threading.Event()
        self._idle.set()

    @contextlib.contextmanager
    def in_order(self) -> Iterator[None]:
        """Within this, SIGTERM, SIGINT and SIGUSR1 only request a stop."""

        def request(*_: Any) -> None:
            self.requested = True

        before = {s: signal.signal(s, request) for s in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextlib.contextmanager
    def busy(self) -> Iterator[None]:
        """Within this, `watch` requests a stop and waits for its end."""
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
            self.requested = True
            self._idle.wait()
            os._exit(STOPPED)  # the others are leaving too, so what waits for them would wait for ever

        threading.Thread(target=wait, daemon=True).start()
