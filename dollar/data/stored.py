"""Training from shards: latents in a shuffled stream that can begin anywhere, and prompts that are encoded already."""

from __future__ import annotations

import json
import threading
import warnings
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from dollar.data.latents import Batch, Fit, Stride
from dollar.data.mixture import Mixture
from dollar.data.shards import EMBEDDING, LATENT, MASK, NULLS, POOLED, Group, Shards, Text, read_nulls, tensor_columns

C = TypeVar("C")
FINGERPRINT = "fingerprint.json"


class Captions(Sequence[str]):
    """The captions of these rows; strings are made one at a time, for a large set's would fill the memory."""

    def __init__(self, array: pa.ChunkedArray, rows: np.ndarray) -> None:
        self._array, self._rows = array, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self._array[int(self._rows[index])].as_py()


class Walk:
    """The place of every sample: each epoch visits all rows once, files in a new order, rows shuffled within blocks.

    rows_per_file: how many rows each file has; they are numbered file by file. A block is as many files as have
    `block_rows` rows together. Where a sample is follows from its number and the seed alone.
    """

    def __init__(self, rows_per_file: np.ndarray, seed: int, block_rows: int) -> None:
        self.rows_per_file, self.seed, self.block_rows = rows_per_file, seed, block_rows
        self.first = np.concatenate([[0], np.cumsum(rows_per_file)])
        self._epoch, self._block = lru_cache(2)(self._new_epoch), lru_cache(4)(self._new_block)

    def __call__(self, sample: int) -> int:
        """The row of a global sample index."""
        epoch, place = divmod(sample, int(self.first[-1]))
        starts = self._epoch(epoch).starts
        block = int(np.searchsorted(starts, place, "right")) - 1
        return int(self._block(epoch, block)[place - starts[block]])

    def _new_epoch(self, epoch: int) -> _Epoch:
        files = np.random.Generator(np.random.PCG64([self.seed, epoch])).permutation(len(self.rows_per_file))
        blocks: list[list[int]] = []
        room = 0
        for file in files.tolist():
            if room <= 0:
                blocks.append([])
                room = self.block_rows
            blocks[-1].append(file)
            room -= int(self.rows_per_file[file])
        counts = [int(self.rows_per_file[block].sum()) for block in blocks]
        return _Epoch(blocks, np.concatenate([[0], np.cumsum(counts[:-1], dtype=np.int64)]))

    def _new_block(self, epoch: int, block: int) -> np.ndarray:
        files = self._epoch(epoch).blocks[block]
        rows = np.concatenate([np.arange(self.first[file], self.first[file + 1]) for file in files])
        return np.random.Generator(np.random.PCG64([self.seed, epoch, block])).permutation(rows)


class _Epoch(NamedTuple):
    blocks: list[list[int]]  # files of each
    starts: np.ndarray  # the first place of each block


class Cache:
    """Row groups in memory, the latest used, of at most `room` bytes together, or one; threads may share it."""

    def __init__(self, shards: Shards, columns: Sequence[str], room: int) -> None:
        self.shards, self.columns, self.room, self.size = shards, columns, room, 0
        self._groups = OrderedDict[int, Group]()
        self._lock = threading.Lock()

    def __call__(self, number: int) -> Group:
        """The row group of this number, from its file where it isn't here."""
        with self._lock:
            if (found := self._groups.get(number)) is not None:
                self._groups.move_to_end(number)
                return found
        found = self.shards.read(number, self.columns)
        with self._lock:
            if number not in self._groups:
                self._groups[number] = found
                self.size += found.table.nbytes
            while self.size > self.room and len(self._groups) > 1:
                self.size -= self._groups.popitem(last=False)[1].table.nbytes
        return found

    def warm(self, number: int) -> None:
        """Read the row group, for a call that comes."""
        self(number)


