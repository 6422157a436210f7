"""Teacher and student on the same (prompt, seed) pairs: every measure, and the differences with their intervals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dollar.data import shapes
from dollar.evaluation.alignment import alignment
from dollar.evaluation.bootstrap import paired_interval
from dollar.evaluation.features import RandomFeatures
from dollar.evaluation.frechet import FrechetReference
from dollar.evaluation.sharpness import sharpness
from dollar.evaluation.vendi import spread, vendi_per_prompt
from dollar.latent_reward import LatentReward, agreement
from dollar.log import progress
from dollar.models.teacher import Teacher
from dollar.pixel_reward import PixelReward
from dollar.rewards.shapes import Judgement, ShapesVerifier
from dollar.sampling import Sampler, decode, make_latents

VENDI_PROMPTS, VENDI_SEEDS = 32, 8
# (prompt, seed) -> a real clip, uint8 [T, H, W, 3]
Render = Callable[[str, int], np.ndarray]


class Pairs(NamedTuple):
    """What is sampled: prompts and seeds, one of each a clip."""

    prompts: list[str]
    seeds: list[int]


def pairs(prompts: Sequence[str], count: int) -> Pairs:
    """`count` pairs: first 32 prompts with 8 seeds each (for diversity), then all prompts in turn with new seeds."""
    chosen = [prompt for prompt in spread_out(prompts, VENDI_PROMPTS) for _ in range(VENDI_SEEDS)]
    while len(chosen) < count:
        chosen += prompts
    return Pairs(chosen[:count], list(range(count)))


def spread_out(prompts: Sequence[str], count: int) -> list[str]:
    """`count` of the prompts, in an order whose every beginning has the words about as often as all prompts have them.

    So a system measured on few clips is asked for the same sizes, colours, shapes and motions as on many.
    """
    left, seen = list(dict.fromkeys(prompts)), Counter[str]()
    chosen: list[str] = []
    often = Counter(word for prompt in left for word in set(prompt.split()))
    while left and len(chosen) < count:
        # The words that came least often so far for how often there are; the first such prompt. Exactly, since a sum of
        # floats follows the order of a set of words, which is another in each process.
        rarest = min(left, key=lambda prompt: sum(Fraction(seen[word], often[word]) for word in set(prompt.split())))
        left.remove(rarest)
        chosen.append(rarest)
        seen.update(set(rarest.split()))
    return chosen


def check_size(teacher: Teacher) -> None:
    """Raise ValueError unless the teacher makes clips of the shapes world's size, which these measures read."""
    needed = (shapes.FRAMES, shapes.HEIGHT, shapes.WIDTH)
    if teacher.clip_shape != needed:
        raise ValueError(
            f"the teacher {teacher.name} makes clips of {teacher.clip_shape} (frames, height, width); evaluation reads "
            f"the shapes world's, {needed}"
        )


class Figures(NamedTuple):
    """A system's measures (as metrics.json keeps them), and per clip: all five right, and the reward."""

    metrics: dict[str, Any]
    right: np.ndarray
    reward: np.ndarray


