"""The loop: for each cycle the student's turn, the fake score's turns, the reward's turn; then log, look and save."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dollar.data.latents import Samples, check_identity
from dollar.diffusion.draws import Draws
from dollar.log import ANY_RANK, logger, progress
from dollar.methods.distill import Distiller, Sample
from dollar.models.denoiser import Condition
from dollar.parallel import checkpoint
from dollar.parallel.shard import assign, own, whole
from dollar.parallel.world import World, peak_memory
from dollar.surrogate.latent_reward import Observation
from dollar.surrogate.observations import MISMATCH
from dollar.training.average import Ema
from dollar.training.log import Log
from dollar.training.lr_schedule import falling
from dollar.training.monitors.guard import Guard

# cycle -> (scalars, higher is better for each that keep_best may name)
Validate = Callable[[int], dict[str, float]]


@dataclass
class Plan:
    """How long and how often; conf/train.yaml explains each key."""

    cycles: int
    batch: int
    seed: int
    fake_updates: int
    fake_warmup: int
    ft_accumulate: int
    lrm_clips: int
    lrm_warmup: int
    lrm_updates: int
    lrm_mismatched: bool
    clip_gradient: float
    decay_from: float
    save_every: int
    keep: int
    validate_every: int
    gradients_every: int
    keep_best: str | None
    patience: int | None = None
    validate_first: bool = False
    max_skipped: int = 20  # updates in a row that may be skipped before the run ends

    def __post_init__(self) -> None:
        least = dict.fromkeys(("cycles", "batch", "fake_updates", "ft_accumulate", "lrm_clips", "lrm_updates"), 1)
        least |= {"save_every": 1, "keep": 1, "seed": 0, "fake_warmup": 0, "lrm_warmup": 0, "gradients_every": 0}
        for name, smallest in least.items():
            if getattr(self, name) < smallest:
                key = name.replace("ft_", "ft.").replace("lrm_", "lrm.").replace("gradients", "log.gradients")
                raise ValueError(f"{key} is {getattr(self, name)}; it must be at least {smallest}")
        if self.patience is not None and (self.patience < 1 or self.keep_best is None):
            raise ValueError(
                f"patience is {self.patience} and keep_best {self.keep_best!r}; it counts validations (1 or more) "
                "without a better score of keep_best, so give both, or patience=null"
            )
        if self.fake_warmup >= self.cycles:
            raise ValueError(
                f"fake_warmup is {self.fake_warmup} of cycles={self.cycles}, so the student would never be updated"
            )
        if self.clip_gradient <= 0:
            raise ValueError(f"clip_gradient is {self.clip_gradient}; it must be positive, or nothing is learned")
        if not 0 <= self.decay_from <= 1:
            raise ValueError(f"decay_from is {self.decay_from}; it is a fraction of the cycles, 1 for rates that stay")


@dataclass
class Learner:
    """One trained network with its optimizer, and how often its updates were skipped."""

    name: str
    network: nn.Module
    optimizer: torch.optim.Optimizer
    shared: bool = False  # held whole by every process, so gradients are averaged here
    skipped: int = 0
    in_a_row: int = 0

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def named(self) -> dict[str, nn.Parameter]:
        """The trained parameters by name."""
        return {n: p for n, p in self.network.named_parameters() if p.requires_grad}

    def state(self) -> dict[str, Tensor]:
        """Trained weights and moments by name."""
        names = {id(p): n for n, p in self.named().items()}
        found: dict[str, Tensor] = {f"{self.name}/{n}": p for n, p in self.named().items()}
        for p, moments in self.optimizer.state.items():
            found |= {f"{self.name}.optim/{names[id(p)]}/{key}": torch.as_tensor(v) for key, v in moments.items()}
        return found

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor]) -> None:
        """Take up what `state` gave, on any number of processes."""
        for n, p in self.named().items():
            assign(p, tensors[f"{self.name}/{n}"])
            prefix = f"{self.name}.optim/{n}/"
            for full, value in ((k, v) for k, v in tensors.items() if k.startswith(prefix)):
                key = full.removeprefix(prefix)
                if key == "step":
                    self.optimizer.state[p][key] = value.clone()
                else:
                    self.optimizer.state[p][key] = torch.zeros_like(p)
                    assign(self.optimizer.state[p][key], value)


def _gradients(learner: Learner) -> list[Tensor]:
    """A copy of this process's share of the gradients as they stand, zeros where there is none yet."""
    return [own(torch.zeros_like(p) if p.grad is None else p.grad).clone() for p in learner.parameters]


