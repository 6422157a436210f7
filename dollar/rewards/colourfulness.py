"""Colourfulness, as people rate it: a reward for any video that needs no weights and no caption."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Colourfulness:
    """sigma + 0.3 mu of the opponent colours red - green and (red + green) / 2 - blue, averaged over the frames.

    sigma and mu are the lengths of the pairs of their deviations and means over a frame, in levels of 255; from Hasler
    and Süsstrunk, Measuring colourfulness in natural images, 2003.
    frames: how many evenly spaced frames of a clip are looked at (and decoded); None is all.
    """

    def __init__(self, frames: int | None = None) -> None:
        if frames is not None and frames < 1:
            raise ValueError(f"reward.frames is {frames}; give at least 1, or null for all")
        self.frames = frames

    def score(self, videos: Tensor, prompts: Sequence[str]) -> Tensor:
        """[B], 0 for gray and about 1 for the most colourful photographs; videos [B, T, 3, H, W] in [0, 1].

        A clip with pixels that are not finite gets nan.
        """
        if videos.ndim != 5 or videos.shape[2] != 3:
            raise ValueError(f"got videos of shape {tuple(videos.shape)}; colourfulness needs [B, T, 3, H, W]")
        pixels = videos.detach().float()
        pixels = pixels.clamp(0, 1).where(pixels.isfinite(), float("nan"))
        red, green, blue = (255 * pixels).unbind(2)  # the measure's unit is a level
        opponents = (red - green, (red + green) / 2 - blue)
        spread = torch.stack([o.flatten(2).std(-1, correction=0) for o in opponents]).norm(dim=0)  # [B, T]
        strength = torch.stack([o.flatten(2).mean(-1) for o in opponents]).norm(dim=0)
        return (spread + 0.3 * strength).mean(1) / 100  # above 1.09 people call an image extremely colourful
