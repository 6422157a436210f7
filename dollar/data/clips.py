"""Real clips with captions: sampled by time to the teacher's fps, cut into windows, resized, cropped.

The clips come from any source (dollar/data/sources.py), often a folder with `captions.jsonl` or pairs `name.mp4` +
`name.txt`. Files that can't be used are skipped, counted by cause and reported in sentences.
"""

from __future__ import annotations

import hashlib
import io
import math
import struct
import warnings
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from cachetools import LRUCache
from PIL import Image, ImageOps

from dollar.data.listed import STILLS, Entry, File, Skipped, load
from dollar.data.sources import Given, open_source

SENTENCES = 20  # skipped files that a printed report names
TIE = 2e-3  # seconds
MOST_REPEATED = 2  # frames that one picture may stand for; more of them would be a motion that stutters
STRETCHED = 16.0  # a stated width of a pixel, or height, beyond which the header is not believed
NOT_BAD = {"still image"}  # causes of skipping that are no fault of the folder
# What PyAV and PIL raise on damaged files; FFmpegError is not always an OSError or a ValueError.
DECODING_ERRORS = (
    *(av.FFmpegError, OSError, ValueError, SyntaxError, EOFError, ArithmeticError, struct.error),
    Image.DecompressionBombError,
)


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


class ClipReport(NamedTuple):
    """What a folder gave. `failed` counts, by file, the draws that failed later and were replaced."""

    usable: list[File]
    skipped: list[Skipped]
    failed: Counter[File]

    @property
    def causes(self) -> Counter[str]:
        """Skipped files by cause."""
        return Counter(s.cause for s in self.skipped)

    @property
    def bad_fraction(self) -> float:
        """Bad files among all listed files."""
        bad = sum(s.cause not in NOT_BAD for s in self.skipped)
        return bad / max(1, bad + len(self.usable))

    def __str__(self) -> str:
        causes = "".join(f", {n} {cause}" for cause, n in self.causes.most_common())
        failed = f", {self.failed.total()} draws replaced" if self.failed else ""
        lines = [f"{len(self.usable)} usable{causes}{failed}", *(s.sentence for s in self.skipped[:SENTENCES])]
        more = [f"and {len(self.skipped) - SENTENCES} more."] if len(self.skipped) > SENTENCES else []
        return "\n  ".join(lines + more)


class ClipFolder:
    """Windows of `frames` frames at `fps`, height x width, from the clips of a source; plain indexing, no ranks.

    path: a folder with captions, tars, tables, or a list of those (dollar/data/sources.py).
    stills: `repeat` makes a picture a motionless clip, `skip` leaves pictures out.
    split: `all`, `train` or `held_out`; a caption is on one side only, drawn by `split_seed`.
    max_bad_fraction: more bad files than this among all listed raise ValueError, as does a folder without a usable one.
    cache_bytes: decoded windows kept in memory, the latest used. video_column, caption_column: a table's columns.
    """

    def __init__(
        self,
        path: Given,
        frames: int,
        height: int,
        width: int,
        fps: float,
        stills: str = "repeat",
        split: str = "all",
        split_seed: int = 0,
        held_out_fraction: float = 0.1,
        max_bad_fraction: float = 0.5,
        cache_bytes: int = 256 * 2**20,
        video_column: str | None = None,
        caption_column: str | None = None,
    ) -> None:
        if min(frames, height, width) < 1 or not 0 < fps < math.inf:
            raise ValueError(f"frames, height, width and fps must be positive; got {frames}, {height}, {width}, {fps}")
        if stills not in ("repeat", "skip"):
            raise ValueError(f"stills is {stills!r}; use `repeat` or `skip`")
        self.path, self.frames, self.height, self.width, self.fps = path, frames, height, width, fps
        self._cache: LRUCache[tuple[int, int], np.ndarray] = LRUCache(cache_bytes, getsizeof=attrgetter("nbytes"))
        source = open_source(path, video_column, caption_column)
        listed = [source[i] for i in range(len(source))]
        with ThreadPoolExecutor(4) as pool:
            probed = list(pool.map(lambda e: e if isinstance(e, Skipped) else probe(e, frames, fps, stills), listed))
        usable = [p for p in probed if isinstance(p, Item)]
        self.report = ClipReport([i.file for i in usable], [p for p in probed if isinstance(p, Skipped)], Counter())
        if not usable or self.report.bad_fraction > max_bad_fraction:
            raise ValueError(
                f"{self.path} is not fit to train on: {self.report.bad_fraction:.0%} of its {len(probed)} clips are "
                f"bad; at most {max_bad_fraction:.0%} may be (max_bad_fraction), and one must be usable. {self.report}"
            )
        captions = {e.caption for e in listed if isinstance(e, Entry)}
        keep = split_captions(captions, split, split_seed, held_out_fraction)
        self.items = [i for i in usable if i.caption in keep]
        if not self.items:
            raise ValueError(
                f"the {split} split of {self.path} is empty: {len(captions)} different captions, held_out_fraction "
                f"{held_out_fraction}. Change the fraction or split_seed, add captions, or use split `all`."
            )

    def __len__(self) -> int:
        return len(self.items)

    @property
    def captions(self) -> list[str]:
        """Each clip's caption."""
        return [item.caption for item in self.items]

    @property
    def stills(self) -> list[int]:
        """The indices whose clip is a repeated picture."""
        return [i for i, item in enumerate(self.items) if item.still]

    def clip(self, index: int, u: float) -> tuple[np.ndarray, str]:
        """The window that u in [0, 1) chooses of clip `index`, uint8 [T, H, W, 3], and its caption.

        A file that fails is counted in `report.failed` and the next one in order stands in. The outcome depends on
        (index, u) and the files alone, never on earlier failures, so every rank and a resumed run see the same.
        """
        if not (0 <= index < len(self) and 0 <= u < 1):
            raise ValueError(f"index {index} and u {u} must lie in [0, {len(self)}) and [0, 1)")
        for offset in range(len(self)):
            number = (index + offset) % len(self)
            item = self.items[number]
            try:
                return self._window(number, int(u * item.windows)), item.caption
            except DECODING_ERRORS as error:
                if not self.report.failed[item.file]:
                    warnings.warn(
                        f"{item.file} can't be decoded beyond its beginning ({error}); the clip after it stands in, "
                        "with its own caption",
                        stacklevel=2,
                    )
                self.report.failed[item.file] += 1
        raise ValueError(f"none of the {len(self)} clips of {self.path} can be decoded any more; is it still readable?")

    def _window(self, index: int, start: int) -> np.ndarray:
        """The clip that begins `start` sampled frames into item `index`, from the cache when it is there."""
        if (found := self._cache.get((index, start))) is None:
            item = self.items[index]
            size = self.height, self.width
            found = read_window(item.file, item.still, start, self.frames, self.fps, size)
            if found.nbytes <= self._cache.maxsize:
                self._cache[index, start] = found
        return found.copy()  # the caller may write in it


