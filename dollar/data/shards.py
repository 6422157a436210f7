"""Reading shards: all rows of folders of parquet files by number, their captions and shapes without their tensors."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from dollar.data.shard_format import LATENT, known_dtype, open_shard, sentences_about, tensor_columns

SOUND, NO_CAPTION, NO_TENSOR, UNKNOWN_TYPE = range(4)  # the states of a row in an index


class RowGroup(NamedTuple):
    """A row group in memory: its rows are `first`, first + 1, ... of all shards, and `start`, ... of its file."""

    path: Path
    first: int
    start: int
    table: pa.Table

    def tensor(self, row: int, name: str) -> Tensor | None:
        """The tensor of a row of all shards, in the type it is stored in; None where the row has none."""
        place = row - self.first
        if f"{name}_bytes" not in self.table.column_names or not self.table[f"{name}_bytes"][place].is_valid:
            return None
        data, shape, stored = (self.table[column][place] for column in tensor_columns(name))
        dtype, size = known_dtype(stored.as_py()), list(shape.as_py() or [])
        buffer = memoryview(data.as_buffer())
        if dtype is None or len(buffer) != dtype.itemsize * int(np.prod(size)):
            raise ValueError(
                f"{self.path} is not what its columns say: row {self.start + place} has {len(buffer)} bytes of "
                f"{name} for {size} in {stored}. Remove the file, or write it again"
            )
        return torch.frombuffer(bytearray(buffer), dtype=dtype).reshape(size)

    def finite(self, row: int, name: str) -> Tensor:
        """The tensor of a row of all shards in float32; ValueError where there is none, or not all of it is finite."""
        found, place = self.tensor(row, name), self.start + row - self.first
        if found is None:
            raise ValueError(f"row {place} of {self.path} has no {name}, though its index lists one; write it again")
        found = found.float()
        if not found.isfinite().all():
            raise ValueError(
                f"row {place} of {self.path} has {name} with numbers that are not finite. Remove the row, or store the "
                "clip again in float32"
            )
        return found


class Shards:
    """All rows of the parquet files below these folders (or of these files), by number, in the order of the names.

    columns: those that every file must have. captions: an Arrow array of every row's caption; shapes: the different
    latent shapes that there are, and shape_of [N]: which of them a row has. state_of [N]: SOUND, or what a row lacks as
    far as it is known without reading its tensors. Raises ValueError for a missing, empty or damaged place.
    """

    def __init__(self, paths: Sequence[str | Path], columns: Sequence[str]) -> None:
        self.files = [file for path in paths for file in list_shards(Path(path))]
        with ThreadPoolExecutor(8) as pool:
            read = list(pool.map(lambda file: _read_index(file, columns), self.files))
        per_group = [rows for index in read for rows in index.groups]
        self.group_first = np.concatenate([[0], np.cumsum(per_group, dtype=np.int64)])  # [groups + 1]
        counts = [len(index.groups) for index in read]
        self._file_of = np.repeat(np.arange(len(read)), counts)
        self._first_group = np.concatenate([[0], np.cumsum(counts)])
        self.file_first = self.group_first[self._first_group]  # [files + 1]
        self.captions = pa.chunked_array([c for index in read for c in index.captions.chunks], pa.large_string())
        self.shapes = list(dict.fromkeys(shape for index in read for shape in index.shapes))
        number = {shape: i for i, shape in enumerate(self.shapes)}
        self.shape_of = np.array([number[shape] for index in read for shape in index.shapes], dtype=np.int32)
        self.state_of = np.concatenate([index.states for index in read])

    def __len__(self) -> int:
        return int(self.group_first[-1])

    def group_of(self, row: int) -> int:
        """The row group that a row is in."""
        return int(np.searchsorted(self.group_first, row, "right")) - 1

    def faults(self, what: str) -> list[str]:
        """How many rows lack something, by what it is; `what` names the tensor."""
        causes = {
            NO_CAPTION: "without a caption",
            NO_TENSOR: f"without {what}",
            UNKNOWN_TYPE: f"with {what} of an unknown type",
        }
        counts = {cause: int((self.state_of == state).sum()) for state, cause in causes.items()}
        return [f"{count} {cause}" for cause, count in counts.items() if count]

    def read(self, group: int, columns: Sequence[str]) -> RowGroup:
        """A row group from its file, those of these columns that it has."""
        file = int(self._file_of[group])
        with sentences_about(self.files[file]), open_shard(self.files[file]) as shard:
            there = [column for column in columns if column in shard.schema_arrow.names]
            table = shard.read_row_group(group - int(self._first_group[file]), columns=there).combine_chunks()
        first = int(self.group_first[group])
        return RowGroup(self.files[file], first, first - int(self.file_first[file]), table)


class _Index(NamedTuple):
    groups: list[int]  # rows of each row group
    captions: pa.ChunkedArray
    shapes: list[tuple[int, ...] | None]
    states: np.ndarray


def _read_index(path: Path, needed: Sequence[str]) -> _Index:
    with sentences_about(path), open_shard(path) as shard:
        names = shard.schema_arrow.names
        if missing := [name for name in ("caption", *needed) if name not in names]:
            raise ValueError(
                f"{path} is no shard of latents: it lacks the column{'s' * (len(missing) > 1)} {', '.join(missing)}. "
                "launch/preprocess.py writes shards of captioned clips"
            )
        small = [f"{LATENT}_shape", *(name for name in needed if not name.endswith("_bytes"))]
        table = shard.read(columns=["caption", *(name for name in dict.fromkeys(small) if name in names)])
        groups = [shard.metadata.row_group(i).num_rows for i in range(shard.metadata.num_row_groups)]
        states = np.full(len(table), SOUND, dtype=np.int8)
        for name in needed:
            if name.endswith("_dtype"):
                types = table[name].to_pylist()
                known = {kind: UNKNOWN_TYPE if known_dtype(kind) is None else SOUND for kind in set(types)}
                states = np.maximum(states, np.array([known[kind] for kind in types], dtype=np.int8))
        for name in needed:
            valid = _valid_bytes(shard, name) if name.endswith("_bytes") else table[name].is_valid().to_numpy()
            states[~valid] = NO_TENSOR
        states[~table["caption"].is_valid().to_numpy()] = NO_CAPTION
    shapes = table[f"{LATENT}_shape"].to_pylist() if f"{LATENT}_shape" in names else [None] * len(table)
    captions = table["caption"].cast(pa.large_string()).fill_null("")
    return _Index(groups, captions, [tuple(s) if isinstance(s, list) else None for s in shapes], states)


def _valid_bytes(shard: pq.ParquetFile, name: str) -> np.ndarray:
    """Which rows have bytes in this column, True where the file keeps no count of those that don't."""
    found = []
    for i in range(shard.metadata.num_row_groups):
        group = shard.metadata.row_group(i)
        leaf = next(j for j in range(group.num_columns) if group.column(j).path_in_schema == name)
        counted = group.column(leaf).statistics  # our own files have none, and no bytes without a type either
        if counted is not None and counted.has_null_count and counted.null_count:
            found.append(shard.read_row_group(i, columns=[name])[name].is_valid().to_numpy())
        else:
            found.append(np.ones(group.num_rows, dtype=bool))
    return np.concatenate([np.ones(0, dtype=bool), *found])


