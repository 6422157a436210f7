"""Writing shards: each appears whole, once it has its rows."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from dollar.data.shard_format import (
    DTYPES,
    EMBEDDING,
    FLOATS,
    LATENT,
    MASK,
    POOLED,
    SCHEMA,
    SCORES,
    StoredClip,
    columns_of,
)
from dollar.media import atomically

GROUP_BYTES = 4 * 2**20  # a row group is written once it holds this much, so that a row is read without many others


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

    def add(self, row: StoredClip) -> None:
        """Take a row; tensors may be on any device."""
        stored = self._columns(row)
        if self._shard is None:
            path = self._open.enter_context(atomically(self.folder / f"{self.part}-{self.number:05d}.parquet"))
            # Latents are noise to a compressor, and statistics would repeat whole tensors. Checksums show a damaged
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

    def _columns(self, row: StoredClip) -> dict[str, Any]:
        if row.latents.ndim != 4 or row.embeddings.ndim != 2 or row.mask.shape != row.embeddings.shape[:1]:
            raise ValueError(
                f"the row {row.id} has latents {list(row.latents.shape)}, embeddings {list(row.embeddings.shape)} and "
                f"mask {list(row.mask.shape)}; they must be [C, F, h, w], [L, D] and [L]"
            )
        used = (row.embeddings != 0).any(1).nonzero()
        embeddings = row.embeddings[: int(used.max()) + 1 if len(used) else 1]
        return {
            "id": row.id,
            **columns_of(LATENT, row.latents, self.latents_dtype),
            **columns_of(EMBEDDING, embeddings, self.text_dtype),
            **columns_of(MASK, row.mask, torch.uint8),
            **({} if row.pooled is None else columns_of(POOLED, row.pooled, self.text_dtype)),
            "file_name": row.file_name,
            "caption": row.caption,
            "media_type": "video",
            **{name: getattr(row, name) for name in ("width", "height", "num_frames", "fps")},
            "duration_sec": row.num_frames / row.fps,
            SCORES: None if row.scores is None else _json(row.scores),
        }


def _json(scores: Mapping[str, float]) -> str:
    """Scores as text; JSON has null where there is no number."""
    return json.dumps({name: float(value) if math.isfinite(value) else None for name, value in scores.items()})


def _number(path: Path) -> int:
    number = path.stem.rsplit("-", 1)[1]
    return int(number) if number.isdigit() else -1
