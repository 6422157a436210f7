"""Further terms of the student's loss, each against its closed form: policy gradient, reward gradient, pull."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from test_vsd import M, S, gaussian_denoiser
from torch import Tensor

from dollar.diffusion.denoise import sample
from dollar.diffusion.schedule import RectifiedFlow, VariancePreserving
from dollar.diffusion.timesteps import FewStep
from dollar.losses.consistency import Consistency
from dollar.losses.latent_reward import LatentRewardTerm
from dollar.losses.objective import Objective
from dollar.losses.policy_gradient import PolicyGradient, advantages, log_probability
from dollar.losses.pull import Pull, grid_from, pull
from dollar.losses.reward_gradient import DRaFT, ReFL
from dollar.losses.term import Context, LearningTerm, Needs, RolloutTerm, Sample, SampleTerm
from dollar.losses.vsd import VSD

FLOW = RectifiedFlow()
PRESERVING = VariancePreserving(torch.linspace(0.9999, 0.0, 1000, dtype=torch.float64))
K = 1.7  # of the reward k x


def steps(*times: float, schedule=FLOW) -> FewStep:
    kind = torch.float64 if schedule is FLOW else torch.int64
    return FewStep(schedule, torch.tensor(times, dtype=kind))


def context_of(
    sampler: FewStep, student, count: int, seed: int = 0, reward=lambda x: K * x.flatten(1).sum(1)
) -> Context:
    """A micro-batch of one-number samples with a linear reward."""
    drawn = torch.randn(sampler.steps + 1, count, 1, generator=torch.Generator().manual_seed(seed))
    return Context(
        prompts=["any"] * count,
        sampler=sampler,
        student=student,
        teacher=lambda scale: gaussian_denoiser(M, S, sampler.schedule),
        noise=lambda k: drawn[k],
        reward=lambda x: reward(x.detach()),
        reward_gradient=lambda x, frames: reward(x),
        gather=lambda x: x,
        schedule=sampler.schedule,
    )


def gradient_of(losses, *parameters: Tensor) -> list[Tensor]:
    """The mean loss's gradient, each part carried back before the next is made."""
    for loss in losses:
        loss.mean().backward()
    return [p.grad for p in parameters]


# Policy gradient


def test_log_probability_is_the_normals_own_averaged_over_elements() -> None:
    generator = torch.Generator().manual_seed(0)
    x, mean = torch.randn(2, 5, 3, 4, generator=generator)
    sd = torch.tensor([0.2, 0.7, 1.0, 1.3, 5.0])
    expected = torch.distributions.Normal(mean, sd[:, None, None]).log_prob(x).flatten(1).mean(1)
    torch.testing.assert_close(log_probability(x, mean, sd), expected)


@pytest.mark.parametrize("schedule", [FLOW, PRESERVING], ids=["flow", "vp"])
def test_the_score_functions_gradient_is_the_expected_rewards(schedule) -> None:
    """x_s = a theta + b n, final sample x_s, reward k x: the gradient of E[reward]/sd(reward) is k a / (k b)."""
    count = 200_000
    sampler = steps(1.0, 0.5) if schedule is FLOW else steps(999, 499, schedule=PRESERVING)
    theta = torch.zeros(count, 1, requires_grad=True)  # a copy for each sample, so that their spread is known

    def student(x: Tensor, t: Tensor) -> Tensor:
        return theta + 0 * x if bool((t == sampler.times[0]).all()) else x

    gradient_of((loss * count for loss in PolicyGradient().losses([context_of(sampler, student, count)])), theta)
    a, b = (float(c) for c in schedule.coefficients(sampler.times[1]))
    standard_error = float(theta.grad.std()) / math.sqrt(count)
    assert abs(float(theta.grad.mean()) + a / b) < 4.5 * standard_error
    assert standard_error < 0.02 * a / b


def test_truncation_counts_the_last_random_steps_alone() -> None:
    sampler = steps(1.0, 0.75, 0.5, 0.25)
    scales = torch.tensor([0.9, 0.8, 0.7, 0.6], requires_grad=True)

    def student(x: Tensor, t: Tensor) -> Tensor:
        return scales[int((sampler.times == t[0]).nonzero())] * x

    for truncate, reached in ((1, [2]), (2, [1, 2]), (9, [0, 1, 2])):
        scales.grad = None
        losses = list(PolicyGradient(truncate=truncate).losses([context_of(sampler, student, 64)]))
        assert len(losses) == len(reached)
        gradient_of(losses, scales)
        assert scales.grad.nonzero().flatten().tolist() == reached  # never the last prediction, which has no variance


