"""Steps on their own intervals of noise: the law that training rests at, and the fake score that leads there."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from conftest import LATENT
from test_terms import FLOW, PRESERVING, context_of
from test_vsd import M, S, gaussian_denoiser
from torch import Tensor

from dollar.diffusion.schedule import diffuse
from dollar.diffusion.timesteps import FewStep
from dollar.losses.intervals import Noised, directly, interval, noised_in, onwards
from dollar.losses.objective import Objective
from dollar.losses.term import Sample
from dollar.losses.vsd import VSD, vsd
from dollar.training.loop import Loop


def sampler_of(between: str, *times: float, schedule=FLOW) -> FewStep:
    kind = torch.float64 if schedule is FLOW else torch.int64
    return FewStep(schedule, torch.tensor(times, dtype=kind), between)


def regressed(noised: Noised) -> tuple[float, float]:
    """Slope and constant of the best linear x_0 for x_t, in the loss's own weights: what a fake score would learn."""
    w, x, y = (part.double().flatten() for part in (noised.weight, noised.x_t, noised.x_0))
    mean_x, mean_y = (w * x).sum() / w.sum(), (w * y).sum() / w.sum()
    slope = (w * (x - mean_x) * (y - mean_y)).sum() / (w * (x - mean_x) ** 2).sum()
    return float(slope), float(mean_y - slope * mean_x)


@pytest.mark.parametrize("schedule", [FLOW, PRESERVING], ids=["flow", "vp"])
@pytest.mark.parametrize("fraction", [0.6, 0.9])
def test_the_fake_score_learns_the_law_of_the_states_between(schedule, fraction: float) -> None:
    """x_s of N(m, v), noised on to t: its score's x_0 is (x_t - b^2 (x_t - alpha m) / (alpha^2 v + sigma^2)) / a."""
    count, generator = 400_000, torch.Generator().manual_seed(0)
    z, e = torch.randn(2, count, 1, generator=generator, dtype=torch.float64)
    s = torch.tensor([0.5 if schedule is FLOW else 499]).expand(count)
    t = schedule.uniform(torch.full((count,), fraction))
    found = onwards(0.3 + 0.6 * z, e, s, t, schedule)
    (a_s, b_s), (a, b) = ((float(c[0]) for c in schedule.coefficients(time)) for time in (s, t))
    alpha = a / a_s
    sigma2 = b**2 - alpha**2 * b_s**2
    torch.testing.assert_close(found.x_t, diffuse(found.x_0, found.eps, t, schedule))
    slope, constant = regressed(found)
    variance = alpha**2 * 0.6**2 + sigma2
    assert slope == pytest.approx((1 - b**2 / variance) / a, abs=0.02)
    assert constant == pytest.approx(b**2 * alpha * 0.3 / variance / a, abs=0.02)
    assert float(found.weight[0]) == pytest.approx(sigma2 / b**2, rel=1e-5)


def first_step(n: Tensor, r: Tensor, z: Tensor) -> Sample:
    """A student whose first x_0 is n + r z of its noise z."""
    return Sample(z, 0, n + r * z)


def rests_at(target: Callable[[FewStep, Sample, Tensor, Tensor], Noised], between: str) -> tuple[float, float]:
    """Where n and r rest that are trained on the first interval with a fake score that learns such targets."""
    sampler = sampler_of(between, 1.0, 0.5)
    n, r = torch.tensor(-0.3), torch.tensor(0.9)
    generator, visited = torch.Generator().manual_seed(0), []
    teacher = gaussian_denoiser(M, S, FLOW)
    for step in range(150):
        z, e = torch.randn(2, 8192, 1, generator=generator)
        t = torch.full((8192,), 0.75)
        sample = first_step(n, r, z)
        slope, constant = regressed(target(sampler, sample, e, t))
        leaf = sample.x_hat.clone().requires_grad_()
        z2, e2 = torch.randn(2, 8192, 1, generator=generator)
        fresh = first_step(n, r, z2)
        leaf = fresh.x_hat.requires_grad_()
        x_t = noised_in(sampler, fresh, e2, t, FLOW).x_t
        loss = vsd(leaf, teacher(x_t, t), slope * x_t + constant, torch.ones(len(leaf)))
        (g,) = torch.autograd.grad(loss.sum(), leaf)
        rate = 1.5 if step < 75 else 0.5
        n, r = n - rate * g.mean(), r - rate * (g * z2).mean()
        visited.append((float(n), float(r)))
    return tuple(sum(v) / 50 for v in zip(*visited[100:], strict=True))  # type: ignore[return-value]


