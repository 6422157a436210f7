"""Clips as they are stored: each in the size that suits it, read ahead of what encodes them."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import numpy as np

from dollar.data.decoding import DECODING_ERRORS, read_window
from dollar.data.listed import Entry, Skipped, load
from dollar.data.probing import examine, may_pass, too_short

ALIKE = 1e-6  # difference of two aspect ratios' logarithms below which they are one

Job = TypeVar("Job")
Result = TypeVar("Result")


class Bucket(NamedTuple):
    """A size that clips are stored at, in frames and pixels; its name is its folder's."""

    frames: int
    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.frames}x{self.height}x{self.width}"


class Prepared(NamedTuple):
    """A clip's windows at its bucket's size: (row id, uint8 [T, H, W, 3]) each; those that are stored are left out."""

    entry: Entry
    bucket: Bucket
    windows: list[tuple[str, np.ndarray]]


def nearest(buckets: Sequence[Bucket], height: int, width: int) -> list[Bucket]:
    """The buckets whose aspect ratio is the nearest to a picture's."""

    def distance(bucket: Bucket) -> float:
        return abs(math.log(bucket.width * height / (bucket.height * width)))

    least = min(map(distance, buckets))
    return [b for b in buckets if distance(b) <= least + ALIKE]


def choose(buckets: Sequence[Bucket], frames: float, height: int, width: int) -> Bucket | None:
    """The bucket of the nearest aspect ratio, of these the longest that `frames` fill; None where all are longer.

    Of buckets alike in both, the largest that the clip covers without being enlarged, or else the smallest.
    """
    filled = [b for b in nearest(buckets, height, width) if b.frames <= frames]
    if not filled:
        return None
    longest = [b for b in filled if b.frames == max(b.frames for b in filled)]
    covered = [b for b in longest if b.height <= height and b.width <= width]
    return max(covered, key=_area) if covered else min(longest, key=_area)


def _area(bucket: Bucket) -> int:
    return bucket.height * bucket.width


def prepare(
    entry: Entry,
    buckets: Sequence[Bucket],
    fps: float,
    windows: int,
    stills: str,
    stored: AbstractSet[str],
    enlarge: bool = True,
) -> Prepared | Skipped:
    """A clip's windows, at most `windows` of them, evenly spread over it; stored: row ids that aren't needed again.

    enlarge: whether a clip with a side of less than half its bucket's may be used.
    """
    id, file, _ = entry
    try:
        loaded = entry._replace(file=load(file))  # what lies in a tar or a table is read once
    except DECODING_ERRORS as error:
        return Skipped(id, file, "corrupt", f"{file} can't be read: {error}.", not may_pass(error))
    found = examine(loaded, fps, stills)
    if isinstance(found, Skipped):
        return found
    bucket = choose(buckets, math.inf if found.still else found.frames, found.height, found.width)
    if bucket is None:
        needed = min(b.frames for b in nearest(buckets, found.height, found.width))
        return too_short(entry, found.frames, needed, fps)
    if not enlarge and (2 * found.height < bucket.height or 2 * found.width < bucket.width):
        sentence = (
            f"{file} is {found.width}x{found.height}, less than half of {bucket.width}x{bucket.height} on a side; "
            "enlarge=true, with retry_skipped=true, would use it."
        )
        return Skipped(id, file, "too small", sentence)
    starts = spread(1 if found.still else found.frames - bucket.frames + 1, windows)
    read, size = [], (bucket.height, bucket.width)
    try:
        for name, start in zip(row_ids(id, len(starts), windows), starts, strict=True):
            if name not in stored:
                read.append((name, read_window(loaded.file, found.still, start, bucket.frames, fps, size)))
    except DECODING_ERRORS as error:
        sentence = f"{file} can't be decoded beyond its beginning: {error}."
        return Skipped(id, file, "corrupt", sentence, not may_pass(error))
    return Prepared(entry, bucket, read)


def spread(starts: int, windows: int) -> list[int]:
    """At most `windows` different starts, evenly spread over 0 .. starts - 1; one lies in the middle."""
    return sorted({int((k + 0.5) / windows * starts) for k in range(windows)})


def row_ids(id: str, count: int, windows: int) -> list[str]:
    """The ids of a clip's `count` rows: the clip's own where one window is taken, else with `#1of3` after it."""
    return [id] if windows == 1 else [f"{id}#{k}of{count}" for k in range(1, count + 1)]


def finished(rows: AbstractSet[str], windows: int) -> AbstractSet[str]:
    """The clips all of whose rows are among these row ids."""
    if windows == 1:
        return rows
    parts = [row.rpartition("#") for row in rows]
    there = Counter((clip, place.partition("of")[2]) for clip, _, place in parts)
    return {clip for (clip, needed), count in there.items() if str(count) == needed}


def read_ahead(jobs: Iterable[Job], do: Callable[[Job], Result], threads: int, ahead: int) -> Iterator[Result]:
    """do(job) of each job, in order, done by threads; at most `ahead` results exist before they are used."""
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for job in jobs:
                waiting.append(pool.submit(do, job))
                if len(waiting) >= ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
