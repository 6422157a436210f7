"""What each row of the ablation runs, and where: commands, folders, and what a result follows from."""

from __future__ import annotations

import difflib
import hashlib
import json
import shutil
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from dollar.cli.entry import ROOT
from dollar.studies.jobs import Job
from dollar.studies.results import ALL, FIGURES, PURSUED, Row

TEACHER = "teacher"  # the name of the teacher's own job
MADE_AS = "made_as.json"  # what a run was trained with, beside its run


def rows_of(config: DictConfig) -> list[Row]:
    """conf/ablation.yaml's rows; ValueError for a row that can't be."""
    rows = []
    for given in OmegaConf.to_container(config.rows, resolve=True):  # type: ignore[union-attr]
        assert isinstance(given, dict)
        if unknown := given.keys() - set(Row._fields):
            raise ValueError(f"a row has {', '.join(map(str, sorted(unknown)))}; it may have {', '.join(Row._fields)}")
        lists = {key: tuple(given[key]) for key in ("overrides", "steps") if key in given}
        group = config.groups.get(given.get("group"), {})
        pursued = {"pursued": group["pursued"]} if "pursued" in group else {}
        rows.append(Row(**(pursued | given | lists)))
    names = [row.name for row in rows]
    for i, row in enumerate(rows):
        if row.name in names[:i] or row.name == TEACHER:
            raise ValueError(f"two rows are called {row.name}; give each its own name")
        if row.after is not None and row.after not in names[:i]:
            raise ValueError(f"the row {row.name} is to come after {row.after}, but no row before it is called so")
        if row.group not in config.groups:
            raise ValueError(f"the row {row.name} is in group {row.group}; the groups are {', '.join(config.groups)}")
        if row.pursued not in (*PURSUED, ALL):
            raise ValueError(f"the row {row.name} pursues {row.pursued}; the figures are {', '.join([*PURSUED, ALL])}")
    return rows


def seeds_of(given: Any) -> list[int]:
    """The seeds that `seeds` asks for."""
    seeds = [0] if given is None else list(range(given)) if type(given) is int else list(given)
    if not seeds or not all(type(seed) is int and seed >= 0 for seed in seeds) or len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds is {given}; give how many, such as 3, or which, such as [0,2]")
    return seeds


def check_numbers(config: DictConfig, names: Sequence[str]) -> None:
    """Raise ValueError for numbers and names that can't be."""
    for key in ("workers", "cycles", "further", "batch", "validations", "clips"):
        if config[key] < 1:
            raise ValueError(f"{key} is {config[key]}; it must be at least 1")
    if config.only is not None and not OmegaConf.is_list(config.only):
        raise ValueError(f"only is {config.only}; write only=[{config.only}]")
    for name in config.only or []:
        if name not in names:
            near = difflib.get_close_matches(str(name), names, 1, 0.3)
            raise ValueError(f"there is no row {name}; " + (f"the nearest is {near[0]}" if near else ", ".join(names)))
    if config.again and (not config.only or config.only_document):
        raise ValueError("again=true makes the rows of `only` again; name them, as only=[vsd], without only_document")


def replaced(common: Sequence[str], own: Sequence[str]) -> list[str]:
    """A row's overrides after the common ones, less those that it says otherwise; a choice takes its keys along."""
    keys = {override.partition("=")[0] for override in own}

    def said(override: str) -> bool:
        key = override.partition("=")[0]
        return any(key == mine or key.startswith(f"{mine}.") for mine in keys)

    return [*(override for override in common if not said(override)), *own]


