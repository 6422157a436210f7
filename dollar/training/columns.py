"""Clips of several makers beside one another, each with its label drawn above, small enough for a browser."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dollar import media

WIDEST = 512  # pixels of the whole picture
TALLEST = 256  # pixels up to which small clips are enlarged
GAP = 4  # pixels between columns
TEXT = 13  # pixels of a line's letters
LINE = 16  # pixels from a line to the next
INK = (0, 0, 0)
UNBROKEN = "\N{NO-BREAK SPACE}"  # within a label; the font has no sign for it, so a plain blank is drawn

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def columns(clips: Sequence[np.ndarray], labels: Sequence[str], widest: int = WIDEST) -> np.ndarray:
    """One clip of several, uint8 [T, H, W, 3] each, left to right, at most `widest` pixels wide.

    Large clips are shrunk, small ones enlarged by whole factors. Labels stand above; where a column is narrower than
    their longest word it gets a margin, and where not all columns have room in a row they go on in the next one.
    """
    font = ImageFont.load_default(TEXT)
    words = [word for label in labels for word in label.split(" ")]
    needed = max(_width(word.replace(UNBROKEN, " "), font) for word in words) + 2
    fitting = max(1, min(len(clips), (widest + GAP) // (needed + GAP)))
    room = (widest - GAP * (fitting - 1)) // fitting
    scaled = [fitted(clip, room) for clip in clips]
    width = max(needed, *(clip.shape[2] for clip in scaled))
    texts = [wrapped(label, width, font) for label in labels]
    lines = max(map(len, texts))
    drawn = [_labelled(clip, text, lines, width, font) for clip, text in zip(scaled, texts, strict=True)]
    return media.grid([drawn[i : i + fitting] for i in range(0, len(drawn), fitting)], GAP)


def fitted(clip: np.ndarray, room: int) -> np.ndarray:
    """The clip at most `room` pixels wide: antialiased where it is wider, else enlarged by a whole factor."""
    media.check_clip(clip)
    height, width = clip.shape[1:3]
    if width > room:
        size = room, max(1, round(height * room / width))
        return np.stack([np.asarray(Image.fromarray(f).resize(size, Image.Resampling.LANCZOS)) for f in clip])
    factor = max(1, min(room // width, TALLEST // max(height, width)))
    return clip.repeat(factor, 1).repeat(factor, 2)


def wrapped(text: str, width: int, font: Font) -> list[str]:
    """The text in lines of at most so many pixels, broken between words; blanks that don't break are plain then."""
    lines: list[str] = []
    for word in (word.replace(UNBROKEN, " ") for word in text.split(" ")):
        if lines and _width(f"{lines[-1]} {word}", font) <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def _width(text: str, font: Font) -> int:
    """Pixels that a line takes."""
    return int(np.ceil(font.getlength(text)))


def _labelled(clip: np.ndarray, text: list[str], lines: int, width: int, font: Font) -> np.ndarray:
    """The clip in the middle of a column of this width, below a band of so many lines with its text."""
    frames, _, own, _ = clip.shape
    band = Image.new("RGB", (width, lines * LINE), (media.WHITE,) * 3)
    draw = ImageDraw.Draw(band)
    for place, line in enumerate(text, lines - len(text)):
        draw.text(((width - _width(line, font)) // 2, place * LINE), line, INK, font)
    left = (width - own) // 2
    column = np.pad(clip, ((0, 0), (0, 0), (left, width - own - left), (0, 0)), constant_values=media.WHITE)
    return np.concatenate([np.broadcast_to(np.asarray(band), (frames, *np.asarray(band).shape)), column], 1)
