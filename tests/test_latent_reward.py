"""The latent reward model, its losses and the statistics of its targets."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from conftest import LATENT, PROMPT
from torch import Tensor

from dollar.diffusion.draws import Draws
from dollar.diffusion.schedule import RectifiedFlow, diffuse
from dollar.losses.latent_reward import RunningStatistics, fine_tune, fit, pairwise
from dollar.models.denoiser import Condition
from dollar.models.latent_reward_model import LatentRewardModel
from dollar.models.reward_models import make_reward_model
from dollar.models.teacher import Teacher
from dollar.surrogate.agreement import agreement
from dollar.surrogate.climb import climb
from dollar.surrogate.latent_reward import LatentReward
from dollar.surrogate.memory import Observation
from dollar.surrogate.pixel_reward import PixelReward


def parameters(model):
    return sum(p.numel() for p in model.parameters())


def said(text, mask=None):
    """The condition of captions [B, L, D], of words alone unless there is a mask."""
    return Condition(text, torch.ones(text.shape[:2]) if mask is None else mask)


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
    found = text_model(temporal)(x.bfloat16(), said(text.bfloat16()))
    assert found.shape == (shape[0],)
    assert found.dtype == torch.float32


@pytest.mark.parametrize("temporal", ["frames", "conv3d"])
def test_the_reward_depends_on_the_latent_and_on_how_the_caption_reads_it(temporal):
    """Table 13 read literally has no gradient at x: its softmax is over one key."""
    model, x = text_model(temporal), torch.randn(2, 8, 5, 16, 16, requires_grad=True)
    first, second = torch.randn(2, 2, 7, 12) * 4
    gradients = [torch.autograd.grad(model(x, said(text)).sum(), x)[0] for text in (first, second)]
    assert gradients[0].abs().mean() > 1e-6
    difference = (gradients[0] - gradients[1]).abs().mean()
    assert difference > 0.01 * gradients[0].abs().mean()
    assert not torch.allclose(model(x, said(first)), model(x, said(second)))


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
    assert torch.equal(model(x, said(text, mask)), model(x, said(other, mask)))
    torch.testing.assert_close(model(x, said(text, mask))[:1], model(x[:1], said(text[:1, :4])))
    assert not torch.allclose(model(x, said(text, mask)), model(x, said(text)))


def test_a_caption_without_words_is_finite():
    model, x = text_model(), torch.randn(2, 8, 5, 16, 16, requires_grad=True)
    mask = torch.tensor([[0] * 7, [1] * 7])
    found = model(x, said(torch.randn(2, 7, 12), mask))
    found.sum().backward()
    assert found.isfinite().all()
    assert x.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_a_missing_caption_is_asked_for_and_a_needless_one_ignored():
    x = torch.randn(1, 8, 2, 16, 16)
    with pytest.raises(ValueError, match="no text was given"):
        text_model()(x)
    plain = LatentRewardModel(8, width=64)
    assert torch.equal(plain(x, said(torch.randn(1, 7, 12)), torch.tensor([500])), plain(x))
    with pytest.raises(ValueError, match="use frames or conv3d"):
        LatentRewardModel(8, temporal="3d")
    with pytest.raises(ValueError, match="multiple of the 8"):
        LatentRewardModel(8, width=36)


def test_the_latent_counts_even_if_no_word_says_anything():
    model, x = text_model(), torch.randn(2, 8, 5, 16, 16)
    torch.nn.init.zeros_(model.attention.value.weight)
    first, second = model(x, said(torch.randn(2, 7, 12))).tolist()
    assert abs(first - second) > 1e-4


def test_the_reward_is_float32_from_a_bfloat16_model():
    assert LatentRewardModel(8, width=64).bfloat16()(torch.randn(1, 8, 2, 16, 16)).dtype == torch.float32


def test_frames_averages_the_image_models_reward():
    model, x, text = text_model(), torch.randn(2, 8, 5, 16, 16), torch.randn(2, 7, 12)
    one_by_one = torch.stack([model(x[:, :, [i]], said(text)) for i in range(5)])
    torch.testing.assert_close(model(x, said(text)), one_by_one.mean(0))
    torch.testing.assert_close(model(x.flip(2), said(text)), model(x, said(text)))  # so it is blind to order


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

    pixel = PixelReward(Ends(), teacher.codec)
    surrogate = LatentReward(LatentRewardModel(8, 64, width=16, groups=4), pixel, teacher.text)
    latents = torch.randn(2, *LATENT, generator=torch.Generator().manual_seed(1))
    reward = surrogate.observe(0, latents, [PROMPT, PROMPT]).reward
    whole = teacher.codec.decode(latents)
    assert torch.equal(seen[0], whole[:, [0, 8]])
    torch.testing.assert_close(reward, whole[:, [0, 8]].mean((1, 2, 3, 4)))
    assert teacher.codec.spread(latents, 1) == [0] and teacher.codec.spread(latents, 99) == list(range(9))


class Counting:
    """A pixel reward that keeps what it was asked; brighter is better, and longer captions too."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def score(self, videos: Tensor, prompts: Sequence[str]) -> Tensor:
        self.asked += prompts
        return videos.mean((1, 2, 3, 4)) + torch.tensor([float(len(p)) for p in prompts])


