"""Films as cameras, phones and programs write them, for tests of how they are read."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

LUMA = {"601": (0.299, 0.114), "709": (0.2126, 0.0722), "2020": (0.2627, 0.0593)}  # what red and blue add to it


def planes(form: str, values: Sequence[float], height: int = 64, width: int = 64) -> av.VideoFrame:
    """A plain picture of these values in its planes."""
    frame = av.VideoFrame(width, height, form)
    kind = np.uint8 if frame.format.components[0].bits == 8 else np.uint16
    for plane, value in zip(frame.planes, values, strict=True):
        plane.update(
            np.full(plane.buffer_size // kind().itemsize, min(round(value), np.iinfo(kind).max), kind).tobytes()
        )
    return frame


def yuv(rgb: Sequence[float], matrix: str, bits: int = 8, full: bool = False) -> list[float]:
    """Y'CbCr codes of R'G'B' in [0, 1] (BT.2100, table 9)."""
    red, blue = LUMA[matrix]
    luma = red * rgb[0] + (1 - red - blue) * rgb[1] + blue * rgb[2]
    blueness, redness = (rgb[2] - luma) / 2 / (1 - blue), (rgb[0] - luma) / 2 / (1 - red)
    if full:
        most, middle = 2**bits - 1, 1 << (bits - 1)
        return [most * luma, middle + most * blueness, middle + most * redness]
    step = 1 << (bits - 8)
    return [(16 + 219 * luma) * step, (128 + 224 * blueness) * step, (128 + 224 * redness) * step]


def rgb(picture: np.ndarray, form: str = "yuv420p") -> av.VideoFrame:
    """A picture uint8 [H, W, 3], or 4 with alpha, in a codec's pixel format."""
    return av.VideoFrame.from_ndarray(picture, format="rgba" if picture.shape[-1] == 4 else "rgb24").reformat(
        format=form
    )


def numbered(frames: int, form: str = "yuv420p", height: int = 32, width: int = 48) -> list[av.VideoFrame]:
    """Frame k is plain gray of level 10 + 4k."""
    return [rgb(np.full((height, width, 3), 10 + 4 * k, np.uint8), form) for k in range(frames)]


def numbers(clip: Sequence[np.ndarray] | np.ndarray) -> list[int]:
    """The frame numbers of pictures of `numbered`."""
    return [round((float(picture[4:-4, 4:-4].mean()) - 10) / 4) for picture in clip]


def write(
    path: Path,
    frames: Sequence[av.VideoFrame],
    codec: str = "libx264",
    form: str | None = None,
    rate: int = 24,
    moments: Sequence[int] | None = None,
    unit: Fraction | None = None,
    tags: dict[str, int] | None = None,
    container: dict[str, str] | None = None,
    **options: str,
) -> Path:
    """A film of one stream; moments: when each frame is shown, in `unit` seconds; tags: of the codec's context."""
    with av.open(str(path), "w", format=form, options=container or {}) as file:
        stream = file.add_stream(codec, rate=rate)
        stream.height, stream.width, stream.pix_fmt = frames[0].height, frames[0].width, frames[0].format.name
        stream.options = options
        for name, value in (tags or {}).items():
            setattr(stream.codec_context, name, value)
        if unit:
            stream.codec_context.time_base = unit
        for number, frame in enumerate(frames):
            frame.pts, frame.time_base = moments[number] if moments else number, unit or Fraction(1, rate)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return path


def patch(path: Path, old: bytes, offset: int, new: bytes) -> Path:
    """Write `new` over a file, `offset` bytes after where `old` begins."""
    data = bytearray(path.read_bytes())
    place = data.index(old) + offset
    data[place : place + len(new)] = new
    path.write_bytes(data)
    return path
