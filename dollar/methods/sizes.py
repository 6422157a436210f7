"""How large the terms' gradients at the student's sample are, in the mean over the latest cycles."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

DECAY = 0.9  # of a cycle's say in the mean, from each cycle to the next


class Sizes:
    """Running means of the norms of one sample's gradient, by the name of its term, the same on every process.

    They change between cycles alone, so that a sample's gradient doesn't depend on what else is in its batch.
    gather: [B, ...] -> that of all processes.
    """

    def __init__(self, gather: Callable[[Tensor], Tensor]) -> None:
        self.gather = gather
        self._seen: dict[str, Tensor] = {}  # in this turn, the norms' sum and number
        self._means: dict[str, float] = {}
        self._weights: dict[str, float] = {}

    def add(self, name: str, gradient: Tensor) -> None:
        """Take in a term's gradients [B, ...] of a mean over B samples, each 1 / B of that of a sample alone.

        One that isn't finite, whose update is skipped, is left out, for it would stay in the mean for good.
        """
        norms = len(gradient) * gradient.flatten(1).norm(dim=1)
        norms = norms[norms.isfinite()]
        now = torch.stack([norms.sum(), norms.new_tensor(float(len(norms)))])
        self._seen[name] = self._seen.get(name, torch.zeros_like(now)) + now

    def close(self) -> None:
        """End a turn."""
        for name, seen in self._seen.items():
            total, count = self.gather(seen[None]).sum(0).tolist()
            if count == 0:
                continue
            weight = DECAY * self._weights.get(name, 0.0) + 1
            self._means[name] = self._means.get(name, 0.0) + (total / count - self._means.get(name, 0.0)) / weight
            self._weights[name] = weight
        self._seen = {}

    def ratio(self, reference: str | None, name: str) -> float:
        """By what a term's gradient is multiplied to be as large as the reference's; 0 while either is unknown."""
        if reference not in self._means or self._means.get(name, 0.0) <= 0:
            return 0.0
        return self._means[reference] / self._means[name]

    def state(self) -> dict[str, Any]:
        return {"means": dict(self._means), "weights": dict(self._weights)}

    def load(self, state: dict[str, Any]) -> None:
        self._means, self._weights = dict(state["means"]), dict(state["weights"])
