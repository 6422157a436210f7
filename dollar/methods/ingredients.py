"""What a method is built from: networks, data, objective, and which samples an update sees."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor, nn

from dollar.data.latents import Samples
from dollar.diffusion.draws import Draws
from dollar.diffusion.timesteps import FewStep
from dollar.losses.objective import Objective
from dollar.models.denoiser import Condition, Denoiser
from dollar.models.roles import Role
from dollar.parallel.world import World
from dollar.surrogate.fitted_decoder import FittedDecoder
from dollar.surrogate.latent_reward import LatentReward
from dollar.surrogate.pixel_reward import PixelReward


class MicroBatch(NamedTuple):
    """Part of an update's batch: its draws, prompts, condition, real latents [b, C, F, h, w] where wanted.

    share: of the update's samples in this process.
    """

    draws: Draws
    prompts: list[str]
    condition: Condition
    x_0: Tensor | None
    share: float


def _nothing() -> None:
    """A run without an average has none to move."""


@dataclass
class Ingredients:
    """What a method is built from.

    roles: `student`, and `fake` where a term needs it; samplers: one FewStep for each step count that the student is
    trained for; shares: in proportion to which these are drawn, None for all alike; null: count -> the unconditional
    (negative-prompt) condition. batch: samples of an update over all processes; micro_batch: how many of them a process
    takes through a network at once, None for all. averaged: a context in which the student holds its averaged weights;
    moved: called after each update of the student. reward_scale: gives what every term that leads towards a reward is
    multiplied by. fitted: whether the surrogate and the small decoder are trained here; networks: those of terms that
    have one, by the term's name. reference: what terms on pairs compare the student with, the teacher where it is None.
    """

    teacher: Denoiser
    roles: Mapping[str, Role]
    samplers: Sequence[FewStep]
    objective: Objective
    latent_shape: tuple[int, ...]
    null: Callable[[int], Condition]
    text: Callable[[Sequence[str]], Condition]
    data: Samples
    world: World
    seed: int = 0
    batch: int = 8
    micro_batch: int | None = None
    surrogate: LatentReward | None = None
    decoder: FittedDecoder | None = None
    pixel: PixelReward | None = None
    averaged: Callable[[], AbstractContextManager[Any]] = nullcontext
    moved: Callable[[], None] = _nothing
    reward_scale: Callable[[], float] = lambda: 1.0
    fitted: bool = True
    shares: Sequence[float] | None = None
    networks: Mapping[str, nn.Module] = field(default_factory=dict)
    reference: Denoiser | None = None

    @property
    def student(self) -> Denoiser:
        """The student's denoiser."""
        return self.roles["student"].denoiser

    def draws(self, turn: int, count: int | None = None) -> Draws:
        """The random numbers of this process's share of a turn's first `count` samples; None is the whole batch."""
        count = self.batch if count is None else count
        return Draws(self.seed, turn, self.world.own(turn * self.batch, count), self.world.device)

    def sampler(self, draws: Draws) -> FewStep:
        """The sampler of an update's step count, which is the same on every process."""
        if self.shares is None:
            return self.samplers[draws.shared_integer("step count", len(self.samplers))]
        return self.samplers[draws.shared_choice("step count", self.shares)]

    def micro_batches(self, draws: Draws, latents: bool) -> Iterator[MicroBatch]:
        """The samples of these draws, micro-batch by micro-batch."""
        batch, first = self.data.batch(draws.indices, latents), 0
        for part in draws.split(self.micro_batch):
            own = slice(first, first + len(part.indices))
            first = own.stop
            x_0 = None if batch.latents is None else batch.latents[own]
            prompts = batch.prompts[own]
            yield MicroBatch(part, prompts, self.text(prompts), x_0, len(prompts) / len(draws.indices))
