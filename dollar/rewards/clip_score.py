"""CLIP score: how well frames fit their captions, by a CLIP that nobody tuned."""

from __future__ import annotations

from pathlib import Path

from dollar.rewards.clip import CLIP, CaptionReward
from dollar.rewards.frames import Frames
from dollar.rewards.tokens import LAION


class ClipScore(CaptionReward):
    """The cosine of frame and caption in a CLIP.

    Published CLIP scores follow from each frame's cosine c: 100 max(c, 0), as libraries print it, and 2.5 max(c, 0) of
    Hessel et al., 2021, who put "A photo depicts" before captions. unit scaled is the CLIP's own logit, near 100 c.
    path: a hub id or folder in transformers' form, or a file in open_clip's. frames, unit: as CaptionReward; tokenizer,
    batch: as CLIP.
    """

    def __init__(
        self,
        path: str | Path = "openai/clip-vit-large-patch14",
        frames: Frames = 8,
        unit: str = "cosine",
        batch: int = 16,
        tokenizer: str | Path = LAION,
    ) -> None:
        super().__init__(CLIP(path, tokenizer=tokenizer, batch=batch), frames, unit)