def test_the_posteriors_kernel_is_sampled_from() -> None:
    """With Eq. 27's kernel, what comes next depends on x_t beside x_0."""
    sampler, seen = steps(0.9, 0.5), []

    def student(x: Tensor, t: Tensor) -> Tensor:
        seen.append(x.detach())
        return torch.zeros_like(x).requires_grad_()

    list(PolicyGradient(kernel="posterior").losses([context_of(sampler, student, 4)]))
    a_t, b_t, a_s, b_s = 0.1, 0.9, 0.5, 0.5
    noise = context_of(sampler, student, 4).noise
    mean = (a_t / a_s) * b_s**2 / b_t**2 * noise(0)
    sd = b_s / b_t * math.sqrt(b_t**2 - (a_t / a_s) ** 2 * b_s**2)
    torch.testing.assert_close(seen[1], mean + sd * noise(1))


def test_advantages_are_standardised_over_everyone_and_leave_out_what_is_no_number() -> None:
    nan = float("nan")
    reward, everyone = torch.tensor([1.0, nan, 5.0]), torch.tensor([1.0, 3.0, nan, 5.0])
    sd = math.sqrt(8 / 3)
    torch.testing.assert_close(advantages(reward, everyone), torch.tensor([-2 / sd, 0.0, 2 / sd]))
    assert advantages(torch.full((3,), 0.3), torch.full((6,), 0.3)).tolist() == [0, 0, 0]
    assert advantages(torch.full((2,), nan), torch.full((2,), nan)).tolist() == [0, 0]
    infinite = torch.tensor([math.inf, -math.inf, 1.0])
    assert advantages(infinite, torch.tensor([1.0, 3.0, math.inf])).tolist() == [0, 0, -1], "not the largest number"


def test_a_student_without_random_steps_is_refused() -> None:
    with pytest.raises(ValueError, match=r"a student of one step has none.*student.steps=\[4\]"):
        PolicyGradient().check([steps(1.0)])
    with pytest.raises(ValueError, match="student.between=ddim has none"):
        PolicyGradient().check([FewStep(FLOW, torch.tensor([1.0, 0.5]), "ddim")])
    PolicyGradient(kernel="posterior", truncate=1).check([FewStep(FLOW, torch.tensor([1.0, 0.5]), "ddim")])
    with pytest.raises(ValueError, match="ddpo.truncate is 2, but the student has 1 random steps"):
        PolicyGradient().check([steps(1.0, 0.5), steps(1.0)])
    assert list(PolicyGradient().losses([context_of(steps(1.0), lambda x, t: x, 3)])) == []
    for wrong, told in (({"truncate": 0}, "ddpo.truncate is 0"), ({"kernel": "ddpm"}, "ddpo.kernel is 'ddpm'")):
        with pytest.raises(ValueError, match=told):
            PolicyGradient(**wrong)


# The reward's own gradient


def test_refl_is_minus_the_rewards_gradient_at_the_sample() -> None:
    x_hat = torch.randn(3, 1).requires_grad_()
    made = Sample(torch.zeros(3, 1), 0, x_hat)
    ReFL().loss(context_of(steps(1.0), None, 3), made).mean().backward()
    torch.testing.assert_close(x_hat.grad, torch.full((3, 1), -K / 3))


def test_draft_goes_back_through_its_last_steps_alone() -> None:
    """Two steps of x_0 = theta x: the sample is theta (a theta x + b n)."""
    sampler = steps(1.0, 0.5)
    for last, expected in ((1, lambda x, n: 0.5 * 0.8 * x + 0.5 * n), (2, lambda x, n: 2 * 0.5 * 0.8 * x + 0.5 * n)):
        theta = torch.tensor(0.8, requires_grad=True)
        context = context_of(sampler, lambda x, t, theta=theta: theta * x, 5)
        gradient_of(DRaFT(last=last).losses([context]), theta)
        torch.testing.assert_close(theta.grad, -K * expected(context.noise(0), context.noise(1)).mean())
    with pytest.raises(ValueError, match="rg.last is 3, more than the 2 steps"):
        DRaFT(last=3).check([sampler, steps(1.0)])


# The pull


