"""Captioned videos of every kind of source: a folder with captions, WebDataset tars, or tables; the kind is looked up.

A folder has `captions.jsonl` or `captions.csv` (keys `file` and `caption`), `metadata.jsonl` or `metadata.csv` (as
Hugging Face's VideoFolder: `file_name` and `text` or `caption`), or pairs `name.mp4` + `name.txt`.
"""

from __future__ import annotations

import csv
import glob
import io
import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from dollar.data.listed import (
    CAPTIONS,
    STILLS,
    VIDEOS,
    Entry,
    HalfCharacter,
    Skipped,
    Source,
    caption_of,
    first_of,
    plain,
)
from dollar.data.prompts import decode_utf8
from dollar.data.tables import Tables
from dollar.data.tars import Tars

LISTS = ("captions.jsonl", "captions.csv", "metadata.jsonl", "metadata.csv")
FILES = ("file", "file_name", "path", "video")  # what lists call the column of files
TABLES = {".parquet", ".arrow"}
SHOWN = 5  # endings that a sentence names
NEEDED = (
    "It needs captions.jsonl (one {'file': ..., 'caption': ...} a line), captions.csv with the columns file and "
    "caption, metadata.jsonl or metadata.csv with file_name and text, pairs name.mp4 + name.txt, tars of such pairs, "
    "or parquet or arrow files with a column of videos"
)

Given = str | Path | Sequence[str | Path]


def open_source(given: Given, video_column: str | None = None, caption_column: str | None = None) -> Source:
    """The clips of a folder or file, of a pattern such as `shards/*.tar`, or of a list of tars or tables.

    video_column, caption_column: a table's columns, where they have no usual name. ValueError when nothing fits.
    """
    parts = [given] if isinstance(given, (str, Path)) else list(given)
    if len(parts) == 1 and (single := Path(parts[0])).is_dir():
        return _folder(single, video_column, caption_column)
    found = [pair for part in parts for pair in _files(Path(part))]
    if not found:
        raise ValueError("the list of files to read is empty; give a folder or a file of videos with captions")
    endings = Counter(path.suffix.lower() for _, path in found)
    if len(found) == 1 and found[0][1].suffix.lower() in (".jsonl", ".csv"):
        return Listing(_listed(found[0][1]))
    if set(endings) <= {".tar"}:
        return Tars(_named(found))
    if set(endings) <= TABLES:
        return Tables(_named(found), found[0][1].parent, video_column, caption_column)
    raise ValueError(
        f"{given} is {_counted(endings)}; give tars alone, parquet or arrow files alone, or one folder. {NEEDED}."
    )


class Listing:
    """Clips that were listed at once; a file that comes again has its number after its id."""

    def __init__(self, listed: Sequence[Entry | Skipped]) -> None:
        seen: Counter[str] = Counter()
        self._listed: list[Entry | Skipped] = []
        for item in listed:
            seen[item.id] += 1
            again = f"#{seen[item.id]}" if seen[item.id] > 1 else ""
            self._listed.append(item._replace(id=item.id + again))

    def __len__(self) -> int:
        return len(self._listed)

    def id(self, index: int) -> str:
        """A file's path below the folder."""
        return self._listed[index].id

    def __getitem__(self, index: int) -> Entry | Skipped:
        return self._listed[index]


def _folder(folder: Path, video_column: str | None, caption_column: str | None) -> Source:
    for name in LISTS:
        if (table := folder / name).is_file():
            return _full(folder, Listing(_listed(table)))
    below = sorted(p for p in folder.rglob("*") if not _hidden(p, folder) and _is_file(p))
    media = _one_picture([p for p in below if p.suffix.lower() in VIDEOS | STILLS])
    top = [p for p in media if p.parent == folder]
    if pairs := [p for p in media if _is_file(p.with_suffix(".txt"))]:
        # Pairs may lie in folders of folders; where some lie on top, only what lies there is meant.
        return Listing([_pair(p, folder) for p in (top if set(top) & set(pairs) else pairs)])
    if tars := [p for p in below if p.suffix.lower() == ".tar"]:
        return _full(folder, Tars(_below(folder, tars)))
    # Hugging Face leaves its own caches next to the data.
    if tables := [p for p in below if p.suffix.lower() in TABLES and not p.name.startswith("cache-")]:
        return _full(folder, Tables(_below(folder, tables), folder, video_column, caption_column))
    if top:
        return Listing([_pair(p, folder) for p in top])
    there = _counted(Counter(p.suffix.lower() for p in below))
    raise ValueError(f"the clip folder {folder} lists no clips; it holds {there}. {NEEDED}.")


