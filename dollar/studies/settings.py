"""The settings of a study as plain values, with the checks of what can't be."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dollar.evaluation.files import SIZES
from dollar.studies.rows import TEACHER, Group, Row


@dataclass(frozen=True)
class Settings:
    """What is trained and measured, where, and what of it now; the names are those of the yaml's keys.

    train: of the command that makes every row, launch/train.py or launch/fit_reward.py. only: names of rows, none for
    all; root: the folder that launch/ is in. Of rows that are trained: cycles and further, of one that starts from the
    teacher, and of one that starts from another's student; evaluation: of launch/evaluate.py for rows and teacher;
    student_evaluation, teacher_evaluation: for one of the two besides; panel: for rows that have a control or are one,
    further rewards.
    """

    rows: Sequence[Row]
    groups: Mapping[str, Group]
    train: Sequence[str]
    work: Path
    out: Path
    root: Path
    evaluation: Sequence[str] = ()
    student_evaluation: Sequence[str] = ()
    teacher_evaluation: Sequence[str] = ()
    panel: Sequence[str] = ()
    cycles: int = 1
    further: int = 1
    batch: int = 1
    validations: int = 1
    clips: int = 1
    seeds: Sequence[int] = (0,)
    only: Sequence[str] = ()
    again: bool = False
    workers: int = 2
    only_document: bool = False


def check(settings: Settings) -> None:
    """Raise ValueError for numbers and names that can't be."""
    for key in ("workers", "cycles", "further", "batch", "validations", "clips"):
        if getattr(settings, key) < 1:
            raise ValueError(f"{key} is {getattr(settings, key)}; it must be at least 1")
    if "teacher_clips=0" in settings.student_evaluation and settings.clips not in SIZES:
        raise ValueError(
            f"clips is {settings.clips}; rows are compared with the teacher's stored figures, which are of "
            f"{', '.join(map(str, SIZES))} clips, so give one of these"
        )
    names = [TEACHER, *(row.name for row in settings.rows)]
    for name in settings.only:
        if name not in names:
            near = difflib.get_close_matches(str(name), names, 1, 0.3)
            raise ValueError(f"there is no row {name}; " + (f"the nearest is {near[0]}" if near else ", ".join(names)))
    if settings.again and (not settings.only or settings.only_document):
        raise ValueError("again=true makes the rows of `only` again; name them, as only=[vsd], without only_document")
