"""A latent reward whose gradient is worth following: a smooth fit, and the reward through a denoiser."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from omegaconf import OmegaConf
from test_latent_reward import Plane, no_text
from test_terms import FLOW, PRESERVING, steps
from torch import Tensor

from dollar.cli.build.rewards import reads_text
from dollar.diffusion.draws import Draws
from dollar.diffusion.schedule import Schedule, expand_like
from dollar.losses.latent_reward import LatentRewardTerm, nudged_steepness, steepness
from dollar.losses.term import Context, Sample
from dollar.models.latent_reward_model import LatentRewardModel
from dollar.models.teacher import Teacher
from dollar.rewards.colourfulness import Colourfulness
from dollar.rewards.jpeg import JpegSize
from dollar.rewards.mixture import Mixture
from dollar.rewards.shapes import ShapesVerifier
from dollar.surrogate.latent_reward import LatentReward
from dollar.surrogate.memory import Observation

SPREAD = torch.tensor([1.5, 0.6, 0.2, 0.0])  # deviations of the clips along their four numbers
MEAN = torch.tensor([0.3, -1.0, 0.0, 2.0])
REWARD = torch.tensor([1.0, -2.0, 0.5, 3.0])  # of a linear reward, most along what no clip varies in


class Wavy(Plane):
    """A plane that has its gradient by differences alone."""

    twice_differentiable = False


class Unsaid:
    """A reward that doesn't say whether it reads captions."""

    def score(self, videos: Tensor, prompts: Sequence[str]) -> Tensor:
        return videos.mean((1, 2, 3, 4))


@pytest.mark.parametrize("kind", ["mse", "pairwise"])
@pytest.mark.parametrize(("model", "off"), [(Plane, 1e-3), (Wavy, 0.05)])
def test_a_smooth_fit_of_clips_on_a_line_is_flat_across_it(model: type, off: float, kind: str) -> None:
    """Slopes 1 / (1 + p) of the least-squares one along the line, and 0 across it, where it was 0.7 at first."""
    places = torch.randn(64, generator=torch.Generator().manual_seed(0))
    places = (places - places.mean()) / places.std(correction=0)
    on_line = torch.stack([places, torch.zeros(64)], 1).reshape(64, 1, 2, 1, 1)
    slopes = {}
    for p in (0.0, 0.5):
        surrogate = LatentReward(model(0.0, 0.7), None, no_text, smooth=p, fit=kind, memory=2)
        for turn in range(2):
            surrogate.remember(Observation(turn, ["any"] * 64, on_line, places, torch.ones(64, dtype=torch.bool)))
        optimizer = torch.optim.SGD(surrogate.model.parameters(), lr=0.2)
        for turn in range(300):
            surrogate.loss(Draws(0, turn, range(64)), "fit").mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        slopes[p] = surrogate.model.out.weight[0].tolist()
    if kind == "mse":
        assert slopes[0.0] == pytest.approx([1.0, 0.7], abs=1e-3)
        assert slopes[0.5] == pytest.approx([1 / 1.5, 0.0], abs=off)
    else:  # pairs of one sample have no difference, so only the penalty speaks
        assert slopes[0.0] == pytest.approx([0.0, 0.7], abs=1e-3) and slopes[0.5] == pytest.approx([0, 0], abs=off)


def test_both_ways_to_the_squared_gradient_are_its_own() -> None:
    torch.manual_seed(0)
    model = LatentRewardModel(4, text_dim=6, width=16, temporal="frames")
    said = no_text(["a"] * 3)._replace(embeddings=torch.randn(3, 5, 6), mask=torch.ones(3, 5))
    x = torch.randn(3, 4, 2, 8, 8).requires_grad_()
    predict = lambda x: model(x, said)  # noqa: E731
    (gradient,) = torch.autograd.grad(predict(x).sum(), x)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        found = steepness(predict(x), x)
        torch.testing.assert_close(found, gradient.square().flatten(1).sum(1))
        found.sum().backward()
    weight = model.backbone[0].weight.grad
    assert weight is not None and weight.abs().max() > 0
    with torch.no_grad():
        here = predict(x)
        nudged = torch.stack([nudged_steepness(predict, here, x, torch.randn_like(x)) for _ in range(4000)]).mean(0)
    torch.testing.assert_close(nudged, found.detach(), rtol=0.1, atol=0)


def test_a_difference_is_longer_than_the_rounding_of_a_lower_precision() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(64, 40), torch.randn(40)
    predict = lambda x: (x.bfloat16() * weight).sum(1)  # noqa: E731
    u = torch.randn(2000, 64, 40)
    found = torch.stack([nudged_steepness(predict, predict(x), x, each, torch.bfloat16) for each in u]).mean()
    torch.testing.assert_close(found, weight.square().sum(), rtol=0.02, atol=0)


def test_a_difference_takes_one_prediction_more() -> None:
    surrogate, asked = LatentReward(Wavy(0.0, 0.7), None, no_text, smooth=1.0), []
    surrogate.model.register_forward_hook(lambda *_: asked.append(1))
    x = torch.randn(4, 1, 2, 1, 1)
    surrogate.remember(Observation(0, ["any"] * 4, x, torch.arange(4.0), torch.ones(4, dtype=torch.bool)))
    surrogate.loss(Draws(0, 0, range(4)), "fit")
    assert len(asked) == 2