def listed(paths: str | Path | Sequence[str | Path]) -> list[Path]:
    """One place or several as paths; a name that was read as a number is taken for the name."""
    several = [paths] if isinstance(paths, (str, int, float, Path)) else paths
    if several is None or not several or any(path is None or not str(path).strip() for path in several):
        raise ValueError(f"the folders of shards are {paths!r}; name at least one, and each by its path")
    return [Path(str(path)) for path in several]


def list_shards(path: Path) -> list[Path]:
    """The parquet files below a folder by name, or the one file that is given; ValueError where there is none."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise ValueError(
            f"the folder of shards {path} does not exist; launch/preprocess.py data=CLIPS out={path} fills it"
        )
    files = sorted(file for file in path.rglob("*.parquet") if not file.name.startswith("."))
    if not files:
        raise ValueError(f"{path} has no parquet file in it; launch/preprocess.py out={path} makes them of clips")
    return files


def row_ids(files: Sequence[Path]) -> list[str]:
    """The ids of all rows of these shards, in their order; ValueError for a file whose rows have none."""
    ids: list[str] = []
    for path in files:
        with sentences_about(path), open_shard(path) as shard:
            if "id" not in shard.schema_arrow.names:
                raise ValueError(f"the rows of {path} have no ids, by which they could be named")
            ids += shard.read(columns=["id"])["id"].to_pylist()
    return ids


def done_ids(folder: str | Path) -> set[str]:
    """The ids of all rows of the shards below a folder, none where there is no folder yet."""
    return set(row_ids(sorted(Path(folder).rglob("*.parquet"))))
