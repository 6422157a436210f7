"""The stages of V.I.P. as commands: rank, prune, pairs, train, score; each is one that the user could give himself."""

from __future__ import annotations

import json
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
    them; sampled: how what is left is sampled and at which times it is trained, as arguments of launch/train.py;
    checkpoint: the student that is made smaller in the teacher's place, or None; steps: of the teacher's clips and of
    those of what is left of it; units, seed: as the commands have them; fresh: whether each stage makes pairs of its
    own, or all train on the first one's; unfallen: what becomes of a stage in which no property fell, sft (it is
    trained on the full model's clips alone) or skip; given: further arguments by verb.
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
    unfallen: str = "sft"
    given: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.unfallen not in ("sft", "skip"):
            raise ValueError(f"unfallen is {self.unfallen!r}; use sft or skip")
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
        """What a stage makes; without a training it is what was left."""
        return self.pruned(stage) if self.skips(stage) else self.folder(stage) / "train" / "student"

    def has_fallen(self, stage: int) -> bool:
        """Whether a stage's pairs have a target, or aren't made yet; ValueError where they can't be read."""
        path = self.pairs(stage) / "pairs.json"
        if not path.is_file():
            return True
        try:
            return bool(json.loads(path.read_text(encoding="utf-8"))["targets"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} can't be read ({error!r}); remove its folder, and it is made anew") from None

    def skips(self, stage: int) -> bool:
        """Whether a stage's training is left out, since nothing fell."""
        return self.unfallen == "skip" and not self.has_fallen(stage)

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
        left_out = {"pairs": self.pairs(stage) != self.folder(stage) / "pairs", "train": self.skips(stage)}
        verbs = [verb for verb in VERBS if not left_out.get(verb, False)]
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
        place = [f"out={self.pruned(stage)}", "overwrite=true"]  # of a kill between its end and our note of it
        return [*self.teacher, *network, f"remove=[{','.join(chosen)}]", *place]

    def _pairs(self, stage: int) -> list[str]:
        full = [f"steps={self.steps}"] if self.checkpoint is None else [f"reference={self.checkpoint}"]
        places = [f"checkpoint={self.pruned(stage)}", f"winners={self.out / 'winners'}", f"out={self.pairs(stage)}"]
        return [*self.teacher, *self.reward, *full, *places, f"seed={self.seed}"]

    def _train(self, stage: int) -> list[str]:
        loss = "redpo" if self.has_fallen(stage) else "sft"
        start = [f"init={self.pruned(stage)}", "data=pairs", f"data.path={self.pairs(stage)}"]
        few = [f"preference.reference={self.checkpoint}"] if self.checkpoint else []
        place = [f"runs={self.folder(stage)}", "run=train", f"seed={self.seed}"]
        return [f"loss={loss}", *self.teacher, *self.reward, *self.sampled, *start, *few, *place]

    def _score(self, stage: int) -> list[str]:
        folders = list(dict.fromkeys(map(str, (self.pruned(stage), self.student(stage)))))
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
        won = f"{self.share:.0%} of the loss won back" if self.before > self.pruned else "nothing was lost"
        return (
            f"stage {stage}: {self.before:.4f} before, {self.pruned:.4f} without the units, "
            f"{self.trained:.4f} trained; {won}"
        )
