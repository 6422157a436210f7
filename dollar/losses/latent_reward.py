"""The latent reward model's fit to a pixel reward, and the fine-tuning of a student with it (Eq. 14-15)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from dollar.diffusion.denoise import DenoiseFunction
from dollar.diffusion.draws import Draws
from dollar.diffusion.schedule import Schedule, diffuse, expand_like
from dollar.diffusion.timesteps import FewStep
from dollar.losses.term import Context, Cost, Needs, Sample, check_choice, check_range, check_weight

UNITS = ("reward", "sd", "vsd")
THROUGH = ("sample", "teacher", "fake")
NUDGE = 0.003  # of a clip's norm, over which `nudged_steepness` takes its difference
ROUNDINGS = 8  # relative roundings that such a difference must at least be long, or it would measure these


def fit(predicted: Tensor, reward: Tensor) -> Tensor:
    """Squared error (Eq. 14); predicted, reward: [B], both standardised. Returns [B], float32."""
    return (predicted.float() - reward.detach().float()) ** 2


def pairwise(predicted_i: Tensor, predicted_j: Tensor, reward_i: Tensor, reward_j: Tensor) -> Tensor:
    """Bradley-Terry's cross-entropy of pairs: sigmoid(predicted_i - predicted_j) against sigmoid(reward_i - reward_j).

    All [B] and standardised. Returns [B], float32. The label is soft, so that the optimum is where the differences
    agree and predictions keep the reward's unit; with labels of 0 and 1 a larger scale would always fit better. Pairs
    leave the level open. After LaSRO, arXiv 2411.15247.
    """
    label = (reward_i.detach().float() - reward_j.detach().float()).sigmoid()
    return binary_cross_entropy_with_logits(predicted_i.float() - predicted_j.float(), label, reduction="none")


def steepness(predicted: Tensor, x: Tensor) -> Tensor:
    """|d predicted / d x|^2, summed over x [B, ...]: what a smooth fit keeps small. Returns [B].

    predicted: [B], or [B, F] of frames that each follow from their own part of x, over which it is the mean; where they
    share parts, as on a small decoder's pixels, it is F times the squared gradient of their mean.
    A surrogate says nothing of directions in which no clips differ, and there its gradient is what it was at its start.
    With p times this on the squared error, the slope fitted to clips (or frames) on a line is 1 / (1 + p) of the
    least-squares one along it, for unit variance, and 0 across it.
    """
    (gradient,) = torch.autograd.grad(predicted.sum(), x, create_graph=True)
    return gradient.float().square().flatten(1).sum(1) / predicted[0].numel()


def nudged_steepness(
    predict: Callable[[Tensor], Tensor],
    predicted: Tensor,
    x: Tensor,
    u: Tensor,
    precision: torch.dtype = torch.float32,
) -> Tensor:
    """`steepness` [B] by a difference, for networks without second derivatives: its mean over normal u [B, ...].

    predicted: what `predict` gives of x; precision: in which it computes.
    """
    share = max(NUDGE, ROUNDINGS * torch.finfo(precision).eps)
    scale = share * (x.detach().flatten(1).norm(dim=1) / math.sqrt(x[0].numel())).clamp(min=1e-6)
    step = expand_like(scale, x) * u
    change = (predict(x + step) - predicted).float()
    return (change / expand_like(scale, change)).square().reshape(len(x), -1).mean(1)


def denoised(
    denoise: DenoiseFunction, x_hat: Tensor, draws: Draws, schedule: Schedule, low: float, high: float
) -> Tensor:
    """The x_0 that a denoiser sees in x_hat [B, ...] noised to times between these fractions of T."""
    t = schedule.uniform(draws.uniform("through time"), low, high)
    return denoise(diffuse(x_hat, draws.normal("through noise", x_hat.shape[1:]), t, schedule), t)


def fine_tune(reward: Tensor) -> Tensor:
    """Minus the latent reward model's reward of the student's samples (Eq. 15); [B] to [B], float32."""
    return -reward.float()


@dataclass
class LatentRewardTerm:
    """Fine-tuning by the latent reward model's gradient (Eq. 15).

    update: `joint` with the other terms at the student's sample (Eq. 16), or `separate` (Algorithm 1, line 19), from
    the gradients of `accumulate` cycles; optimizer: of a separate update, the student's own (`shared`, so that one
    momentum serves both) or another on the same weights (`own`); unit: the reward's own, `sd`, the standard deviation
    of the rewards seen, or `vsd`: beta is the size of the gradient at the sample relative to VSD's, in the mean over
    the latest cycles.
    through: what the latent reward model looks at: the `sample` (Eq. 15), or the x_0 that the `teacher` or the `fake`
    score sees in the sample noised to a time between the `noise` fractions of T. The gradient then comes back through
    that network, whose Jacobian, (a / b^2) Cov(x_0 | x_t), keeps what clips vary along and drops the rest.
    """

    beta: float = 1.0
    update: Literal["joint", "separate"] = "joint"
    accumulate: int = 7
    optimizer: Literal["shared", "own"] = "shared"
    unit: Literal["reward", "sd", "vsd"] = "reward"
    through: Literal["sample", "teacher", "fake"] = "sample"
    noise: tuple[float, float] = (0.1, 0.5)
    step_counts: list[int] | None = None
    at: Literal["all", "first", "later"] = "all"

    def __post_init__(self) -> None:
        self.noise = (self.noise[0], self.noise[1])
        check_weight("beta_ft", self.beta)
        check_choice("ft.unit", self.unit, UNITS)
        check_choice("ft.update", self.update, ("joint", "separate"))
        check_choice("ft.optimizer", self.optimizer, ("shared", "own"))
        if self.optimizer == "own" and self.update == "joint":
            raise ValueError("ft.optimizer is own, but ft.update=joint is one update with VSD; set ft.update=separate")
        check_choice("ft.through", self.through, THROUGH)
        check_range("ft.noise", self.noise)
        if self.accumulate < 1:
            raise ValueError(f"ft.accumulate is {self.accumulate}; it must be at least 1")

    @property
    def needs(self) -> Needs:
        return Needs(surrogate=True, fake=self.through == "fake")

    @property
    def every(self) -> int:
        """Cycles whose gradients make one update of its own; 0 where it joins the others' update."""
        return self.accumulate if self.update == "separate" else 0

    def check(self, samplers: Sequence[FewStep]) -> None:
        """Any student will do."""

    def cost(self, steps: int) -> Cost:
        if self.through == "sample":
            return Cost()
        # Its activations are held while the sample's own wait.
        return Cost(**{f"{self.through}_gradient": 1.0}, kept=2.0)

    def loss(self, context: Context, sample: Sample) -> Tensor:
        x = self.seen(sample.x_hat, context.teacher(1.0), context.fake, context.draws, context.schedule)
        reward = context.predict(x, "fine-tuning")
        context.log("reward/predicted", float(reward.detach().mean()))
        return fine_tune(reward) / (context.reward_sd if self.unit == "sd" else 1.0)

    def seen(
        self, x_hat: Tensor, teacher: DenoiseFunction, fake: DenoiseFunction, draws: Draws, schedule: Schedule
    ) -> Tensor:
        """What the latent reward model looks at of samples x_hat [B, ...], with its gradient at x_hat; unguided."""
        if self.through == "sample":
            return x_hat
        return denoised(teacher if self.through == "teacher" else fake, x_hat, draws, schedule, *self.noise)