class LatentShards:
    """Samples of shards by the door of LatentBatches: each epoch in a new order, the same on any number of processes.

    path: a folder of launch/preprocess.py (all of it or one bucket), or any folder of FastVideo's parquet files.
    shape: (C, F, h, w) of the teacher's latents; rows of other sizes are left out, and there must be one that fits.
    normalise: stored latents [B, C, F', h, w], float32, to the teacher's on its device.
    fingerprint: what must be the same where the folder has its own. cache_bytes: what row groups in memory may take;
    block_bytes: rows that are shuffled together, about this much.
    A thread reads ahead what `ahead` was told or, untold, what the last two calls let expect.
    """

    has_latents = True

    def __init__(
        self,
        path: str | Path,
        shape: Sequence[int],
        normalise: Callable[[Tensor], Tensor],
        seed: int,
        fingerprint: Mapping[str, Any] | None = None,
        cache_bytes: int = 2**30,
        block_bytes: int = 2**29,
    ) -> None:
        self.path, self.normalise = Path(path), normalise
        check_fingerprint(self.path, fingerprint or {})
        self._shards = Shards([self.path], tensor_columns(LATENT))
        self._rows = self._rows_of(tuple(shape))
        self.captions: Sequence[str] = Captions(self._shards.captions, self._rows)
        per_file = np.histogram(self._rows, self._shards.file_first)[0]
        row_bytes = 4 * int(np.prod(shape))
        largest = row_bytes * int(np.diff(self._shards.group_first).max())
        if 2 * largest > cache_bytes:
            warnings.warn(
                f"{self.path} has row groups of {largest / 2**30:.3f} GiB, of which cache_bytes={cache_bytes} can't "
                "hold two, so one may be read again for each sample. Raise data.cache_bytes",
                stacklevel=2,
            )
        self._walk = Walk(per_file[per_file > 0], seed, max(1, block_bytes // row_bytes))
        self._cache = Cache(self._shards, tensor_columns(LATENT), cache_bytes)
        self._most_ahead = max(1, cache_bytes // 2 // row_bytes)  # rows, so that they aren't pushed out before use
        self._pool: ThreadPoolExecutor | None = ThreadPoolExecutor(1, thread_name_prefix="shards")
        self._coming: dict[int, Future] = {}
        self._guess: Stride | None = Stride()

    @classmethod
    def fitted(cls, fit: Fit, path: str | Path, **settings: Any) -> LatentShards:
        """The shards for a teacher and a run."""
        return cls(path, fit.shape, fit.normalise, fit.seed, fit.fingerprint(), **settings)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def report(self) -> str:
        """How much there is, and how much of it fits."""
        left = len(self._shards) - len(self)
        others = f"; {left} rows of other latent shapes are left out" if left else ""
        return f"{len(self)} stored clips in {len(self._shards.files)} shards of {self.path}{others}"

    def batch(self, samples: Sequence[int], latents: bool = True) -> Batch:
        """The batch of these global sample indices; without latents it costs nothing but the prompts."""
        places = [self._walk(i) for i in samples]
        found = None
        if latents:
            rows = [int(self._rows[place]) for place in places]
            if self._guess is not None:
                self._ask(self._guess(samples))
            found = torch.cat([self.normalise(self._latents(row)[None]) for row in rows])
        return Batch([self.captions[place] for place in places], found, [(place, 0) for place in places])

    def ahead(self, samples: Sequence[int]) -> None:
        """Read what will be asked for soon in the background; a caller that tells ends the guessing."""
        self._guess = None
        self._ask(samples)

    def close(self) -> None:
        """End the reading ahead; samples can still be had."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        self._pool, self._coming = None, {}

    def _latents(self, row: int) -> Tensor:
        number = self._shards.group_of(row)
        if (future := self._coming.pop(number, None)) is not None:
            future.result()  # raises what went wrong in the thread
        latents = self._cache(number).tensor(row, LATENT)
        assert latents is not None  # rows without latents have no shape
        return latents.float()

    def _ask(self, samples: Sequence[int]) -> None:
        if self._pool is None:
            return
        for number in [number for number, future in self._coming.items() if future.done()]:
            del self._coming[number]
        rows = [int(self._rows[self._walk(i)]) for i in samples[: self._most_ahead]]
        numbers = dict.fromkeys(self._shards.group_of(row) for row in rows)
        # The cache, not this object, goes along: the thread must not keep alive what ends it.
        self._coming |= {n: self._pool.submit(self._cache.warm, n) for n in numbers if n not in self._coming}

    def _rows_of(self, shape: tuple[int, ...]) -> np.ndarray:
        """The rows that become latents of this shape; what is stored may lack the frames that a family pads with."""
        shapes = self._shards.shapes
        fitting = [i for i, stored in enumerate(shapes) if self._becomes(stored) == shape]
        if not fitting:
            counts = Counter(self._shards.shape_of.tolist())
            there = [f"{counts[i]} of {list(s) if s else 'no latents'}" for i, s in enumerate(shapes)]
            raise ValueError(
                f"{self.path} has no rows whose latents [C, F, h, w] are {list(shape)} as this teacher's; it has "
                f"{', '.join(there) or 'no rows at all'}. Make the teacher's frames, height and width those of the "
                "shards, or run launch/preprocess.py with buckets=[[frames,height,width]]"
            )
        return np.flatnonzero(np.isin(self._shards.shape_of, fitting))

    def _becomes(self, stored: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if stored is None or len(stored) != 4:
            return None
        try:
            return tuple(self.normalise(torch.zeros(1, *stored)).shape[1:])
        except (RuntimeError, ValueError):  # another autoencoder's channels
            return None


def mixture_of(
    fit: Fit, paths: Sequence[str | Path], weights: Sequence[float] | None = None, **settings: Any
) -> Mixture:
    """Several folders of shards for a teacher and a run, mixed."""
    return Mixture([LatentShards.fitted(fit, path, **settings) for path in paths], weights, fit.seed)


class StoredText(Generic[C]):
    """Prompts encoded beforehand, by the door of a text encoder: those of the shards, and the empty and negative one.

    paths: folders of shards; length: tokens a prompt is padded to with zeros. condition: makes what is returned of
    embeddings [B, L, D] float32, mask [B, L] and pooled [B, P] or None on the device. cache_bytes: row groups kept.
    """

    def __init__(
        self,
        paths: Sequence[str | Path],
        length: int,
        condition: Callable[..., C],
        device: torch.device | str = "cpu",
        fingerprint: Mapping[str, Any] | None = None,
        cache_bytes: int = 2**28,
    ) -> None:
        self.paths, self.length, self.condition = [Path(path) for path in paths], length, condition
        self.device = torch.device(device)
        self._nulls: dict[str, Text] = {}
        for path in self.paths:
            check_fingerprint(path, fingerprint or {})
            self._nulls |= read_nulls(beside(path, NULLS))
        self._shards = Shards(self.paths, tensor_columns(EMBEDDING))
        self._cache = Cache(
            self._shards, [c for name in (EMBEDDING, MASK, POOLED) for c in tensor_columns(name)], cache_bytes
        )
        # Hashes in order stand for an index by caption, which would hold every caption as a string.
        hashes = np.fromiter((self._hash(c.as_py()) for c in self._shards.captions), np.int64, len(self._shards))
        self._order = np.argsort(hashes, kind="stable")
        self._hashes = hashes[self._order]

    def __call__(self, prompts: Sequence[str]) -> C:
        """The condition of B prompts; raises ValueError for one that is not stored."""
        known = {prompt: self._padded(self._find(prompt), prompt) for prompt in dict.fromkeys(prompts)}
        texts = [known[prompt] for prompt in prompts]
        pooled = [text.pooled for text in texts if text.pooled is not None]
        if pooled and len(pooled) < len(texts):
            raise ValueError(
                f"some of {', '.join(map(str, self.paths))} have pooled embeddings and some don't; run "
                "launch/preprocess.py on all of them with this teacher"
            )
        return self.condition(
            torch.stack([text.embeddings for text in texts]).to(self.device),
            torch.stack([text.mask for text in texts]).to(self.device),
            torch.stack(pooled).to(self.device) if pooled else None,
        )

    def unknown(self, prompt: str) -> list[str]:
        """The words that no token stands for: none, for what is stored has been encoded."""
        return []

    @staticmethod
    def _hash(prompt: str) -> int:
        return hash(prompt)

    def _find(self, prompt: str) -> Text:
        if (found := self._nulls.get(prompt)) is not None:
            return found
        wanted = self._hash(prompt)
        place = int(np.searchsorted(self._hashes, wanted))
        while place < len(self._hashes) and self._hashes[place] == wanted:
            row = int(self._order[place])
            if self._shards.captions[row].as_py() == prompt:
                return self._read(row)
            place += 1
        where = ", ".join(map(str, self.paths))
        raise ValueError(
            f"the prompt {prompt[:60]!r} is not stored in {where}, neither as a caption nor in {NULLS} as the empty or "
            "the negative prompt. Give it to launch/preprocess.py, or load the text encoder with "
            "teacher.text=online"
        )

    def _read(self, row: int) -> Text:
        group = self._cache(self._shards.group_of(row))
        embeddings, mask = group.tensor(row, EMBEDDING), group.tensor(row, MASK)
        if embeddings is None:
            raise ValueError(f"a row of {group.path} has no text embedding; run launch/preprocess.py again without it")
        embeddings = embeddings.reshape(-1, embeddings.shape[-1])  # some writers leave a leading 1
        if mask is None:  # FastVideo keeps none: what is stored are tokens, and zeros behind them if any
            used = (embeddings != 0).any(1).nonzero()
            mask = (torch.arange(len(embeddings)) <= (used.max() if len(used) else -1)).to(torch.uint8)
        return Text(embeddings, mask, group.tensor(row, POOLED))

    def _padded(self, text: Text, prompt: str) -> Text:
        """The text in float32, mask int64, with exactly `length` tokens."""
        embeddings, mask = text.embeddings.float(), text.mask.long()
        if (embeddings[self.length :] != 0).any() or mask[self.length :].any():
            raise ValueError(
                f"the prompt {prompt[:60]!r} is stored with {len(embeddings)} tokens, and this teacher reads "
                f"teacher.text_length={self.length}; give the length that it was stored with"
            )
        embeddings, mask = embeddings[: self.length], mask[: self.length]
        return Text(
            torch.nn.functional.pad(embeddings, (0, 0, 0, self.length - len(embeddings))),
            torch.nn.functional.pad(mask, (0, self.length - len(mask))),
            None if text.pooled is None else text.pooled.float(),
        )


def beside(path: Path, name: str) -> Path:
    """A file of launch/preprocess.py's folder, which `path` is or is a bucket of."""
    return path / name if (path / name).is_file() else path.parent / name


def check_fingerprint(path: Path, expected: Mapping[str, Any]) -> None:
    """Raise ValueError where the folder says that it was made with something else than this teacher."""
    file = beside(path, FINGERPRINT)
    if not file.is_file():
        return
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is damaged ({error}); run launch/preprocess.py again") from error
    mine = json.loads(json.dumps(dict(expected)))  # tuples are lists there
    differing = [
        f"{key} {stored[key]} there, {mine[key]} here" for key in mine if stored.get(key, mine[key]) != mine[key]
    ]
    if differing:
        raise ValueError(
            f"{path} was made with another teacher: {'; '.join(differing)}. Train with the teacher that it was made "
            "with, or run launch/preprocess.py with this one and another out=FOLDER"
        )
