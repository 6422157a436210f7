"""A small decoder, kept in step with the autoencoder on clips that are decoded anyway."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LinearLR

from dollar.diffusion.draws import Draws
from dollar.diffusion.schedule import mean_flat
from dollar.models.codec import Codec
from dollar.models.small_decoder import FrozenDecoder
from dollar.parallel.checkpoint import State


class Shown(NamedTuple):
    """Latents [B, C, F, h, w], and the last pixel frames [B, n, 3, H, W], uint8, of their latent frames `held`."""

    latents: Tensor
    pixels: Tensor
    held: list[int]


class FittedDecoder:
    """A small decoder with the clips that it is fitted to, by squared error; frozen wherever it is used.

    frames: of each clip that are kept to fit to, another choice every time; memory: past times that are used again;
    gather: [B, ...] -> that of all processes.
    """

    def __init__(
        self,
        model: FrozenDecoder,
        codec: Codec,
        frames: int = 2,
        memory: int = 32,
        gather: Callable[[Tensor], Tensor] = lambda x: x,
    ) -> None:
        for key, value in (("frames", frames), ("memory", memory)):
            if value < 1:
                raise ValueError(f"decoder.{key} is {value}; it must be at least 1")
        self.model, self.codec, self.frames, self.memory, self.gather = model, codec, frames, memory, gather
        self.past: list[Shown] = []
        self.times = 0
        self.updates = 0

    def wanted(self, latents: Tensor, among: Sequence[int] | None = None) -> list[int]:
        """The latent frames of [B, C, F, h, w] whose pixels are to be shown next, rising; among: these alone."""
        first = self.codec.padding(latents)
        usable = list(range(first, latents.shape[2])) if among is None else list(among)
        count = min(self.frames, len(usable))
        return sorted({usable[(self.times * count + i) % len(usable)] for i in range(count)})

    def remember(self, latents: Tensor, pixels: Tensor, held: Sequence[int]) -> None:
        """Take in latents [B, C, F, h, w] with pixels [B, n, 3, H, W] in [0, 1] of latent frames `held`."""
        kept = (255 * pixels.detach().clamp(0, 1)).round().to(torch.uint8)
        self.past = [*self.past, Shown(latents.detach(), kept, list(held))][-self.memory :]
        self.times += 1

    def loss(self, draws: Draws, purpose: str, first: int = 0, samples: int | None = None) -> Tensor:
        """Squared error [B], each place of the batch from one remembered time; 0 for a clip that is not finite.

        first: where a micro-batch begins among the `samples` of this process's share.
        """
        ages = draws.integers(purpose, len(self.past)).tolist()
        losses = []
        for place, age in enumerate(ages, first):
            shown = self.past[age]
            x, whole = shown.latents[place : place + 1], shown.latents[place].isfinite().all()
            made = self.model(torch.where(whole, x, 0.0), shown.held)  # a nan would pass a mask in the backward pass
            error = mean_flat((made - shown.pixels[place : place + 1].float() / 255) ** 2)
            losses.append(torch.where(whole, error, 0.0))
        return torch.cat(losses)

    def fit_to(self, latents: Sequence[Tensor], steps: int, batch: int, seed: int, optimizer: Optimizer) -> float:
        """Fit to some frames of clips [C, F, h, w] by so many updates, the rate falling; the last error's root."""
        from dollar.log import progress

        self.memory, error = -(-len(latents) // batch), math.nan
        device = next(self.model.parameters()).device
        for first in progress(range(0, len(latents), batch), "decoding for the small decoder"):
            part = [latents[i % len(latents)] for i in range(first, first + batch)]
            x = torch.stack(part).to(device)
            held = self.wanted(x)
            self.remember(x, self.codec.decode(x, self.codec.ends(x, held)), held)
        rate = LinearLR(optimizer, 1.0, 0.05, steps)
        for step in progress(range(steps), "fitting the small decoder"):
            loss = self.loss(Draws(seed, step, range(batch), device), "decoder").mean()
            loss.backward()
            optimizer.step()
            rate.step()
            optimizer.zero_grad()
            error = float(loss.detach()) ** 0.5
        self.updates += steps
        return error

    def decode(self, x: Tensor, count: int | None = None) -> Tensor:
        """Videos [B, n, 3, H, W] in [0, 1] of x [B, C, F, h, w], with a gradient at x alone.

        count: evenly spaced latent frames, None for all.
        """
        held = list(range(self.codec.padding(x), x.shape[2]))
        if count is not None and count < len(held):
            held = [held[round(i * (len(held) - 1) / max(1, count - 1))] for i in range(count)]
        return self.model.frozen(x, held).clamp(0, 1)

    def state(self) -> State:
        """The clips that are remembered, and counts."""
        tensors = {}
        for i, shown in enumerate(self.past):
            tensors[f"past/{i}/latents"], tensors[f"past/{i}/pixels"] = map(self.gather, shown[:2])
        counts = {"times": self.times, "updates": self.updates, "held": [shown.held for shown in self.past]}
        return State(tensors, counts)

    def load(self, state: State, own: slice) -> None:
        """Take up a `state`; own: this process's rows."""
        device, tensors = next(self.model.parameters()).device, state.tensors
        self.times, self.updates = state.plain["times"], state.plain["updates"]
        self.past = []
        for i, held in enumerate(state.plain["held"]):
            latents, pixels = (tensors[f"past/{i}/{name}"][own].to(device) for name in ("latents", "pixels"))
            self.past.append(Shown(latents, pixels, held))