def test_grids_end_on_data_and_are_the_schedules_own_from_pure_noise() -> None:
    for count in (1, 2, 4, 5, 50):
        assert grid_from(torch.tensor(999), count, PRESERVING).tolist() == PRESERVING.grid(count).tolist()
        torch.testing.assert_close(grid_from(torch.tensor(1.0).double(), count, FLOW), FLOW.grid(count))
    assert grid_from(torch.tensor(499), 4, PRESERVING).tolist() == [499, 374, 249, 124, -1]


@pytest.mark.parametrize(("schedule", "times"), [(FLOW, (1.0, 0.5)), (PRESERVING, (999, 499))], ids=["flow", "vp"])
@pytest.mark.parametrize("count", [1, 4])
def test_the_pull_rests_where_the_student_makes_the_teachers_clip(schedule, times, count) -> None:
    sampler = steps(*times, schedule=schedule)
    context = context_of(sampler, None, 6)
    x = context.noise(0)
    target = sample(context.teacher(1.0), x, grid_from(sampler.times[1], count, schedule), schedule)
    term = Pull(steps=count)
    assert term.loss(context, Sample(x, 1, target.clone())).max() == 0
    away = (target + 0.25).requires_grad_()
    loss = term.loss(context, Sample(x, 1, away))
    torch.testing.assert_close(loss, torch.full((6,), 0.0625, dtype=loss.dtype))
    loss.mean().backward()
    torch.testing.assert_close(away.grad, torch.full_like(away, 2 * 0.25 / 6))


def test_the_pull_and_a_linear_reward_balance_where_their_gradients_do() -> None:
    x, target = torch.zeros(4, 1, requires_grad=True), torch.randn(4, 1)
    optimizer = torch.optim.SGD([x], lr=1.0)
    for _ in range(200):
        optimizer.zero_grad()
        (0.5 * pull(x, target) - 0.3 * K * x.flatten(1).mean(1)).mean().backward()
        optimizer.step()
    torch.testing.assert_close(x - target, torch.full((4, 1), 0.3 * K / (2 * 0.5)))


def test_terms_know_what_they_look_at() -> None:
    at_sample, by_themselves = (VSD(), LatentRewardTerm(), ReFL(), Pull()), (Consistency(), DRaFT(), PolicyGradient())
    assert all(isinstance(term, SampleTerm) and not isinstance(term, RolloutTerm) for term in at_sample)
    assert all(isinstance(term, RolloutTerm) and not isinstance(term, SampleTerm) for term in by_themselves)
    assert not any(isinstance(term, LearningTerm) for term in (*at_sample, *by_themselves))
    assert [term.needs for term in (*at_sample, *by_themselves)] == [
        *(Needs(fake=True), Needs(surrogate=True), Needs(reward="gradient"), Needs()),
        *(Needs(clips=True), Needs(reward="gradient"), Needs(reward="numbers")),
    ]
    pursuing = [term for term in (*at_sample, *by_themselves) if term.needs.pursues]
    assert [type(term) for term in pursuing] == [LatentRewardTerm, ReFL, DRaFT, PolicyGradient]


def test_an_objective_needs_what_its_terms_need() -> None:
    objective = Objective({"vsd": VSD(), "cd": Consistency(), "ddpo": PolicyGradient(), "refl": ReFL()})
    assert objective.needs == Needs(clips=True, fake=True, reward="gradient")
    assert set(objective.sample_terms) == {"vsd", "refl"} and set(objective.rollout_terms) == {"cd", "ddpo"}
    assert objective.reference == "vsd" and objective.apart == {} and objective.guidance == {"vsd": 4.5, "cd": 8.5}
    apart = Objective({"vsd": VSD(), "ft": LatentRewardTerm(update="separate", accumulate=3)})
    assert set(apart.apart) == {"ft"} and set(apart.sample_terms) == {"vsd"} and apart.needs.surrogate


def test_better_samples_become_likelier() -> None:
    """The gradient turns round with the reward."""
    sampler, found = steps(1.0, 0.5), []
    for sign in (1, -1):
        theta = torch.tensor(0.5, requires_grad=True)
        context = context_of(sampler, lambda x, t, theta=theta: theta * x, 64)
        context = replace(context, reward=lambda x, sign=sign: sign * x.flatten(1).sum(1))
        found += gradient_of(PolicyGradient().losses([context]), theta)
    torch.testing.assert_close(found[0], -found[1])
    assert found[0].abs() > 1e-3
