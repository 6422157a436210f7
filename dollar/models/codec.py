"""Latents to pixels and back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Codec:
    """A video autoencoder behind two methods; no gradient passes through either.

    chunk: how many clips go through it at once, which bounds its memory. With 1, a clip's numbers don't depend on its
    neighbours to the last bit, so that a resumed run is the same whatever was cached.
    """

    def __init__(self, vae: Any, scaling_factor: float, chunk: int = 1) -> None:
        self.vae = vae.eval().requires_grad_(False)
        self.scaling_factor = scaling_factor
        self.chunk = chunk

    @property
    def device(self) -> torch.device:
        return next(self.vae.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.vae.parameters()).dtype

    @torch.no_grad()
    def encode(self, videos: Tensor) -> Tensor:
        """Latents [B, C, F, H/s, W/s], float32, of videos [B, T, C, H, W] in [0, 1]."""
        pixels = (videos.transpose(1, 2) * 2 - 1).to(self.device, self.dtype)  # [B, C, T, H, W] in [-1, 1]
        parts = [self.vae.encode(part).latent_dist.mode() for part in pixels.split(self.chunk)]
        return torch.cat(parts).float() * self.scaling_factor

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Videos [B, T, C, H, W] in [0, 1], float32, of latents [B, C, F, h, w]."""
        latents = (latents / self.scaling_factor).to(self.device, self.dtype)
        pixels = torch.cat([self.vae.decode(part).sample for part in latents.split(self.chunk)])
        return ((pixels.float() + 1) / 2).clamp(0, 1).transpose(1, 2)
