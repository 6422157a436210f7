"""What a row of the study of V.I.P. runs: all stages, a training on another row's pairs, or a measurement alone."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dollar.studies.content import Content
from dollar.studies.rows import Row, replaced
from dollar.studies.runs import Runs, hash_of
from dollar.studies.settings import Settings

LEFT = {"train": "student/student.json", "vip": "result.json", "evaluate": "metrics.json"}
MEASURING = 150  # cycles on pairs that take about as long as a row's evaluation
STAGE = 400  # and as long as a stage's ranking, pairs and scores
LOOKS = 4  # validations of a training on pairs
PLACE = re.compile(r"\{(\w+)\}")


def rows_of(given: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of the configuration, each with all that its command is given besides seed and folders.

    ValueError for what no row can be, and for dtypes in which student and reference can't be compared.
    """
    if given["dtype"] != given["teacher_dtype"]:
        raise ValueError(
            f"dtype is {given['dtype']} and teacher_dtype {given['teacher_dtype']}, but the errors of student and "
            "reference are compared; give both the same"
        )
    measuring = replaced(given["evaluation"], [*given["student_evaluation"], f"clips={given['clips']}"])
    found: list[dict[str, Any]] = []
    for row in given["rows"]:
        own, verb = list(row.get("overrides", ())), row.get("verb", "train")
        if verb not in LEFT:
            raise ValueError(f"the row {row.get('name')} has verb {verb}; use one of {', '.join(LEFT)}")
        read, before = PLACE.findall(" ".join(own)), [other["name"] for other in found]
        if unknown := [name for name in read if name not in before]:
            raise ValueError(f"the row {row.get('name')} reads {{{unknown[0]}}}, but no row before it is called so")
        if verb == "vip":
            training = next((o for o in own if o.startswith("train=[")), "train=[]")
            words = training.removeprefix("train=[").removesuffix("]").split(",")
            trained = replaced([*given["train"], *given["on_pairs"]], _looked_at(words))
            rest = [o for o in own if o != training]
            own = replaced(given["vip"], [*rest, _listed("train", trained), _listed("evaluate", measuring)])
        elif verb == "train" and _value(own, "experiment") is None:
            own = replaced([*given["train"], *given["on_pairs"], *given["alone"]], _looked_at(own))
        elif verb == "train":
            own = replaced([*given["train"], "validation.every=0"], own)
        found.append({**row, "overrides": own})
    return found


def _looked_at(own: Sequence[str]) -> list[str]:
    """What a training on pairs is given, with validations for its curve."""
    every = max(1, int(_value(own, "cycles") or 1) // LOOKS)
    return [f"validation.every={every}", *own]


def _listed(key: str, words: Sequence[str]) -> str:
    return f"{key}=[{','.join(words)}]"


def _value(overrides: Sequence[str], key: str) -> str | None:
    return next((o.partition("=")[2] for o in reversed(overrides) if o.startswith(f"{key}=")), None)


class Smaller(Runs):
    """Rows that make a network smaller, train what is left, or measure it.

    experiments: what those that rows name hold, as plain values, by their names. {NAME} in a row's overrides is the
    folder of another row of the same seed.
    """

    def __init__(self, settings: Settings, content: Content, experiments: Mapping[str, Mapping[str, Any]]) -> None:
        super().__init__(settings, content)
        self.experiments = experiments

    def overrides(self, row: Row) -> list[str]:
        """Of the row's command, without seed and folders."""
        return list(row.overrides)

    def left(self, row: Row) -> Path:
        """What a row's first command leaves."""
        return Path(LEFT[row.verb])

    def commands(self, row: Row, seed: int) -> tuple[tuple[str, ...], ...]:
        """All commands of a row; one that runs all stages, or only measures, has one."""
        own, folder = [self._placed(o, seed) for o in self.overrides(row)], self.folder(row.name, seed)
        if row.verb == "vip":
            return (("python", "launch/vip.py", f"out={folder}", f"seed={seed}", *own),)
        if row.verb == "evaluate":
            return (self._measure(row, [*own, f"out={folder}"]),)
        given = [f"run={row.name}", f"runs={folder.parent}", f"seed={seed}", *own]
        return (("python", "launch/train.py", *given), self._measure(row, [f"checkpoint={folder / 'student'}"]))

    def _measure(self, row: Row, given: Sequence[str]) -> tuple[str, ...]:
        return ("python", "launch/evaluate.py", *given, f"clips={self.settings.clips}", *self.evaluation(row))

    def evaluation(self, row: Row) -> list[str]:
        """Of launch/evaluate.py for a row."""
        return replaced(self.settings.evaluation, self.settings.student_evaluation)

    def before(self, row: Row) -> list[Row]:
        """The rows whose folders a row reads."""
        names = {name for override in self.overrides(row) for name in PLACE.findall(override)}
        return [self.rows[name] for name in self.rows if name in names]

    def made_as(self, row: Row, seed: int) -> str:
        """What the row follows from, in few letters: seed, settings, and those of the rows that it reads."""
        return hash_of([seed, [self.made_as(other, seed) for other in self.before(row)], self.recipe(row)])

    def recipe(self, row: Row) -> Any:
        """The settings of a row, what its experiment holds among them."""
        name = _value(self.overrides(row), "experiment")
        return [row.verb, self.overrides(row), self.experiments[name] if name else None]

    def size(self, row: Row | None) -> float:
        """How long a row takes compared with others, in cycles on pairs."""
        if row is None or row.verb == "evaluate":
            return float(MEASURING)
        own = self.overrides(row)
        if row.verb == "train":
            return (
                float(_value(own, "cycles") or self.experiments[_value(own, "experiment") or ""]["cycles"]) + MEASURING
            )
        words = (_value(own, "train") or "")[1:-1].split(",")
        stages = (_value(own, "stages") or "[1]").count(",") + 1
        return stages * (float(_value(words, "cycles") or 1) + STAGE) + MEASURING

    def _placed(self, override: str, seed: int) -> str:
        return PLACE.sub(lambda found: str(self.folder(found[1], seed)), override)
