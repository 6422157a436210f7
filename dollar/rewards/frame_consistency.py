"""Frame consistency: how alike a clip's frames are to a CLIP, whatever they show."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from dollar.rewards.clip import CLIP
from dollar.rewards.frames import Frames, check_frames, check_videos, pick

TO = ("previous", "previous and first")


class FrameConsistency:
    """The mean cosine of the CLIP features of each frame but the first with those of the frame before it.

    to: "previous", or "previous and first" for VBench's background consistency: the mean of the cosines, 0 where they
    are less, with the frame before and with the first. VBench's numbers need its CLIP, openai/clip-vit-base-patch32,
    all frames, and its coarser resizing; they differ a little here.
    A still clip has 1, so it is a guard or a measure and no aim. Reads no caption.
    path: as ClipScore's; frames: how many evenly spaced frames are looked at, "all" or None for all; batch: as CLIP.
    """

    differentiable = True
    reads_captions = False
    sees_motion = True

    def __init__(
        self,
        path: str | Path = "openai/clip-vit-large-patch14",
        frames: Frames = None,
        to: str = "previous",
        batch: int = 16,
    ) -> None:
        self.frames = check_frames(frames)
        if self.frames == 1:
            raise ValueError("reward.frames is 1; consistency needs at least 2 frames")
        if to not in TO:
            raise ValueError(f"reward.to is {to}; it is one of {' and '.join(map(repr, TO))}")
        self.to = to
        self.clip = CLIP(path, tokenizer=None, batch=batch)

    def score(self, videos: Tensor, prompts: Sequence[str]) -> Tensor:
        """[B], float32, at most 1; videos [B, T, 3, H, W] in [0, 1], T at least 2. Clips not finite get nan."""
        check_videos(videos, "frame consistency")
        if videos.shape[1] < 2:
            raise ValueError("got clips of one frame; frame consistency needs at least 2")
        seen = self.clip.see(pick(videos, self.frames))  # [B, T, D]
        previous = (seen[:, 1:] * seen[:, :-1]).sum(-1)
        if self.to == "previous":
            return previous.mean(1)
        first = (seen[:, 1:] * seen[:, :1]).sum(-1)
        return torch.stack([previous, first]).clamp(min=0).mean((0, 2))
