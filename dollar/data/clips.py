"""Real clips of a folder, with captions: sampled by time to the teacher's fps, cut into windows, resized, cropped.

The folder holds `captions.jsonl` (keys `file` and `caption`), or `captions.csv` (the same two columns), or pairs
`name.mp4` + `name.txt`. Files that can't be used are skipped, counted by cause and reported in sentences.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import warnings
from collections import Counter, OrderedDict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from PIL import Image, ImageOps

from dollar.data.prompts import decode_utf8

VIDEOS = {".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".gif"}
STILLS = {".png", ".jpg", ".jpeg", ".webp"}
SENTENCES = 20  # skipped files that a printed report names
TIE = 2e-3  # seconds
NOT_BAD = {"still image"}  # causes of skipping that say nothing against the folder
# What PyAV and PIL raise on damaged files; FFmpegError is not always an OSError or a ValueError.
DECODING_ERRORS = (av.FFmpegError, OSError, ValueError, SyntaxError, Image.DecompressionBombError)


class Entry(NamedTuple):
    """A listed clip: its file and caption."""

    path: Path
    caption: str


class Item(NamedTuple):
    """A usable clip; `windows` is how many starts, one sampled frame apart, a window can have in it."""

    path: Path
    caption: str
    windows: int
    still: bool


class Skipped(NamedTuple):
    """A file that isn't used: `cause` is a few words to count by, `sentence` says what was found and needed."""

    path: Path
    cause: str
    sentence: str


class ClipReport(NamedTuple):
    """What a folder gave. `failed` counts, by file, the draws that failed later and were replaced."""

    usable: list[Path]
    skipped: list[Skipped]
    failed: Counter[Path]

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
    """Windows of `frames` frames at `fps`, height x width, from the clips of a folder; plain indexing, no ranks.

    stills: `repeat` makes a picture a motionless clip, `skip` leaves pictures out.
    split: `all`, `train` or `held_out`; a caption is on one side only, drawn by `split_seed`.
    max_bad_fraction: more bad files than this among all listed raise ValueError, as does a folder without a usable one.
    cache_bytes: decoded windows kept in memory, the latest used.
    """

    def __init__(
        self,
        path: str | Path,
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
    ) -> None:
        if min(frames, height, width) < 1 or not 0 < fps < math.inf:
            raise ValueError(f"frames, height, width and fps must be positive; got {frames}, {height}, {width}, {fps}")
        if stills not in ("repeat", "skip"):
            raise ValueError(f"stills is {stills!r}; use `repeat` or `skip`")
        self.path, self.frames, self.height, self.width, self.fps = Path(path), frames, height, width, fps
        self.cache_bytes, self._cache = cache_bytes, OrderedDict[tuple[int, int], np.ndarray]()
        listed = list_folder(self.path)
        with ThreadPoolExecutor(4) as pool:
            probed = list(pool.map(lambda e: e if isinstance(e, Skipped) else probe(e, frames, fps, stills), listed))
        usable = [p for p in probed if isinstance(p, Item)]
        self.report = ClipReport([i.path for i in usable], [p for p in probed if isinstance(p, Skipped)], Counter())
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
                if not self.report.failed[item.path]:
                    warnings.warn(
                        f"{item.path} can't be decoded beyond its beginning ({error}); the clip after it stands in, "
                        "with its own caption",
                        stacklevel=2,
                    )
                self.report.failed[item.path] += 1
        raise ValueError(f"none of the {len(self)} clips of {self.path} can be decoded any more; is it still readable?")

    def _window(self, index: int, start: int) -> np.ndarray:
        """The clip that begins `start` sampled frames into item `index`, from the cache when it is there."""
        if (found := self._cache.pop((index, start), None)) is None:
            item = self.items[index]
            if item.still:
                picture = fit(read_still(item.path), self.height, self.width)
                found = np.repeat(picture[None], self.frames, axis=0)
            else:
                times = (start + np.arange(self.frames)) / self.fps
                found = np.stack([fit(p, self.height, self.width) for p in read_video(item.path, times)])
        self._cache[index, start] = found
        while len(self._cache) * found.nbytes > self.cache_bytes:  # all windows have one size
            self._cache.popitem(last=False)
        return found.copy()  # the caller may write in it