def test_a_clip_is_scored_once_for_each_caption(teacher: Teacher) -> None:
    """By its key and its caption; what has no key, a generated clip, is scored on every visit."""
    reward = Counting()
    surrogate = LatentReward(LatentRewardModel(8, width=16, groups=4), PixelReward(reward, teacher.codec), teacher.text)
    latents = torch.randn(4, *LATENT, generator=torch.Generator().manual_seed(1))
    latents[2] = latents[0]
    prompts, keys = ["a", "bb", "ccc", "dddd"], [(7, 0), None, (7, 0), (7, 1)]
    first = surrogate.observe(0, latents, prompts, keys).reward
    assert reward.asked == ["a", "ccc", "dddd", "bb"]  # clips of the data one by one, then what was generated
    again = surrogate.observe(1, latents, prompts, keys).reward
    assert reward.asked[4:] == ["bb"]
    torch.testing.assert_close(again, first)
    assert float(first[2] - first[0]) == pytest.approx(2)  # one clip under two captions


# The fit to pairs


def test_pairs_have_no_gradient_where_differences_agree_and_log_2_between_equals() -> None:
    predicted = torch.tensor([1.5, 0.25, -1.0], requires_grad=True)
    other = torch.tensor([0.5, 0.75, 2.0], requires_grad=True)
    reward = torch.tensor([3.0, -1.5, -2.0], requires_grad=True)
    base = torch.tensor([2.0, -1.0, 1.0])  # differences of 1, -1/2 and -3, as the predictions'
    pairwise(predicted, other, reward, base).sum().backward()
    assert predicted.grad.tolist() == other.grad.tolist() == [0, 0, 0]
    assert reward.grad is None
    equal = torch.full((2,), 0.7)
    assert pairwise(equal, equal, -equal, -equal).tolist() == pytest.approx([math.log(2)] * 2)
    # Cross-entropy by hand: p = sigmoid(1), q = sigmoid(-2).
    p, q = 1 / (1 + math.exp(-1)), 1 / (1 + math.exp(2))
    by_hand = -q * math.log(p) - (1 - q) * math.log(1 - p)
    found = pairwise(torch.tensor([1.0]), torch.tensor([0.0]), torch.tensor([-2.0]), torch.tensor([0.0]))
    assert float(found) == pytest.approx(by_hand, rel=1e-6)


