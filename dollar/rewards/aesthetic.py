"""LAION's aesthetic predictor: how people rate a picture's beauty, from 1 to 10; it reads no caption."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

from dollar.rewards.clip import CLIP
from dollar.rewards.frames import FrameReward, Frames, check_frames, check_videos, pick
from dollar.rewards.weights import fill, locate, read_tensors

NAMES = ("sac+logos+ava1-l14-linearMSE.pth", "aesthetic-model.pth")  # LAION's own name and the hub's, for one file


class Aesthetic(FrameReward):
    """LAION's predictor version 2 on a CLIP's image features, averaged over a clip's frames.

    path: a hub id, a folder with one of NAMES, or the file; clip: the CLIP that it was trained on, as ClipScore's path.
    frames: how many evenly spaced frames are looked at, "all" or None for all; batch: as CLIP.
    """

    differentiable = True
    reads_captions = False

    def __init__(
        self,
        path: str | Path = "trl-lib/ddpo-aesthetic-predictor",
        clip: str | Path = "openai/clip-vit-large-patch14",
        frames: Frames = 8,
        batch: int = 16,
    ) -> None:
        self.frames = check_frames(frames)
        file = _file(path)
        state = read_tensors(file)
        self.clip = CLIP(clip, tokenizer=None, batch=batch, key="reward.clip")
        what = f"LAION's predictor for a CLIP of {self.clip.width} features"
        self.predictor = fill(Predictor(self.clip.width), state, file, what)

    def score_frames(self, videos: Tensor, prompts: Sequence[str]) -> Tensor:
        """[B, n], float32, for most pictures 4 to 7; videos [B, T, 3, H, W] in [0, 1]. Clips not finite get nan."""
        check_videos(videos, "the aesthetic predictor")
        self.predictor.to(videos.device)
        return self.predictor(self.clip.see(pick(videos, self.frames))).squeeze(2)


class Predictor(nn.Module):
    """LAION's predictor of a rating [..., 1] from image features [..., width] of unit length.

    Straight lines all through, as it was trained; the dropout does nothing here and keeps the names' numbers.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(width, 1024),
            nn.Dropout(0.2),
            nn.Linear(1024, 128),
            nn.Dropout(0.2),
            nn.Linear(128, 64),
            nn.Dropout(0.1),
            nn.Linear(64, 16),
            nn.Linear(16, 1),
        )

    def forward(self, features: Tensor) -> Tensor:
        return self.layers(features)


def _file(path: str | Path) -> Path:
    place = locate(path, "reward.path", NAMES, f"a folder with {NAMES[0]} or that file")
    if place.is_file():
        return place
    for name in NAMES:
        if (place / name).is_file():
            return place / name
    raise ValueError(f"reward.path: the folder {place} has neither {NAMES[0]} nor {NAMES[1]}")