@dataclass
class RunningStatistics:
    """Mean and standard deviation of every reward seen so far, so that rewards of any unit are fitted alike.

    All processes must be given the same rewards (gather first), or their models would mean different things.
    """

    count: int = 0
    mean: float = 0.0
    variance: float = 0.0

    @property
    def varied(self) -> bool:
        """Whether the rewards differ by more than float32's rounding, so that there is something to follow."""
        return math.sqrt(self.variance) > 1e-6 * abs(self.mean)

    @property
    def sd(self) -> float:
        """The standard deviation; 1 while the rewards don't differ."""
        return math.sqrt(self.variance) if self.varied else 1.0

    def update(self, reward: Tensor) -> None:
        """Take in rewards [B]; ValueError when one is not finite, since it would stay in the statistics for good."""
        if not bool(reward.isfinite().all()):
            raise ValueError(f"rewards must be finite, but got {reward.tolist()}; look at the clips that have them")
        if reward.numel() == 0:
            return
        reward = reward.detach().double()
        total = self.count + reward.numel()
        share = reward.numel() / total
        gap = float(reward.mean()) - self.mean
        within = (1 - share) * self.variance + share * float(reward.var(correction=0))
        self.count, self.mean, self.variance = total, self.mean + share * gap, within + share * (1 - share) * gap**2

    def standardise(self, reward: Tensor) -> Tensor:
        """Rewards in their own unit as standard deviations from the mean; [B], float32."""
        return (reward.float() - self.mean) / self.sd

    def destandardise(self, standardised: Tensor) -> Tensor:
        """The inverse of `standardise`: the model's output in the reward's own unit; [B], float32."""
        return standardised.float() * self.sd + self.mean

    def state_dict(self) -> dict[str, float]:
        """Plain numbers, for a checkpoint."""
        return asdict(self)

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Take up the statistics where `state_dict` left them."""
        self.count, self.mean, self.variance = int(state["count"]), float(state["mean"]), float(state["variance"])
