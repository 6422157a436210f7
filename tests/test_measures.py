"""Measures of a set of clips: their closed forms, and that each is moved by the defect it is there to show."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from dollar.data import shapes
from dollar.evaluation.measures.alignment import alignment
from dollar.evaluation.measures.bootstrap import paired_interval
from dollar.evaluation.measures.features import RandomFeatures
from dollar.evaluation.measures.frechet import FrechetReference, frechet_distance, moments
from dollar.evaluation.measures.sharpness import gradient_energy, sharpness
from dollar.evaluation.measures.vendi import circular_sd, spread, vendi_per_prompt, vendi_score
from dollar.rewards.shapes import Matches, ShapesVerifier

WEIGHT_SUM = -10.803122825713444  # of the network of seed 0
PROMPTS = [caption for caption in shapes.captions("train")[::40] for _ in range(8)]  # 24 prompts, 8 seeds each


def render(prompts: list[str], first_seed: int) -> Tensor:
    clips = [shapes.render(shapes.parse(prompt), first_seed + i) for i, prompt in enumerate(prompts)]
    return torch.tensor(np.stack(clips)).permute(0, 1, 4, 2, 3) / 255


def blur(videos: Tensor, sigma: float) -> Tensor:
    return torch.tensor(gaussian_filter(videos.numpy(), (0, 0, 0, sigma, sigma)))


@pytest.fixture(scope="module")
def real() -> Tensor:
    return render(PROMPTS, 0)


@pytest.fixture(scope="module")
def network() -> RandomFeatures:
    return RandomFeatures(seed=0)


@pytest.fixture(scope="module")
def real_features(real: Tensor, network: RandomFeatures) -> Tensor:
    return network(real)


@pytest.fixture(scope="module")
def matches(real: Tensor) -> Matches:
    return ShapesVerifier().match(real, PROMPTS)


# Features


def test_features_are_fixed_by_the_seed_and_independent_of_the_batch(real: Tensor, real_features: Tensor) -> None:
    again = RandomFeatures(seed=0, batch=3)(real[:7])
    assert again.dtype == torch.float32
    torch.testing.assert_close(again, real_features[:7], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(RandomFeatures(seed=1)(real[:7]), again, atol=0.1)


def test_features_are_of_known_weights(network: RandomFeatures) -> None:
    assert network.dimensions == network(torch.zeros(1, 17, 3, 64, 64)).shape[1]
    total = sum(float(parameter.double().sum()) for parameter in network.parameters())
    assert total == pytest.approx(WEIGHT_SUM, abs=1e-3)
    with pytest.raises(ValueError, match="channels third"):
        network(torch.zeros(1, 3, 17, 64, 64))


# Frechet


def random_gaussian(d: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mean = torch.randn(d, generator=generator, dtype=torch.float64)
    root = torch.randn(d, d, generator=generator, dtype=torch.float64)
    return mean, root @ root.T


def test_frechet_between_gaussians_has_its_closed_forms() -> None:
    (mean_a, a), (mean_b, b) = random_gaussian(5, 0), random_gaussian(5, 1)
    assert frechet_distance(mean_a, a, mean_a, a) == pytest.approx(0, abs=1e-9)
    shift = float((mean_a - mean_b).square().sum())
    assert frechet_distance(mean_a, a, mean_b, a) == pytest.approx(shift)
    # Covariances that commute: |m_a - m_b|^2 + sum (s_a - s_b)^2 over standard deviations.
    assert frechet_distance(mean_a, a, mean_b, 4 * a) == pytest.approx(shift + float(a.trace()))
    variance = torch.tensor([1.0, 4.0, 9.0]).double()
    zero = torch.zeros(3).double()
    assert frechet_distance(zero, variance.diag(), zero, torch.eye(3).double()) == pytest.approx(0 + 1 + 4)
    # In general tr (A B)^1/2 is the sum of the roots of A B's eigenvalues.
    cross = torch.linalg.eigvals(a @ b).sqrt().sum().real
    expected = shift + float(a.trace() + b.trace() - 2 * cross)
    assert frechet_distance(mean_a, a, mean_b, b) == pytest.approx(expected)
    assert frechet_distance(mean_b, b, mean_a, a) == pytest.approx(expected)


def test_the_reference_whitens_real_features() -> None:
    generator = torch.Generator().manual_seed(0)
    scales = torch.tensor([50.0, 10.0, 3.0, 0.1, 0.1, 0.1])
    features = 7 + torch.randn(500, 6, generator=generator) * scales
    projected = FrechetReference.fit(features, dimensions=3).project(features)
    mean, covariance = moments(projected)
    torch.testing.assert_close(mean, torch.zeros(3).double(), atol=1e-9, rtol=0)
    torch.testing.assert_close(covariance, torch.eye(3).double(), atol=1e-9, rtol=0)
    with pytest.raises(ValueError, match="more clips"):
        FrechetReference.fit(features[:3], dimensions=3)


def test_frechet_is_moved_by_defects(real: Tensor, real_features: Tensor, network: RandomFeatures) -> None:
    reference = FrechetReference.fit(real_features[::2])
    other = network(render(PROMPTS, 5_000))
    above = reference.above_floor(real_features, real_features, other)
    assert above.distance == pytest.approx(0, abs=1e-6)
    assert above.excess == pytest.approx(above.distance - above.floor)
    floor = above.floor
    defects = {
        "one caption for all": real_features[:1].expand_as(real_features),
        "a few clips repeated": other[torch.arange(len(other)) % 12],
        "frozen": network(real[:, :1].expand_as(real)),
        "noise": network((real + 0.06 * torch.randn(real.shape)).clamp(0, 1)),
        "darker": network(0.9 * real),
    }
    for name, features in defects.items():
        assert reference.distance(features, other) > 1.3 * floor, name
    with pytest.raises(ValueError, match="as many on each side"):
        reference.above_floor(real_features[:10], real_features, other)


# Sharpness


def test_gradient_energy_of_a_ramp_and_a_checkerboard() -> None:
    ramp = torch.linspace(0, 1, 64).expand(1, 2, 3, 64, 64)
    assert float(gradient_energy(ramp)) == pytest.approx(1 / 63**2)
    board = (torch.arange(64)[:, None] + torch.arange(64)) % 2
    assert float(gradient_energy(board.expand(1, 2, 3, 64, 64))) == pytest.approx(2)


def test_sharpness_falls_with_blur_and_with_averaging(real: Tensor) -> None:
    real = real[:48]
    ratios = [sharpness(video, real) for video in (real, blur(real, 0.7), blur(real, 1.5))]
    assert ratios[0] == pytest.approx(1)
    assert ratios[0] > 1.3 * ratios[1] > 1.3**2 * ratios[2]
    mean = real.reshape(-1, 8, *real.shape[1:]).mean(1).repeat_interleave(8, dim=0)
    assert sharpness(mean, real) < 0.35
    with pytest.raises(ValueError, match="same prompt"):
        sharpness(real[:3], real)


# Diversity


def test_vendi_score_at_its_ends() -> None:
    assert vendi_score(torch.ones(6, 4)) == pytest.approx(1)
    assert vendi_score(3 * torch.eye(6)) == pytest.approx(6)
    assert vendi_score(torch.eye(2).repeat(4, 1)) == pytest.approx(2)


def test_vendi_score_agrees_with_its_authors_package() -> None:
    package = pytest.importorskip("vendi_score.vendi")
    features = torch.randn(20, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    unit = (features / features.norm(dim=1, keepdim=True)).numpy()
    assert vendi_score(features) == pytest.approx(package.score_K(unit @ unit.T), rel=1e-6)


def test_vendi_per_prompt_tells_real_from_collapsed(real_features: Tensor) -> None:
    # Whitening needs more clips than dimensions; the figure of the docstring is of 2,048 clips and 64 dimensions.
    projected = FrechetReference.fit(real_features, dimensions=32).project(real_features)
    assert 2.5 < vendi_per_prompt(projected, PROMPTS).mean < 6
    collapsed = projected[::8].repeat_interleave(8, dim=0)
    mean, sd = vendi_per_prompt(collapsed, PROMPTS)
    assert mean == pytest.approx(1, abs=1e-6)
    assert sd == pytest.approx(0, abs=1e-6)
    with pytest.raises(ValueError, match="several seeds"):
        vendi_per_prompt(projected[:3], ["a", "b", "b"])


def test_circular_sd() -> None:
    assert float(circular_sd(torch.tensor([3.1, 3.1 - 2 * math.pi]))) == pytest.approx(0, abs=1e-3)
    angles = 0.2 * torch.randn(20_000, generator=torch.Generator().manual_seed(0)) + 3
    assert float(circular_sd(angles)) == pytest.approx(0.2, rel=0.02)


def test_spread_is_that_of_the_world_and_nothing_when_collapsed(matches: Matches) -> None:
    real_spread = spread(matches, PROMPTS)
    assert 4 < real_spread["position"] < 12
    for what, (low, high) in (("phase", shapes.ORBIT_PHASE), ("speed", shapes.SPEED)):
        assert real_spread[what] == pytest.approx((high - low) / math.sqrt(12), rel=0.3)
    collapsed = Matches(*(column[::8].repeat_interleave(8, dim=0) for column in matches))
    assert spread(collapsed, PROMPTS) == pytest.approx({"position": 0, "phase": 0, "speed": 0}, abs=1e-3)


# Alignment


def test_alignment_of_real_clips_and_of_shuffled_captions(real: Tensor, matches: Matches) -> None:
    figures = alignment(matches)
    assert figures["alignment"] == 1
    assert figures["attributes"] == dict.fromkeys(shapes.Attributes._fields, 1)
    assert figures["reward"] > 0.97
    shuffled = alignment(ShapesVerifier().match(real, PROMPTS[8:] + PROMPTS[:8]))
    assert shuffled["alignment"] == 0
    assert shuffled["reward"] < 0.7


# Confidence


def test_paired_interval_of_a_constant_difference() -> None:
    a = np.random.default_rng(0).normal(size=100)
    assert paired_interval(a + 0.5, a) == pytest.approx((0.5, 0.5, 0.5))


def test_pairs_of_one_prompt_are_one_observation() -> None:
    """With all pairs of a prompt alike, eight pairs a prompt tell no more than one."""
    once = np.random.default_rng(1).normal(size=50)
    eight, prompts = np.repeat(once, 8), [f"prompt {i}" for i in range(50) for _ in range(8)]
    alone, clustered = paired_interval(once, 0 * once), paired_interval(eight, 0 * eight, prompts)
    naive = paired_interval(eight, 0 * eight)
    assert clustered.difference == pytest.approx(alone.difference)
    assert clustered.high - clustered.low == pytest.approx(alone.high - alone.low, rel=0.05)
    assert naive.high - naive.low < 0.5 * (clustered.high - clustered.low)
    uneven = paired_interval([1.0, 1.0, 1.0, 4.0], [0.0] * 4, ["a", "a", "a", "b"])
    assert uneven.difference == 7 / 4 and uneven.low == 1 and uneven.high == 4


def test_paired_interval_is_the_normal_one_for_many_samples() -> None:
    rng = np.random.default_rng(0)
    shared, noise = 10 * rng.normal(size=400), rng.normal(size=400)
    interval = paired_interval(shared + noise, shared)
    half_width = 1.96 * noise.std() / math.sqrt(400)
    assert interval.low == pytest.approx(noise.mean() - half_width, abs=0.1 * half_width)
    assert interval.high == pytest.approx(noise.mean() + half_width, abs=0.1 * half_width)
    assert interval == paired_interval(shared + noise, shared)
    narrow = paired_interval(shared + noise, shared, level=0.5)
    assert interval.low < narrow.low < narrow.high < interval.high
    with pytest.raises(ValueError, match="same list"):
        paired_interval(shared, noise[:-1])
