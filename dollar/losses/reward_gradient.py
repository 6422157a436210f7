"""The pixel reward's own gradient, through the decoder (ReFL, DRaFT-K), which the latent reward model avoids."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from dollar.diffusion.timesteps import FewStep
from dollar.losses.term import Context, Cost, Needs, Sample, check_choice, check_weight

DECODERS = ("full", "small")


def number_of(frames: int | Literal["all"] | None) -> int | None:
    """A number of frames, None for `all`; ValueError for anything else."""
    if frames in (None, "all"):
        return None
    if not isinstance(frames, int) or frames < 1:
        raise ValueError(f"rg.frames is {frames}; give how many frames are decoded, or all")
    return frames


def lost(reward: Tensor) -> Tensor:
    """Minus the reward [B], and 0 for a clip that has none."""
    return torch.where(reward.isfinite(), -reward, 0.0)


def gradient_through(decoder: str, context: Context) -> Callable[[Tensor, int | None], Tensor]:
    """The reward of latents with a gradient through one of `DECODERS`."""
    return context.reward_gradient if decoder == "full" else context.small_reward_gradient


@dataclass
class ReFL:
    """Minus the reward of the one-step prediction x_hat (ReFL; Eq. 8 gives x_hat).

    frames: how many evenly spaced frames are decoded and carried back through; None or "all" is all. unit: the reward's
    own, or `vsd`, in which beta is the size of the gradient at x_hat relative to VSD's. decoder: `full` is the
    autoencoder's, `small` one of a few thousand weights that follows it and has one frame for each latent frame.
    """

    beta: float = 1.0
    frames: int | Literal["all"] | None = None
    unit: Literal["reward", "vsd"] = "reward"
    decoder: Literal["full", "small"] = "full"
    step_counts: list[int] | None = None
    at: Literal["all", "first", "later"] = "all"

    def __post_init__(self) -> None:
        check_weight("beta_rg", self.beta)
        check_choice("rg.unit", self.unit, ("reward", "vsd"))
        self.frames = number_of(self.frames)
        check_choice("rg.decoder", self.decoder, DECODERS)

    @property
    def needs(self) -> Needs:
        return Needs(reward="gradient", decoder=self.decoder == "small")

    def check(self, samplers: Sequence[FewStep]) -> None:
        """Any student will do."""

    def cost(self, steps: int) -> Cost:
        return Cost()

    def loss(self, context: Context, sample: Sample) -> Tensor:
        return lost(gradient_through(self.decoder, context)(sample.x_hat, number_of(self.frames)))


@dataclass
class DRaFT:
    """Minus the reward of the full sample, carried back through the last `last` steps (DRaFT-K, K = `last`).

    The activations of all these steps are held at once. frames, decoder: as in `ReFL`.
    """

    beta: float = 1.0
    last: int = 1
    frames: int | Literal["all"] | None = None
    decoder: Literal["full", "small"] = "full"
    step_counts: list[int] | None = None

    def __post_init__(self) -> None:
        check_weight("beta_rg", self.beta)
        self.frames = number_of(self.frames)
        if self.last < 1:
            raise ValueError(f"rg.last is {self.last}; at least the last step must be carried back through")
        check_choice("rg.decoder", self.decoder, DECODERS)

    @property
    def needs(self) -> Needs:
        return Needs(reward="gradient", decoder=self.decoder == "small")

    def check(self, samplers: Sequence[FewStep]) -> None:
        if all(self.last > sampler.steps for sampler in samplers):
            most = max(sampler.steps for sampler in samplers)
            raise ValueError(f"rg.last is {self.last}, more than the {most} steps that the student has")

    def cost(self, steps: int) -> Cost:
        last = min(self.last, steps)
        return Cost(student=steps - last, student_gradient=last, kept=last)

    def losses(self, contexts: Sequence[Context]) -> Iterator[Tensor]:
        for context in contexts:
            sampler = context.sampler
            first = max(0, sampler.steps - self.last)
            x = sampler.rollout(context.student, context.noise, until=first)
            for k in range(first, sampler.steps):
                x = sampler.advance(x, sampler.generate(context.student, x, k), k, context.noise)
            yield lost(gradient_through(self.decoder, context)(x, number_of(self.frames)))
