"""Pictures of videos and still images as players show them: chosen by time, in sRGB, of square pixels, turned, fitted.

Which pictures there are and when is read in films.py and, of still pictures and animations, in pictures.py; how they
look in frames.py and colour.py.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar

import av
import numpy as np
from PIL import Image

from dollar.data import films, pictures
from dollar.data.films import Extent
from dollar.data.frames import Screen, stated
from dollar.data.listed import File
from dollar.data.places import in_fact

SMALL = 2**16  # bytes; pointers and web pages in place of a clip are smaller
TIE = 2e-3  # seconds
EARLIER = 10.0  # seconds, more than lie between most films' key frames
# What PyAV and PIL raise on damaged files; FFmpegError is not always an OSError or a ValueError.
DECODING_ERRORS = (
    *(av.FFmpegError, OSError, ValueError, SyntaxError, EOFError, ArithmeticError, struct.error),
    Image.DecompressionBombError,
)

Picture = TypeVar("Picture")


class Measured(NamedTuple):
    """What a file holds: a still, or a film of this extent; height, width: of its pictures as they are shown."""

    still: bool
    extent: Extent
    height: int
    width: int


def measure(file: File) -> Measured:
    """What a file holds, by its content, its headers and its first picture; raises DECODING_ERRORS, NotShown too."""
    source = opened(file)
    image = pictures.open_picture(source, file.suffix)
    if image is None:
        with av.open(source, "r") as container:
            extent = films.extent(container)
    else:
        with image:
            if not pictures.is_animated(image):
                return Measured(True, Extent(0.0, 0.0), *pictures.rgb(image).shape[:2])
            extent = pictures.extent(image)
    return Measured(False, extent, *read_video(file, np.zeros(1))[0].shape[:2])


def read_window(file: File, still: bool, start: int, frames: int, fps: float, size: tuple[int, int]) -> np.ndarray:
    """The window that begins `start` sampled frames into a clip, fitted to size (height, width): uint8 [T, H, W, 3]."""
    if still:
        return np.repeat(fit(read_still(file), *size)[None], frames, axis=0)
    return np.stack([fit(p, *size) for p in read_video(file, (start + np.arange(frames)) / fps, 0.5 / fps)])


def read_video(file: File, times: np.ndarray, grace: float = 0.0) -> list[np.ndarray]:
    """The pictures nearest to these rising `times` [T], in seconds from the first picture; uint8 [H, W, 3] each.

    They are as they are shown: of square pixels, and turned as the file says. The last one stands for times up to
    `grace` seconds after it, or as long as the one before was shown.
    Raises ValueError (or PyAV's errors) when the file is damaged or ends before the last time.
    """
    source = opened(file)
    image = pictures.open_picture(source, file.suffix)
    if image is None:
        chosen = _read_film(source, times, grace)
    else:
        with image:
            chosen = _nearest(pictures.animation(image), times, grace, pictures.rgb)
    if chosen is None or len(chosen) < len(times):
        raise ValueError(f"{file} ends before {times[-1]:.2f} s")
    return chosen


def read_still(file: File) -> np.ndarray:
    """A picture, the first of several, turned as its EXIF tag says: uint8 [H, W, 3]."""
    image = pictures.open_picture(opened(file), file.suffix)
    if image is None:
        raise ValueError(f"{file} is no picture")
    with image:
        return pictures.rgb(image)


def opened(file: File) -> str | io.BytesIO:
    """What av and PIL read from: a whole path, for `12:30.mp4` would be a protocol; anything else from memory.

    ValueError where a small file is known to be something else, as a pointer of Git LFS.
    """
    if not isinstance(file, Path):
        return io.BytesIO(file.read_bytes())
    if file.stat().st_size < SMALL and (fact := in_fact(file)):
        raise ValueError(fact)
    return str(file.absolute())


def fit(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """Scale uint8 [H, W, 3] to cover height x width, antialiased, and crop around the centre."""
    old_height, old_width = picture.shape[:2]
    scale = max(height / old_height, width / old_width)
    left, top = (old_width - width / scale) / 2, (old_height - height / scale) / 2
    box = (max(left, 0), max(top, 0), min(old_width - left, old_width), min(old_height - top, old_height))
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BICUBIC, box=box))


def _read_film(source: str | io.BytesIO, times: np.ndarray, grace: float) -> list[np.ndarray] | None:
    """A film's pictures nearest to these times, read from where an index leads; from earlier where that is too late."""
    for start in sorted({max(float(times[0]) - early, 0.0) for early in (0.0, EARLIER)} | {0.0}, reverse=True):
        if isinstance(source, io.BytesIO):
            source.seek(0)
        with av.open(source, "r") as container:
            screen = Screen(stated(films.shown_stream(container)))
            chosen = _nearest(films.pictures(container, start), times, grace, screen.show)
        if chosen is not None:
            return chosen
    return None


def _nearest(
    moments: Iterator[tuple[float, Picture]], times: np.ndarray, grace: float, show: Callable[[Picture], np.ndarray]
) -> list[np.ndarray] | None:
    """The picture nearest to each time, as many as there are; None when there are none or only after the first time."""
    chosen: list[np.ndarray] = []
    previous, interval = None, 0.0
    for now, picture in moments:
        if previous is None:
            if now > times[0] + 1e-3:
                return None
            previous = now, picture
        while len(chosen) < len(times) and times[len(chosen)] <= now:
            # Ties go to the later one; rounding (to whole ms in webm) must not settle them, or motion would jitter.
            before = times[len(chosen)] - previous[0] < now - times[len(chosen)] - TIE
            chosen.append(show(previous[1] if before else picture))
        if len(chosen) == len(times):
            return chosen
        previous, interval = (now, picture), now - previous[0] or interval
    while previous and len(chosen) < len(times) and times[len(chosen)] <= previous[0] + max(interval, grace) + TIE:
        chosen.append(show(previous[1]))
    return None if previous is None else chosen
