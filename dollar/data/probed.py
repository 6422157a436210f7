"""What looking into clips found, kept beside them, so that a later start opens none that hasn't changed."""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from dollar.data.listed import File, Origin
from dollar.data.probing import Fault, Look, look_at
from dollar.data.sources import Given
from dollar.log import logger
from dollar.media import atomically

PLACE = Path(".dollar") / "probed.jsonl"  # below the folder of the clips
SECONDS = 60.0  # between two writings
UNSURE = 2 * 10**9  # nanoseconds in which a file of a system that counts whole seconds may change unseen
FILE = "\0"  # stands for the file in a stored sentence, since its folder may be named otherwise the next time

Stamp = tuple[tuple[int, ...], ...]  # size and times of each file that is read
Found = Look | Fault


class Memory:
    """Looks into files, and remembers what was found as long as a file's size and times, and our code, stay the same.

    given: what the source was opened with, beside whose first place the memory lies; in the user's cache where nothing
    may be written there. Faults that may pass are forgotten. A memory that can't be read or written is no error: a note
    says so, once, and files are looked into again. Threads and processes may share it; what one of two that write at
    once found may be lost, which costs another look.
    """

    def __init__(self, given: Given, look: Callable[[File], Found] = look_at) -> None:
        first = given if isinstance(given, (str, Path)) else next(iter(given), ".")
        self.root = next(p for p in (Path(first), *Path(first).parents, Path()) if p.is_dir())
        self.places = [self.root / PLACE, *_in_cache(self.root)]
        self._look, self._lock, self._noted = look, threading.Lock(), False
        self._damaged = False
        self._known = [dict(self._rows(place)) for place in self.places]
        self._fresh: dict[str, tuple[Stamp, Found]] = {}
        self._used: set[str] = set()
        self._stamps: dict[Path, tuple[int, ...]] = {}
        self._written, self._when = 0, time.monotonic()

    def look(self, file: File) -> Found:
        """What a file holds, from memory where it hasn't changed."""
        origin = Origin((file,), "") if isinstance(file, Path) else getattr(file, "origin", None)
        try:
            stamp = None if origin is None else tuple(map(self._stamp, origin.files))
        except OSError:
            stamp = None
        if origin is None or stamp is None:
            return self._look(file)
        key = self._key(origin)
        for known in self._known:
            if key in known and known[key][0] == stamp:
                self._used.add(key)
                return _with(known[key][1], str(file))
        found = self._look(file)  # what changes meanwhile has another stamp the next time
        if not (isinstance(found, Fault) and not found.lasting) and not _unsure(stamp):
            with self._lock:
                self._fresh[key] = stamp, _without(found, str(file))
                if time.monotonic() > self._when + SECONDS:
                    self._save()
        return found

    def close(self) -> None:
        """Write what is not written yet."""
        with self._lock:
            self._save()

    def _save(self) -> None:
        if len(self._fresh) > self._written or self._damaged:
            for place in self.places:
                try:
                    self._write(place)
                except OSError as error:
                    trouble = error
                    continue
                break
            else:
                self._note(f"what was found in the clips of {self.root} can't be kept ({trouble})")
        self._written, self._when, self._damaged = len(self._fresh), time.monotonic(), False

    def _write(self, place: Path) -> None:
        """All that is known, with what another process has written since, but for files that are gone."""
        rows = {key: row for known in self._known for key, row in known.items()} | dict(self._rows(place)) | self._fresh
        with atomically(place) as temporary, temporary.open("w", encoding="utf-8") as stream:
            stream.write(json.dumps(_code()) + "\n")
            for key, (stamp, found) in rows.items():
                if key in self._fresh or key in self._used or self._is_there(key):
                    held = list(found[:2] if isinstance(found, Fault) else found)
                    stream.write(f"{json.dumps([key, stamp, held], separators=(',', ':'))}\n")

    def _rows(self, place: Path) -> Iterator[tuple[str, tuple[Stamp, Found]]]:
        """What a file of the memory holds; nothing of what other code found."""
        try:
            head, *lines = place.read_bytes().split(b"\n")
            if json.loads(head) != _code():
                return
        except FileNotFoundError:
            return
        except (OSError, ValueError) as error:
            self._forget(place, error)
            return
        for line in filter(None, lines):
            try:
                key, stamp, held = json.loads(line)
                yield key, (tuple(map(tuple, stamp)), _found(held))
            except (ValueError, TypeError) as error:
                self._forget(place, error)

    def _forget(self, place: Path, error: Exception) -> None:
        self._damaged = True
        self._note(f"{place} can't be read ({error})")

    def _note(self, what: str) -> None:
        if not self._noted:
            logger.warning(f"note: {what}; clips are looked into again")
        self._noted = True

    def _key(self, origin: Origin) -> str:
        """What a file is called here: its place below the root, which may move, and its part there."""
        path = origin.files[0]
        return json.dumps([str(path.relative_to(self.root) if path.is_relative_to(self.root) else path), origin.part])

    def _is_there(self, key: str) -> bool:
        """Whether the file of a key is there; False for a damaged key."""
        try:
            return os.path.exists(self.root / json.loads(key)[0])
        except (ValueError, TypeError, LookupError):
            return False

    def _stamp(self, path: Path) -> tuple[int, ...]:
        if (known := self._stamps.get(path)) is None:
            there = path.stat()
            # The second time changes even where a program sets the first back after an edit.
            known = self._stamps[path] = there.st_size, there.st_mtime_ns, there.st_ctime_ns
        return known


def _found(held: list[Any]) -> Found:
    """A stored look or fault; TypeError or ValueError for neither."""
    if len(held) == 2 and all(isinstance(part, str) for part in held):
        return Fault(*held)
    still, last, interval, height, width = held
    return Look(bool(still), float(last), float(interval), int(height), int(width))


def _without(found: Found, file: str) -> Found:
    return found._replace(sentence=found.sentence.replace(file, FILE)) if isinstance(found, Fault) else found


def _with(found: Found, file: str) -> Found:
    return found._replace(sentence=found.sentence.replace(FILE, file)) if isinstance(found, Fault) else found


def _unsure(stamp: Stamp) -> bool:
    """Whether a file changed so lately that its times might not show another change."""
    return any(times[-1] % 10**9 == 0 and time.time_ns() - times[-1] < UNSURE for times in stamp)


def _in_cache(root: Path) -> list[Path]:
    """Where a folder that can't be written has its memory; nowhere for a user without a home."""
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:
        return []
    return [cache / "dollar" / "probed" / f"{hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:16]}.jsonl"]


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return ""


@cache
def _code() -> str:
    """What a look depends on besides its file: the code of this room, and the libraries that decode."""
    libraries = [_version(library) for library in ("av", "pillow", "numpy", "pillow-heif")]
    digest = hashlib.sha256(json.dumps(libraries).encode())
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
