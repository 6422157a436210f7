"""The adversarial term against closed forms, where training with it rests, and its network on every family's blocks."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import PROMPT
from families import FAMILIES, build
from test_terms import FLOW, PRESERVING, context_of, steps
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from dollar.diffusion.draws import Draws
from dollar.losses.adversarial import Adversarial, critic_loss, generator_loss, slope
from dollar.losses.objective import Objective
from dollar.losses.term import Context, LearningTerm, Needs, Sample, SampleTerm
from dollar.losses.vsd import VSD
from dollar.models.discriminator import Discriminator
from dollar.models.teacher import Teacher
from dollar.parallel.shard import trainable_copy
from dollar.parallel.world import World

M, S, N, R = 0.4, 0.8, -0.3, 0.5  # the laws of real latents and of the student's


def log_ratio(x: Tensor, a: float, b: float) -> Tensor:
    """log p_real / p_fake of x_t [B, 1], the best logistic discriminator."""
    real = torch.distributions.Normal(a * M, math.hypot(a * S, b))
    fake = torch.distributions.Normal(a * N, math.hypot(a * R, b))
    return (real.log_prob(x) - fake.log_prob(x))[:, 0]


def micro(schedule: Any, count: int) -> Context:
    sampler = steps(1.0) if schedule is FLOW else steps(999, schedule=PRESERVING)
    return replace(
        context_of(sampler, None, count),
        draws=Draws(0, 0, range(count)),
        x_0=M + S * torch.randn(count, 1, generator=torch.Generator().manual_seed(1)),
    )


def made(count: int) -> Sample:
    z = torch.randn(count, 1, generator=torch.Generator().manual_seed(2))
    return Sample(torch.zeros(count, 1), 0, (N + R * z).requires_grad_())


@pytest.mark.parametrize("schedule", [FLOW, PRESERVING], ids=["flow", "vp"])
def test_with_the_best_discriminator_the_gradient_is_the_score_difference(schedule: Any) -> None:
    """sigmoid(-D) a (s_fake - s_real) at x_hat."""
    context, sample = micro(schedule, 64), made(64)
    term, seen = Adversarial(form="logistic", range=(0.4, 0.4001)), []

    def critic(x_t: Tensor, t: Tensor, condition: Any) -> Tensor:
        seen.append(x_t.detach())
        return log_ratio(x_t, *(float(c[0]) for c in schedule.coefficients(t)))

    term.critic = critic
    term.loss(context, sample).sum().backward()
    a, b = (float(c) for c in schedule.coefficients(schedule.uniform(torch.tensor([0.4]))))
    (x_t,) = seen
    noise = context.draws.normal("adversarial noise of samples", (1,))
    torch.testing.assert_close(x_t, a * sample.x_hat.detach() + b * noise, atol=1e-3, rtol=0)
    score_real, score_fake = (-(x_t - a * m) / (a**2 * s**2 + b**2) for m, s in ((M, S), (N, R)))
    weight = (-log_ratio(x_t, a, b)).sigmoid()[:, None]
    torch.testing.assert_close(sample.x_hat.grad, weight * a * (score_fake - score_real), atol=2e-4, rtol=1e-3)


def test_the_gradients_of_a_linear_discriminator() -> None:
    """D = w x: both losses, at the sample and at w."""
    real, fake = torch.randn(2, 32, generator=torch.Generator().manual_seed(0))
    w = torch.tensor(1.3, requires_grad=True)
    x = fake.clone().requires_grad_()
    for form, at_x, at_w in (
        ("logistic", -w * (-w * x).sigmoid(), -real * (-w * real).sigmoid() + x * (w * x).sigmoid()),
        ("relativistic", -w * (w * (real - x)).sigmoid(), (x - real) * (w * (x - real)).sigmoid()),
    ):
        (found,) = torch.autograd.grad(generator_loss(w * x, w * real, form).sum(), x)
        torch.testing.assert_close(found, at_x.detach())
        (found,) = torch.autograd.grad(critic_loss(w * x, w * real, form).sum(), w)
        torch.testing.assert_close(found, at_w.detach().sum())
    torch.testing.assert_close(generator_loss(fake, None, "logistic"), -logsigmoid(fake))


def test_the_slope_of_a_linear_discriminator_is_exact_in_expectation() -> None:
    """Its mean over normal u is |w|^2, and its standard deviation sqrt(2) |w|^2."""
    count, w = 200_000, torch.tensor([0.6, -1.1, 0.3], dtype=torch.float64)
    x, u = torch.randn(2, count, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = slope(x @ w, (x + 0.05 * u) @ w, 0.05)
    square = float(w @ w)
    assert abs(float(found.mean()) - square) < 4.5 * math.sqrt(2 / count) * square
    assert float(found.std()) == pytest.approx(math.sqrt(2) * square, rel=0.02)


@pytest.mark.parametrize(("form", "places"), [("relativistic", 2), ("logistic", 1)])
def test_what_the_fit_adds_for_smoothness(form: str, places: int) -> None:
    """Of a linear discriminator, smooth |w|^2 at real latents, and in pairs at the sample's too."""
    w, context, sample = torch.tensor([1.4]), micro(FLOW, 4000), made(4000)
    terms = [Adversarial(form=form, smooth=smooth) for smooth in (0.0, 0.5)]
    for term in terms:
        term.critic = lambda x_t, t, condition: x_t @ w
    plain, smooth = (term.fit(context, sample).detach().mean() for term in terms)
    assert float(smooth - plain) == pytest.approx(0.5 * places * 1.4**2, rel=0.08)


