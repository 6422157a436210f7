"""Training on pairs of clips, of which one is preferred: a method of one turn (V.I.P., Eq. 1-3)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor

from dollar.diffusion.draws import Draws
from dollar.diffusion.schedule import diffuse
from dollar.losses.objective import Objective
from dollar.losses.pairs import Outputs
from dollar.losses.preference import departure, safeguard_share
from dollar.losses.term import check_choice
from dollar.methods.ingredients import Ingredients, MicroBatch
from dollar.models.denoiser import Condition
from dollar.parallel.checkpoint import State
from dollar.training.turn import Moment, Products, Pullback, Scalars, Turn

if TYPE_CHECKING:
    from dollar.data.preferred import PairSamples

SIDES = ("winner", "loser")


class View(NamedTuple):
    """At which times t [B] the pairs of a micro-batch are looked at, under which condition; share: of its samples."""

    draws: Draws
    t: Tensor
    condition: Condition
    share: float


class OnPairs:
    """Updates from pairs: the terms' gradients at the student's outputs for winners and losers, side by side.

    Both clips of a pair are noised to one time, by one noise (`noise` is shared) or each by its own (own). `times` are
    uniform over [0, T), or the few-step student's own (student). The caption is left out of a share `drop_caption` of
    the pairs, for both clips, since a student that is sampled with guidance needs its unconditional half as well. There
    is no guidance in the losses, which are computed in float32.

    The losers are run once without a gradient, for a pair's weight depends on both clips, so that then one side's
    activations are held at a time. The sides' gradients at the weights are kept apart until both are known, for their
    norms and cosine, and for the safeguard.
    gradients_every: cycles between looks at the terms' own gradients, 0 for none.
    """

    def __init__(
        self,
        run: Ingredients,
        drop_caption: float = 0.1,
        times: str = "uniform",
        noise: str = "shared",
        gradients_every: int = 0,
    ) -> None:
        check_choice("preference.times", times, ("uniform", "student"))
        check_choice("preference.noise", noise, ("shared", "own"))
        self.run, self.drop_caption, self.times, self.noise = run, drop_caption, times, noise
        self.gradients_every = gradients_every
        self.reference = run.reference or run.teacher
        self.logged = Scalars()
        self.losers = run.objective.clips_of_a_pair > 1
        self._turn = Turn("student", "student", self._losses, stepped=run.moved, weigh=self._weigh)

    @staticmethod
    def check(objective: Objective) -> None:
        """Raise ValueError where this isn't the method for the terms."""
        if not objective.pair_terms:
            raise ValueError(
                f"this method trains on pairs, and {', '.join(objective.terms)} look at none; give loss=redpo, dpo or "
                "sft, or method=dollar"
            )

    def begin(self, cycle: int, progress: float) -> None:
        self.logged.clear()

    def turns(self, cycle: int) -> Sequence[Turn]:
        return [self._turn]

    def samples(self, cycle: int) -> list[int]:
        return list(self.run.draws(cycle).indices)

    def state(self) -> State:
        return State({}, {})

    def load(self, state: State) -> None:
        """Nothing is kept from one update to the next."""

    # The branches of an update

    def _losses(self, when: Moment) -> Iterator[Pullback]:
        """The sides of each micro-batch; where gradients are looked at, each term's part of a side by itself."""
        apart = self.gradients_every > 0 and when.cycle % self.gradients_every == 0
        for micro in self.run.micro_batches(self.run.draws(when.cycle), latents=True):
            assert micro.x_0 is not None
            view, losers = self._view(micro), None
            loser: Outputs | None = None
            if self.losers:
                losers = cast("PairSamples", self.run.data).losers(micro.draws.indices)
                loser = self._outputs(view, "loser", losers, gradient=False)
            winner = self._outputs(view, "winner", micro.x_0)
            yield from self._pulled(view, "winner", winner, {"loser": loser}, apart)
            winner = winner._replace(student=winner.student.detach())
            self._log(view, winner, loser)
            if losers is not None and loser is not None:
                loser = loser._replace(student=self._student(view, "loser", losers))
                yield from self._pulled(view, "loser", loser, {"winner": winner}, apart)

    def _view(self, micro: MicroBatch) -> View:
        draws = micro.draws
        dropped, condition = draws.uniform("caption") < self.drop_caption, micro.condition
        if bool(dropped.any()):
            condition = condition.replaced(dropped, self.run.null(len(micro.prompts)))
        return View(draws, self._times(draws), condition, micro.share)

    def _times(self, draws: Draws) -> Tensor:
        """The times [B] of the pairs."""
        if self.times == "uniform":
            return self.run.student.schedule.uniform(draws.uniform("pair time"))
        sampler = self.run.sampler(draws)
        return sampler.times.to(draws.device)[draws.integers("pair time", sampler.steps)]

    def _noised(self, view: View, side: str, x_0: Tensor) -> tuple[Tensor, Tensor]:
        """(x_t, eps) of one side's clips, [B, C, F, h, w] each."""
        eps = view.draws.normal("pair noise" if self.noise == "shared" else f"{side} noise", x_0.shape[1:])
        return diffuse(x_0.float(), eps, view.t, self.run.student.schedule), eps

    def _student(self, view: View, side: str, x_0: Tensor) -> Tensor:
        return self.run.student.output(self._noised(view, side, x_0)[0], view.t, view.condition)

    def _outputs(self, view: View, side: str, x_0: Tensor, gradient: bool = True) -> Outputs:
        """What student and reference make of one side's clips."""
        student = self.run.student
        x_t, eps = self._noised(view, side, x_0)
        with torch.no_grad():
            reference = self.reference.output(x_t, view.t, view.condition)
        with nullcontext() if gradient else torch.no_grad():
            output = student.output(x_t, view.t, view.condition)
        return Outputs(output, reference, student.prediction.target(x_0.float(), eps, view.t, student.schedule))

    def _pulled(
        self, view: View, side: str, outputs: Outputs, other: Mapping[str, Outputs | None], apart: bool
    ) -> Iterator[Pullback]:
        """The terms' gradients at one side's outputs, the other side standing still."""
        leaf = outputs._replace(student=outputs.student.detach().requires_grad_())
        sides: Any = {side: leaf, **other}
        gradients: dict[str, Tensor] = {}
        for name, term in self.run.objective.pair_terms.items():
            if side == "loser" and not term.losers:
                continue
            loss = term.pair_loss(sides["winner"], sides["loser"]).mean()
            if side == "winner":
                self.logged.add(f"loss/{name}", float(loss.detach()), view.share)
            gradients[f"{name}_{side}"] = term.beta * view.share * torch.autograd.grad(loss, leaf.student)[0]
        if not apart:
            gradients = {side: torch.stack(list(gradients.values())).sum(0)}
        for place, (name, gradient) in enumerate(gradients.items(), 1):
            yield Pullback(name, outputs.student, gradient, last=place == len(gradients))

    def _log(self, view: View, winner: Outputs, loser: Outputs | None) -> None:
        """What the pairs show, whichever the terms are."""
        found = {"winner_error": winner.excess, "sft": departure(winner.student, winner.reference)}
        if loser is not None:
            found["loser_error"] = loser.excess
        for term in self.run.objective.pair_terms.values():
            found |= term.pair_scalars(winner, loser)
        for name, values in found.items():
            self.logged.add(f"pairs/{name}", float(values.mean()), view.share)

    # How the branches make an update

    def _weigh(self, products: Products) -> Mapping[str, float]:
        """Log the sides' gradients, and hold the losers' to the safeguard where a term asks for it."""
        names = list(dict.fromkeys(name for pair in products for name in pair))
        sums = {(a, b): _product(products, names, a, b) for a in SIDES for b in SIDES}
        for name in names if not set(names) <= set(SIDES) else ():  # each term by itself
            self.logged[f"grad_norm/term/{name}"] = products[name, name] ** 0.5
        self.logged["grad_norm/winner"] = sums["winner", "winner"] ** 0.5
        share = 1.0
        if self.losers:
            # What is asked of the losers is that their errors grow, so their gradient is minus that of the errors.
            both, norms = -sums["winner", "loser"], sums["winner", "winner"] * sums["loser", "loser"]
            share = safeguard_share(sums["winner", "winner"], both)
            self.logged["grad_norm/loser"] = sums["loser", "loser"] ** 0.5
            self.logged["cosine/winner_loser"] = both / max(math.sqrt(norms), 1e-30) if norms >= 0 else math.nan
            self.logged["safeguard/share"] = share
        guarded = any(term.safeguard for term in self.run.objective.pair_terms.values())
        return {name: share if guarded and name.endswith("loser") else 1.0 for name in names}


def _product(products: Products, names: Sequence[str], a: str, b: str) -> float:
    """The inner product of the gradients of two sides, which may be in several parts."""
    ones, others = ([name for name in names if name.endswith(side)] for side in (a, b))
    return sum(products[(x, y) if (x, y) in products else (y, x)] for x in ones for y in others)
