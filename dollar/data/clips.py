"""Real clips with captions: sampled by time to the teacher's fps, cut into windows, resized, cropped.

The clips come from any source (dollar/data/sources.py), often a folder with `captions.jsonl` or pairs `name.mp4` +
`name.txt`. Files that can't be used are skipped, counted by cause and reported in sentences.
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from operator import attrgetter
from typing import NamedTuple

import numpy as np
from cachetools import LRUCache

from dollar.data.decoding import DECODING_ERRORS, read_window
from dollar.data.listed import NOT_BAD, Entry, File, Skipped
from dollar.data.probed import Memory
from dollar.data.probing import Item, probe
from dollar.data.sources import Given, open_source
from dollar.log import progress

SENTENCES = 20  # skipped files that a printed report names


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
        probed = self._probed(listed, stills)
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

    def _probed(self, listed: Sequence[Entry | Skipped], stills: str) -> list[Item | Skipped]:
        """What each listed clip can give; files are opened that are new or have changed since the last start."""
        with (
            closing(Memory(self.path)) as memory,
            ThreadPoolExecutor(4) as pool,
            progress(len(listed), "looking into clips", delay=1.0) as bar,
        ):

            def found(entry: Entry | Skipped) -> Item | Skipped:
                if isinstance(entry, Skipped):
                    return entry
                return probe(entry, self.frames, self.fps, stills, memory.look)

            probed = []
            for item in pool.map(found, listed):
                probed.append(item)
                bar.update()
        return probed

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
