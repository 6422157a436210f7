"""Exponential moving average of a network's weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn


def _own(tensors: Sequence[Tensor]) -> list[Tensor]:
    """What this process holds of tensors that may be sharded, without their gradients' history."""
    return [(t.to_local() if hasattr(t, "to_local") else t).detach() for t in tensors]


class Ema:
    """A running average of a module's trained parameters, kept in float32 beside them (sharded where they are sharded).

    decay: the weight of the old average at each update; early updates use the smaller (1 + n) / (10 + n), so that the
    starting weights are soon forgotten. decay 0 keeps the average equal to the weights.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"the decay of the moving average is {decay}; it must be at least 0 and below 1")
        self.decay = decay
        self.updates = 0
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        self.average = [p.detach().clone().float() for p in self.parameters]

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the present weights."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        torch._foreach_lerp_(_own(self.average), [p.float() for p in _own(self.parameters)], 1 - decay)

    @contextlib.contextmanager
    @torch.no_grad()
    def swapped(self) -> Iterator[None]:
        """The module holds the average inside this context, and its own weights again after it."""
        before = [p.clone() for p in _own(self.parameters)]
        torch._foreach_copy_(_own(self.parameters), _own(self.average))
        try:
            yield
        finally:
            torch._foreach_copy_(_own(self.parameters), before)
