"""A small decoder: exact where the autoencoder is linear, and a reward's way back through it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from test_latent_reward import no_text
from torch import Tensor
from torch.nn.functional import pixel_shuffle

from dollar.diffusion.draws import Draws
from dollar.models.codec import Codec, Normalisation
from dollar.models.pixel_reward_model import PixelRewardModel
from dollar.models.small_decoder import SmallDecoder
from dollar.surrogate.climb import _cosine
from dollar.surrogate.fitted_decoder import FittedDecoder
from dollar.surrogate.latent_reward import LatentReward
from dollar.surrogate.pixel_reward import PixelReward

CHANNELS, SCALE, RATIO = 4, 2, 2


class Linear(torch.nn.Module):
    """A linear autoencoder's decoder: a pixel is a mixture of the latents there; frames repeat."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.mix = torch.nn.Conv3d(CHANNELS, 3 * SCALE**2, 1)
        self.mix.weight.data *= 0.1

    def decode(self, z: Tensor) -> Tensor:
        frames = pixel_shuffle(self.mix(z).transpose(1, 2), SCALE).transpose(1, 2)
        each = [1] + [RATIO] * (frames.shape[2] - 1)
        return frames.repeat_interleave(torch.tensor(each), 2)


@pytest.fixture
def codec() -> Codec:
    linear = Linear()
    return Codec(linear, Normalisation(lambda z: z, lambda x: x), RATIO, decode=linear.decode, chunk_frames=None)


def latents(count: int, seed: int) -> Tensor:
    return torch.randn(count, CHANNELS, 3, 6, 6, generator=torch.Generator().manual_seed(seed))


class Slope:
    """A differentiable reward: a fixed mixture of the frames' pixels."""

    differentiable = True
    weights = torch.randn(3, 12, 12, generator=torch.Generator().manual_seed(2))

    def score(self, videos: Tensor, prompts: list[str]) -> Tensor:
        return (videos * self.weights).sum((2, 3, 4)).mean(1)


def fitted(codec: Codec, updates: int = 600) -> FittedDecoder:
    torch.manual_seed(0)
    decoder = FittedDecoder(SmallDecoder(CHANNELS, SCALE), codec, frames=2, memory=8)
    for seed in range(8):
        x = latents(4, seed)
        held = decoder.wanted(x)
        decoder.remember(x, codec.decode(x, codec.ends(x, held)), held)
    optimizer = torch.optim.Adam(decoder.model.parameters(), lr=0.03)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, updates)
    for turn in range(updates):
        decoder.loss(Draws(0, turn, range(4)), "fit").mean().backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return decoder


def test_of_a_linear_autoencoder_it_is_the_decoder_and_gives_the_rewards_own_gradient(codec: Codec) -> None:
    decoder, x = fitted(codec), latents(3, 99)
    assert {i for shown in decoder.past for i in shown.held} == {0, 1, 2}
    ends = codec.decode(x, [0, 2, 4])
    assert (ends - 0.5).abs().max() > 0.1
    torch.testing.assert_close(decoder.decode(x), ends, atol=4e-3, rtol=0)  # it was fitted to whole grey levels
    torch.testing.assert_close(decoder.decode(x, 2), ends[:, [0, 2]], atol=4e-3, rtol=0)

    pixel, ways = PixelReward(Slope(), codec), {}
    for name, decode in (("full", None), ("small", decoder.decode)):
        leaf = x.clone().requires_grad_()
        reward = pixel.with_gradient(leaf, ["any"] * 3, 3, decode)
        (ways[name],) = torch.autograd.grad(reward.sum(), leaf)
    cosine = torch.nn.functional.cosine_similarity(ways["full"].flatten(1), ways["small"].flatten(1))
    assert cosine.min() > 0.999
    torch.testing.assert_close(ways["small"].norm(), ways["full"].norm(), rtol=0.02, atol=0)
    assert all(p.grad is None or not p.grad.any() for p in decoder.model.parameters()), "it is frozen for that pass"


