"""The latent reward model's turn: it is fitted to the pixel reward (Algorithm 1, lines 15-17)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from dollar.diffusion.draws import Draws
from dollar.methods.ingredients import Ingredients
from dollar.methods.reward_meter import RewardMeter
from dollar.methods.student import Drawn, StudentUpdate
from dollar.models.denoiser import Condition
from dollar.parallel.checkpoint import State
from dollar.surrogate.climb import climb
from dollar.surrogate.latent_reward import LatentReward
from dollar.surrogate.observations import MISMATCH
from dollar.training.turn import Moment, NoUpdate, Pullback, Scalars

CLIMBED = 2  # clips of a process on which a small step up the gradient is tried
SHARE = 0.01  # of a clip's norm


class ToScore(NamedTuple):
    """Prompts and clip keys of real clips, of generated ones (None), and of real ones under captions of others."""

    prompts: list[str]
    keys: list[tuple[int, int] | None]


def scored_clips(clips: int, batch: int, processes: int) -> int:
    """How many clips of a batch are scored where `clips` are wanted: at most all, and as many by each process."""
    return min(-(-clips // processes) * processes, batch)


class SurrogateFit:
    """Observes the pixel reward of real and generated clips and fits the latent reward model to all it remembers.

    clips: generated clips a cycle, over all processes, that are scored (see `scored_clips`); updates: a cycle;
    mismatched: whether real clips under captions of others are scored, too; turn: the number of a cycle's turn;
    compared: cycles between looks at how well it follows, 0 for none.
    """

    def __init__(
        self,
        run: Ingredients,
        student: StudentUpdate,
        scalars: Scalars,
        meter: RewardMeter,
        turn: Callable[[int], int],
        clips: int = 4,
        updates: int = 8,
        mismatched: bool = False,
        compared: int = 0,
    ) -> None:
        for key, value in (("clips", clips), ("updates", updates)):
            if value < 1:
                raise ValueError(f"lrm.{key} is {value}; it must be at least 1")
        self.run, self.student, self.scalars, self.meter, self.turn = run, student, scalars, meter, turn
        self.clips = scored_clips(clips, run.batch, run.world.size)
        self.updates, self.mismatched, self.compared = updates, mismatched, compared
        self._observed = False
        self._rises: list[list[float]] = []  # predicted and true, since they were last read

    @property
    def surrogate(self) -> LatentReward:
        assert self.run.surrogate is not None
        return self.run.surrogate

    def draws(self, turn: int) -> Draws:
        """The random numbers of the samples that are scored: the first `clips` of the turn's batch."""
        return self.run.draws(turn, self.clips)

    def pairs(self, draws: Draws) -> ToScore:
        """What is scored in a turn; prompts alone have no real clips."""
        own = list(draws.indices)
        batch, data = self.run.data.batch(own, latents=False), self.run.data
        if not data.has_latents:
            return ToScore(batch.prompts, [None] * len(own))
        prompts: list[str] = [*batch.prompts, *batch.prompts]
        keys: list[tuple[int, int] | None] = [*batch.keys, *[None] * len(own)]
        if self.mismatched:
            # A real clip always has the same wrong caption, so each such pair is decoded and scored once.
            prompts += [data.captions[(clip + MISMATCH) % len(data.captions)] for clip, _ in batch.keys]
            keys += batch.keys
        return ToScore(prompts, keys)

    def begin(self, cycle: int) -> NoUpdate | None:
        """Score x and x_hat (line 15) and remember the rewards; no update where no clip has one."""
        draws = self.draws(self.turn(cycle))
        n, drawn = len(draws.indices), self.student.drawn
        generated = torch.cat([d.sample.x_hat for d in drawn])[:n]
        real = self._real(draws) if self.run.data.has_latents else generated[:0]
        prompts, keys = self.pairs(draws)  # after the clips, for a broken one's stand-in has another caption
        mismatched = real if self.mismatched else real[:0]
        observed = self.surrogate.observe(draws.turn, torch.cat([real, generated, mismatched]), prompts, keys)
        self._observed = self.surrogate.remember(observed)
        self.meter.see(cycle, self.surrogate.gather(observed.reward), self.scalars)
        data, true, _ = observed.reward.split([len(real), n, len(mismatched)])
        self._log_rewards(data, true, generated, drawn)
        return None if self._observed else NoUpdate(self.meter.trouble)

    def _real(self, draws: Draws) -> Tensor:
        latents = self.run.data.batch(draws.indices).latents
        assert latents is not None
        return latents.to(self.run.world.device)

    def _log_rewards(self, data: Tensor, true: Tensor, generated: Tensor, drawn: list[Drawn]) -> None:
        condition = Condition.joined([d.condition for d in drawn]).first(len(generated))
        with torch.no_grad():
            predicted = self.surrogate.predict(generated, condition)
        if len(data):
            self.scalars["reward/data"] = float(data.nanmean())
        self.scalars |= {
            "reward/true": float(true.nanmean()),
            "reward/predicted_of_true": float(predicted.mean()),
            "reward/error": float((predicted - true).abs().nanmean()),
            "reward/unusable": float(self.surrogate.bad),
        }

    def losses(self, when: Moment) -> Iterator[Pullback]:
        """The branches of one update of the fit (line 16)."""
        yield from fit_losses(
            self.surrogate, self.draws(self.turn(when.cycle)), f"lrm {when.update}", self.run.micro_batch, self.scalars
        )

    def stepped(self) -> None:
        """Count an update; one that was skipped warms nothing."""
        self.surrogate.updates += 1

    def end(self, cycle: int) -> None:
        """End the updates: set the level of a model of pairs, and now and then measure how well it follows."""
        if not self._observed:
            return
        self.surrogate.level()
        if self.compared > 0 and cycle % self.compared == 0:
            agreement = self.surrogate.follow()
            self.scalars["reward/rank_correlation"] = agreement.rank_correlation
            self.scalars["reward/pairwise"] = agreement.pairwise
            self._log_climb(cycle)

    def _log_climb(self, cycle: int) -> None:
        """What a small step up the gradient brings to the newest generated clips, as predicted and in truth."""
        newest = self.surrogate.past[-1]
        generated = [i for i, key in enumerate(self.pairs(self.draws(newest.turn)).keys) if key is None][:CLIMBED]
        draws = self.run.draws(newest.turn, self.clips)
        few = replace(draws, indices=draws.indices[: len(generated)])
        prompts = [newest.prompts[i] for i in generated]
        x, known = newest.latents[generated], newest.reward[generated]
        (found,) = climb(self.surrogate, x, prompts, few, known, [SHARE], self._seen)
        own = torch.tensor([[found.predicted, found.true, found.cosine]], device=x.device)
        predicted, true, cosine = self.surrogate.gather(own).nanmean(0).tolist()  # a process's clips may have no reward
        if true != true:
            return
        self.scalars |= {"reward/rise_predicted": predicted, "reward/rise_true": true}
        self._rises.append([predicted, true])
        if cosine == cosine:
            self.scalars["reward/rise_cosine"] = cosine

    def _seen(self, x: Tensor, condition: Condition, draws: Draws) -> Tensor:
        """What the term that follows the model looks at of clips, for a step up the gradient that it follows."""
        run = self.run
        term: Any = next((term for term in run.objective.terms.values() if hasattr(term, "seen")), None)
        if term is None:
            return x
        roles = {name: role.denoiser.given(condition) for name, role in run.roles.items()}
        seen: Tensor = term.seen(x, run.teacher.given(condition), roles.get("fake"), draws, run.teacher.schedule)
        return seen

    def rises(self) -> dict[str, float]:
        """The means of the rises tried since the last call, as scores of a validation; none where none was."""
        if not self._rises:
            return {}
        predicted, true = torch.tensor(self._rises, dtype=torch.float64).mean(0).tolist()
        self._rises = []
        return {"rise_predicted": predicted, "rise_true": true}

    def state(self) -> State:
        tensors, plain = self.surrogate.state()
        return State(tensors, {**plain, "rises": self._rises})

    def load(self, state: State) -> None:
        self._rises = state.plain.get("rises", [])  # they came later
        world = self.run.world
        rows = {len(t) for name, t in state.tensors.items() if name.endswith("/reward")}
        mine = len(self.pairs(self.draws(0)).prompts) * world.size
        if rows - {mine}:
            raise ValueError(
                f"the latent reward model remembers {max(rows)} scored clips a cycle, and on {world.size} process"
                f"{'es' if world.size > 1 else ''} it would score {mine}, for each scores as many as the others; go on "
                "with as many processes as before"
            )
        own = slice(world.rank, None, world.size)
        self.surrogate.load(state, lambda turn: self.pairs(self.draws(turn)).prompts, own)


class Fitted(Protocol):
    """What is fitted to remembered clips."""

    def loss(self, draws: Draws, purpose: str, first: int = 0, samples: int | None = None) -> Tensor:
        """[B] for the places of a micro-batch that begins at `first` of this process's `samples`."""
        ...


def fit_losses(
    fitted: Fitted, draws: Draws, purpose: str, micro_batch: int | None, scalars: Scalars, name: str = "lrm"
) -> Iterator[Pullback]:
    """The branches of one update of a fit, micro-batch by micro-batch; logs the update's loss."""
    first, samples = 0, len(draws.indices)
    total = 0.0
    for part in draws.split(micro_batch):
        share = len(part.indices) / samples
        loss = fitted.loss(part, purpose, first, samples).mean()
        first += len(part.indices)
        total += float(loss.detach()) * share
        yield Pullback(name, loss, loss.detach().new_full((), share))
    scalars[f"loss/{name}"] = total
