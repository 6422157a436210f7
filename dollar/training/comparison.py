"""The gradients of an update's branches at the weights: compared, or held apart until they are weighed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from dollar.parallel.shard import is_sharded, own
from dollar.parallel.world import World
from dollar.training.learner import Learner
from dollar.training.turn import Products

Gradients = dict[str, list[Tensor]]  # by a branch's name, in the order of the learner's parameters


def inner_products(gradients: Mapping[str, Sequence[Tensor]], sharded: bool, world: World) -> Products:
    """The inner products of all pairs, of their means over the processes, which take the place of what is given.

    sharded: whether these are this process's shares of tensors that were averaged on their way back.
    """
    for parts in gradients.values() if not sharded else ():
        world.average(parts)
    names, size = list(gradients), world.size if sharded else 1
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i:]]
    shares = {f"{i}": _product(gradients[a], gradients[b]) for i, (a, b) in enumerate(pairs)}
    means = world.mean(shares)
    return {pair: size * means[f"{i}"] for i, pair in enumerate(pairs)}


def _product(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    return sum(float((own(x) * own(y)).sum()) for x, y in zip(one, other, strict=True))


class GradientComparison:
    """Records what each branch adds to a learner's gradients."""

    def __init__(self, learner: Learner) -> None:
        self.learner = learner
        self.before = learner.gradients()
        self.seen: Gradients = {}

    def add(self, name: str) -> None:
        """A branch of this term was carried back; a term may have several."""
        after = self.learner.gradients()
        added = [a - b for a, b in zip(after, self.before, strict=True)]
        known = self.seen.get(name)
        self.seen[name] = added if known is None else [a + b for a, b in zip(known, added, strict=True)]
        self.before = after

    def scalars(self, world: World) -> dict[str, float]:
        """Norms of the terms' gradients and the cosines between them, of their means over the processes."""
        sharded = any(map(is_sharded, self.learner.tensors))
        products = inner_products(self.seen, sharded, world)
        found: dict[str, float] = {}
        for a, b in products:
            if a == b:
                found[f"grad_norm/term/{a}"] = products[a, a] ** 0.5
            else:
                norms = (products[a, a] * products[b, b]) ** 0.5
                found[f"cosine/{a}_{b}"] = products[a, b] / max(norms, 1e-30)
        return found


class Branches:
    """The gradients of an update's branches, each by itself until they are weighed."""

    def __init__(self, learner: Learner) -> None:
        self.learner = learner
        self.held: Gradients = {}

    def take(self, name: str) -> None:
        """A part of this branch was carried back: take its gradients away from the learner."""
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.learner.tensors]
        self.learner.forget_gradients()
        known = self.held.setdefault(name, gradients)
        for held, gradient in zip(known, gradients, strict=True) if known is not gradients else ():
            held.add_(gradient)

    def products(self, world: World) -> Products:
        """Their inner products, of their means over the processes."""
        return inner_products(self.held, any(map(is_sharded, self.learner.tensors)), world)

    def put(self, weights: Mapping[str, float]) -> None:
        """Give the learner the sum of all, each with its weight; they are used up."""
        for name, gradients in self.held.items():
            for p, gradient in zip(self.learner.tensors, gradients, strict=True):
                scaled = gradient.mul_(weights[name])
                p.grad = scaled if p.grad is None else p.grad.add_(scaled)
        self.held = {}
