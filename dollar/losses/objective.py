"""The student's objective (Eq. 16): a weighted sum of terms, and what they need together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from operator import or_
from typing import Any

from torch import Tensor

from dollar.diffusion.schedule import Schedule, expand_like
from dollar.diffusion.timesteps import FewStep
from dollar.losses.intervals import Noised, directly
from dollar.losses.pairs import PairTerm
from dollar.losses.term import (
    AT,
    FollowingTerm,
    LearningTerm,
    Needs,
    RolloutTerm,
    Sample,
    SampleTerm,
    Term,
    check_choice,
    is_relative,
    is_used,
)


def ordinal(k: int) -> str:
    """What the k-th of several is called, k from 0."""
    return {1: "second", 2: "third"}.get(k, f"{k + 1}th") if k else "first"


@dataclass
class Objective:
    """The sum over all terms of beta times their losses (Eq. 16).

    terms: by name, those with a weight above 0. balance: the largest size of a reward's gradient at the student's
    sample relative to the distillation's, None for no limit.
    """

    terms: Mapping[str, Term] = field(default_factory=dict)
    balance: float | None = None

    def __post_init__(self) -> None:
        for name, term in self.terms.items():
            if term.beta <= 0:
                raise ValueError(
                    f"the weight of the term {name} is {term.beta}; it must be positive, or the term left out"
                )
            check_choice(f"{name}.at", getattr(term, "at", "all"), AT)
        if not self.terms:
            raise ValueError("every beta is 0, so the student has nothing to learn from; set beta_vsd=1")
        if self.pair_terms and (others := self.terms.keys() - self.pair_terms.keys()):
            raise ValueError(
                f"{' and '.join(self.pair_terms)} look at pairs of clips and {' and '.join(sorted(others))} at what "
                "the student makes, which are runs of their own; give one kind the weight 0"
            )
        if rolling := [name for name, term in self.apart.items() if not isinstance(term, SampleTerm)]:
            raise ValueError(
                f"the term {rolling[0]} has `every` above 0, but only a term that looks at the student's sample can "
                "have an update of its own; give it `loss(context, sample)`, or every 0"
            )
        if self.reference is None and (relative := [n for n, term in self.terms.items() if is_relative(term)]):
            raise ValueError(
                f"the weight of the term {relative[0]} is relative to VSD's gradient (its unit is vsd), but beta_vsd "
                "is 0; give it another unit, or set beta_vsd above 0"
            )
        if self.balance is not None:
            self._check_balance(self.balance)

    def _check_balance(self, balance: float) -> None:
        if isinstance(balance, str) or balance <= 0:
            raise ValueError(f"balance is {balance}; use null for no limit, or a positive share such as 0.5")
        if self.reference is None or any(term.needs.pursues for term in self.apart.values()):
            raise ValueError(
                f"balance is {balance}, but it compares the reward's gradient with VSD's in one update; it needs "
                "ft.update=joint and beta_vsd above 0, or set balance=null"
            )
        if not self.needs.pursues:
            raise ValueError(f"balance is {balance}, but beta_ft is 0, so there is nothing to hold back")
        through = [name for name, term in self.rollout_terms.items() if term.needs.pursues]
        if through:
            raise ValueError(
                f"balance is {balance}, but the gradient of {through[0]} comes back through whole samples, not at "
                "x_hat, where it could be held to VSD's; set balance=null"
            )

    def check_use(self, counts: Sequence[int]) -> None:
        """Raise ValueError where a student of these step counts has updates that lack what they need."""
        for name, term in self.terms.items():
            given = getattr(term, "step_counts", None)
            if given is not None and (not given or set(given) - set(counts)):
                raise ValueError(
                    f"{name}.step_counts is {list(given)}; give some of student.steps, {list(counts)}, or null for all"
                )
        for steps in counts:
            for k in range(steps):
                used = {name: term for name, term in self.terms.items() if is_used(term, steps, k)}
                where = f"updates of {steps} step{'s' * (steps > 1)} from the {ordinal(k)} on"
                if not used:
                    raise ValueError(f"no term is used in {where}; look at step_counts and `at` of the terms")
                pursued = any(term.needs.pursues for name, term in used.items() if name in self.sample_terms)
                if self.balance is not None and pursued and not used.keys() & set(self.references):
                    raise ValueError(
                        f"balance is {self.balance}, but VSD, with which the reward's gradient is compared, is not "
                        f"used in {where}; set balance=null, or look at step_counts and `at` of the terms"
                    )

    @property
    def needs(self) -> Needs:
        """What all terms need together."""
        return reduce(or_, (term.needs for term in self.terms.values()), Needs())

    @property
    def apart(self) -> dict[str, Any]:
        """The terms with an update of their own."""
        return {name: term for name, term in self.terms.items() if getattr(term, "every", 0) > 0}

    @property
    def sample_terms(self) -> dict[str, Any]:
        """The terms whose gradients are added at the student's sample."""
        joint = self.terms.keys() - self.apart.keys()
        return {name: term for name, term in self.terms.items() if name in joint and isinstance(term, SampleTerm)}

    @property
    def rollout_terms(self) -> dict[str, Any]:
        """The terms that run the student themselves."""
        joint = self.terms.keys() - self.apart.keys()
        return {name: term for name, term in self.terms.items() if name in joint and isinstance(term, RolloutTerm)}

    @property
    def pair_terms(self) -> dict[str, Any]:
        """The terms that look at pairs of clips."""
        return {name: term for name, term in self.terms.items() if isinstance(term, PairTerm)}

    @property
    def clips_of_a_pair(self) -> int:
        """How many clips of a pair are run: 0 where no term looks at pairs, 1 where the winners are enough."""
        return max((1 + term.losers for term in self.pair_terms.values()), default=0)

    @property
    def learning_terms(self) -> dict[str, Any]:
        """The terms with a network of their own."""
        return {name: term for name, term in self.terms.items() if isinstance(term, LearningTerm)}

    @property
    def following_terms(self) -> dict[str, Any]:
        """The terms with numbers of their own that follow the run."""
        return {name: term for name, term in self.terms.items() if isinstance(term, FollowingTerm)}

    @property
    def guidance(self) -> dict[str, float]:
        """The guidance scales at which terms run the teacher, by the name of the term."""
        return {n: float(t.guidance_scale) for n, t in self.terms.items() if hasattr(t, "guidance_scale")}

    @property
    def references(self) -> list[str]:
        """The terms that the sizes of others' gradients are compared with: those that distil by the fake score."""
        others = {name for name, term in self.terms.items() if term.needs.pursues} | self.learning_terms.keys()
        return [name for name, term in self.sample_terms.items() if term.needs.fake and name not in others]

    @property
    def reference(self) -> str | None:
        """The first of the references, if any."""
        return next(iter(self.references), None)

    def balanced(self, gradient: Tensor, reference: Tensor | None) -> Tensor:
        """A reward's gradient [B, ...], no larger than `balance` times the reference, sample by sample."""
        if self.balance is None or reference is None:
            return gradient
        most = self.balance * reference.flatten(1).norm(dim=1)
        size = gradient.flatten(1).norm(dim=1)
        return gradient * expand_like((most / size.clamp(min=1e-12)).clamp(max=1), gradient)

    def fake_sample(
        self, sampler: FewStep, sample: Sample, u: Tensor, noise: Tensor, progress: float, schedule: Schedule
    ) -> Noised:
        """What the fake score learns of a sample, for draws u [B] in [0, 1) and noise [B, ...].

        A term may say so; else x_hat is noised to times that are spread evenly (Eq. 4).
        """
        for term in self.terms.values():
            if hasattr(term, "fake_sample") and is_used(term, sampler.steps):
                told: Noised = term.fake_sample(sampler, sample, u, noise, progress, schedule)
                return told
        return directly(sample.x_hat, noise, schedule.uniform(u), schedule)
