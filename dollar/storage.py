"""Why a file or folder could not be written, in words: a full disk is blamed where it is full, and nowhere else."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

FULL = (errno.ENOSPC, errno.EDQUOT)
GONE = (errno.ENOENT, errno.ESTALE, errno.ENOTDIR, errno.ENODEV, errno.ENXIO, errno.ENOTCONN)
FAILED = (OSError, SafetensorError)  # safetensors reports what the system says by an exception of its own


def is_full(error: BaseException) -> bool:
    """Whether the disk, or the user's share of it, is full; libraries that aren't Python's say so in their text."""
    text = str(error)
    return getattr(error, "errno", None) in FULL or any(os.strerror(number) in text for number in FULL)


def why(error: BaseException, folder: Path, needed: int | None = None) -> str:
    """What an error that came of writing into a folder means, as a sentence's part; needed: bytes, where known."""
    number = getattr(error, "errno", None)
    said = (getattr(error, "strerror", None) if number is not None else None) or str(error) or type(error).__name__
    if is_full(error):
        bytes_needed = "" if needed is None else f". It needs {needed:,} bytes and {free_bytes(folder):,} are free"
        return f"no space is left ({said}){bytes_needed}"
    if number in GONE and not folder.is_dir():
        return f"the folder is gone ({said}), removed, renamed or unmounted while the command ran"
    if number == errno.EROFS:
        return f"its file system may only be read now ({said})"
    if number in (errno.EACCES, errno.EPERM):
        return f"nothing may be written there now ({said})"
    return f"the system says: {said}"


def free_bytes(folder: Path) -> int:
    """The bytes that are free where a folder is, or would be."""
    there = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
    return shutil.disk_usage(there).free


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, where they aren't there; OSError says in a sentence why it can't be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        cause = "no space is left" if is_full(error) else f"the system says: {error.strerror}"
        raise Unwritten(f"the folder {folder} can't be made: {cause}", error.errno) from error


@contextmanager
def explained(
    what: str, folder: Path, needed: int | None = None, after: str = "", full: bool = False
) -> Iterator[None]:
    """Within this, what can't be written is an OSError that says so, and why.

    after: a sentence that ends it; full: explain a full disk alone, where more than writing is done inside.
    """
    try:
        yield
    except Unwritten:  # it is explained already
        raise
    except FAILED as error:
        if full and not is_full(error):
            raise
        end = f". {after}" if after else ""
        number = getattr(error, "errno", None)
        sentence = f"{what} could not be written to {folder}: {why(error, folder, needed)}{end}"
        raise Unwritten(sentence, number) from error


class Unwritten(OSError):
    """Something could not be written, in a sentence; `errno` is the system's number where there was one."""

    def __init__(self, sentence: str, number: int | None = None) -> None:
        super().__init__(sentence)
        self.errno = number
