"""Consistency distillation: one prediction from far along the path agrees with one from nearer the data (Eq. 6-7)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dollar.diffusion.denoise import Walk
from dollar.diffusion.schedule import Schedule, expand_like, mean_flat

# (x_t [B, C, F, H, W], t [B]) -> f(x_t, t): c_skip x_t + c_out x_0hat; the condition is already inside.
ConsistencyFunction = Callable[[Tensor, Tensor], Tensor]


def consistency(f: Tensor, target: Tensor, distance: str = "pseudo_huber", c: float = 1e-3) -> Tensor:
    """d(f, target) (Eq. 6 with lambda = 1), averaged over the elements.

    f: [B, C, F, H, W] student's f at t_{n+m}; target: the same shape, at t_n, never followed by a gradient; c: where
    pseudo-Huber turns from squares to absolute values. Returns [B], float32.
    """
    d = f.float() - target.detach().float()
    if distance == "pseudo_huber":
        # sqrt(d^2 + c^2) - c, written so that a small d isn't lost in the subtraction.
        return mean_flat(d**2 / ((d**2 + c**2).sqrt() + c))
    if distance == "mse":
        return mean_flat(d**2)
    raise ValueError(f"the distance is {distance!r}; use pseudo_huber or mse")


@torch.no_grad()
def consistency_target(f: ConsistencyFunction, reached: Walk, schedule: Schedule) -> Tensor:
    """f at (x_hat_{t_n}, t_n) where Denoise^m has led (Eq. 7), and x_hat_0 itself where it has led to the data.

    f runs once whatever was reached, since every process must run the same number of forwards. No gradient.
    """
    # Networks have not seen a clean time of -1; 0 keeps f finite there and the result is not used.
    target = f(reached.x, reached.t.clamp(min=0))
    arrived = reached.t == schedule.clean
    return torch.where(expand_like(arrived, reached.x).bool(), reached.x, target)
