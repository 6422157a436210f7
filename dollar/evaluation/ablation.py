"""The ablation's rows and what they measured: read from a run, kept in one json, averaged over seeds, compared.

A result is a plain dict, as results.json keeps it: `figures` by step count, `curves` by name, and what it cost.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dollar.log import Curve, read_scalars
from dollar.media import atomically

DIGITS = 4  # significant ones that results.json keeps
CURVE = 60  # points of a curve that results.json keeps
# What a table shows of metrics.json: the name here -> where its value lies.
FIGURES = {
    "alignment": ("alignment",),
    "clip": ("scored", "scores", "pickscore"),
    "colourfulness": ("scored", "scores", "colourfulness"),
    "jpeg": ("scored", "scores", "jpeg_compressibility"),
    "motion": ("scored", "scores", "dynamic_degree"),
    "verifier": ("reward",),
    "frechet": ("frechet", "excess"),
    "vendi": ("vendi", "mean"),
    "sharpness": ("sharpness",),
}
# Those of them that a row can be led to, and how they are called.
PURSUED = {
    "clip": "CLIP reward",
    "colourfulness": "colourfulness",
    "jpeg": "JPEG compressibility",
    "motion": "dynamic degree",
}
# The trade-off's methods, with which the names of its rows begin.
METHODS = {"lrm": "LRM", "ddpo": "DDPO", "direct": "direct gradient"}
# Validation's scalars that become curves, and the training's that are told by their median.
CURVES = ("reward", "predicted", "guard", "alignment")
MEDIANS = ("grad_norm/x_hat/", "cosine/x_hat/")


class Row(NamedTuple):
    """One line of a table.

    steps: the step counts that its student is measured at, the first of them in the tables; overrides: of
    launch/train.py; after: the row whose student it starts from; pursued: which of PURSUED it is led to, if to any.
    """

    name: str
    label: str
    group: str
    overrides: tuple[str, ...] = ()
    after: str | None = None
    steps: tuple[int, ...] = (4,)
    pursued: str = "clip"


def along_beta(rows: Sequence[Row], method: str) -> list[str]:
    """The trade-off's rows of a method, in their order, without those that the guard may end."""
    mine = [row.name for row in rows if row.group == "tradeoff" and row.name.startswith(f"{method}_")]
    return [name for name in mine if not name.endswith("_stop")]


class Spread(NamedTuple):
    """Mean and standard deviation (of the sample; 0 for one) over `seeds` of them."""

    mean: float
    sd: float
    seeds: int


def spread_of(values: Sequence[float | None]) -> Spread | None:
    """Of the numbers among the values; None where there is none."""
    kept = [v for v in values if v is not None and math.isfinite(v)]
    if not kept:
        return None
    return Spread(float(np.mean(kept)), float(np.std(kept, ddof=1)) if len(kept) > 1 else 0.0, len(kept))


class Results:
    """results.json: `rows` by "name/seed", and the teacher's and the real clips' figures, which no seed changes."""

    def __init__(self, path: Path) -> None:
        self.path = path
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

    def figure(self, name: str, figure: str, steps: int = 4) -> dict[int, float]:
        """A figure of a row by seed: one of FIGURES, or what it cost or fitted; without those that are not known."""
        found = {r["seed"]: r["figures"].get(str(steps), {}).get(figure, r.get(figure)) for r in self.of(name)}
        return {seed: float(value) for seed, value in found.items() if value is not None}

    def spread(self, name: str, figure: str, steps: int = 4) -> Spread | None:
        """A figure of a row over its seeds."""
        return spread_of(list(self.figure(name, figure, steps).values()))

    def teacher(self, figure: str) -> float | None:
        """A figure of the teacher."""
        return self.stored["teacher"].get("figures", {}).get(figure)

    def real(self, figure: str) -> float | None:
        """A figure of real clips of the same prompts."""
        return self.stored["teacher"].get("real", {}).get(figure)

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


def figures_of(system: Mapping[str, Any]) -> dict[str, float]:
    """The table's figures in one system of metrics.json."""
    found: dict[str, Any] = {}
    for name, path in FIGURES.items():
        value: Any = system
        for key in path:
            value = value.get(key) if isinstance(value, Mapping) else None
        if value is not None:
            found[name] = value
    return found


def measured_teacher(folder: Path) -> dict[str, Any]:
    """What an evaluation without a student says of the teacher and of real clips."""
    metrics = json.loads((folder / "metrics.json").read_text("utf-8"))
    return {
        "figures": figures_of(metrics["teacher"]),
        "real": figures_of(metrics["real"]),
        "clips": metrics["teacher"]["clips"],
    }


