"""Denoising: against diffusers, closed forms, and the order of convergence with an exact Gaussian denoiser."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from diffusers import CogVideoXDDIMScheduler, FlowMatchEulerDiscreteScheduler

from dollar.diffusion.denoise import ddim_step, guide, noise_of, posterior, sample, sigma, walk
from dollar.diffusion.prediction import FLOW, V
from dollar.diffusion.schedule import RectifiedFlow, VariancePreserving, diffuse, expand_like

FLOWING = RectifiedFlow(3.0)


def cogvideox(shift: float = 1.0) -> CogVideoXDDIMScheduler:
    return CogVideoXDDIMScheduler(
        rescale_betas_zero_snr=True, snr_shift_scale=shift, prediction_type="v_prediction", timestep_spacing="trailing"
    )


PRESERVING = VariancePreserving(cogvideox().alphas_cumprod)


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(len(shape) + shape[0]))


def gaussian_denoiser(m, s, schedule):
    """E[x_0 | x_t] of N(m, s^2)."""

    def denoise(x_t, t):
        a, b = (expand_like(c, x_t) for c in schedule.coefficients(t))
        return m + a * s**2 / (a**2 * s**2 + b**2) * (x_t - a * m)

    return denoise


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_one_step_is_cogvideox_schedulers(shift):
    scheduler = cogvideox(shift)
    scheduler.set_timesteps(50)
    schedule = VariancePreserving(scheduler.alphas_cumprod)
    grid = schedule.grid(50)
    x_t, output = draw(1, 2, 3, 4, 5), draw(1, 2, 3, 4, 5) + 1
    for i in (0, 1, 24, 48, 49):
        t, s = grid[i : i + 1], grid[i + 1 : i + 2]
        moved = ddim_step(x_t, V.x_0(x_t, output, t, schedule), t, s, schedule)
        theirs = scheduler.step(output, int(t), x_t).prev_sample
        torch.testing.assert_close(moved, theirs, rtol=5e-16, atol=5e-16)


def test_a_flow_step_is_eulers():
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25])
    torch.testing.assert_close(FLOWING.grid(4).float(), scheduler.sigmas)
    # diffusers keeps its times in float32, and rounds the sample to it.
    grid = scheduler.sigmas.double()
    x_t, velocity = draw(1, 2, 3, 4, 5).float().double(), draw(1, 2, 3, 4, 5) + 1
    for i, timestep in enumerate(scheduler.timesteps):
        t, s = grid[i : i + 1], grid[i + 1 : i + 2]
        moved = ddim_step(x_t, FLOW.x_0(x_t, velocity, t, FLOWING), t, s, FLOWING)
        theirs = scheduler.step(velocity, timestep, x_t).prev_sample
        torch.testing.assert_close(moved, theirs, rtol=0, atol=1.5e-8)


def test_guidance_is_the_papers_with_s_one_above_w():
    conditional, null = draw(2, 3), draw(3, 3)[:2]
    for w in (3.5, 7.5):
        torch.testing.assert_close(guide(conditional, null, 1 + w), conditional + w * (conditional - null))
    torch.testing.assert_close(guide(conditional, null, 1.0), conditional)
    torch.testing.assert_close(guide(conditional, null, 0.0), null)


@pytest.mark.parametrize("schedule", [PRESERVING, FLOWING], ids=["vp", "flow"])
def test_guiding_the_output_or_x_0_is_the_same(schedule):
    prediction = V if schedule is PRESERVING else FLOW
    x_t, conditional, null = draw(2, 3), draw(3, 3)[:2], draw(4, 3)[:2]
    t = schedule.grid(4)[:2]
    torch.testing.assert_close(
        prediction.x_0(x_t, guide(conditional, null, 4.5), t, schedule),
        guide(prediction.x_0(x_t, conditional, t, schedule), prediction.x_0(x_t, null, t, schedule), 4.5),
    )


def test_noise_of_finds_the_noise():
    x_0, eps, t = draw(4, 3), draw(5, 3)[:4], PRESERVING.grid(4)[:4]
    torch.testing.assert_close(noise_of(diffuse(x_0, eps, t, PRESERVING), x_0, t, PRESERVING), eps)


@pytest.mark.parametrize("schedule", [PRESERVING, RectifiedFlow(), FLOWING], ids=["vp", "flow", "shifted"])
def test_sigma_is_never_above_b(schedule):
    grid = schedule.grid(50)
    t, s = (pair.reshape(-1) for pair in torch.meshgrid(grid, grid, indexing="ij"))
    later = schedule.coefficients(t).b > schedule.coefficients(s).b
    spread, b_s = sigma(t[later], s[later], 1.0, schedule), schedule.coefficients(s[later]).b
    assert (spread <= b_s).all()
    assert (spread[b_s > 0] > 0).all()
    torch.testing.assert_close(sigma(t[later], s[later], 0.3, schedule), 0.3 * spread)


def test_sigma_is_the_usual_form_on_a_variance_preserving_schedule():
    grid = PRESERVING.grid(50)
    t, s = grid[:-2], grid[1:-1]
    (a_t, b_t), (a_s, b_s) = PRESERVING.coefficients(t), PRESERVING.coefficients(s)
    usual = b_s / b_t * (1 - a_t**2 / a_s**2).sqrt()
    torch.testing.assert_close(sigma(t, s, 1.0, PRESERVING), usual, rtol=1e-12, atol=0)


@pytest.mark.parametrize("schedule", [PRESERVING, FLOWING], ids=["vp", "flow"])
def test_eta_keeps_the_law_of_x_s(schedule):
    """With the true x_0 the variance about a_s x_0 is b_s^2, whatever eta."""
    grid = schedule.grid(4)
    x_0, eps, z = draw(3, 2), draw(4, 2)[:3], draw(5, 2)[:3]
    t, s = grid[:3], grid[1:4]
    x_t, (a_s, b_s) = diffuse(x_0, eps, t, schedule), schedule.coefficients(s)
    for eta in (0.0, 0.5, 1.0):
        spread = sigma(t, s, eta, schedule)
        on_eps = (b_s**2 - spread**2).sqrt()
        expected = a_s[:, None] * x_0 + on_eps[:, None] * eps + spread[:, None] * z
        torch.testing.assert_close(ddim_step(x_t, x_0, t, s, schedule, eta, z), expected)


def test_noise_is_asked_for():
    x, t = draw(1, 2), PRESERVING.grid(4)
    with pytest.raises(ValueError, match="pass z"):
        ddim_step(x, x, t[:1], t[1:2], PRESERVING, eta=0.5)


@pytest.mark.parametrize("schedule", [PRESERVING, RectifiedFlow(), FLOWING], ids=["vp", "flow", "shifted"])
def test_posterior_is_the_eta_one_step_and_bayes(schedule):
    grid = schedule.grid(10)
    t, s = grid[1:9], grid[2:10]  # with signal at t and noise at s
    x_t, x_0 = draw(8, 3), draw(9, 3)[:8]
    found = posterior(x_t, x_0, t, s, schedule)
    torch.testing.assert_close(found.mean, ddim_step(x_t, x_0, t, s, schedule, 1.0, torch.zeros_like(x_t)))
    # Bayes: N(x_s; a_s x_0, b_s^2) times N(x_t; k x_s, b_t^2 - k^2 b_s^2), k = a_t / a_s.
    (a_t, b_t), (a_s, b_s) = ([c[:, None] for c in schedule.coefficients(time)] for time in (t, s))
    k = a_t / a_s
    left = b_t**2 - k**2 * b_s**2
    precision = 1 / b_s**2 + k**2 / left
    torch.testing.assert_close(found.mean, (a_s * x_0 / b_s**2 + k * x_t / left) / precision)
    torch.testing.assert_close(found.sd[:, None], precision**-0.5)


def test_posterior_of_adjacent_steps_is_ddpms():
    scheduler = CogVideoXDDIMScheduler()  # without zero terminal SNR: the textbook divides by alpha_t
    schedule = VariancePreserving(scheduler.alphas_cumprod)
    t = torch.tensor([999, 500, 20, 1])
    x_t, x_0 = draw(4, 3), draw(5, 3)[:4]
    bar, bar_before = scheduler.alphas_cumprod[t], scheduler.alphas_cumprod[t - 1]
    alpha = bar / bar_before
    on_x_0 = bar_before.sqrt() * (1 - alpha) / (1 - bar)
    on_x_t = alpha.sqrt() * (1 - bar_before) / (1 - bar)
    found = posterior(x_t, x_0, t, t - 1, schedule)
    torch.testing.assert_close(found.mean, on_x_0[:, None] * x_0 + on_x_t[:, None] * x_t)
    torch.testing.assert_close(found.sd, ((1 - alpha) * (1 - bar_before) / (1 - bar)).sqrt())


@pytest.mark.parametrize("schedule", [PRESERVING, FLOWING], ids=["vp", "flow"])
def test_a_posterior_that_ends_clean_is_x_0(schedule):
    grid, x = schedule.grid(4), draw(1, 3)
    mean, sd = posterior(x, x + 1, grid[-2:-1], grid[-1:], schedule)
    torch.testing.assert_close(mean, x + 1)
    assert sd == 0


@pytest.mark.parametrize("schedule", [PRESERVING, FLOWING], ids=["vp", "flow"])
@pytest.mark.parametrize("m", [1, 5])
def test_walk_is_m_single_steps_and_stops_at_the_data(schedule, m):
    grid, denoise = schedule.grid(8), gaussian_denoiser(0.3, 0.6, schedule)
    forwards = []

    def counted(x_t, t):
        forwards.append(t)
        return denoise(x_t, t)

    start = torch.tensor([0, 3, 5, 6, 7])
    x = draw(5, 2, 1, 2, 3)
    found = walk(counted, x, start, grid, m, schedule)
    assert len(forwards) == m
    for i, n in enumerate(start.tolist()):
        one = x[i : i + 1]
        for k in range(n, min(n + m, 8)):
            t, s = grid[k : k + 1], grid[k + 1 : k + 2]
            one = ddim_step(one, denoise(one, t), t, s, schedule)
        torch.testing.assert_close(found.x[i], one[0], rtol=0, atol=1e-14)
        assert found.t[i] == grid[min(n + m, 8)]


def flow_error(steps, s, schedule):
    """Distance between the sampler's end and the exact flow's, from the same noise, for data N(0.5, s^2)."""
    noise = torch.tensor([[-1.5], [0.7], [2.0]], dtype=torch.float64)
    found = sample(gaussian_denoiser(0.5, s, schedule), noise, schedule.grid(steps), schedule)
    return float((found - (0.5 + s * noise)).abs().mean())


@pytest.mark.parametrize("s", [0.5, 1.0, 2.0])
def test_the_sampler_is_of_first_order_on_rectified_flow(s):
    errors = [flow_error(steps, s, RectifiedFlow()) for steps in (20, 40, 80, 160)]
    slopes = [math.log2(coarse / fine) for coarse, fine in pairwise(errors)]
    assert all(0.9 < slope < 1.1 for slope in slopes), slopes


@pytest.mark.parametrize("s", [0.5, 2.0])
def test_the_sampler_improves_on_the_cogvideox_grid(s):
    # Only so much: the last interval, 19 or less to clean, does not shrink with the others.
    errors = [flow_error(steps, s, PRESERVING) for steps in (20, 40, 80, 160)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.1