def naive(sampler: FewStep, sample: Sample, e: Tensor, t: Tensor) -> Noised:
    """x_hat as the target where x_t comes from the next state."""
    return noised_in(sampler, sample, e, t, FLOW)._replace(x_0=sample.x_hat, weight=torch.ones(len(t)))


def test_training_on_an_interval_rests_at_the_right_law() -> None:
    """DDIM from pure noise to 1/2 makes x = (n + (1 + r) z) / 2, and the teacher's law is N(a m, a^2 s^2 + b^2) there.

    A step that renoises needs x_hat like data. The target of a sample that was never noised directly is another one.
    """
    right = 2 * math.hypot(0.5 * S, 0.5) - 1
    n, r = rests_at(lambda sampler, sample, e, t: noised_in(sampler, sample, e, t, FLOW), "ddim")
    assert (n, r) == pytest.approx((M, right), abs=0.02)
    n, r = rests_at(lambda sampler, sample, e, t: noised_in(sampler, sample, e, t, FLOW), "renoise")
    assert (n, r) == pytest.approx((M, S), abs=0.03)
    n, r = rests_at(naive, "ddim")
    assert abs(r - right) > 0.1


def test_intervals_are_those_of_the_steps_and_of_the_range() -> None:
    flow, vp = sampler_of("ddim", 1.0, 0.75, 0.5, 0.25), sampler_of("ddim", 999, 749, 499, 249, schedule=PRESERVING)
    for sampler in (flow, vp):
        assert [interval(sampler, k) for k in range(4)] == [(0.75, 1), (0.5, 0.75), (0.25, 0.5), (0, 0.25)]
    term = VSD(intervals=True)
    assert [term.bounds(flow, k) for k in (0, 1, 3)] == [(0.75, 0.98), (0.5, 0.75), (0.02, 0.25)]
    u = torch.linspace(0, 1 - 1e-9, 1000, dtype=torch.float64)
    for k in range(4):
        t = PRESERVING.uniform(term.fake_times(u, 0.5, *interval(vp, k)))
        assert (int(t.min()), int(t.max())) == (250 * (3 - k), 250 * (3 - k) + 249)
    with pytest.raises(ValueError, match=r"vsd.range is \[0.02, 0.7\], which leaves nothing to one of the student's 4"):
        VSD(intervals=True, range=(0.02, 0.7)).check([flow])
    with pytest.raises(ValueError, match="vsd.lower_half is 0.5, but with vsd.intervals=true"):
        VSD(intervals=True, lower_half=0.5)


def test_the_last_step_and_one_that_renoises_are_noised_directly() -> None:
    x, x_hat, e = torch.randn(3, 5, 2)
    t = torch.full((5,), 0.2)
    for between, k in (("ddim", 1), ("renoise", 0)):
        found = noised_in(sampler_of(between, 1.0, 0.5), Sample(x, k, x_hat), e, t, FLOW)
        for part, expected in zip(found, directly(x_hat, e, t, FLOW), strict=True):
            assert torch.equal(part, expected)
    objective = Objective({"vsd": VSD()})
    whole = objective.fake_sample(sampler_of("ddim", 1.0, 0.5), Sample(x, 0, x_hat), torch.rand(5), e, 0.0, FLOW)
    assert torch.equal(whole.x_0, x_hat) and bool((whole.weight == 1).all())


