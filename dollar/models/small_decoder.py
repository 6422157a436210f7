"""A decoder of a few thousand weights: one frame of pixels for each latent frame, by one convolution."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import pixel_shuffle


class FrozenDecoder(nn.Module):
    """A decoder of one frame for each latent frame, which can be looked through without a gradient at its weights."""

    scale: int
    card: dict[str, Any]

    def frozen(self, x: Tensor, held: Sequence[int] | None = None) -> Tensor:
        """The same, with a gradient at x and none at the weights."""
        weights = {name: p.detach() for name, p in self.named_parameters()}
        found: Tensor = functional_call(self, weights, (x, held))
        return found


class SmallDecoder(FrozenDecoder):
    """Latents [B, C, F, h, w] to the last pixel frame that each latent frame holds: [B, F, 3, scale h, scale w].

    Each pixel is an affine function of the 3x3x3 latents around it, which of a linear autoencoder is the decoder itself
    and of others is coarse. That is enough for a gradient: a reward's way back through it leads along what clips look
    like, where a network on bare latents is free in all directions that no clip has.
    """

    def __init__(self, channels: int, scale: int) -> None:
        super().__init__()
        self.scale = scale
        self.card = {"channels": channels, "scale": scale}
        self.out = nn.Conv3d(channels, 3 * scale**2, 3, padding=1)
        with torch.no_grad():
            self.out.bias.fill_(0.5)  # type: ignore[union-attr]  # gray

    def forward(self, x: Tensor, held: Sequence[int] | None = None) -> Tensor:
        """Pixels near [0, 1], not clamped, so that a gradient comes back from everywhere; held: latent frames alone."""
        pixels = rearrange(self.out(x.to(self.out.weight.dtype)), "b c f h w -> b f c h w")
        return pixel_shuffle(pixels if held is None else pixels[:, list(held)], self.scale).float()
