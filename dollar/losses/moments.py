"""Mean and variance of the student's latents, held to those of real latents channel by channel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from dollar.diffusion.timesteps import FewStep
from dollar.losses.term import Context, Cost, Needs, Sample, check_choice, check_weight

DECAY = 0.9  # of a cycle's say in what the student's latents are like, from each cycle to the next
TURN = 0.1  # where pseudo-Huber turns from squares to absolute values, in real standard deviations, or variances


def moments_of(x: Tensor) -> Tensor:
    """Each sample's mean and mean square by channel, float32 [B, 2C]; x: [B, C, ...]."""
    flat = x.float().flatten(2)
    return torch.cat([flat.mean(2), flat.square().mean(2)], 1)


def gap(made: Tensor, real: Tensor, distance: str) -> Tensor:
    """How far means and variances are apart, in the mean over channels; made, real: [2C] as `moments_of` has them.

    Means count in real standard deviations, variances in real variances.
    """
    (mean, square), (real_mean, real_square) = made.chunk(2), real.chunk(2)
    variance, real_variance = square - mean**2, (real_square - real_mean**2).clamp(min=1e-12)
    apart = torch.cat([(mean - real_mean) / real_variance.sqrt(), (variance - real_variance) / real_variance])
    each = apart**2 if distance == "mse" else (apart**2 + TURN**2).sqrt() - TURN
    return 2 * each.mean()


class Running:
    """A mean of `moments_of` over cycles, the same on every process; it changes between cycles alone.

    decay: of a cycle's weight from each to the next, 1 for all alike.
    """

    def __init__(self, decay: float = 1.0) -> None:
        self.decay, self.weight = decay, 0.0
        self.mean: list[float] = []
        self._seen: Tensor | None = None  # sums, and the number of samples

    def add(self, x: Tensor) -> None:
        """Take in latents [B, C, ...]; a sample that isn't finite, which would stay for good, is left out."""
        found = moments_of(x.detach()).double()
        found = found[found.isfinite().all(1)]
        now = torch.cat([found.sum(0), found.new_tensor([float(len(found))])])
        self._seen = now if self._seen is None else self._seen + now

    def close(self, gather: Callable[[Tensor], Tensor]) -> None:
        """End a cycle; gather: [1, N] -> that of all processes."""
        if self._seen is None:
            return
        *sums, count = gather(self._seen[None]).sum(0).tolist()
        self._seen = None
        if count == 0:
            return
        kept = self.decay * self.weight
        self.weight = kept + count
        before = self.mean or [0.0] * len(sums)
        self.mean = [(kept * old + new) / self.weight for old, new in zip(before, sums, strict=True)]


@dataclass
class Moments:
    """The gap between mean and variance of x_hat and of real latents, by channel: `mse` or `pseudo_huber`.

    Both are running means over batches and processes, of all real latents and of the student's latest; a sample's
    gradient is that of the gap with respect to its own part in them, so that it doesn't depend on the others of its
    batch. unit: of beta, the `loss` itself, or `vsd`: the gradient's size at the sample relative to VSD's.
    """

    beta: float = 1.0
    distance: Literal["mse", "pseudo_huber"] = "pseudo_huber"
    unit: Literal["vsd", "loss"] = "loss"
    step_counts: list[int] | None = None
    at: Literal["all", "first", "later"] = "all"
    real: Running = field(default_factory=Running, init=False, repr=False)
    made: Running = field(default_factory=lambda: Running(DECAY), init=False, repr=False)
    needs: ClassVar[Needs] = Needs(clips=True)

    def __post_init__(self) -> None:
        check_weight("beta_moments", self.beta)
        check_choice("moments.distance", self.distance, ("mse", "pseudo_huber"))
        check_choice("moments.unit", self.unit, ("vsd", "loss"))

    def check(self, samplers: Sequence[FewStep]) -> None:
        """Any student will do."""

    def cost(self, steps: int) -> Cost:
        return Cost()

    def loss(self, context: Context, sample: Sample) -> Tensor:
        if context.x_0 is None:
            raise ValueError("beta_moments > 0 needs clips, and there are only prompts; set beta_moments=0")
        self.real.add(context.x_0)
        self.made.add(sample.x_hat)
        own = moments_of(sample.x_hat)
        if not self.made.mean:
            return 0 * own.sum(1)  # there is nothing to compare yet
        made, real = (own.new_tensor(running.mean) for running in (self.made, self.real))
        found = gap(made.requires_grad_(), real, self.distance)
        (slope,) = torch.autograd.grad(found, made)
        return found.detach() + (own - own.detach()) @ slope

    def close(self, gather: Callable[[Tensor], Tensor]) -> None:
        """End a cycle."""
        self.real.close(gather)
        self.made.close(gather)

    def state(self) -> dict[str, Any]:
        return {name: [r.weight, r.mean] for name, r in (("real", self.real), ("made", self.made))}

    def load(self, state: dict[str, Any]) -> None:
        for name, running in (("real", self.real), ("made", self.made)):
            running.weight, running.mean = state[name][0], list(state[name][1])
