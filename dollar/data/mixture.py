"""Several sources of samples in fixed shares."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from dollar.data.latents import Batch, Fit, Samples

BLOCK = 1000  # samples in which each source has its exact share


class Joined(Sequence[str]):
    """Captions of several sources, one after another, without a copy."""

    def __init__(self, parts: Sequence[Sequence[str]]) -> None:
        self._parts = parts
        self.first = np.concatenate([[0], np.cumsum([len(part) for part in parts], dtype=np.int64)])

    def __len__(self) -> int:
        return int(self.first[-1])

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        part = int(np.searchsorted(self.first, index, "right")) - 1
        return self._parts[part][index - int(self.first[part])]


class Mixture:
    """Samples of several sources: of every 1,000 each gives its exact share, in an order drawn by the seed.

    weights: each source's share, in any unit; by the sources' sizes if None. The samples of a source are its own 0, 1,
    2, ..., so its epochs are whole, and sample i of the mixture follows from i alone.
    """

    def __init__(self, sources: Sequence[Samples], weights: Sequence[float] | None, seed: int) -> None:
        weights = [len(source) for source in sources] if weights is None else weights
        self.sources, self.seed = list(sources), seed
        self.counts = shares(weights, len(sources))
        self.captions = Joined([source.captions for source in sources])
        self.has_latents = all(source.has_latents for source in sources)
        self._block = lru_cache(4)(self._new_block)

    @classmethod
    def fitted(
        cls, fit: Fit, sources: Sequence[Callable[[Fit], Samples]], weights: Sequence[float] | None = None
    ) -> Mixture:
        """The sources for a teacher and a run, mixed."""
        return cls([source(fit) for source in sources], weights, fit.seed)

    def __len__(self) -> int:
        return sum(len(source) for source in self.sources)

    @property
    def report(self) -> str:
        """Each source's share and what it reports."""
        reports = [str(getattr(source, "report", None) or f"{len(source)} samples") for source in self.sources]
        return "\n".join(f"{count / BLOCK:.1%}: {text}" for count, text in zip(self.counts, reports, strict=True))

    def batch(self, samples: Sequence[int], latents: bool = True) -> Batch:
        """The batch of these global sample indices, in their order."""
        prompts, keys = [""] * len(samples), [(0, 0)] * len(samples)
        rows: dict[int, torch.Tensor] = {}
        for number, places in self._by_source(samples).items():
            batch = self.sources[number].batch([position for _, position in places], latents)
            first = int(self.captions.first[number])
            for row, (place, _) in enumerate(places):
                clip, window = batch.keys[row]
                prompts[place], keys[place] = batch.prompts[row], (first + clip, window)
                if batch.latents is not None:
                    rows[place] = batch.latents[row]
        return Batch(prompts, torch.stack([rows[i] for i in range(len(samples))]) if latents else None, keys)

    def ahead(self, samples: Sequence[int]) -> None:
        """Announce to each source which of its own samples come soon."""
        for number, places in self._by_source(samples).items():
            self.sources[number].ahead([position for _, position in places])

    def identity(self) -> dict[str, Any]:
        """Each source's own, and the shares."""
        own = {f"source {i}": source.identity() for i, source in enumerate(self.sources, 1)}
        return {"shares": self.counts, **own}

    def place(self, sample: int) -> tuple[int, int]:
        """(source, its own sample index) of a global sample index."""
        block, place = divmod(sample, BLOCK)
        order = self._block(block)
        source = int(order[place])
        return source, block * self.counts[source] + int((order[:place] == source).sum())

    def _by_source(self, samples: Sequence[int]) -> dict[int, list[tuple[int, int]]]:
        """Source -> (place in the batch, the source's own sample) of its samples."""
        found: dict[int, list[tuple[int, int]]] = {}
        for i, sample in enumerate(samples):
            source, position = self.place(sample)
            found.setdefault(source, []).append((i, position))
        return found

    def _new_block(self, block: int) -> np.ndarray:
        order = np.repeat(np.arange(len(self.counts)), self.counts)
        return np.random.Generator(np.random.PCG64([self.seed, block])).permutation(order)


def shares(weights: Sequence[float], sources: int) -> list[int]:
    """How many of 1,000 samples each source gives, by largest remainder; ValueError for weights that name no shares."""
    if isinstance(weights, (int, float, str)) or any(isinstance(w, (bool, str)) or w is None for w in weights):
        raise ValueError(f"the weights are {weights!r}; give a list of numbers, one for each source, as [1,3]")
    if sources == 0 or len(weights) != sources:
        raise ValueError(f"there are {len(weights)} weights for {sources} sources; give each source one")
    if not all(0 < weight < float("inf") for weight in weights):
        raise ValueError(f"the weights {list(weights)} must be positive numbers; leave a source of weight 0 out")
    exact = BLOCK * np.asarray(weights, dtype=np.float64) / sum(weights)
    counts = np.floor(exact).astype(int)
    largest = np.argsort(counts - exact, kind="stable")[: BLOCK - counts.sum()]
    counts[largest] += 1
    if not counts.all():
        raise ValueError(
            f"the weights {list(weights)} give {counts.tolist()} of {BLOCK} samples; a source would never be seen. "
            "Raise its weight, or leave it out"
        )
    return counts.tolist()
