"""Temporal flicker: how little the pixels of neighbouring frames differ."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dollar.rewards.frames import check_videos


class Flicker:
    """(255 - d) / 255, d the mean absolute difference of neighbouring frames in levels, as VBench measures flickering.

    1 is a clip that stands still: VBench measures clips of still scenes only, and a student that is rewarded for this
    alone stops moving. Looks at every frame, since neighbours are compared. Reads no caption.
    """

    differentiable = True
    reads_captions = False
    sees_motion = True

    def score(self, videos: Tensor, prompts: Sequence[str]) -> Tensor:
        """[B], float32, at most 1; videos [B, T, 3, H, W] in [0, 1], T at least 2.

        A clip with pixels that are not finite gets nan.
        """
        check_videos(videos, "temporal flicker")
        if videos.shape[1] < 2:
            raise ValueError("temporal flicker compares neighbouring frames, and these clips have one")
        pixels = videos.float()
        difference = (pixels[:, 1:] - pixels[:, :-1]).abs().flatten(1).mean(1)
        # inf - inf is nan, but inf - 1 is inf
        return torch.where(difference.isfinite(), 1 - difference, float("nan"))