class Yardstick:
    """Real clips to measure against: a reference fitted on training clips, and two real sets for the pairs' prompts."""

    def __init__(self, chosen: Pairs, render: Render, training: Sequence[tuple[str, int]], show: bool = True) -> None:
        self.pairs = chosen
        self.verifier = ShapesVerifier()
        self.features = RandomFeatures()
        fitted = self._real(training, render, "real clips", show)[1]
        self.sixteen = FrechetReference.fit(fitted, 16)
        self.many = FrechetReference.fit(fitted, 64)
        ours = list(zip(chosen.prompts, chosen.seeds, strict=True))
        self.videos, self.real = self._real([(p, 1_000_000 + s) for p, s in ours], render, "matched real clips", show)
        self.others, self.other = self._real([(p, 2_000_000 + s) for p, s in ours], render, "other real clips", show)

    def _real(self, which: Sequence[tuple[str, int]], render: Render, name: str, show: bool) -> tuple[Tensor, Tensor]:
        videos, features = [], []
        for first in progress(range(0, len(which), 16), name, active=show):
            part = np.stack([render(*pair) for pair in which[first : first + 16]])
            videos.append(torch.from_numpy(part).permute(0, 1, 4, 2, 3))  # [B, T, C, H, W]
            features.append(self.features(videos[-1].float() / 255))
        return torch.cat(videos), torch.cat(features)

    def measure(self, videos: Tensor, count: int | None = None) -> Figures:
        """All measures of videos uint8 [N, T, C, H, W] of the first N pairs; count looks at fewer."""
        n = count or len(videos)
        videos, prompts = videos[:n], self.pairs.prompts[:n]
        judged, features = self._judge(videos, prompts)
        diverse = min(n // VENDI_SEEDS, VENDI_PROMPTS) * VENDI_SEEDS  # diversity is of whole groups of seeds
        first = Judgement(*(field[:diverse] for field in judged))
        metrics: dict[str, Any] = {
            "clips": n,
            **alignment(judged),
            "frechet": self.sixteen.above_floor(features, self.real[:n], self.other[:n])._asdict(),
            "sharpness": sharpness(videos.float() / 255, self.videos[:n].float() / 255),
            "vendi": vendi_per_prompt(self.many.project(features[:diverse]), prompts[:diverse])._asdict(),
            "spread": spread(first, prompts[:diverse]),
        }
        return Figures(metrics, judged.right.all(1).numpy(), judged.margins.mean(1).numpy())

    def real_figures(self, count: int | None = None) -> Figures:
        """The measures of other real clips of the same prompts: what a perfect model would get."""
        return self.measure(self.others, count)

    def _judge(self, videos: Tensor, prompts: list[str]) -> tuple[Judgement, Tensor]:
        judged, features = [], []
        for first in range(0, len(videos), 16):
            part = videos[first : first + 16].float() / 255
            judged.append(self.verifier.judge(part, prompts[first : first + 16]))
            features.append(self.features(part))
        return Judgement(*(torch.cat(field) for field in zip(*judged, strict=True))), torch.cat(features)


def difference(
    student: Figures, teacher_right: np.ndarray, teacher_reward: np.ndarray, prompts: Sequence[str]
) -> dict[str, Any]:
    """Student minus teacher on the pairs that both have, with 95 % paired bootstrap intervals over prompts."""
    n = min(len(student.right), len(teacher_right))
    right, was_right = student.right[:n].astype(float), teacher_right[:n].astype(float)
    return {
        "pairs": n,
        "alignment": paired_interval(right, was_right, prompts[:n])._asdict(),
        "reward": paired_interval(student.reward[:n], teacher_reward[:n], prompts[:n])._asdict(),
    }


def scored(pixel: PixelReward, videos: Tensor, prompts: Sequence[str]) -> dict[str, Any]:
    """What a pixel reward says of videos uint8 [N, T, C, H, W]: mean and standard deviation, and of how many clips.

    A reward with `scores`, several numbers of a clip by name, gives each one's mean as well; where it makes its own of
    them, by `whole`, no clip is judged twice.
    """
    several: Any = getattr(pixel.reward, "scores", None)
    whole: Any = getattr(pixel.reward, "whole", None)
    each, told = [], []
    for first in range(0, len(videos), 16):
        part = videos[first : first + 16].float() / 255
        asked = list(prompts[first : first + len(part)])
        if several is not None:
            with torch.no_grad():
                told.append({name: value.cpu() for name, value in several(part, asked).items()})
        each.append(pixel.judge(part, asked) if whole is None else whole(told[-1]))
    known = _finite(each)
    found: dict[str, Any] = {
        "name": pixel.name,
        "mean": float(known.mean()),
        "sd": float(known.std(correction=0)),
        "clips": len(known),
    }
    if told:
        found["scores"] = {name: float(_finite([t[name] for t in told]).mean()) for name in told[0]}
    return found


def _finite(parts: Sequence[Tensor]) -> Tensor:
    each = torch.cat(list(parts)).double()
    return each[each.isfinite()]


def latent_reward_figures(
    surrogate: LatentReward, teacher: Teacher, samplers: Sequence[Sampler], prompts: Sequence[str], batch: int = 16
) -> dict[str, float]:
    """How well the latent reward model follows the pixel reward on generated clips of mixed quality.

    correlation: Pearson's; rank_correlation: Spearman's; pairwise: how often the better of two clips is told, where
    rewards differ by more than 0.1; mse: in the reward's unit.
    """
    assert surrogate.pixel is not None
    true, predicted = [], []
    for number, sampler in enumerate(samplers):
        seeds = [5_000_000 + 1000 * number + i for i in range(len(prompts))]
        latents = make_latents(sampler, teacher, prompts, seeds, batch)
        with torch.no_grad():
            predicted.append(surrogate.predict(latents, teacher.text(prompts)).cpu())
        true.append(surrogate.pixel.judge(decode(teacher, latents).float() / 255, prompts))
    p, r = torch.cat(predicted).double(), torch.cat(true).double()
    p, r = p[r.isfinite()], r[r.isfinite()]
    return {**agreement(p, r, gap=0.1)._asdict(), "mse": float(((p - r) ** 2).mean()), "clips": len(r)}
