"""The verifier of the shapes world: right on real clips, even degraded ones, and wrong where clips are wrong."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pytest
import torch
from scipy.fft import dctn, idctn
from scipy.ndimage import gaussian_filter
from torch import Tensor

from dollar.data import shapes
from dollar.data.shapes import ALL_ATTRIBUTES, Attributes
from dollar.rewards import shapes as verifier
from dollar.rewards.shapes import Matches, ShapesVerifier

SIZE, COLOUR, SHAPE, MOTION, BACKGROUND = range(5)
SOME = ALL_ATTRIBUTES[::29]  # 40 combinations; 29 shares no factor with any attribute's number of classes


def real(attributes: Attributes, seed: int = 50_000) -> np.ndarray:
    return shapes.render(attributes, seed).astype(np.float32)


def to_videos(clips: list[np.ndarray]) -> Tensor:
    return torch.tensor(np.stack(clips) / 255, dtype=torch.float32).clamp(0, 1).permute(0, 1, 4, 2, 3)


def judge(clips: Iterable[np.ndarray], asked: Sequence[Attributes]) -> Matches:
    one_by_one = [
        ShapesVerifier().match(to_videos([clip]), [shapes.caption(attributes)])
        for clip, attributes in zip(clips, asked, strict=True)
    ]
    return Matches(*map(torch.cat, zip(*one_by_one, strict=True)))


def blur(clip: np.ndarray, sigma: float) -> np.ndarray:
    return gaussian_filter(clip, (0, sigma, sigma, 0))


def compress(clip: np.ndarray, step: float) -> np.ndarray:
    """Round the cosine coefficients of 8 x 8 blocks to multiples of a step, as JPEG does."""
    blocks = clip.reshape(len(clip), 8, 8, 8, 8, 3)
    coefficients = dctn(blocks, axes=(2, 4), norm="ortho")
    return idctn(np.rint(coefficients / step) * step, axes=(2, 4), norm="ortho").reshape(clip.shape)


def empty(attributes: Attributes) -> np.ndarray:
    return np.full((17, 64, 64, 3), shapes.BACKGROUNDS[attributes.background], dtype=np.float32)


def other_shape(clip_of: Attributes, seed: int, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """The clip of these attributes and seed with everything but the shape unchanged."""
    distance = shapes.signed_distance
    other = shapes.SHAPES[(shapes.SHAPES.index(clip_of.shape) + 1) % len(shapes.SHAPES)]
    with monkeypatch.context() as patch:
        patch.setattr(shapes, "signed_distance", lambda shape, x, y, radius: distance(other, x, y, radius))
        return real(clip_of, seed)


def test_real_clips_are_right() -> None:
    asked = ALL_ATTRIBUTES[::3]
    matches = judge((real(a, 60_000 + i) for i, a in enumerate(asked)), asked)
    assert (matches.right.float().mean(0) >= 0.999).all()
    assert matches.margins.min() > 0.9


def test_mildly_degraded_clips_are_right() -> None:
    rng = np.random.default_rng(0)

    def degrade(clip: np.ndarray) -> np.ndarray:
        noisy = blur(clip, 0.7) + rng.uniform(-8, 8, 3) + rng.normal(0, 4, clip.shape)
        return np.rint(compress(noisy, 24))

    asked = ALL_ATTRIBUTES[1::5]
    matches = judge((degrade(real(a, 70_000 + i)) for i, a in enumerate(asked)), asked)
    assert (matches.right.float().mean(0) >= 0.99).all()
    assert matches.right.all(1).float().mean() >= 0.97


def test_wrong_captions_are_wrong_in_exactly_what_differs() -> None:
    shown = ALL_ATTRIBUTES[::7]
    asked = [ALL_ATTRIBUTES[i] for i in np.random.default_rng(1).permutation(len(ALL_ATTRIBUTES))[: len(shown)]]
    matches = judge((real(a) for a in shown), asked)
    same = torch.tensor([[x == y for x, y in zip(a, b, strict=True)] for a, b in zip(shown, asked, strict=True)])
    assert torch.equal(matches.right, same)
    assert matches.margins[same].min() > 0.9
    assert matches.margins[~same].max() < 0.1


def test_noise_and_empty_clips_are_not_objects() -> None:
    rng = np.random.default_rng(2)
    noise = judge((rng.uniform(0, 255, (17, 64, 64, 3)) for _ in SOME), SOME)
    assert not noise.right.any()
    assert noise.margins.mean() < 0.15
    blank = judge((empty(a) for a in SOME), SOME)
    assert not blank.right[:, :BACKGROUND].any()
    assert blank.margins[:, :BACKGROUND].max() < 0.01


def test_the_mean_of_many_clips_does_not_pass() -> None:
    matches = judge((np.mean([real(a, seed) for seed in range(12)], axis=0) for a in SOME), SOME)
    assert not matches.right.all(1).any()
    assert not matches.right[:, SHAPE].any()


def test_a_second_object_does_not_pass() -> None:
    asked = [a for a in SOME if a.motion == "standing still"]
    y, x = np.mgrid[:64, :64]
    clips = []
    for attributes in asked:
        clip = real(attributes)
        seen = judge([clip], [attributes]).position[0].numpy()
        far = np.where(seen < 32, 53, 10)  # a place in the opposite quarter
        clip[:, np.hypot(x - far[0], y - far[1]) < 7.5] = shapes.COLOURS[attributes.colour]
        clips.append(clip)
    matches = judge(clips, asked)
    assert not matches.right[:, [SHAPE, MOTION]].any()


def test_an_object_that_vanishes_is_wrong_in_motion() -> None:
    clips = [real(a) for a in SOME]
    for clip, attributes in zip(clips, SOME, strict=True):
        clip[8] = empty(attributes)[8]
    matches = judge(clips, SOME)
    assert not matches.right[:, MOTION].any()
    assert matches.right[:, [SIZE, COLOUR, SHAPE, BACKGROUND]].all()


def test_a_shape_that_morphs_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    ramp = np.linspace(0, 1, 17)[:, None, None, None]
    sudden, gradual = [], []
    for attributes in SOME:
        first, last = real(attributes), other_shape(attributes, 50_000, monkeypatch)
        sudden.append(np.concatenate([first[:12], last[12:]]))
        gradual.append((1 - ramp) * first + ramp * last)
    for clips in (sudden, gradual):
        matches = judge(clips, SOME)
        assert not matches.right[:, SHAPE].any()
        assert matches.right[:, [COLOUR, MOTION, BACKGROUND]].all()


def test_a_colour_between_two_is_neither() -> None:
    clips, asked = [], []
    for attributes in (a for a in SOME if a.background == "black"):
        clip = real(attributes)
        # Rolling the channels keeps the picture and moves the hue; half-way there the colour has no name.
        clips.append((clip + np.roll(clip, 1, axis=-1)) / 2)
        asked.append(attributes)
    matches = judge(clips, asked)
    assert not matches.right[:, COLOUR].any()
    assert matches.right[:, [SIZE, SHAPE, MOTION]].all()


def test_reversed_time_is_wrong_in_motion_only() -> None:
    matches = judge((real(a)[::-1].copy() for a in SOME), SOME)
    still = torch.tensor([a.motion == "standing still" for a in SOME])
    assert torch.equal(matches.right[:, MOTION], still)
    assert matches.right[:, [SIZE, COLOUR, SHAPE, BACKGROUND]].all()


def test_position_phase_and_speed_are_those_that_were_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    trajectory = shapes.trajectory

    def record(*arguments) -> shapes.Trajectory:
        drawn.append(trajectory(*arguments))
        return drawn[-1]

    monkeypatch.setattr(shapes, "trajectory", record)
    matches = judge((real(a) for a in SOME), SOME)
    for i, (attributes, path) in enumerate(zip(SOME, drawn, strict=True)):
        np.testing.assert_allclose(matches.position[i], path.centres.mean(0), atol=0.3)
        assert abs(matches.speed[i] - path.speed) < 0.02
        if attributes.motion == "circling around":
            assert abs(np.angle(np.exp(1j * (float(matches.phase[i]) - path.phase)))) < 0.06
        else:
            assert matches.phase[i].isnan()


def test_the_score_is_the_mean_margin_and_falls_smoothly_with_blur() -> None:
    attributes = SOME[3]
    clips = [blur(real(attributes), sigma) for sigma in np.linspace(0.1, 8, 80)]
    videos, prompts = to_videos(clips), [shapes.caption(attributes)] * len(clips)
    score = ShapesVerifier().score(videos, prompts)
    assert torch.equal(score, ShapesVerifier().match(videos, prompts).margins.mean(1))
    assert score[0] > 0.95
    assert score[-1] < 0.75
    assert score.diff().abs().max() < 0.1


@pytest.mark.parametrize("shape", shapes.SHAPES)
def test_areas_are_those_of_the_shapes(shape: str) -> None:
    y, x = (np.mgrid[-150:150, -150:150] + 0.5) / 100
    area = (shapes.signed_distance(shape, x, y, 1.0) < 0).sum() / 100**2
    assert area == pytest.approx(verifier.AREA[shape], rel=0.01)


def test_what_cannot_be_judged_is_refused() -> None:
    videos = to_videos([real(SOME[0])])
    with pytest.raises(ValueError, match="is not a caption"):
        ShapesVerifier().score(videos, ["a dog"])
    with pytest.raises(ValueError, match="one caption a clip"):
        ShapesVerifier().score(videos, [])
    with pytest.raises(ValueError, match="one caption a clip"):
        ShapesVerifier().score(videos[:, :9], [shapes.caption(SOME[0])])


def test_a_clip_with_broken_pixels_has_no_score_and_no_company_is_hurt() -> None:
    videos = to_videos([real(SOME[0]), real(SOME[1])])
    prompts = [shapes.caption(SOME[0]), shapes.caption(SOME[1])]
    whole = ShapesVerifier().match(videos, prompts)
    videos[0, 3, 0, 5, 5] = float("inf")
    judged = ShapesVerifier().match(videos, prompts)
    assert judged.margins[0].isnan().all() and not judged.right[0].any()
    assert torch.equal(judged.margins[1], whole.margins[1]) and torch.equal(judged.right[1], whole.right[1])


def test_prompts_are_checked_before_any_clip_is_made() -> None:
    ShapesVerifier().check(shapes.captions("train")[:3])
    with pytest.raises(ValueError, match="a dog"):
        ShapesVerifier().check([shapes.captions("train")[0], "a dog"])
