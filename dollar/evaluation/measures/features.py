"""Features of clips from a fixed random network: no training, no download, and the same on every machine."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class RandomFeatures(nn.Module):
    """Three strided 3D convolutions with random weights, pooled on a coarse grid of time and place.

    Each position is normalised over its channels; the grid keeps where and when, so position, appearance and motion
    all count.
    """

    channels = (3, 24, 48, 64)
    strides = ((1, 2, 2), (2, 2, 2), (2, 2, 2))
    grid = (2, 4, 4)

    def __init__(self, seed: int = 0, batch: int = 16) -> None:
        super().__init__()
        self.batch = batch
        generator = torch.Generator().manual_seed(seed)  # on the CPU: the same weights whatever runs them
        self.layers = nn.ModuleList()
        for inputs, outputs, stride in zip(self.channels, self.channels[1:], self.strides, strict=False):
            layer = nn.Conv3d(inputs, outputs, 3, stride, padding=1)
            deviation = {"weight": (2 / (27 * inputs)) ** 0.5, "bias": 0.1}
            for name, parameter in layer.named_parameters():
                nn.init.normal_(parameter, std=deviation[name], generator=generator)
            self.layers.append(layer)
        self.requires_grad_(False)

    @property
    def dimensions(self) -> int:
        """D, the length of a clip's features."""
        time, height, width = self.grid
        return self.channels[-1] * time * height * width

    @torch.no_grad()
    def forward(self, videos: Tensor) -> Tensor:
        """Features, [B, D] float32, of videos [B, T, C, H, W] in [0, 1]."""
        if videos.ndim != 5 or videos.shape[2] != 3:
            raise ValueError(
                f"got videos of shape {tuple(videos.shape)}; the features need [B, T, 3, H, W]. Put channels third."
            )
        return torch.cat([self._features(videos[i : i + self.batch]) for i in range(0, len(videos), self.batch)])

    def _features(self, videos: Tensor) -> Tensor:
        x = 2 * videos.transpose(1, 2).float() - 1  # [B, C, T, H, W]
        for layer in self.layers:
            x = F.leaky_relu(layer(x), 0.2)
            x = x * torch.rsqrt(x.square().mean(1, keepdim=True) + 0.1)
        return F.adaptive_avg_pool3d(x, self.grid).flatten(1)
