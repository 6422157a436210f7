"""What a study has measured: one json of plain dicts, with the hash of the settings that each result follows from.

A result has `figures` by step count, `curves` by name, and what it cost.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dollar.media import atomically
from dollar.studies.compare import Gaps, Spread, spread_of

DIGITS = 4  # significant ones that results.json keeps


class Results:
    """results.json: `rows` by "name/seed", and the teacher's and the real clips' figures, which no seed changes."""

    def __init__(self, path: Path, steps: int = 4, counts: Mapping[str, int] | None = None) -> None:
        """Read the file, where there is one.

        steps: the step count whose figures are meant where none is named; counts: that of rows that have another.
        """
        self.path = path
        self.steps = steps
        self.counts = counts or {}
        self.stored: dict[str, Any] = {"teacher": {}, "rows": {}}
        if path.is_file():
            try:
                self.stored |= json.loads(path.read_text("utf-8"))
            except ValueError as error:
                raise ValueError(
                    f"{path} can't be read ({error}); restore it, or remove it to measure all rows again"
                ) from None

    def of(self, name: str) -> list[dict[str, Any]]:
        """A row's results, seed by seed."""
        found = [r for key, r in self.stored["rows"].items() if key.rpartition("/")[0] == name]
        return sorted(found, key=lambda result: result["seed"])

    def figure(self, name: str, figure: str, steps: int | None = None) -> dict[int, float]:
        """A figure of a row by seed: an evaluation's, or what it cost or fitted; without those that are not known.

        FIGURE_se is its standard error, where evaluation knows it.
        """
        measured_at = str(self.counts.get(name, self.steps) if steps is None else steps)
        found = {r["seed"]: r["figures"].get(measured_at, {}).get(figure, r.get(figure)) for r in self.of(name)}
        return {seed: float(value) for seed, value in found.items() if value is not None}

    def spread(self, name: str, figure: str, steps: int | None = None) -> Spread | None:
        """A figure of a row over its seeds."""
        values, errors = (list(self.figure(name, f, steps).values()) for f in (figure, f"{figure}_se"))
        return spread_of(values, errors[0] if len(errors) == 1 else None)

    def gaps(self, a: str, b: str, figure: str) -> Gaps:
        """How much more of a figure row a has than row b, seed by seed."""
        of_a, of_b = self.figure(a, figure), self.figure(b, figure)
        seeds = [seed for seed in of_a if seed in of_b]
        errors = [self.figure(name, f"{figure}_se").get(seed, 0.0) for name in (a, b) for seed in seeds]
        return Gaps([of_a[seed] - of_b[seed] for seed in seeds], math.hypot(*errors) / max(len(seeds), 1))

    def teacher(self, figure: str) -> Spread | None:
        """A figure of the teacher, which no seed changes."""
        return self._once("figures", figure)

    def real(self, figure: str) -> Spread | None:
        """A figure of real clips of the same prompts."""
        return self._once("real", figure)

    def _once(self, of: str, figure: str) -> Spread | None:
        known = self.stored["teacher"].get(of, {})
        return spread_of([known.get(figure)], known.get(f"{figure}_se"))

    def dtypes(self) -> str:
        """The dtypes that all rows were trained in, as arguments of a study's command with a space before each."""
        made = " ".join(command for result in self.stored["rows"].values() for command in result["commands"])
        found = {key: set(re.findall(rf"parallel\.{key}=(\w+)", made)) for key in ("dtype", "teacher_dtype")}
        return "".join(f" {key}={value}" for key, values in found.items() for value in values if len(values) == 1)

    def put(self, name: str, seed: int | None, result: Mapping[str, Any]) -> None:
        """Keep a result, the teacher's where there is no seed, and write the file."""
        kept = rounded(result)
        if seed is None:
            self.stored["teacher"] = kept
        else:
            self.stored["rows"][f"{name}/{seed}"] = {**kept, "seed": seed}
        self.write()

    def write(self) -> None:
        """One row a line, so that a difference shows which row changed."""
        rows = ",\n".join(f"{json.dumps(k)}: {compact(v)}" for k, v in sorted(self.stored["rows"].items()))
        with atomically(self.path) as temporary:
            temporary.write_text(
                f'{{"teacher": {compact(self.stored["teacher"])},\n"rows": {{\n{rows}\n}}}}\n', "utf-8"
            )


def compact(value: Any) -> str:
    """JSON without spaces."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


def rounded(value: Any) -> Any:
    """The same with numbers of few digits; what is no number is None, since JSON knows no nan."""
    if isinstance(value, Mapping):
        return {str(key): rounded(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(inner) for inner in value]
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
    return value
