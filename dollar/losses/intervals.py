"""Each of a student's steps on its own interval of noise: how its outcome is noised, and what the fake score learns."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dollar.diffusion.schedule import Schedule, diffuse, expand_like
from dollar.diffusion.timesteps import FewStep
from dollar.losses.term import Sample

LEAST_SPREAD = 1e-6  # of the noise between two times, where these are all but the same


class Noised(NamedTuple):
    """A sample at times t [B]: x_t, and the x_0 and eps [B, ...] whose mean is the score's at x_t = a x_0 + b eps.

    weight: [B], of the loss of a score network that learns them.
    """

    x_t: Tensor
    t: Tensor
    x_0: Tensor
    eps: Tensor
    weight: Tensor


def directly(x_hat: Tensor, noise: Tensor, t: Tensor, schedule: Schedule) -> Noised:
    """x_hat [B, ...] noised to t [B]."""
    return Noised(diffuse(x_hat, noise, t, schedule), t, x_hat, noise, torch.ones(len(x_hat), device=x_hat.device))


def onwards(x_s: Tensor, noise: Tensor, s: Tensor, t: Tensor, schedule: Schedule) -> Noised:
    """x_s [B, ...] at s [B] noised further to t [B], t the noisier: x_t = alpha x_s + sigma noise, alpha = a_t / a_s.

    Given x_s, the score at x_t is -noise / sigma, so that eps = (b_t / sigma) noise has the score of x_t's law as its
    mean, whatever the law of x_s is, and x_0 follows from x_t and eps. That eps grows without end as t nears s; the
    weight sigma^2 / b_t^2 holds its loss to that of the noise itself.
    """
    (a_s, b_s), (a_t, b_t) = schedule.coefficients(s), schedule.coefficients(t)
    alpha = a_t / a_s
    sigma = (b_t**2 - alpha**2 * b_s**2).clamp(min=LEAST_SPREAD**2).sqrt()
    # (x_t - b_t eps) / a_t, without a division by an a_t that may be 0.
    x_0 = (x_s - expand_like(alpha * b_s**2 / sigma, x_s) * noise) / expand_like(a_s, x_s)
    x_t = expand_like(alpha, x_s) * x_s + expand_like(sigma, x_s) * noise
    weight = ((sigma / b_t) ** 2).to(x_s.device, torch.float32)
    return Noised(x_t, t, x_0, expand_like(b_t / sigma, noise) * noise, weight)


def interval(sampler: FewStep, k: int) -> tuple[float, float]:
    """The fractions of T between the times at which a student's k-th step begins and ends."""
    clean = sampler.times.new_tensor([sampler.schedule.clean])
    later, first = sampler.schedule.fraction(torch.cat([sampler.times, clean])[[k + 1, k]]).tolist()
    return later, first


def noised_in(sampler: FewStep, sample: Sample, noise: Tensor, t: Tensor, schedule: Schedule) -> Noised:
    """The outcome of a student's step at times t [B] of the step's own interval.

    Between two steps of a student that renoises, x at the next time is x_hat noised, and so it is at all later times of
    the interval: to noise x_hat directly is exact. One that steps by DDIM goes on with the noise that it has, and what
    it makes is x at the next time, which is noised further.
    """
    k, x_hat = sample.k, sample.x_hat.detach()
    if sampler.between == "renoise" or k + 1 == sampler.steps:
        return directly(x_hat, noise, t, schedule)
    x_s = sampler.advance(sample.x, x_hat, k, lambda _: noise)  # which DDIM doesn't draw
    return onwards(x_s, noise, sampler.time(k + 1, x_s), t, schedule)
