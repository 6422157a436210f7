"""Shards: parquet files of latents and text embeddings, one captioned clip a row, in FastVideo's columns.

A tensor is three columns, `<name>_bytes`, `_shape` and `_dtype`. `vae_latent` is what the autoencoder gave, not yet
normalised. FastVideo reads every tensor as float32; the columns of MASK and POOLED are ours and it passes them over.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dollar.media import atomically

LATENT, EMBEDDING, MASK, POOLED = "vae_latent", "text_embedding", "text_attention_mask", "text_pooled"
DTYPES = {str(d).removeprefix("torch."): d for d in (torch.float32, torch.float16, torch.bfloat16, torch.uint8)}
FLOATS = [name for name, dtype in DTYPES.items() if dtype.is_floating_point]
SOUND, NO_CAPTION, NO_TENSOR, UNKNOWN_TYPE = range(4)  # what an index tells of a row
GROUP_BYTES = 4 * 2**20  # a row group is written once it holds this much, so that a row is read without many others
NULLS = "nulls.safetensors"


def tensor_columns(name: str) -> list[str]:
    """The three columns that hold a tensor."""
    return [f"{name}_bytes", f"{name}_shape", f"{name}_dtype"]


def _fields(name: str) -> list[tuple[str, pa.DataType]]:
    return list(zip(tensor_columns(name), (pa.binary(), pa.list_(pa.int64()), pa.string()), strict=True))


SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        *_fields(LATENT),
        *_fields(EMBEDDING),
        *_fields(MASK),
        *_fields(POOLED),
        *((name, pa.string()) for name in ("file_name", "caption", "media_type")),
        *((name, pa.int64()) for name in ("width", "height", "num_frames")),
        *((name, pa.float64()) for name in ("duration_sec", "fps")),
    ]
)


class Row(NamedTuple):
    """A captioned clip: latents [C, F, h, w] un-normalised, embeddings [L, D], mask [L], pooled [P] or None.

    width, height, num_frames: of the clip that was encoded, in pixels and frames; fps: frames a second.
    """

    id: str
    file_name: str
    caption: str
    latents: Tensor
    embeddings: Tensor
    mask: Tensor
    pooled: Tensor | None
    width: int
    height: int
    num_frames: int
    fps: float


class Text(NamedTuple):
    """A stored prompt: embeddings [L, D], mask [L] and pooled [P] or None."""

    embeddings: Tensor
    mask: Tensor
    pooled: Tensor | None


class ShardWriter:
    """Writes rows into folder/<part>-00000.parquet and on; numbers go on after those that are there.

    A shard appears whole, once it has `rows_per_shard` rows or the writer is closed. As a context manager it closes
    at the end, and after an exception leaves nothing half-written. Only one writer at a time may have a part's name.
    latents_dtype, text_dtype: float32, float16 or bfloat16. Trailing rows of zeros of the embeddings are not stored.
    """

    def __init__(
        self,
        folder: str | Path,
        part: str,
        rows_per_shard: int = 64,
        latents_dtype: str = "float32",
        text_dtype: str = "float32",
    ) -> None:
        for key, name in (("latents_dtype", latents_dtype), ("text_dtype", text_dtype)):
            if name not in FLOATS:
                raise ValueError(f"{key} is {name!r}; shards hold {', '.join(FLOATS)}")
        if rows_per_shard < 1:
            raise ValueError(f"rows_per_shard is {rows_per_shard}; a shard has at least 1 row")
        self.folder, self.part, self.rows_per_shard = Path(folder), part, rows_per_shard
        self.latents_dtype, self.text_dtype = DTYPES[latents_dtype], DTYPES[text_dtype]
        self.number = 1 + max((_number(path) for path in self.folder.glob(f"{part}-*.parquet")), default=-1)
        for left in self.folder.glob(f".{part}-{'[0-9]' * 5}.parquet.*.tmp"):  # of a process that was killed
            left.unlink(missing_ok=True)
        self._shard: pq.ParquetWriter | None = None
        self._open = contextlib.ExitStack()
        self._waiting: list[dict[str, Any]] = []
        self._rows = self._bytes = 0

    def add(self, row: Row) -> None:
        """Take a row; tensors may be on any device."""
        stored = self._columns(row)
        if self._shard is None:
            path = self._open.enter_context(atomically(self.folder / f"{self.part}-{self.number:05d}.parquet"))
            # Latents are noise to a compressor, and statistics would repeat whole tensors. Checksums tell of a damaged
            # page when it is read.
            settings = {"compression": "none", "use_dictionary": False, "write_statistics": False}
            self._shard = self._open.enter_context(pq.ParquetWriter(path, SCHEMA, write_page_checksum=True, **settings))
        self._waiting.append(stored)
        self._rows += 1
        self._bytes += sum(len(value) for value in stored.values() if isinstance(value, bytes))
        if self._bytes >= GROUP_BYTES:
            self._flush()
        if self._rows == self.rows_per_shard:
            self.close()

    def close(self) -> None:
        """Move the rows that are waiting into place, if there are any; the writer can be used on."""
        if self._shard is not None:
            with self._open:
                self._flush()
            self._shard, self._rows, self.number = None, 0, self.number + 1

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        if kind is None:
            self.close()
        else:
            self._open.__exit__(kind, error, trace)

    def _flush(self) -> None:
        assert self._shard is not None
        if self._waiting:
            self._shard.write_table(pa.Table.from_pylist(self._waiting, schema=SCHEMA))
        self._waiting, self._bytes = [], 0

    def _columns(self, row: Row) -> dict[str, Any]:
        if row.latents.ndim != 4 or row.embeddings.ndim != 2 or row.mask.shape != row.embeddings.shape[:1]:
            raise ValueError(
                f"the row {row.id} has latents {list(row.latents.shape)}, embeddings {list(row.embeddings.shape)} and "
                f"mask {list(row.mask.shape)}; they must be [C, F, h, w], [L, D] and [L]"
            )
        used = (row.embeddings != 0).any(1).nonzero()
        embeddings = row.embeddings[: int(used.max()) + 1 if len(used) else 1]
        return {
            "id": row.id,
            **_store(LATENT, row.latents, self.latents_dtype),
            **_store(EMBEDDING, embeddings, self.text_dtype),
            **_store(MASK, row.mask, torch.uint8),
            **({} if row.pooled is None else _store(POOLED, row.pooled, self.text_dtype)),
            "file_name": row.file_name,
            "caption": row.caption,
            "media_type": "video",
            **{name: getattr(row, name) for name in ("width", "height", "num_frames", "fps")},
            "duration_sec": row.num_frames / row.fps,
        }


class Group(NamedTuple):
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
            raise ValueError(f"row {place} of {self.path} has no {name}, though its index told of one; write it again")
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
    far as it can be told without reading its tensors. Raises ValueError for a missing, empty or damaged place.
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

    def read(self, group: int, columns: Sequence[str]) -> Group:
        """A row group from its file, those of these columns that it has."""
        file = int(self._file_of[group])
        with told(self.files[file]), _open(self.files[file]) as shard:
            there = [column for column in columns if column in shard.schema_arrow.names]
            table = shard.read_row_group(group - int(self._first_group[file]), columns=there).combine_chunks()
        first = int(self.group_first[group])
        return Group(self.files[file], first, first - int(self.file_first[file]), table)


class _Index(NamedTuple):
    groups: list[int]  # rows of each row group
    captions: pa.ChunkedArray
    shapes: list[tuple[int, ...] | None]
    states: np.ndarray


def _read_index(path: Path, needed: Sequence[str]) -> _Index:
    with told(path), _open(path) as shard:
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


@lru_cache
def known_dtype(name: str | None) -> torch.dtype | None:
    """The type that torch or numpy calls so, None where shards don't hold it."""
    short = str(name).removeprefix("torch.")
    if name is None or short in DTYPES:
        return DTYPES.get(short)
    try:
        kind = np.dtype(short)
    except (TypeError, ValueError, SyntaxError):
        return None
    return DTYPES.get(kind.name) if kind.isnative else None


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


