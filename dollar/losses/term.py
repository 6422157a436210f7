"""A term of the student's objective (Eq. 16): its inputs, its losses, what it needs and what it costs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

from torch import Tensor, nn

from dollar.diffusion.denoise import DenoiseFunction
from dollar.diffusion.draws import Draws
from dollar.diffusion.schedule import Schedule
from dollar.diffusion.timesteps import FewStep, NoiseFunction


@dataclass(frozen=True)
class Needs:
    """What a run must hold for a term.

    clips: real latents x_0; fake: a score network that follows the student's samples; surrogate: the latent reward
    model; reward: the pixel reward's numbers, or its gradient as well; decoder: a small decoder that follows the
    autoencoder; pairs: clips of which one is preferred to another.
    """

    clips: bool = False
    fake: bool = False
    surrogate: bool = False
    reward: Literal["", "numbers", "gradient"] = ""
    decoder: bool = False
    pairs: bool = False

    @property
    def pursues(self) -> bool:
        """Whether the term leads towards a reward."""
        return self.surrogate or self.reward != ""

    def __or__(self, other: Needs) -> Needs:
        """What both need together."""
        return Needs(**{f.name: max(getattr(self, f.name), getattr(other, f.name), key=_order) for f in fields(self)})


def _order(need: bool | str) -> int:
    return {"": 0, "numbers": 1, "gradient": 2}.get(need, int(bool(need))) if isinstance(need, str) else int(need)


class Cost(NamedTuple):
    """Forwards that a term adds to a student's update, for each clip of the batch; guided forwards count as two.

    student, teacher, fake: without a gradient; student_gradient: carried back to the weights; teacher_gradient,
    fake_gradient: carried back to the input alone; kept: how many forwards that are carried back are held at once.
    own, own_gradient: the same of a network of the term's own that is as large as the teacher's; own_trained: carried
    back to its weights.
    """

    student: float = 0.0
    student_gradient: float = 0.0
    teacher: float = 0.0
    teacher_gradient: float = 0.0
    fake: float = 0.0
    fake_gradient: float = 0.0
    kept: float = 0.0
    own: float = 0.0
    own_gradient: float = 0.0
    own_trained: float = 0.0


class Host(NamedTuple):
    """What a term's network is built in.

    latent_shape: (C, F, h, w) of a clip; discriminator: (`fake`, `teacher` or `own`, number of heads, their width,
    whether there is a constant) -> a network that judges (x_t [B, C, F, h, w], t [B], condition) -> [B] by the hidden
    states of that one's blocks.
    """

    latent_shape: Sequence[int]
    discriminator: Callable[[str, int, int, bool], nn.Module]


def _absent(*_: Any) -> Any:
    raise LookupError("this run has nothing of the kind; a term's `needs` must name what it uses")


@dataclass(frozen=True)
class Context:
    """One micro-batch of the student's update, as a term sees it.

    prompts: B; sampler: the student's of this update's step count; student: (x_t, t) -> x_0 with gradients to the
    weights; teacher: guidance scale -> (x_t, t) -> x_0; noise: step index -> the update's noise [B, C, F, h, w].
    reward: latents [B, C, F, h, w] -> the pixel reward [B], nan where there is none; reward_gradient: (latents, number
    of frames, None for all) -> [B] through decoder and reward; small_reward_gradient: the same through the small
    decoder, which has a frame for each latent frame. gather: [B] -> that of all processes.
    draws: further random numbers of these samples; schedule: the teacher's; cycle: its number; progress: the fraction
    of the run that is done; x_0: real latents where the term needs clips; fake: (x_t, t) -> x_0 of the fake score;
    predict: (latents, purpose) -> the latent reward model's reward [B]; reward_sd: the deviation of the rewards seen;
    averaged: a context in which the student holds its averaged weights; log: takes a scalar's name and value;
    condition: the prompts as networks read them, for a term's own.
    """

    prompts: Sequence[str]
    sampler: FewStep
    student: DenoiseFunction
    teacher: Callable[[float], DenoiseFunction]
    noise: NoiseFunction
    reward: Callable[[Tensor], Tensor] = _absent
    reward_gradient: Callable[[Tensor, int | None], Tensor] = _absent
    small_reward_gradient: Callable[[Tensor, int | None], Tensor] = _absent
    gather: Callable[[Tensor], Tensor] = lambda values: values
    draws: Draws = Draws(0, 0, ())  # noqa: RUF009
    schedule: Schedule = None  # type: ignore[assignment]
    cycle: int = 0
    progress: float = 0.0
    x_0: Tensor | None = None
    fake: DenoiseFunction = _absent
    predict: Callable[[Tensor, str], Tensor] = _absent
    reward_sd: float = 1.0
    averaged: Callable[[], AbstractContextManager[Any]] = nullcontext
    log: Callable[[str, float], None] = lambda name, value: None
    condition: Any = None


class Sample(NamedTuple):
    """The student's sample: x [B, C, F, h, w] at its k-th time, and the single-step prediction x_hat of it."""

    x: Tensor
    k: int
    x_hat: Tensor


