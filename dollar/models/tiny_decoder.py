"""A published small decoder: the decoder of the tiny autoencoders for video (TAEHV and its kind, under MIT).

There is one for the latents of each of Wan (taew2_1, taew2_2), HunyuanVideo (taehv), CogVideoX (taecvx) and LTX-Video
(taeltx): github.com/madebyollin/taehv.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import pad, pixel_shuffle

from dollar.models.small_decoder import FrozenDecoder

WIDTHS = (256, 128, 64, 64)
STAGES = 3  # each doubles the sides; all of its frames have seen the frame before
PREFIX = "decoder."  # of the names in a published file, which has an encoder, too


class Remembering(nn.Module):
    """A residual block on each frame and the one before it; there is nothing before the first."""

    def __init__(self, width: int) -> None:
        super().__init__()
        wide = nn.Conv2d(2 * width, width, 3, padding=1)
        inner = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
        self.conv = nn.Sequential(wide, nn.ReLU(), next(inner), nn.ReLU(), next(inner))

    def forward(self, x: Tensor, clips: int) -> Tensor:
        """x: [B F, C, H, W] of so many clips."""
        frames = rearrange(x, "(b f) c h w -> b f c h w", b=clips)
        before = pad(frames, (0, 0, 0, 0, 0, 0, 1, -1)).flatten(0, 1)
        return (self.conv(torch.cat([x, before], 1)) + x).relu()


class Growing(nn.Module):
    """`times` frames of each; last: only the last one of them."""

    def __init__(self, width: int, times: int) -> None:
        super().__init__()
        self.times, self.width = times, width
        self.conv = nn.Conv2d(width, times * width, 1, bias=False)

    def forward(self, x: Tensor, last: bool = False) -> Tensor:
        if last:
            return nn.functional.conv2d(x, self.conv.weight[-self.width :])
        return rearrange(self.conv(x), "n (t c) h w -> (n t) c h w", t=self.times)


class TinyDecoder(FrozenDecoder):
    """Latents [B, C, F, h, w] to the last pixel frame that each latent frame holds: [B, F, 3, scale h, scale w].

    channels: C; scale: pixels on a latent's side, a multiple of 8; ratio: pixel frames of a latent one, 4 or 8. Takes
    the network's own latents. The layers have the published names.
    """

    def __init__(self, channels: int, scale: int, ratio: int, widths: Sequence[int] = WIDTHS) -> None:
        super().__init__()
        self.scale, self.patch = scale, scale // 2**STAGES
        self.card: dict[str, Any] = {"channels": channels, "scale": scale, "ratio": ratio, "widths": list(widths)}
        layers: list[nn.Module] = [nn.Identity(), nn.Conv2d(channels, widths[0], 3, padding=1), nn.ReLU()]
        for width, following, times in zip(widths, widths[1:], (ratio // 4, 2, 2), strict=False):
            layers += [*(Remembering(width) for _ in range(3)), nn.Upsample(scale_factor=2), Growing(width, times)]
            layers.append(nn.Conv2d(width, following, 3, padding=1, bias=False))
        layers += [nn.ReLU(), nn.Conv2d(widths[-1], 3 * self.patch**2, 3, padding=1)]
        self.decoder = nn.Sequential(*layers)

    def forward(self, x: Tensor, held: Sequence[int] | None = None) -> Tensor:
        """Pixels near [0, 1], not clamped; held: latent frames alone, though all before them are gone through."""
        clips = len(x)
        frames = rearrange(x.to(next(self.parameters()).dtype), "b c f h w -> (b f) c h w")
        frames = 3 * torch.tanh(frames / 3)
        growing = [layer for layer in self.decoder if isinstance(layer, Growing)]
        for layer in self.decoder:
            if isinstance(layer, Remembering):
                frames = layer(frames, clips)
            elif layer is growing[-1]:  # nothing after it looks back, so only the last frames are made
                wanted = rearrange(frames, "(b f t) c h w -> b f t c h w", b=clips, f=x.shape[2])[:, :, -1]
                wanted = wanted if held is None else wanted[:, list(held)]
                frames = layer(wanted.flatten(0, 1), last=True)
            else:
                frames = layer(frames)
        pixels = pixel_shuffle(frames, self.patch) if self.patch > 1 else frames
        return rearrange(pixels, "(b f) c h w -> b f c h w", b=clips).float()


def published(state: Mapping[str, Tensor], ratio: int) -> dict[str, Tensor]:
    """The decoder's tensors of a published file; where one makes more frames at first than here, the last are taken."""
    found = {name: value.float() for name, value in state.items() if name.startswith(PREFIX)}
    first = f"{PREFIX}7.conv.weight"
    if first in found:
        found[first] = found[first][-found[first].shape[1] * (ratio // 4) :]
    return found
