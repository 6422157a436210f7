"""What clips depend on, read from files: whether clips that are there were made by the same weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

WHOLE = 64 * 2**20  # bytes up to which a file is read whole
BLOCK, BLOCKS = (
    2**16,
    1024,
)  # of a larger one: so many blocks of so many bytes, evenly spaced from its first to its last


def digest(files: Iterable[Path]) -> str:
    """A short hash of files by name, size and content.

    Of a large one 64 MiB are read, spread over all of it: training changes most weights, a LoRA all blocks', so that
    no training goes unnoticed, and 50 GB of weights take no minutes. A change of a few numbers by hand may.
    """
    found = hashlib.sha256()
    for path in files:
        size = path.stat().st_size
        found.update(json.dumps([path.name, size]).encode())
        for part in _parts(path, size):
            found.update(part)
    return found.hexdigest()[:16]


def hash_of(path: Path) -> str:
    """The SHA-256 of a whole file."""
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _parts(path: Path, size: int) -> Iterator[bytes]:
    with path.open("rb") as opened:
        if size <= WHOLE:
            yield opened.read()
            return
        for i in range(BLOCKS):
            opened.seek(i * (size - BLOCK) // (BLOCKS - 1))
            yield opened.read(BLOCK)
