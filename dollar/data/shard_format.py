"""What a shard is: a parquet file with one captioned clip a row, in FastVideo's columns.

A tensor is three columns, `<name>_bytes`, `_shape` and `_dtype`. `vae_latent` is what the autoencoder gave, not yet
normalised. FastVideo reads every tensor as float32; the columns of MASK and POOLED are ours and it passes them over, as
it does SCORES, a JSON object of what a reward gives a generated clip, by name, null where that is no number.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

LATENT, EMBEDDING, MASK, POOLED = "vae_latent", "text_embedding", "text_attention_mask", "text_pooled"
SCORES = "scores"
DTYPES = {str(d).removeprefix("torch."): d for d in (torch.float32, torch.float16, torch.bfloat16, torch.uint8)}
FLOATS = [name for name, dtype in DTYPES.items() if dtype.is_floating_point]


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
        (SCORES, pa.string()),
    ]
)


class StoredClip(NamedTuple):
    """A captioned clip: latents [C, F, h, w] un-normalised, embeddings [L, D], mask [L], pooled [P] or None.

    width, height, num_frames: of the clip that was encoded, in pixels and frames; fps: frames a second; scores: a
    reward's values of a generated clip, by name.
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
    scores: Mapping[str, float] | None = None


class Text(NamedTuple):
    """A stored prompt: embeddings [L, D], mask [L] and pooled [P] or None."""

    embeddings: Tensor
    mask: Tensor
    pooled: Tensor | None


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


def columns_of(name: str, tensor: Tensor, dtype: torch.dtype) -> dict[str, Any]:
    """The three columns of a tensor."""
    plain = tensor.detach().to("cpu", dtype).contiguous()
    values = (plain.flatten().view(torch.uint8).numpy().tobytes(), list(plain.shape), str(dtype).removeprefix("torch."))
    return dict(zip(tensor_columns(name), values, strict=True))


def open_shard(path: Path) -> pq.ParquetFile:
    """A shard whose pages are checked as they are read."""
    return pq.ParquetFile(path, page_checksum_verification=True)


@contextlib.contextmanager
def sentences_about(path: Path) -> Iterator[None]:
    """Turns Arrow's errors about a file into a sentence."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        short = str(error).splitlines()[0].rstrip(".")
        raise ValueError(
            f"the shard {path} can't be read ({short}); it is torn or no parquet file. Remove it and run the command "
            "that wrote it again"
        ) from error
