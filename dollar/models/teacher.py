"""A teacher as the rest of the package sees it, whatever its family."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from dollar.diffusion.prediction import Prediction
from dollar.diffusion.timesteps import FewStep
from dollar.models.codec import Codec
from dollar.models.denoiser import Condition, Denoiser
from dollar.models.text import TextEncoder


@dataclass
class Teacher:
    """Everything that a family's adapter knows of one teacher.

    latent_shape: (C, F, h, w) of one clip; clip_shape: (T, H, W) in frames and pixels; fps: frames a second.
    guidance_scale: the teacher's own, in diffusers' form. noise: one standard normal latent [B, C, F, h, w] from B
    generators, drawn in the family's own layout, so that diffusers makes the same clip from the same seed.
    few_step: the student's sampler for a list of timesteps, read from the scheduler that the student is saved with.
    """

    name: str
    folder: Path
    denoiser: Denoiser
    codec: Codec
    text: TextEncoder
    latent_shape: tuple[int, int, int, int]
    clip_shape: tuple[int, int, int]
    fps: float
    guidance_scale: float
    noise: Callable[[Sequence[torch.Generator]], Tensor]
    few_step: Callable[[Sequence[int], str], FewStep]
    new_network: Callable[[], nn.Module]
    save_network: Callable[[nn.Module, Path, FewStep, Prediction], None]
    load_network: Callable[[Path], nn.Module]
    negative_prompt: str = ""

    @property
    def device(self) -> torch.device:
        return self.codec.device

    def null(self, count: int) -> Condition:
        """The condition of guidance's other half, for `count` samples."""
        return self.text([self.negative_prompt] * count)

    def denoiser_of(self, network: nn.Module, compute_dtype: torch.dtype = torch.float32) -> Denoiser:
        """A denoiser of this family around another network (the student, the fake score)."""
        return Denoiser(network, self.denoiser.schedule, self.denoiser.prediction, compute_dtype)