def list_folder(folder: Path) -> list[Entry | Skipped]:
    """The clips that a folder lists, in order; raises ValueError for a folder that is missing or lists none."""
    if not folder.is_dir():
        raise ValueError(f"the clip folder {folder} does not exist; give a folder of videos with captions")
    if (table := folder / "captions.jsonl").is_file():
        listed = [_row(table, n, _json(line)) for n, line in _lines(table) if line.strip()]
    elif (table := folder / "captions.csv").is_file():
        reader = csv.DictReader(io.StringIO(decode_utf8(table.read_bytes(), table), newline=""))
        listed = [_row(table, reader.line_num, row) for row in reader]
    else:
        listed = [_pair(p) for p in sorted(folder.iterdir()) if p.suffix.lower() in VIDEOS | STILLS]
    if not listed:
        raise ValueError(
            f"the clip folder {folder} lists no clips. It needs captions.jsonl (one {{'file': ..., 'caption': ...}} "
            "a line), captions.csv with the columns file and caption, or pairs name.mp4 + name.txt."
        )
    return listed


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
    path, caption = entry
    still = path.suffix.lower() in STILLS
    if not path.is_file():
        return Skipped(path, "missing file", f"{path} is listed with a caption but there is no such file.")
    if path.stat().st_size == 0:
        return Skipped(path, "empty", f"{path} is empty (0 bytes).")
    if still and stills == "skip":
        return Skipped(path, "still image", f"{path} is a picture; stills=repeat would use it.")
    try:
        if still:
            read_still(path)
            return Item(path, caption, 1, True)
        with av.open(str(path)) as container:
            if not container.streams.video:
                return Skipped(path, "no video stream", f"{path} has no video stream (sound only?).")
            last, interval = _extent(container)
        read_video(path, np.zeros(1))
    except DECODING_ERRORS as error:
        return Skipped(path, "corrupt", f"{path} can't be decoded: {error}.")
    # Half a source interval of grace: 49 frames of 24 fps are 49 frames of 23.976 fps too.
    count = math.floor((last + interval / 2) * fps + 1e-6) + 1
    if count < frames:
        got = f"{path} gives {count} frames at {fps:g} fps"
        return Skipped(path, "too short", f"{got}; {frames} are needed ({(frames - 1) / fps:.2f} s).")
    return Item(path, caption, count - frames + 1, False)


def read_video(path: Path, times: np.ndarray) -> list[np.ndarray]:
    """The pictures nearest to these rising `times` [T], in seconds from the first picture; uint8 [H, W, 3] each.

    Raises ValueError (or PyAV's errors) when the file is damaged or ends before the last time.
    """
    with av.open(str(path)) as container:
        chosen = _nearest(_pictures(container, float(times[0])), times)
        if chosen is None:  # the index led past the first time: read from the beginning
            container.seek(0)
            chosen = _nearest(_pictures(container, 0.0), times)
        if chosen is None or len(chosen) < len(times):
            raise ValueError(f"{path} ends before {times[-1]:.2f} s")
    return chosen


def read_still(path: Path) -> np.ndarray:
    """A picture, turned as its EXIF tag says: uint8 [H, W, 3]."""
    with Image.open(path) as image:
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


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


def _nearest(pictures: Iterator[tuple[float, av.VideoFrame]], times: np.ndarray) -> list[np.ndarray] | None:
    """The picture nearest to each time, as many as there are; None when the pictures begin after the first time.

    The last picture stands for times up to one interval after it.
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
            chosen.append(_rgb(previous[1] if before else frame))
        if len(chosen) == len(times):
            return chosen
        previous, interval = (now, frame), now - previous[0] or interval
    while previous and len(chosen) < len(times) and times[len(chosen)] <= previous[0] + interval:
        chosen.append(_rgb(previous[1]))
    return chosen


def _rgb(frame: av.VideoFrame) -> np.ndarray:
    """A decoded picture as uint8 [H, W, 3], turned as the file's display matrix says (phones film sideways)."""
    return np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90)))


def _lines(path: Path) -> list[tuple[int, str]]:
    """Numbered lines of a UTF-8 file."""
    return list(enumerate(decode_utf8(path.read_bytes(), path).split("\n"), 1))


def _json(line: str) -> object:
    try:
        return json.loads(line)
    except ValueError:
        return None


def _row(table: Path, line: int, row: object) -> Entry | Skipped:
    """The clip of one line of a captions table."""
    file, caption = (row.get("file"), row.get("caption")) if isinstance(row, dict) else (None, None)
    if not (isinstance(file, str) and isinstance(caption, str) and file.strip() and caption.strip()):
        sentence = f"line {line} of {table} has no `file` and `caption`, or one is empty."
        return Skipped(table.parent / file if isinstance(file, str) else table, "unreadable caption", sentence)
    return Entry(table.parent / file.strip(), caption.strip())


def _pair(path: Path) -> Entry | Skipped:
    """The clip of a video or picture with a text file of the same name beside it."""
    text = path.with_suffix(".txt")
    try:
        caption = decode_utf8(text.read_bytes(), text).strip()
    except (OSError, ValueError) as error:
        return Skipped(path, "unreadable caption", f"the caption of {path} can't be read: {error}.")
    if not caption:
        return Skipped(path, "unreadable caption", f"the caption {text} is empty; write what {path.name} shows.")
    return Entry(path, caption)
