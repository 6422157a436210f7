"""A weighted mixture of rewards."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from dollar.rewards.frames import pick


class Mixture:
    """The weighted sum of other rewards, each of which looks at its own frames.

    parts: name -> a reward, or what makes one when called, so that a part of weight 0 is neither built nor called.
    weights: name -> a number in the part's own unit; a part that isn't named has weight 0. Weights below 0 punish.
    ValueError for a weight without a part, or where all weights are 0. An error of a part names its keys as the
    mixture's, reward.parts.<name>.
    """

    def __init__(self, parts: Mapping[str, Any | Callable[[], Any]], weights: Mapping[str, float]) -> None:
        if unknown := sorted(set(weights) - set(parts)):
            raise ValueError(f"reward.weights.{unknown[0]} has no part; the parts are {', '.join(sorted(parts))}")
        self.weights = {name: float(weights[name]) for name in parts if weights.get(name)}
        if not self.weights:
            raise ValueError(f"all of reward.weights are 0; give one of {', '.join(sorted(parts))} a weight")
        self.parts = {}
        for name in self.weights:
            with _named(name, parts[name]):
                self.parts[name] = _made(parts[name])

    @property
    def name(self) -> str:
        return " + ".join(f"{weight:g} {name}" for name, weight in self.weights.items())

    @property
    def frames(self) -> int | None:
        """How many evenly spaced frames are decoded; all where the parts want different ones."""
        # Four evenly spaced frames of eight such are not those of the clip, so each part must choose from all.
        wanted = {getattr(part, "frames", None) for part in self.parts.values()}
        return wanted.pop() if len(wanted) == 1 else None

    @property
    def by_frames(self) -> bool:
        """Whether all parts score frame by frame, and the same frames."""
        wanted = {getattr(part, "frames", None) for part in self.parts.values()}
        return len(wanted) == 1 and all(getattr(part, "by_frames", False) for part in self.parts.values())

    @property
    def differentiable(self) -> bool:
        return all(getattr(part, "differentiable", False) for part in self.parts.values())

    @property
    def reads_captions(self) -> bool:
        return any(getattr(part, "reads_captions", True) for part in self.parts.values())

    @property
    def sees_motion(self) -> bool:
        return any(getattr(part, "sees_motion", False) for part in self.parts.values())

    def check(self, prompts: Iterable[str]) -> None:
        """Raise ValueError for the first prompt that a part can't score."""
        prompts = list(prompts)
        for name, part in self.parts.items():
            if hasattr(part, "check"):
                with _named(name, type(part)):
                    part.check(prompts)

    def scores(self, videos: Tensor, prompts: Sequence[str], by_frames: bool = False) -> dict[str, Tensor]:
        """Each part's own value [B], by its name and without its weight; videos as in `score`.

        by_frames: [B, n] of the frames, where all parts score frame by frame.
        """
        found = {}
        for name, part in self.parts.items():
            with _named(name, type(part)):
                score = part.score_frames if by_frames else part.score
                found[name] = score(pick(videos, getattr(part, "frames", None)), list(prompts))
        return found

    def score_frames(self, videos: Tensor, prompts: Sequence[str]) -> Tensor:
        """[B, n], float32, where all parts score frame by frame; videos [B, T, 3, H, W] in [0, 1]."""
        return self.whole(self.scores(videos, prompts, by_frames=True))

    def score(self, videos: Tensor, prompts: Sequence[str]) -> Tensor:
        """[B], float32; videos [B, T, 3, H, W] in [0, 1]. A clip that a part can't score gets that part's nan."""
        return self.whole(self.scores(videos, prompts))

    def whole(self, scores: Mapping[str, Tensor]) -> Tensor:
        """[B], or [B, n] of frames, float32: the mixture of what `scores` gave."""
        return torch.stack([self.weights[name] * value.float() for name, value in scores.items()]).sum(0)


def _made(part: Any) -> Any:
    return part if hasattr(part, "score") and not isinstance(part, type) else part()


@contextmanager
def _named(name: str, maker: Any) -> Iterator[None]:
    """Name the part in a ValueError of its own, and its keys as a mixture has them."""
    try:
        yield
    except ValueError as error:
        keys = inspect.signature(maker).parameters if callable(maker) else {}
        own = rf"(?<![\w./-])reward\.(?=({'|'.join(map(re.escape, keys))})\b)"
        text = re.sub(own, f"reward.parts.{name}.", str(error)) if keys else str(error)
        raise ValueError(f"{name}, a part of the mixture: {text}") from error
