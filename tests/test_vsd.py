"""Variational score distillation: its gradient in closed form for Gaussians, and where training with it rests."""

from __future__ import annotations

import math

import pytest
import torch

from dollar.diffusion.schedule import RectifiedFlow, VariancePreserving, diffuse, expand_like
from dollar.losses.latent_reward import fine_tune
from dollar.losses.vsd import vsd, vsd_weight

FLOWING = RectifiedFlow()
PRESERVING = VariancePreserving(torch.linspace(0.9999, 0.0, 1000, dtype=torch.float64))
M, S = 0.4, 0.8  # the teacher's law


def gaussian_denoiser(m, s, schedule):
    """E[x_0 | x_t] of N(m, s^2)."""

    def denoise(x_t, t):
        a, b = (expand_like(c, x_t) for c in schedule.coefficients(t))
        return m + a * s**2 / (a**2 * s**2 + b**2) * (x_t - a * m)

    return denoise


def gaussian_vsd(x, n, r, t, eps, schedule, weighting="constant"):
    """The loss [B] of samples x of N(n, r^2) against the teacher N(m, s^2), both denoisers exact."""
    x_t = diffuse(x.detach(), eps, t, schedule)
    real, fake = gaussian_denoiser(M, S, schedule)(x_t, t), gaussian_denoiser(n, r, schedule)(x_t, t)
    return vsd(x, real, fake, vsd_weight(x, real, t, schedule, weighting))