def done_ids(folder: str | Path) -> set[str]:
    """The ids of all rows of the shards below a folder, none where there is no folder yet."""
    ids: set[str] = set()
    for path in sorted(Path(folder).rglob("*.parquet")):
        with told(path), _open(path) as shard:
            ids.update(shard.read(columns=["id"])["id"].to_pylist())
    return ids


def write_nulls(folder: str | Path, prompts: Mapping[str, tuple[Tensor, Tensor, Tensor | None]]) -> None:
    """nulls.safetensors: prompt -> embeddings [L, D], mask [L] and pooled [P] or None, of prompts without a clip."""
    tensors, names = {}, {}
    for i, (prompt, text) in enumerate(prompts.items()):
        names[str(i)] = prompt
        for field, tensor in zip(Text._fields, text, strict=True):
            if tensor is not None:
                tensors[f"{i}/{field}"] = tensor.detach().cpu().contiguous().clone()
    with atomically(Path(folder) / NULLS) as temporary:
        save_file(tensors, temporary, metadata=names)


def read_nulls(path: Path) -> dict[str, Text]:
    """What `write_nulls` wrote into this file, none where there is no file."""
    if not path.is_file():
        return {}
    try:
        with safe_open(path, "pt") as file:
            there, names = file.keys(), file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in there}
        return {
            prompt: Text(*(tensors.get(f"{i}/{field}") for field in Text._fields))  # type: ignore[arg-type]
            for i, prompt in names.items()
        }
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}); remove it and run launch/preprocess.py again") from error


def _store(name: str, tensor: Tensor, dtype: torch.dtype) -> dict[str, Any]:
    """The three columns of a tensor."""
    plain = tensor.detach().to("cpu", dtype).contiguous()
    values = (plain.flatten().view(torch.uint8).numpy().tobytes(), list(plain.shape), str(dtype).removeprefix("torch."))
    return dict(zip(tensor_columns(name), values, strict=True))


def _number(path: Path) -> int:
    number = path.stem.rsplit("-", 1)[1]
    return int(number) if number.isdigit() else -1


def _open(path: Path) -> pq.ParquetFile:
    return pq.ParquetFile(path, page_checksum_verification=True)


@contextlib.contextmanager
def told(path: Path) -> Iterator[None]:
    """Turns Arrow's errors about a file into a sentence."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        short = str(error).splitlines()[0].rstrip(".")
        raise ValueError(
            f"the shard {path} can't be read ({short}); it is torn or no parquet file. Remove it and run the command "
            "that wrote it again"
        ) from error
