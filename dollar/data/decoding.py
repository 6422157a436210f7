"""Pictures of videos and still images as players show them: chosen by time, of square pixels, turned, fitted."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageOps

from dollar.data.listed import File
from dollar.data.places import in_fact

SMALL = 2**16  # bytes; pointers and web pages in place of a clip are smaller
TIE = 2e-3  # seconds
STRETCHED = 16.0  # a stated width of a pixel, or height, beyond which the header is not believed
# What PyAV and PIL raise on damaged files; FFmpegError is not always an OSError or a ValueError.
DECODING_ERRORS = (
    *(av.FFmpegError, OSError, ValueError, SyntaxError, EOFError, ArithmeticError, struct.error),
    Image.DecompressionBombError,
)


def read_window(file: File, still: bool, start: int, frames: int, fps: float, size: tuple[int, int]) -> np.ndarray:
    """The window that begins `start` sampled frames into a clip, fitted to size (height, width): uint8 [T, H, W, 3]."""
    if still:
        return np.repeat(fit(read_still(file), *size)[None], frames, axis=0)
    return np.stack([fit(p, *size) for p in read_video(file, (start + np.arange(frames)) / fps)])


def read_video(file: File, times: np.ndarray) -> list[np.ndarray]:
    """The pictures nearest to these rising `times` [T], in seconds from the first picture; uint8 [H, W, 3] each.

    They are as they are shown: of square pixels, and turned as the file says.
    Raises ValueError (or PyAV's errors) when the file is damaged or ends before the last time.
    """
    with av.open(opened(file), "r") as container:
        pixel = _pixel(container)
        chosen = _nearest(_pictures(container, float(times[0])), times, pixel)
        if chosen is None:  # the index led past the first time: read from the beginning
            container.seek(0)
            chosen = _nearest(_pictures(container, 0.0), times, pixel)
        if chosen is None or len(chosen) < len(times):
            raise ValueError(f"{file} ends before {times[-1]:.2f} s")
    return chosen


def read_still(file: File) -> np.ndarray:
    """A picture, turned as its EXIF tag says: uint8 [H, W, 3]."""
    with Image.open(opened(file)) as image:
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


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


def extent(container: av.container.InputContainer) -> tuple[float, float]:
    """Seconds from the first picture to the last, and between two: by the headers, or else by counting packets."""
    stream = container.streams.video[0]
    if stream.frames and stream.average_rate:
        return float((stream.frames - 1) / stream.average_rate), float(1 / stream.average_rate)
    stamps = [p.pts for p in container.demux(stream) if p.pts is not None]
    if not stamps or not stream.time_base:
        raise ValueError("it has no time stamps")
    last = float((max(stamps) - min(stamps)) * stream.time_base)
    return last, last / max(1, len(stamps) - 1)


def _pictures(container: av.container.InputContainer, start: float) -> Iterator[tuple[float, av.VideoFrame]]:
    """(seconds from the first picture, frame) of the video, from the key frame at or before `start` on."""
    if not container.streams.video:
        raise ValueError("no video stream")
    stream = container.streams.video[0]
    origin, unit = stream.start_time or 0, stream.time_base
    if not unit:
        raise ValueError("no time stamps")
    if start > 0:
        container.seek(origin + int(start / unit), stream=stream)
    for frame in container.decode(stream):
        if frame.is_corrupt or frame.pts is None:
            raise ValueError("a damaged picture")
        yield float((frame.pts - origin) * unit), frame


def _pixel(container: av.container.InputContainer) -> float:
    """Width of a pixel over its height, by the headers; 1 where they have none or can't be believed."""
    stated = container.streams.video[0].sample_aspect_ratio if container.streams.video else None
    return float(stated) if stated and 1 / STRETCHED < stated < STRETCHED else 1.0


def _nearest(
    pictures: Iterator[tuple[float, av.VideoFrame]], times: np.ndarray, pixel: float
) -> list[np.ndarray] | None:
    """The picture nearest to each time, as many as there are; None when the pictures begin after the first time.

    The last picture stands for times up to one interval after it. pixel: a pixel's width over its height.
    """
    chosen: list[np.ndarray] = []
    previous, interval = None, 0.0
    for now, frame in pictures:
        if previous is None:
            if now > times[0] + 1e-3:
                return None
            interval = float(frame.duration * frame.time_base) if frame.duration and frame.time_base else 0.0
            previous = now, frame
        while len(chosen) < len(times) and times[len(chosen)] <= now:
            # Ties go to the later one; rounding (to whole ms in webm) must not settle them, or motion would jitter.
            before = times[len(chosen)] - previous[0] < now - times[len(chosen)] - TIE
            chosen.append(_rgb(previous[1] if before else frame, pixel))
        if len(chosen) == len(times):
            return chosen
        previous, interval = (now, frame), now - previous[0] or interval
    while previous and len(chosen) < len(times) and times[len(chosen)] <= previous[0] + interval:
        chosen.append(_rgb(previous[1], pixel))
    return chosen


def _rgb(frame: av.VideoFrame, pixel: float) -> np.ndarray:
    """A decoded picture as uint8 [H, W, 3], turned as the file's display matrix says (phones film sideways).

    pixel: width over height; where it isn't square the shorter side of it is stretched, so that nothing is lost.
    """
    picture = frame.to_ndarray(format="rgb24")
    height, width = picture.shape[:2]
    shown = max(height, round(height / pixel)), max(width, round(width * pixel))
    if shown != (height, width):
        picture = np.asarray(Image.fromarray(picture).resize(shown[::-1], Image.Resampling.BICUBIC))
    return np.ascontiguousarray(np.rot90(picture, round(frame.rotation / 90)))
