"""Sharpness of clips against real ones: a blurred mean of several answers loses gradient energy before all else."""

from __future__ import annotations

from torch import Tensor


def gradient_energy(videos: Tensor) -> Tensor:
    """Mean squared difference of neighbouring pixels, across and down; videos [B, T, C, H, W] in [0, 1], to [B]."""
    videos = videos.float()
    across, down = videos.diff(dim=-1), videos.diff(dim=-2)
    return across.square().mean((1, 2, 3, 4)) + down.square().mean((1, 2, 3, 4))


def sharpness(videos: Tensor, real: Tensor) -> float:
    """Ratio of mean gradient energies, 1 for real clips and less for blurred ones; both [B, T, C, H, W] in [0, 1].

    The real clips must have the same prompts, since contrast depends on what is shown. Noise raises the ratio above 1.
    """
    if videos.shape != real.shape:
        raise ValueError(
            f"got videos of shape {tuple(videos.shape)} and real clips of shape {tuple(real.shape)}; sharpness needs "
            f"one real clip of the same prompt for each video. Draw the real clips from the videos' prompts."
        )
    return float(gradient_energy(videos).mean() / gradient_energy(real).mean())
