"""How strong a clip's colours and its light and dark are: both rise where a student burns in what guidance favours."""

from __future__ import annotations

from torch import Tensor

LUMA = (0.299, 0.587, 0.114)  # of red, green and blue, ITU-R BT.601


def luma(videos: Tensor) -> Tensor:
    """Brightness [B, T, H, W] in [0, 1] of videos [B, T, 3, H, W] in [0, 1]."""
    red, green, blue = videos.float().unbind(2)
    return LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue


def saturation(videos: Tensor) -> Tensor:
    """Mean HSV saturation of the pixels, (max - min) / max and 0 for black; videos [B, T, 3, H, W] in [0, 1], to [B].

    0 is gray, 1 a pure colour.
    """
    low, high = videos.float().aminmax(dim=2)
    return ((high - low) / high.clamp_min(1e-6)).mean((1, 2, 3))


def contrast(videos: Tensor) -> Tensor:
    """Standard deviation of luma within a frame, mean over frames; videos [B, T, 3, H, W] in [0, 1], to [B].

    0 is a frame of one brightness, 0.5 one of which half is black and half white.
    """
    return luma(videos).flatten(2).std(-1, correction=0).mean(1)
