"""The student's turn: one update from all terms of the objective (Algorithm 1, lines 7-11)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dollar.diffusion.draws import Draws
from dollar.diffusion.schedule import diffuse
from dollar.diffusion.timesteps import FewStep
from dollar.losses.term import Context, Needs, Sample, is_relative, is_used
from dollar.methods.ingredients import Ingredients, MicroBatch
from dollar.methods.reward_meter import RewardMeter
from dollar.methods.sizes import Sizes
from dollar.models.denoiser import Condition
from dollar.training.turn import Pullback, Scalars


class Start(NamedTuple):
    """Where the student's single-step prediction starts: x [B, C, F, h, w] at the k-th time of a sampler."""

    sampler: FewStep
    k: int
    x: Tensor


class Drawn(NamedTuple):
    """A sample of a micro-batch, without a gradient, with its condition and what terms may use of it."""

    sample: Sample
    condition: Condition
    context: Context


class StudentUpdate:
    """The student's samples and the gradients of its terms. input: `simulate` or `noised_data`.

    drawn: the samples of the last update, one for each micro-batch. ready: whether what a term needs may be followed.
    """

    def __init__(
        self, run: Ingredients, input: str, scalars: Scalars, meter: RewardMeter, ready: Callable[[Needs], bool]
    ) -> None:
        self.run, self.input, self.scalars, self.meter, self.ready = run, input, scalars, meter, ready
        self.cycle, self.progress = 0, 0.0
        self.sizes = Sizes(run.world.gather)
        self.drawn: list[Drawn] = []

    @property
    def needs_clips(self) -> bool:
        """Whether an update reads real latents."""
        o = self.run.objective
        # A term with an update of its own reads them there; one with a network reads them after this update, too.
        here = [term for name, term in o.terms.items() if name not in o.apart or name in o.learning_terms]
        return self.input == "noised_data" or any(term.needs.clips for term in here)

    @property
    def makes_sample(self) -> bool:
        """Whether any term needs a sample of the student; one is also drawn for other updates alone."""
        o = self.run.objective
        return bool(o.sample_terms or o.learning_terms or o.needs.surrogate or o.needs.decoder or o.needs.fake)

    # Line 8: x_hat <- G_theta(c, eps)

    def start(self, micro: MicroBatch) -> Start:
        """Draw how deep the student is rolled out, the same on every process, and roll it out to there."""
        sampler, k = self.place(micro.draws)
        noise = self._noise(micro)
        if self.input == "simulate" or k == 0:
            return Start(sampler, k, sampler.rollout(self.run.student.given(micro.condition), noise, until=k))
        if micro.x_0 is None:
            raise ValueError("student.input=noised_data needs clips; use student.input=simulate with prompts alone")
        t = sampler.time(k, micro.x_0)
        return Start(sampler, k, diffuse(micro.x_0, noise(k), t, sampler.schedule))

    def place(self, draws: Draws) -> tuple[FewStep, int]:
        """The sampler of an update, and which of its steps the update starts at."""
        sampler = self.run.sampler(draws)
        return sampler, draws.shared_integer("depth", sampler.steps)

    def _noise(self, micro: MicroBatch) -> Callable[[int], Tensor]:
        return lambda k: micro.draws.normal(f"noise {k}", self.run.latent_shape)

    def draw(self, micro: MicroBatch) -> Drawn:
        """A sample without a gradient."""
        with torch.no_grad():
            sampler, k, x = self.start(micro)
            x_hat = sampler.generate(self.run.student.given(micro.condition), x, k)
        return Drawn(Sample(x, k, x_hat), micro.condition, self.context(micro))

    def context(self, micro: MicroBatch) -> Context:
        """What the terms may use of a micro-batch."""
        run, surrogate, condition = self.run, self.run.surrogate, micro.condition
        optional: dict[str, Any] = {}
        if "fake" in run.roles:
            optional["fake"] = run.roles["fake"].denoiser.given(condition)
        if surrogate is not None:
            optional["predict"] = lambda x, purpose: surrogate.predict(x, condition, micro.draws, purpose)
            optional["reward_sd"] = surrogate.statistics.sd
        if run.pixel is not None:
            optional["reward"] = lambda latents: self.meter.score(latents, micro.prompts)
            optional["reward_gradient"] = lambda latents, n: self.meter.with_gradient(latents, micro.prompts, n)
            if (small := run.decoder) is not None:
                optional["small_reward_gradient"] = lambda latents, n: self.meter.with_gradient(
                    latents, micro.prompts, n, small.decode
                )
        return Context(
            prompts=micro.prompts,
            sampler=self.run.sampler(micro.draws),
            student=run.student.given(condition),
            teacher=lambda scale: run.teacher.given(condition, self._null(scale, len(micro.prompts)), scale),
            noise=self._noise(micro),
            gather=run.world.gather,
            draws=micro.draws,
            schedule=run.teacher.schedule,
            cycle=self.cycle,
            progress=self.progress,
            x_0=micro.x_0,
            averaged=run.averaged,
            log=lambda name, value: self.scalars.add(name, value, micro.share),
            condition=condition,
            **optional,
        )

    def _null(self, scale: float, count: int) -> Condition | None:
        """The unconditional (negative-prompt) condition, where guidance needs it; data may have no prompt for it."""
        return None if scale == 1 else self.run.null(count)

    # Lines 9-11: the gradients of the terms

    def losses(self, draws: Draws, apart: bool) -> Iterator[Pullback]:
        """An update's branches, one by one so that only one branch's activations are held.

        apart: give the gradients of the terms at the sample one by one, to compare them at the weights.
        """
        self.drawn, contexts = [], []
        for micro in self.run.micro_batches(draws, self.needs_clips):
            contexts.append(self.context(micro))
            if self.makes_sample:
                yield from self._at_sample(micro, contexts[-1], apart)
        samples = len(draws.indices)
        for name, term in self.run.objective.rollout_terms.items():
            if not self.ready(term.needs) or not is_used(term, contexts[0].sampler.steps):
                continue
            weight = term.beta * self._scale(term)
            self.scalars.add(f"loss/{name}", 0.0)
            for loss in term.losses(contexts):
                share = len(loss) / samples
                mean = loss.mean()
                self.scalars.add(f"loss/{name}", float(mean.detach()), share)
                yield Pullback(name, mean, torch.full_like(mean, weight * share))

    def _scale(self, term: Any) -> float:
        return self.run.reward_scale() if term.needs.pursues else 1.0

    def _at_sample(self, micro: MicroBatch, context: Context, apart: bool) -> Iterator[Pullback]:
        """The terms that look at the student's own sample."""
        student, objective = self.run.student.given(micro.condition), self.run.objective
        sampler, k, x = self.start(micro)
        joint = objective.sample_terms.items()
        used = {name: t for name, t in joint if self.ready(t.needs) and is_used(t, sampler.steps, k)}
        reference = next((name for name in objective.references if name in used), objective.reference)
        # The reference first, for the others are held to it.
        terms = dict(sorted(used.items(), key=lambda item: item[0] != reference))
        with nullcontext() if terms else torch.no_grad():
            x_hat = sampler.generate(student, x, k)
        sample = Sample(x, k, x_hat.detach())
        self.drawn.append(Drawn(sample, micro.condition, context))
        gradients: dict[str, Tensor] = {}
        for name, term in terms.items():
            leaf = sample._replace(x_hat=sample.x_hat.clone().requires_grad_())
            loss = term.loss(context, leaf).mean()
            self.scalars.add(f"loss/{name}", float(loss.detach()), micro.share)
            gradient = term.beta * self._relative(name, term, torch.autograd.grad(loss, leaf.x_hat)[0], reference)
            if name == reference and any(map(is_relative, objective.terms.values())):
                self.sizes.add(name, gradient)
            if term.needs.pursues:
                gradient = self._scale(term) * objective.balanced(gradient, gradients.get(reference or ""))
            gradients[name] = gradient
        self._log_gradients(gradients, micro.share, reference)
        if micro.share < 1:
            gradients = {name: gradient * micro.share for name, gradient in gradients.items()}
        if apart:
            for place, (name, gradient) in enumerate(gradients.items(), 1):
                yield Pullback(name, x_hat, gradient, last=place == len(gradients))
        elif gradients:
            # All are added at x_hat and carried back through the student once (Eq. 16).
            yield Pullback("+".join(gradients), x_hat, torch.stack(list(gradients.values())).sum(0))

    def _relative(self, name: str, term: Any, gradient: Tensor, reference: str | None) -> Tensor:
        """A term's gradient in its unit, which may be the size of VSD's."""
        if not is_relative(term):
            return gradient
        self.sizes.add(name, gradient)
        return gradient * self.sizes.ratio(reference, name)

    def _log_gradients(self, gradients: dict[str, Tensor], share: float, reference: str | None) -> None:
        """Sizes at x_hat, in the unit of one sample's gradient, and the cosines with the distillation's."""
        for name, gradient in gradients.items():
            size = float(gradient.norm()) * math.sqrt(len(gradient))
            self.scalars.add(f"grad_norm/x_hat/{name}", size, share)
            if reference in gradients and name != reference:
                first = gradients[reference].flatten()
                cosine = torch.nn.functional.cosine_similarity(first, gradient.flatten(), dim=0)
                self.scalars.add(f"cosine/x_hat/{reference}_{name}", float(cosine), share)

    # Lines 18-19: a term with an update of its own

    def losses_apart(self, name: str, term: Any, draws: Draws) -> Iterator[Pullback]:
        """The branches of a term's own update, each through a forward of its own."""
        clips = self.input == "noised_data" or term.needs.clips
        scale = term.beta * self._scale(term)
        for micro in self.run.micro_batches(draws, clips):
            sampler, k, x = self.start(micro)
            x_hat = sampler.generate(self.run.student.given(micro.condition), x, k)
            leaf = Sample(x, k, x_hat.detach().requires_grad_())
            loss = term.loss(self.context(micro), leaf).mean()
            self.scalars.add(f"loss/{name}", float(loss.detach()), micro.share)
            (gradient,) = torch.autograd.grad(loss, leaf.x_hat)
            relative = self._relative(name, term, gradient, self.run.objective.reference)
            yield Pullback(name, x_hat, scale * micro.share * relative)
