"""Algorithm 1 of DOLLAR: the losses of one cycle for the student, the fake score and the latent reward model.

Nothing here knows of optimizers, processes or configuration. The trainer asks for gradients to carry back and for
losses; every random number comes from `Draws`, so a turn is a function of (weights, batch, seed, turn).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from dollar.diffusion.denoise import DenoiseFunction, walk
from dollar.diffusion.draws import Draws
from dollar.diffusion.schedule import diffuse, expand_like
from dollar.diffusion.timesteps import FewStep, consistency_function
from dollar.latent_reward import LatentReward
from dollar.losses.consistency import consistency, consistency_target
from dollar.losses.latent_reward import fine_tune
from dollar.losses.score_matching import score_matching
from dollar.losses.vsd import vsd, vsd_weight
from dollar.models.denoiser import Condition, Denoiser


@dataclass
class Objective:
    """L = beta_vsd L_VSD + beta_cd L_CD + beta_ft L_FT (Eq. 16) and what each term needs; conf/loss explains each.

    The defaults are the paper's.
    """

    beta_vsd: float = 1.0
    beta_cd: float = 0.5
    beta_ft: float = 1.0
    balance: float | None = None
    vsd_guidance_scale: float = 4.5
    vsd_weighting: str = "dmd"
    vsd_range: tuple[float, float] = (0.02, 0.98)
    vsd_lower_half: float | None = None
    vsd_lower_half_over: tuple[float, float] = (0.3, 0.7)
    cd_guidance_scale: float = 8.5
    cd_m: int = 5
    cd_grid: int = 50
    cd_target: str = "student"
    cd_distance: str = "pseudo_huber"
    ft_unit: str = "reward"
    ft_update: str = "joint"
    student_input: str = "simulate"
    student_parameterization: str = "homogeneous"
    fake_loss: str = "native"

    def __post_init__(self) -> None:
        choices = {
            "vsd.weighting": (self.vsd_weighting, ("dmd", "score", "constant")),
            "cd.target": (self.cd_target, ("student", "ema", "teacher")),
            "cd.distance": (self.cd_distance, ("pseudo_huber", "mse")),
            "ft.unit": (self.ft_unit, ("reward", "sd")),
            "ft.update": (self.ft_update, ("joint", "separate")),
            "student.input": (self.student_input, ("simulate", "noised_data")),
            "student.parameterization": (self.student_parameterization, ("homogeneous", "heterogeneous")),
            "fake.loss": (self.fake_loss, ("native", "cv")),
        }
        for key, (value, known) in choices.items():
            if value not in known:
                raise ValueError(f"{key} is {value!r}; use {' or '.join(known)}")
        for name in ("beta_vsd", "beta_cd", "beta_ft"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; a weight is 0 (off) or positive")
        if self.beta_vsd == self.beta_cd == self.beta_ft == 0:
            raise ValueError("beta_vsd, beta_cd and beta_ft are all 0, so the student has nothing to learn from")
        if self.balance is not None and (isinstance(self.balance, str) or self.balance <= 0):
            raise ValueError(f"balance is {self.balance}; use null for no limit, or a positive share such as 0.5")
        if self.balance is not None and (self.ft_update == "separate" or self.beta_vsd == 0):
            raise ValueError(
                f"balance is {self.balance}, but it compares the reward's gradient with VSD's in one update; it needs "
                "ft.update=joint and beta_vsd above 0, or set balance=null"
            )
        if self.balance is not None and self.beta_ft == 0:
            raise ValueError(f"balance is {self.balance}, but beta_ft is 0, so there is nothing to hold back")
        if not 0 <= self.vsd_range[0] < self.vsd_range[1] <= 1:
            raise ValueError(f"vsd.range is {list(self.vsd_range)}; give two rising fractions of T, as [0.02, 0.98]")
        if self.vsd_lower_half is not None and not 0 <= self.vsd_lower_half <= 1:
            raise ValueError(
                f"vsd.lower_half is {self.vsd_lower_half}; it is a share of the draws, 0 to 1, or null for even ones"
            )
        if not 0 <= self.vsd_lower_half_over[0] < self.vsd_lower_half_over[1] <= 1:
            raise ValueError(
                f"vsd.lower_half_over is {list(self.vsd_lower_half_over)}; give two rising fractions of the run, as "
                "[0.3, 0.7]"
            )
        for name in ("vsd", "cd"):
            if getattr(self, f"{name}_guidance_scale") < 0:
                raise ValueError(
                    f"{name}.guidance_scale is {getattr(self, f'{name}_guidance_scale')}, which leads away from the "
                    "prompt; 1 is no guidance and the usual values lie between 2 and 9"
                )
        if not 1 <= self.cd_m <= self.cd_grid:
            raise ValueError(f"cd.m is {self.cd_m}; a walk has 1 to cd.grid = {self.cd_grid} steps")

    def place(self, u: Tensor, low: float, high: float, progress: float) -> Tensor:
        """Fractions of T [B] in [low, high) of draws u [B] in [0, 1): spread evenly, unless vsd.lower_half is given.

        Then that share of them comes to fall below the middle of vsd.range. It is reached from an even spread while
        `progress`, the fraction of the run that is done, passes vsd.lower_half_over.
        """
        even = low + (high - low) * u.double()
        if self.vsd_lower_half is None:
            return even
        first, last = self.vsd_lower_half_over
        done = min(max((progress - first) / (last - first), 0.0), 1.0)
        middle = sum(self.vsd_range) / 2
        at_first = (middle - low) / (high - low)
        share = at_first + done * (self.vsd_lower_half - at_first)
        below = low + (middle - low) * u.double() / share
        above = middle + (high - middle) * (u.double() - share) / (1 - share)
        return torch.where(u < share, below, above)


class Sample(NamedTuple):
    """The student's single-step prediction x_hat [B, C, F, h, w] of a cycle, without gradient, and its condition."""

    x_hat: Tensor
    condition: Condition