def test_the_best_prediction_of_pairs_keeps_the_rewards_unit() -> None:
    """Not only the order: the minimum over a scale s of predictions s r is at s = 1."""
    r = torch.randn(64, generator=torch.Generator().manual_seed(0))
    s = torch.tensor(0.3, requires_grad=True)
    optimizer = torch.optim.LBFGS([s], lr=0.5, max_iter=100)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = pairwise(s * r[:32], s * r[32:], r[:32], r[32:]).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert s.item() == pytest.approx(1, abs=1e-3)


class First(torch.nn.Module):
    """A model whose reward is a latent's first number, scaled and shifted."""

    card: dict = {}
    twice_differentiable = True

    def __init__(self, scale: float = 1.0, level: float = 0.0) -> None:
        super().__init__()
        self.out = torch.nn.Linear(1, 1)
        with torch.no_grad():
            self.out.weight.fill_(scale)
            self.out.bias.fill_(level)

    def forward(self, x: Tensor, condition: Condition | None = None, t: Tensor | None = None) -> Tensor:
        return self.out(x.flatten(1)[:, :1])[:, 0]


def no_text(prompts: Sequence[str]) -> Condition:
    return Condition(torch.zeros(len(prompts), 1, 1), torch.ones(len(prompts), 1))


def remembered(values: Sequence[Sequence[float]], usable: Sequence[Sequence[bool]] | None = None, model=None, **how):
    """A surrogate that has seen these latents' first numbers, a turn each, with their squares for rewards."""
    surrogate = LatentReward(model or First(), None, no_text, memory=len(values), **{"fit": "pairwise", **how})
    for turn, row in enumerate(values):
        x = torch.tensor(row)
        seen = torch.tensor(usable[turn]) if usable else torch.ones(len(row), dtype=torch.bool)
        observation = Observation(
            turn, [f"{turn} {i}" for i in range(len(row))], x.reshape(-1, 1, 1, 1, 1), x.square(), seen
        )
        surrogate.remember(observation)
    return surrogate


def test_pairs_are_of_one_sample_never_with_itself_and_each_other_one_comes() -> None:
    """Two samples in three groups over four turns: 11 others each, of the same sample's alone."""
    values = [[turn * 6.0 + place for place in range(6)] for turn in range(4)]
    surrogate = remembered(values)
    partners: dict[int, set[tuple[int, int]]] = {0: set(), 3: set()}
    chosen = [(2, place) for place in range(6)]
    for turn in range(300):
        found = surrogate.memory.partners(Draws(0, turn, range(2)), "fit", chosen, 0, 2)
        assert all(place % 2 == i % 2 for i, (_, place) in enumerate(found))
        assert not set(zip(chosen, found, strict=True)) & {(one, one) for one in chosen}
        for i in partners:
            partners[i].add(found[i])
    assert partners[0] == {(age, place) for age in range(4) for place in (0, 2, 4)} - {(2, 0)}
    assert partners[3] == {(age, place) for age in range(4) for place in (1, 3, 5)} - {(2, 3)}


