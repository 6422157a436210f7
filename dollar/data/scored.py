"""Shards of generated clips: which clips there are, what a reward gave each of them, and their latents."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import torch
from torch import Tensor

from dollar.data.shard_format import LATENT, SCORES, open_shard, sentences_about, tensor_columns
from dollar.data.shards import RowGroup


class Scored(NamedTuple):
    """A stored clip: the shard that holds it, and its scores by name, nan where they are no numbers."""

    shard: Path
    scores: dict[str, float]


def shards_in(folder: Path) -> list[Path]:
    """The whole shards in a folder by name, none where there is no folder."""
    return sorted(path for path in folder.glob("*.parquet") if not path.name.startswith("."))


def read_scored(folder: Path) -> dict[str, Scored]:
    """The clips in a folder by id; ValueError for a shard whose clips have no scores."""
    found = {}
    for path in shards_in(folder):
        with sentences_about(path), open_shard(path) as shard:
            names = shard.schema_arrow.names
            if SCORES not in names:
                raise ValueError(f"{path} has clips without scores, so it is no shard of launch/pairs.py; remove it")
            rows = shard.read(columns=["id", SCORES]).to_pylist()
        for row in rows:
            values = json.loads(row[SCORES] or "{}")
            found[row["id"]] = Scored(path, {k: math.nan if v is None else float(v) for k, v in values.items()})
    return found


def read_latents(folder: Path, ids: Iterable[str]) -> dict[str, Tensor]:
    """The stored latents [C, F', h, w], float32 and un-normalised, of some clips by id."""
    wanted = set(ids)
    return {id: latents for path in shards_in(folder) for id, latents in _latents_in(path, wanted)}


def _latents_in(path: Path, wanted: set[str]) -> Iterator[tuple[str, Tensor]]:
    with sentences_about(path), open_shard(path) as shard:
        there: list[str] = shard.read(columns=["id"])["id"].to_pylist()
        if not wanted.intersection(there):
            return
        table: pa.Table = shard.read(columns=tensor_columns(LATENT)).combine_chunks()
    group = RowGroup(path, 0, 0, table)
    for row, id in enumerate(there):
        if id in wanted:
            latents = group.tensor(row, LATENT)
            assert latents is not None, "every clip of these shards has latents"
            yield id, latents.to(torch.float32)
