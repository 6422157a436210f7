"""Consistency distillation: zero where the student is consistent with the teacher, and only there."""

from __future__ import annotations

import pytest
import torch
from diffusers import CogVideoXDDIMScheduler

from dollar.diffusion.denoise import Reached, walk
from dollar.diffusion.schedule import RectifiedFlow, VariancePreserving, diffuse, expand_like
from dollar.diffusion.timesteps import consistency_function
from dollar.losses.consistency import consistency, consistency_target

PRESERVING = VariancePreserving(CogVideoXDDIMScheduler(rescale_betas_zero_snr=True, snr_shift_scale=3.0).alphas_cumprod)
BOTH = pytest.mark.parametrize("schedule", [PRESERVING, RectifiedFlow(3.0)], ids=["vp", "flow"])
M, S = 0.4, 0.7  # the Gaussian data's mean and standard deviation


def coefficients(schedule, t, x):
    return (expand_like(c, x) for c in schedule.coefficients(t))


def posterior_mean(schedule):
    """E[x_0 | x_t] of N(M, S^2): the exact denoiser, and a student that is not consistent."""

    def denoise(x_t, t):
        a, b = coefficients(schedule, t, x_t)
        return M + a * S**2 / (a**2 * S**2 + b**2) * (x_t - a * M)

    return denoise


def flow_map(schedule, s=None):
    """The exact ODE of N(M, S^2), from x_t at t to x at s [B], or to x_0."""

    def move(x_t, t):
        a, b = coefficients(schedule, t, x_t)
        to = torch.full_like(t, schedule.clean) if s is None else s
        a_s, b_s = coefficients(schedule, to, x_t)
        return a_s * M + ((a_s**2 * S**2 + b_s**2) / (a**2 * S**2 + b**2)).sqrt() * (x_t - a * M)

    return move


