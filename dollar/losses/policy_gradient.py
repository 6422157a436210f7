"""Policy gradient on the student's own steps (DDPO_SF, Eq. 26-28 and Algorithm 2): for rewards without a gradient."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from dollar.diffusion.denoise import Posterior, posterior
from dollar.diffusion.schedule import Schedule, expand_like, mean_flat
from dollar.diffusion.timesteps import FewStep
from dollar.losses.term import Context, Cost, Needs, check_weight


def log_probability(x: Tensor, mean: Tensor, sd: Tensor) -> Tensor:
    """log N(x; mean, sd^2) (Eq. 28), averaged over the elements; x, mean [B, ...], sd [B] > 0. Returns [B], float32."""
    spread = expand_like(sd, x.float())
    square = ((x.float() - mean.float()) / spread) ** 2
    return -0.5 * mean_flat(square + 2 * spread.log() + math.log(2 * math.pi))


def policy_gradient(log_p: Tensor, advantage: Tensor) -> Tensor:
    """Minus the score function's estimate (Algorithm 2, line 13); log_p, advantage [B]. Returns [B]."""
    return -log_p * advantage.detach().to(log_p)


def advantages(reward: Tensor, everyone: Tensor) -> Tensor:
    """Rewards [B] as deviations from the mean of the whole batch `everyone` [N], in its standard deviations.

    A reward that is no finite number gets 0, as all do where rewards don't differ: there is nothing to learn from it.
    """
    known = everyone[everyone.isfinite()].double()
    sd = float(known.std(correction=0)) if len(known) else 0.0
    if sd <= 1e-6 * float(known.abs().mean() if len(known) else 0.0):
        return torch.zeros_like(reward)
    return torch.where(reward.isfinite(), (reward.double() - known.mean()) / sd, 0.0).to(reward.dtype)


def renoised(x_0: Tensor, s: Tensor, schedule: Schedule) -> Posterior:
    """The kernel of a student that renoises: N(a_s x_0, b_s^2); x_0 [B, ...], s [B]."""
    a, b = schedule.coefficients(s)
    return Posterior(expand_like(a, x_0) * x_0, b)


class Rollout(NamedTuple):
    """A sample's states [B, ...] at each of its times, and the reward [B] of its end, on the CPU."""

    states: list[Tensor]
    reward: Tensor


@dataclass
class PolicyGradient:
    """DDPO_SF, truncated: the last `truncate` kernels with a variance, weighted by the reward of the final sample.

    The last prediction has no variance and enters through the reward alone. Every kernel's gradient is taken through a
    forward of its own, so that one step's activations are held and not `truncate` of them.
    kernel: `renoise`, the student's own, or `posterior`, Eq. 27's, from which training then samples.
    """

    beta: float = 1.0
    truncate: int = 2
    kernel: Literal["renoise", "posterior"] = "renoise"
    step_counts: list[int] | None = None
    needs: ClassVar[Needs] = Needs(reward="numbers")

    def __post_init__(self) -> None:
        check_weight("beta_ddpo", self.beta)
        if self.truncate < 1:
            raise ValueError(f"ddpo.truncate is {self.truncate}; at least the last kernel must count")
        if self.kernel not in ("renoise", "posterior"):
            raise ValueError(f"ddpo.kernel is {self.kernel!r}; use renoise or posterior")

    def check(self, samplers: Sequence[FewStep]) -> None:
        if all(sampler.steps == 1 for sampler in samplers):
            raise ValueError(
                "policy gradient needs a step whose outcome is random, and a student of one step has none; train for "
                "more with student.steps=[4], or reach the reward by loss=dollar"
            )
        if self.kernel == "renoise" and any(sampler.between != "renoise" for sampler in samplers):
            raise ValueError(
                "policy gradient needs random steps, but student.between=ddim has none; use student.between=renoise, "
                "or ddpo.kernel=posterior"
            )
        most = max(sampler.steps for sampler in samplers) - 1
        if self.truncate > most:
            raise ValueError(f"ddpo.truncate is {self.truncate}, but the student has {most} random steps; give {most}")

    def cost(self, steps: int) -> Cost:
        if steps == 1:
            return Cost()
        return Cost(student=steps, student_gradient=min(self.truncate, steps - 1), kept=1)

    def losses(self, contexts: Sequence[Context]) -> Iterator[Tensor]:
        if contexts[0].sampler.steps == 1:
            return
        rollouts = [self._rollout(context) for context in contexts]  # Algorithm 2, lines 5-11
        reward = torch.cat([rollout.reward for rollout in rollouts])
        # A reward counts against those of the whole batch, however it is cut into micro-batches.
        weight = advantages(reward, contexts[0].gather(reward.to(rollouts[0].states[0].device)).cpu())
        parts = weight.split([len(rollout.reward) for rollout in rollouts])
        for context, rollout, own in zip(contexts, rollouts, parts, strict=True):
            sampler, states = context.sampler, rollout.states
            for k in range(max(0, sampler.steps - 1 - self.truncate), sampler.steps - 1):  # line 13
                x_0 = sampler.generate(context.student, states[k], k)
                mean, sd = self._kernel(states[k], x_0, k, sampler)
                yield policy_gradient(log_probability(states[k + 1], mean, sd), own)

    @torch.no_grad()
    def _rollout(self, context: Context) -> Rollout:
        sampler, x = context.sampler, context.noise(0)
        states = []
        for k in range(sampler.steps):
            states.append(x)
            x_0 = sampler.generate(context.student, x, k)
            x = self._step(x, x_0, k, sampler, context.noise)
        return Rollout(states, context.reward(x_0))

    def _kernel(self, x: Tensor, x_0: Tensor, k: int, sampler: FewStep) -> Posterior:
        t, s = sampler.time(k, x), sampler.time(k + 1, x)
        if self.kernel == "posterior":
            return posterior(x, x_0, t, s, sampler.schedule)
        return renoised(x_0, s, sampler.schedule)

    def _step(self, x: Tensor, x_0: Tensor, k: int, sampler: FewStep, noise: Callable[[int], Tensor]) -> Tensor:
        if k + 1 == sampler.steps:
            return x_0
        mean, sd = self._kernel(x, x_0, k, sampler)
        return mean + expand_like(sd, mean) * noise(k + 1)
