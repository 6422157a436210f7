"""A comparison of the gradients of an update's terms, at the weights."""

from __future__ import annotations

from torch import Tensor

from dollar.parallel.shard import is_sharded
from dollar.parallel.world import World
from dollar.training.learner import Learner


class GradientComparison:
    """Records what each branch adds to a learner's gradients."""

    def __init__(self, learner: Learner) -> None:
        self.learner = learner
        self.before = learner.gradients()
        self.seen: dict[str, list[Tensor]] = {}

    def add(self, name: str) -> None:
        """A branch of this term was carried back; a term may have several."""
        after = self.learner.gradients()
        added = [a - b for a, b in zip(after, self.before, strict=True)]
        known = self.seen.get(name)
        self.seen[name] = added if known is None else [a + b for a, b in zip(known, added, strict=True)]
        self.before = after

    def scalars(self, world: World) -> dict[str, float]:
        """Norms of the terms' gradients and the cosines between them, of their means over the processes."""
        names = list(self.seen)
        sharded = any(map(is_sharded, self.learner.tensors))
        for added in self.seen.values() if not sharded else ():
            world.average(added)  # sharded gradients were averaged on their way back
        parts = world.size if sharded else 1
        pairs = [(a, b) for i, a in enumerate(names) for b in names[i:]]
        shares = {
            f"{a} {b}": sum(float((x * y).sum()) for x, y in zip(self.seen[a], self.seen[b], strict=True))
            for a, b in pairs
        }
        products = {pair: share * parts for pair, share in world.mean(shares).items()}
        found: dict[str, float] = {}
        for a, b in pairs:
            if a == b:
                found[f"grad_norm/term/{a}"] = products[f"{a} {a}"] ** 0.5
            else:
                norms = (products[f"{a} {a}"] * products[f"{b} {b}"]) ** 0.5
                found[f"cosine/{a}_{b}"] = products[f"{a} {b}"] / max(norms, 1e-30)
        return found