def draw(count, seed):
    return torch.randn(2, count, 1, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("schedule", [PRESERVING, FLOWING], ids=["vp", "flow"])
@pytest.mark.parametrize("fraction", [0.2, 0.5, 0.9])
@pytest.mark.parametrize(("n", "r"), [(1.0, 0.5), (-0.5, 1.2), (M, S)])
def test_expected_gradient_is_the_closed_form(schedule, fraction, n, r):
    count = 100_000
    z, eps = draw(count, 0)
    t = schedule.uniform(torch.full((count,), fraction))
    x = (n + r * z).requires_grad_()
    (g,) = torch.autograd.grad(gaussian_vsd(x, n, r, t, eps, schedule).sum(), x)
    a, b = (float(c[0]) for c in schedule.coefficients(t))
    real, fake = a**2 * S**2 + b**2, a**2 * r**2 + b**2
    for found, expected in (
        (g, b**2 * (n - M) / real),
        (g * z, a**2 * r * b**2 * (r**2 - S**2) / (fake * real)),
    ):
        standard_error = float(found.std()) / math.sqrt(count)
        assert abs(float(found.mean()) - expected) < 4.5 * standard_error + 1e-6


def test_gradient_is_g_over_numel_at_x_alone():
    generator = torch.Generator().manual_seed(1)
    x, real, fake = (torch.randn(3, 2, 2, 3, 4, generator=generator).requires_grad_() for _ in range(3))
    weight = torch.tensor([0.5, 1.0, 3.0], requires_grad=True)
    loss = vsd(x, real, fake, weight)
    assert loss.shape == (3,)
    loss.sum().backward()
    expected = weight[:, None, None, None, None] * (fake - real) / (2 * 2 * 3 * 4)
    torch.testing.assert_close(x.grad, expected.detach(), rtol=1e-5, atol=1e-7)
    assert real.grad is None
    assert fake.grad is None
    assert weight.grad is None


def test_the_difference_survives_bfloat16():
    x = torch.full((1, 4), 100.0, dtype=torch.bfloat16, requires_grad=True)
    real, fake = torch.zeros(1, 4), torch.full((1, 4), 0.01)
    vsd(x, real, fake, torch.ones(1)).sum().backward()
    # x - (x - g) in bfloat16 would have given 0.
    torch.testing.assert_close(x.grad.float(), torch.full((1, 4), 0.01 / 4), rtol=1e-2, atol=0)


@pytest.mark.parametrize("weighting", ["dmd", "score", "constant"])
@pytest.mark.parametrize("shape", [(4, 4, 3, 2, 5), (4, 2, 3, 5, 4), (4, 2, 3, 5, 6)])
def test_weights_are_each_samples_own(weighting, shape):
    x, real = torch.randn(2, *shape)
    t = PRESERVING.uniform(torch.tensor([0.1, 0.4, 0.6, 0.9]))
    weight = vsd_weight(x, real, t, PRESERVING, weighting)
    assert weight.shape == (4,)
    assert weight.dtype == torch.float32
    a, b = PRESERVING.coefficients(t)
    for i in range(4):
        expected = {"dmd": 1 / (x[i] - real[i]).abs().mean(), "score": a[i] ** 2 / b[i] ** 2, "constant": 1.0}
        assert float(weight[i]) == pytest.approx(float(expected[weighting]), rel=1e-5)


def test_another_weighting_is_refused():
    with pytest.raises(ValueError, match="use dmd, score or constant"):
        vsd_weight(torch.zeros(1, 2), torch.zeros(1, 2), torch.tensor([0.5]), FLOWING, "none")


def test_a_normaliser_of_zero_gives_a_finite_gradient():
    x = torch.randn(2, 3, requires_grad=True)
    real, t = x.detach().clone(), torch.tensor([0.5, 0.5])
    weight = vsd_weight(x, real, t, FLOWING)
    torch.testing.assert_close(weight, torch.full((2,), 1e6))
    vsd(x, real, real, weight).sum().backward()
    assert torch.equal(x.grad, torch.zeros(2, 3))
    (gradient,) = torch.autograd.grad(vsd(x, real, real + 0.1, weight).sum(), x)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("bad", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("weighting", ["dmd", "score", "constant"])
def test_what_is_not_finite_stays_so_in_its_own_sample(bad, which, weighting):
    tensors = list(torch.randn(3, 2, 3))
    tensors[which][0, 1] = bad
    x, real, fake = tensors
    loss = vsd(x, real, fake, vsd_weight(x, real, torch.tensor([0.5, 0.5]), FLOWING, weighting))
    assert loss.isfinite().tolist() == [False, True]


@pytest.mark.parametrize("schedule", [PRESERVING, FLOWING], ids=["vp", "flow"])
@pytest.mark.parametrize("weighting", ["constant", "dmd"])
def test_training_reaches_the_teachers_law(schedule, weighting):
    n, log_r = torch.tensor(-0.6, requires_grad=True), torch.tensor(0.3, requires_grad=True)
    optimizer = torch.optim.Adam([n, log_r], lr=0.05)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 250)
    generator = torch.Generator().manual_seed(0)
    for _ in range(250):
        z, eps = torch.randn(2, 4096, 1, generator=generator)
        t = schedule.uniform(torch.rand(4096, generator=generator), 0.02, 0.98)
        r = log_r.exp()
        loss = gaussian_vsd(n + r * z, n.detach(), r.detach(), t, eps, schedule, weighting).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decay.step()
    assert float(n.detach()) == pytest.approx(M, abs=0.02)
    assert float(log_r.detach().exp()) == pytest.approx(S, abs=0.02)


def test_with_a_linear_reward_it_rests_where_the_two_balance():
    """Eq. 16 with beta_FT k = 0.1: n - m = 0.1 / E_t[b^2 / (a^2 s^2 + b^2)] = 0.182, not the KL tilt's 0.064."""
    count, tilt = 4096, 0.1
    t = FLOWING.uniform((torch.arange(count) + 0.5) / count, 0.02, 0.98)  # one of each slice: little noise in t
    a, b = FLOWING.coefficients(t)
    expected = tilt / float((b**2 / (a**2 * S**2 + b**2)).mean())
    assert expected == pytest.approx(0.182, abs=5e-4)

    n = torch.tensor(M, requires_grad=True)
    generator, visited = torch.Generator().manual_seed(0), []
    for _ in range(150):
        z, eps = torch.randn(2, count, 1, generator=generator)
        x = n + S * z
        loss = gaussian_vsd(x, n.detach(), S, t, eps, FLOWING) + fine_tune(tilt * x.squeeze(1))
        (gradient,) = torch.autograd.grad(loss.mean(), n)
        n = (n - 0.3 * gradient).detach().requires_grad_()
        visited.append(n.item() - M)
    assert sum(visited[50:]) / 100 == pytest.approx(expected, abs=0.005)
