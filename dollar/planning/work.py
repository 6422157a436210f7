"""The forwards of a cycle, from what each term of the objective needs and costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from dollar.losses.term import Cost


class TermWork(NamedTuple):
    """What a term adds to a cycle.

    cost: step count of the student -> its cost; sample: whether it looks at the student's sample; fake: whether it
    needs a fake score that follows the student; apart: whether it has an update, and a sample, of its own; through:
    whether its gradient comes back through the teacher or the fake score; used: (step count, depth) -> whether the term
    is part of such an update; pair: how many clips of a pair it looks at, which all such terms share.
    """

    name: str
    cost: Callable[[int], Cost]
    sample: bool = True
    fake: bool = False
    apart: bool = False
    through: bool = False
    used: Callable[[int, int], bool] = lambda steps, k: True
    pair: int = 0


@dataclass(frozen=True)
class Cycle:
    """What the forwards of a cycle depend on.

    steps: the step counts of the student; shares: in proportion to which they are drawn, None for all alike; simulate:
    whether its sample comes from its own earlier steps; checkpointing: whether the blocks' activations are recomputed
    in the backward pass; backward: how many of its forwards the student's backward pass counts as, less than two for a
    LoRA; drawn_first: the share of the samples that are drawn once more, for a latent reward model that is fitted
    before the student's update.
    """

    steps: Sequence[int]
    terms: Sequence[TermWork]
    simulate: bool = True
    fake_updates: int = 5
    checkpointing: bool = False
    backward: float = 2.0
    drawn_first: float = 0.0
    shares: Sequence[float] | None = None


class Forwards(NamedTuple):
    """Forwards of each network in a cycle for one clip of the batch, a backward pass to the weights counting as two."""

    student: float
    fake: float
    teacher: float
    own: float = 0.0  # of terms, where these are as large as the teacher

    @property
    def total(self) -> float:
        """All networks together; they are of one size."""
        return self.student + self.fake + self.teacher + self.own


def forwards(cycle: Cycle) -> Forwards:
    """The mean over step counts and depths of an ordinary cycle, after the warm-ups and between comparisons."""
    found, shares = [_forwards(cycle, steps) for steps in cycle.steps], cycle.shares or [1.0] * len(cycle.steps)
    weighted = [
        sum(share * n for share, n in zip(shares, numbers, strict=True)) for numbers in zip(*found, strict=True)
    ]
    return Forwards(*(number / sum(shares) for number in weighted))


def _forwards(cycle: Cycle, steps: int) -> Forwards:
    """The mean over the depths, to which a student of K steps is rolled out: 0 to K - 1 of them, all equally likely."""
    found = [_at_depth(cycle, steps, k) for k in range(steps)]
    return Forwards(*(sum(numbers) / steps for numbers in zip(*found, strict=True)))


def _at_depth(cycle: Cycle, steps: int, k: int) -> Forwards:
    sample, mean = (1.0 + cycle.simulate * depth for depth in (k, (steps - 1) / 2))
    back = cycle.backward + cycle.checkpointing  # recomputing the blocks is one forward more
    trained = 1 + 2 + cycle.checkpointing
    student, fake, teacher, own = cycle.drawn_first * mean, 0.0, 0.0, 0.0
    terms = [term for term in cycle.terms if term.used(steps, k)]
    sampling, follows = [term for term in terms if term.sample], any(term.fake for term in cycle.terms)
    if follows or any(term.sample for term in cycle.terms):
        student += sample + (0 if all(term.apart for term in sampling) else back)
    student += sum(sample + back for term in sampling if term.apart)
    if follows:
        fake += cycle.fake_updates * trained
        student += (cycle.fake_updates - 1) * mean  # the first update takes the sample of the student's own
    clips = max((term.pair for term in terms), default=0)
    # A loser is run once more, without a gradient, before its winner: a pair's weight depends on both.
    student += clips * (1 + back) + (clips > 1)
    teacher += clips
    for cost in (term.cost(steps) for term in terms):
        student += cost.student + cost.student_gradient * (1 + back)
        # A backward pass to the input alone is one forward, to the weights as well it is two.
        through = 2 + cycle.checkpointing
        teacher += cost.teacher + cost.teacher_gradient * through
        fake += cost.fake + cost.fake_gradient * through
        own += cost.own + cost.own_gradient * through + cost.own_trained * trained
    return Forwards(student, fake, teacher, own)


class Validations(NamedTuple):
    """The validations of a run: how many, and the forwards of each process.

    student: of the student's in each; teacher: of the teacher's, in the first alone.
    """

    times: int = 0
    student: int = 0
    teacher: int = 0


def validations(
    cycles: int,
    every: int,
    first: bool,
    prompts: int,
    steps: Sequence[int],
    shown: int,
    teacher_steps: int,
    guided: int,
    student_guided: int = 1,
    processes: int = 1,
) -> Validations:
    """What validations of `prompts` clips at each step count compute; every: cycles between them, 0 for none.

    The processes share the clips, and all make as many forwards as the one that has the most.

    first: whether there is one before training; shown: clips of the teacher beside the student's; guided and
    student_guided: forwards of a step of theirs, 2 with guidance.
    """
    if every == 0:
        return Validations()
    times = first + -(-cycles // every)
    own, others = -(-prompts // processes), -(-min(shown, prompts) // processes)
    return Validations(times, own * sum(steps) * student_guided, others * teacher_steps * guided)


def most_kept(cycle: Cycle) -> float:
    """The most forwards of the student that one branch of its update holds for its backward."""
    depths = [(steps, k) for steps in cycle.steps for k in range(steps)]
    return max([1.0, *(term.cost(at[0]).kept for term in cycle.terms for at in depths if term.used(*at))])