def test_a_reward_model_on_its_pixels_leads_along_what_they_show_and_leaves_it_alone(codec: Codec) -> None:
    decoder = fitted(codec, 20)
    torch.manual_seed(3)
    model = PixelRewardModel(decoder.model, None, 8, "conv3d", 4)
    assert not {id(p) for p in model.parameters()} & {id(p) for p in decoder.model.parameters()}
    surrogate = LatentReward(model, PixelReward(Slope(), codec), no_text, smooth=1.0, decoder=decoder)
    before = decoder.times
    x = latents(4, 50)
    surrogate.remember(surrogate.observe(0, x, ["any"] * 4, [(1, 0), None, None, (2, 0)]))
    assert decoder.times == before + 1, "it is shown what is decoded for scoring"
    shown = decoder.past[-1]
    assert torch.equal(shown.latents, x[[1, 2]]), "generated clips, of which there are as many every time"
    expected = codec.decode(x[[1, 2]], codec.ends(x, shown.held))
    torch.testing.assert_close(shown.pixels.float() / 255, expected, atol=0.5 / 255 + 1e-6, rtol=0)
    surrogate.loss(Draws(0, 0, range(4)), "fit").mean().backward()
    assert all(p.grad is None for p in decoder.model.parameters())
    assert all(p.grad is not None for p in model.parameters())
    # Pixels of one latent frame alone, where the reward looks at few.
    averaging = PixelRewardModel(decoder.model, None, 8, "frames", 4)
    torch.testing.assert_close(
        averaging(x, None, None, [1]), averaging.network(2 * decoder.model(x, [1]).transpose(1, 2) - 1)
    )


def test_frames_of_a_reward_that_looks_at_few_cost_no_second_decoding(codec: Codec) -> None:
    class Few(Slope):
        frames = 2

    pixel, x, asked = PixelReward(Few(), codec), latents(2, 7), []
    whole = codec.decode(x)
    decode = codec.decode
    codec.decode = lambda z, frames=None, **how: asked.append(frames) or decode(z, frames, **how)  # type: ignore[method-assign]
    assert pixel.seen(x) == [0, 2]
    videos, further = pixel.decode_with(x, codec.ends(x, [2]))
    assert asked == [[0, 4]]
    torch.testing.assert_close(videos, whole[:, [0, 4]])
    torch.testing.assert_close(further, whole[:, [4]])
    # Nor are others looked at for the reward's own gradient, which is that of what is scored.
    leaf = x[:1].clone().requires_grad_()
    (own,) = torch.autograd.grad(pixel.reward.score(decode(leaf, [0, 4], gradient=True), ["any"]).sum(), leaf)
    assert _cosine(SimpleNamespace(pixel=pixel), x[:1], "any", own) == pytest.approx(1)
    assert asked[-1] == [0, 4]


def test_what_it_remembers_is_saved_and_turns_through_all_frames(codec: Codec) -> None:
    decoder = FittedDecoder(SmallDecoder(CHANNELS, SCALE), codec, frames=2, memory=2)
    chosen = []
    for seed in range(3):
        x = latents(2, seed)
        held = decoder.wanted(x)
        chosen.append(held)
        decoder.remember(x, codec.decode(x, codec.ends(x, held)), held)
    assert chosen == [[0, 1], [0, 2], [1, 2]] and len(decoder.past) == 2
    other = FittedDecoder(SmallDecoder(CHANNELS, SCALE), codec, frames=2, memory=2)
    other.model.load_state_dict(decoder.model.state_dict())
    other.load(decoder.state(), slice(0, None, 1))
    assert other.wanted(x) == decoder.wanted(x) == [0, 1]
    draws = Draws(0, 5, range(2))
    assert torch.equal(other.loss(draws, "fit"), decoder.loss(draws, "fit"))
    halves = [decoder.loss(part, "fit", i, 2) for i, part in enumerate(draws.split(1))]
    torch.testing.assert_close(torch.cat(halves), decoder.loss(draws, "fit"))
    decoder.past[0].latents[1, 0, 0, 0, 0] = float("nan")
    decoder.past[1].latents[1, 0, 0, 0, 0] = float("inf")
    found = decoder.loss(draws, "fit")
    assert found[1] == 0 and torch.equal(found[0], other.loss(draws, "fit")[0])
    found.mean().backward()
    assert all(bool(p.grad.isfinite().all()) for p in decoder.model.parameters() if p.grad is not None)
    with pytest.raises(ValueError, match="decoder.frames is 0"):
        FittedDecoder(SmallDecoder(CHANNELS, SCALE), codec, frames=0)