class Plan:
    """The commands of each row and seed, where they write, and what identifies them."""

    def __init__(self, config: DictConfig, rows: Sequence[Row]) -> None:
        self.config = config
        self.rows = {row.name: row for row in rows}
        self.work = Path(config.work)

    def overrides(self, row: Row) -> list[str]:
        """Of launch/train.py, without seed and folders."""
        c = self.config
        cycles = c.further if row.after else c.cycles
        group = c.groups[row.group].get("overrides", [])
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
        given = [f"checkpoint={self.folder(row.name, seed) / 'student'}", f"clips={self.config.clips}"]
        return ("python", "launch/evaluate.py", *given, f"steps=[{steps}]", self._cache, *self.evaluation(row))

    def evaluation(self, row: Row) -> list[str]:
        """Of launch/evaluate.py for a row: rewards that a table with it has are measured, and no others."""
        rows = self.rows.values()
        shown = {"clip", *(r.pursued for r in rows if r.group == row.group or r.after == row.name)} - {ALL}
        shown = set(PURSUED) if row.pursued == ALL else shown
        c = self.config
        own = replaced(c.student_evaluation, c.groups[row.group].get("evaluation", []))
        return [*c.evaluation, *_weights(shown), *own]

    @property
    def _cache(self) -> str:
        """Where evaluations keep what real clips gave, which is the same for all."""
        return f"cache={self.work / 'cache'}"

    def evaluate_teacher(self) -> tuple[str, ...]:
        """The command that measures the teacher alone."""
        clips = self.config.clips  # all afresh, since no rewards of them are stored
        given = [f"out={self.work / TEACHER}", f"clips={clips}", f"teacher_clips={clips}"]
        return ("python", "launch/evaluate.py", *given, self._cache, *self._teacher_evaluation)

    @property
    def _teacher_evaluation(self) -> list[str]:
        return [*self.config.evaluation, *_weights({"clip", *(row.pursued for row in self.rows.values())} - {ALL})]

    def followers(self, names: Sequence[str]) -> list[str]:
        """These rows and all that start from them, directly or not, in their order."""
        found = set(names)
        for row in self.rows.values():  # a row comes after the one that it starts from
            found |= {row.name} if row.after in found else set()
        return [name for name in self.rows if name in found]

    def made_as(self, row: Row, seed: int) -> str:
        """What the training follows from, in few letters: seed, overrides, and those of the rows before it."""
        before = self.made_as(self.rows[row.after], seed) if row.after else ""
        return _hash([seed, before, self.overrides(row)])

    def identity(self, name: str, seed: int | None) -> str:
        """What a result follows from, in few letters."""
        c = self.config
        if seed is None:
            return _hash([c.clips, self._teacher_evaluation])
        row = self.rows[name]
        return _hash([self.made_as(row, seed), c.clips, row.steps, self.evaluation(row)])

    def trained(self, row: Row, seed: int) -> bool:
        """Whether the student that the training would give is there."""
        folder = self.folder(row.name, seed)
        marker = folder.with_name(f"{row.name}.{MADE_AS}")
        known = json.loads(marker.read_text()) if marker.is_file() else None
        return known == self.made_as(row, seed) and (folder / "student" / "student.json").is_file()

    def prepare(self, row: Row, seed: int) -> None:
        """Remove a run of other settings, and say what the next is made with; ValueError for a stranger's run."""
        folder = self.folder(row.name, seed)
        marker = folder.with_name(f"{row.name}.{MADE_AS}")
        mine = json.dumps(self.made_as(row, seed))
        if folder.exists() and not marker.is_file():
            raise ValueError(f"{folder} was not made by this command; move it away, or name another folder by work=")
        if marker.is_file() and marker.read_text() != mine:
            shutil.rmtree(folder, ignore_errors=True)
        marker.parent.mkdir(parents=True, exist_ok=True)
        marker.write_text(mine)

    def job(self, name: str, seed: int | None) -> Job:
        """What is to be run for a row and seed, or for the teacher; a student that is there is measured alone."""
        if seed is None:
            log = self.work / f"{name}.log"
            return Job(name, (executed(self.evaluate_teacher()),), log, size=self.config.further)
        row = self.rows[name]
        commands = [self.evaluate(row, seed)]
        if not self.trained(row, seed):
            commands.insert(0, self.train(row, seed))
        return Job(
            key_of(name, seed),
            tuple(map(executed, commands)),
            self.work / f"seed{seed}" / f"{name}.log",  # a name may have a point in it
            key_of(row.after, seed) if row.after else None,
            float(_value(self.overrides(row), "cycles")) + self.config.further,
        )


def key_of(name: str, seed: int | None) -> str:
    """A job's name."""
    return name if seed is None else f"{name}/{seed}"


def place_of(key: str) -> tuple[str, int | None]:
    """The name and seed of a job's name."""
    name, slash, seed = key.rpartition("/")
    return (name, int(seed)) if slash else (key, None)


def executed(command: Sequence[str]) -> tuple[str, ...]:
    """A command as it is run, whatever folder this is and whatever python is first."""
    return (sys.executable, str(ROOT / command[1]), *command[2:])


def _value(overrides: Sequence[str], key: str) -> str:
    return next(o.partition("=")[2] for o in overrides if o.startswith(f"{key}="))


def _weights(figures: Collection[str]) -> list[str]:
    """Of launch/evaluate.py, so that each of these figures, named as PURSUED does, is measured."""
    return [f"reward.weights.{FIGURES[figure][-1]}=1" for figure in PURSUED if figure in figures]


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:12]
