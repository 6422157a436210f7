"""Clips from a teacher or a student, by prompt and seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dollar.diffusion.denoise import sample
from dollar.diffusion.timesteps import FewStep
from dollar.log import logger, progress
from dollar.models.denoiser import Condition, Denoiser
from dollar.models.teacher import Family, Teacher

# (noise generators, condition) -> latents [B, C, F, h, w]
Diffusion = Callable[[list[torch.Generator], Condition], Tensor]


@dataclass(frozen=True)
class Sampler:
    """Something that makes clips by `steps` evaluations of a network, named for tables.

    denoiser: holds the network; guided: whether each evaluation is of twice the clips, for both halves of guidance.
    """

    name: str
    steps: int
    diffusion: Diffusion
    denoiser: Denoiser
    guided: bool = False


def teacher_sampler(teacher: Teacher, steps: int = 50, guidance_scale: float | None = None) -> Sampler:
    """The teacher by guided one-step solver steps (DDIM, Euler), as its diffusers pipeline samples it."""
    schedule = teacher.denoiser.schedule
    check_scale(teacher.family, teacher.name, guidance_scale)
    # A network that takes its scale as an input needs no further guidance.
    own = 1.0 if teacher.family.embeds_guidance else teacher.guidance_scale
    scale = own if guidance_scale is None else guidance_scale

    def diffusion(generators: list[torch.Generator], condition: Condition) -> Tensor:
        null = None if scale == 1 else teacher.null(len(generators))
        denoise = teacher.denoiser.given(condition, null, scale)
        return sample(denoise, teacher.noise(generators), teacher.grid(steps), schedule)

    return Sampler("teacher", steps, diffusion, teacher.denoiser, scale != 1)


def check_scale(family: Family, name: str, guidance_scale: float | None) -> None:
    """Raise ValueError for a scale to guide a teacher by that has its guidance inside."""
    if family.embeds_guidance and guidance_scale is not None:
        raise ValueError(
            f"guidance_scale is {guidance_scale}, but {name} takes its scale as an input and has no unconditional "
            f"half; give teacher.guidance_scale={guidance_scale:g}"
        )


def student_sampler(
    teacher: Teacher, student: Denoiser, few_step: FewStep, name: str = "student", guided: bool = False
) -> Sampler:
    """A student by its own few steps, without guidance; guided: with its teacher's, as a tuned teacher needs it."""
    scale = teacher.guidance_scale if guided and not teacher.family.embeds_guidance else 1.0

    def diffusion(generators: list[torch.Generator], condition: Condition) -> Tensor:
        null = None if scale == 1 else teacher.null(len(generators))
        denoise = student.given(condition, null, scale)
        return few_step.sample(denoise, lambda k: teacher.noise(generators, again=k > 0))

    return Sampler(name, few_step.steps, diffusion, student, scale != 1)


def generators(seeds: Sequence[int]) -> list[torch.Generator]:
    """One generator a seed, on the CPU: a seed makes the same clip on every device."""
    return [torch.Generator().manual_seed(int(seed)) for seed in seeds]


@torch.no_grad()
def make_latents(
    sampler: Sampler, teacher: Teacher, prompts: Sequence[str], seeds: Sequence[int], batch: int = 16, show: bool = True
) -> Tensor:
    """Latents [N, C, F, h, w] of N (prompt, seed) pairs; a pair's clip does not depend on the others in its batch."""
    latents = []
    for first in progress(range(0, len(prompts), batch), f"{sampler.name}, {sampler.steps} steps", active=show):
        part = slice(first, first + batch)
        latents.append(sampler.diffusion(generators(seeds[part]), teacher.text(prompts[part])))
    return torch.cat(latents)


def decode(teacher: Teacher, latents: Tensor, show: bool = True) -> Tensor:
    """Videos uint8 [N, T, C, H, W] on the CPU, decoded a few at a time; a note says where there are no numbers."""
    if broken := int((~finite(latents)).sum()):
        logger.warning(f"note: {broken} of {len(latents)} clips are not finite, so they come out black")
    parts = latents.split(teacher.codec.chunk)
    bar = progress(range(len(parts)), "decoding", active=show and len(parts) > 8)
    return torch.cat([(teacher.codec.decode(parts[i]) * 255).round().byte().cpu() for i in bar])


def finite(latents: Tensor) -> Tensor:
    """Whether each of latents [N, C, F, h, w] is made of finite numbers, [N]."""
    return latents.flatten(1).isfinite().all(1)


def make_clips(
    sampler: Sampler, teacher: Teacher, prompts: Sequence[str], seeds: Sequence[int], batch: int = 16, show: bool = True
) -> Tensor:
    """Videos uint8 [N, T, C, H, W] of N (prompt, seed) pairs."""
    return decode(teacher, make_latents(sampler, teacher, prompts, seeds, batch, show), show)
