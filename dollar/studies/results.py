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
import scipy.stats

from dollar.media import atomically
from dollar.training.log import Curve, read_scalars

DIGITS = 4  # significant ones that results.json keeps
LEAST = 0.05  # of one seed and no known standard error, the share of a figure below which a gap says nothing
# What a table shows of metrics.json: the name here -> where its value lies.
FIGURES = {
    "alignment": ("alignment",),
    "clip": ("scored", "scores", "pickscore"),
    "colourfulness": ("scored", "scores", "colourfulness"),
    "jpeg": ("scored", "scores", "jpeg_compressibility"),
    "motion": ("scored", "scores", "dynamic_degree"),
    "verifier": ("reward",),  # the mean of its margins
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
ALL = "all"  # of a row that is led to none of them and is compared with rows of each
# The trade-off's methods, with which the names of its rows begin.
METHODS = {"lrm": "LRM", "noised": "LRM on noised latents", "ddpo": "DDPO", "direct": "direct gradient"}
CONTROL = "control"  # the row that goes on as those of trade-off and over-optimisation do, but without a reward
# Validation's scalars that become curves, and the terms whose gradient at x_hat is the reward's.
CURVES = ("reward_4", "predicted_4", "guard_4", "alignment_4")
REWARD_TERMS = ("ft", "refl", "draft")
WARM = 5  # cycles until everything that training holds is there: the latent reward model and its past were used


class Row(NamedTuple):
    """One line of a table.

    steps: the step counts that its student is measured at, the first of them in the tables; overrides: of
    launch/train.py; after: the row whose student it starts from; pursued: which of PURSUED it is led to, or ALL.
    """

    name: str
    label: str
    group: str
    overrides: tuple[str, ...] = ()
    after: str | None = None
    steps: tuple[int, ...] = (4,)
    pursued: str = "clip"


def along_beta(rows: Sequence[Row], method: str, guarded: bool = False) -> list[str]:
    """The trade-off's rows of a method, in their order; guarded: with those that the guard may end."""
    mine = [row.name for row in rows if row.group == "tradeoff" and row.name.startswith(f"{method}_")]
    return [name for name in mine if guarded or not name.endswith("_stop")]


def pursued_by(rows: Sequence[Row], group: str) -> str:
    """The figure that the rows of a group are led to, the first where they differ; clip where they are led to none."""
    return next((row.pursued for row in rows if row.group == group and row.pursued != ALL), "clip")


def start_of(rows: Sequence[Row], group: str) -> str:
    """The row whose student the rows of a group start from; "" where they start from the teacher."""
    return next((row.after for row in rows if row.group == group and row.after), "")


class Spread(NamedTuple):
    """Mean and standard deviation (of the sample; 0 for one) over `seeds` of them.

    error: what the mean may be off by, as a standard deviation: over several seeds sd, and of one the standard error
    that its evaluation knows, if any.
    """

    mean: float
    sd: float
    seeds: int
    error: float | None = None


def spread_of(values: Sequence[float | None], error: float | None = None) -> Spread | None:
    """Of the numbers among the values; None where there is none. error: the standard error of one."""
    kept = [v for v in values if v is not None and math.isfinite(v)]
    if not kept:
        return None
    if len(kept) == 1:
        return Spread(float(kept[0]), 0.0, 1, error)
    sd = float(np.std(kept, ddof=1))
    return Spread(float(np.mean(kept)), sd, len(kept), sd)


class Gaps(NamedTuple):
    """Differences of two rows over the seeds that both have, and the standard error of their mean by evaluation alone.

    error: 0 where evaluation doesn't know it.
    """

    values: Sequence[float]
    error: float = 0.0


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
        """A figure of a row by seed: one of FIGURES, or what it cost or fitted; without those that are not known.

        FIGURE_se is its standard error, where evaluation knows it.
        """
        found = {r["seed"]: r["figures"].get(str(steps), {}).get(figure, r.get(figure)) for r in self.of(name)}
        return {seed: float(value) for seed, value in found.items() if value is not None}

    def spread(self, name: str, figure: str, steps: int = 4) -> Spread | None:
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
    """The figures in one system of metrics.json, and as FIGURE_se the standard errors of those that are means."""
    found: dict[str, Any] = {}
    for name, path in FIGURES.items():
        if (value := _at(system, path)) is not None:
            found[name] = value
        if path[0] == "scored" and (error := _at(system, ("scored", "errors", path[-1]))) is not None:
            found[f"{name}_se"] = error
    share, clips = found.get("alignment"), system.get("clips")
    if share is not None and clips:
        found["alignment_se"] = math.sqrt(share * (1 - share) / clips)
    return found


def _at(tree: Any, path: Sequence[str]) -> Any:
    for key in path:
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return tree


def measured_teacher(folder: Path) -> dict[str, Any]:
    """What an evaluation without a student says of the teacher and of real clips."""
    metrics = json.loads((folder / "metrics.json").read_text("utf-8"))
    return {
        "figures": figures_of(metrics["teacher"]),
        "real": figures_of(metrics["real"]),
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
    times, lrm = times_of(scalars), metrics.get("lrm") or {}
    return {
        "figures": {steps: figures_of(system) for steps, system in metrics["student"].items()},
        "rank_correlation": late(scalars, "reward/rank_correlation"),
        "held_rank": lrm.get("rank_correlation"),
        "held_rank_se": rank_error(lrm.get("rank_correlation"), lrm.get("clips", 0)),
        "held_pairwise": lrm.get("pairwise"),
        "climb_predicted": lrm.get("climb_predicted"),
        "climb_true": lrm.get("climb_true"),
        "climb_true_se": lrm.get("climb_true_se"),
        "seconds_per_cycle": float(np.median(times.values)),
        "peak_gib": peak_of(scalars),
        "cycles": int(times.steps[-1]),
        "ended": card.get("ended"),
        "kept": card.get("cycle"),
        "scale": float(scalars["guard/scale"].values[-1]) if "guard/scale" in scalars else None,
        **gradients_of(scalars),
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


def peak_of(scalars: Mapping[str, Curve]) -> float | None:
    """The most memory that training held, in GiB; None where it can't be told from validation's.

    What is logged is the process's most so far, so it counts up to the first validation, if training is warm by then.
    """
    memory, looks = scalars.get("memory/peak_gib"), [c.steps for n, c in scalars.items() if n.startswith("validation/")]
    if memory is None:
        return None
    first = min((steps[0] for steps in looks), default=memory.steps[-1])
    return float(memory.values[memory.steps <= first].max()) if first >= WARM else None


def rank_error(correlation: float | None, clips: int) -> float | None:
    """The standard error of Spearman's rank correlation over so many clips, after Bonett and Wright."""
    if correlation is None or clips < 4:
        return None
    return (1 - correlation**2) * math.sqrt((1 + correlation**2 / 2) / (clips - 3))


def gradients_of(scalars: Mapping[str, Curve]) -> dict[str, float]:
    """Medians over cycles of the gradients' norms at x_hat, VSD's and the reward's, and of the cosine between them."""
    names = {"norm_vsd": "grad_norm/x_hat/vsd"}
    for term in REWARD_TERMS:
        if f"grad_norm/x_hat/{term}" in scalars:
            names |= {"norm_reward": f"grad_norm/x_hat/{term}", "cosine": f"cosine/x_hat/vsd_{term}"}
    return {n: float(np.nanmedian(scalars[key].values)) for n, key in names.items() if key in scalars}


def curves_of(scalars: Mapping[str, Curve]) -> dict[str, list[list[float]]]:
    """Validation's scalars: name -> [cycles, values]."""
    found = {}
    for name in CURVES:
        curve = scalars.get(f"validation/{name}")
        if curve is not None:
            # A latent reward model predicts nothing before it was fitted.
            first = int(name.startswith("predicted") and curve.steps[0] == 0)
            found[name] = [curve.steps[first:].tolist(), curve.values[first:].tolist()]
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
    gaps: Gaps | None = None,
) -> Comparison:
    """Two named spreads; better: 1 where more is better, -1 where less is; undecided where the gap may be chance.

    gaps: a - b seed by seed; where there are two or more, they decide.
    """
    (name_a, x), (name_b, y) = a, b
    if x is None or y is None:
        missing = name_a if x is None else name_b
        return Comparison("unknown", f"{what}: not measured for {missing}")
    text, gap = f"{what}: {name_a} {shown(x, show)}, {name_b} {shown(y, show)}", x.mean - y.mean
    if gaps and len(gaps.values) > 1:
        gap, half = float(np.mean(gaps.values)), half_interval(gaps)
        low, high, decided = gap - half, gap + half, abs(gap) > half
        text += "; difference {} [{}, {}]".format(*(written(value, show) for value in (gap, low, high)))
    else:
        decided = differ(x, y)
    return Comparison("undecided" if not decided else "yes" if better * gap > 0 else "no", text)


def half_interval(gaps: Gaps) -> float:
    """Half of the 95 % interval of two or more differences' mean, after Student.

    It is no less than evaluation's two standard errors, for so few differences may lie close together by chance.
    """
    count = len(gaps.values)
    over_seeds = float(scipy.stats.t.ppf(0.975, count - 1) * np.std(gaps.values, ddof=1)) / math.sqrt(count)
    return max(over_seeds, 2 * gaps.error)


def differ(x: Spread, y: Spread) -> bool:
    """Whether two figures that share no two seeds differ by more than two errors, or LEAST where one isn't known."""
    gap = abs(x.mean - y.mean)
    if x.error is not None and y.error is not None:
        return gap > 2 * math.hypot(x.error, y.error)
    return gap > max(LEAST * max(abs(x.mean), abs(y.mean)), x.sd + y.sd)


def shown(spread: Spread | None, show: Callable[[float], str] = "{:.3f}".format) -> str:
    """Mean ± sd, the mean alone of one seed, a dash where there is none."""
    if spread is None:
        return "—"
    return written(spread.mean, show) + (f" ± {show(spread.sd).removeprefix('+')}" if spread.seeds > 1 else "")


def written(value: float, show: Callable[[float], str]) -> str:
    """A number of which what rounds to nothing has no sign."""
    text = show(value)
    return text if any(digit in text for digit in "123456789") else text.removeprefix("-")


def together(comparisons: Sequence[Comparison]) -> str:
    """The answer of several comparisons that should all be yes: theirs where they agree.

    Otherwise unknown where one is, mixed for yes beside no, unshown for no beside undecided, undecided for yes beside
    undecided.
    """
    answers = {c.answer for c in comparisons}
    if len(answers) == 1:
        return answers.pop()
    if "unknown" in answers:
        return "unknown"
    if "no" not in answers:
        return "undecided"
    return "mixed" if "yes" in answers else "unshown"
