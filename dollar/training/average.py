"""Exponential moving average of trained weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from dollar.parallel.checkpoint import State
from dollar.parallel.shard import assign, own


class Average:
    """A running average of parameters by name, in float32 (sharded where they are sharded).

    decay: the weight of the old average at each update; early updates use the smaller (1 + n) / (10 + n), so that the
    starting weights are soon forgotten. decay 0 keeps the average equal to the weights.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"the decay of the moving average is {decay}; it must be at least 0 and below 1")
        self.decay = decay
        self.updates = 0
        self.parameters = dict(parameters)
        self.average = {name: p.detach().clone().float() for name, p in parameters.items()}

    def _own(self, tensors: Mapping[str, Tensor]) -> list[Tensor]:
        """What this process holds of tensors that may be sharded, without their gradients' history."""
        return [own(t).detach() for t in tensors.values()]

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the present weights."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        torch._foreach_lerp_(self._own(self.average), [p.float() for p in self._own(self.parameters)], 1 - decay)

    @contextlib.contextmanager
    @torch.no_grad()
    def swapped(self) -> Iterator[None]:
        """The parameters hold the average inside this context, and their own values again after it."""
        before = [p.clone() for p in self._own(self.parameters)]
        self.keep()
        try:
            yield
        finally:
            torch._foreach_copy_(self._own(self.parameters), before)

    @torch.no_grad()
    def keep(self) -> None:
        """Give the parameters the average for good."""
        torch._foreach_copy_(self._own(self.parameters), self._own(self.average))

    def state(self) -> State:
        """The averages by name, and of how many updates."""
        return State(dict(self.average), {"updates": self.updates})

    @torch.no_grad()
    def load(self, state: State) -> None:
        """Take up a `state`, on any number of processes."""
        for name, average in self.average.items():
            assign(average, state.tensors[name])
        self.updates = state.plain["updates"]