def split_captions(captions: set[str], split: str, seed: int, fraction: float) -> set[str]:
    """The captions of a split. Whole captions are held out, for clips of one caption are often near-copies."""
    order = sorted(captions, key=lambda text: hashlib.sha256(f"{seed} {text}".encode()).digest())
    held_out = set(order[: math.ceil(fraction * len(order))])
    sides = {"all": captions, "train": captions - held_out, "held_out": held_out}
    if split not in sides:
        raise ValueError(f"unknown split {split!r}; a clip folder has {', '.join(sides)}")
    return sides[split]


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
    still = file.suffix.lower() in STILLS
    try:
        if isinstance(file, Path):
            if not file.is_file():
                return Skipped(id, file, "missing file", f"{file} is listed with a caption but there is no such file.")
            if file.stat().st_size == 0:
                return Skipped(id, file, "empty", f"{file} is empty (0 bytes).")
    except (OSError, ValueError) as error:  # a name that is too long, a folder that may not be looked into
        return Skipped(id, file, "missing file", f"{str(file)[:200]} can't be reached: {_reason(error)}.")
    if still and stills == "skip":
        return Skipped(id, file, "still image", f"{file} is a picture; stills=repeat would use it.")
    try:
        loaded = load(file)
        if not isinstance(loaded, Path) and not loaded.read_bytes():
            return Skipped(id, file, "empty", f"{file} is empty (0 bytes).")
        if still:
            return Examined(file, caption, 1, True, *read_still(loaded).shape[:2])
        with av.open(_opened(loaded), "r") as container:
            if not container.streams.video:
                return Skipped(id, file, "no video stream", f"{file} has no video stream (sound only?).")
            last, interval = _extent(container)
        height, width = read_video(loaded, np.zeros(1))[0].shape[:2]
    except DECODING_ERRORS as error:
        return Skipped(id, file, "corrupt", f"{file} can't be decoded: {error}.")
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
    with av.open(_opened(file), "r") as container:
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
    with Image.open(_opened(file)) as image:
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


def _opened(file: File) -> str | io.BytesIO:
    """What av and PIL read from: a path as it is, anything else from memory."""
    return str(file) if isinstance(file, Path) else io.BytesIO(file.read_bytes())


def fit(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """Scale uint8 [H, W, 3] to cover height x width, antialiased, and crop around the centre."""
    old_height, old_width = picture.shape[:2]
    scale = max(height / old_height, width / old_width)
    left, top = (old_width - width / scale) / 2, (old_height - height / scale) / 2
    box = (max(left, 0), max(top, 0), min(old_width - left, old_width), min(old_height - top, old_height))
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BICUBIC, box=box))


def _extent(container: av.container.InputContainer) -> tuple[float, float]:
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
