"""What was skipped, remembered in a folder of json lines; every file in it is whole at any moment."""

from __future__ import annotations

import json
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

from dollar.data.listed import Skipped, plain
from dollar.media import atomically

SECONDS = 10.0  # between two writings


class Skip(NamedTuple):
    """A remembered Skipped."""

    cause: str
    sentence: str


class LineLog:
    """Writes folder/<part>-00000.jsonl, or the next free number: one file for each process of each run."""

    def __init__(self, folder: Path, part: str) -> None:
        there = [int(p.stem.rpartition("-")[2]) for p in folder.glob(f"{part}-[0-9]*.jsonl")]
        self.path = folder / f"{part}-{1 + max(there, default=-1):05d}.jsonl"
        self._lines: list[str] = []
        self._written, self._when = 0, time.monotonic()

    def write(self, row: dict[str, Any]) -> None:
        """Remember a row; it is written within seconds, or by `close`."""
        self._lines.append(json.dumps(row, ensure_ascii=False) + "\n")
        if time.monotonic() > self._when + SECONDS:
            self.close()

    def close(self) -> None:
        """Write what is not written yet."""
        if len(self._lines) > self._written:
            with atomically(self.path) as temporary:
                temporary.write_text("".join(self._lines), encoding="utf-8")
        self._written, self._when = len(self._lines), time.monotonic()


class SkipLog(LineLog):
    """Remembers what was skipped."""

    def add(self, skipped: Skipped) -> None:
        """Remember one."""
        self.write({"id": skipped.id, "cause": skipped.cause, "sentence": plain(skipped.sentence)})


def forget(folder: Path, ids: Collection[str]) -> None:
    """Take the rows of these ids out of all files of a folder."""
    for path in folder.glob("*.jsonl"):
        lines = [line for line in path.read_text(encoding="utf-8").split("\n") if line]
        kept = [line for line in lines if json.loads(line)["id"] not in ids]
        if len(kept) < len(lines):
            with atomically(path) as temporary:
                temporary.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")


def read_skips(folder: Path) -> dict[str, Skip]:
    """What the files of a folder remember, by id; ValueError for a damaged one."""
    found = {}
    for path in sorted(folder.glob("*.jsonl")):
        try:
            rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
            found.update({row["id"]: Skip(row["cause"], row["sentence"]) for row in rows})
        except (OSError, ValueError, KeyError, TypeError):
            raise ValueError(
                f"{path}, which remembers skipped clips, can't be read; remove it, and they are looked at again"
            ) from None
    return found
