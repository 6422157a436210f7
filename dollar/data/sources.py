"""Captioned videos of every kind of source: a folder with captions, WebDataset tars, or tables; the kind is looked up.

A folder has lists, `captions` or `metadata` with the ending jsonl, csv, tsv or json (keys `file` and `caption`, or as
Hugging Face's VideoFolder `file_name` and `text`), or pairs `name.mp4` + `name.txt`; see dollar/data/folders.py.
"""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from dollar.data.folders import NEEDED, TABLES, Joined, counted, files_below, open_folder
from dollar.data.listed import Entry, Skipped, Source, cut, plain
from dollar.data.lists import ENDINGS, Columns, Listing, read_list
from dollar.data.places import Names, packed, reachable, unpack
from dollar.data.tables import Tables
from dollar.data.tars import Tars
from dollar.data.tree import walk
from dollar.log import logger

Given = str | Path | Sequence[str | Path]


def open_source(given: Given, video_column: str | None = None, caption_column: str | None = None) -> Source:
    """The clips of a folder or file, of a pattern such as `shards/*.tar`, or of several places.

    Several are lists and folders, tars, or tables.
    video_column, caption_column: a table's or list's columns, where they have no usual name. ValueError when nothing
    fits.
    """
    parts = [_there(part) for part in ([given] if isinstance(given, (str, Path)) else given)]
    if not parts:
        raise ValueError(f"the list of what to read is empty. {NEEDED}.")
    if len(parts) == 1 and parts[0].is_dir():
        return open_folder(parts[0], video_column, caption_column)
    parts = [path for part in parts for path in _folders(part)]
    files = {part: _files(part) for part in parts}
    found = [pair for part in parts for pair in files[part]]
    left = [part for part in parts if not files[part]]
    if archives := [path for _, path in found if packed(path.name)]:
        raise ValueError(unpack(archives[0]))
    endings = Counter(cut(path.name)[1] for _, path in found)
    if set(endings) <= set(ENDINGS):  # lists and folders, or folders alone
        columns = Columns.named(video_column, caption_column)
        if len(found) == 1 and not left:
            return _list(found[0][1], columns)
        lists = [Named(name, _list(path, columns)) for name, path in _named(found)]
        return Joined([*lists, *(Named(n, open_folder(p, video_column, caption_column)) for n, p in _called(left))])
    if left:
        names = ", ".join(map(str, left))
        logger.warning(f"note: {names} is not read, for it has no tars or tables, as the other places have")
    if set(endings) <= {".tar"}:
        return Tars(_named(found))
    if set(endings) <= TABLES:
        return Tables(_named(found), found[0][1].parent, video_column, caption_column)
    raise ValueError(
        f"{given} is {counted(endings)}; give tars alone, parquet or arrow files alone, or lists and folders. {NEEDED}."
    )


def _list(table: Path, columns: Columns) -> Listing:
    """The clips of a list; ValueError for an empty one."""
    if not (clips := read_list(table, columns)):
        raise ValueError(f"the list {table} is empty. {NEEDED}.")
    return Listing(clips)


class Named:
    """A source of several, with its name before its ids."""

    def __init__(self, name: str, source: Source) -> None:
        self.name, self.source = name, source

    def __len__(self) -> int:
        return len(self.source)

    def id(self, index: int) -> str:
        """Its name and the id that the source gives."""
        return f"{self.name}/{self.source.id(index)}"

    def __getitem__(self, index: int) -> Entry | Skipped:
        item = self.source[index]
        return item._replace(id=f"{self.name}/{item.id}")


def _called(folders: Sequence[Path]) -> list[tuple[str, Path]]:
    """(name, path) of folders, each once, also where it lies in another; with whole paths where short names repeat."""
    real = {folder.resolve(): folder for folder in reversed(folders)}
    within = {path: folder for path, folder in real.items() if not real.keys().isdisjoint(path.parents)}
    if within:
        logger.warning(f"note: {', '.join(map(str, within.values()))} is read once, within another of the places")
    each = [folder for path, folder in real.items() if path not in within][::-1]
    return _named([(plain(os.path.basename(os.path.abspath(folder))), folder) for folder in each])


def _there(part: str | Path) -> Path:
    """The path that is meant; ValueError for what can't be one."""
    path = reachable(part)
    return path if os.path.lexists(path) or glob.has_magic(str(part)) else Names().find(Path(), str(part))


def _folders(part: Path) -> list[Path]:
    """The folders that a pattern means where only folders fit it, or else the same path."""
    found = sorted(map(Path, glob.glob(str(part)))) if not os.path.lexists(part) else []
    return found if found and all(path.is_dir() for path in found) else [part]


def _files(part: Path) -> list[tuple[str, Path]]:
    """(name, path) of the files that a path or pattern means; the name is below the folder it begins with."""
    if part.is_dir():
        return files_below(part, walk(part), {".tar", *TABLES})
    if part.exists():
        return [(plain(part.name), part)]
    fixed = Path(*_until_magic(part))
    if files := _each_once(Path(p) for p in glob.glob(str(part), recursive=True) if os.path.isfile(p)):
        if "**" not in part.parts and (folders := [p for p in sorted(glob.glob(str(part))) if os.path.isdir(p)]):
            logger.warning(f"note: {part} means files and folders; {', '.join(folders)} is not read")
        return [(plain(p.relative_to(fixed).as_posix()), p) for p in files]
    raise ValueError(f"{part} does not exist; give a folder or a file of videos with captions")


def _each_once(files: Iterable[Path]) -> list[Path]:
    """The files in order, each by its shortest path: `**` goes through loops of links many times."""
    found: dict[tuple[str, str], Path] = {}
    for path in sorted(files, key=lambda path: (len(path.parts), path)):
        found.setdefault((os.path.realpath(path.parent), path.name), path)
    return sorted(found.values())


def _until_magic(part: Path) -> list[str]:
    parts: list[str] = []
    for name in part.parts[:-1]:
        if glob.has_magic(name):
            break
        parts.append(name)
    return parts


def _named(files: Sequence[tuple[str, Path]]) -> list[tuple[str, Path]]:
    """The same files, with their whole paths for names where the short ones repeat."""
    short = {name for name, _ in files}
    if len(short) == len(files):
        return list(files)
    return [(plain(path.as_posix()), path) for path in dict.fromkeys(path for _, path in files)]