def _hidden(path: Path, folder: Path) -> bool:
    """Whether a name below the folder begins with a dot: caches, and what other systems leave next to a file."""
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def _is_file(path: Path) -> bool:
    """Whether it is a file, or can't be looked at, which reading it reports."""
    try:
        return path.is_file()
    except OSError:
        return True


def _one_picture(media: Sequence[Path]) -> list[Path]:
    """The same without the pictures next to a video of their name, or another picture: thumbnails, as a rule."""
    videos = {p.with_suffix("") for p in media if p.suffix.lower() in VIDEOS}
    first = {p.with_suffix(""): p for p in reversed(media)}
    return [p for p in media if p.suffix.lower() in VIDEOS or (first[s := p.with_suffix("")] == p and s not in videos)]


def _full(folder: Path, source: Source) -> Source:
    if len(source) == 0:
        raise ValueError(f"the clip folder {folder} lists no clips: its list is empty. {NEEDED}.")
    return source


def _files(part: Path) -> list[tuple[str, Path]]:
    """(name, path) of the files that a path or pattern means; the name is below the folder it begins with."""
    if part.is_dir():
        inner = [p for p in part.rglob("*") if p.suffix.lower() in {".tar", *TABLES} and not _hidden(p, part)]
        return _below(part, sorted(inner))
    if part.exists():
        return [(plain(part.name), part)]
    fixed = Path(*_until_magic(part))
    if found := sorted(Path(p) for p in glob.glob(str(part), recursive=True) if os.path.isfile(p)):
        return _below(fixed, found)
    raise ValueError(f"{part} does not exist; give a folder or a file of videos with captions")


def _until_magic(part: Path) -> list[str]:
    parts: list[str] = []
    for name in part.parts[:-1]:
        if glob.has_magic(name):
            break
        parts.append(name)
    return parts


def _below(folder: Path, files: Sequence[Path]) -> list[tuple[str, Path]]:
    return [(plain(p.relative_to(folder).as_posix()), p) for p in files]


def _named(files: Sequence[tuple[str, Path]]) -> list[tuple[str, Path]]:
    """The same files, with their whole paths for names where the short ones repeat."""
    short = {name for name, _ in files}
    if len(short) == len(files):
        return list(files)
    return [(plain(path.as_posix()), path) for path in dict.fromkeys(path for _, path in files)]


def _counted(endings: Counter[str]) -> str:
    shown = [f"{n} {'file' if n == 1 else 'files'} {ending or 'without ending'}" for ending, n in endings.most_common()]
    return ", ".join(shown[:SHOWN]) or "nothing"


def _listed(table: Path) -> list[Entry | Skipped]:
    """The clips of a list of files with captions."""
    text = decode_utf8(table.read_bytes(), table)
    if table.suffix == ".csv":
        reader = csv.DictReader(io.StringIO(text, newline=""))
        try:
            return [_row(table, reader.line_num, row) for row in reader]
        except csv.Error as error:
            raise ValueError(f"{table} can't be read as csv from line {reader.line_num} on: {error}") from None
    return [_row(table, n, _json(line)) for n, line in enumerate(text.split("\n"), 1) if line.strip()]


def _json(line: str) -> object:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _row(table: Path, line: int, row: object) -> Entry | Skipped:
    """The clip of one line of a list."""
    file = first_of(row, FILES)
    try:
        name = caption_of(file)
        return Entry(plain(Path(name).as_posix()), table.parent / name, caption_of(first_of(row, CAPTIONS)))
    except HalfCharacter as error:
        sentence = f"the file or the caption in line {line} of {table} can't be stored: {error}."
        return Skipped(f"{table.name}:{line}", table, "unreadable caption", sentence)
    except ValueError:
        sentence = f"line {line} of {table} has no `file` and `caption`, or one is empty."
        where = table.parent / file if isinstance(file, str) else table
        return Skipped(f"{table.name}:{line}", where, "unreadable caption", sentence)


def _pair(path: Path, folder: Path) -> Entry | Skipped:
    """The clip of a video or picture with a text file of the same name next to it."""
    id, text = plain(path.relative_to(folder).as_posix()), path.with_suffix(".txt")
    try:
        caption = decode_utf8(text.read_bytes(), text).strip()
    except (OSError, ValueError) as error:
        return Skipped(id, path, "unreadable caption", f"the caption of {path} can't be read: {error}.")
    if not caption:
        sentence = f"the caption {text} is empty; write what {path.name} shows."
        return Skipped(id, path, "unreadable caption", sentence)
    return Entry(id, path, caption)