class Pullback(NamedTuple):
    """One term of the student's update: `gradient` at `tensor`, to be carried back to the weights.

    last: whether the branch is then done with; if not, another term follows through the same activations.
    """

    name: str
    tensor: Tensor
    gradient: Tensor
    last: bool = True


@dataclass
class Distiller:
    """The three networks of Algorithm 1 around one teacher.

    samplers: one FewStep for each step count that the student is trained for. null: (count) -> the condition of
    guidance's other half. averaged: a context in which the student holds its averaged weights (for cd.target=ema).
    progress: the fraction of the run that is done, for what changes over it.
    """

    teacher: Denoiser
    student: Denoiser
    fake: Denoiser
    samplers: Sequence[FewStep]
    objective: Objective
    latent_shape: tuple[int, int, int, int]
    null: Callable[[int], Condition]
    latent_reward: LatentReward | None = None
    averaged: Callable[[], AbstractContextManager] = nullcontext
    progress: float = 0.0
    logged: dict[str, float] = field(default_factory=dict)
    last: Sample | None = None

    # Line 8: x_hat <- G_theta(c, eps)

    def _generator_input(self, draws: Draws, x_0: Tensor | None, condition: Condition) -> tuple[FewStep, int, Tensor]:
        """Draw how deep the student is rolled out, the same on every process, and roll it out to there."""
        sampler = self.samplers[draws.shared_integer("step count", len(self.samplers))]
        k = draws.shared_integer("depth", sampler.steps)
        if self.objective.student_input == "simulate" or k == 0:
            return sampler, k, sampler.rollout(self._student(condition), self._noise(draws), until=k)
        if x_0 is None:
            raise ValueError("student.input=noised_data needs clips; use student.input=simulate with prompts alone")
        t = sampler.time(k, x_0)
        return sampler, k, diffuse(x_0, self._noise(draws)(k), t, sampler.schedule)

    def _student(self, condition: Condition) -> Callable[[Tensor, Tensor], Tensor]:
        return self.student.given(condition)

    def _noise(self, draws: Draws) -> Callable[[int], Tensor]:
        return lambda k: draws.normal(f"noise {k}", self.latent_shape)

    # Lines 7-11: update the generator with distillation (and, with ft.update=joint, with the latent reward)

    def student_terms(
        self, draws: Draws, condition: Condition, x_0: Tensor | None, fine_tune_now: bool, apart: bool = False
    ) -> Iterator[Pullback]:
        """The student's gradients, one branch at a time so that only one branch's activations are held.

        x_0: real latents [B, C, F, h, w], needed by the consistency term and by noised_data; fine_tune_now: whether the
        latent reward model is warm; apart: give VSD and FT one by one, to compare their gradients at the weights.
        """
        o = self.objective
        if o.beta_vsd > 0 or o.beta_ft > 0:
            yield from self._sample_terms(draws, condition, x_0, fine_tune_now, apart)
        if o.beta_cd > 0:
            loss = self._consistency_loss(draws, condition, x_0).mean()
            self.logged["loss/cd"] = float(loss.detach())
            yield Pullback("cd", loss, torch.full_like(loss, o.beta_cd))

    def _sample_terms(
        self, draws: Draws, condition: Condition, x_0: Tensor | None, fine_tune_now: bool, apart: bool
    ) -> Iterator[Pullback]:
        """The terms that look at the student's own sample: VSD, and with ft.update=joint FT."""
        o = self.objective
        fine_tune_here = fine_tune_now and o.beta_ft > 0 and o.ft_update == "joint"
        sampler, k, x = self._generator_input(draws, x_0, condition)
        with_gradient = o.beta_vsd > 0 or fine_tune_here
        with nullcontext() if with_gradient else torch.no_grad():
            x_hat = sampler.generate(self._student(condition), x, k)
        self.last = Sample(x_hat.detach(), condition)
        gradients = {}
        if o.beta_vsd > 0:
            gradients["vsd"] = o.beta_vsd * self._vsd_gradient(draws, condition)
        if fine_tune_here:
            gradients["ft"] = self._balanced(o.beta_ft * self._fine_tune_gradient(condition), gradients.get("vsd"))
        self._log_gradients(gradients)
        if apart:
            for place, (name, gradient) in enumerate(gradients.items(), 1):
                yield Pullback(name, x_hat, gradient, last=place == len(gradients))
        elif gradients:
            # Both gradients are added at x_hat and carried back through the student once (Eq. 16).
            yield Pullback("+".join(gradients), x_hat, torch.stack(list(gradients.values())).sum(0))

    def _vsd_gradient(self, draws: Draws, condition: Condition) -> Tensor:
        """The gradient of L_VSD at x_hat (Eq. 12-13)."""
        assert self.last is not None
        o, schedule = self.objective, self.teacher.schedule
        x_hat = self.last.x_hat.clone().requires_grad_()
        with torch.no_grad():
            t = schedule.uniform(o.place(draws.uniform("vsd time"), *o.vsd_range, self.progress))
            x_t = diffuse(self.last.x_hat, draws.normal("vsd noise", self.latent_shape), t, schedule)
            x0_real = self._guided(condition, len(x_t), o.vsd_guidance_scale)(x_t, t)
            x0_fake = self.fake(x_t, t, condition)
            weight = vsd_weight(x_hat, x0_real, t, schedule, o.vsd_weighting)
        loss = vsd(x_hat, x0_real, x0_fake, weight).mean()
        self.logged["loss/vsd"] = float(loss.detach())
        return torch.autograd.grad(loss, x_hat)[0]

    def _guided(self, condition: Condition, count: int, scale: float) -> DenoiseFunction:
        """The guided teacher; without guidance there is no other half, and data may have no prompt for it."""
        return self.teacher.given(condition, None if scale == 1 else self.null(count), scale)

    def _fine_tune_gradient(self, condition: Condition) -> Tensor:
        """The gradient of L_FT at x_hat (Eq. 15); the latent reward model is only looked through."""
        assert self.last is not None
        x_hat = self.last.x_hat.clone().requires_grad_()
        loss = self._fine_tune_loss(x_hat, condition)
        return torch.autograd.grad(loss, x_hat)[0]

    def _balanced(self, gradient: Tensor, reference: Tensor | None) -> Tensor:
        """The reward's gradient, no larger than `balance` times the reference, sample by sample."""
        if self.objective.balance is None or reference is None:
            return gradient
        most = self.objective.balance * reference.flatten(1).norm(dim=1)
        size = gradient.flatten(1).norm(dim=1)
        return gradient * expand_like((most / size.clamp(min=1e-12)).clamp(max=1), gradient)

    def _fine_tune_loss(self, x_hat: Tensor, condition: Condition) -> Tensor:
        assert self.latent_reward is not None
        reward = self.latent_reward.predict(x_hat, condition)
        self.logged["reward/predicted"] = float(reward.detach().mean())
        unit = self.latent_reward.statistics.sd if self.objective.ft_unit == "sd" else 1.0
        loss = fine_tune(reward).mean() / unit
        self.logged["loss/ft"] = float(loss.detach())
        return loss

    def _consistency_loss(self, draws: Draws, condition: Condition, x_0: Tensor | None) -> Tensor:
        """L_CD (Eq. 6-7), [B]."""
        if x_0 is None:
            raise ValueError("beta_cd > 0 needs clips, and there are only prompts; set beta_cd=0 or give clips")
        o, schedule = self.objective, self.teacher.schedule

        def f_of(denoiser: Denoiser) -> Callable[[Tensor, Tensor], Tensor]:
            return lambda x, t: consistency_function(x, denoiser(x, t, condition), schedule.thousandths(t))

        with torch.no_grad():
            grid = schedule.grid(o.cd_grid).to(x_0.device)
            start = draws.integers("cd time", o.cd_grid)  # line 9: uniformly sample t_n
            t = grid[start]
            x_t = diffuse(x_0, draws.normal("cd noise", self.latent_shape), t, schedule)
            guided = self._guided(condition, len(x_0), o.cd_guidance_scale)
            reached = walk(guided, x_t, start, grid, o.cd_m, schedule)
            with self.averaged() if o.cd_target == "ema" else nullcontext():
                target_denoiser = self.teacher if o.cd_target == "teacher" else self.student
                target = consistency_target(f_of(target_denoiser), reached, schedule)
        return consistency(f_of(self.student)(x_t, t), target, o.cd_distance)

    def _log_gradients(self, gradients: dict[str, Tensor]) -> None:
        """Sizes at x_hat, in the unit of one sample's gradient, and the cosine between VSD and FT."""
        for name, gradient in gradients.items():
            self.logged[f"grad_norm/x_hat/{name}"] = float(gradient.norm()) * math.sqrt(len(gradient))
        if len(gradients) == 2:
            vsd_gradient, ft_gradient = (g.flatten() for g in gradients.values())
            cosine = torch.nn.functional.cosine_similarity(vsd_gradient, ft_gradient, dim=0)
            self.logged["cosine/x_hat/vsd_ft"] = float(cosine)

    # Lines 12-14: update the fake score model

    def fresh_sample(self, draws: Draws, condition: Condition, x_0: Tensor | None) -> Sample:
        """A new sample of the student without gradient, for the fake score's further updates."""
        with torch.no_grad():
            sampler, k, x = self._generator_input(draws, x_0, condition)
            return Sample(sampler.generate(self._student(condition), x, k), condition)

    def fake_loss(self, draws: Draws, sample: Sample) -> Tensor:
        """The diffusion loss of the fake score on the student's sample (Eq. 4), [B]."""
        schedule = self.fake.schedule
        # Over all of T (Eq. 4), but where VSD comes to ask more often, there more often.
        t = schedule.uniform(self.objective.place(draws.uniform("fake time"), 0.0, 1.0, self.progress))
        eps = draws.normal("fake noise", self.latent_shape)
        x_t = diffuse(sample.x_hat, eps, t, schedule)
        output = self.fake.output(x_t, t, sample.condition)
        return score_matching(
            output, sample.x_hat, eps, x_t, t, self.fake.prediction, schedule, self.objective.fake_loss
        )

    # Lines 18-19: update the generator with latent reward fine-tuning, apart from distillation

    def fine_tune_terms(self, draws: Draws, condition: Condition, x_0: Tensor | None) -> Iterator[Pullback]:
        """The student's reward gradient through a forward of its own (ft.update=separate)."""
        sampler, k, x = self._generator_input(draws, x_0, condition)
        x_hat = sampler.generate(self._student(condition), x, k)
        loss = self._fine_tune_loss(x_hat, condition)
        yield Pullback("ft", loss, torch.full_like(loss, self.objective.beta_ft))
