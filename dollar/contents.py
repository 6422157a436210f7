"""What a file or folder holds, in few letters, so that it is known again at another place and an edit is noticed."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple

WHOLE = 64 * 2**20  # bytes up to which a file that is named itself is read from end to end
SMALL = 2**20  # ... and one of a folder
BLOCK, BLOCKS = 4096, 64  # what is read of others: so many bytes at so many places, and of each tensor
# Files of which a folder may hold a great many: of those only names and sizes count.
UNREAD = {
    *(".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".gif", ".mpg", ".mpeg", ".wmv", ".ts", ".mts", ".m2ts", ".flv"),
    *(".3gp", ".ogv", ".png", ".apng", ".jpg", ".jpeg", ".webp", ".avif", ".bmp", ".tif", ".tiff", ".heic", ".heif"),
    *(".txt", ".caption"),
}
ENDS = (".tar", ".parquet", ".arrow")  # ... and of these both ends
PIPELINE = "model_index.json"


class Contents(NamedTuple):
    """What was found: how many files, their bytes, and a hash of their names, sizes and samples of them."""

    files: int
    bytes: int
    digest: str

    def __str__(self) -> str:
        return f"{self.files} file{'s' * (self.files != 1)} of {self.bytes:,} bytes, {self.digest}"


def contents_of(place: Path, only: Collection[str] = ()) -> Contents:
    """What a file or folder holds, wherever it lies and whenever it was written; OSError where it can't be read.

    Files of weights are sampled at the beginning of each tensor, so that training is noticed and a change within one
    tensor may not be; small files count whole. Of films, pictures and text beside them only names and sizes are looked
    at. Hidden files, readmes, and what a diffusers folder has beside its components don't count. only: names of those
    folders in the place that count, none for all.
    """
    digest, count, total = hashlib.sha256(), 0, 0
    for name, path in _files(place, only):
        size = path.stat().st_size
        digest.update(json.dumps([name, size]).encode())
        for part in _samples(path, size, named=path == place):
            digest.update(part)
        count, total = count + 1, total + size
    return Contents(count, total, digest.hexdigest()[:16])


def sha256_of(path: Path) -> str:
    """The SHA-256 of a whole file."""
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def short_hash(value: Any) -> str:
    """A short hash of plain values, whatever the order of their keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _files(place: Path, only: Collection[str]) -> Iterator[tuple[str, Path]]:
    """The files that count, by their names below the place, in order; links to folders are followed, once each."""
    if not place.is_dir():
        yield "", place
        return
    seen = set()
    for folder, inner, names in os.walk(place, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            inner.clear()
            continue
        seen.add(real)
        top = bool(only) and Path(folder) == place
        inner[:] = sorted(name for name in inner if not name.startswith(".") and (not top or name in only))
        for name in sorted(names):
            beside = PIPELINE in names and name != PIPELINE
            path = Path(folder, name)
            if not (name.startswith(".") or name.lower().endswith(".md") or beside) and path.is_file():
                yield path.relative_to(place).as_posix(), path


def _samples(path: Path, size: int, named: bool) -> Iterator[bytes]:
    """What is read of a file; named: whether it is the place itself."""
    ending = path.suffix.lower()
    if ending in UNREAD and not named:
        return
    with path.open("rb") as file:
        if size <= (WHOLE if named else SMALL):
            yield file.read()
            return
        starts = [0, size - BLOCK] if ending in ENDS else [k * (size - BLOCK) // (BLOCKS - 1) for k in range(BLOCKS)]
        if ending == ".safetensors" and (header := _header(path)) is not None:
            yield header.text
            starts = header.starts
        for start in starts:
            file.seek(start)
            yield file.read(BLOCK)


class _Header(NamedTuple):
    text: bytes
    starts: list[int]  # of each tensor in the file


def _header(path: Path) -> _Header | None:
    """The header of a safetensors file; None where it has none."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        try:
            text = file.read(min(length, 100 * 2**20))
            tensors: dict[str, Any] = json.loads(text)
            offsets = [t["data_offsets"][0] for n, t in tensors.items() if n != "__metadata__"]
            return _Header(text, sorted(8 + length + int(offset) for offset in offsets))
        except (ValueError, TypeError, KeyError, AttributeError):
            return None
