"""What a source of captioned videos lists: entries that can be opened, and what is skipped with its reason."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import NamedTuple, Protocol

# The endings that are looked for in folders and tars; what a list or a table names is read whatever its ending.
VIDEOS = {
    *(".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".gif", ".mpg", ".mpeg", ".m2v", ".mpe", ".wmv", ".asf"),
    *(".ts", ".mts", ".m2ts", ".vob", ".flv", ".f4v", ".3gp", ".3g2", ".ogv", ".ogm", ".mxf", ".divx", ".y4m"),
}
STILLS = {
    *(".png", ".jpg", ".jpeg", ".webp", ".avif", ".bmp", ".tif", ".tiff", ".heic", ".heif", ".jfif", ".jpe", ".jp2"),
    *(".apng", ".tga", ".ppm"),
}
TEXTS = (".txt", ".caption", ".json")  # endings of captions next to a clip, the one that counts first
# Causes of skipping that are no fault of what was given: left out by rule, and counted.
BY_RULE = {
    *("thumbnail", "picture without a caption", "caption without a video", "not listed", "packed archive"),
    "other kind of source",
}
NOT_BAD = BY_RULE | {"still image"}
# Causes that may be over while the file stays as it is, and that cost little to find: those of a list or a name, which
# can be mended, and of what can be installed. Nothing remembers them.
PASSING = BY_RULE | {
    *("too many fields", "broken quotes", "torn list", "on a network", "unknown ending", "unreadable folder"),
    "HEIC picture",
}
# What lists, tables and json call the file and its caption, the likeliest first; capitals, blanks and signs between
# words don't matter.
FILES = (
    *("file", "file_name", "path", "video", "file_path", "video_path", "video_file", "video_name", "video_file_name"),
    *("media", "media_path", "clip", "clip_path", "image", "image_path", "image_file", "image_file_name"),
)
CAPTIONS = ("caption", "text", "prompt", "description", "captions", "prompts", "cap")


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


class NotShown(ValueError):
    """A file that can't be shown right, though it isn't damaged: `cause` is a few words to count by.

    The message goes on from the file's name: "is a HEIC picture; ...".
    """

    def __init__(self, cause: str, message: str) -> None:
        super().__init__(message)
        self.cause = cause


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
    """The caption without the blanks around it; ValueError for one that is missing, empty or no text.

    A list of a single text, as some json has it, is that text.
    """
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if not isinstance(value, str) or not value.strip():
        raise ValueError("it is missing or empty")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise HalfCharacter("it holds half a character (a lone surrogate)") from None
    return value.strip()


def first_of(row: object, names: Collection[str]) -> object:
    """The value of the first of these keys that a row of a table (or a json object) has; None where it has none.

    A key as it is written here comes before one that differs in capitals, blanks or signs (`File Name`).
    """
    if not isinstance(row, dict):
        return None
    if (found := next((row[n] for n in names if row.get(n) is not None), None)) is not None:
        return found
    alike = {tidy(key): value for key, value in row.items() if isinstance(key, str) and value is not None}
    return next((alike[tidy(n)] for n in names if tidy(n) in alike), None)


def tidy(name: str) -> str:
    """The letters and digits of a column's name, small: `File Name`, `file-name` and `file_name` are one."""
    return re.sub(r"[\W_]+", "", name).lower()


def same_form(name: str) -> str:
    """A name in one of the Unicode forms that it may have, so that names that look the same are the same."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def form_of(names: Iterable[str]) -> Callable[[str], str]:
    """What makes names of these files, with or without ending, comparable: their Unicode form doesn't matter, and
    capitals only where two of the files differ by them alone.
    """
    counts = Counter(same_form(name).casefold() for name in names)
    apart = {part for name, count in counts.items() if count > 1 for part in (name, cut(name)[0])}

    def form(name: str) -> str:
        small = same_form(name).casefold()
        return same_form(name) if small in apart else small

    return form


def cut(name: str) -> tuple[str, str]:
    """A file's name before its ending, and the ending in small letters with its dot; `a.MP4` gives `a` and `.mp4`."""
    stem, dot, ending = name.rpartition(".")
    return (stem, "." + ending.lower()) if dot and stem and ending else (name, "")


def plain(name: str) -> str:
    """A name as text that can be stored: bytes that are no UTF-8 are written out."""
    return name.encode("utf-8", "backslashreplace").decode()
