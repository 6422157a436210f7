"""Latents to pixels and back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class Codec:
    """A video autoencoder behind two methods; no gradient passes through either.

    chunk: how many clips go through it at once, which bounds its memory. It is always this many (the last is repeated
    where clips are too few), so that a clip's numbers don't depend on its company to the last bit and a resumed run is
    the same whatever was cached. On a CPU two are three times as fast as one: torch has a slow convolution for one.
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
        latents = self._in_chunks(lambda part: self.vae.encode(part).latent_dist.mode(), pixels)
        return latents.float() * self.scaling_factor

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Videos [B, T, C, H, W] in [0, 1], float32, of latents [B, C, F, h, w]."""
        latents = (latents / self.scaling_factor).to(self.device, self.dtype)
        pixels = self._in_chunks(lambda part: self.vae.decode(part).sample, latents)
        return ((pixels.float() + 1) / 2).clamp(0, 1).transpose(1, 2)

    def _in_chunks(self, function: Callable[[Tensor], Tensor], clips: Tensor) -> Tensor:
        missing = -len(clips) % self.chunk
        full = torch.cat([clips, clips[-1:].expand(missing, *clips.shape[1:])]) if missing else clips
        return torch.cat([function(part) for part in full.split(self.chunk)])[: len(clips)]
