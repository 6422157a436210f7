"""Variational score distillation: the student's samples follow the teacher's score minus their own (Eq. 10-13)."""

from __future__ import annotations

import torch
from torch import Tensor

from dollar.diffusion.schedule import Schedule, expand_like, mean_flat

SMALLEST_DISTANCE = 1e-6


def vsd(x: Tensor, x0_real: Tensor, x0_fake: Tensor, weight: Tensor) -> Tensor:
    """Surrogate whose gradient at x is the score difference (Eq. 12-13), weight (x0_fake - x0_real) / numel.

    x, x0_real, x0_fake: [B, C, F, H, W] student's sample, teacher's and fake score's x_0; weight: [B].
    Returns [B], float32. Only x carries a gradient.
    """
    x, x0_real, x0_fake = x.float(), x0_real.float(), x0_fake.float()
    gradient = expand_like(weight, x) * (x0_fake - x0_real)
    return 0.5 * mean_flat((x - (x - gradient).detach()) ** 2)


@torch.no_grad()
def vsd_weight(x: Tensor, x0_real: Tensor, t: Tensor, schedule: Schedule, weighting: str = "dmd") -> Tensor:
    """The weight [B] of the difference x0_fake - x0_real, float32.

    x, x0_real: [B, C, F, H, W] student's sample and teacher's x_0; t: [B] where they were compared. `dmd` makes the
    difference relative to the teacher's own correction, `score` is Eq. 13's, `constant` is 1.
    """
    if weighting == "dmd":
        # The floor only guards x = x0_real; nothing here makes a finite weight of a sample that is not finite.
        return 1 / mean_flat((x.float() - x0_real.float()).abs()).clamp(min=SMALLEST_DISTANCE)
    if weighting == "score":
        # s_real - s_fake = a (x0_real - x0_fake) / b^2, and x_t moves a times as much as x.
        a, b = schedule.coefficients(t)
        return (a**2 / b**2).to(x.device, torch.float32)
    if weighting == "constant":
        return torch.ones(len(x), device=x.device)
    raise ValueError(f"the weighting is {weighting!r}; use dmd, score or constant")
