"""Algorithm 1 of DOLLAR, as a list of turns: the student, the fake score, the latent reward model, fine-tuning."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from torch import Tensor

from dollar.diffusion.draws import Draws
from dollar.losses.objective import Objective
from dollar.losses.term import Needs, check_choice, has_optimizer, is_used
from dollar.methods.decoder_fit import DecoderFit
from dollar.methods.fake_score import FakeScore
from dollar.methods.ingredients import Ingredients
from dollar.methods.reward_meter import RewardMeter
from dollar.methods.sizes import Sizes
from dollar.methods.student import StudentUpdate
from dollar.methods.surrogate_fit import SurrogateFit
from dollar.parallel.checkpoint import State
from dollar.training.turn import Moment, NoUpdate, Pullback, Scalars, Turn


class Dollar:
    """Algorithm 1; every random number comes from `Draws`, so a turn is a function of (weights, batch, seed, turn).

    fake_updates: of the fake score for each of the student's; fake_warmup: cycles at the start without one of the
    student's; student_input: where the student's prediction starts, `simulate` (its own earlier steps) or
    `noised_data`; fake_loss: `native` or `cv`; lrm_clips, lrm_updates, lrm_mismatched: as in `SurrogateFit`;
    lrm_first: whether it is fitted before the student's update of a cycle, to the very samples that this will have;
    lrm_warmup: its updates before the student first follows it, and a small decoder's; decoder_updates: of that in a
    cycle; gradients_every: cycles between comparisons of the terms' gradients, 0 for none; max_silent: cycles without
    any reward after which the run ends.
    """

    def __init__(
        self,
        run: Ingredients,
        fake_updates: int = 5,
        fake_warmup: int = 0,
        student_input: str = "simulate",
        fake_loss: str = "native",
        lrm_clips: int = 4,
        lrm_updates: int = 8,
        lrm_warmup: int = 80,
        lrm_mismatched: bool = False,
        lrm_first: bool = False,
        decoder_updates: int = 8,
        gradients_every: int = 0,
        max_silent: int = 20,
    ) -> None:
        least = {"fake_updates": (fake_updates, 1), "fake_warmup": (fake_warmup, 0), "lrm.warmup": (lrm_warmup, 0)}
        for key, (value, smallest) in (least | {"log.gradients_every": (gradients_every, 0)}).items():
            if value < smallest:
                raise ValueError(f"{key} is {value}; it must be at least {smallest}")
        check_choice("student.input", student_input, ("simulate", "noised_data"))
        self.run, self.fake_updates, self.fake_warmup = run, fake_updates, fake_warmup
        self.lrm_first = lrm_first
        self.lrm_warmup, self.gradients_every, self.max_silent = lrm_warmup, gradients_every, max_silent
        self.logged = Scalars()
        self.meter = RewardMeter(run.pixel, run.world.gather)
        self.student = StudentUpdate(run, student_input, self.logged, self.meter, self.is_ready)
        self.fake = FakeScore(run, self.student, self.draws, self.logged, fake_loss)
        self.fit = SurrogateFit(
            run,
            self.student,
            self.logged,
            self.meter,
            lambda cycle: cycle * fake_updates,
            lrm_clips,
            lrm_updates,
            lrm_mismatched,
            gradients_every,
        )
        alone = run.surrogate is None or not run.objective.needs.surrogate
        self.small = DecoderFit(run, self.student, self.logged, self.fit.turn, self.fit.clips, decoder_updates, alone)

    @staticmethod
    def check(objective: Objective) -> None:
        """Raise ValueError where this isn't the method for the terms."""
        if objective.pair_terms:
            raise ValueError(
                f"{' and '.join(objective.pair_terms)} look at pairs of clips, and method=dollar runs none; use "
                "method=preference, as loss=redpo does"
            )

    def begin(self, cycle: int, progress: float) -> None:
        self.logged.clear()
        self.student.cycle, self.student.progress = cycle, progress

    def turns(self, cycle: int) -> Sequence[Turn]:
        run, o, compared = self.run, self.run.objective, self.gradients_every
        turns = [
            Turn(  # lines 7-11
                "student",
                "student",
                self._student_losses,
                begin=self._begin_student,
                end=self._end_student,
                stepped=run.moved,
                compared=compared,
            )
        ]
        if o.needs.fake:  # lines 12-14
            turns.append(Turn("fake", "fake", self.fake.losses, updates=self.fake_updates, end=self.fake.end))
        turns += [
            Turn(name, name, partial(self._term_losses, term), begin=partial(self._when_sampled, term))
            for name, term in o.learning_terms.items()
        ]
        turns = [*self._fits(), *turns] if self.lrm_first and o.needs.surrogate else [*turns, *self._fits()]
        turns += [
            Turn(  # lines 18-19
                name,
                f"student_{name}" if has_optimizer(term) else "student",
                partial(self._losses_apart, name, term),
                every=term.every,
                begin=partial(self._begin_apart, term),
                end=lambda cycle: self.student.sizes.close(),
                stepped=run.moved,
                logged=f"student_{name}",
                compared=compared,
            )
            for name, term in o.apart.items()
        ]
        return turns

    def _fits(self) -> list[Turn]:
        """The turns of the latent reward model and of the small decoder (lines 15-17)."""
        run, fit, small = self.run, self.fit, self.small
        begin = self._begin_fit_first if self.lrm_first else fit.begin
        found = []
        if run.objective.needs.surrogate and run.fitted:
            found.append(
                Turn("lrm", "lrm", fit.losses, fit.updates, begin=begin, end=self._end_fit, stepped=fit.stepped)
            )
        if run.decoder is not None and run.fitted and small.updates > 0:
            found.append(
                Turn("decoder", "decoder", small.losses, small.updates, begin=small.begin, stepped=small.stepped)
            )
        return found

    def draws(self, cycle: int, update: int = 0) -> Draws:
        """The random numbers of an update; a cycle has as many turns as the fake score has updates."""
        return self.run.draws(cycle * self.fake_updates + update)

    def is_warm(self) -> bool:
        """Whether the student may follow the latent reward model; one that is only read is warm from the start.

        One whose rewards are all alike has nothing to lead to: its gradient is that of its first weights.
        """
        surrogate = self.run.surrogate
        if surrogate is None or not surrogate.statistics.varied:
            return False
        fitted = not self.run.fitted or surrogate.updates >= self.lrm_warmup
        return fitted and self._decoder_is_warm()

    def is_ready(self, needs: Needs) -> bool:
        """Whether what a term needs is fitted well enough to be followed."""
        return (not needs.surrogate or self.is_warm()) and (not needs.decoder or self._decoder_is_warm())

    def _decoder_is_warm(self) -> bool:
        decoder = self.run.decoder
        return decoder is None or not self.run.fitted or decoder.updates >= self.lrm_warmup

    def samples(self, cycle: int) -> list[int]:
        if not self.run.data.has_latents:
            return []
        turns: list[Draws] = []
        if self.student.needs_clips or any(term.needs.clips for term in self.run.objective.apart.values()):
            turns.append(self.draws(cycle))
        if self.run.objective.needs.fake and self.student.input == "noised_data":
            turns += [self.draws(cycle, update) for update in range(1, self.fake_updates)]
        if self.run.objective.needs.surrogate and self.run.fitted:
            turns.append(self.fit.draws(cycle * self.fake_updates))
        return [sample for draws in turns for sample in draws.indices]

    # The turns' parts

    def _begin_student(self, cycle: int) -> NoUpdate | None:
        if cycle >= self.fake_warmup:
            return None
        micro_batches = self.run.micro_batches(self.draws(cycle), self.student.needs_clips)
        self.student.drawn = [self.student.draw(micro) for micro in micro_batches]
        return NoUpdate()

    def _student_losses(self, when: Moment) -> Iterator[Pullback]:
        compares = self.gradients_every > 0 and when.cycle % self.gradients_every == 0
        return self.student.losses(self.draws(when.cycle), apart=compares)

    def _end_student(self, cycle: int) -> None:
        self.student.sizes.close()
        for term in self.run.objective.following_terms.values():
            term.close(self.run.world.gather)
        self.meter.close(cycle, self.logged, self.max_silent)
        self.meter.note()

    def _when_sampled(self, term: Any, cycle: int) -> NoUpdate | None:
        drawn = self.student.drawn
        learns = drawn and is_used(term, drawn[0].context.sampler.steps, drawn[0].sample.k)
        return None if learns else NoUpdate()

    def _term_losses(self, term: Any, when: Moment) -> Iterator[Pullback]:
        """The update of a term's own network, on the student's samples of this cycle."""
        for drawn in self.student.drawn:
            loss = term.fit(drawn.context, drawn.sample).mean()
            share = len(drawn.sample.x_hat) * self.run.world.size / self.run.batch
            yield Pullback("fit", loss, loss.detach().new_full((), share))

    def _begin_fit_first(self, cycle: int) -> NoUpdate | None:
        """Draw the samples to score, as the student's turn will draw them again."""
        micro_batches = self.run.micro_batches(
            self.fit.draws(self.fit.turn(cycle)), self.student.input == "noised_data"
        )
        self.student.drawn = [self.student.draw(micro) for micro in micro_batches]
        return self.fit.begin(cycle)

    def _end_fit(self, cycle: int) -> None:
        self.fit.end(cycle)
        self.meter.note()

    def _begin_apart(self, term: Any, cycle: int) -> NoUpdate | None:
        sampler, k = self.student.place(self.draws(cycle))
        used = cycle >= self.fake_warmup and self.is_ready(term.needs) and is_used(term, sampler.steps, k)
        return None if used else NoUpdate()

    def _losses_apart(self, name: str, term: Any, when: Moment) -> Iterator[Pullback]:
        return self.student.losses_apart(name, term, self.draws(when.cycle))

    def scores(self) -> dict[str, float]:
        """What small steps up the latent reward's gradient have brought since the last validation."""
        return self.fit.rises()

    def remarks(self, ended: bool = False) -> dict[str, str]:
        """Sentences for the user, by what they are of; ended: at the run's end, with what was counted."""
        surrogate, spread = self.run.surrogate, self.meter.spread
        unusable = self.meter.unusable + (surrogate.bad if surrogate is not None else 0)
        found = {"spread": spread.trouble()}
        if ended and unusable and not spread.clips:
            found["unusable"] = f"none of {unusable} clips got a reward that is a number, so no reward was followed"
        elif ended and unusable:
            found["unusable"] = f"{unusable} of {unusable + spread.clips} clips got no reward and were left out"
        return {name: sentence for name, sentence in found.items() if sentence}

    # What the next cycle depends on

    def state(self) -> State:
        plain: dict[str, Any] = {"silent": self.meter.silent, "unusable": self.meter.unusable}
        plain["sizes"] = self.student.sizes.state()
        plain["spread"] = self.meter.spread.state()
        if following := self.run.objective.following_terms:
            plain["terms"] = {name: term.state() for name, term in following.items()}
        found = self._buffers()
        if self.run.decoder is not None and self.run.fitted:
            tensors, plain["decoder"] = self.small.state()
            found |= {f"decoder/{name}": t for name, t in tensors.items()}
        if self.run.surrogate is None:
            return State(found, plain)
        tensors, surrogate = self.fit.state()
        found |= {f"surrogate/{name}": t for name, t in tensors.items()}
        return State(found, plain | {"surrogate": surrogate})

    def _buffers(self) -> dict[str, Tensor]:
        """The buffers of the terms' networks, such as running statistics; their learners hold the parameters."""
        networks = self.run.networks.items()
        return {f"network {name}/{key}": b for name, network in networks for key, b in network.named_buffers()}

    def load(self, state: State) -> None:
        self.meter.silent, self.meter.unusable = state.plain["silent"], state.plain["unusable"]
        self.student.sizes.load(state.plain.get("sizes", Sizes(self.run.world.gather).state()))  # before there were any
        if "spread" in state.plain:  # it came later
            self.meter.spread.load(state.plain["spread"])
        for name, term in self.run.objective.following_terms.items():
            if name in state.plain.get("terms", {}):  # a term may have come later
                term.load(state.plain["terms"][name])
        for name, buffer in self._buffers().items():
            buffer.copy_(state.tensors[name])
        for name, part in (("surrogate", self.fit), ("decoder", self.small)):
            if name in state.plain:
                prefix = f"{name}/"
                own = {n.removeprefix(prefix): t for n, t in state.tensors.items() if n.startswith(prefix)}
                part.load(State(own, state.plain[name]))