@pytest.mark.parametrize("kind", ["mse", "pairwise"])
def test_two_processes_fit_what_one_does(kind: str) -> None:
    """Each holds every second sample of every group, and the losses are those of the whole batch, place by place."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(5, 12, generator=generator).tolist()  # 4 samples in 3 groups
    whole = remembered(values, fit=kind)
    shares = [remembered([row[rank::2] for row in values], fit=kind) for rank in range(2)]
    for share in shares:
        share.statistics = whole.statistics  # those of all, as gathered
    for turn in range(5):
        together = whole.loss(Draws(0, turn, range(8, 12)), "fit")
        apart = [share.loss(Draws(0, turn, range(8 + rank, 12, 2)), "fit") for rank, share in enumerate(shares)]
        torch.testing.assert_close(torch.stack(apart, 1).flatten(), together)
    assert together.std() > 0


@pytest.mark.parametrize("noised", [None, (0.1, 0.6)])
@pytest.mark.parametrize("kind", ["mse", "pairwise"])
def test_micro_batches_fit_what_the_whole_batch_does(kind: str, noised: tuple[float, float] | None) -> None:
    """One or two of three samples at a time, in three groups each, give the losses of the whole batch."""
    generator = torch.Generator().manual_seed(0)
    surrogate = remembered(torch.randn(3, 9, generator=generator).tolist())
    surrogate.fit, surrogate.noised, surrogate.schedule = kind, noised, RectifiedFlow()
    draws = Draws(0, 5, range(40, 43))
    whole = surrogate.loss(draws, "fit").view(3, 3)
    for size in (1, 2):
        starts = range(0, 3, size)
        parts = [surrogate.loss(p, "fit", f, 3).view(3, -1) for p, f in zip(draws.split(size), starts, strict=True)]
        torch.testing.assert_close(torch.cat(parts, 1), whole)


def test_a_pair_with_an_unusable_reward_is_not_fitted() -> None:
    values = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).tolist()
    usable = [[True] * 4, [False, False, False, True], [True] * 4]
    surrogate = remembered(values, usable)
    surrogate.past[1].reward[:3] = float("nan")
    spared = 0
    for turn in range(10):
        draws = Draws(0, turn, range(4))
        chosen = [(age, i) for i, age in enumerate(draws.integers("fit", 3).tolist())]
        found = surrogate.loss(draws, "fit")
        for loss, (age, place), (other, _) in zip(
            found, chosen, surrogate.memory.partners(draws, "fit", chosen, 0, 4), strict=True
        ):
            assert (loss.item() == 0) == (place < 3 and 1 in (age, other))
            spared += place < 3 and other == 1 != age
        found.sum().backward()
    assert spared > 0
    assert bool(surrogate.model.out.weight.grad.isfinite())
    alone = remembered([[1.0, 2.0]])  # one group of one turn has no pairs
    alone.loss(Draws(0, 1, range(2)), "fit").sum().backward()
    assert float(alone.model.out.weight.grad) == 0


def test_pairs_leave_the_level_alone_and_it_is_set_to_the_rewards_mean() -> None:
    values = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)).tolist()
    usable = [[True, True, True, turn % 2 == 0] for turn in range(6)]
    surrogate = remembered(values, usable, First(scale=0.5, level=30.0))
    surrogate.loss(Draws(0, 1, range(4)), "fit").sum().backward()
    assert abs(float(surrogate.model.out.bias.grad)) < 1e-6
    surrogate.level()
    seen = torch.tensor(usable)
    x = torch.tensor(values)
    predicted = surrogate.predict(x.reshape(-1, 1, 1, 1, 1), no_text([""] * 24)).detach().view(6, 4)
    assert float((predicted - x.square())[seen].mean()) == pytest.approx(0, abs=1e-5)
    assert surrogate.model.out.weight.item() == 0.5
    newest = remembered(values, None, First(level=30.0))
    newest.level(turns=2)
    found = newest.predict(x[4:].reshape(-1, 1, 1, 1, 1), no_text([""] * 8))
    assert found.mean().item() == pytest.approx(float(x[4:].square().mean()), abs=1e-5)
    untouched = remembered(values, None, First(level=30.0), fit="mse")
    untouched.level()
    assert untouched.model.out.bias.item() == 30


def test_a_model_fitted_to_pairs_predicts_in_the_rewards_unit() -> None:
    """A bent reward is learned by either fit, to about the same error in its own unit."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(32, 8, generator=generator)

    class Bent(First):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.inner = torch.nn.Linear(1, 32)
            self.out = torch.nn.Linear(32, 1)

        def forward(self, x: Tensor, condition: Condition | None = None, t: Tensor | None = None) -> Tensor:
            return self.out(self.inner(x.flatten(1)[:, :1]).tanh())[:, 0]

    for kind in ("mse", "pairwise"):
        surrogate = remembered(x.tolist(), None, Bent(), fit=kind)
        optimizer = torch.optim.Adam(surrogate.model.parameters(), lr=0.02)
        for step in range(300):
            surrogate.loss(Draws(0, step, range(8)), "fit").mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        surrogate.level()
        with torch.no_grad():
            found = surrogate.predict(x.reshape(-1, 1, 1, 1, 1), no_text([""] * 256))
        error = float(((found - x.flatten().square()) ** 2).mean())
        assert error < 0.05 * float(x.square().var())


