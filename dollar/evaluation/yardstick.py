"""Teacher and student on the same (prompt, seed) pairs: every measure, and the differences with their intervals."""

from __future__ import annotations

import hashlib
import inspect
import math
from collections import Counter
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dollar.data import shapes
from dollar.diffusion.draws import Draws
from dollar.evaluation.measures.alignment import alignment
from dollar.evaluation.measures.appearance import appearance
from dollar.evaluation.measures.bootstrap import paired_interval
from dollar.evaluation.measures.features import RandomFeatures
from dollar.evaluation.measures.frechet import FrechetReference
from dollar.evaluation.measures.sharpness import sharpness
from dollar.evaluation.measures.vendi import spread, vendi_per_prompt
from dollar.log import progress
from dollar.media import atomically
from dollar.models.teacher import Teacher
from dollar.rewards.shapes import Matches, ShapesVerifier
from dollar.sampling.samplers import Sampler, decode, make_latents
from dollar.surrogate.agreement import agreement
from dollar.surrogate.climb import climb
from dollar.surrogate.latent_reward import LatentReward
from dollar.surrogate.pixel_reward import PixelReward

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

    So a system measured on few clips makes the same sizes, colours, shapes and motions as on many.
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


class Sized(Protocol):
    """A teacher, or what is known of one before it is read: its name and (frames, height, width) of its clips."""

    @property
    def name(self) -> str: ...
    @property
    def clip_shape(self) -> tuple[int, int, int]: ...


def is_of_shapes(clip_shape: tuple[int, int, int]) -> bool:
    """Whether clips of (frames, height, width) are of the shapes world's size."""
    return tuple(clip_shape) == (shapes.FRAMES, shapes.HEIGHT, shapes.WIDTH)