def test_a_slope_that_is_measured_seldom_weighs_as_much_in_the_mean() -> None:
    """Of every third cycle, by its number, it has three times the weight; the others fit as without it."""
    context, sample, fits = micro(FLOW, 16), made(16), []
    for settings in ({"smooth": 0.0}, {}, {"smooth_every": 3}):
        term = Adversarial(**settings)
        term.critic = lambda x_t, t, condition: 1.4 * x_t[:, 0]
        fits.append([term.fit(replace(context, cycle=cycle), sample).detach() for cycle in (3, 4, 5)])
    plain, each, third = (torch.stack(losses) for losses in fits)
    assert torch.equal(third[1:], plain[1:]) and bool((each > plain).all())
    torch.testing.assert_close(third.mean(0), each.mean(0))


class Quadratic(nn.Module):
    """D of one number and a time, quadratic in the number, as the log-ratio of normals is."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(2))

    def forward(self, x_t: Tensor, t: Tensor, condition: Any) -> Tensor:
        return torch.cat([x_t, x_t**2], 1) @ self.weights


@pytest.mark.parametrize("form", ["relativistic", "logistic"])
def test_training_reaches_the_real_mean_and_spread(form: str) -> None:
    n, log_r, critic = nn.Parameter(torch.tensor(-0.6)), nn.Parameter(torch.tensor(0.3)), Quadratic()
    term = Adversarial(form=form, smooth=0.02, range=(0.3, 0.3001))
    term.critic = critic
    student = torch.optim.Adam([n, log_r], lr=0.02, betas=(0.0, 0.9))
    judge = torch.optim.Adam(critic.parameters(), lr=0.1, betas=(0.0, 0.9))
    decay = [torch.optim.lr_scheduler.CosineAnnealingLR(o, 400) for o in (student, judge)]
    generator, context = torch.Generator().manual_seed(0), micro(FLOW, 1)
    drawn = Draws(0, 0, ())
    for _ in range(400):
        real, z, *noise = torch.randn(6, 2048, 1, generator=generator)
        drawn = Given(noise, generator)
        context = replace(context, x_0=M + S * real, draws=drawn)
        sample = Sample(z, 0, n + log_r.exp() * z)
        student.zero_grad()
        term.loss(context, sample).mean().backward()
        student.step()
        judge.zero_grad()
        term.fit(context, sample._replace(x_hat=sample.x_hat.detach())).mean().backward()
        judge.step()
        for d in decay:
            d.step()
    assert float(n.detach()) == pytest.approx(M, abs=0.05)
    assert float(log_r.detach().exp()) == pytest.approx(S, abs=0.05)


class Given:
    """Draws of many samples at once."""

    def __init__(self, noise: list[Tensor], generator: torch.Generator) -> None:
        self.noise, self.generator = list(noise), generator

    def uniform(self, purpose: str) -> Tensor:
        return torch.rand(len(self.noise[0]), generator=self.generator)

    def normal(self, purpose: str, shape: Any) -> Tensor:
        return torch.randn(len(self.noise[0]), *shape, generator=self.generator)


# The term


def test_what_the_term_is() -> None:
    term = Adversarial()
    assert isinstance(term, SampleTerm) and isinstance(term, LearningTerm)
    assert term.needs == Needs(clips=True, fake=True) and Adversarial(features="teacher").needs == Needs(clips=True)
    assert Objective({"adversarial": term, "vsd": VSD()}).reference == "vsd"
    with pytest.raises(ValueError, match="adversarial is relative to VSD's gradient.*give it another unit"):
        Objective({"adversarial": term})
    for wrong, told in (
        ({"features": "student"}, r"adversarial.features is 'student'; use fake or teacher or own"),
        ({"form": "wgan"}, "adversarial.form is 'wgan'"),
        ({"unit": "sd"}, "adversarial.unit is 'sd'; use vsd or loss"),
        ({"smooth": -1.0}, "adversarial.smooth is -1.0"),
        ({"nudge": 0.0}, "adversarial.nudge is 0.0"),
        ({"smooth_every": 0}, "adversarial.smooth_every is 0; it must be at least 1"),
        ({"heads": 0}, "adversarial.heads is 0; it must be at least 1"),
        ({"width": 0}, "adversarial.width is 0"),
        ({"range": (0.5, 0.2)}, "adversarial.range is"),
    ):
        with pytest.raises(ValueError, match=told):
            Adversarial(**wrong)


def test_its_forwards() -> None:
    """Relativistic and smooth: a real one judged beside, and four in the fit; its own network is trained by these."""
    assert Adversarial(features="teacher").cost(4)[:6] == (0, 0, 5, 1, 0, 0)
    assert Adversarial(form="logistic", smooth=0).cost(4)[:6] == (0, 0, 0, 0, 2, 1)
    own = Adversarial(features="own", form="logistic").cost(4)
    assert own == (0, 0, 0, 0, 0, 0, 3, 0, 1, 3)
    seldom = Adversarial(features="own", smooth_every=4).cost(4)
    assert (seldom.own_trained, seldom.kept) == (2.5, 4), "the mean of forwards, and the most at once"


# Its network


@pytest.fixture(scope="module", params=FAMILIES)
def teacher(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Teacher:
    folder = build(request.param, tmp_path_factory.mktemp(request.param) / "teacher")
    return FAMILIES[request.param].load(folder)


def hooks(network: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in network.modules())


@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
def test_heads_read_every_family_and_their_gradient_comes_back_to_the_latents(
    teacher: Teacher, recompute: bool
) -> None:
    """A finite difference along the gradient is its square; the trunk is left alone and holds nothing in a fit."""
    network = trainable_copy(teacher, World(), recompute)
    before = hooks(network)
    torch.manual_seed(0)
    judge = Discriminator(teacher.denoiser_of(network), 2, 16)
    assert judge.places == [0, 1] and {n.split(".")[0] for n, _ in judge.named_parameters()} == {"heads"}
    x = torch.randn(4, *teacher.latent_shape, generator=torch.Generator().manual_seed(1))
    t, condition = teacher.denoiser.schedule.uniform(torch.tensor([0.2, 0.7] * 2)), teacher.text([PROMPT] * 2)
    judged = judge(x, t, condition)
    assert judged.shape == (4,)
    torch.testing.assert_close(judged[2:], judge(x[2:], t[2:], condition))
    judged.sum().backward()
    assert all(p.grad is not None for p in judge.parameters()) and all(p.grad is None for p in network.parameters())

    x.requires_grad_()
    (gradient,) = torch.autograd.grad(judge(x, t, condition).sum(), x)
    assert all(p.grad is None for p in network.parameters()) and hooks(network) == before
    norm = float(gradient.norm())
    with torch.no_grad():
        step = 0.02 * gradient / norm
        rise = judge(x + step, t, condition).double().sum() - judge(x - step, t, condition).double().sum()
    assert float(rise) / 0.04 == pytest.approx(norm, rel=0.02)


def test_one_that_is_a_copy_learns_whole(teacher: Teacher) -> None:
    network = trainable_copy(teacher, World(), True)
    judge = Discriminator(teacher.denoiser_of(network, torch.bfloat16), 1, 16, level=False, trained=True)
    assert judge.places == [1] and sum(n.startswith("network.") for n, _ in judge.named_parameters()) > 20
    x, condition = torch.randn(2, *teacher.latent_shape), teacher.text([PROMPT] * 2)
    judge(x, teacher.denoiser.schedule.uniform(torch.tensor([0.2, 0.7])), condition).sum().backward()
    assert next(iter(network.blocks)).parameters().__next__().grad is not None
    with pytest.raises(ValueError, match="adversarial.heads is 3; this teacher has 1 to 2 blocks"):
        Discriminator(teacher.denoiser, 3, 16)
