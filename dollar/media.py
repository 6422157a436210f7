"""Clips as pictures and files: mp4, gif, strips and grids. A clip is uint8 [T, H, W, 3]; fps is frames a second."""

from __future__ import annotations

import hashlib
import io
import os
import re
import secrets
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import av
import numpy as np
from PIL import Image

if TYPE_CHECKING:
    import torch

WHITE = 255
BT601 = 6  # the code of the matrix that libswscale uses for rgb24 -> yuv420p; untagged files are guessed by height
UNWRITTEN = (OSError, av.FFmpegError)  # what writing a clip raises where the system doesn't let it be written
SLUG = 60  # letters of the prompt kept in a file name
BY = 20  # ... and of what made the clip


@contextmanager
def atomically(path: str | Path) -> Iterator[Path]:
    """A temporary path next to `path`, moved onto it when the block ends well and removed when it doesn't.

    The folder is made when missing. A reader therefore sees the old file or the whole new one.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Processes of several machines may have one number, and one folder.
    temporary = path.with_name(f".{path.name[:50]}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def check_clip(clip: np.ndarray) -> None:
    """Raise ValueError unless `clip` is uint8 [T, H, W, 3] with at least one frame and one pixel."""
    if clip.dtype != np.uint8 or clip.ndim != 4 or clip.shape[-1] != 3 or clip.size == 0:
        raise ValueError(
            f"a clip is a uint8 array [T, H, W, 3] with T, H, W >= 1; got {clip.dtype} {list(clip.shape)}. "
            "media.to_uint8 makes one of a video tensor [T, 3, H, W] in [0, 1]."
        )


def check_fps(fps: float) -> None:
    """Raise ValueError unless `fps` is a positive, finite number."""
    if not 0 < fps < float("inf"):
        raise ValueError(f"fps is {fps}; it must be a positive number of frames a second")


def to_uint8(video: torch.Tensor) -> np.ndarray:
    """The clip [T, H, W, 3] of a video [T, 3, H, W] of any float type in [0, 1]; values outside are clamped."""
    if video.ndim != 4 or video.shape[1] != 3:
        raise ValueError(f"to_uint8 takes a video [T, 3, H, W]; got {list(video.shape)}")
    return video.detach().float().clamp(0, 1).mul(255).round().byte().permute(0, 2, 3, 1).cpu().contiguous().numpy()


def write_mp4(path: str | Path, clip: np.ndarray, fps: float) -> None:
    """Write a near-lossless h264 file (yuv420p, which every player reads), in one atomic step.

    An odd height or width gains one repeated row or column, since yuv420p needs even sizes.
    """
    check_clip(clip)
    check_fps(fps)
    _, height, width, _ = clip.shape
    clip = np.pad(clip, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    with atomically(path) as temporary:  # noqa: SIM117
        # The temporary name has no .mp4 ending, so the format is named.
        with av.open(str(temporary.absolute()), "w", format="mp4", options={"movflags": "faststart"}) as container:
            stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
            stream.height, stream.width = clip.shape[1:3]
            stream.pix_fmt = "yuv420p"
            # The same clip is the same file: x264's macroblock tree comes out otherwise now and then, by 8 levels, and
            # its pictures depend on its threads, of which it takes as many as there are cores.
            stream.options = {"crf": "12", "x264-params": "mbtree=0"}
            stream.codec_context.thread_count = 1
            stream.codec_context.colorspace = BT601
            for picture in clip:
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
                container.mux(stream.encode(frame))
            container.mux(stream.encode())


def gif_bytes(clip: np.ndarray, fps: float) -> bytes:
    """The clip as an endless animated GIF of 256 colours, shared by all frames so that nothing flickers."""
    check_clip(clip)
    check_fps(fps)
    frames, height, width, _ = clip.shape
    tall = Image.fromarray(clip.reshape(frames * height, width, 3)).quantize(256, dither=Image.Dither.NONE)
    pictures = [tall.crop((0, top, width, top + height)) for top in range(0, frames * height, height)]
    # A GIF counts in hundredths of a second: round the moments, not the delays, or 8 fps would play at 8.33.
    # Players slow down delays under two hundredths.
    moments = np.rint(100 * np.arange(frames + 1) / fps)
    delays = (10 * np.maximum(np.diff(moments), 2)).astype(int).tolist()  # milliseconds
    buffer = io.BytesIO()
    pictures[0].save(buffer, "GIF", save_all=True, append_images=pictures[1:], duration=delays, loop=0)
    return buffer.getvalue()


def write_gif(path: str | Path, clip: np.ndarray, fps: float) -> None:
    """Write `gif_bytes` in one atomic step."""
    with atomically(path) as temporary:
        temporary.write_bytes(gif_bytes(clip, fps))


def shrink(clip: np.ndarray, longest: int) -> np.ndarray:
    """The clip with its longer side at most `longest` pixels, antialiased; a smaller one is returned as it is."""
    check_clip(clip)
    height, width = clip.shape[1:3]
    if max(height, width) <= longest:
        return clip
    scale = longest / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.stack([np.asarray(Image.fromarray(f).resize(size, Image.Resampling.LANCZOS)) for f in clip])


def side_by_side(clips: Sequence[np.ndarray], gap: int = 4) -> np.ndarray:
    """One clip of several, left to right, on white; a short clip holds its last frame, a low one is centred."""
    return _join(clips, gap, axis=2)


def grid(rows: Sequence[Sequence[np.ndarray]], gap: int = 4) -> np.ndarray:
    """One clip of rows of clips; a narrow row is centred."""
    return _join([side_by_side(row, gap) for row in rows], gap, axis=1)


def strip(clip: np.ndarray, every: int = 1) -> np.ndarray:
    """Every n-th frame, from the top down: uint8 [H * n, W, 3]."""
    check_clip(clip)
    return np.concatenate(list(clip[::every]), axis=0)


def safe_name(prompt: str, seed: int, steps: int, by: str) -> str:
    """A file name without ending for the clip of (prompt, seed, steps) by a sampler: ASCII, under 140 characters.

    Readable words come first; the prompt's hash keeps prompts with the same words apart, and a hash long samplers.
    """

    def hash_of(text: str) -> str:
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()

    def plain(text: str) -> str:
        ascii_text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
        return re.sub(r"[^a-z0-9]+", "-", ascii_text)

    words = plain(prompt)[:SLUG].strip("-") or "prompt"
    who = plain(by)
    if len(who) > BY or who != by:
        who = f"{who[: BY - 9]}-{hash_of(by)[:8]}"
    return f"{words}-{hash_of(prompt)[:12]}-seed{seed}-{who}-steps{steps}"


def _join(clips: Sequence[np.ndarray], gap: int, axis: int) -> np.ndarray:
    """Clips one after another along axis 1 (down) or 2 (right), `gap` white pixels between them."""
    if not clips:
        raise ValueError("there are no clips to join; give at least one")
    for clip in clips:
        check_clip(clip)
    frames = max(len(c) for c in clips)
    across = 3 - axis
    size = max(c.shape[across] for c in clips)
    parts: list[np.ndarray] = []
    for clip in clips:
        spare = size - clip.shape[across]
        pad = [(0, 0)] * 4
        pad[across] = (spare // 2, spare - spare // 2)
        pad[axis] = (gap if parts else 0, 0)
        held = np.pad(clip, [(0, frames - len(clip)), (0, 0), (0, 0), (0, 0)], mode="edge")
        parts.append(np.pad(held, pad, constant_values=WHITE))
    return np.concatenate(parts, axis=axis)
