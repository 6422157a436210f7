"""Training from shards: latents in a shuffled stream that can begin anywhere, and prompts that are encoded already."""

from __future__ import annotations

import hashlib
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import pyarrow as pa
import torch
from cachetools import LRUCache
from torch import Tensor

from dollar.data.fingerprint import check_fingerprint, companion, nulls_of
from dollar.data.latents import Batch, Fit, Shuffled, hash_of
from dollar.data.mixture import Mixture, shares
from dollar.data.nulls import NULLS, read_nulls
from dollar.data.shard_format import EMBEDDING, LATENT, MASK, POOLED, Text, tensor_columns
from dollar.data.shards import SOUND, RowGroup, Shards, listed, row_ids
from dollar.data.walk import Walk

C = TypeVar("C")
READERS = 2  # threads that read ahead: one waits for the disk while the other copies


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


class Cache:
    """Row groups in memory, the latest used, of at most `room` bytes together, or one; threads may share it."""

    def __init__(self, shards: Shards, columns: Sequence[str], room: int) -> None:
        self.shards, self.columns = shards, columns
        most = max(1, room)
        # A group larger than the room counts as all of it, so that it stays, alone.
        self._groups: LRUCache[int, RowGroup] = LRUCache(most, getsizeof=lambda group: min(group.table.nbytes, most))
        self._lock = threading.Lock()

    def __call__(self, number: int) -> RowGroup:
        """The row group of this number, from its file where it isn't here."""
        with self._lock:
            found = self._groups.get(number)
        if found is None:
            found = self.shards.read(number, self.columns)  # outside the lock, so that several are read at once
            with self._lock:
                found = self._groups.setdefault(number, found)
        return found

    def warm(self, number: int) -> None:
        """Read the row group, for a call that comes."""
        self(number)


