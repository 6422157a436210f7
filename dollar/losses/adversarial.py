"""The adversarial term: a discriminator tells the student's latents from real ones, both noised alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import softplus

from dollar.diffusion.schedule import diffuse
from dollar.diffusion.timesteps import FewStep
from dollar.losses.term import Context, Cost, Host, Needs, Sample, check_choice, check_range, check_weight

FEATURES, FORMS, UNITS = ("fake", "teacher", "own"), ("relativistic", "logistic"), ("vsd", "loss")


def generator_loss(made: Tensor, real: Tensor | None, form: str) -> Tensor:
    """The student's loss [B] of the judgements [B] of what it made and, for the relativistic form, of real latents.

    `logistic`: softplus(-D), whose gradient is sigmoid(-D) times the score difference a (s_fake - s_real) where D is
    the best there is, log p_real / p_fake. `relativistic`: softplus of the pair's difference (R3GAN, arXiv 2501.05441).
    """
    return softplus(-made) if real is None or form == "logistic" else softplus(real - made)


def critic_loss(made: Tensor, real: Tensor, form: str) -> Tensor:
    """The discriminator's loss [B] of its judgements [B]."""
    return softplus(-real) + softplus(made) if form == "logistic" else softplus(made - real)


def slope(judged: Tensor, nudged: Tensor, nudge: float) -> Tensor:
    """|dD / dx|^2 [B] from judgements of latents and of the same plus `nudge` times normal numbers, in expectation.

    For a D that is linear in x it is exact; it needs no second derivatives, which attention lacks (arXiv 2501.08316).
    """
    return ((nudged - judged) / nudge) ** 2


@dataclass
class Adversarial:
    """A discriminator's gradient at the student's sample, after DMD2 (arXiv 2405.14867) and LADD (2403.12015).

    It judges the student's latents and real ones under the same caption, at the same noise of a time between the
    fractions `range` of T, each with noise of its own. features: whose blocks its heads read: the `fake` score's, the
    frozen `teacher`'s, or its `own`, a copy of the teacher that is trained as well; heads: on how many of these blocks;
    width: of a head; form: as in `generator_loss`. smooth: the weight of the squared slope of D at real latents, and in
    the relativistic form at the student's, by a difference over `nudge` times normal numbers. It is measured in each
    `smooth_every`-th cycle, by the cycle's number, and weighs so many times as much there. unit: beta is the size of
    the gradient at the sample relative to VSD's (`vsd`), or the weight of the loss.
    """

    beta: float = 1.0
    features: Literal["fake", "teacher", "own"] = "fake"
    heads: int = 2
    width: int = 64
    form: Literal["relativistic", "logistic"] = "relativistic"
    smooth: float = 0.1
    smooth_every: int = 1
    nudge: float = 0.05
    range: tuple[float, float] = (0.02, 0.98)
    unit: Literal["vsd", "loss"] = "vsd"
    step_counts: list[int] | None = None
    at: Literal["all", "first", "later"] = "all"
    critic: Any = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        self.range = (self.range[0], self.range[1])
        check_weight("beta_adversarial", self.beta)
        check_weight("adversarial.smooth", self.smooth)
        check_choice("adversarial.features", self.features, FEATURES)
        check_choice("adversarial.form", self.form, FORMS)
        check_choice("adversarial.unit", self.unit, UNITS)
        check_range("adversarial.range", self.range)
        for key, value in (("heads", self.heads), ("width", self.width), ("smooth_every", self.smooth_every)):
            if value < 1:
                raise ValueError(f"adversarial.{key} is {value}; it must be at least 1")
        if self.nudge <= 0:
            raise ValueError(f"adversarial.nudge is {self.nudge}; it is a positive size, in the unit of the latents")

    @property
    def needs(self) -> Needs:
        return Needs(clips=True, fake=self.features == "fake")

    @property
    def pairs(self) -> bool:
        """Whether a sample is judged against a real one."""
        return self.form == "relativistic"

    def check(self, samplers: Sequence[FewStep]) -> None:
        """Any student will do."""

    def cost(self, steps: int) -> Cost:
        nudged = (self.smooth > 0) * (1.0 + self.pairs)
        judged = 2 + nudged / self.smooth_every  # in the mean over cycles
        if self.features == "own":
            return Cost(own=float(self.pairs), own_gradient=1.0, own_trained=judged, kept=2 + nudged)
        return Cost(**{self.features: self.pairs + judged, f"{self.features}_gradient": 1.0}, kept=2.0)

    def network(self, host: Host) -> Any:
        self.critic = host.discriminator(self.features, self.heads, self.width, not self.pairs)
        return self.critic

    def loss(self, context: Context, sample: Sample) -> Tensor:
        t, made, real = self._noised(context, sample, "adversarial")
        judged_real = None
        if self.pairs:
            with torch.no_grad():
                judged_real = self.critic(real, t, context.condition)
        return generator_loss(self.critic(made, t, context.condition), judged_real, self.form)

    def fit(self, context: Context, sample: Sample) -> Tensor:
        t, made, real = self._noised(context, sample, "discriminator")
        seen = [made, real]
        if self.smooth > 0 and context.cycle % self.smooth_every == 0:
            nudged = [real, made] if self.pairs else [real]
            seen += [x + self.nudge * context.draws.normal(f"nudge {i}", x.shape[1:]) for i, x in enumerate(nudged)]
        judged_made, judged_real, *others = self.critic(torch.cat(seen), t.repeat(len(seen)), context.condition).chunk(
            len(seen)
        )
        context.log("adversarial/right", float((judged_real > judged_made).float().mean()))
        loss = critic_loss(judged_made, judged_real, self.form)
        for judged, other in zip((judged_real, judged_made), others, strict=False):
            loss = loss + self.smooth_every * self.smooth * slope(judged, other, self.nudge)
        return loss

    def _noised(self, context: Context, sample: Sample, purpose: str) -> tuple[Tensor, Tensor, Tensor]:
        """A time [B], and the sample and real latents noised to it."""
        if context.x_0 is None:
            raise ValueError(
                "beta_adversarial > 0 needs clips, and there are only prompts; set beta_adversarial=0 or give clips"
            )
        draws, schedule = context.draws, context.schedule
        t = schedule.uniform(draws.uniform(f"{purpose} time"), *self.range)
        noise = [draws.normal(f"{purpose} noise of {what}", sample.x_hat.shape[1:]) for what in ("samples", "clips")]
        return t, diffuse(sample.x_hat, noise[0], t, schedule), diffuse(context.x_0, noise[1], t, schedule)
