"""The stages of V.I.P. as commands: rank, prune, pairs, train, score; each is one that the user could give himself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

VERBS = ("rank", "prune", "pairs", "train", "score")  # of a stage, in their order


class Step(NamedTuple):
    """A command: launch/<verb>.py with these arguments; name: what the folder of the whole calls it."""

    name: str
    verb: str
    arguments: tuple[str, ...]


@dataclass(frozen=True)
class Stages:
    """How a network is made smaller.

    out: the folder of the whole; counts: units that go in each stage; teacher, reward: what every command is given of
    them; sampled: how what is left is sampled, as arguments of launch/train.py; checkpoint: the student that is made
    smaller in the teacher's place, or None; steps: of the teacher's clips and those of what is left of it; units, seed:
    as the commands have them; fresh: whether each stage makes pairs of its own, or all train on the first one's;
    given: further arguments by verb.
    """

    out: Path
    counts: Sequence[int]
    teacher: Sequence[str] = ()
    reward: Sequence[str] = ()
    sampled: Sequence[str] = ()
    checkpoint: str | None = None
    steps: int = 50
    units: str = "blocks"
    seed: int = 0
    fresh: bool = True
    given: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.counts or any(count < 1 for count in self.counts):
            raise ValueError(f"stages is {list(self.counts)}; it has a number of units for each stage, such as [2,1]")

    # Places

    def folder(self, stage: int) -> Path:
        """The folder of a stage, counted from 1."""
        return self.out / f"stage{stage}"

    def pruned(self, stage: int) -> Path:
        """What a stage leaves of the network before its training."""
        return self.folder(stage) / "pruned"

    def student(self, stage: int) -> Path:
        """What a stage makes."""
        return self.folder(stage) / "train" / "student"

    def before(self, stage: int) -> str | None:
        """What a stage begins with; None is the teacher."""
        return self.checkpoint if stage == 1 else str(self.student(stage - 1))

    def ranking(self, stage: int) -> Path:
        """The table of a stage's units."""
        return self.folder(stage) / "rank" / "ranking.json"

    def pairs(self, stage: int) -> Path:
        """The pairs that a stage trains on."""
        return self.folder(stage if self.fresh else 1) / "pairs"

    @property
    def scores(self) -> Path:
        """The values of all networks' clips."""
        return self.out / "scores"

    # Commands

    def steps_of(self, stage: int, chosen: Sequence[str]) -> list[Step]:
        """The commands of a stage; chosen: the units that go, known once it is ranked, which is the first of them."""
        commands = {
            "rank": self._rank(stage),
            "prune": self._prune(stage, chosen),
            "pairs": self._pairs(stage),
            "train": self._train(stage),
            "score": self._score(stage),
        }
        verbs = [verb for verb in VERBS if verb != "pairs" or self.pairs(stage) == self.folder(stage) / "pairs"]
        return [self.step(f"stage{stage}/{verb}", verb, commands[verb]) for verb in verbs]

    def step(self, name: str, verb: str, arguments: Sequence[str]) -> Step:
        """A command with the arguments that the user gives its verb, which come last and so count."""
        return Step(name, verb, (*arguments, *self.given.get(verb, ())))

    def _rank(self, stage: int) -> list[str]:
        before = self.before(stage)
        network = [f"steps={self.steps}"] if before is None else [f"checkpoint={before}"]
        size = [f"units={self.units}", f"k={self.counts[stage - 1]}", f"seed={self.seed}"]
        return [*self.teacher, *self.reward, *network, *size, f"out={self.folder(stage) / 'rank'}"]

    def _prune(self, stage: int, chosen: Sequence[str]) -> list[str]:
        before = self.before(stage)
        network = [f"steps=[{self.steps}]"] if before is None else [f"checkpoint={before}"]
        return [*self.teacher, *network, f"remove=[{','.join(chosen)}]", f"out={self.pruned(stage)}"]

    def _pairs(self, stage: int) -> list[str]:
        full = [f"steps={self.steps}"] if self.checkpoint is None else [f"reference={self.checkpoint}"]
        places = [f"checkpoint={self.pruned(stage)}", f"winners={self.out / 'winners'}", f"out={self.pairs(stage)}"]
        return [*self.teacher, *self.reward, *full, *places, f"seed={self.seed}"]

    def _train(self, stage: int) -> list[str]:
        start = [f"init={self.pruned(stage)}", "data=pairs", f"data.path={self.pairs(stage)}"]
        few = [f"preference.reference={self.checkpoint}", "preference.times=student"] if self.checkpoint else []
        place = [f"runs={self.folder(stage)}", "run=train", f"seed={self.seed}"]
        return ["loss=redpo", *self.teacher, *self.reward, *self.sampled, *start, *few, *place]

    def _score(self, stage: int) -> list[str]:
        folders = [str(self.pruned(stage)), str(self.student(stage))]
        full = [f"full={'false' if self.checkpoint else 'true'}"]
        if self.checkpoint is not None:
            folders.insert(0, self.checkpoint)
        else:
            full.append(f"steps={self.steps}")
        return [*self.teacher, *self.reward, f"checkpoints=[{','.join(folders)}]", *full, f"out={self.scores}"]


class Recovery(NamedTuple):
    """What a stage cost and won back, in the reward's total: before it, pruned, and trained."""

    before: float
    pruned: float
    trained: float

    @property
    def share(self) -> float:
        """How much of what was lost was won back; 1 where nothing was lost."""
        lost = self.before - self.pruned
        return 1.0 if lost <= 0 else (self.trained - self.pruned) / lost

    def text(self, stage: int) -> str:
        """A line of text."""
        return (
            f"stage {stage}: {self.before:.4f} before, {self.pruned:.4f} without the units, "
            f"{self.trained:.4f} trained; {self.share:.0%} of the loss won back"
        )
