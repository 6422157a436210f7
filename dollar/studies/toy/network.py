"""Diffusion models of points in the plane: a perceptron, its error, and its samples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from dollar.diffusion import FLOW, DenoiseFunction, RectifiedFlow, diffuse, sample
from dollar.diffusion.denoise import noise_of

SCHEDULE, PREDICTION = RectifiedFlow(), FLOW
FREQUENCIES = 4  # half-turns over the time from data to noise, whose sine and cosine the network is given


class Perceptron(nn.Module):
    """The native prediction of points: so many hidden layers of one width, with SiLU.

    x_t: [B, 2]; t: [B], 0 for data and 1 for noise. Returns [B, 2].
    """

    def __init__(self, layers: int, width: int) -> None:
        super().__init__()
        sizes = [2 + 2 * FREQUENCIES, *[width] * layers]
        self.hidden = nn.ModuleList(nn.Linear(n, m) for n, m in pairwise(sizes))
        self.last = nn.Linear(width, 2)

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """The prediction."""
        turns = math.pi * t.float()[:, None] * torch.arange(1, FREQUENCIES + 1)
        x = torch.cat([x_t, turns.sin(), turns.cos()], 1)
        for layer in self.hidden:
            x = nn.functional.silu(layer(x))
        output: Tensor = self.last(x)
        return output


def new_perceptron(layers: int, width: int, seed: int) -> Perceptron:
    """One of random weights, which follow from the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Perceptron(layers, width)


def denoiser_of(network: nn.Module) -> DenoiseFunction:
    """The x_0 that a network predicts."""
    return lambda x_t, t: PREDICTION.x_0(x_t, network(x_t, t), t, SCHEDULE)


def native_of(denoise: DenoiseFunction, x_t: Tensor, t: Tensor) -> Tensor:
    """The native prediction of which a denoiser's x_0 is made, [B, 2]; t above 0."""
    x_0 = denoise(x_t, t)
    return PREDICTION.target(x_0, noise_of(x_t, x_0, t, SCHEDULE), t, SCHEDULE)


@torch.no_grad()
def samples_of(denoise: DenoiseFunction, count: int, steps: int, generator: torch.Generator) -> Tensor:
    """Samples by so many deterministic steps, [count, 2]."""
    return sample(denoise, torch.randn(count, 2, generator=generator), SCHEDULE.grid(steps), SCHEDULE)


def noised(points: Sequence[Tensor], generator: torch.Generator) -> tuple[list[Tensor], Tensor, Tensor]:
    """Batches of points [B, 2] at one time and one noise a row, which they share: each x_t, the noise [B, 2], t [B]."""
    count = len(points[0])
    # Not 0, where the data are already there.
    t = 1 - torch.rand(count, generator=generator)
    noise = torch.randn(count, 2, generator=generator)
    return [diffuse(x, noise, t, SCHEDULE) for x in points], noise, t
