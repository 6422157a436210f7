"""Random numbers that depend on their purpose, never on the process that draws them.

A draw is a function of (seed, turn, purpose, global sample index); a turn is one batch, and a cycle has as many as the
fake score has updates. One, two or four processes therefore train on the same samples and noise, and a resumed run
draws what the unbroken one would have drawn.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor


def _generator(seed: int, turn: int, purpose: str, *index: int) -> torch.Generator:
    # int(), because numpy's and torch's integers print differently and would draw differently.
    key = (int(seed), int(turn), purpose, *map(int, index))
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little"))


@dataclass(frozen=True)
class Draws:
    """The random numbers of one turn for these global sample indices; drawn on the CPU, moved to `device`."""

    seed: int
    turn: int
    indices: Sequence[int]
    device: torch.device | str = "cpu"

    def split(self, size: int | None) -> list[Draws]:
        """The same draws for at most `size` samples each, in order; None leaves them whole."""
        step = len(self.indices) if size is None else size
        return [replace(self, indices=self.indices[i : i + step]) for i in range(0, len(self.indices), step)]

    def normal(self, purpose: str, shape: Sequence[int]) -> Tensor:
        """Standard normal [B, *shape], float32."""
        drawn = [torch.randn(*shape, generator=_generator(self.seed, self.turn, purpose, i)) for i in self.indices]
        return torch.stack(drawn).to(self.device)

    def uniform(self, purpose: str) -> Tensor:
        """Uniform in [0, 1), [B], float64."""
        drawn = [
            torch.rand((), generator=_generator(self.seed, self.turn, purpose, i), dtype=torch.float64)
            for i in self.indices
        ]
        return torch.stack(drawn).to(self.device)

    def integers(self, purpose: str, high: int) -> Tensor:
        """Uniform whole numbers in [0, high), int64 [B]."""
        drawn = [torch.randint(high, (), generator=_generator(self.seed, self.turn, purpose, i)) for i in self.indices]
        return torch.stack(drawn).to(self.device)

    def shared_choice(self, purpose: str, shares: Sequence[float]) -> int:
        """One place in `shares`, drawn in proportion to them, on which all processes agree."""
        u = torch.rand((), generator=_generator(self.seed, self.turn, purpose), dtype=torch.float64)
        bounds = torch.tensor(list(shares), dtype=torch.float64).cumsum(0)
        return int((u * bounds[-1] >= bounds[:-1]).sum())

    def shared_integer(self, purpose: str, high: int) -> int:
        """One whole number in [0, high) on which all processes agree, because no sample index enters it."""
        return int(torch.randint(high, (), generator=_generator(self.seed, self.turn, purpose)))
