"""What a listed clip can give: opened once, by its headers and its first picture."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

from dollar.data.decoding import DECODING_ERRORS, measure
from dollar.data.listed import STILLS, Entry, File, NotShown, Skipped, load

MOST_REPEATED = 2  # frames that one picture may stand for; more of them would be a motion that stutters


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


def probe(entry: Entry, frames: int, fps: float, stills: str) -> Item | Skipped:
    """Whether a clip can give a window of `frames` at `fps`: reads its headers and decodes its first picture."""
    found = examine(entry, fps, stills)
    if isinstance(found, Skipped):
        return found
    if found.still:
        return Item(found.file, found.caption, 1, True)
    if found.frames < frames:
        return too_short(entry, found.frames, frames, fps)
    return Item(found.file, found.caption, found.frames - frames + 1, False)


def examine(entry: Entry, fps: float, stills: str) -> Examined | Skipped:
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
    try:
        loaded = load(file)
        if not isinstance(loaded, Path) and not loaded.read_bytes():
            return Skipped(id, file, "empty", f"{file} is empty (0 bytes).")
        still, (last, interval), height, width = measure(loaded)
    except DECODING_ERRORS as error:
        if stills == "skip" and file.suffix.lower() in STILLS:
            return unwanted
        if isinstance(error, NotShown):
            return Skipped(id, file, error.cause, f"{file} {error}.")
        return Skipped(id, file, "corrupt", f"{file} can't be decoded: {error}.")
    if still:
        return unwanted if stills == "skip" else Examined(file, caption, 1, True, height, width)
    if interval * fps > MOST_REPEATED + 1e-6:
        sentence = f"{file} has {1 / interval:.3g} pictures a second; {fps:g} are needed, or at least half as many."
        return Skipped(id, file, "too few pictures a second", sentence)
    # Half an interval of grace, the shorter of both: 49 frames of 24 fps are 49 frames of 23.976 fps too.
    count = math.floor((last + min(interval, 1 / fps) / 2) * fps + 1e-6) + 1
    return Examined(file, caption, count, False, height, width)


def _reason(error: Exception) -> str:
    return (isinstance(error, OSError) and error.strerror) or str(error)


def too_short(entry: Entry, count: int, frames: int, fps: float) -> Skipped:
    """A clip of `count` frames where `frames` are needed."""
    got = f"{entry.file} gives {count} frames at {fps:g} fps"
    sentence = f"{got}; {frames} are needed ({(frames - 1) / fps:.2f} s)."
    return Skipped(entry.id, entry.file, "too short", sentence)
