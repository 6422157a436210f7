"""Colourfulness, as people rate it: a reward for any video that needs no weights and no caption."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dollar.rewards.frames import FrameReward, Frames, check_frames, check_videos, pick


class Colourfulness(FrameReward):
    """sigma + 0.3 mu of the opponent colours red - green and (red + green) / 2 - blue, averaged over the frames.

    sigma and mu are the lengths of the pairs of their deviations and means over a frame, in levels of 255; from Hasler
    and Süsstrunk, Measuring colourfulness in natural images, 2003.
    frames: how many evenly spaced frames of a clip are looked at (and decoded); "all" or None is all.
    """

    differentiable = True
    reads_captions = False

    def __init__(self, frames: Frames = None) -> None:
        self.frames = check_frames(frames)

    def score_frames(self, videos: Tensor, prompts: Sequence[str]) -> Tensor:
        """[B, n], 0 for gray and about 1 for the most colourful photographs; videos [B, T, 3, H, W] in [0, 1].

        A clip with pixels that are not finite gets nan.
        """
        check_videos(videos, "colourfulness")
        pixels = pick(videos, self.frames).float()
        pixels = pixels.clamp(0, 1).where(pixels.isfinite(), float("nan"))
        red, green, blue = (255 * pixels).unbind(2)  # the measure's unit is a level
        opponents = (red - green, (red + green) / 2 - blue)
        spread = sum(o.flatten(2).var(-1, correction=0) for o in opponents)  # [B, T]
        strength = sum(o.flatten(2).mean(-1) ** 2 for o in opponents)
        # A root has no gradient at 0, where gray frames are.
        sigma, mu = (torch.as_tensor(square).clamp(min=1e-12).sqrt() for square in (spread, strength))
        return (sigma + 0.3 * mu) / 100  # above 1.09 people call an image extremely colourful
