"""Batches for training: which clips a cycle sees, as latents with their prompts."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

Encode = Callable[[Tensor], Tensor]  # videos [B, T, C, H, W] in [0, 1] -> latents [B, C, F, h, w]

WINDOWS = 8  # how many places a long clip's window may start at; few, so that each latent can be kept


class Clips(Protocol):
    """A set of captioned clips."""

    captions: Sequence[str]

    def __len__(self) -> int: ...

    def clip(self, index: int, u: float) -> tuple[np.ndarray, str]:
        """The clip as uint8 [T, H, W, 3] and its caption; u in [0, 1) chooses the window of a longer clip."""
        ...


class Batch(NamedTuple):
    """Prompts, latents [B, C, F, h, w] where they were requested, and a key for each clip, the same on every visit."""

    prompts: list[str]
    latents: Tensor | None
    keys: list[tuple[int, int]]


class Samples(Protocol):
    """What training takes its samples from: which one sample i is follows from i alone, on any number of processes.

    has_latents: False for prompts alone.
    """

    has_latents: bool

    @property
    def captions(self) -> Sequence[str]:
        """Those of all there is; the first number of a key is a place in it."""
        ...

    def __len__(self) -> int:
        """How many different samples there are, an epoch."""
        ...

    def batch(self, samples: Sequence[int], latents: bool = True) -> Batch:
        """The batch of these global sample indices."""
        ...

    def ahead(self, samples: Sequence[int]) -> None:
        """The latents of these will be requested soon, in this order; for a source that can use the time."""
        ...

    def identity(self) -> dict[str, Any]:
        """Plain values that differ where a sample's number may lead to another sample."""
        ...


class Fit(NamedTuple):
    """What only the teacher and the run know, so that data can fit them.

    normalise: latents [B, C, F, h, w] as the autoencoder gives them to the teacher's. shape: (C, F, h, w) of one clip.
    fingerprint: gives the values that stored latents must agree with.
    """

    encode: Encode
    normalise: Callable[[Tensor], Tensor]
    shape: tuple[int, ...]
    fingerprint: Callable[[], Mapping[str, Any]]
    seed: int


def check_identity(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise ValueError where the data is not what a run was begun on, by what `Samples.identity` gave then and gives.

    A state of a time before there was any, {}, is taken as it is.
    """
    keys = [key for key in {**before, **now} if before and before.get(key) != now.get(key)]
    differing = [f"{key} {before.get(key)} then, {now.get(key)} now" for key in keys]
    if differing:
        raise ValueError(
            f"this run was begun on other data ({'; '.join(differing)}), and its samples would not be the next ones. "
            "Put the data back as it was, or start a new run with run=NAME; init=FOLDER gives it a finished student's "
            "weights"
        )


def hash_of(texts: Iterable[str]) -> str:
    """A short hash of texts in their order."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.encode("utf-8", "surrogatepass") + b"\0")
    return digest.hexdigest()[:16]


def epoch_order(count: int, seed: int, epoch: int) -> Tensor:
    """The order of an epoch: a permutation [count]."""
    return torch.randperm(count, generator=torch.Generator().manual_seed((seed << 20) + epoch))


class Shuffled:
    """The place of a global sample index among `count`, each of which comes once an epoch."""

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.seed = count, seed
        self._order: tuple[int, Tensor] = (-1, torch.empty(0))

    def __call__(self, sample: int) -> int:
        epoch, place = divmod(sample, self.count)
        if self._order[0] != epoch:
            self._order = (epoch, epoch_order(self.count, self.seed, epoch))
        return int(self._order[1][place])


class LatentBatches:
    """Clips as latents, shuffled anew each epoch by the seed; sample i is the same clip on any number of processes.

    cache: how many latents are kept in memory, so that a small data set is encoded once.
    """

    has_latents = True

    def __init__(self, clips: Clips, encode: Encode, seed: int, cache: int = 4096) -> None:
        if len(clips) == 0:
            raise ValueError("there is not one clip to train on; check data.path and the captions beside the clips")
        self.clips = clips
        self.encode = encode
        self.seed = seed
        self.cache = cache
        self._latents: dict[tuple[int, int], Tensor] = {}
        self._stand_ins: dict[tuple[int, int], str] = {}  # captions of clips that took a broken one's place
        self._place = Shuffled(len(clips), seed)

    @classmethod
    def fitted(cls, fit: Fit, clips: Clips, cache: int) -> LatentBatches:
        """The clips for a teacher and a run."""
        return cls(clips, fit.encode, fit.seed, cache)

    def __len__(self) -> int:
        return len(self.clips)

    @property
    def captions(self) -> Sequence[str]:
        """Each clip's caption."""
        return self.clips.captions

    @property
    def report(self) -> Any:
        """What the clips report of themselves, or None."""
        return getattr(self.clips, "report", None)

    def ahead(self, samples: Sequence[int]) -> None:
        """Does nothing: clips are encoded on the device that would be waited for."""

    def identity(self) -> dict[str, Any]:
        """How many clips there are, and a hash of their captions."""
        return {"clips": len(self), "captions": hash_of(self.captions)}

    def batch(self, samples: Sequence[int], latents: bool = True) -> Batch:
        """The batch of these global sample indices; without latents it costs nothing but the prompts."""
        keys = [self._key(i) for i in samples]
        encoded = self._encoded(keys) if latents else None
        prompts = [self._stand_ins.get(key, self.clips.captions[key[0]]) for key in keys]
        return Batch(prompts, encoded, keys)

    def _key(self, sample: int) -> tuple[int, int]:
        """(clip, window) of a global sample index."""
        epoch, place = divmod(sample, len(self.clips))
        window = (epoch * 5 + place) % WINDOWS if getattr(self.clips, "windowed", True) else 0
        return self._place(sample), window

    def _encoded(self, keys: list[tuple[int, int]]) -> Tensor:
        missing = [key for key in dict.fromkeys(keys) if key not in self._latents]
        fresh = {}
        if missing:
            clips = [self.clips.clip(index, (window + 0.5) / WINDOWS) for index, window in missing]
            self._stand_ins |= {
                key: caption
                for key, (_, caption) in zip(missing, clips, strict=True)
                if caption != self.clips.captions[key[0]]
            }
            pixels = (
                torch.from_numpy(np.stack([video for video, _ in clips])).permute(0, 1, 4, 2, 3).float() / 255
            )  # [B, T, C, H, W]
            fresh = dict(zip(missing, self.encode(pixels), strict=True))
        encoded = torch.stack([fresh[key] if key in fresh else self._latents[key] for key in keys])
        room = self.cache - len(self._latents)
        self._latents.update(list(fresh.items())[: max(room, 0)])
        return encoded