class LatentShards:
    """Samples of shards, as LatentBatches gives them: each epoch in a new order, the same on any number of processes.

    path: a folder of launch/preprocess.py (all of it or one bucket), or any folder of FastVideo's parquet files.
    shape: (C, F, h, w) of the teacher's latents; rows of other sizes, or that lack caption or latents, are left out,
    and there must be one that fits.
    normalise: stored latents [B, C, F', h, w], float32, to the teacher's on its device.
    fingerprint: what must be the same where the folder has its own. cache_bytes: what row groups in memory may take;
    block_bytes: rows that are shuffled together, about this much. ids: those of the rows that are the samples, in this
    order, which are shuffled as LatentBatches shuffles clips; None for all rows.
    Threads read ahead what `ahead` names. Latents that are not finite raise ValueError when they are read.
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
        ids: Sequence[str] | None = None,
    ) -> None:
        for key, given in (("cache_bytes", cache_bytes), ("block_bytes", block_bytes)):
            if given < 0:
                raise ValueError(f"data.{key} is {given}; it is a number of bytes, 0 or more")
        self.path, self.normalise = listed(path)[0], normalise
        check_fingerprint(self.path, fingerprint or {})
        self._shards = Shards([self.path], tensor_columns(LATENT))
        self._rows = self._rows_of(tuple(shape))
        if ids is not None:
            self._rows = self._chosen(ids)
        self.captions: Sequence[str] = Captions(self._shards.captions, self._rows)
        self._row_bytes = row_bytes = 4 * int(np.prod(shape))
        largest = row_bytes * int(np.diff(self._shards.group_first).max())
        if 2 * largest > cache_bytes:
            warnings.warn(
                f"{self.path} has row groups of {largest / 2**30:.3f} GiB, of which cache_bytes={cache_bytes} can't "
                "hold two, so one may be read again for each sample. Raise data.cache_bytes",
                stacklevel=2,
            )
        per_file = np.histogram(self._rows, self._shards.file_first)[0]
        by_file = Walk(per_file[per_file > 0], seed, max(1, block_bytes // row_bytes))
        self._walk: Callable[[int], int] = by_file if ids is None else Shuffled(len(self._rows), seed)
        self._cache = Cache(self._shards, tensor_columns(LATENT), cache_bytes)
        self._most_ahead = cache_bytes // 2  # so that they aren't pushed out before use
        self._pool: ThreadPoolExecutor | None = ThreadPoolExecutor(READERS, thread_name_prefix="shards")
        self._coming: dict[int, Future[None]] = {}

    @classmethod
    def fitted(cls, fit: Fit, path: str | Path, cache_bytes: int = 2**30, block_bytes: int = 2**29) -> LatentShards:
        """The shards for a teacher and a run."""
        return cls(path, fit.shape, fit.normalise, fit.seed, fit.fingerprint(), cache_bytes, block_bytes)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def report(self) -> str:
        """How much there is, and how much of it fits."""
        others = int((self._shards.state_of == SOUND).sum()) - len(self)
        left = [f"{others} of other latent shapes"] * bool(others) + self._shards.faults("latents")
        left_out = f"; rows that are left out: {', '.join(left)}" if left else ""
        return f"{len(self)} stored clips in {len(self._shards.files)} shards of {self.path}{left_out}"

    def identity(self) -> dict[str, Any]:
        """How many clips and files there are, and a hash of the files' names and of which rows are used."""
        names = [str(file.relative_to(self.path)) for file in self._shards.files if file != self.path]
        firsts = [str(first) for first in self._shards.file_first]
        used = hashlib.sha256(self._rows.tobytes()).hexdigest()
        return {"clips": len(self), "files": len(self._shards.files), "rows": hash_of([*names, *firsts, used])}

    def batch(self, samples: Sequence[int], latents: bool = True) -> Batch:
        """The batch of these global sample indices; without latents it costs nothing but the prompts."""
        places = [self._walk(i) for i in samples]
        found = None
        if latents:
            rows = [int(self._rows[place]) for place in places]
            found = torch.cat([self.normalise(self._latents(row)[None]) for row in rows])
        return Batch([self.captions[place] for place in places], found, [(place, 0) for place in places])

    def ahead(self, samples: Sequence[int]) -> None:
        """Read what will be requested soon in the background, in this order, as much as half the cache holds."""
        if self._pool is None:
            return
        for number in [number for number, future in self._coming.items() if future.done()]:
            del self._coming[number]
        room = self._most_ahead
        for number in dict.fromkeys(self._shards.group_of(int(self._rows[self._walk(i)])) for i in samples):
            if number not in self._coming:
                # The cache, not this object, goes along: the thread must not keep alive what ends it.
                self._coming[number] = self._pool.submit(self._cache.warm, number)
            room -= self._row_bytes * int(self._shards.group_first[number + 1] - self._shards.group_first[number])
            if room <= 0:
                return

    def close(self) -> None:
        """End the reading ahead; samples can still be had."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        self._pool, self._coming = None, {}

    def _latents(self, row: int) -> Tensor:
        number = self._shards.group_of(row)
        if (future := self._coming.pop(number, None)) is not None:
            future.result()  # raises what went wrong in the thread
        return self._cache(number).finite(row, LATENT)

    def _rows_of(self, shape: tuple[int, ...]) -> np.ndarray:
        """The rows that become latents of this shape; what is stored may lack the frames that a family pads with."""
        shapes, sound = self._shards.shapes, self._shards.state_of == SOUND
        fitting = [i for i, stored in enumerate(shapes) if self._becomes(stored) == shape]
        rows = np.flatnonzero(np.isin(self._shards.shape_of, fitting) & sound)
        if len(rows) == 0:
            counts = Counter(self._shards.shape_of[sound].tolist())
            there = [f"{counts[i]} of {list(s or ())}" for i, s in enumerate(shapes) if counts[i]]
            there += self._shards.faults("latents")
            raise ValueError(
                f"{self.path} has no rows whose latents [C, F, h, w] are {list(shape)} as this teacher's; it has "
                f"{', '.join(there) or 'no rows at all'}. Make the teacher's frames, height and width those of the "
                "shards, or run launch/preprocess.py with buckets=[[frames,height,width]]"
            )
        return rows

    def _chosen(self, ids: Sequence[str]) -> np.ndarray:
        """The rows of these ids among those that fit, one for each."""
        found = row_ids(self._shards.files)
        fitting = {found[row]: int(row) for row in self._rows}
        if missing := [id for id in ids if id not in fitting]:
            others = set(found) & set(missing)
            why = f"{len(others)} of them with latents of other sizes than this teacher's" if others else "none of them"
            raise ValueError(
                f"{len(missing)} of the {len(ids)} ids that are asked for are not among the usable rows of {self.path} "
                f"({why} in its shards), the first of them {missing[0]}. Write the list again from the shards that "
                "there are"
            )
        return np.array([fitting[id] for id in ids], dtype=np.int64)

    def _becomes(self, stored: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if stored is None or len(stored) != 4 or not all(type(n) is int and n > 0 for n in stored):
            return None
        try:
            return tuple(self.normalise(torch.zeros(1, *stored)).shape[1:])
        except (RuntimeError, ValueError):  # another autoencoder's channels
            return None


def mixture_of(
    fit: Fit,
    paths: str | Path | Sequence[str | Path],
    weights: Sequence[float] | None = None,
    cache_bytes: int = 2**30,
    block_bytes: int = 2**29,
) -> Mixture:
    """Several folders of shards for a teacher and a run, mixed."""
    places = listed(paths)
    if weights is not None:
        shares(weights, len(places))  # a mistake in them is reported before anything is read
    sources = [LatentShards.fitted(fit, path, cache_bytes, block_bytes) for path in places]
    return Mixture(sources, weights, fit.seed)


class StoredText(Generic[C]):
    """Prompts encoded beforehand, called as a text encoder is: those of the shards, and the empty and negative one.

    paths: folders of shards; length: tokens a prompt is padded to with zeros. condition: makes what is returned of
    embeddings [B, L, D] float32, mask [B, L] and pooled [B, P] or None on the device. cache_bytes: row groups kept.
    nulls: nulls.safetensors, or its folder, of the same text encoder, where the shards themselves have none.
    """

    def __init__(
        self,
        paths: str | Path | Sequence[str | Path],
        length: int,
        condition: Callable[..., C],
        device: torch.device | str = "cpu",
        fingerprint: Mapping[str, Any] | None = None,
        cache_bytes: int = 2**28,
        nulls: str | Path | None = None,
    ) -> None:
        self.paths, self.length, self.condition = listed(paths), length, condition
        self.device = torch.device(device)
        self._nulls: dict[str, Text] = {}
        for path in self.paths:
            check_fingerprint(path, fingerprint or {})
            self._nulls |= read_nulls(companion(path, NULLS))
        if nulls is not None:
            self._nulls |= nulls_of(Path(str(nulls)), fingerprint or {})
        self._shards = Shards(self.paths, tensor_columns(EMBEDDING))
        self._cache = Cache(
            self._shards, [c for name in (EMBEDDING, MASK, POOLED) for c in tensor_columns(name)], cache_bytes
        )
        # Hashes in order stand for an index by caption, which would hold every caption as a string.
        hashes = np.fromiter((self._hash(c.as_py()) for c in self._shards.captions), np.int64, len(self._shards))
        sound = np.flatnonzero(self._shards.state_of == SOUND)
        self._order = sound[np.argsort(hashes[sound], kind="stable")]
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

    def check(self, prompts: Iterable[str]) -> None:
        """Raise ValueError where one of these prompts is not stored, by its hash, so that nothing need be read."""
        missing, first = 0, ""
        for prompt in prompts:
            place = int(np.searchsorted(self._hashes, wanted := self._hash(prompt)))
            if prompt not in self._nulls and (place == len(self._hashes) or self._hashes[place] != wanted):
                missing, first = missing + 1, first or prompt
        if missing:
            raise ValueError(
                f"{missing} captions have no text embedding in {self._where()}, the first of them {first[:60]!r}. Run "
                "launch/preprocess.py on these clips again, or load the text encoder with teacher.text=online"
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
        raise ValueError(
            f"the prompt {prompt[:60]!r} is not stored in {self._where()}, neither as a caption nor in {NULLS} as the "
            "empty or the negative prompt. If guidance needs it, give data.nulls=FOLDER, which any run of "
            "launch/preprocess.py with this teacher makes, of one clip too; else give it to launch/preprocess.py, or "
            "load the text encoder with teacher.text=online"
        )

    def _where(self) -> str:
        faults = self._shards.faults("a text embedding")
        return ", ".join(map(str, self.paths)) + (f" (rows that are left out: {', '.join(faults)})" if faults else "")

    def _read(self, row: int) -> Text:
        group = self._cache(self._shards.group_of(row))
        embeddings, mask = group.finite(row, EMBEDDING), group.tensor(row, MASK)
        if embeddings.ndim < 2:
            raise ValueError(
                f"row {group.start + row - group.first} of {group.path} has a text embedding {list(embeddings.shape)}; "
                "it must be [L, D]. Remove the row, or run launch/preprocess.py on its clip"
            )
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
