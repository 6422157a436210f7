"""The pixel reward's own gradient, through the decoder (ReFL, DRaFT-K): what the latent reward model does without."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from dollar.diffusion.timesteps import FewStep
from dollar.losses.term import Made, Needs, Turn


def check_frames(frames: int | None) -> None:
    """Raise ValueError unless it is a number of frames, or None for all."""
    if frames is not None and frames < 1:
        raise ValueError(f"rg.frames is {frames}; give how many frames are decoded, or null for all")


@dataclass
class ReFL:
    """Minus the reward of the one-step prediction x_hat (ReFL; Eq. 8 gives x_hat).

    frames: how many evenly spaced frames are decoded and carried back through; None is all.
    """

    beta: float = 1.0
    frames: int | None = None
    needs: ClassVar[Needs] = "gradient"

    def __post_init__(self) -> None:
        check_frames(self.frames)

    def check(self, samplers: Sequence[FewStep]) -> None:
        """Any student will do."""

    def loss(self, turn: Turn, made: Made) -> Tensor:
        return -turn.reward_gradient(made.x_hat, self.frames)


@dataclass
class DRaFT:
    """Minus the reward of the full sample, carried back through the last `last` steps (DRaFT-K, K = `last`).

    The activations of all these steps are held at once. frames: as in `ReFL`.
    """

    beta: float = 1.0
    last: int = 1
    frames: int | None = None
    needs: ClassVar[Needs] = "gradient"

    def __post_init__(self) -> None:
        check_frames(self.frames)
        if self.last < 1:
            raise ValueError(f"rg.last is {self.last}; at least the last step must be carried back through")

    def check(self, samplers: Sequence[FewStep]) -> None:
        if all(self.last > sampler.steps for sampler in samplers):
            most = max(sampler.steps for sampler in samplers)
            raise ValueError(f"rg.last is {self.last}, more than the {most} steps that the student has")

    def losses(self, turn: Turn) -> Iterator[Tensor]:
        sampler = turn.sampler
        first = max(0, sampler.steps - self.last)
        x = sampler.rollout(turn.student, turn.noise, until=first)
        for k in range(first, sampler.steps):
            x = sampler.advance(x, sampler.generate(turn.student, x, k), k, turn.noise)
        yield -turn.reward_gradient(x, self.frames)
