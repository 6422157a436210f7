"""Mean and variance of the student's latents: the gap's gradient in closed form, and where training with it rests."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from test_terms import context_of, steps
from torch import Tensor

from dollar.losses.moments import Moments, Running, gap, moments_of
from dollar.losses.term import Context, FollowingTerm, Sample, SampleTerm


def batch(seed: int, count: int = 6) -> Tensor:
    return torch.randn(count, 3, 2, 4, 4, generator=torch.Generator().manual_seed(seed))


def context(x_0: Tensor) -> Context:
    return replace(context_of(steps(1.0), None, len(x_0)), x_0=x_0)


def sample(x_hat: Tensor) -> Sample:
    return Sample(torch.zeros_like(x_hat), 0, x_hat)


def alone(x: Tensor) -> Tensor:
    return x


def test_the_gradient_is_that_of_means_and_variances() -> None:
    """2 (M - m) / s^2 + 4 (V - s^2) (x - M) / s^4, over channels, positions and samples."""
    real, before, x = 0.5 + 2 * batch(0), 1.5 * batch(1), batch(2).requires_grad_()
    term = Moments(distance="mse")
    assert isinstance(term, SampleTerm) and isinstance(term, FollowingTerm)
    first = before.clone().requires_grad_()
    term.loss(context(real), sample(first)).mean().backward()
    assert first.grad.abs().max() == 0, "there is nothing to compare with yet"
    term.close(alone)
    loss = term.loss(context(real), sample(x))
    loss.mean().backward()

    def of(latents: Tensor) -> tuple[Tensor, Tensor]:
        flat = latents.transpose(0, 1).flatten(1)
        return flat.mean(1)[:, None, None, None], flat.var(1, correction=0)[:, None, None, None]

    (m, v), (mean, variance) = of(real), of(before)
    torch.testing.assert_close(loss, torch.full((6,), float(((mean - m) ** 2 / v + (variance / v - 1) ** 2).mean())))
    expected = 2 * (mean - m) / v + 4 * (variance - v) * (x.detach() - mean) / v**2
    torch.testing.assert_close(x.grad, expected / (3 * 32 * 6), rtol=1e-3, atol=1e-6)


def test_pseudo_huber_is_a_distance_far_away_and_a_square_nearby() -> None:
    real = torch.tensor([0.0, 1.0])
    for off in (20.0, 0.001):
        found = float(gap(torch.tensor([off, 1.0 + off**2]), real, "pseudo_huber"))
        assert found == pytest.approx(off - 0.1 if off > 1 else off**2 / 0.2, rel=0.01)
    assert gap(real, real, "mse") == 0


def test_statistics_of_parts_are_those_of_the_whole_and_old_cycles_count_less() -> None:
    whole, parts = Running(0.5), Running(0.5)
    for seed in (0, 1):
        x = batch(seed)
        whole.add(x)
        whole.close(alone)
        others = moments_of(x[4:]).double().sum(0)
        parts.add(x[:3])
        parts.add(x[3:4])
        parts.close(lambda own, others=others: torch.cat([own, torch.cat([others, others.new_tensor([2.0])])[None]]))
    assert parts.mean == pytest.approx(whole.mean, rel=1e-6)
    expected = (moments_of(batch(0)).mean(0) / 2 + moments_of(batch(1)).mean(0)) / 1.5
    assert whole.mean == pytest.approx(expected.tolist(), rel=1e-5)
    term = Moments()
    term.made, term.real = whole, parts
    again = Moments()
    again.load(json.loads(json.dumps(term.state())))
    assert (again.made.mean, again.made.weight, again.real.mean) == (whole.mean, whole.weight, parts.mean)


def test_a_sample_that_is_not_finite_is_left_out() -> None:
    running, x = Running(), batch(0)
    running.add(torch.full_like(x, float("nan")))
    running.close(alone)
    assert (running.mean, running.weight) == ([], 0.0)
    running.add(torch.cat([x, torch.full_like(x[:2], float("inf"))]))
    running.close(alone)
    assert running.mean == pytest.approx(moments_of(x).mean(0).tolist(), rel=1e-5) and running.weight == 6


@pytest.mark.parametrize("distance", ["mse", "pseudo_huber"])
def test_training_rests_at_the_real_mean_and_variance(distance: str) -> None:
    term, generator = Moments(distance=distance), torch.Generator().manual_seed(0)
    n, r = torch.zeros(2, 1, requires_grad=True), torch.ones(2, 1, requires_grad=True)
    mean, sd = torch.tensor([[0.7], [-1.2]]), torch.tensor([[0.4], [2.0]])
    optimizer = torch.optim.Adam([n, r], lr=0.02)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 400)
    for _ in range(400):
        z, real = torch.randn(2, 64, 2, 16, generator=generator)
        optimizer.zero_grad()
        term.loss(context(mean + sd * real), sample(n + r * z)).mean().backward()
        optimizer.step()
        decay.step()
        term.close(alone)
    torch.testing.assert_close(n.detach(), mean, atol=0.06, rtol=0)
    torch.testing.assert_close(r.detach().abs(), sd, atol=0.06, rtol=0)