# Its folder


@pytest.mark.parametrize("text", [True, False])
def test_a_saved_model_says_the_same_in_its_rewards_unit(teacher: Teacher, tmp_path: Path, text: bool) -> None:
    model = make_reward_model(teacher, text=text, width=16, groups=4, temporal="conv3d", prompt=PROMPT)
    surrogate = LatentReward(model, PixelReward(Counting(), teacher.codec), teacher.text, fit="pairwise")
    surrogate.statistics.update(torch.tensor([1.0, 2.0, 4.0]))
    surrogate.save(tmp_path, teacher, {"r2": 0.5})
    before = torch.random.get_rng_state()
    again = LatentReward.from_folder(tmp_path, teacher, memory=3, expected={"width": 16, "backbone": "cnn"})
    assert torch.equal(before, torch.random.get_rng_state())
    x, condition = torch.randn(2, *LATENT), teacher.text([PROMPT, "a red circle"])
    assert torch.equal(again.predict(x, condition), surrogate.predict(x, condition))
    assert again.statistics == surrogate.statistics and again.memory.size == 3
    card = json.loads((tmp_path / "lrm.json").read_text())
    assert card["reward"] == "Counting" and card["figures"] == {"r2": 0.5} and card["teacher"] == "tiny"
    again.save(tmp_path, teacher)
    assert json.loads((tmp_path / "lrm.json").read_text())["reward"] == "Counting"  # it is still the one it followed


def test_a_model_that_averages_sees_the_frames_of_its_reward_also_without_it(teacher: Teacher, tmp_path: Path) -> None:
    class Some(Counting):
        frames: int | None = 2

    class One(Counting):
        frames: int | None = 1

    model = make_reward_model(teacher, width=16, groups=4, temporal="frames", prompt=PROMPT)
    surrogate = LatentReward(model, PixelReward(Some(), teacher.codec), teacher.text)
    surrogate.statistics.update(torch.tensor([1.0, 2.0]))
    surrogate.save(tmp_path, teacher)
    x, condition = torch.randn(2, *LATENT), teacher.text([PROMPT, "a red circle"])
    ends = model(x[:, :, [0, 2]], condition, None)
    assert not torch.allclose(ends, model(x, condition, None))
    for pixel in (None, PixelReward(Some(), teacher.codec)):
        again = LatentReward.from_folder(tmp_path, teacher, pixel)
        torch.testing.assert_close(again.predict(x, condition), surrogate.statistics.destandardise(ends))
    with pytest.raises(ValueError, match=r"looked at, 2 frames of a clip, and One looks at 1; set reward.frames"):
        LatentReward.from_folder(tmp_path, teacher, PixelReward(One(), teacher.codec))


@pytest.mark.parametrize(
    "damage",
    [
        {"model": {}},
        {"model": 3},
        {"statistics": {}},
        {"statistics": {"count": "x", "mean": 0, "variance": 1}},
        {"noise": 5},
    ],
)
def test_a_damaged_card_is_told_as_that(teacher: Teacher, tmp_path: Path, damage: dict) -> None:
    model = make_reward_model(teacher, width=16, groups=4, prompt=PROMPT)
    LatentReward(model, None, teacher.text).save(tmp_path, teacher)
    card = json.loads((tmp_path / "lrm.json").read_text())
    (tmp_path / "lrm.json").write_text(json.dumps({**card, **damage}))
    with pytest.raises(ValueError, match=r"lrm.json can't be read .*; fit the model again"):
        LatentReward.from_folder(tmp_path, teacher)


