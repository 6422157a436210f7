"""PickScore: how people would choose among pictures for a caption; a CLIP ViT-H/14 tuned on their choices."""

from __future__ import annotations

from pathlib import Path

from dollar.rewards.clip import CLIP, CaptionReward
from dollar.rewards.frames import Frames
from dollar.rewards.tokens import LAION


class PickScore(CaptionReward):
    """PickScore v1 (Kirstain et al., 2023), with the numbers of its published recipe.

    path: a hub id or folder in transformers' form, or a file in open_clip's. The recipe's unit is scaled (near 21); the
    papers of video distillation print the cosine (near 0.21). frames, unit: as CaptionReward; tokenizer, batch: as
    CLIP.
    """

    def __init__(
        self,
        path: str | Path = "yuvalkirstain/PickScore_v1",
        frames: Frames = 8,
        unit: str = "cosine",
        batch: int = 16,
        tokenizer: str | Path = LAION,
    ) -> None:
        super().__init__(CLIP(path, tokenizer=tokenizer, batch=batch), frames, unit)
