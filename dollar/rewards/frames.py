"""Which frames of a clip a reward looks at, and what videos must look like."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

Frames = int | Literal["all"] | None
"""How many evenly spaced frames are looked at; None is all, too."""


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
