"""What each unit of a network is worth, and which can go: the table, the orders in it, and the rule that chooses."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from dollar.media import atomically

RULES = ("intersection", "total")
BY = ("reward", "prediction", "influence")


@dataclass(frozen=True)
class Worth:
    """What the network is without a unit.

    scores: the mean of each of the reward's values over the clips that have them all, larger is better; unscored: clips
    that have not. prediction: the mean squared change of the network's output; influence: 1 - the cosine of the hidden
    states before and after the unit. None is not measured.
    """

    scores: Mapping[str, float] | None = None
    unscored: int = 0
    prediction: float | None = None
    influence: float | None = None


@dataclass
class Table:
    """Units in the network's order, each with what the network is worth without it; `full` is the whole network.

    properties: the values whose mean is the total; consistency: the one that the intersection looks at as well, ""
    where there is none.
    """

    units: Sequence[str]
    properties: Sequence[str] = ()
    consistency: str = ""
    full: Worth | None = None
    rows: dict[str, Worth] = field(default_factory=dict)

    def add(self, unit: str, **measured: Any) -> None:
        """Take further measures of a unit, as fields of `Worth`."""
        self.rows[unit] = replace(self.rows.get(unit, Worth()), **measured)

    def take(self, other: Table) -> None:
        """Take over what another table knows of the same network, whatever is made of it."""
        self.full = other.full
        self.rows |= other.rows

    def total(self, worth: Worth) -> float:
        """The mean of the properties; nan where there are no scores."""
        if worth.scores is None or not self.properties:
            return math.nan
        return sum(worth.scores[name] for name in self.properties) / len(self.properties)

    def order(self, by: str) -> list[str]:
        """The units, that first whose absence costs least by `total`, `prediction`, `influence` or a value's name.

        Those of which it isn't known are left out; units that are alike stay in the network's order.
        """
        values = {unit: self._cost(self.rows[unit], by) for unit in self.units if unit in self.rows}
        return sorted((unit for unit, value in values.items() if value == value), key=lambda unit: values[unit])

    def _cost(self, worth: Worth, by: str) -> float:
        if by in ("prediction", "influence"):
            value = getattr(worth, by)
            return math.nan if value is None else float(value)
        if by == "total":
            return -self.total(worth)
        return math.nan if worth.scores is None else -worth.scores[by]

    def chosen(self, count: int, by: str = "reward", rule: str = "intersection") -> list[str]:
        """The units that go, `count` of them, in the order in which they cost least.

        by reward: of the best by total alone, or with the rule `intersection` of those that are among the best n both
        by total and by consistency, n growing from `count` until there are enough (V.I.P., appendix C.1).
        ValueError where there are fewer, or all values are alike.
        """
        first = self.order("total" if by == "reward" else by)
        if count < 1 or count > len(first):
            raise ValueError(
                f"k is {count}; of {len(self.units)} units {len(first)} are ranked, so give 1 to {len(first)}"
            )
        self._check_spread(first, by)
        if by != "reward" or rule == "total":
            return first[:count]
        # Of units that are alike in consistency the total decides, and of those without scores none is among the first.
        second = sorted(first, key=lambda unit: self._cost(self.rows[unit], self.consistency))
        for most in range(count, len(first) + 1):
            among = {*first[:most]} & {*second[:most]}
            if len(among) >= count:
                return [unit for unit in first if unit in among][:count]
        raise AssertionError("both orders hold the same units")

    def _check_spread(self, units: Sequence[str], by: str) -> None:
        costs = {self._cost(self.rows[unit], "total" if by == "reward" else by) for unit in units}
        if len(units) > 1 and max(costs) - min(costs) <= 1e-9 * max(abs(cost) for cost in costs):
            raise ValueError(
                f"all {len(units)} units are worth the same by {by}, so none can be chosen; rank by another reward, on "
                "more clips, or by=prediction"
            )

    # As a file

    def write(self, path: Path, chosen: Sequence[str] = ()) -> None:
        """Write the table; chosen: the units that go, once it is known."""
        plain = {key: value for key, value in asdict(self).items() if key != "rows"} | {"chosen": list(chosen)}
        plain["rows"] = {unit: asdict(self.rows[unit]) for unit in self.units if unit in self.rows}
        with atomically(path) as temporary:
            temporary.write_text(json.dumps(plain, indent=1) + "\n", encoding="utf-8")

    @staticmethod
    def read(path: Path) -> Table:
        """The table of a file; ValueError where it can't be read."""
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            rows = {str(unit): Worth(**row) for unit, row in found["rows"].items()}
            full = None if found["full"] is None else Worth(**found["full"])
            return Table(found["units"], found["properties"], found["consistency"], full, rows)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} can't be read ({error!r}); remove it, and it is made anew") from None


def spearman(one: Sequence[float], other: Sequence[float]) -> float:
    """The rank correlation of two lists of values; nan where one is constant or there are fewer than three."""
    import scipy.stats

    if len(one) < 3 or len(set(one)) < 2 or len(set(other)) < 2:
        return math.nan
    return float(scipy.stats.spearmanr(one, other).statistic)


def table_text(table: Table, chosen: Sequence[str] = ()) -> str:
    """The table as lines of text, the units that go marked."""
    names = [*table.properties]
    wide = max(map(len, [*table.units, "whole network"])) + 2
    columns = ["total", *names, "prediction", "influence", "unscored"]
    lines = ["".ljust(wide) + "".join(name[:14].rjust(16) for name in columns)]

    def line(name: str, worth: Worth) -> str:
        scores = worth.scores or {}
        values = [table.total(worth), *(scores.get(n, math.nan) for n in names)]
        cells = [*values, *(math.nan if v is None else v for v in (worth.prediction, worth.influence))]
        text = "".join(("—" if cell != cell else f"{cell:.4f}").rjust(16) for cell in cells)
        return name.ljust(wide) + text + f"{worth.unscored or '':>16}" + ("   goes" if name in chosen else "")

    if table.full is not None:
        lines.append(line("whole network", table.full))
    return "\n".join([*lines, *(line(f"{unit}", table.rows[unit]) for unit in table.units if unit in table.rows)])
