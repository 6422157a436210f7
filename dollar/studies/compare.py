"""Figures over seeds, and whether one row's is beyond chance better than another's."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import scipy.stats

LEAST = 0.05  # of one seed and no known standard error, the share of a figure below which a gap says nothing


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


class Comparison(NamedTuple):
    """Whether a is better than b: `answer` is yes, no, undecided or unknown; `text` the numbers that decide.

    Of a bar that is to be reached it may be met or missed, which the mean alone says.

    what: the figure that is compared; effect: a's minus b's, with its sign; interval: its 95 % interval over seeds.
    Those are empty where they aren't known.
    """

    answer: str
    text: str
    what: str = ""
    effect: str = ""
    interval: str = ""


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
        return Comparison("unknown", f"{what}: not measured for {missing}", what)
    text, gap, interval = f"{what}: {name_a} {shown(x, show)}, {name_b} {shown(y, show)}", x.mean - y.mean, ""
    if gaps and len(gaps.values) > 1:
        gap, half = float(np.mean(gaps.values)), half_interval(gaps)
        interval, decided = brackets(gap, half, show), abs(gap) > half
        text += f"; difference {written(gap, show)} {interval}"
    else:
        decided = differ(x, y)
    answer = "undecided" if not decided else "yes" if better * gap > 0 else "no"
    return Comparison(answer, text, what, signed(gap, show), interval)


def no_more(what: str, gaps: Gaps, show: Callable[[float], str] = "{:.3f}".format) -> Comparison:
    """Whether differences are 0 at most: yes where their whole interval is, no where none of it is; one can't say."""
    if not gaps.values:
        return Comparison("unknown", f"{what}: not measured", what)
    mean = float(np.mean(gaps.values))
    if len(gaps.values) == 1:
        return Comparison("undecided", f"{what}: {signed(mean, show)}, of one seed", what, signed(mean, show))
    half = half_interval(gaps)
    interval = brackets(mean, half, show)
    answer = "yes" if mean + half <= 0 else "no" if mean - half > 0 else "undecided"
    return Comparison(answer, f"{what}: {signed(mean, show)} {interval}", what, signed(mean, show), interval)


def reaches(
    what: str, gaps: Gaps, bar: float, less: bool = False, show: Callable[[float], str] = "{:.3f}".format
) -> Comparison:
    """Whether values' mean reaches a bar: at least it, or at most it where less is asked.

    yes and no where their whole interval says so, otherwise met and missed, which are of the mean alone. One value has
    the interval of its evaluation's two standard errors, none where that isn't known.
    """
    asked = f"{'at most' if less else 'at least'} {written(bar, show)}"
    if not gaps.values:
        return Comparison("unknown", f"{what}: not measured; asked is {asked}", what)
    mean, several = float(np.mean(gaps.values)), len(gaps.values) > 1
    half = half_interval(gaps) if several else 2 * gaps.error
    interval = brackets(mean, half, show) if half or several else ""
    room = bar - mean if less else mean - bar
    answer = "met" if room >= 0 else "missed"
    if interval and abs(room) >= half:
        answer = "yes" if room >= 0 else "no"
    effect = written(mean, show)
    text = f"{what}: {effect}{f' {interval}' if interval else ''}; asked is {asked}"
    return Comparison(answer, text, what, effect, interval)


def brackets(mean: float, half: float, show: Callable[[float], str]) -> str:
    """An interval around a mean, as [low, high]."""
    return f"[{written(mean - half, show)}, {written(mean + half, show)}]"


def signed(value: float, show: Callable[[float], str]) -> str:
    """A number with its sign, also above 0."""
    text = written(value, show)
    return text if text[0] in "+-" or value <= 0 else f"+{text}"


def change(gaps: Gaps, show: Callable[[float], str] = "{:.3f}".format) -> str:
    """A mean difference with its interval; a dash where there is none, in bold where it falls beyond chance."""
    if not gaps.values:
        return "—"
    mean = float(np.mean(gaps.values))
    if len(gaps.values) == 1:
        return signed(mean, show)
    text = f"{signed(mean, show)} {brackets(mean, half_interval(gaps), show)}"
    return f"**{text}**" if falls(gaps) else text


def falls(gaps: Gaps) -> bool:
    """Whether differences of two seeds or more are below 0 beyond chance."""
    return len(gaps.values) > 1 and float(np.mean(gaps.values)) + half_interval(gaps) < 0


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

    Otherwise unknown where one is, mixed for yes and no, unshown for no and undecided, undecided for yes and
    undecided; of bars met for yes and met, missed for no and missed, mixed for others.
    """
    answers = {c.answer for c in comparisons}
    if len(answers) == 1:
        return answers.pop()
    if "unknown" in answers:
        return "unknown"
    if answers & {"met", "missed"}:
        return "met" if answers <= {"yes", "met"} else "missed" if answers <= {"no", "missed"} else "mixed"
    if "no" not in answers:
        return "undecided"
    return "mixed" if "yes" in answers else "unshown"


def rank_error(correlation: float | None, clips: int) -> float | None:
    """The standard error of Spearman's rank correlation over so many clips, after Bonett and Wright."""
    if correlation is None or clips < 4:
        return None
    return (1 - correlation**2) * math.sqrt((1 + correlation**2 / 2) / (clips - 3))
