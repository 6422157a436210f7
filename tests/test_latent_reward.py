"""The latent reward model, its losses and the statistics of its targets."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from conftest import LATENT, PROMPT
from torch import Tensor

from dollar.latent_reward import LatentReward, agreement
from dollar.losses.latent_reward import RunningStatistics, fine_tune, fit
from dollar.models.latent_reward_model import LatentRewardModel
from dollar.models.teacher import Teacher


def parameters(model):
    return sum(p.numel() for p in model.parameters())


def text_model(temporal="frames", seed=0):
    torch.manual_seed(seed)
    return LatentRewardModel(8, text_dim=12, width=64, temporal=temporal)


def test_the_papers_parameter_counts():
    assert parameters(LatentRewardModel(12)) == 189_441
    assert parameters(LatentRewardModel(12, text_dim=4096)) == 763_009
    assert parameters(LatentRewardModel(16)) == 197_633


@pytest.mark.parametrize("temporal", ["frames", "conv3d"])
@pytest.mark.parametrize("shape", [(2, 8, 5, 16, 16), (1, 8, 32, 24, 40), (3, 8, 1, 16, 16)])
def test_all_four_kinds_read_small_and_large_latents(temporal, shape):
    x, text = torch.randn(shape), torch.randn(shape[0], 7, 12)
    plain = LatentRewardModel(8, width=64, temporal=temporal)
    assert plain(x).shape == (shape[0],)
    found = text_model(temporal)(x.bfloat16(), text.bfloat16(), torch.ones(shape[0], 7))
    assert found.shape == (shape[0],)
    assert found.dtype == torch.float32


@pytest.mark.parametrize("temporal", ["frames", "conv3d"])
def test_the_reward_depends_on_the_latent_and_on_how_the_caption_reads_it(temporal):
    """Table 13 read literally has no gradient at x: its softmax is over one key."""
    model, x = text_model(temporal), torch.randn(2, 8, 5, 16, 16, requires_grad=True)
    first, second = torch.randn(2, 2, 7, 12) * 4
    gradients = [torch.autograd.grad(model(x, text).sum(), x)[0] for text in (first, second)]
    assert gradients[0].abs().mean() > 1e-6
    difference = (gradients[0] - gradients[1]).abs().mean()
    assert difference > 0.01 * gradients[0].abs().mean()
    assert not torch.allclose(model(x, first), model(x, second))


def test_the_attention_itself_depends_on_the_latent():
    """The values' mixture, apart from the features that it is added to, changes with the query."""
    attention = text_model().attention
    text, features = torch.randn(1, 7, 12), 5 * torch.randn(1, 9, 64)
    mixed = attention(features, text, None)
    assert (mixed - mixed.mean(1, keepdim=True)).abs().max() > 0.05 * mixed.abs().max()
    # One head, scale 1 / sqrt(width), written out.
    words = attention.text(text)
    scores = attention.query(features) @ attention.key(words).mT / 64**0.5
    torch.testing.assert_close(mixed, scores.softmax(-1) @ attention.value(words))


@pytest.mark.parametrize("temporal", ["frames", "conv3d"])
def test_padding_is_not_read(temporal):
    model, x = text_model(temporal), torch.randn(2, 8, 5, 16, 16)
    text, mask = torch.randn(2, 7, 12), torch.ones(2, 7, dtype=torch.int64)
    mask[0, 4:] = 0
    other = text.clone()
    other[0, 4:] = 100.0
    assert torch.equal(model(x, text, mask), model(x, other, mask))
    torch.testing.assert_close(model(x, text, mask)[:1], model(x[:1], text[:1, :4]))
    assert not torch.allclose(model(x, text, mask), model(x, text))


def test_a_caption_without_words_is_finite():
    model, x = text_model(), torch.randn(2, 8, 5, 16, 16, requires_grad=True)
    mask = torch.tensor([[0] * 7, [1] * 7])
    found = model(x, torch.randn(2, 7, 12), mask)
    found.sum().backward()
    assert found.isfinite().all()
    assert x.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_a_missing_caption_is_asked_for_and_a_needless_one_ignored():
    x = torch.randn(1, 8, 2, 16, 16)
    with pytest.raises(ValueError, match="no text was given"):
        text_model()(x)
    plain = LatentRewardModel(8, width=64)
    assert torch.equal(plain(x, torch.randn(1, 7, 12)), plain(x))
    with pytest.raises(ValueError, match="use frames or conv3d"):
        LatentRewardModel(8, temporal="3d")
    with pytest.raises(ValueError, match="multiple of the 8"):
        LatentRewardModel(8, width=36)


def test_the_latent_counts_even_if_no_word_says_anything():
    model, x = text_model(), torch.randn(2, 8, 5, 16, 16)
    torch.nn.init.zeros_(model.attention.value.weight)
    first, second = model(x, torch.randn(2, 7, 12)).tolist()
    assert abs(first - second) > 1e-4


def test_the_reward_is_float32_from_a_bfloat16_model():
    assert LatentRewardModel(8, width=64).bfloat16()(torch.randn(1, 8, 2, 16, 16)).dtype == torch.float32


def test_frames_averages_the_image_models_reward():
    model, x, text = text_model(), torch.randn(2, 8, 5, 16, 16), torch.randn(2, 7, 12)
    one_by_one = torch.stack([model(x[:, :, [i]], text) for i in range(5)])
    torch.testing.assert_close(model(x, text), one_by_one.mean(0))
    torch.testing.assert_close(model(x.flip(2), text), model(x, text))  # so it is blind to order