def check_size(teacher: Sized) -> None:
    """Raise ValueError unless the teacher makes clips of the shapes world's size, which these measures read."""
    needed = (shapes.FRAMES, shapes.HEIGHT, shapes.WIDTH)
    if not is_of_shapes(teacher.clip_shape):
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
    """Real clips to measure against: a reference fitted on training clips, and two real sets for the pairs' prompts.

    cache: a folder in which what follows from the real clips alone is kept, for later yardsticks of the same; those
    that are made at once in several processes may share it. The clips are those of the shapes world, by `render`.
    """

    def __init__(
        self,
        chosen: Pairs,
        render: Render,
        training: Sequence[tuple[str, int]],
        show: bool = True,
        cache: Path | None = None,
    ) -> None:
        self.pairs = chosen
        self.verifier = ShapesVerifier()
        self.features = RandomFeatures()
        self._render = render
        known = cache / f"{_follows_from(chosen, training)}.safetensors" if cache else None
        if known is not None and known.is_file():
            found = load_file(known)
        else:
            found = self._measure_real(training, show)
            if known is not None:
                with atomically(known) as temporary:
                    save_file(found, temporary)
        self.many = FrechetReference(found["mean"], found["directions"])
        self.sixteen = FrechetReference(found["mean"], found["directions"][:, :16].contiguous())
        self.real, self.other = found["real"], found["other"]

    @cached_property
    def videos(self) -> Tensor:
        """A real clip of each pair's prompt, uint8 [N, T, C, H, W]."""
        return self._clips(self._matched(1_000_000))

    @cached_property
    def others(self) -> Tensor:
        """Another of each, uint8 [N, T, C, H, W]."""
        return self._clips(self._matched(2_000_000))

    def _matched(self, shift: int) -> list[tuple[str, int]]:
        return [(prompt, shift + seed) for prompt, seed in zip(*self.pairs, strict=True)]

    def _clips(self, which: Sequence[tuple[str, int]]) -> Tensor:
        return torch.from_numpy(np.stack([self._render(*pair) for pair in which])).permute(0, 1, 4, 2, 3)

    def _measure_real(self, training: Sequence[tuple[str, int]], show: bool) -> dict[str, Tensor]:
        """mean [D] and directions [D, 64] of the reference; features real and other [N, D] of the pairs' real clips."""
        sets = {
            "real clips": training,
            "matched real clips": self._matched(1_000_000),
            "other real clips": self._matched(2_000_000),
        }
        found = []
        for name, which in sets.items():
            firsts = progress(range(0, len(which), 16), name, active=show)
            found.append(
                torch.cat([self.features(self._clips(which[first : first + 16]).float() / 255) for first in firsts])
            )
        reference = FrechetReference.fit(found[0], 64)
        directions = reference.directions.contiguous()  # in the order of what has fewer of them, too
        return {"mean": reference.mean, "directions": directions, "real": found[1], "other": found[2]}

    def measure(self, videos: Tensor, count: int | None = None) -> Figures:
        """All measures of videos uint8 [N, T, C, H, W] of the first N pairs; count looks at fewer."""
        n = count or len(videos)
        videos, prompts = videos[:n], self.pairs.prompts[:n]
        matches, features = self._matches(videos, prompts)
        diverse = min(n // VENDI_SEEDS, VENDI_PROMPTS) * VENDI_SEEDS  # diversity is of whole groups of seeds
        first = Matches(*(field[:diverse] for field in matches))
        metrics: dict[str, Any] = {
            "clips": n,
            **alignment(matches),
            "frechet": self.sixteen.above_floor(features, self.real[:n], self.other[:n])._asdict(),
            "sharpness": sharpness(videos.float() / 255, self.videos[:n].float() / 255),
            **appearance(videos),
            "vendi": vendi_per_prompt(self.many.project(features[:diverse]), prompts[:diverse])._asdict(),
            "spread": spread(first, prompts[:diverse]),
        }
        return Figures(metrics, matches.right.all(1).numpy(), matches.margins.mean(1).numpy())

    def real_figures(self, count: int | None = None) -> Figures:
        """The measures of other real clips of the same prompts: what a perfect model would get."""
        return self.measure(self.others, count)

    def _matches(self, videos: Tensor, prompts: list[str]) -> tuple[Matches, Tensor]:
        matches, features = [], []
        for first in range(0, len(videos), 16):
            part = videos[first : first + 16].float() / 255
            matches.append(self.verifier.match(part, prompts[first : first + 16]))
            features.append(self.features(part))
        return Matches(*(torch.cat(field) for field in zip(*matches, strict=True))), torch.cat(features)


def _follows_from(chosen: Pairs, training: Sequence[tuple[str, int]]) -> str:
    """What real clips and their measures follow from, in few letters: the clips, and the code that draws and reads."""
    code = [inspect.getsource(part) for part in (shapes, RandomFeatures, FrechetReference)]
    return hashlib.sha256(repr((torch.__version__, code, chosen, training)).encode()).hexdigest()[:16]


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
    """A pixel reward's scores of videos uint8 [N, T, C, H, W]: mean and standard deviation, and of how many clips.

    A reward with `scores`, several numbers of a clip by name, gives each one's mean as well, and in `errors` its
    standard error; where it makes its own of them, by `whole`, no clip is scored twice.
    """
    several: Any = getattr(pixel.reward, "scores", None)
    whole: Any = getattr(pixel.reward, "whole", None)
    each, parts = [], []
    for first in range(0, len(videos), 16):
        part = videos[first : first + 16].float() / 255
        captions = list(prompts[first : first + len(part)])
        fresh = [] if several is None else _parts(pixel, part, captions)
        parts += fresh
        each += [pixel.score_videos(part, captions)] if whole is None else [whole(found) for found in fresh]
    known = _finite(each)
    found: dict[str, Any] = {
        "name": pixel.name,
        "mean": float(known.mean()),
        "sd": float(known.std(correction=0)) if len(known) else float("nan"),
        "clips": len(known),
    }
    if parts:
        values = {name: _finite([p[name] for p in parts]) for name in parts[0]}
        found["scores"] = {name: float(known.mean()) for name, known in values.items()}
        found["errors"] = {n: float(known.std(correction=0)) / math.sqrt(len(known)) for n, known in values.items()}
    return found


def _parts(pixel: PixelReward, videos: Tensor, prompts: Sequence[str]) -> list[dict[str, Tensor]]:
    """The several numbers of videos [B, T, C, H, W], together; where that fails, one by one without those at fault."""
    try:
        with torch.no_grad():
            return [{name: value.cpu() for name, value in pixel.reward.scores(videos, list(prompts)).items()}]  # type: ignore[attr-defined]
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # as in PixelReward.score_videos
        pixel.trouble = f"{pixel.name} raised {type(error).__name__}: {error}"
        if len(videos) == 1:
            return []
    return [found for v, p in zip(videos, prompts, strict=True) for found in _parts(pixel, v[None], [p])]


def _finite(parts: Sequence[Tensor]) -> Tensor:
    each = torch.cat([torch.empty(0), *parts]).double()
    return each[each.isfinite()]


def latent_reward_figures(
    surrogate: LatentReward, teacher: Teacher, samplers: Sequence[Sampler], prompts: Sequence[str], batch: int = 16
) -> dict[str, float]:
    """How well the latent reward model follows the pixel reward on generated clips of mixed quality.

    correlation: Pearson's; rank_correlation: Spearman's; pairwise: how often the better of two clips is found, where
    rewards differ by more than 0.1; mse: in the reward's unit. climb_3_predicted, climb_3_true, climb_3_true_se: by how
    much a step of 3 % of a norm up its gradient raises what it predicts and the true reward of the last sampler's
    clips, and the standard error of the latter; so too for 1 and 10 %. cosine: of the gradient with the reward's own.
    """
    assert surrogate.pixel is not None
    true, predicted = [], []
    for number, sampler in enumerate(samplers):
        seeds = [5_000_000 + 1000 * number + i for i in range(len(prompts))]
        latents = make_latents(sampler, teacher, prompts, seeds, batch)
        with torch.no_grad():
            predicted.append(surrogate.predict(latents, teacher.text(prompts)).cpu())
        true.append(surrogate.pixel.score_videos(decode(teacher, latents).float() / 255, prompts))
    p, r = torch.cat(predicted).double(), torch.cat(true).double()
    p, r = p[r.isfinite()], r[r.isfinite()]
    climbs = climb(surrogate, latents, prompts, Draws(0, 0, range(len(prompts)), latents.device))
    return {
        **agreement(p, r, gap=0.1)._asdict(),
        "mse": float(((p - r) ** 2).mean()),
        "clips": len(r),
        **{
            f"climb_{100 * found.share:g}_{name}": getattr(found, name)
            for found in climbs
            for name in ("predicted", "true", "true_se")
        },
        "cosine": climbs[0].cosine,
    }
