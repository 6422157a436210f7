"""What each row of a study runs, and where: commands, folders, and what a result follows from."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from dollar.contents import contents_of
from dollar.studies.content import Content
from dollar.studies.jobs import Job
from dollar.studies.rows import ALL, TEACHER, Row, replaced
from dollar.studies.settings import Settings

MADE_AS = "made_as.json"  # what a run was trained with, next to its run


class Runs:
    """The commands of each row and seed, where they write, and what identifies them."""

    def __init__(self, settings: Settings, content: Content) -> None:
        self.settings = settings
        self.content = content
        self.rows = {row.name: row for row in settings.rows}
        self.work = settings.work
        self._known: dict[Path, str] = {}  # what places hold
        self.document = settings.out / f"{content.name}.md"
        self.results = settings.out / content.name / "results.json"

    def overrides(self, row: Row) -> list[str]:
        """Of launch/train.py, without seed and folders."""
        c = self.settings
        cycles = c.further if row.after else c.cycles
        group = c.groups[row.group].overrides
        own = replaced(replaced([f"cycles={cycles}", f"batch={c.batch}", *c.train], group), row.overrides)
        cycles = int(_value(own, "cycles"))
        if cycles % c.validations:
            key = "cycles" if cycles != c.further else "further"
            raise ValueError(
                f"the row {row.name} has {cycles} cycles, which {c.validations} validations don't divide evenly; give "
                f"{key}={max(1, round(cycles / c.validations)) * c.validations}, or another number of validations"
            )
        return replaced([f"validation.every={cycles // c.validations}"], own)

    def folder(self, name: str, seed: int) -> Path:
        """A row's run."""
        return self.work / f"seed{seed}" / name

    def train(self, row: Row, seed: int) -> tuple[str, ...]:
        """The command that trains."""
        runs = self.work / f"seed{seed}"
        init = [f"init={self.folder(row.after, seed) / 'student'}"] if row.after else []
        given = [f"run={row.name}", f"runs={runs}", f"seed={seed}", *init, *self.overrides(row)]
        return ("python", "launch/train.py", *given)

    def evaluate(self, row: Row, seed: int) -> tuple[str, ...]:
        """The command that measures."""
        steps = ",".join(map(str, row.steps))
        given = [f"checkpoint={self.folder(row.name, seed) / 'student'}", f"clips={self.settings.clips}"]
        return ("python", "launch/evaluate.py", *given, f"steps=[{steps}]", self._cache, *self.evaluation(row))

    def commands(self, row: Row, seed: int) -> tuple[tuple[str, ...], ...]:
        """All commands of a row, in their order; the first makes what the others measure."""
        return self.train(row, seed), self.evaluate(row, seed)

    def evaluation(self, row: Row) -> list[str]:
        """Of launch/evaluate.py for a row: rewards that a table with it has are measured, and no others.

        A row with a control, and the control, are measured by all that a row may pursue, and by the panel.
        """
        rows = self.rows.values()
        shown = {self.content.usual, *(r.pursued for r in rows if r.group == row.group or r.after == row.name)} - {ALL}
        judged = bool(row.control) or any(r.control == row.name for r in rows)
        shown = set(self.content.rewards) if judged or row.pursued == ALL else shown
        c = self.settings
        own = replaced(c.student_evaluation, c.groups[row.group].evaluation)
        return [*c.evaluation, *self._weights(shown), *(c.panel if judged else []), *own]

    @property
    def _cache(self) -> str:
        """Where evaluations keep what real clips gave, which is the same for all."""
        return f"cache={self.work / 'cache'}"

    def evaluate_teacher(self) -> tuple[str, ...]:
        """The command that measures the teacher alone."""
        clips = self.settings.clips  # all afresh where nothing else is said, since no rewards of them are stored
        given = [f"out={self.work / TEACHER}", f"clips={clips}", f"teacher_clips={clips}", self._cache]
        return ("python", "launch/evaluate.py", *replaced(given, self._teacher_evaluation))

    @property
    def _teacher_evaluation(self) -> list[str]:
        pursued = {self.content.usual, *(row.pursued for row in self.rows.values())} - {ALL}
        c = self.settings
        return replaced([*c.evaluation, *self._weights(pursued)], c.teacher_evaluation)

    def _weights(self, figures: Collection[str]) -> list[str]:
        """Of launch/evaluate.py, so that each of these figures is measured."""
        return [f"reward.weights.{part}=1" for figure, part in self.content.rewards.items() if figure in figures]

    def followers(self, names: Sequence[str]) -> list[str]:
        """These rows and all that start from them, directly or not, in their order."""
        found = set(names)
        for row in self.rows.values():  # a row comes after the one that it starts from
            found |= {row.name} if row.after in found else set()
        return [name for name in self.rows if name in found]

    def made_as(self, row: Row, seed: int) -> str:
        """What the training follows from, in few letters: seed, settings, and those of the rows before it."""
        before = self.made_as(self.rows[row.after], seed) if row.after else ""
        return hash_of([seed, before, self.recipe(row)])

    def recipe(self, row: Row) -> Any:
        """The settings of a row's training, as plain values."""
        return self.overrides(row)

    def identity(self, name: str, seed: int | None) -> str:
        """What a result follows from, in few letters."""
        c = self.settings
        if seed is None:
            return hash_of([c.clips, self._teacher_evaluation])
        row = self.rows[name]
        return hash_of([self.made_as(row, seed), c.clips, row.steps, self.evaluation(row)])

    def inputs(self, name: str) -> str:
        """What is held, in few letters, by the embedded networks and the places that a row's overrides name."""
        words, row = [*self._teacher_evaluation], self.rows.get(name)
        while row is not None:
            words += [*self.overrides(row), *self.evaluation(row)]
            row = self.rows[row.after] if row.after else None
        values = [word.partition("=")[2] for word in words]
        named = {Path(value).expanduser() for value in values if os.sep in value}
        assets = self.settings.root / "dollar" / "assets"
        places = [assets, *sorted(place for place in named if place.exists())]
        return hash_of([self._held(p, self.content.embedded if p == assets else ()) for p in places if p.exists()])

    def _held(self, place: Path, only: Sequence[str] = ()) -> str:
        if place not in self._known:
            self._known[place] = contents_of(place, only).digest
        return self._known[place]

    def _made(self, row: Row, seed: int) -> list[str] | None:
        """What a row's run was trained with: the hash of its settings and, but for earlier versions, of its inputs."""
        marker = self.folder(row.name, seed).with_name(f"{row.name}.{MADE_AS}")
        known = json.loads(marker.read_text()) if marker.is_file() else None
        return [known] if isinstance(known, str) else known

    def _is_made(self, row: Row, seed: int) -> bool:
        """Whether a row's run was trained with what it would be trained with now."""
        known, now = self._made(row, seed), [self.made_as(row, seed), self.inputs(row.name)]
        return known is not None and known == now[: len(known)]

    def left(self, row: Row) -> Path:
        """The file of a row's folder that is there when its first command, which makes what is measured, is done."""
        return Path("student") / "student.json"

    def trained(self, row: Row, seed: int) -> bool:
        """Whether the student that the training would give is there."""
        return self._is_made(row, seed) and (self.folder(row.name, seed) / self.left(row)).is_file()

    def prepare(self, row: Row, seed: int) -> None:
        """Remove a run of other settings, and note what the next is made with; ValueError for another command's run."""
        folder = self.folder(row.name, seed)
        marker = folder.with_name(f"{row.name}.{MADE_AS}")
        if folder.exists() and not marker.is_file():
            raise ValueError(f"{folder} was not made by this command; move it away, or name another folder by work=")
        if not self._is_made(row, seed):
            shutil.rmtree(folder, ignore_errors=True)
        marker.parent.mkdir(parents=True, exist_ok=True)
        marker.write_text(json.dumps([self.made_as(row, seed), self.inputs(row.name)]))

    def job(self, name: str, seed: int | None) -> Job:
        """What is to be run for a row and seed, or for the teacher; a student that is there is measured alone."""
        if seed is None:
            log = self.work / f"{name}.log"
            return Job(name, (self._executed(self.evaluate_teacher()),), log, size=self.size(None))
        row = self.rows[name]
        commands = self.commands(row, seed)
        if self.trained(row, seed):
            commands = commands[1:] or commands
        return Job(
            key_of(name, seed),
            tuple(map(self._executed, commands)),
            self.work / f"seed{seed}" / f"{name}.log",  # a name may have a point in it
            key_of(row.after, seed) if row.after else None,
            self.size(row),
        )

    def size(self, row: Row | None) -> float:
        """How long a row takes compared with others; None is the teacher's evaluation."""
        cycles = float(_value(self.overrides(row), "cycles")) if row else 0.0
        return cycles + self.settings.further

    def _executed(self, command: Sequence[str]) -> tuple[str, ...]:
        """A command as it is run, whatever folder this is and whatever python is first."""
        return (sys.executable, str(self.settings.root / command[1]), *command[2:])


def key_of(name: str, seed: int | None) -> str:
    """A job's name."""
    return name if seed is None else f"{name}/{seed}"


def place_of(key: str) -> tuple[str, int | None]:
    """The name and seed of a job's name."""
    name, slash, seed = key.rpartition("/")
    return (name, int(seed)) if slash else (key, None)


def _value(overrides: Sequence[str], key: str) -> str:
    return next(o.partition("=")[2] for o in overrides if o.startswith(f"{key}="))


def hash_of(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:12]