@pytest.mark.parametrize("between", ["ddim", "renoise"])
def test_vsd_and_fake_score_keep_to_the_interval_in_a_run(build: Callable[..., Loop], between: str) -> None:
    loop = build(
        "beta_ft=0", "beta_cd=0", "cycles=8", "vsd.intervals=true", f"student.between={between}", "student.steps=[2]"
    )
    run, seen = loop.method.run, []
    for denoiser in (run.teacher, run.roles["fake"].denoiser):
        denoiser.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[1]))
    depths = set()
    for cycle in range(6):
        seen.clear()
        loop.run_cycle(cycle)
        (drawn,) = loop.method.student.drawn
        depths.add(drawn.sample.k)
        low, high = ((500, 999), (0, 499))[drawn.sample.k]
        for t in seen[:3]:  # the teacher's and the fake score's at VSD, and the fake score's first update
            assert low <= int(t.min()) and int(t.max()) <= high
    assert depths == {0, 1}
    assert run.latent_shape == LATENT


# The anchor


@pytest.mark.parametrize(("schedule", "times"), [(FLOW, (1.0, 0.5)), (PRESERVING, (999, 499))], ids=["flow", "vp"])
def test_a_pull_to_the_next_time_is_to_what_leads_there(schedule, times) -> None:
    """The step with it ends where the teacher's walk does; by many steps of it, x there has the teacher's law."""
    from dollar.diffusion.denoise import sample as along
    from dollar.losses.pull import Pull, grid_from

    sampler = sampler_of("ddim", *times, schedule=schedule)
    context = replace(context_of(sampler, None, 5000), sampler=sampler)
    x = context.noise(0)
    few = Pull(steps=3, until="next").target(context, Sample(x, 0, x))
    end = along(context.teacher(1.0), x, grid_from(sampler.times[0], 3, schedule, times[1]), schedule)
    torch.testing.assert_close(sampler.advance(x, few, 0, context.noise), end, atol=1e-5, rtol=1e-4)

    many = Pull(steps=100, until="next").target(context, Sample(x, 0, x))
    a, b = (float(c) for c in schedule.coefficients(sampler.times[1]))
    flow_map = a * M + math.hypot(a * S, b) * x
    a_0, b_0 = (float(c) for c in schedule.coefficients(sampler.times[0]))
    torch.testing.assert_close(sampler.advance(x, many, 0, context.noise), flow_map, atol=0.02, rtol=0)
    expected = (flow_map - b / b_0 * x) / (a - a_0 * b / b_0)
    torch.testing.assert_close(many, expected, atol=0.05, rtol=0)
    # A step that renoises needs x_hat like data, and so does the last one: the teacher's clip.
    for other, k in ((replace(sampler, between="renoise"), 0), (sampler, 1)):
        clip = Pull(steps=3).target(replace(context, sampler=other), Sample(x, k, x))
        assert torch.equal(Pull(steps=3, until="next").target(replace(context, sampler=other), Sample(x, k, x)), clip)
    loss = Pull(until="next", distance="pseudo_huber").loss(context, Sample(x, 1, x + 100))
    assert float(loss.mean()) == pytest.approx(100, abs=1.0), "far away a distance, not its square"


def test_an_anchored_first_step_is_left_out_of_vsd(build: Callable[..., Loop]) -> None:
    loop = build(
        "beta_ft=0", "beta_cd=0", "cycles=8", "student.steps=[2,1]", "student.between=ddim", "log.gradients_every=0",
        "beta_pull=1", "pull.until=next", "pull.at=first", "pull.distance=pseudo_huber", "pull.steps=2", "vsd.at=later",
    )  # fmt: skip
    seen = {}
    for cycle in range(8):
        logged = loop.run_cycle(cycle)
        (drawn,) = loop.method.student.drawn
        names = {name.removeprefix("loss/") for name in logged if name.startswith("loss/")}
        assert seen.setdefault((drawn.context.sampler.steps, drawn.sample.k), names) == names
    assert seen == {(2, 0): {"pull", "fake"}, (2, 1): {"vsd", "fake"}, (1, 0): {"vsd", "pull", "fake"}}
