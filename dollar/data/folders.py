"""The clips of a folder and all folders below it, by one set of rules; what has a caption and isn't used is counted.

A list (captions or metadata) governs its folder and those below it. Elsewhere pairs count. Only where there is neither,
tars are read, and only where there are none, tables.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import accumulate
from pathlib import Path

from dollar.data.listed import NOT_BAD, STILLS, VIDEOS, Entry, Skipped, Source, cut, plain
from dollar.data.lists import ENDINGS, LISTS, Columns, Listing, Pair, read_list
from dollar.data.pairs import Place, pairs
from dollar.data.places import Names, packed, unpack
from dollar.data.rows import NoColumns
from dollar.data.tables import Tables
from dollar.data.tars import Tars
from dollar.data.tree import Tree, walk
from dollar.log import logger

TABLES = {".parquet", ".arrow"}
SHOWN = 5  # endings, and lists, that a sentence names
NEEDED = (
    "It needs captions.jsonl (one {'file': ..., 'caption': ...} a line), captions.csv with the columns file and "
    "caption, captions.json, or metadata.jsonl, .csv or .json with file_name and text, videos.txt + prompts.txt line "
    "by line, pairs name.mp4 + name.txt (or .caption or .json), tars of such pairs, or parquet or arrow files with a "
    "column of videos"
)


class Joined:
    """Sources one after the other."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self.sources = sources
        self._starts = [0, *accumulate(len(source) for source in sources)]

    def __len__(self) -> int:
        return self._starts[-1]

    def id(self, index: int) -> str:
        """The id that its source gives it."""
        source, place = self._place(index)
        return source.id(place)

    def __getitem__(self, index: int) -> Entry | Skipped:
        source, place = self._place(index)
        return source[place]

    def _place(self, index: int) -> tuple[Source, int]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        number = bisect_right(self._starts, index) - 1
        return self.sources[number], index - self._starts[number]


class _Lists:
    """The lists that govern folders: for each the clips, and for all what is to be said of the others."""

    def __init__(self, root: Path, tree: Tree, columns: Columns) -> None:
        self.root, self.tree, self.columns = root, tree, columns
        self.clips: dict[str, list[Entry | Skipped]] = {}
        self.unfit: list[str] = []  # why lists aren't ones
        self.governed: list[Path] = []  # lists below others
        self._rest: dict[str, list[Entry | Skipped]] = {}  # of lists without a single clip
        names = Names()
        for below in sorted(tree.files, key=_parts):
            if self.governor(below) is None:
                self._look(below, names)
            else:
                self.governed += [root / below / name for name in tree.files[below] if name.lower() in LISTS]

    def governor(self, below: str) -> str | None:
        """The folder whose list governs this one."""
        parts = _parts(below)
        return next((up for n in range(len(parts) + 1) if (up := "/".join(parts[:n])) in self.clips), None)

    def _look(self, below: str, names: Names) -> None:
        there = {name.lower(): name for name in self.tree.files[below]}
        tables = [self.root / below / there[name] for name in LISTS if name in there]
        for table in tables:
            try:
                clips = read_list(table, self.columns, below, names)
            except NoColumns as error:
                self.unfit.append(str(error))
                continue
            if any(isinstance(clip, Entry) for clip in clips):
                self.clips[below] = clips
                if others := [other.name for other in tables if other != table]:
                    logger.warning(f"note: {table} counts, and of its folder {', '.join(others)} is not read")
                return
            if clips:
                self._rest.setdefault(below, clips)
            self.unfit.append(f"the list {table} {'names no clip that can be used' if clips else 'is empty'}")

    def last_resort(self) -> list[Entry | Skipped]:
        """What lists without a single clip hold."""
        return [clip for clips in self._rest.values() for clip in clips]


def open_folder(folder: Path, video_column: str | None, caption_column: str | None) -> Source:
    """The clips of a folder; ValueError where it has none."""
    tree = walk(folder)
    if "" in tree.closed:
        raise ValueError(f"the clip folder {folder} can't be looked into: {tree.closed['']}")
    lists = _Lists(folder, tree, Columns.named(video_column, caption_column))
    apart = _apart(folder, tree)
    listed = _Files(clip.file for clips in lists.clips.values() for clip in clips)
    beside = _beside(folder, {b: names for b, names in tree.files.items() if lists.governor(b) is None})
    beside = [clip for clip in beside if clip.file not in listed]  # a list may name files of other folders
    if lists.clips or any(isinstance(clip, Pair) for clip in beside):
        _say(folder, lists)
        clips = [clip for found in lists.clips.values() for clip in found]
        known = {clip.id for clip in beside}
        rest = [skip for skip in apart if skip.id not in known]
        return Listing([*clips, *beside, *_unlisted(folder, tree, lists, listed), *rest])
    for kinds in ({".tar"}, TABLES):
        if files := files_below(folder, tree, kinds):
            _say(folder, lists)
            source = Tars(files) if kinds == {".tar"} else Tables(files, folder, video_column, caption_column)
            if len(source) == 0:
                raise ValueError(f"the clip folder {folder} lists no clips: its list is empty. {NEEDED}.")
            rest = [skip for skip in apart if cut(skip.file.name)[1] not in kinds] + _unknown(beside)
            return Joined([source, Listing(rest)]) if rest else source
    if found := lists.last_resort():
        return Listing([*found, *apart])
    why = [*lists.unfit[:SHOWN], *_by_another_name(folder, tree, lists.columns)]
    if beside and not why:
        return Listing([*beside, *apart])
    raise ValueError(_nothing(folder, tree, why))


