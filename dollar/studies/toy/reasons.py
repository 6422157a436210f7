"""Whether the appendix's order is had in the mean, and what the errors say of why: sentences made of the figures."""

from __future__ import annotations

from dollar.studies.results import Results
from dollar.studies.toy.rows import BASE, DPO, FULL, LABELS, OBJECTIVES, READINGS, distance_figure, mode_figure
from dollar.studies.toy.seeds import Setting

FLAT = 0.05  # the share of its error that a network at its capacity's end loses in the last quarter of its training


class Means:
    """The means of rows' figures over seeds, and sentences of them."""

    def __init__(self, results: Results) -> None:
        self.results = results

    def of(self, name: str, figure: str) -> float:
        """A mean; nan where it isn't known."""
        spread = self.results.spread(name, figure)
        return spread.mean if spread else float("nan")

    def ordered(self, figure: str, names: tuple[str, ...]) -> str:
        """Rows with their means, the lowest first."""
        found = sorted(names, key=lambda name: self.of(name, figure))
        return ", ".join(f"{LABELS[name]} {self.of(name, figure):.0f}" for name in found)

    def change(self, figure: str, name: str, start: str = BASE) -> str:
        """How a figure of a row differs from the base student's, in words and numbers."""
        before, after = self.of(start, figure), self.of(name, figure)
        verb = "rises" if after > before else "falls"
        return f"{verb} from {before:.4f} to {after:.4f}"


def order(setting: Setting, results: Results) -> list[str]:
    """A line a statement of the appendix: whether the means have it."""
    means = Means(results)
    others = [k for k in range(1, setting.modes.count + 1) if k != setting.preferred]
    lines = []
    for words, (sft, both) in READINGS.items():
        had = means.of(sft, "outside") > means.of(BASE, "outside")
        lines.append(told(f"SFT on {words} makes more samples outside than the base student", had))
        names = (BASE, sft, DPO, both)
        lowest = min(names, key=lambda name: means.of(name, "outside"))
        lines.append(
            told(f"DPO with SFT on {words} makes the fewest samples outside", lowest == both)
            + f" In order: {means.ordered('outside', names)}."
        )
    for k in others:
        before, after = (means.of(name, mode_figure(k)) for name in (BASE, DPO))
        lines.append(
            told(f"DPO alone loses mode {k}", after < before)
            + f" Of the base student's {before:.0f} samples there {after:.0f} are left."
        )
    return lines


def told(statement: str, had: bool) -> str:
    """A statement with whether it is had in the mean."""
    return f"- {statement}: **{'had' if had else 'not had'}** in the mean."


def bound(means: Means) -> str:
    """Whether training or capacity is what the base student lacks, by how much the end of its training gave."""
    fallen = 1 - means.of(BASE, "excess_late") / means.of(BASE, "excess_early")
    if fallen > FLAT:
        return (
            f"The last quarter still took {fallen:.0%} off the base student's: it isn't at its capacity's end, and "
            "a loss may gain by training it further alone."
        )
    return f"The last quarter took {fallen:.0%} off the base student's, so what it lacks is capacity, not training."


def reasons(setting: Setting, results: Results) -> list[str]:
    """Sentences on what each loss did to the errors that it is made of, from which the counts follow."""
    means, preferred = Means(results), setting.preferred
    modes = range(1, setting.modes.count + 1)
    lines = [
        f"- **What there is to gain.** Of {setting.samples:,} samples the base student has "
        f"{means.of(BASE, 'outside'):.0f} outside and the teacher {means.of(FULL, 'outside'):.0f}. Its error beyond "
        f"the exact score's is {means.of(BASE, 'excess_late'):.4f} at the end of its training and was "
        f"{means.of(BASE, 'excess_early'):.4f} at three quarters of it; the teacher's are "
        f"{means.of(FULL, 'excess_late'):.4f} and {means.of(FULL, 'excess_early'):.4f}. {bound(means)}"
    ]
    for sft, _ in READINGS.values():
        there = "; ".join(f"in mode {k} it {means.change(distance_figure(k), sft)}" for k in modes)
        fewer = means.of(sft, "outside") < means.of(BASE, "outside")
        result = "fewer" if fewer else "no fewer"
        lines.append(
            f"- **{LABELS[sft]}** draws the student's outputs towards the teacher's. Their mean squared distance: "
            f"{there}. The student ends with {result} samples outside than it began with."
        )
    for name, objective in OBJECTIVES.items():
        if objective.dpo:
            lines.append(
                f"- **{LABELS[name]}**: the winners' error above the teacher's {means.change('winner', name)}, the "
                f"losers' {means.change('loser', name)}, and the share of pairs that the margin has right "
                f"{means.change('accuracy', name)}. Mode {preferred} has {means.of(name, mode_figure(preferred)):.0f} "
                f"samples, the teacher's has {means.of(FULL, mode_figure(preferred)):.0f}."
            )
    return lines
