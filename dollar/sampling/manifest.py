"""manifest.jsonl: a line for each clip of a folder, with its prompt, seed, size and what made it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dollar.log import logger
from dollar.media import atomically

MANIFEST = "manifest.jsonl"
SHARE = 10  # one part of so many of a process' time may go into writing the list


class Manifest:
    """The rows of a folder's clips by file, written whole and in one atomic step.

    order: the files that this call wants, in the order in which they are listed wherever they were made; what earlier
    calls made stays listed where it stood. Each process notes every clip at once in a file of its own, from which all
    write the whole list, as often as takes a tenth of their time; what a killed call noted is taken over by `tidy`.
    """

    def __init__(self, folder: Path, order: Sequence[str], rank: int = 0) -> None:
        self.path, self.order = folder / MANIFEST, list(order)
        self._own = folder / f".{MANIFEST}.{rank}"
        self._due = 0.0  # when the whole list is written next: a long one takes longer than a quick clip

    def rows(self) -> dict[str, dict[str, Any]]:
        """The row of every listed clip, by file; a damaged line is left out with a warning."""
        found = {row["file"]: row for row in _lines(self.path, warn=True)}
        for note in self._notes():
            found |= {row["file"]: row for row in _lines(note)}
        return found

    def add(self, row: Mapping[str, Any]) -> None:
        """List one more clip, or one that was made again."""
        with self._own.open("a", encoding="utf-8") as opened:
            opened.write(_text(row))
        if (began := time.monotonic()) >= self._due:
            self.write(self.rows())
            self._due = began + SHARE * (time.monotonic() - began)

    def write(self, rows: Mapping[str, Mapping[str, Any]]) -> None:
        """Write the list."""
        with atomically(self.path) as temporary:
            temporary.write_text("".join(_text(rows[file]) for file in ordered(list(rows), self.order)), "utf-8")

    def tidy(self, rows: Mapping[str, Mapping[str, Any]]) -> None:
        """Write these rows as all there are; by one process, while no other adds any."""
        if rows or self.path.exists():
            self.write(rows)
        for note in self._notes():
            note.unlink()

    def _notes(self) -> list[Path]:
        return sorted(self.path.parent.glob(f".{MANIFEST}.*[0-9]"))


def ordered(listed: Sequence[str], wanted: Sequence[str]) -> list[str]:
    """The listed files, those that are wanted in that order from where the first of them stands."""
    here = set(listed)
    own = [file for file in wanted if file in here]
    first = next((i for i, file in enumerate(listed) if file in set(own)), len(listed))
    others = [[file for file in part if file not in set(own)] for part in (listed[:first], listed[first:])]
    return [*others[0], *own, *others[1]]


def _text(row: Mapping[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"


def _lines(path: Path, warn: bool = False) -> Iterator[dict[str, Any]]:
    """The rows of a list; a line that is none, as the last one of a killed process, is left out."""
    if not path.is_file():
        return
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").split("\n"), 1):
        try:
            row = json.loads(line) if line.strip() else None
            if row is not None:
                row["file"] + ""  # a name
                yield row
        except (ValueError, TypeError, KeyError):
            if warn:
                logger.warning(f"note: line {number} of {path} is damaged and left out; its clip is made again")
