"""The yardstick of evaluations: real clips measured once, and rewards with their standard errors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from dollar.data import shapes
from dollar.evaluation.measures.features import RandomFeatures
from dollar.evaluation.yardstick import Yardstick, pairs, scored
from dollar.rewards.mixture import Mixture
from dollar.surrogate.pixel_reward import PixelReward


def test_what_real_clips_gave_is_kept_for_the_same_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        RandomFeatures, "forward", lambda self, x: functional.adaptive_avg_pool3d(x, (3, 6, 6)).flatten(1)
    )
    prompts, training = shapes.captions("held_out"), shapes.ShapesClips("train", 70, seed=1)
    trained = list(zip(training.captions, training.seeds, strict=True))
    drawn: list[int] = []

    def render(prompt: str, seed: int) -> np.ndarray:
        drawn.append(seed)
        return shapes.render(shapes.parse(prompt), seed)

    def yardstick(count: int, cache: Path | None = tmp_path, which: Sequence[tuple[str, int]] = trained) -> Yardstick:
        drawn.clear()
        return Yardstick(pairs(prompts, count), render, which, show=False, cache=cache)

    made = yardstick(16, cache=None).others.roll(1, 0)
    first, alone = yardstick(16).measure(made), yardstick(16, cache=None).measure(made)
    known = yardstick(16)
    assert drawn == [], "nothing is drawn before it is asked for"
    again = known.measure(made)
    assert first.metrics == again.metrics == alone.metrics and sorted(drawn) == [1_000_000 + i for i in range(16)]
    assert known.real_figures().metrics["frechet"]["excess"] == pytest.approx(0, abs=1e-9)
    for count, which in ((17, trained), (16, trained[1:])):
        yardstick(count, which=which)
        assert len(drawn) == len(which) + 2 * count, "other pairs or other clips"
    assert len(list(tmp_path.iterdir())) == 3


def test_each_reward_of_a_mixture_has_its_standard_error() -> None:
    class Reward:
        def scores(self, videos: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
            return {"red": videos[:, 0, 0, 0, 0]}

        def score(self, videos: Tensor, prompts: Sequence[str]) -> Tensor:
            return self.scores(videos, prompts)["red"]

    videos = torch.zeros(20, 1, 3, 2, 2, dtype=torch.uint8)
    videos[:5] = 255
    found = scored(PixelReward(Reward(), None), videos, ["a"] * 20)  # type: ignore[arg-type]
    assert found["errors"]["red"] == pytest.approx(math.sqrt(0.25 * 0.75 / 20))


def test_clips_that_a_part_of_a_mixture_fails_on_are_left_out() -> None:
    class Picky:
        def score(self, videos: Tensor, prompts: Sequence[str]) -> Tensor:
            if any(p == "bad" for p in prompts):
                raise RuntimeError("bad is not for me")
            return videos[:, 0, 0, 0, 0]

    pixel = PixelReward(Mixture({"picky": Picky()}, {"picky": 2.0}), None)  # type: ignore[arg-type]
    videos = torch.full((20, 1, 3, 2, 2), 255, dtype=torch.uint8)
    found = scored(pixel, videos, ["bad", *["a"] * 18, "bad"])
    assert found["clips"] == 18 and found["mean"] == pytest.approx(2.0) and found["scores"] == {"picky": 1.0}
    assert found["name"] == "2 picky" and "bad is not for me" in pixel.trouble
    assert scored(pixel, videos, ["bad"] * 20)["clips"] == 0
