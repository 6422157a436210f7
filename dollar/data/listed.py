"""What a source of captioned videos lists: entries that can be opened, and what is skipped with its reason."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, Protocol

VIDEOS = {".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".gif"}
STILLS = {".png", ".jpg", ".jpeg", ".webp"}
CAPTIONS = ("caption", "text", "prompt", "description")  # what tables and json call it, the likeliest first


class File(Protocol):
    """A video or picture: a path, or what lies within a tar or a table; str() says where it is."""

    @property
    def name(self) -> str:
        """Its own name, with its ending."""
        ...

    @property
    def suffix(self) -> str:
        """The ending of its name, with the dot."""
        ...

    def read_bytes(self) -> bytes:
        """All of it; ValueError or OSError when it can't be read."""
        ...


class Origin(NamedTuple):
    """Where a file lies that is none by itself: the files that it is read from, and what it is called in them."""

    files: tuple[Path, ...]
    part: str


class Loaded(NamedTuple):
    """A file in memory; `where` is what sentences call it."""

    where: str
    name: str
    suffix: str
    data: bytes

    def read_bytes(self) -> bytes:
        """All of it."""
        return self.data

    def __str__(self) -> str:
        return self.where


def load(file: File) -> File:
    """The same file such that it can be opened again at no cost: a path as it is, anything else in memory."""
    return file if isinstance(file, (Path, Loaded)) else Loaded(str(file), file.name, file.suffix, file.read_bytes())


class Entry(NamedTuple):
    """A listed clip; `id` is the same on every visit and no other entry of the source has it."""

    id: str
    file: File
    caption: str


class Skipped(NamedTuple):
    """What isn't used: `cause` is a few words to count by, `sentence` says what was found and needed.

    lasting: unless the cause may pass while the file stays as it is, as a disk's fault may.
    """

    id: str
    file: File
    cause: str
    sentence: str
    lasting: bool = True


class Source(Protocol):
    """Captioned clips in a fixed order; reading one never raises, for what is damaged is a Skipped."""

    def __len__(self) -> int: ...

    def id(self, index: int) -> str:
        """The id of clip `index`, without reading it."""
        ...

    def __getitem__(self, index: int) -> Entry | Skipped: ...


class HalfCharacter(ValueError):
    """A text with half of a pair that json writes as one character; it is no UTF-8."""


def caption_of(value: object) -> str:
    """The caption without the blanks around it; ValueError for one that is missing, empty or no text."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError("it is missing or empty")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise HalfCharacter("it holds half a character (a lone surrogate)") from None
    return value.strip()


def first_of(row: object, names: tuple[str, ...]) -> object:
    """The value of the first of these keys that a row of a table (or a json object) has; None where it has none."""
    return next((row[n] for n in names if row.get(n) is not None), None) if isinstance(row, dict) else None


def plain(name: str) -> str:
    """A name as text that can be stored: bytes that are no UTF-8 are written out."""
    return name.encode("utf-8", "backslashreplace").decode()
