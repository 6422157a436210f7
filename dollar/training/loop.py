"""The one loop: a method's turns cycle by cycle; logs, validates, saves, resumes and stops, whatever is trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dollar.data.latents import Samples, check_identity
from dollar.log import logger, progress
from dollar.parallel import checkpoint
from dollar.parallel.checkpoint import State
from dollar.parallel.signals import Stop
from dollar.parallel.world import World
from dollar.training import old_checkpoint
from dollar.training.average import Average
from dollar.training.comparison import Branches, GradientComparison
from dollar.training.learner import Gathered, Learner, not_finite
from dollar.training.log import Log
from dollar.training.monitors.monitor import Monitor, Verdict
from dollar.training.turn import Method, Moment, Turn
from dollar.training.watch import Watch

# cycle -> scalars of a validation; the same in every process, or averaged over them
Validate = Callable[[int], dict[str, float]]


@dataclass
class Timetable:
    """How long and how often.

    save_every, validate_every: cycles, 0 for no validation; the last cycle always saves, and validates where any does.
    keep: checkpoints kept; log_every: cycles between lines of the log; max_skipped: updates in a row that may be
    skipped before the run ends.
    """

    cycles: int
    save_every: int = 50
    keep: int = 2
    validate_every: int = 0
    validate_first: bool = False
    log_every: int = 1
    max_skipped: int = 20

    def __post_init__(self) -> None:
        for name in ("cycles", "save_every", "keep"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")

    def due(self, cycle: int, every: int) -> bool:
        """Whether something that happens every so many cycles does after this many."""
        return every > 0 and (cycle % every == 0 or cycle == self.cycles)


@dataclass
class Loop:
    """Everything that a run holds; `train` runs it to its last cycle or until a stop is requested.

    learners: by name; average: of the learner whose network is sampled, None for none; monitors: by name, they look at
    each validation. data: the source of the samples that are read ahead, whose identity is kept; None for none. config:
    of this run, kept with every checkpoint. validate: called while the network holds the average. kept: the parameters
    that are saved as the best; keeps: how many of such stay, the newest. still_there: raises OSError where the folder
    isn't this run's any more. probe: what is wrong with what the network that holds the average makes, as a sentence's
    part, or "". validated_on: a hash of what validations look at. ended: why the run ended before its last cycle, "" if
    it did not.
    """

    timetable: Timetable
    method: Method
    learners: dict[str, Learner]
    world: World
    folder: Path
    log: Log
    average: Average | None = None
    data: Samples | None = None
    validate: Validate | None = None
    monitors: Mapping[str, Monitor] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    description: str = "training"
    kept: Callable[[], Mapping[str, Tensor]] | None = None
    keeps: int = 1
    still_there: Callable[[], None] = lambda: None
    probe: Callable[[], str] = lambda: ""
    validated_on: str = ""
    cycle: int = 0
    ended: str = ""
    best: dict[str, Any] = field(default_factory=dict)
    stop: Stop = field(default_factory=Stop)
    gathered: dict[str, Gathered] = field(default_factory=dict)
    remarked: set[str] = field(default_factory=set)
    troubles: dict[str, Callable[[int], str]] = field(default_factory=dict)
    watch: Watch = field(init=False)

    def __post_init__(self) -> None:
        self.watch = Watch(self.world.device)

    def train(self) -> bool:
        """Run the remaining cycles; True when nothing remains to be done, False when stopped before."""
        if self.ended or self.cycle >= self.timetable.cycles:
            self._check_result()
            return True
        with self.stop.in_order():
            if self.cycle == 0 and self.validate is not None and self.timetable.validate_first:
                self._validate()  # what was there before any training
            for cycle in progress(
                range(self.cycle, self.timetable.cycles), self.description, active=self.world.is_main
            ):
                scalars = self.run_cycle(cycle)
                self.cycle = cycle + 1
                if self.world.is_main:
                    self.still_there()
                if self.timetable.log_every == 1 or cycle % self.timetable.log_every == 0:
                    self.log.scalars(self.cycle, scalars)
                self._remark()
                self._watch(scalars)
                if self.validate is not None and self.timetable.due(self.cycle, self.timetable.validate_every):
                    self._validate()
                if self.ended or self.cycle == self.timetable.cycles:
                    self._check_result()  # before the last checkpoint takes the place of older ones
                stop = self.world.any(self.stop.requested)
                if stop or self.ended or self.timetable.due(self.cycle, self.timetable.save_every):
                    self.save()
                if self.ended:
                    return True
                if stop and self.cycle < self.timetable.cycles:
                    return False
        return True

    def run_cycle(self, cycle: int) -> dict[str, float]:
        """One cycle: the method's turns, each in a phase of its own; returns what it measured."""
        self.watch.begin()
        for learner in self.learners.values():
            learner.set_rate(cycle, self.timetable.cycles)
        self.method.begin(cycle, cycle / self.timetable.cycles)
        if self.data is not None:
            following = self.method.samples(cycle + 1) if cycle + 1 < self.timetable.cycles else []
            self.data.ahead([*self.method.samples(cycle), *following])
        for turn in self.method.turns(cycle):
            with self.watch.phase(turn.name):
                self._take(turn, cycle)
        skipped = {f"skipped/{name}": float(learner.skipped) for name, learner in self.learners.items()}
        return self.world.mean(self.method.logged) | self.watch.scalars() | skipped

    def _take(self, turn: Turn, cycle: int) -> None:
        """A turn's updates, unless it begins with a reason for none."""
        skip = turn.begin(cycle)
        if skip is None:
            for update in range(turn.updates):
                self._update(turn, Moment(cycle, update))
        elif skip.trouble is not None:
            self._count(self.learners[turn.learner], False, skip.trouble)
        turn.end(cycle)

    def _update(self, turn: Turn, when: Moment) -> None:
        """Losses carried back one branch at a time, then one step on which all processes agree."""
        learner = self.learners[turn.learner]
        learner.forget_gradients()  # of another turn's losses, which may have run through this network
        comparison = GradientComparison(learner) if turn.compares(when.cycle) else None
        branches = None if turn.weigh is None else Branches(learner)
        with learner.use():
            for part in turn.losses(when):
                torch.autograd.backward(part.tensor, part.gradient, retain_graph=not part.last)
                if comparison is not None:
                    comparison.add(part.name)
                if branches is not None:
                    branches.take(part.name)
        if comparison is not None:
            self.method.logged |= comparison.scalars(self.world)
        if branches is not None and turn.weigh is not None:
            branches.put(turn.weigh(branches.products(self.world)))
        if not learner.has_gradients:
            return  # none of its terms has begun yet
        if turn.every > 1 and not self._gathered(turn).add():
            return
        norm, sound = learner.step(self.world)
        self.method.logged[f"grad_norm/{turn.logged or turn.learner}"] = norm
        self._count(learner, sound, _skipped(learner))
        if sound:
            turn.stepped()

    def _gathered(self, turn: Turn) -> Gathered:
        if turn.name not in self.gathered:
            self.gathered[turn.name] = Gathered(self.learners[turn.learner], turn.every, self.world)
        return self.gathered[turn.name]

    def _count(self, learner: Learner, sound: bool, trouble: Callable[[int], str]) -> None:
        """Keep count of skipped updates; FloatingPointError, naming the trouble, when too many came in a row."""
        learner.count(sound)
        self.troubles[learner.name] = trouble
        if learner.in_a_row >= self.timetable.max_skipped:
            kept = self.folder / "checkpoints"
            older = f", or go on from an older checkpoint in {kept}" if any(kept.glob("step-*")) else ""
            raise FloatingPointError(f"{trouble(learner.in_a_row)}{older}")

    def _check_weights(self) -> None:
        """Raise FloatingPointError where something trained is no finite number in any process."""
        for name, learner in self.learners.items():
            if self.world.any(bool(broken := learner.broken())):
                raise FloatingPointError(self._broken(f"the {name}'s weights or moments", broken, learner.remedy))
        if self.average is not None and self.world.any(bool(broken := not_finite(self.average.average))):
            raise FloatingPointError(self._broken("the averaged weights", broken, ""))

    def _check_folder(self) -> None:
        """Raise OSError where the run's folder, which the log made, isn't there any more; it is not begun anew."""
        if self.world.is_main and not self.folder.is_dir():
            raise OSError(
                f"{self.folder} was removed, renamed or unmounted while the command ran; nothing is saved there"
            )

    def _broken(self, what: str, names: list[str], remedy: str) -> str:
        named = f" ({names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''})" if names else ""
        return f"after cycle {self.cycle} {what}{named} are not finite, so they are not saved. {self._way_back(remedy)}"

    def _way_back(self, remedy: str) -> str:
        """What the user can do once numbers have gone wrong."""
        kept = self.folder / "checkpoints"
        if not any(kept.glob("step-*")):
            none = "there is no checkpoint to go back to"
            return f"{remedy}; {none}" if remedy else none[0].upper() + none[1:]
        older = f"start the same command again, which goes on from the newest checkpoint in {kept}"
        return f"{remedy} in a run of its own, or {older}" if remedy else older[0].upper() + older[1:]

    def _check_result(self) -> None:
        """Raise FloatingPointError where the finished run's result isn't sound; what a monitor kept was looked at."""
        if self.uses_best and self.best:
            return
        self._check_weights()
        with self.average.swapped() if self.average is not None else torch.no_grad():
            trouble = self.probe()
        if self.world.any(bool(trouble)):
            raise FloatingPointError(
                f"after cycle {self.cycle} {trouble or 'a process finds the result unsound'}, so it is not saved. "
                + self._way_back(next((learner.remedy for learner in self.learners.values()), ""))
            )

    def remarks(self) -> list[str]:
        """What the user should know of how the run ended, as sentences."""
        skipping = [learner for learner in self.learners.values() if learner.in_a_row > 0]
        found = [
            f"at the end {self.troubles.get(learner.name, _skipped(learner))(learner.in_a_row)}" for learner in skipping
        ]
        return [*found, *self._of_method(ended=True).values()]

    def _of_method(self, ended: bool = False) -> dict[str, str]:
        """The method's remarks, where it makes any."""
        remarks = getattr(self.method, "remarks", None)
        return {} if remarks is None else remarks(ended=ended)

    def _remark(self) -> None:
        """Say what the method remarks, each of its kinds once."""
        for name, sentence in self._of_method().items():
            if name not in self.remarked:
                self.remarked.add(name)
                logger.warning(f"note: cycle {self.cycle}: {sentence}")
                self.log.note(self.cycle, sentence)

    def _validate(self) -> None:
        assert self.validate is not None
        self._check_weights()
        with self.average.swapped() if self.average is not None else torch.no_grad():
            own: dict[str, float] = getattr(self.method, "scores", dict)()  # a method may have scores of its own
            # One verdict, so that all keep the best or none.
            scores = self.world.mean(self.validate(self.cycle) | own)
            self.log.scalars(self.cycle, {f"validation/{name}": value for name, value in scores.items()})
            for monitor in self.monitors.values():
                self._heed(monitor.look(self.cycle, scores))

    def _watch(self, scalars: Mapping[str, float]) -> None:
        """Show what a cycle measured to the monitors that look at it."""
        for monitor in self.monitors.values():
            if (watch := getattr(monitor, "watch", None)) is not None:
                verdict = watch(self.cycle, scalars)
                if verdict.keep is not None:
                    self._check_weights()
                with self.average.swapped() if self.average is not None and verdict.keep is not None else nullcontext():
                    self._heed(verdict)

    def _heed(self, verdict: Verdict) -> None:
        """Do what a monitor concludes, while the network holds what is kept."""
        if verdict.scalars:
            self.log.scalars(self.cycle, dict(verdict.scalars))
        if verdict.note:
            logger.warning(f"cycle {self.cycle}: {verdict.note}")
        if verdict.keep is not None:
            self._keep(dict(verdict.keep))
        self.ended = verdict.ended or self.ended

    def _forget(self) -> None:
        """Begin the comparison of scores anew, for validations look at other prompts from here on."""
        logger.warning(
            f"note: validations look at other prompts than before cycle {self.cycle}, so their scores are compared "
            "from here on alone"
        )
        for monitor in self.monitors.values():
            if (forget := getattr(monitor, "forget", None)) is not None:
                forget(self.cycle)

    def _keep(self, record: dict[str, Any]) -> None:
        """Save what is validated as the best so far."""
        self.best = record
        self._check_folder()
        assert self.kept is not None, "a run whose monitors keep something says what"
        checkpoint.save(self.folder / "best", self.cycle, self.kept(), {"best": record}, self.world, self.keeps)

    @property
    def uses_best(self) -> bool:
        """Whether the result is what a monitor kept, and not the last."""
        return any(monitor.prefers_kept for monitor in self.monitors.values())

    def parts(self) -> dict[str, State]:
        """Everything that the next cycle depends on, part by part."""
        found = {name: learner.state() for name, learner in self.learners.items()}
        found["loop"] = State({}, {"ended": self.ended, "best": self.best})
        found["method"] = self.method.state()
        found |= {f"monitor {name}": State({}, m.state_dict()) for name, m in self.monitors.items()}
        found |= {f"gathered {name}": gathered.state() for name, gathered in self.gathered.items() if gathered.count}
        if self.average is not None:
            found["ema"] = self.average.state()
        return found

    def state(self) -> State:
        """The parts as one checkpoint: tensors named <part>/<name>, and plain values."""
        parts = self.parts()
        tensors = {f"{part}/{name}": t for part, state in parts.items() for name, t in state.tensors.items()}
        plain = {part: state.plain for part, state in parts.items()}
        data = {} if self.data is None else self.data.identity()
        run = {"format": old_checkpoint.FORMAT, "cycle": self.cycle, "config": self.config, "data": data}
        return State(tensors, {**run, "validation": self.validated_on, "parts": plain})

    def save(self) -> None:
        """Write a checkpoint from which the same command goes on exactly; none of weights that are no numbers."""
        self._check_weights()
        self._check_folder()
        tensors, plain = self.state()
        checkpoint.save(self.folder / "checkpoints", self.cycle, tensors, plain, self.world, self.timetable.keep)

    def load(self, state: State) -> None:
        """Take up a state on any number of processes.

        ValueError where the data is another than it was, or the weights are not finite, as earlier versions saved them.
        """
        state = old_checkpoint.renewed(state)
        if self.data is not None:
            check_identity(state.plain.get("data", {}), self.data.identity())
        self.cycle = state.plain["cycle"]
        parts = _divided(state)
        self.ended, self.best = parts["loop"].plain["ended"], parts["loop"].plain["best"]
        for name, learner in self.learners.items():
            learner.load(parts[name])
        for name, monitor in self.monitors.items():
            if f"monitor {name}" in parts:  # a monitor may have come later
                monitor.load_state_dict(parts[f"monitor {name}"].plain)
        before, now = state.plain.get("validation"), self.validated_on
        if before and now and before != now:  # "" where there were none
            self._forget()
        if self.average is not None:
            self.average.load(parts["ema"])
        self.method.load(parts["method"])
        self.gathered = {}
        for turn in self.method.turns(self.cycle):
            if (part := parts.get(f"gathered {turn.name}")) is not None:
                self._gathered(turn).load(part)
        try:
            self._check_weights()
        except FloatingPointError as error:
            step = self.folder / "checkpoints" / f"step-{self.cycle:08d}"
            raise ValueError(f"{step} can't be gone on from: {error}. Remove {step} for an older one") from None


def _skipped(learner: Learner) -> Callable[[int], str]:
    """The sentence for so many updates in a row of this learner that were skipped."""
    return lambda times: (
        f"{times} updates of the {learner.name} in a row had gradients that were not finite. {learner.remedy}"
    )


def _divided(state: State) -> dict[str, State]:
    """A checkpoint's parts."""
    parts: dict[str, State] = {part: State({}, plain) for part, plain in state.plain["parts"].items()}
    for full, tensor in state.tensors.items():
        part, _, name = full.partition("/")
        parts[part].tensors[name] = tensor
    return parts