class Term(Protocol):
    """A term of Eq. 16, beta times the mean of its losses; it is a `SampleTerm`, a `RolloutTerm` or a `PairTerm`.

    A term with an attribute `every` of 1 or more has an update of its own, from the gradients of so many cycles
    (Algorithm 1, line 19), by an optimizer of its own where it has an attribute `optimizer` that is "own";
    guidance_scale, where it has one, is the scale at which it runs the teacher. `step_counts` and, of a term that looks
    at the student's sample, `at` say in which updates it is used (see `is_used`).
    """

    beta: float

    @property
    def needs(self) -> Needs: ...

    def check(self, samplers: Sequence[FewStep]) -> None:
        """Raise ValueError where a student that is sampled like this can't have this term."""
        ...

    def cost(self, steps: int) -> Cost:
        """What it adds to an update of a student of so many steps."""
        ...


@runtime_checkable
class SampleTerm(Protocol):
    """A term that looks at the student's sample; its gradient there is added to those of the others (Eq. 16)."""

    def loss(self, context: Context, sample: Sample) -> Tensor:
        """[B], float32, with a gradient at sample.x_hat."""
        ...


@runtime_checkable
class RolloutTerm(Protocol):
    """A term that runs the student itself."""

    def losses(self, contexts: Sequence[Context]) -> Iterator[Tensor]:
        """Losses [b], float32, of one micro-batch each, to be added; each goes back before the next is computed."""
        ...


@runtime_checkable
class LearningTerm(Protocol):
    """A term with a network of its own, which learns after the student has: a discriminator, say.

    `optim.<name of the term>` has its optimizer's numbers.
    """

    def network(self, host: Host) -> nn.Module:
        """The network, built once."""
        ...

    def fit(self, context: Context, sample: Sample) -> Tensor:
        """[B], float32, with a gradient at the network's parameters; the sample carries none."""
        ...


@runtime_checkable
class FollowingTerm(Protocol):
    """A term with numbers of its own that follow the run, and are the same on every process."""

    def close(self, gather: Callable[[Tensor], Tensor]) -> None:
        """The student's turn of a cycle has ended; gather: [B, ...] -> that of all processes."""
        ...

    def state(self) -> dict[str, Any]:
        """Plain values, for a checkpoint."""
        ...

    def load(self, state: dict[str, Any]) -> None:
        """Take up a `state`."""
        ...


def is_used(term: Any, steps: int, k: int | None = None) -> bool:
    """Whether a term is part of an update of a student of so many steps that starts at its k-th, None for any of them.

    `step_counts` lists the step counts, None for all. `at` is `all`, `first`, or `later`: all but the first of several.
    """
    counts, at = getattr(term, "step_counts", None), getattr(term, "at", "all")
    if counts is not None and steps not in counts:
        return False
    if k is None or at == "all":
        return True
    return k == 0 if at == "first" else k > 0 or steps == 1


def is_relative(term: Term) -> bool:
    """Whether the weight of a term is in units of the size of VSD's gradient at the student's sample."""
    return getattr(term, "unit", None) == "vsd"


def has_optimizer(term: Term) -> bool:
    """Whether the update of its own that a term has is made by an optimizer of its own."""
    return getattr(term, "every", 0) > 0 and getattr(term, "optimizer", "shared") == "own"


AT = ("all", "first", "later")


def check_weight(key: str, beta: float) -> None:
    """Raise ValueError for a weight below 0."""
    if beta < 0:
        raise ValueError(f"{key} is {beta}; a weight is 0 (off) or positive")


def check_choice(key: str, value: str, known: Sequence[str]) -> None:
    """Raise ValueError for a value that is none of the known ones."""
    if value not in known:
        raise ValueError(f"{key} is {value!r}; use {' or '.join(known)}")


def check_range(key: str, fractions: Sequence[float]) -> None:
    """Raise ValueError unless these are two rising fractions of T."""
    if not 0 <= fractions[0] < fractions[1] <= 1:
        raise ValueError(f"{key} is {list(fractions)}; give two rising fractions of T, as [0.1, 0.5]")


def check_guidance(key: str, scale: float) -> None:
    """Raise ValueError for a guidance scale below 0."""
    if scale < 0:
        raise ValueError(
            f"{key} is {scale}, which leads away from the prompt; 1 is no guidance and the usual values lie between 2 "
            "and 9"
        )


def guided(scale: float) -> int:
    """Forwards of one guided prediction: 1 without guidance, else 2."""
    return 1 if scale == 1 else 2