@dataclass
class Trainer:
    """Everything that a run holds; `train` runs it to its last cycle or until it is told to stop.

    learners: `student`, and where their terms are on `fake` and `lrm`. validate: called on the averaged student.
    config: what made this run, kept with every checkpoint. ended: why it ended before its last cycle, or "".
    """

    plan: Plan
    distiller: Distiller
    learners: dict[str, Learner]
    ema: Ema
    data: Samples
    text: Callable[[Sequence[str]], Condition]
    world: World
    folder: Path
    log: Log
    validate: Validate | None = None
    config: dict[str, Any] = field(default_factory=dict)
    guard: Guard = field(default_factory=Guard)
    cycle: int = 0
    lrm_count: int = 0
    ended: str = ""
    best: dict[str, float] = field(default_factory=dict)
    stopping: bool = False
    _ft_gradients: list[Tensor] = field(default_factory=list)
    _ft_held: int = 0
    _noted: bool = False

    def train(self) -> bool:
        """Run the remaining cycles; True when nothing remains to be done, False when asked to stop before."""
        if self.ended:
            return True
        with self._stop_on_signal():
            if self.cycle == 0 and self.validate is not None and (self.plan.validate_first or self.guard.active):
                self._validate()  # what was there before any training
            bar = progress(range(self.cycle, self.plan.cycles), "training", active=self.world.is_main)
            for cycle in bar:
                started, busy = time.perf_counter(), time.process_time()
                scalars = self.run_cycle(cycle)
                self.cycle = cycle + 1
                self._note_trouble()
                scalars["time/cycle"] = time.perf_counter() - started
                if self.world.device.type == "cpu":  # of all threads; unlike the clock's, the same beside other work
                    scalars["time/processor"] = time.process_time() - busy
                self._report(scalars)
                if self.validate is not None and self._due(self.plan.validate_every):
                    self._validate()
                stop = self.world.any(self.stopping)
                if stop or self.ended or self._due(self.plan.save_every):
                    self.save()
                if self.ended:
                    return True
                if stop and self.cycle < self.plan.cycles:
                    return False
        return True

    def run_cycle(self, cycle: int) -> dict[str, float]:
        """One cycle of Algorithm 1; returns what it measured."""
        self.distiller.logged = {}
        self._set_rates(cycle)
        self.distiller.progress = cycle / self.plan.cycles
        self.distiller.reward_scale = self.guard.scale
        self.data.ahead([*self._latents_of(cycle), *self._latents_of(cycle + 1)])
        times = {}
        start = time.perf_counter()
        self._student_turn(cycle)  # lines 7-11
        times["time/student"], start = time.perf_counter() - start, time.perf_counter()
        if "fake" in self.learners:
            self._fake_turns(cycle)  # lines 12-14
            times["time/fake"], start = time.perf_counter() - start, time.perf_counter()
        if self.distiller.latent_reward is not None:
            if "lrm" in self.learners:
                self._reward_turn(cycle)  # lines 15-17
            self._fine_tune_turn(cycle)  # lines 18-19
            times["time/lrm"] = time.perf_counter() - start
        skipped = {f"skipped/{name}": float(learner.skipped) for name, learner in self.learners.items()}
        return self.world.mean(self.distiller.logged) | times | skipped

    def _set_rates(self, cycle: int) -> None:
        """Let the rates of student and fake score fall together; the latent reward model follows to the end."""
        share = falling(cycle, self.plan.cycles, self.plan.decay_from)
        for learner in (self.learners[name] for name in ("student", "fake") if name in self.learners):
            for group in learner.optimizer.param_groups:
                group["lr"] = share * group.setdefault("initial_lr", group["lr"])

    def _draws(self, cycle: int, update: int = 0) -> Draws:
        turn = cycle * self.plan.fake_updates + update
        own = self.world.own(turn * self.plan.batch, self.plan.batch)
        return Draws(self.plan.seed, turn, own, self.world.device)

    def _batch(self, draws: Draws, latents: bool) -> tuple[Any, Any]:
        batch = self.data.batch(draws.indices, latents)
        return batch, self.text(batch.prompts)

    def _latents_of(self, cycle: int) -> list[int]:
        """The samples whose latents this process asks for in a cycle, turn by turn; none after the last cycle."""
        if not self.data.has_latents or cycle >= self.plan.cycles:
            return []
        turns = []
        if self._student_needs_clips:
            turns.append(self._draws(cycle))
        if "fake" in self.learners and self.distiller.objective.student_input == "noised_data":
            turns += [self._draws(cycle, update) for update in range(1, self.plan.fake_updates)]
        if "lrm" in self.learners:
            turns.append(self._reward_draws(cycle * self.plan.fake_updates))
        return [sample for draws in turns for sample in draws.indices]

    @property
    def _student_needs_clips(self) -> bool:
        return self.distiller.objective.beta_cd > 0 or self.distiller.objective.student_input == "noised_data"

    def _student_turn(self, cycle: int) -> None:
        draws = self._draws(cycle)
        batch, condition = self._batch(draws, self._student_needs_clips)
        if cycle < self.plan.fake_warmup:
            self.distiller.last = self.distiller.fresh_sample(draws, condition, batch.latents)
            return
        student = self.learners["student"]
        looking = self.plan.gradients_every > 0 and cycle % self.plan.gradients_every == 0
        seen: dict[str, list[Tensor]] = {}
        prompts, x_0 = batch.prompts, batch.latents
        for term in self.distiller.student_terms(draws, prompts, condition, x_0, self._warm, apart=looking):
            before = _gradients(student) if looking else []
            torch.autograd.backward(term.tensor, term.gradient, retain_graph=not term.last)
            if looking:
                after = _gradients(student)
                added = [a - b for a, b in zip(after, before, strict=True)]
                known = seen.get(term.name)  # a term may come in parts
                seen[term.name] = added if known is None else [a + b for a, b in zip(known, added, strict=True)]
        if seen:
            self._log_terms(seen)
        if any(p.grad is not None for p in student.parameters) and self._step(student):
            self.ema.update()
        if self.distiller.silent >= self.plan.max_skipped:
            raise FloatingPointError(self._no_reward(self.distiller.silent))

    @property
    def _warm(self) -> bool:
        """Whether the student may follow the latent reward model; one that is only read is warm from the start."""
        fitted = "lrm" in self.learners
        return self.distiller.latent_reward is not None and (not fitted or self.lrm_count >= self.plan.lrm_warmup)

    def _note_trouble(self) -> None:
        """Say once what the reward's first trouble was; clips without a reward are left out and counted."""
        pixel = self.distiller.pixel
        if pixel is not None and pixel.trouble and not self._noted:
            self._noted = True
            logger.warning(f"note: a clip got no reward and is left out: {pixel.trouble}", extra=ANY_RANK)

    def _no_reward(self, turns: int) -> str:
        pixel = self.distiller.pixel
        trouble = f" (the last time, {pixel.trouble})" if pixel is not None and pixel.trouble else ""
        return f"{turns} cycles in a row gave no reward that is a number{trouble}. Look at the reward by itself"

    def _log_terms(self, seen: dict[str, list[Tensor]]) -> None:
        """Norms of the terms' gradients and the cosines between them, from each process's share of the products."""
        names = list(seen)
        pairs = [(a, b) for i, a in enumerate(names) for b in names[i:]]
        shares = {
            f"{a} {b}": sum(float((x * y).sum()) for x, y in zip(seen[a], seen[b], strict=True)) for a, b in pairs
        }
        products = {pair: share * self.world.size for pair, share in self.world.mean(shares).items()}
        for a, b in pairs:
            if a == b:
                self.distiller.logged[f"grad_norm/term/{a}"] = products[f"{a} {a}"] ** 0.5
            else:
                norms = (products[f"{a} {a}"] * products[f"{b} {b}"]) ** 0.5
                self.distiller.logged[f"cosine/{a}_{b}"] = products[f"{a} {b}"] / max(norms, 1e-30)

    def _fake_turns(self, cycle: int) -> None:
        fake, losses = self.learners["fake"], []
        noised = self.distiller.objective.student_input == "noised_data"
        for update in range(self.plan.fake_updates):
            draws = self._draws(cycle, update)
            if update == 0:
                sample = self.distiller.last  # the student's own sample of this cycle
            else:
                batch, condition = self._batch(draws, latents=noised)
                sample = self.distiller.fresh_sample(draws, condition, batch.latents)
            assert sample is not None
            loss = self.distiller.fake_loss(draws, sample).mean()
            loss.backward()
            losses.append(float(loss.detach()))
            self._step(fake)
        self.distiller.logged["loss/fake"] = sum(losses) / len(losses)

    def _reward_draws(self, turn: int) -> Draws:
        """The random numbers of the samples whose rewards are asked for: the first `lrm.clips` of the turn's batch."""
        return Draws(
            self.plan.seed, turn, self.world.own(turn * self.plan.batch, self.plan.lrm_clips), self.world.device
        )

    def _reward_pairs(self, draws: Draws) -> tuple[list[str], list[tuple[int, int] | None]]:
        """Prompts and clip keys of x, x_hat and (if on) real clips under captions of others, in this order.

        Prompts alone have no x: what there is then is x_hat.
        """
        own = list(draws.indices)
        batch = self.data.batch(own, latents=False)
        if not self.data.has_latents:
            return batch.prompts, [None] * len(own)
        prompts: list[str] = [*batch.prompts, *batch.prompts]
        keys: list[tuple[int, int] | None] = [*batch.keys, *[None] * len(own)]
        if self.plan.lrm_mismatched:
            # A real clip always has the same wrong caption, so each such pair is decoded and scored once.
            captions = self.data.captions
            prompts += [captions[(clip + MISMATCH) % len(captions)] for clip, _ in batch.keys]
            keys += batch.keys
        return prompts, keys

    def _reward_turn(self, cycle: int) -> None:
        """Fit the latent reward model on x and x_hat together (Algorithm 1, line 16)."""
        surrogate, lrm = self.distiller.latent_reward, self.learners["lrm"]
        assert surrogate is not None and self.distiller.last is not None
        draws = self._reward_draws(cycle * self.plan.fake_updates)
        n = len(draws.indices)
        sample = self.distiller.last
        made = sample.x_hat[:n]
        real = self._real(draws) if self.data.has_latents else made[:0]
        prompts, keys = self._reward_pairs(draws)  # after the clips, for a broken one's stand-in has another caption
        mismatched = real if self.plan.lrm_mismatched else real[:0]
        observed = surrogate.observe(draws.turn, torch.cat([real, made, mismatched]), prompts, keys)
        known = surrogate.remember(observed)
        data, true, _ = observed.reward.split([len(real), n, len(mismatched)])
        self._log_rewards(data, true, made, sample)
        if not known:
            self._count(lrm, False, self._no_reward)
            return
        for update in range(self.plan.lrm_updates):
            loss = surrogate.loss(draws, f"lrm {update}").mean()
            loss.backward()
            self.distiller.logged["loss/lrm"] = float(loss.detach())
            self.lrm_count += self._step(lrm)  # an update that was skipped warms nothing
        surrogate.level()
        if self.plan.gradients_every > 0 and cycle % self.plan.gradients_every == 0:
            followed = surrogate.follow()
            self.distiller.logged["reward/rank_correlation"] = followed.rank_correlation
            self.distiller.logged["reward/pairwise"] = followed.pairwise

    def _real(self, draws: Draws) -> Tensor:
        """The latents of real clips of these draws."""
        latents = self.data.batch(draws.indices).latents
        assert latents is not None
        return latents.to(self.world.device)

    def _log_rewards(self, data: Tensor, true: Tensor, made: Tensor, sample: Sample) -> None:
        assert self.distiller.latent_reward is not None
        with torch.no_grad():
            predicted = self.distiller.latent_reward.predict(made, sample.condition.first(len(made)))
        if len(data):
            self.distiller.logged["reward/data"] = float(data.nanmean())
        self.distiller.logged |= {
            "reward/true": float(true.nanmean()),
            "reward/predicted_of_true": float(predicted.mean()),
            "reward/error": float((predicted - true).abs().nanmean()),
            "reward/unusable": float(self.distiller.latent_reward.bad),
        }

    def _fine_tune_turn(self, cycle: int) -> None:
        """The separate update of Algorithm 1, line 19, gathered over `ft.accumulate` cycles."""
        o = self.distiller.objective
        if o.ft_update != "separate" or o.beta_ft == 0 or cycle < self.plan.fake_warmup or not self._warm:
            return
        student = self.learners["student"]
        draws = self._draws(cycle)
        batch, condition = self._batch(draws, o.student_input == "noised_data")
        for term in self.distiller.fine_tune_terms(draws, condition, batch.latents):
            torch.autograd.backward(term.tensor, term.gradient)
        if "lrm" in self.learners:
            self.learners["lrm"].optimizer.zero_grad(set_to_none=True)  # it was only looked through
        gradients = [p.grad for p in student.parameters if p.grad is not None]
        if self.plan.gradients_every > 0 and cycle % self.plan.gradients_every == 0:
            share = {"squares": sum(float(own(g).square().sum()) for g in gradients)}
            self.distiller.logged["grad_norm/term/ft"] = (self.world.mean(share)["squares"] * self.world.size) ** 0.5
        if not self._ft_gradients:
            self._ft_gradients = [torch.zeros_like(g) for g in gradients]
        for held, gradient in zip(self._ft_gradients, gradients, strict=True):
            held.add_(gradient)
        student.optimizer.zero_grad(set_to_none=True)
        self._ft_held += 1
        if self._ft_held == self.plan.ft_accumulate:
            for p, held in zip(student.parameters, self._ft_gradients, strict=True):
                p.grad = held / self._ft_held
            if self._step(student, "student_ft"):
                self.ema.update()
            self._ft_gradients, self._ft_held = [], 0

    def _step(self, learner: Learner, name: str | None = None) -> bool:
        """Clip, check and step; a gradient that is not finite skips the update in every process. True if it stepped.

        name: what the gradient's norm is logged as, where the learner has updates of several kinds.
        """
        if learner.shared:
            self.world.average([p.grad for p in learner.parameters])
        norm = whole(nn.utils.clip_grad_norm_(learner.parameters, self.plan.clip_gradient))
        self.distiller.logged[f"grad_norm/{name or learner.name}"] = float(norm)
        sound = not self.world.any(not bool(torch.isfinite(norm)))
        if sound:
            learner.optimizer.step()
        learner.optimizer.zero_grad(set_to_none=True)
        self._count(
            learner,
            sound,
            lambda times: (
                f"{times} updates of the {learner.name} in a row had gradients that were not finite. Lower "
                f"optim.{learner.name}.lr"
            ),
        )
        return sound

    def _count(self, learner: Learner, sound: bool, trouble: Callable[[int], str]) -> None:
        """Keep count of skipped updates; FloatingPointError, naming the trouble, when too many came in a row."""
        learner.in_a_row = 0 if sound else learner.in_a_row + 1
        learner.skipped += not sound
        if learner.in_a_row >= self.plan.max_skipped:
            raise FloatingPointError(
                f"{trouble(learner.in_a_row)}, or go on from an older checkpoint in {self.folder / 'checkpoints'}"
            )

    def _due(self, every: int) -> bool:
        return every > 0 and (self.cycle % every == 0 or self.cycle == self.plan.cycles)

    def _report(self, scalars: dict[str, float]) -> None:
        scalars["memory/peak_gib"] = peak_memory(self.world.device)
        self.log.scalars(self.cycle, scalars)

    def _validate(self) -> None:
        assert self.validate is not None
        with self.ema.swapped():
            scores = self.world.mean(self.validate(self.cycle))  # one verdict, so that all keep the best or none
            self.log.scalars(self.cycle, {f"validation/{name}": value for name, value in scores.items()})
            self._keep_best(scores)
            self._watch(scores)

    def _keep_best(self, scores: dict[str, float]) -> None:
        """Keep the student of the best score that keep_best names; end the run where none came for long."""
        name = self.plan.keep_best
        if name is None:
            return
        if name not in scores:
            raise ValueError(f"keep_best is {name!r}; validation measures {', '.join(sorted(scores))}")
        if scores[name] > self.best.get(name, float("-inf")):
            self.best = {name: scores[name], "cycle": self.cycle}
            self._save_best()
        elif self.plan.patience is not None:
            checks = (self.cycle - int(self.best.get("cycle", 0))) / self.plan.validate_every
            if checks >= self.plan.patience:
                best = f"no better {name} than {self.best.get(name)} of cycle {self.best.get('cycle')} since"
                self.ended = best if self.best else f"{name} was never a number"

    def _watch(self, scores: dict[str, float]) -> None:
        """Let the guard compare what is pursued, as it is predicted where it is, with what should hold."""
        kinds = ("predicted", "reward", "guard")
        found = {kind: [v for n, v in scores.items() if n.startswith(kind)] for kind in kinds}
        means = {kind: sum(values) / len(values) for kind, values in found.items() if values}
        pursued = next((kind for kind in kinds[:2] if kind in means), None)
        held = {kind: mean for kind, mean in means.items() if kind not in (pursued, "predicted")}
        if not self.guard.active or pursued is None or not held:
            return
        told = self.guard.check(means[pursued], held)
        self.log.scalars(self.cycle, {"guard/scale": self.guard.scale, "guard/troubled": float(self.guard.troubled)})
        if told:
            logger.warning(f"cycle {self.cycle}: {told}")
        if self.guard.stops:
            which = f"of the best {self.plan.keep_best}" if self.plan.keep_best else "of the last validation without it"
            self.ended = f"{told}, with the student {which}"
        elif self.guard.action == "stop" and self.guard.troubled == 0 and self.plan.keep_best is None:
            self.best = {"cycle": self.cycle}
            self._save_best()

    def _save_best(self) -> None:
        tensors = {f"ema/{n}": p for n, p in self.learners["student"].named().items()}
        checkpoint.save(self.folder / "best", self.cycle, tensors, {"best": self.best}, self.world, keep=1)

    @property
    def uses_best(self) -> bool:
        """Whether the student is that of the best validation, and not the last."""
        return self.plan.keep_best is not None or self.guard.stops

    def state(self) -> checkpoint.State:
        """Everything that the next cycle depends on, by name."""
        tensors: dict[str, Tensor] = {}
        for learner in self.learners.values():
            tensors |= learner.state()
        tensors |= {f"ema/{n}": a for n, a in self.averages().items()}
        tensors |= {f"ft/{i}": g for i, g in enumerate(self._ft_gradients)}
        plain: dict[str, Any] = {
            "cycle": self.cycle,
            "lrm_count": self.lrm_count,
            "best": self.best,
            "guard": self.guard.state_dict(),
            "ended": self.ended,
            "silent": [self.distiller.silent, self.distiller.unusable],
            "ft_held": self._ft_held,
            "ema_updates": self.ema.updates,
            "skipped": {name: [learner.skipped, learner.in_a_row] for name, learner in self.learners.items()},
            "config": self.config,
            "data": self.data.identity(),
        }
        surrogate = self.distiller.latent_reward
        if surrogate is not None:
            if "lrm" not in self.learners:  # it is only read, but the run hangs on it
                tensors |= {f"lrm/{n}": p for n, p in surrogate.model.named_parameters()}
            plain["statistics"] = surrogate.statistics.state_dict()
            plain["bad"] = surrogate.bad
            plain["past"] = [o.turn for o in surrogate.past]
            for i, o in enumerate(surrogate.past):
                for name in ("latents", "reward", "usable"):
                    tensors[f"past/{i}/{name}"] = self.world.gather(getattr(o, name))
        return checkpoint.State(tensors, plain)

    def save(self) -> None:
        """Write a checkpoint from which the same command goes on exactly."""
        tensors, plain = self.state()
        checkpoint.save(self.folder / "checkpoints", self.cycle, tensors, plain, self.world, self.plan.keep)

    @torch.no_grad()
    def load(self, state: checkpoint.State) -> None:
        """Take up a state on any number of processes; ValueError where the data is another than it was."""
        tensors, plain = state
        check_identity(plain.get("data", {}), self.data.identity())
        for learner in self.learners.values():
            learner.load(tensors)
            learner.skipped, learner.in_a_row = plain["skipped"][learner.name]
        for name, average in self.averages().items():
            assign(average, tensors[f"ema/{name}"])
        self.ema.updates = plain["ema_updates"]
        self.cycle, self.lrm_count, self.best = plain["cycle"], plain["lrm_count"], plain["best"]
        if "guard" in plain:  # it came later
            self.guard.load_state_dict(plain["guard"])
            self.ended, (self.distiller.silent, self.distiller.unusable) = plain["ended"], plain["silent"]
        self._ft_held = plain["ft_held"]
        self._ft_gradients = []
        if self._ft_held:
            self._ft_gradients = [torch.zeros_like(p) for p in self.learners["student"].parameters]
            for i, held in enumerate(self._ft_gradients):
                assign(held, tensors[f"ft/{i}"])
        surrogate = self.distiller.latent_reward
        if surrogate is not None:
            if "lrm" not in self.learners:
                for name, parameter in surrogate.model.named_parameters():
                    assign(parameter, tensors[f"lrm/{name}"])
            surrogate.statistics.load_state_dict(plain["statistics"])
            surrogate.bad = plain["bad"]
            surrogate.past = [self._remembered(tensors, i, turn) for i, turn in enumerate(plain["past"])]

    def _remembered(self, tensors: dict[str, Tensor], i: int, turn: int) -> Observation:
        """This process's share of a remembered observation; its prompts follow from the turn."""
        prompts, _ = self._reward_pairs(self._reward_draws(turn))
        own = slice(self.world.rank, None, self.world.size)
        latents, reward, usable = (
            tensors[f"past/{i}/{name}"][own].to(self.world.device) for name in Observation._fields[2:]
        )
        return Observation(turn, prompts, latents, reward, usable)

    def averages(self) -> dict[str, Tensor]:
        """The averages of the student's trained parameters by name."""
        return dict(zip(self.learners["student"].named(), self.ema.average, strict=True))

    @contextlib.contextmanager
    def _stop_on_signal(self) -> Iterator[None]:
        """SIGTERM, SIGINT and SIGUSR1 finish the cycle, save and end the loop, in every process."""

        def stop(*_: Any) -> None:
            self.stopping = True

        before = {s: signal.signal(s, stop) for s in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}
        try:
            yield
        finally:
            for s, handler in before.items():
                signal.signal(s, handler)
