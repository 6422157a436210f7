"""Which frames of a clip a reward looks at, rewards of frames by themselves, and what videos must look like."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

Frames = int | Literal["all"] | None
"""How many evenly spaced frames are looked at; None is all, too."""


class FrameReward:
    """A reward that scores frame by frame: a clip's is the mean over the frames that it looks at."""

    @property
    def by_frames(self) -> bool:
        """Whether `score_frames` says it all; not where a class of one's own has another `score`."""
        return type(self).score is FrameReward.score

    def score_frames(self, videos: Tensor, prompts: Sequence[str]) -> Tensor:
        """[B, n], the n frames' rewards; videos [B, T, 3, H, W] in [0, 1]. A clip that isn't finite has nan in all."""
        raise NotImplementedError

    def score(self, videos: Tensor, prompts: Sequence[str]) -> Tensor:
        """[B], float32; videos [B, T, 3, H, W] in [0, 1]. A clip with pixels that are not finite gets nan.

        With a gradient at the videos there is one at the scores, where the reward is differentiable.
        """
        return self.score_frames(videos, prompts).mean(1)


def check_frames(frames: Frames) -> int | None:
    """How many frames are looked at, None for all; ValueError unless it is at least 1, "all" or None."""
    if frames is None or frames == "all":
        return None
    if isinstance(frames, bool) or not isinstance(frames, int) or frames < 1:
        raise ValueError(f"reward.frames is {frames}; give a whole number of at least 1, or all")
    return frames


def check_videos(videos: Tensor, name: str) -> None:
    """ValueError unless the videos that the reward `name` got are [B, T, 3, H, W] with a pixel at least."""
    if videos.ndim != 5 or videos.shape[2] != 3 or 0 in videos.shape[1:]:
        raise ValueError(f"got videos of shape {tuple(videos.shape)}; {name} needs [B, T, 3, H, W]")


def pick(videos: Tensor, frames: int | None) -> Tensor:
    """At most `frames` evenly spaced frames of videos [B, T, C, H, W], both ends among them; None is all."""
    total = videos.shape[1]
    if frames is None or frames >= total:
        return videos
    return videos[:, [round(i * (total - 1) / max(1, frames - 1)) for i in range(frames)]]  # as Codec.spread