def moving_blobs(count, generator):
    """Blobs [count, 2, 5, 16, 16] that move to the right from anywhere."""
    place = torch.arange(16.0)
    start = 2 + 6 * torch.rand(2, count, 1, 1, 1, generator=generator)
    frame = torch.arange(5.0).reshape(1, 5, 1, 1)
    x, y = start[0] + 1.5 * frame, start[1] + 3 + 0 * frame
    blob = (-((place - x) ** 2 + (place[:, None] - y) ** 2) / 6).exp()
    return torch.stack([blob, 1 - blob], 1)


@pytest.mark.parametrize(("temporal", "sees"), [("conv3d", True), ("frames", False)])
def test_only_the_3d_kind_sees_the_order_of_frames(temporal, sees):
    torch.manual_seed(0)
    model = LatentRewardModel(2, width=32, temporal=temporal)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(0)
    sign = torch.cat([torch.ones(16), -torch.ones(16)])

    def clips():
        forward = moving_blobs(16, generator)
        return torch.cat([forward, forward.flip(2)])

    for _ in range(40):
        loss = fit(model(clips()), sign).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        error = float(fit(model(clips()), sign).mean())
    assert error < 0.1 if sees else error > 0.9


def test_losses_and_their_gradients():
    predicted = torch.tensor([1.0, -2.0], requires_grad=True)
    reward = torch.tensor([0.5, 1.0], requires_grad=True)
    assert fit(predicted, reward).tolist() == [0.25, 9.0]
    fit(predicted, reward).sum().backward()
    assert predicted.grad.tolist() == [1.0, -6.0]
    assert reward.grad is None
    assert fine_tune(predicted).tolist() == [-1.0, 2.0]
    assert fine_tune(predicted.bfloat16()).dtype == torch.float32


def test_statistics_are_those_of_all_rewards_however_they_came():
    rewards = 0.27 + 0.03 * torch.randn(101, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    running = RunningStatistics()
    for part in rewards.split([1, 40, 2, 58]):
        running.update(part)
    assert running.count == 101
    assert running.mean == pytest.approx(float(rewards.mean()), rel=1e-12)
    assert running.sd == pytest.approx(float(rewards.std(correction=0)), rel=1e-12)
    standard = running.standardise(rewards)
    assert float(standard.mean()) == pytest.approx(0, abs=1e-5)
    assert float(standard.std(correction=0)) == pytest.approx(1, abs=1e-5)
    torch.testing.assert_close(running.destandardise(standard), rewards.float())


def test_statistics_before_any_reward_change_nothing():
    reward = torch.tensor([0.2, 3.0])
    running = RunningStatistics()
    assert torch.equal(running.standardise(reward), reward)
    running.update(torch.empty(0))
    assert running == RunningStatistics()


@pytest.mark.parametrize("value", [0.0, 0.3, -1e4])
def test_statistics_of_equal_rewards_are_finite(value):
    running = RunningStatistics()
    for size in (1, 7, 3):
        running.update(torch.full((size,), value))
    assert running.sd == 1
    torch.testing.assert_close(running.standardise(torch.full((2,), value)), torch.zeros(2))


def test_rounding_is_not_a_spread():
    running = RunningStatistics()
    running.update(torch.tensor([0.3, 0.3 + 3e-8]))
    assert running.variance > 0
    assert running.sd == 1
    running.update(torch.tensor([0.3001]))
    assert running.sd < 1e-4


def test_statistics_are_saved():
    running, restored = RunningStatistics(), RunningStatistics()
    running.update(torch.tensor([1.0, 2.0, 4.0]))
    state = running.state_dict()
    assert {type(value) for value in state.values()} == {int, float}
    restored.load_state_dict({name: torch.tensor(value, dtype=torch.float64) for name, value in state.items()})
    assert restored == running
    running.update(torch.tensor([8.0]))
    assert restored != running  # the two share nothing
    restored.update(torch.tensor([8.0]))
    assert restored == running


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_reward_that_is_not_finite_does_not_enter(bad):
    running = RunningStatistics()
    running.update(torch.tensor([1.0, 2.0]))
    before = running.state_dict()
    with pytest.raises(ValueError, match="must be finite"):
        running.update(torch.tensor([1.0, bad]))
    assert running.state_dict() == before


def test_agreement_is_of_order_and_of_clear_pairs():
    true = torch.tensor([0.0, 0.05, 0.3, 0.9])
    bent = agreement(true**3, true, gap=0.1)
    assert bent.rank_correlation == pytest.approx(1) and bent.correlation < 0.99 and bent.pairwise == 1
    assert bent.pairs == 5  # of six, one too close to tell
    assert agreement(-true, true, gap=0.1)[:3] == pytest.approx((-1, -1, 0))
    flat = agreement(torch.ones(4), true, gap=0.1)
    assert math.isnan(flat.correlation) and math.isnan(flat.rank_correlation) and flat.pairwise == 0


def test_only_the_frames_that_a_reward_looks_at_are_decoded(teacher: Teacher) -> None:
    """A reward of two frames sees the clip's ends, as a whole decoding gives them."""
    seen: list[Tensor] = []

    class Ends:
        frames = 2

        def score(self, videos: Tensor, prompts: Sequence[str]) -> Tensor:
            seen.append(videos)
            return videos.mean((1, 2, 3, 4))

    surrogate = LatentReward(LatentRewardModel(8, 64, width=16, groups=4), Ends(), teacher.codec, teacher.text)
    latents = torch.randn(2, *LATENT, generator=torch.Generator().manual_seed(1))
    reward = surrogate.observe(0, latents, [PROMPT, PROMPT]).reward
    whole = teacher.codec.decode(latents)
    assert torch.equal(seen[0], whole[:, [0, 8]])
    torch.testing.assert_close(reward, whole[:, [0, 8]].mean((1, 2, 3, 4)))
    assert teacher.codec.spread(latents, 1) == [0] and teacher.codec.spread(latents, 99) == list(range(9))
