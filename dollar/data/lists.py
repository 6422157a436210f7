"""Clips of a list, `captions` or `metadata`: csv, tsv, json lines or json with a column of files and one of texts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from dollar.data.listed import CAPTIONS, FILES, Entry, HalfCharacter, Skipped, caption_of, cut, plain
from dollar.data.places import Names, network
from dollar.data.rows import NoColumns, Row, lines_of, read_rows
from dollar.data.text import caption_from, read_text

ENDINGS = (".jsonl", ".csv", ".tsv", ".json", ".ndjson")
FILE_LINES = "videos.txt"  # a file a line, with the captions in the same lines of one of the others
TEXT_LINES = ("prompts.txt", "prompt.txt", "captions.txt")
# The one that counts first.
LISTS = (*(f"{name}{ending}" for name in ("captions", "metadata") for ending in ENDINGS), FILE_LINES)


class Pair(NamedTuple):
    """A clip whose caption is a file, which is read when it is asked for."""

    id: str
    file: Path
    text: Path

    def read(self) -> Entry | Skipped:
        """The clip with its caption."""
        try:
            caption = caption_in(self.text)
        except (OSError, ValueError) as error:
            sentence = f"the caption of {self.file} can't be read: {self.text}: {error}."
            return Skipped(self.id, self.file, "unreadable caption", plain(sentence))
        return Entry(self.id, self.file, caption)


def caption_in(text: Path) -> str:
    """The caption that a file next to a clip holds; ValueError for none."""
    return caption_from(text.read_bytes(), cut(text.name)[1], text)


class Listing:
    """Clips that were listed at once; a file that comes again has its number after its id."""

    def __init__(self, listed: Sequence[Entry | Skipped | Pair]) -> None:
        seen: Counter[str] = Counter()
        self._listed: list[Entry | Skipped | Pair] = []
        for item in listed:
            seen[item.id] += 1
            again = f"#{seen[item.id]}" if seen[item.id] > 1 else ""
            self._listed.append(item._replace(id=item.id + again) if again else item)

    def __len__(self) -> int:
        return len(self._listed)

    def id(self, index: int) -> str:
        """A file's path below the folder."""
        return self._listed[index].id

    def __getitem__(self, index: int) -> Entry | Skipped:
        item = self._listed[index]
        return item.read() if isinstance(item, Pair) else item


class Columns(NamedTuple):
    """The names of a list's columns of files and captions, the likeliest first."""

    files: tuple[str, ...] = FILES
    captions: tuple[str, ...] = CAPTIONS

    @classmethod
    def named(cls, file: str | None, caption: str | None) -> Columns:
        """These names, or the usual ones."""
        return cls(FILES if file is None else (file,), CAPTIONS if caption is None else (caption,))


def read_list(table: Path, columns: Columns, below: str = "", names: Names | None = None) -> list[Entry | Skipped]:
    """The clips of a list, in its order. below: its folder's path below the one that was given.

    ValueError for what is no text, NoColumns (of dollar/data/rows.py) for what is no list of clips.
    """
    names = names or Names()
    rows = _lines(table) if table.name.lower() == FILE_LINES else read_rows(table, columns)
    return [_clip(table, below, row, names) for row in rows]


def _lines(files: Path) -> list[Row]:
    """The rows of two files of lines, as several trainers have them."""
    beside = (Names().find(files.parent, name) for name in TEXT_LINES)
    if (texts := next(filter(Path.is_file, beside), None)) is None:
        raise NoColumns(f"{files} has no {TEXT_LINES[0]} next to it, with the caption of each of its lines")
    columns = [lines_of(read_text(path).rstrip()) for path in (files, texts)]
    if len(columns[0]) != len(columns[1]):
        raise ValueError(
            f"{files} has {len(columns[0])} lines and {texts} {len(columns[1])}; each line of one is the clip of the "
            "same line of the other"
        )
    rows = enumerate(zip(*columns, strict=True), 1)
    return [Row(number, (file, text)) for number, (file, text) in rows if file.strip() or text.strip()]


def _clip(table: Path, below: str, row: Row, names: Names) -> Entry | Skipped:
    """The clip of one row of a list."""
    skip_id = plain(str(PurePosixPath(below) / f"{table.name}:{row.number}"))
    if row.cause:
        return Skipped(skip_id, table, row.cause, row.problem)
    file, text = row.values
    try:
        name = caption_of(file)
        if address := network(name):
            return Skipped(skip_id, table, "on a network", f"{row.where} of {table}: {address}.")
        id = plain((PurePosixPath(below) / name).as_posix())
        return Entry(id, names.find(table.parent, name), caption_of(text))
    except HalfCharacter as error:
        sentence = f"the file or the caption in {row.where} of {table} can't be stored: {error}."
        return Skipped(skip_id, table, "unreadable caption", sentence)
    except ValueError:
        odd = next((value for value in row.values if value is not None and not isinstance(value, str)), None)
        why = f"it has {', '.join(row.there) or 'nothing'}" if odd is None else f"{str(odd)[:60]!r} is no text"
        sentence = f"{row.where} of {table} has no `file` and `caption`, or one is empty; {why}."
        where = table.parent / file if isinstance(file, str) else table
        return Skipped(skip_id, where, "unreadable caption", sentence)