def test_a_model_that_does_not_fit_is_refused(teacher: Teacher, tmp_path: Path) -> None:
    def refused(match: str, folder: Path = tmp_path, **how) -> None:
        with pytest.raises(ValueError, match=match):
            LatentReward.from_folder(folder, teacher, **how)

    refused("no latent reward model in .*no lrm.json and no model.safetensors")
    model = make_reward_model(teacher, width=16, groups=4, prompt=PROMPT)
    LatentReward(model, None, teacher.text).save(tmp_path, teacher)
    refused("width is 16 there and 32 here", expected={"width": 32})
    card = json.loads((tmp_path / "lrm.json").read_text())

    def changed(**values) -> None:
        (tmp_path / "lrm.json").write_text(json.dumps({**card, **values}))

    changed(fingerprint={**card["fingerprint"], "vae": "another"})
    refused("fitted with another vae .*of the teacher tiny")
    changed(model={**card["model"], "channels": 16})
    refused("latents of 16 channels, and those of tiny have 8")
    (tmp_path / "lrm.json").write_text(json.dumps({k: v for k, v in card.items() if k != "statistics"}))
    refused("it lacks statistics")
    changed()
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[:-100])
    refused("model.safetensors can't be read")
    with pytest.raises(ValueError, match="use mse or pairwise"):
        LatentReward(model, None, teacher.text, fit="hinge")


# Noised latents


class Plane(torch.nn.Module):
    """A model whose reward is a plane over latents of two numbers, and looks at any time."""

    card: dict = {}
    twice_differentiable = True

    def __init__(self, first: float, second: float) -> None:
        super().__init__()
        self.out = torch.nn.Linear(2, 1)
        with torch.no_grad():
            self.out.weight.copy_(torch.tensor([[first, second]]))
            self.out.bias.zero_()

    def forward(self, x: Tensor, condition: Condition | None = None, t: Tensor | None = None) -> Tensor:
        return self.out(x.flatten(1))[:, 0]


def test_noise_takes_away_the_gradient_that_no_clip_speaks_for() -> None:
    """Clips on a line, whose place z ~ N(0, 1) is the reward: of clean latents the slope across it stays what it was at
    first, of x_t = a x + b eps it goes to 0, and that along it to the regression's a / (a^2 + b^2) over all t."""
    places = torch.randn(64, generator=torch.Generator().manual_seed(0))
    places = (places - places.mean()) / places.std(correction=0)
    on_line = torch.stack([places, torch.zeros(64)], 1).reshape(64, 1, 2, 1, 1)
    schedule = RectifiedFlow()
    slopes = {}
    for noised in (None, (0.2, 0.8)):
        surrogate = LatentReward(Plane(0.0, 0.7), None, no_text, noised=noised, schedule=schedule)
        surrogate.remember(Observation(0, ["any"] * 64, on_line, places, torch.ones(64, dtype=torch.bool)))
        optimizer = torch.optim.SGD(surrogate.model.parameters(), lr=0.1)
        for turn in range(600):
            surrogate.loss(Draws(0, turn, range(64)), "fit").mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        slopes[noised] = surrogate.model.out.weight[0].tolist()
    assert slopes[None] == pytest.approx([1.0, 0.7], abs=1e-3)
    t = torch.linspace(0.2, 0.8, 10_001)
    a, b = 1 - t, t
    assert slopes[(0.2, 0.8)] == pytest.approx([float(a.mean() / (a**2 + b**2).mean()), 0.0], abs=0.05)


