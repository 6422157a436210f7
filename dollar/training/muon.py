"""Muon, PyTorch's rule, with a choice of what its matrices are multiplied in."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic whose slope at 0 is steep: singular values come near 1 soon
STEPS = 5
SMALLEST = 1e-7  # norm by which a gradient is divided


class Muon(torch.optim.Optimizer):
    """Steps along a gradient's orthogonal factor, for weights [out, ...], each taken as a matrix [out, in].

    `torch.optim.Muon` with its Nesterov momentum and rates matched to AdamW's (adjust_lr_fn="match_rms_adamw"), which
    always multiplies in bfloat16: on a processor without such instructions that takes forty times as long as float32,
    and longer than the network itself.

    lr: as for AdamW; weight_decay: of the weight a step, times lr; dtype: what the matrices are multiplied in.
    """

    def __init__(
        self,
        weights: Iterable[nn.Parameter],
        lr: float,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.dtype = dtype
        super().__init__(weights, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        for weight in (weight for group in self.param_groups for weight in group["params"]):
            if weight.ndim < 2:
                raise ValueError(f"Muon takes weights of two dimensions and more; one is {list(weight.shape)}")

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """One update from the weights' gradients."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for weight in (weight for weight in group["params"] if weight.grad is not None):
                state = self.state[weight]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(weight)
                momentum = state["momentum_buffer"].lerp_(weight.grad, 1 - group["momentum"])
                ahead = weight.grad.lerp(momentum, group["momentum"]).flatten(1)  # Nesterov's
                size = 0.2 * math.sqrt(max(ahead.shape))  # of AdamW's steps
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.add_(orthogonal(ahead, self.dtype).reshape_as(weight), alpha=-group["lr"] * size)
        return loss


def orthogonal(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """About the orthogonal factor U V^T of a matrix U S V^T [out, in], of dtype.

    Singular values come between 0.68 and 1.2, but for those below about 0.002 of the matrix's norm, which grow less.
    Newton and Schulz's iteration with a quintic (Jordan et al., https://kellerjordan.github.io/posts/muon).
    """
    a, b, c = COEFFICIENTS
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.to(dtype).T if tall else matrix.to(dtype)
    x = x / x.norm().clamp(min=SMALLEST)
    for _ in range(STEPS):
        square = x @ x.T
        x = torch.addmm(x, torch.addmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x
