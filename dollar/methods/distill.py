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
from dollar.losses.consistency import consistency, consistency_target
from dollar.losses.latent_reward import fine_tune
from dollar.losses.objective import Objective
from dollar.losses.score_matching import score_matching
from dollar.losses.term import Made, Term, Turn
from dollar.losses.vsd import vsd, vsd_weight
from dollar.models.denoiser import Condition, Denoiser
from dollar.surrogate.latent_reward import LatentReward
from dollar.surrogate.pixel_reward import PixelReward


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
    progress: the fraction of the run that is done, for what changes over it. pixel: the pixel reward, for terms that
    ask it themselves. reward_scale: what every term that leads towards a reward is multiplied by. gather: [B] -> that
    of all processes. silent: turns in a row in which a term got no reward that is a number, from any process; unusable:
    how many of those that terms asked for were none.
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
    pixel: PixelReward | None = None
    reward_scale: float = 1.0
    gather: Callable[[Tensor], Tensor] = lambda values: values
    silent: int = 0
    unusable: int = 0
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
        self,
        draws: Draws,
        prompts: Sequence[str],
        condition: Condition,
        x_0: Tensor | None,
        fine_tune_now: bool,
        apart: bool = False,
    ) -> Iterator[Pullback]:
        """The student's gradients, one branch at a time so that only one branch's activations are held.

        x_0: real latents [B, C, F, h, w], needed by the consistency term and by noised_data; fine_tune_now: whether the
        latent reward model is warm; apart: give VSD and FT one by one, to compare their gradients at the weights.
        """
        o = self.objective
        if o.beta_vsd > 0 or o.beta_ft > 0 or o.sample_terms:
            yield from self._sample_terms(draws, prompts, condition, x_0, fine_tune_now, apart)
        if o.beta_cd > 0:
            loss = self._consistency_loss(draws, condition, x_0).mean()
            self.logged["loss/cd"] = float(loss.detach())
            yield Pullback("cd", loss, torch.full_like(loss, o.beta_cd))
        for name, term in o.rollout_terms.items():
            sampler = self.samplers[draws.shared_integer("step count", len(self.samplers))]
            self.logged[f"loss/{name}"] = 0.0
            for loss in term.losses(self._turn(draws, prompts, condition, sampler)):
                self.logged[f"loss/{name}"] += float(loss.detach().mean())
                yield Pullback(name, loss.mean(), torch.full_like(loss.mean(), self._weight(term)))

    def _sample_terms(
        self,
        draws: Draws,
        prompts: Sequence[str],
        condition: Condition,
        x_0: Tensor | None,
        fine_tune_now: bool,
        apart: bool,
    ) -> Iterator[Pullback]:
        """The terms that look at the student's own sample: VSD, with ft.update=joint FT, and further ones."""
        o = self.objective
        fine_tune_here = fine_tune_now and o.beta_ft > 0 and o.ft_update == "joint"
        sampler, k, x = self._generator_input(draws, x_0, condition)
        with_gradient = o.beta_vsd > 0 or fine_tune_here or bool(o.sample_terms)
        with nullcontext() if with_gradient else torch.no_grad():
            x_hat = sampler.generate(self._student(condition), x, k)
        self.last = Sample(x_hat.detach(), condition)
        gradients = {}
        if o.beta_vsd > 0:
            gradients["vsd"] = o.beta_vsd * self._vsd_gradient(draws, condition)
        if fine_tune_here:
            gradient = o.beta_ft * self._fine_tune_gradient(draws, condition)
            gradients["ft"] = self.reward_scale * self._balanced(gradient, gradients.get("vsd"))
        for name, term in o.sample_terms.items():
            made = Made(x, k, self.last.x_hat.clone().requires_grad_())
            loss = term.loss(self._turn(draws, prompts, condition, sampler), made).mean()
            self.logged[f"loss/{name}"] = float(loss.detach())
            gradient = term.beta * torch.autograd.grad(loss, made.x_hat)[0]
            if term.needs:
                gradient = self.reward_scale * self._balanced(gradient, gradients.get("vsd"))
            gradients[name] = gradient
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

    def _turn(self, draws: Draws, prompts: Sequence[str], condition: Condition, sampler: FewStep) -> Turn:
        """What further terms may ask for."""
        return Turn(
            prompts=prompts,
            sampler=sampler,
            student=self._student(condition),
            teacher=lambda scale: self._guided(condition, len(prompts), scale),
            noise=self._noise(draws),
            reward=lambda latents: self._reward(latents, prompts),
            reward_gradient=lambda latents, frames: self._reward_gradient(latents, prompts, frames),
            gather=self.gather,
        )

    def _pixel(self) -> PixelReward:
        assert self.pixel is not None, "a term that needs a reward is built with one"
        return self.pixel

    def _reward(self, latents: Tensor, prompts: Sequence[str]) -> Tensor:
        """The pixel reward [B] of latents, on the CPU, nan where there is none; counts turns that gave none at all."""
        reward = self._pixel().score(latents, prompts)
        self._count(reward.to(latents.device))
        return reward

    def _reward_gradient(self, latents: Tensor, prompts: Sequence[str], frames: int | None) -> Tensor:
        """The pixel reward [B] with a gradient at the latents, nan where there is none; counted likewise."""
        reward = self._pixel().with_gradient(latents, prompts, frames)
        self._count(reward.detach())
        return reward

    def _count(self, reward: Tensor) -> None:
        usable = self.gather(reward).isfinite()
        self.unusable += int((~usable).sum())
        self.silent = 0 if bool(usable.any()) else self.silent + 1
        self.logged["reward/unusable"] = float(self.unusable)
        self.logged["reward/true"] = float(self.gather(reward)[usable].mean())

    def _weight(self, term: Term) -> float:
        return term.beta * (self.reward_scale if term.needs else 1.0)

    def _fine_tune_gradient(self, draws: Draws, condition: Condition) -> Tensor:
        """The gradient of L_FT at x_hat (Eq. 15); the latent reward model is only looked through."""
        assert self.last is not None
        x_hat = self.last.x_hat.clone().requires_grad_()
        loss = self._fine_tune_loss(draws, x_hat, condition)
        return torch.autograd.grad(loss, x_hat)[0]

    def _balanced(self, gradient: Tensor, reference: Tensor | None) -> Tensor:
        """The reward's gradient, no larger than `balance` times the reference, sample by sample."""
        if self.objective.balance is None or reference is None:
            return gradient
        most = self.objective.balance * reference.flatten(1).norm(dim=1)
        size = gradient.flatten(1).norm(dim=1)
        return gradient * expand_like((most / size.clamp(min=1e-12)).clamp(max=1), gradient)

    def _fine_tune_loss(self, draws: Draws, x_hat: Tensor, condition: Condition) -> Tensor:
        assert self.latent_reward is not None
        reward = self.latent_reward.predict(x_hat, condition, draws, "fine-tuning")
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
        """Sizes at x_hat, in the unit of one sample's gradient, and the cosines between VSD and the others."""
        for name, gradient in gradients.items():
            self.logged[f"grad_norm/x_hat/{name}"] = float(gradient.norm()) * math.sqrt(len(gradient))
            if "vsd" in gradients and name != "vsd":
                cosine = torch.nn.functional.cosine_similarity(gradients["vsd"].flatten(), gradient.flatten(), dim=0)
                self.logged[f"cosine/x_hat/vsd_{name}"] = float(cosine)

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
        loss = self._fine_tune_loss(draws, x_hat, condition)
        yield Pullback("ft", loss, torch.full_like(loss, self.objective.beta_ft * self.reward_scale))