def test_a_smooth_fit_reaches_every_weight_of_a_model_that_reads_captions(teacher: Teacher) -> None:
    """The gradient's own gradient passes through the attention, which not all of torch's kernels allow."""
    torch.manual_seed(0)
    model = LatentRewardModel(teacher.latent_shape[0], teacher.text(["a"]).embeddings.shape[-1], 16, "conv3d", 4)
    surrogate = LatentReward(model, None, teacher.text, smooth=30.0)
    x = torch.randn(4, *teacher.latent_shape)
    surrogate.remember(Observation(0, ["a", "b", "c", "d"], x, torch.arange(4.0), torch.ones(4, dtype=torch.bool)))
    surrogate.loss(Draws(0, 0, range(4)), "fit").mean().backward()
    assert model.attention is not None and model.attention.key.weight.grad.abs().max() > 0
    for wrong in (-1, float("nan")):
        with pytest.raises(ValueError, match=f"lrm.smooth is {wrong}"):
            LatentReward(model, None, teacher.text, smooth=wrong)


def denoiser_of(spread: Tensor, schedule: Schedule):
    """E[x_0 | x_t] of N(MEAN, spread^2), number by number."""

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        a, b = (expand_like(c, x_t) for c in schedule.coefficients(t))
        return MEAN + a * spread**2 / (a**2 * spread**2 + b**2) * (x_t - a * MEAN)

    return denoise


@pytest.mark.parametrize("schedule", [FLOW, PRESERVING], ids=["flow", "vp"])
@pytest.mark.parametrize("through", ["teacher", "fake"])
@pytest.mark.parametrize("update", ["joint", "separate"])
def test_through_a_denoiser_the_gradient_is_that_of_what_clips_vary_along(schedule, through: str, update: str) -> None:
    """a^2 S (a^2 S + b^2)^-1 grad R at x_hat: nothing where no clip varies, and all of it as t goes to 0."""
    count, asked = 5, []
    spreads = {"teacher": SPREAD, "fake": SPREAD.flip(0)}

    def teacher(scale: float):
        asked.append(scale)
        return denoiser_of(spreads["teacher"], schedule)

    context = Context(
        prompts=["any"] * count,
        sampler=steps(1.0, 0.5) if schedule is FLOW else steps(999, 499, schedule=PRESERVING),
        student=lambda x, t: x,
        teacher=teacher,
        noise=lambda k: torch.zeros(count, 4),
        draws=Draws(0, 3, range(count)),
        schedule=schedule,
        fake=denoiser_of(spreads["fake"], schedule),
        predict=lambda x, purpose: (x * REWARD).flatten(1).sum(1),
    )

    def gradient(**how) -> Tensor:
        x_hat = torch.randn(count, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
        loss = LatentRewardTerm(update=update, **how).loss(context, Sample(x_hat.detach(), 1, x_hat))
        return torch.autograd.grad(loss.sum(), x_hat)[0]

    torch.testing.assert_close(gradient(), -REWARD.expand(count, 4))
    found = gradient(through=through, noise=(0.1, 0.5))
    t = schedule.uniform(0.1 + 0.4 * context.draws.uniform("through time"))
    a, b = (c[:, None].float() for c in schedule.coefficients(t))
    spread = spreads[through]
    torch.testing.assert_close(found, -(a**2 * spread**2 / (a**2 * spread**2 + b**2)) * REWARD)
    assert (found[:, spread == 0] == 0).all() and found.std(0).max() > 0
    if schedule is FLOW:
        torch.testing.assert_close(
            gradient(through=through, noise=(0.0, 1e-5)), -REWARD * (spread > 0).float().expand(count, 4)
        )
    assert set(asked) <= {1.0}, "the teacher is asked without guidance"
    term = LatentRewardTerm(through=through, update=update)
    assert term.needs.fake == (through == "fake") and getattr(term.cost(4), f"{through}_gradient") == 1
    with pytest.raises(ValueError, match="ft.noise is"):
        LatentRewardTerm(through=through, noise=(0.5, 0.1))


def test_captions_are_read_where_the_reward_reads_them() -> None:
    lrm = OmegaConf.create({"text": "auto", "backbone": "cnn"})
    rewards = (Colourfulness(), Colourfulness, JpegSize(), ShapesVerifier, Unsaid())
    assert [reads_text(lrm, reward) for reward in rewards] == [False, False, False, True, True]
    for second, reads in ((JpegSize(), False), (Unsaid(), True)):
        mixed = Mixture({"a": Colourfulness(), "b": second}, {"a": 1.0, "b": 1.0})
        assert reads_text(lrm, mixed) == reads
    assert reads_text(OmegaConf.create({"text": "auto", "backbone": "teacher"}), Colourfulness())
    assert reads_text(OmegaConf.create({"text": True, "backbone": "cnn"}), Colourfulness())
