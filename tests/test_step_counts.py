"""Step counts of one student: how often each is trained, and which terms are part of which updates."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest
from conftest import TINY_DATA, TINY_RUN, compose

from dollar.cli.build.planning import cycle_of
from dollar.diffusion.draws import Draws
from dollar.export.student import few_steps
from dollar.losses.adversarial import Adversarial
from dollar.losses.latent_reward import LatentRewardTerm
from dollar.losses.objective import Objective
from dollar.losses.pull import Pull
from dollar.losses.term import is_used
from dollar.losses.vsd import VSD
from dollar.models.teacher import Teacher
from dollar.planning.work import forwards
from dollar.training.loop import Loop

Build = Callable[..., Loop]


def test_step_counts_are_drawn_in_proportion_to_their_shares() -> None:
    seen: Counter[int] = Counter()
    for cycle in range(2000):
        drawn = {Draws(0, cycle, range(rank, 4, 2)).shared_choice("step count", [1, 2, 5]) for rank in range(2)}
        assert len(drawn) == 1, "the same on every process"
        seen[drawn.pop()] += 1
    for place, share in enumerate((1 / 8, 2 / 8, 5 / 8)):
        assert abs(seen[place] - 2000 * share) < 4.5 * (2000 * share * (1 - share)) ** 0.5


def test_a_run_draws_them_so_and_a_plan_counts_them_so(build: Build) -> None:
    shares = ("student.steps=[4,2,1]", "student.shares=[1,1,98]")
    loop = build("beta_ft=0", "cycles=2", *shares)
    seen = Counter(loop.method.run.sampler(loop.method.draws(cycle)).steps for cycle in range(200))
    assert seen[1] > 185
    cycle = cycle_of(compose("plan", *TINY_RUN, *TINY_DATA, *shares))
    each = [forwards(replace(cycle, steps=[steps], shares=None)).total for steps in (4, 2, 1)]
    assert forwards(cycle).total == pytest.approx((each[0] + each[1] + 98 * each[2]) / 100)
    for wrong in ("[1,2]", "[1,0,1]"):
        with pytest.raises(ValueError, match=r"student.shares is .*each of student.steps, \[4, 2, 1\], or null"):
            build("student.steps=[4,2,1]", f"student.shares={wrong}")


def test_more_steps_than_there_are_times_are_refused(teacher: Teacher) -> None:
    assert few_steps(teacher, None, [8], "renoise")[8].steps == 8
    with pytest.raises(ValueError, match=r"student.steps has 1000, but this teacher has not so many times"):
        few_steps(teacher, None, [1000], "renoise")


def test_where_a_term_is_used() -> None:
    everywhere, one = VSD(), VSD(step_counts=[1, 2])
    assert all(is_used(everywhere, steps, k) for steps, k in ((4, 0), (4, 3), (1, 0)))
    assert [is_used(one, steps) for steps in (4, 2, 1)] == [False, True, True]
    first, later = Pull(at="first"), VSD(at="later")
    assert [is_used(first, 4, k) for k in range(4)] == [True, False, False, False]
    assert [is_used(later, 4, k) for k in range(4)] == [False, True, True, True]
    assert is_used(later, 1, 0), "the only step isn't left out"


def test_updates_that_lack_what_they_need_are_refused() -> None:
    objective = Objective({"vsd": VSD(at="later"), "pull": Pull(at="first")})
    objective.check_use([4, 2, 1])
    for terms, balance, told in (
        ({"vsd": VSD(step_counts=[3])}, None, r"vsd.step_counts is \[3\]; give some of student.steps, \[4, 1\]"),
        ({"vsd": VSD(step_counts=[])}, None, r"vsd.step_counts is \[\]; give some"),
        ({"vsd": VSD(step_counts=[4])}, None, "no term is used in updates of 1 step from the first on"),
        ({"vsd": VSD(at="first")}, None, "no term is used in updates of 4 steps from the second on"),
        ({"vsd": VSD(step_counts=[1]), "ft": LatentRewardTerm()}, 0.5, "balance is 0.5, but VSD.* of 4 steps from the"),
    ):
        with pytest.raises(ValueError, match=told):
            Objective(terms, balance).check_use([4, 1])
    with pytest.raises(ValueError, match="vsd.at is 'last'; use all or first or later"):
        Objective({"vsd": VSD(at="last")})
    # The sizes that others are relative to may come from updates of other step counts.
    Objective({"vsd": VSD(step_counts=[1]), "adversarial": Adversarial()}).check_use([1])


ONE_MORE = (
    "+vsd_one={_target_: dollar.losses.vsd.VSD, beta: 0.5, guidance_scale: 2.0, step_counts: [1]}",
    "+terms.vsd_one=${vsd_one}",
)


def test_two_terms_of_a_class_have_other_numbers_for_other_step_counts(build: Build) -> None:
    """Which of them is logged, fitted and compared with follows the step count that is drawn; the rest is as before."""
    loop = build(
        "beta_ft=0",
        "cycles=12",
        "student.steps=[4,1]",
        "vsd.step_counts=[4]",
        "cd.step_counts=[1]",
        "beta_adversarial=0.3",
        "adversarial.step_counts=[1]",
        "log.gradients_every=0",
        *ONE_MORE,
    )
    seen: dict[int, set[str]] = {}
    for cycle in range(12):
        logged = loop.run_cycle(cycle)
        steps = loop.method.student.drawn[0].context.sampler.steps
        names = {name.removeprefix("loss/") for name in logged if name.startswith("loss/")}
        assert seen.setdefault(steps, names) == names
        if steps == 1 and cycle > 2:
            ratio = logged["grad_norm/x_hat/adversarial"] / logged["grad_norm/x_hat/vsd_one"]
            assert 0.1 < ratio < 0.9  # 0.3 in the mean over cycles
        assert ("adversarial/right" in logged) == (steps == 1)
    assert seen == {4: {"vsd", "fake"}, 1: {"vsd_one", "cd", "adversarial", "fake"}}


def test_a_reward_is_balanced_by_a_term_that_joined_later(build: Build) -> None:
    """The VSD of a step count may come after the reward in the list of terms."""
    loop = build(
        "beta_cd=0",
        "beta_ft=1000",
        "balance=0.1",
        "lrm.warmup=1",
        "cycles=12",
        "student.steps=[4,1]",
        "student.shares=[1,99]",
        "vsd.step_counts=[4]",
        "log.gradients_every=0",
        *ONE_MORE,
    )
    found = [loop.run_cycle(cycle) for cycle in range(3)][-1]
    assert found["grad_norm/x_hat/ft"] == pytest.approx(0.1 * found["grad_norm/x_hat/vsd_one"], rel=0.05)