def measured(folder: Path) -> dict[str, Any]:
    """What a trained and evaluated run says: figures, curves, cost, and how its training ended.

    OSError or ValueError for a run that lacks a file.
    """
    metrics = json.loads((folder / "metrics.json").read_text("utf-8"))
    card = json.loads((folder / "student" / "student.json").read_text("utf-8"))
    scalars = read_scalars(folder)
    if "time/cycle" not in scalars:
        raise ValueError(f"{folder} has no times in its metrics.jsonl; it was not trained by launch/train.py")
    times = times_of(scalars)
    return {
        "figures": {steps: figures_of(system) for steps, system in metrics["student"].items()},
        "rank_correlation": late(scalars, "reward/rank_correlation"),
        "pairwise": late(scalars, "reward/pairwise"),
        "held_rank": (metrics.get("lrm") or {}).get("rank_correlation"),
        "held_pairwise": (metrics.get("lrm") or {}).get("pairwise"),
        "seconds_per_cycle": float(np.median(times.values)),
        "peak_gib": float(scalars["memory/peak_gib"].values.max()) if "memory/peak_gib" in scalars else None,
        "cycles": int(times.steps[-1]),
        "ended": card.get("ended"),
        "kept": card.get("cycle"),
        "medians": {n: float(np.median(c.values)) for n, c in scalars.items() if n.startswith(MEDIANS)},
        "curves": curves_of(scalars),
    }


def late(scalars: Mapping[str, Curve], name: str) -> float | None:
    """The mean of a scalar's later half, for one value of few clips says little."""
    values = scalars[name].values if name in scalars else np.array([])
    values = values[np.isfinite(values)]
    return float(values[len(values) // 2 :].mean()) if len(values) else None


def times_of(scalars: Mapping[str, Curve]) -> Curve:
    """Seconds of each cycle: the processor's where it did the work, for the clock's depend on its other work."""
    return scalars.get("time/processor", scalars["time/cycle"])


def curves_of(scalars: Mapping[str, Curve]) -> dict[str, list[list[float]]]:
    """Validation's scalars: name -> [cycles, seconds of training until then, values]; and the guard's scale."""
    times, found = times_of(scalars), {}
    for name, curve in scalars.items():
        short = name.removeprefix("validation/")
        if (short != name and short.startswith(CURVES)) or name == "guard/scale":
            chosen = np.unique(np.linspace(0, len(curve.steps) - 1, min(CURVE, len(curve.steps))).round().astype(int))
            cycles, values = curve.steps[chosen], curve.values[chosen]
            seconds = [float(times.values[times.steps <= cycle].sum()) for cycle in cycles]
            found[short] = [[int(cycle) for cycle in cycles], seconds, values.tolist()]
    return found


class Comparison(NamedTuple):
    """Whether a is better than b: `answer` is yes, no, undecided or unknown; `text` the numbers that decide."""

    answer: str
    text: str


def compare(
    what: str,
    a: tuple[str, Spread | None],
    b: tuple[str, Spread | None],
    better: int = 1,
    show: Callable[[float], str] = "{:.3f}".format,
) -> Comparison:
    """Two named spreads; better: 1 where more is better, -1 where less is. Undecided where mean ± sd overlap."""
    (name_a, x), (name_b, y) = a, b
    if x is None or y is None:
        missing = name_a if x is None else name_b
        return Comparison("unknown", f"{what}: not measured for {missing}")
    text = f"{what}: {name_a} {shown(x, show)}, {name_b} {shown(y, show)}"
    gap = better * (x.mean - y.mean)
    return Comparison("undecided" if abs(gap) <= x.sd + y.sd else "yes" if gap > 0 else "no", text)


def shown(spread: Spread | None, show: Callable[[float], str] = "{:.3f}".format) -> str:
    """Mean ± sd, the mean alone of one seed, a dash where there is none."""
    if spread is None:
        return "—"
    return show(spread.mean) + (f" ± {show(spread.sd)}" if spread.seeds > 1 else "")


def together(comparisons: Sequence[Comparison]) -> str:
    """The answer of several comparisons: theirs where they agree, mixed for yes beside no, otherwise the weaker."""
    answers = {c.answer for c in comparisons}
    if len(answers) == 1:
        return answers.pop()
    for answer in ("unknown", "undecided"):
        if answer in answers:
            return answer
    return "mixed"
