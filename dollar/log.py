"""Messages of a running command: one logger called `dollar`, and progress bars.

A library's user hears nothing until a handler is set up, be it their own or `speak`'s.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterable
from typing import Any, TextIO

from tqdm import tqdm

LINE_SECONDS = 10.0  # between two progress lines when the output is not a terminal
ANY_RANK = {"any_rank": True}  # `extra=ANY_RANK`: a warning about this process, which is printed whatever its rank

logger = logging.getLogger("dollar")
logger.addHandler(logging.NullHandler())


def speak() -> None:
    """Print the logger's messages, plain, on standard output; a second call does nothing.

    Processes other than the first print only what is about themselves (`ANY_RANK`).
    """
    if not any(isinstance(handler, _Printed) for handler in logger.handlers):
        logger.addHandler(_Printed())
    logger.setLevel(logging.INFO)
    logger.propagate = False  # a handler of the root would print them a second time


class _Printed(logging.Handler):
    """Prints to what sys.stdout is at the time, as print does."""

    def emit(self, record: logging.LogRecord) -> None:
        rank = int(os.environ.get("RANK", 0))
        if rank == 0:
            print(self.format(record), flush=True)
        elif getattr(record, "any_rank", False):
            print(f"process {rank}: {self.format(record)}", flush=True)


def progress(
    items: Iterable[Any] | int,
    description: str = "",
    active: bool = True,
    start: int = 0,
    stream: TextIO | None = None,
    delay: float = 0.0,
) -> tqdm:
    """A bar with the time left, over an iterable or over range(start, total); `update()` it, or iterate over it.

    Off a terminal it prints a line every ten seconds or so; inactive, or in another process than the first, nothing.
    delay: seconds before it shows, for what is often done sooner. Numbers after the bar:
    `set_postfix_str(text, refresh=False)`, so that they don't cost a line each.
    """
    stream = sys.stderr if stream is None else stream
    total, initial = None, 0
    if isinstance(items, int):
        items, total, initial = range(start, items), items, start
    hidden = not active or int(os.environ.get("RANK", 0)) > 0
    common = {"desc": description, "total": total, "initial": initial, "disable": hidden, "delay": delay}
    if stream.isatty():
        return tqdm(items, file=stream, dynamic_ncols=True, **common)
    return tqdm(items, file=_Lines(stream), mininterval=LINE_SECONDS, miniters=1, ncols=100, ascii=True, **common)


class _Lines:
    """A text stream for tqdm that ends each picture of the bar with a newline, where tqdm would overwrite it."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> None:
        if text.strip():
            self.stream.write(text.strip() + "\n")

    def flush(self) -> None:
        self.stream.flush()