def test_a_model_that_averages_is_noised_before_frames_are_picked(teacher: Teacher) -> None:
    """The noise is that of the whole clip, so which frames a reward looks at moves no draw; x carries a gradient."""
    schedule, draws, condition = teacher.denoiser.schedule, Draws(0, 3, range(2)), teacher.text(["any"] * 2)
    model = LatentRewardModel(8, width=16, groups=4)
    pixel = PixelReward(AtEnds(), teacher.codec)
    surrogate = LatentReward(model, pixel, teacher.text, noised=(0.2, 0.8), schedule=schedule)
    x = torch.randn(2, *LATENT, generator=torch.Generator().manual_seed(0)).requires_grad_()
    t = schedule.uniform(0.2 + 0.6 * draws.uniform("here time 0"))
    x_t = diffuse(x, draws.normal("here noise 0", x.shape[1:]), t, schedule)
    predicted = surrogate.predict(x, condition, draws, "here")
    torch.testing.assert_close(predicted, model(x_t[:, :, [0, 2]], condition))
    torch.testing.assert_close(surrogate.predict(x, condition), model(x[:, :, [0, 2]], condition))
    predicted.sum().backward()
    assert (x.grad.abs().amax((0, 1, 3, 4)) > 0).tolist() == [True, False, True]


# What the gradient is worth


class Planted:
    """A pixel reward that reads latents: their first number, and no number where it is above 4."""

    name = "Planted"
    frames = codec = None

    def score(self, latents: Tensor, prompts: Sequence[str]) -> Tensor:
        first = latents.flatten(1)[:, 0]
        return torch.where(first > 4, float("nan"), first)


def test_a_step_up_the_gradient_is_held_to_the_pixel_reward() -> None:
    """On a plane of slope (0.6, 0.8) a tenth of clips of norms 1 and 2 predicts 0.1 and 0.2; the reward is the first
    number, which rises by 0.6 of that: 0.06 and 0.12, whose mean is 0.03 off. A clip without a reward is left out."""
    surrogate = LatentReward(Plane(0.6, 0.8), Planted(), no_text)
    x = torch.tensor([[1.0, 0.0], [0.0, 2.0], [9.0, 0.0]]).reshape(3, 1, 2, 1, 1)
    short, middle, long = climb(surrogate, x, ["any"] * 3, Draws(0, 0, range(3)))
    assert long[:5] == pytest.approx((0.1, 0.15, 0.09, 0.03, 2), rel=1e-5) and math.isnan(long.cosine)
    assert short[:5] == pytest.approx((0.01, 0.015, 0.009, 0.003, 2), rel=1e-4) and middle.share == 0.03
    assert climb(surrogate, x[:2], ["any"] * 2, Draws(0, 0, range(2)), shares=[0.2])[0].true == pytest.approx(0.18)
    known = torch.tensor([0.5, float("nan")])  # 1.06 after the step, and one that had no reward before it
    one = climb(surrogate, x[:2], ["any"] * 2, Draws(0, 0, range(2)), known)[2]
    assert one.true == pytest.approx(0.56) and one.clips == 1 and math.isnan(one.true_se)
    none = climb(surrogate, x[2:], ["any"], Draws(0, 0, range(1)))[0]
    assert none.clips == 0 and math.isnan(none.true)
    flat = LatentReward(Plane(0.0, 0.0), Planted(), no_text)
    still = climb(flat, -30 * x[:2], ["any"] * 2, Draws(0, 0, range(2)))[2]
    assert still[1:5] == (0, 0, 0, 2), "without a gradient all stays"
    assert x.grad is None


def test_the_cosine_with_the_rewards_own_gradient_is_told() -> None:
    """The reward's gradient is along the first number, the plane's at (0.6, 0.8): 0.6."""

    class Differentiable(Planted):
        differentiable = True

        def with_gradient(self, latents: Tensor, prompts: Sequence[str], frames: int | None) -> Tensor:
            return latents.flatten(1)[:, 0]

    surrogate = LatentReward(Plane(0.6, 0.8), Differentiable(), no_text)
    x = torch.tensor([[1.0, 0.0], [0.0, 2.0]]).reshape(2, 1, 2, 1, 1)
    assert climb(surrogate, x, ["any"] * 2, Draws(0, 0, range(2)))[0].cosine == pytest.approx(0.6)


