"""What a listed clip can give: opened once, by its headers and its first picture."""

from __future__ import annotations

import errno
import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from dollar.data.decoding import DECODING_ERRORS, measure
from dollar.data.listed import STILLS, Entry, File, NotShown, Skipped, load
from dollar.data.places import in_fact

MOST_REPEATED = 2  # frames that one picture may stand for; more of them would be a motion that stutters
OF_CONTENT = (
    errno.EINVAL,
    errno.EDOM,
    errno.ERANGE,
    errno.EILSEQ,
)  # what decoders say of a file, in the system's words


class Item(NamedTuple):
    """A usable clip; `windows` is how many starts, one sampled frame apart, a window can have in it."""

    file: File
    caption: str
    windows: int
    still: bool


class Examined(NamedTuple):
    """A clip that can be decoded: `frames` at the given fps, of height x width pixels as they are shown."""

    file: File
    caption: str
    frames: int
    still: bool
    height: int
    width: int


class Look(NamedTuple):
    """What a file holds, whatever is wanted of it: a still, or pictures over `last` seconds, `interval` between two.

    height, width: pixels as they are shown.
    """

    still: bool
    last: float
    interval: float
    height: int
    width: int


class Fault(NamedTuple):
    """Why a file can't be used; `lasting` unless the cause may pass while the file stays as it is."""

    cause: str
    sentence: str
    lasting: bool = True


def look_at(file: File) -> Look | Fault:
    """What a file holds, by its headers and its first picture."""
    try:
        loaded = load(file)
        if not isinstance(loaded, Path) and not loaded.read_bytes():
            return Fault("empty", f"{file} is empty (0 bytes).")
        still, (last, interval), height, width = measure(loaded)
    except DECODING_ERRORS as error:
        if isinstance(error, NotShown):
            return Fault(error.cause, f"{file} {error}.")
        told = (isinstance(file, Path) and in_fact(file)) or error
        return Fault("corrupt", f"{file} can't be decoded: {told}.", not may_pass(error))
    return Look(still, last, interval, height, width)


def may_pass(error: BaseException | None) -> bool:
    """Whether an error, or one that it came from, is the machine's (permissions, a disk, memory) and not the file's."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in errno.errorcode and error.errno not in OF_CONTENT:
            return True
        error = error.__cause__ or error.__context__
    return False


def probe(
    entry: Entry, frames: int, fps: float, stills: str, look: Callable[[File], Look | Fault] = look_at
) -> Item | Skipped:
    """Whether a clip can give a window of `frames` at `fps`; look: says what its file holds."""
    found = examine(entry, fps, stills, look)
    if isinstance(found, Skipped):
        return found
    if found.still:
        return Item(found.file, found.caption, 1, True)
    if found.frames < frames:
        return too_short(entry, found.frames, frames, fps)
    return Item(found.file, found.caption, found.frames - frames + 1, False)


def examine(
    entry: Entry, fps: float, stills: str, look: Callable[[File], Look | Fault] = look_at
) -> Examined | Skipped:
    """What a clip can give at `fps`, by its headers and its first picture; a still image gives one frame."""
    id, file, caption = entry
    try:
        if isinstance(file, Path):
            if not file.is_file():
                return Skipped(id, file, "missing file", f"{file} is listed with a caption but there is no such file.")
            if file.stat().st_size == 0:
                return Skipped(id, file, "empty", f"{file} is empty (0 bytes).")
    except (OSError, ValueError) as error:  # a name that is too long, a folder that may not be looked into
        return Skipped(id, file, "missing file", f"{str(file)[:200]} can't be reached: {_reason(error)}.")
    unwanted = Skipped(id, file, "still image", f"{file} is a picture; stills=repeat would use it.")
    found = look(file)
    if isinstance(found, Fault):
        picture = stills == "skip" and file.suffix.lower() in STILLS
        return unwanted if picture else Skipped(id, file, found.cause, found.sentence, found.lasting)
    if found.still:
        return unwanted if stills == "skip" else Examined(file, caption, 1, True, found.height, found.width)
    last, interval = found.last, found.interval
    if interval * fps > MOST_REPEATED + 1e-6:
        sentence = f"{file} has {1 / interval:.3g} pictures a second; {fps:g} are needed, or at least half as many."
        return Skipped(id, file, "too few pictures a second", sentence)
    # Half an interval of grace, the shorter of both: 49 frames of 24 fps are 49 frames of 23.976 fps too.
    count = math.floor((last + min(interval, 1 / fps) / 2) * fps + 1e-6) + 1
    return Examined(file, caption, count, False, found.height, found.width)


def _reason(error: Exception) -> str:
    return (isinstance(error, OSError) and error.strerror) or str(error)


def too_short(entry: Entry, count: int, frames: int, fps: float) -> Skipped:
    """A clip of `count` frames where `frames` are needed."""
    got = f"{entry.file} gives {count} frames at {fps:g} fps"
    sentence = f"{got}; {frames} are needed ({(frames - 1) / fps:.2f} s)."
    return Skipped(entry.id, entry.file, "too short", sentence)