def files_below(folder: Path, tree: Tree, endings: set[str]) -> list[tuple[str, Path]]:
    """(path below the folder as text, path) of the tars or tables of a tree, in order."""
    found = [Path(b, n) for b, names in tree.files.items() for n in names if _shard(n) in endings]
    return [(plain(p.as_posix()), folder / p) for p in sorted(found)]


def counted(endings: Counter[str]) -> str:
    """How many files there are of each ending, in words."""
    shown = [f"{n} {'file' if n == 1 else 'files'} {ending or 'without ending'}" for ending, n in endings.most_common()]
    return ", ".join(shown[:SHOWN]) or "nothing"


def _shard(name: str) -> str:
    """The ending of a tar or a table; empty for others, and for caches that Hugging Face leaves next to the data."""
    ending = cut(name)[1]
    return ending if ending == ".tar" or (ending in TABLES and not name.startswith("cache-")) else ""


def _parts(below: str) -> tuple[str, ...]:
    return tuple(below.split("/")) if below else ()


def _beside(root: Path, files: dict[str, list[str]]) -> list[Pair | Skipped]:
    """The pairs of all these folders, ordered as paths are, and after them what is left out by rule."""
    found = [((*_parts(b), name), clip) for b, names in files.items() for name, clip in pairs(root, b, names)]
    aside = [isinstance(clip, Skipped) and clip.cause in NOT_BAD for _, clip in found]
    return [found[n][1] for n in sorted(range(len(found)), key=lambda n: (aside[n], found[n][0]))]


def _unknown(beside: Sequence[Pair | Skipped]) -> list[Skipped]:
    """What has a caption next to it and an ending that is none of a video's, nor of a tar or a table."""
    return [
        clip
        for clip in beside
        if isinstance(clip, Skipped) and clip.cause == "unknown ending" and not _shard(clip.file.name)
    ]


class _Files:
    """Files by their names and where their folders really are."""

    def __init__(self, files: Iterable[object]) -> None:
        self._real = lru_cache(None)(os.path.realpath)
        self._keys = set(map(self._key, files))

    def __contains__(self, file: object) -> bool:
        return bool(self._keys) and self._key(file) in self._keys

    def _key(self, file: object) -> tuple[str, str]:
        folder, name = os.path.split(str(file))
        return self._real(folder or "."), name


def _unlisted(root: Path, tree: Tree, lists: _Lists, listed: _Files) -> list[Skipped]:
    """Videos and pictures in the folders that lists govern which no list names."""
    found = []
    for below, names in sorted(tree.files.items(), key=lambda item: _parts(item[0])):
        if (governor := lists.governor(below)) is None:
            continue
        for name in sorted(n for n in names if cut(n)[1] in VIDEOS | STILLS):
            place = Place(root, below, name)
            if place.path not in listed:
                found.append(place.skipped("not listed", f"is not named by the list of {root / governor}"))
    return found


def _apart(root: Path, tree: Tree) -> list[Skipped]:
    """What is in the folder and can't be read, or is another kind of source than lists and pairs."""
    found = [
        Skipped(plain(below), root / below, "unreadable folder", plain(f"{root / below} can't be looked into: {why}."))
        for below, why in sorted(tree.closed.items())
    ]
    for below, names in sorted(tree.files.items(), key=lambda item: _parts(item[0])):
        for name in sorted(names):
            if packed(name):
                place = Place(root, below, name)
                found.append(Skipped(place.id, place.path, "packed archive", plain(f"{unpack(place.path)}.")))
            elif _shard(name):
                other = "isn't read, for lists, pairs and tars come first, in this order; give its own path to read it"
                found.append(Place(root, below, name).skipped("other kind of source", other))
    return found


def _say(folder: Path, lists: _Lists) -> None:
    """A note of lists that aren't used, and where several are, of which."""
    for why in lists.unfit:
        logger.warning(f"note: {why}; so it is passed over")
    if lists.governed:
        logger.warning(f"note: not read, for a list above them counts: {_some(lists.governed)}")
    if len(lists.clips) > 1:
        each = [f"{folder / below} ({len(clips)})" for below, clips in lists.clips.items()]
        logger.warning(
            f"note: the lists of {_some(each)} are read together; give one of these folders to read it alone"
        )


def _some(items: Sequence[object]) -> str:
    more = f" and {len(items) - SHOWN} more" if len(items) > SHOWN else ""
    return ", ".join(map(str, items[:SHOWN])) + more


def _by_another_name(folder: Path, tree: Tree, columns: Columns) -> list[str]:
    """What to do with a list on top that isn't called one."""
    for name in sorted(tree.files[""]):
        if cut(name)[1] in ENDINGS and name.lower() not in LISTS:
            try:
                fits = any(isinstance(clip, Entry) for clip in read_list(folder / name, columns))
            except ValueError:
                continue
            if fits:
                return [f"{folder / name} is a list of clips; give its path, or call it captions{cut(name)[1]}"]
    return []


def _nothing(folder: Path, tree: Tree, why: Sequence[str]) -> str:
    names = [name for found in tree.files.values() for name in found]
    holds = f"it holds {counted(Counter(cut(n)[1] for n in names))}"
    archives = [unpack(folder / name) for name in names if packed(name)][:1]
    return f"the clip folder {folder} lists no clips; {'; '.join([holds, *why, *archives])}. {NEEDED}."