class Bowl(Plane):
    """A model whose reward is a bowl turned over, highest at (3, 1)."""

    def forward(self, x: Tensor, condition: Condition | None = None, t: Tensor | None = None) -> Tensor:
        return -(x.flatten(1) - torch.tensor([3.0, 1.0])).square().sum(1)


def test_a_step_goes_up_the_gradient_at_the_noised_clip() -> None:
    """The direction of a bowl's gradient depends on where it is asked for: at a x + b eps, times a, and not at x."""
    schedule, draws = RectifiedFlow(), Draws(0, 5, range(1))
    surrogate = LatentReward(Bowl(0.0, 0.0), Planted(), no_text, noised=(0.2, 0.8), schedule=schedule)
    x = torch.tensor([1.0, -1.0]).reshape(1, 1, 2, 1, 1)
    t = schedule.uniform(0.2 + 0.6 * draws.uniform("climb time 0"))
    x_t = diffuse(x, draws.normal("climb noise 0", x.shape[1:]), t, schedule).flatten()
    way = torch.tensor([3.0, 1.0]) - x_t
    rise = 0.1 * 2**0.5 * float(way[0] / way.norm())
    assert climb(surrogate, x, ["any"], draws)[2].true == pytest.approx(rise)
    clean = LatentReward(Bowl(0.0, 0.0), Planted(), no_text)
    assert climb(clean, x, ["any"], draws)[2].true == pytest.approx(0.1) != pytest.approx(rise)


def test_a_step_goes_up_the_gradient_that_comes_through_something() -> None:
    """Through a map that drops the second number and halves the first, the plane's gradient is along the first."""
    surrogate = LatentReward(Plane(0.6, 0.8), Planted(), no_text)
    x = torch.tensor([0.0, 1.0]).reshape(1, 1, 2, 1, 1)

    def through(x: Tensor, condition: Condition | None, draws: Draws) -> Tensor:
        return x * torch.tensor([0.5, 0.0]).reshape(1, 1, 2, 1, 1)

    found = climb(surrogate, x, ["any"], Draws(0, 0, range(1)), through=through)[2]
    assert found.true == pytest.approx(0.1) and found.predicted == pytest.approx(0.06), "0.06 is the plane's own rise"


# Frames that the pixel reward looks at


class AtEnds:
    """A reward of a clip's first and last frame."""

    frames = 2

    def score(self, videos: Tensor, prompts: Sequence[str]) -> Tensor:
        return videos.mean((1, 2, 3, 4))


def test_a_model_that_averages_sees_the_latent_frames_that_hold_the_rewards_frames(teacher: Teacher) -> None:
    """The tiny clip's frames 0 and 8 lie in latent frames 0 and 2 of three; a model of the whole clip sees all."""
    condition = teacher.text(["any"] * 2)
    for temporal, seen in (("frames", [True, False, True]), ("conv3d", [True, True, True])):
        model = LatentRewardModel(8, width=16, groups=4, temporal=temporal)
        surrogate = LatentReward(model, PixelReward(AtEnds(), teacher.codec), teacher.text)
        x = torch.randn(2, *LATENT, generator=torch.Generator().manual_seed(0)).requires_grad_()
        surrogate.predict(x, condition).sum().backward()
        assert (x.grad.abs().amax((0, 1, 3, 4)) > 0).tolist() == seen


def test_latent_frames_that_hold_pixel_frames(teacher: Teacher) -> None:
    latents = torch.zeros(1, *LATENT)  # the first holds one pixel frame, the others four
    assert teacher.codec.held(latents, [0, 1, 4, 5]) == [0, 1, 2] and teacher.codec.held(latents, [8]) == [2]
