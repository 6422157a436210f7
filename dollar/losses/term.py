"""What a further term of the student's loss is given, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, Protocol, runtime_checkable

from torch import Tensor

from dollar.diffusion.denoise import DenoiseFunction
from dollar.diffusion.timesteps import FewStep, NoiseFunction

Needs = Literal["", "reward", "gradient"]  # of the pixel reward: nothing, its numbers, or its gradient


@dataclass(frozen=True)
class Turn:
    """One turn of the student, as a term sees it.

    prompts: B; sampler: the student's of this turn's step count; student: (x_t, t) -> x_0 with gradients to the
    weights; teacher: guidance scale -> (x_t, t) -> x_0; noise: step index -> the turn's noise [B, C, F, h, w].
    reward: latents [B, C, F, h, w] -> the pixel reward [B], nan where there is none; reward_gradient: (latents, number
    of frames, None for all) -> [B] through decoder and reward. gather: [B] -> that of all processes.
    """

    prompts: Sequence[str]
    sampler: FewStep
    student: DenoiseFunction
    teacher: Callable[[float], DenoiseFunction]
    noise: NoiseFunction
    reward: Callable[[Tensor], Tensor]
    reward_gradient: Callable[[Tensor, int | None], Tensor]
    gather: Callable[[Tensor], Tensor]


class Made(NamedTuple):
    """The student's sample of a turn: x [B, C, F, h, w] at its k-th time, and x_hat made of it in one prediction."""

    x: Tensor
    k: int
    x_hat: Tensor


class Term(Protocol):
    """A further term, beta times the mean of its losses; it is a `SampleTerm` or a `RolloutTerm`."""

    beta: float
    needs: ClassVar[Needs]

    def check(self, samplers: Sequence[FewStep]) -> None:
        """Raise ValueError where a student that is sampled like this can't have this term."""
        ...


@runtime_checkable
class SampleTerm(Protocol):
    """A term that looks at the student's sample; its gradient there is added to VSD's (Eq. 16)."""

    def loss(self, turn: Turn, made: Made) -> Tensor:
        """[B], float32, with a gradient at made.x_hat."""
        ...


@runtime_checkable
class RolloutTerm(Protocol):
    """A term that runs the student itself."""

    def losses(self, turn: Turn) -> Iterator[Tensor]:
        """Losses [B], float32, to be added; each is carried back and freed before the next is asked for."""
        ...
