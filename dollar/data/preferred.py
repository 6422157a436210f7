"""Pairs of clips of one caption, of which one is preferred: from shards by their ids, or from films in a table."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from dollar.data.decoding import DECODING_ERRORS, read_window
from dollar.data.latents import Batch, Fit, LatentBatches, Samples
from dollar.data.listed import Entry, Skipped, caption_of
from dollar.data.places import Names
from dollar.data.probing import Item, probe
from dollar.data.rows import NoColumns, read_rows
from dollar.data.shards import list_shards, row_ids
from dollar.data.stored import LatentShards, StoredText
from dollar.data.text import read_text
from dollar.log import logger

C = TypeVar("C")
LIST, FOLDERS, TABLE = "pairs.jsonl", "pairs.json", "pairs.csv"
COLUMNS = (("winner",), ("loser",), ("caption",))
CAUSES = 5  # pairs that are left out and named


class PairSamples(Samples, Protocol):
    """Samples whose clips are preferred to others of the same caption."""

    def losers(self, samples: Sequence[int]) -> Tensor:
        """The latents [B, C, F, h, w] of the other clips of these global sample indices."""
        ...


class Pairs:
    """Pairs as samples: the winners of one source, and of another the losers, which comes in the same order."""

    has_latents = True

    def __init__(self, winners: Samples, losers: Samples) -> None:
        assert len(winners) == len(losers), "each winner has a loser"
        self._winners, self._losers = winners, losers
        self.captions = winners.captions

    def __len__(self) -> int:
        return len(self._winners)

    @property
    def report(self) -> str:
        """How many pairs there are."""
        return f"{len(self)} pairs of clips, of {len(set(self.captions))} captions"

    def batch(self, samples: Sequence[int], latents: bool = True) -> Batch:
        """The winners of these global sample indices."""
        return self._winners.batch(samples, latents)

    def losers(self, samples: Sequence[int]) -> Tensor:
        """The latents [B, C, F, h, w] of the losers of these global sample indices."""
        found = self._losers.batch(samples).latents
        assert found is not None
        return found

    def ahead(self, samples: Sequence[int]) -> None:
        """The latents of these will be requested soon, in this order."""
        self._winners.ahead(samples)
        self._losers.ahead(samples)

    def identity(self) -> dict[str, Any]:
        """What differs where a sample's number may lead to another pair."""
        sides = {"winners": self._winners, "losers": self._losers}
        return {f"{side} {key}": value for side, source in sides.items() for key, value in source.identity().items()}


class Listed(NamedTuple):
    """The pairs of a folder by the ids of their clips, and the folders of shards in which these are."""

    winners: Path
    losers: Path
    prompts: list[str]
    winning: list[str]
    losing: list[str]


def read_listed(folder: Path) -> Listed:
    """The pairs.jsonl and pairs.json of a folder; ValueError names the line that is at fault."""
    places = {}
    try:
        said = json.loads(read_text(folder / FOLDERS))
        places = {side: folder / str(said[side]) for side in ("winners", "losers")}  # an absolute path stays as it is
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{folder / FOLDERS} doesn't say where the clips are ({error}); launch/pairs.py writes it"
        ) from None
    pairs: list[list[str]] = [[], [], []]
    for number, line in enumerate(read_text(folder / LIST).splitlines(), 1):
        try:
            row = json.loads(line)
            for values, key in zip(pairs, ("prompt", "winner", "loser"), strict=True):
                values.append(str(row[key]))
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(
                f"line {number} of {folder / LIST} is no pair with prompt, winner and loser ({error}); launch/pairs.py "
                "writes them again"
            ) from None
    return Listed(places["winners"], places["losers"], *pairs)


class Row(NamedTuple):
    """A pair of one's own: two files and their caption."""

    caption: str
    winner: Path
    loser: Path


def read_table(folder: Path) -> list[Row]:
    """The rows of a folder's pairs.csv; ValueError names the line that is at fault."""
    table, names = folder / TABLE, Names()
    try:
        rows = read_rows(table, COLUMNS)
    except NoColumns as error:
        raise ValueError(f"{error}. {TABLE} has the columns caption,winner,loser, the files below its folder") from None
    found = []
    for row in rows:
        if row.cause:
            raise ValueError(row.problem)
        winner, loser, caption = row.values
        if not (winner and str(winner).strip() and loser and str(loser).strip() and caption and str(caption).strip()):
            raise ValueError(f"{row.where} of {table} lacks its caption, winner or loser; each pair needs all three")
        files = (names.find(folder, str(name).strip()) for name in (winner, loser))
        found.append(Row(caption_of(caption), *files))
    return found


def is_own(folder: Path) -> bool:
    """Whether a folder has pairs of one's own; ValueError where it has no pairs at all."""
    if (folder / LIST).is_file():
        return False
    if (folder / TABLE).is_file():
        return True
    raise ValueError(
        f"data.path={folder}: there is neither {LIST}, which launch/pairs.py writes, nor a {TABLE} with the columns "
        "caption,winner,loser and the videos below the folder"
    )