def starts(grid, m, count=64):
    """The start indices [count], all over the grid and always some nearer than m to its end."""
    steps = len(grid) - 1
    return torch.cat([torch.arange(count - m) * steps // (count - m), torch.arange(steps - m, steps).clamp(min=0)])


def noised(schedule, grid, start, data):
    eps = torch.randn(len(start), 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return diffuse(data, eps, grid[start], schedule), eps


@BOTH
@pytest.mark.parametrize("m", [1, 5])
@pytest.mark.parametrize("distance", ["pseudo_huber", "mse"])
def test_a_point_mass_costs_nothing(schedule, m, distance):
    grid = schedule.grid(50)
    start = starts(grid, m)
    point = torch.full((64, 1), 0.8, dtype=torch.float64)
    x, eps = noised(schedule, grid, start, point)

    def f(x_t, t):
        return consistency_function(x_t, torch.full_like(x_t, 0.8), schedule.thousandths(t))

    reached = walk(lambda x_t, t: torch.full_like(x_t, 0.8), x, start, grid, m, schedule)
    torch.testing.assert_close(reached.x, diffuse(point, eps, reached.t, schedule))
    loss = consistency(f(x, grid[start]), consistency_target(f, reached, schedule), distance)
    # What is left is c_skip, at most 7e-6 of x from t = 19 on.
    torch.testing.assert_close(loss, torch.zeros(64), rtol=0, atol=3e-7)
    assert consistency(f(x, grid[start]) + 0.01, consistency_target(f, reached, schedule), distance).min() > 9e-5


@BOTH
@pytest.mark.parametrize("m", [1, 5])
def test_a_gaussian_costs_nothing_with_exact_flow_maps(schedule, m):
    grid = schedule.grid(50)
    start = starts(grid, m)
    x, _ = noised(schedule, grid, start, torch.full((64, 1), 0.8, dtype=torch.float64))
    s = grid[(start + m).clamp(max=50)]
    reached = Reached(flow_map(schedule, s)(x, grid[start]), s)

    def loss(f):
        return consistency(f(x, grid[start]), consistency_target(f, reached, schedule), "mse")

    torch.testing.assert_close(loss(flow_map(schedule)), torch.zeros(64), rtol=0, atol=1e-13)
    assert loss(posterior_mean(schedule)).mean() > 1e-5  # a one-step denoiser is not the ODE's map


@BOTH
@pytest.mark.parametrize("m", [1, 5])
def test_ddim_walks_come_nearer_as_the_grid_is_refined(schedule, m):
    f, means = flow_map(schedule), []
    for steps in (25, 50, 100, 200):
        grid = schedule.grid(steps)
        start = torch.arange(64) * (steps - m) // 64  # whole walks
        x, _ = noised(schedule, grid, start, torch.full((64, 1), 0.8, dtype=torch.float64))
        reached = walk(posterior_mean(schedule), x, start, grid, m, schedule)
        means.append(float(consistency(f(x, grid[start]), consistency_target(f, reached, schedule)).mean()))
    assert means == sorted(means, reverse=True)
    assert means[-1] < means[0] / 3


@BOTH
def test_short_walks_end_on_x_0_and_cost_the_same_forwards(schedule):
    grid = schedule.grid(50)
    start = torch.tensor([10, 44, 45, 46, 49])
    x, _ = noised(schedule, grid, start, torch.full((5, 1), 0.8, dtype=torch.float64))
    teacher_calls, student_times = [], []

    def teacher(x_t, t):
        teacher_calls.append(t)
        return posterior_mean(schedule)(x_t, t)

    def f(x_t, t):
        student_times.append(t)
        return torch.full_like(x_t, 7.0)

    reached = walk(teacher, x, start, grid, 5, schedule)
    target = consistency_target(f, reached, schedule)
    assert len(teacher_calls) == 5
    assert len(student_times) == 1
    assert (student_times[0] >= 0).all()  # no network is asked about a time of -1
    assert all((t > 0).all() for t in teacher_calls)
    assert (target.squeeze(1) == 7).tolist() == [True, True, False, False, False]
    assert torch.equal(target[2:], reached.x[2:])


@BOTH
def test_nothing_that_f_says_at_the_data_is_used(schedule):
    x = torch.randn(2, 3)
    reached = Reached(x, torch.tensor([schedule.clean, schedule.clean]))
    assert torch.equal(consistency_target(lambda x_t, t: torch.full_like(x_t, float("nan")), reached, schedule), x)
    # ... although f is the identity there anyway.
    f = consistency_function(x, torch.randn(2, 3), schedule.thousandths(reached.t))
    assert torch.equal(f, x)


def test_no_gradient_reaches_the_target():
    scale = torch.tensor(2.0, requires_grad=True)
    x, t = torch.randn(2, 3), torch.tensor([0.5, 0.0])
    target = consistency_target(lambda x_t, t: scale * x_t, Reached(x, t), RectifiedFlow())
    assert not target.requires_grad
    loss = consistency(scale * x, scale * x + 0.1)
    (gradient,) = torch.autograd.grad(loss.sum(), scale)
    assert abs(gradient) > 0  # the two scales' gradients would cancel


def test_distances():
    f, target = torch.tensor([[3.0, 0.0, -4.0], [1e-3, 1e-3, 1e-3]]), torch.zeros(2, 3)
    c = 1e-3
    expected = [((9 + c**2) ** 0.5 + (16 + c**2) ** 0.5 - 2 * c) / 3, (2**0.5 - 1) * c]
    assert consistency(f, target, c=c).tolist() == pytest.approx(expected, rel=1e-5)
    assert consistency(f, target, "mse").tolist() == pytest.approx([25 / 3, 1e-6], rel=1e-5)
    # c is read: with a large one pseudo-Huber is d^2 / 2c.
    assert consistency(f, target, c=1e3).tolist() == pytest.approx([25 / 3 / 2e3, 1e-6 / 2e3], rel=1e-4)
    assert consistency(f.bfloat16(), target.bfloat16()).dtype == torch.float32
    with pytest.raises(ValueError, match="use pseudo_huber or mse"):
        consistency(f, target, "huber")


def test_equal_inputs_have_a_finite_gradient():
    f = torch.zeros(1, 3, requires_grad=True)
    loss = consistency(f, torch.zeros(1, 3))
    loss.sum().backward()
    assert loss.item() == 0
    assert torch.equal(f.grad, torch.zeros(1, 3))
