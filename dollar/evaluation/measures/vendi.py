"""Diversity within a prompt: the Vendi score of features, and the spread of what the verifier reads.

After Eq. 17, which averages over key frames; here one feature stands for the whole clip, so that motion counts too.

The Vendi score needs features in which clips of one prompt differ. Whitened ones do:
`FrechetReference.fit(real, dimensions=64).project(features)` of `RandomFeatures` gives real clips of the shapes world
4.3 (sd 0.9 over prompts) for 8 seeds a prompt, where raw features give 1.3 and a collapsed set 1.
"""

from __future__ import annotations

from collections import defaultdict
from typing import NamedTuple

import torch
from torch import Tensor

from dollar.data import shapes
from dollar.rewards.shapes import Matches


class VendiPerPrompt(NamedTuple):
    """Mean and standard deviation over prompts of the Vendi score within a prompt."""

    mean: float
    sd: float


def vendi_score(features: Tensor) -> float:
    """Effective number of different samples in features [n, D]: 1 if all are identical, n if all are orthogonal.

    Exponential of the entropy of the eigenvalues of K / n, where K holds the cosines between samples.
    """
    features = torch.nn.functional.normalize(features.double(), dim=1)
    eigenvalues = torch.linalg.eigvalsh(features @ features.T / len(features)).clamp_min(0)
    return float(torch.special.entr(eigenvalues).sum().exp())


def vendi_per_prompt(features: Tensor, prompts: list[str]) -> VendiPerPrompt:
    """Vendi score within each prompt's samples; features [n, D], prompts n texts, each at least twice."""
    groups = by_prompt(prompts, len(features))
    scores = torch.tensor([vendi_score(features[indices]) for indices in groups.values()])
    return VendiPerPrompt(float(scores.mean()), float(scores.std(correction=0)))


def spread(matches: Matches, prompts: list[str]) -> dict[str, float]:
    """Mean over prompts of the standard deviation within a prompt of what a caption of the shapes world leaves open.

    position: of the mean centre, pixels a coordinate, over all prompts; phase: circular, radians, over circling
    prompts; speed: pixels a frame, over prompts that move in a line. Phase and speed are of the clips that do move as
    their captions say; a figure is nan when fewer than two clips of every prompt do.
    """
    position, phase, speed = [], [], []
    for prompt, indices in by_prompt(prompts, len(matches.position)).items():
        motion = shapes.parse(prompt).motion
        position.append(matches.position[indices].double().var(0).mean().sqrt())
        moving = indices[matches.right[indices, 3].cpu()]
        if len(moving) < 2 or motion == "standing still":
            continue
        if motion == "circling around":
            phase.append(circular_sd(matches.phase[moving]))
        else:
            speed.append(matches.speed[moving].double().std())

    def mean(values: list[Tensor]) -> float:
        return float(torch.stack(values).mean()) if values else float("nan")

    return {"position": mean(position), "phase": mean(phase), "speed": mean(speed)}


def circular_sd(angles: Tensor) -> Tensor:
    """Circular standard deviation (-2 log R)^1/2 of angles [n] in radians, R the length of their mean direction."""
    angles = angles.double()
    length = torch.hypot(angles.cos().mean(), angles.sin().mean()).clamp(1e-12, 1)
    return (-2 * length.log()).sqrt()


def by_prompt(prompts: list[str], samples: int) -> dict[str, Tensor]:
    """Indices of each prompt's samples; raises ValueError unless every prompt has two or more."""
    groups: dict[str, list[int]] = defaultdict(list)
    for index, prompt in enumerate(prompts):
        groups[prompt].append(index)
    if len(prompts) != samples or any(len(indices) < 2 for indices in groups.values()):
        raise ValueError(
            f"got {samples} samples and {len(prompts)} prompts, {len(groups)} of them different; diversity needs one "
            f"prompt a sample and at least two samples of each. Sample several seeds a prompt."
        )
    return {prompt: torch.tensor(indices) for prompt, indices in groups.items()}