def check_pairs(path: str | Path, batch: int) -> None:
    """Raise ValueError where the pairs are fewer than a batch, or a clip of one is nowhere, without reading a clip."""
    folder = Path(path)
    if is_own(folder):
        rows = read_table(folder)
        if gone := [file for row in rows for file in row[1:] if not file.is_file()]:
            raise ValueError(f"{folder / TABLE} names {gone[0]}, and {len(gone)} of its files are not there")
        count = len(rows)
    else:
        listed = read_listed(folder)
        for side, place, wanted in (
            ("winner", listed.winners, listed.winning),
            ("loser", listed.losers, listed.losing),
        ):
            there = set(row_ids(list_shards(place)))
            if missing := [id for id in wanted if id not in there]:
                raise ValueError(
                    f"{folder / LIST} has {len(missing)} {side}s that are in no shard of {place}, the first of them "
                    f"{missing[0]}; run launch/pairs.py again"
                )
        count = len(listed.prompts)
    if count < batch:
        raise ValueError(
            f"{folder} has {count} pairs, and batch={batch} takes more at once; make more pairs, or give batch={count}"
            if count
            else f"{folder} has no pair; make some with launch/pairs.py"
        )


def pairs_of(
    fit: Fit,
    path: str | Path,
    frames: int,
    height: int,
    width: int,
    fps: float,
    cache: int = 1024,
    cache_bytes: int = 2**30,
) -> Pairs:
    """The pairs of a folder for a teacher and a run: of shards, or of video files that are encoded as clips are.

    frames, height, width, fps: of the clips that video files are cut to; cache: of these, how many latents are kept;
    cache_bytes: memory for the row groups of the shards of each side.
    """
    folder = Path(path)
    if is_own(folder):
        sides = _films(read_table(folder), frames, (height, width), fps)
        winners, losers = (LatentBatches(films, fit.encode, fit.seed, cache) for films in sides)
        return Pairs(winners, losers)
    listed = read_listed(folder)
    sources = [
        LatentShards(place, fit.shape, fit.normalise, fit.seed, fit.fingerprint(), cache_bytes, ids=ids)
        for place, ids in ((listed.winners, listed.winning), (listed.losers, listed.losing))
    ]
    for source in sources:
        for number, (said, caption) in enumerate(zip(listed.prompts, source.captions, strict=True), 1):
            if said != caption:
                raise ValueError(
                    f"line {number} of {folder / LIST} is of the prompt {said[:60]!r}, and its clip in {source.path} "
                    f"of {caption[:60]!r}; run launch/pairs.py again"
                )
    return Pairs(*sources)


def stored_text(
    path: str | Path,
    length: int,
    condition: Callable[..., C],
    device: torch.device | str = "cpu",
    fingerprint: Mapping[str, Any] | None = None,
    nulls: str | Path | None = None,
) -> StoredText[C]:
    """The prompts that the shards of a folder's pairs have stored, as `StoredText`; ValueError for pairs of films."""
    folder = Path(path)
    if is_own(folder):
        raise ValueError(
            f"teacher.text is stored, but the pairs of {folder / TABLE} store none; use teacher.text=online"
        )
    listed = read_listed(folder)
    places = list(dict.fromkeys((listed.winners, listed.losers)))
    return StoredText(places, length, condition, device, fingerprint, nulls=nulls)


class Films:
    """One side's clips of pairs of one's own, as `Clips`."""

    def __init__(self, items: Sequence[Item], frames: int, size: tuple[int, int], fps: float) -> None:
        self.items, self.frames, self.size, self.fps = items, frames, size, fps
        self.captions: Sequence[str] = [item.caption for item in items]

    def __len__(self) -> int:
        return len(self.items)

    def clip(self, index: int, u: float) -> tuple[np.ndarray, str]:
        """The window that u in [0, 1) chooses, uint8 [T, H, W, 3], and the caption; a pair's clips share it."""
        item = self.items[index]
        try:
            window = read_window(item.file, item.still, int(u * item.windows), self.frames, self.fps, self.size)
        except DECODING_ERRORS as error:
            raise ValueError(f"{item.file} can't be decoded ({error}); take its pair out of {TABLE}") from error
        return window, item.caption


def _films(rows: Sequence[Row], frames: int, size: tuple[int, int], fps: float) -> list[Films]:
    """Winners and losers of the pairs whose files can both be used; what is left out is told."""

    def probed(row: Row) -> list[Item | Skipped]:
        return [probe(Entry(file.name, file, row.caption), frames, fps, "skip") for file in row[1:]]

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(probed, rows))
    skipped = [item for pair in found for item in pair if isinstance(item, Skipped)]
    usable = [[item for item in pair if isinstance(item, Item)] for pair in found]
    usable = [pair for pair in usable if len(pair) == 2]
    causes = ", ".join(f"{n} {cause}" for cause, n in Counter(item.cause for item in skipped).most_common())
    told = " ".join(item.sentence for item in skipped[:CAUSES])
    if not usable:
        raise ValueError(f"none of the {len(rows)} pairs can be used: {causes}. {told}")
    if skipped:
        logger.warning(f"note: {len(rows) - len(usable)} of {len(rows)} pairs are left out ({causes}). {told}")
    windows = [min(item.windows for item in pair) for pair in usable]
    return [
        Films([pair[side]._replace(windows=n) for pair, n in zip(usable, windows, strict=True)], frames, size, fps)
        for side in (0, 1)
    ]
