"""One step and m steps of denoising, guidance, and the exact posterior (Eq. 5, 7, 9, 27)."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from dollar.diffusion.schedule import Schedule, expand_like

# (x_t [B, C, F, H, W], t [B]) -> x_0; the condition is already inside.
DenoiseFunction = Callable[[Tensor, Tensor], Tensor]


def guide(output: Tensor, output_null: Tensor, guidance_scale: float) -> Tensor:
    """Classifier-free guidance in diffusers' form, u + s (c - u) (Eq. 9 with s = 1 + w).

    Any prediction may be guided: x_0 is affine in the output, so guiding either gives the same x_0.
    """
    return output_null + guidance_scale * (output - output_null)


def noise_of(x_t: Tensor, x_0: Tensor, t: Tensor, schedule: Schedule) -> Tensor:
    """The eps that x_t and x_0 imply, (x_t - a x_0) / b; t must not be clean."""
    a, b = schedule.coefficients(t)
    return (x_t - expand_like(a, x_t) * x_0) / expand_like(b, x_t)


def sigma(t: Tensor, s: Tensor, eta: float, schedule: Schedule) -> Tensor:
    """Standard deviation [B] of the noise that a step t -> s adds at this eta; never above b(s), on any schedule."""
    a_t, b_t = schedule.coefficients(t)
    a_s, b_s = schedule.coefficients(s)
    # The usual sqrt(1 - a_t^2/a_s^2) holds on variance-preserving schedules only; this is the general form.
    return eta * (b_s / b_t) * (b_t**2 - (a_t / a_s) ** 2 * b_s**2).clamp(min=0).sqrt()


def ddim_step(
    x_t: Tensor, x_0: Tensor, t: Tensor, s: Tensor, schedule: Schedule, eta: float = 0.0, z: Tensor | None = None
) -> Tensor:
    """From x_t at t to s, given the x_0 predicted there (Eq. 5, corrected); on rectified flow this is Euler's step.

    x_t, x_0, z: [B, ...]; t, s: [B]; z is fresh noise, needed where eta > 0.
    """
    a_t, b_t = schedule.coefficients(t)
    a_s, b_s = schedule.coefficients(s)
    if eta == 0:
        # The same as a_s x_0 + b_s eps_hat, arranged so that nothing is divided twice.
        ratio = b_s / b_t
        return expand_like(ratio, x_t) * x_t + expand_like(a_s - a_t * ratio, x_t) * x_0
    if z is None:
        raise ValueError(f"a step with eta = {eta} adds noise: pass z, drawn like x_t")
    spread = sigma(t, s, eta, schedule)
    direction = (b_s**2 - spread**2).clamp(min=0).sqrt()
    eps_hat = noise_of(x_t, x_0, t, schedule)
    return expand_like(a_s, x_t) * x_0 + expand_like(direction, x_t) * eps_hat + expand_like(spread, x_t) * z


def leading_to(x_s: Tensor, x_t: Tensor, t: Tensor, s: Tensor, schedule: Schedule) -> Tensor:
    """The x_0 with which `ddim_step` from x_t at t ends on x_s at s; x_t, x_s: [B, ...]; t, s: [B], s the cleaner."""
    a_t, b_t = schedule.coefficients(t)
    a_s, b_s = schedule.coefficients(s)
    ratio = b_s / b_t
    return (x_s - expand_like(ratio, x_t) * x_t) / expand_like(a_s - a_t * ratio, x_t)


class Posterior(NamedTuple):
    """q(x_s | x_t, x_0): mean [B, ...] and standard deviation [B]."""

    mean: Tensor
    sd: Tensor


def posterior(x_t: Tensor, x_0: Tensor, t: Tensor, s: Tensor, schedule: Schedule) -> Posterior:
    """The exact posterior of x_s, s cleaner than t (what Eq. 27 means to say)."""
    a_t, b_t = schedule.coefficients(t)
    a_s, b_s = schedule.coefficients(s)
    on_x_0 = a_s * (b_t**2 - (a_t / a_s) ** 2 * b_s**2) / b_t**2
    on_x_t = (a_t / a_s) * b_s**2 / b_t**2
    mean = expand_like(on_x_0, x_t) * x_0 + expand_like(on_x_t, x_t) * x_t
    return Posterior(mean, sigma(t, s, 1.0, schedule))


class Reached(NamedTuple):
    """Where Denoise^m ended: x [B, ...] at time t [B] (the schedule's clean time where the walk reached the data)."""

    x: Tensor
    t: Tensor


def walk(denoise: DenoiseFunction, x: Tensor, start: Tensor, grid: Tensor, m: int, schedule: Schedule) -> Reached:
    """Denoise^m (Eq. 7): m DDIM steps along the grid from grid[start].

    x: [B, ...] at grid[start]; start: [B] indices into grid [N + 1], whose last entry is clean. A walk that reaches the
    end early stays there, but the network still runs m times: every process must run the same number of forwards.
    """
    start, grid = start.to(x.device), grid.to(x.device)
    last = len(grid) - 1
    for i in range(m):
        here = (start + i).clamp(max=last - 1)
        t, s = grid[here], grid[here + 1]
        moved = ddim_step(x, denoise(x, t), t, s, schedule)
        x = torch.where(expand_like(start + i < last, x).bool(), moved, x)
    return Reached(x, grid[(start + m).clamp(max=last)])


def sample(denoise: DenoiseFunction, noise: Tensor, grid: Tensor, schedule: Schedule) -> Tensor:
    """The teacher's deterministic sampler: x_0 from noise [B, ...] by one DDIM step for each interval of the grid."""
    x = noise
    for t, s in pairwise(grid):
        t, s = t.expand(len(x)).to(x.device), s.expand(len(x)).to(x.device)
        x = ddim_step(x, denoise(x, t), t, s, schedule)
    return x
