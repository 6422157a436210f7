"""One picture of a ranking: what the network is without each unit."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from dollar.studies.plots import BLUE, GREEN, INK, ORANGE, PURPLE, RED, save
from dollar.vip.ranking import Table, Worth


def draw_ranking(path: Path, table: Table, chosen: Collection[str]) -> None:
    """Write as SVG a panel of bars for each measure there is, in the network's order; the units that go have red names.

    The reward's panels have a line at the whole network's value.
    """
    panels: list[tuple[str, str, Callable[[Worth], float | None]]] = []
    if table.full is not None:
        panels.append(("mean of the properties", BLUE, lambda worth: table.total(worth)))
        if name := table.consistency:
            panels.append((name.replace("_", " "), GREEN, lambda worth: (worth.scores or {}).get(name)))
    panels += [
        ("change of the prediction", ORANGE, lambda worth: worth.prediction),
        ("1 - cosine of input and output", PURPLE, lambda worth: worth.influence),
    ]
    units = [unit for unit in table.units if unit in table.rows]

    def draw(plt: Any) -> Any:
        height = max(2.2, 0.22 * len(units) + 1)
        figure, axes = plt.subplots(1, len(panels), figsize=(2.6 * len(panels) + 1.2, height), sharey=True)
        places = range(len(units))
        for ax, (title, colour, value) in zip(axes, panels, strict=True):
            found = [value(table.rows[unit]) for unit in units]
            ax.barh(places, [math.nan if v is None else v for v in found], color=colour, height=0.7)
            if table.full is not None and (whole := value(table.full)) is not None:
                ax.axvline(whole, color=INK, linewidth=1, linestyle="--")
            ax.set_title(title)
            ax.grid(axis="y", visible=False)
            ax.set_axisbelow(True)
        axes[0].set_yticks(places, units)
        for label, unit in zip(axes[0].get_yticklabels(), units, strict=True):
            label.set_color(RED if unit in chosen else INK)
        axes[0].invert_yaxis()
        figure.suptitle(
            "Without each unit; dashed: the whole network; red: goes" if chosen else "Without each unit",
            x=0.01,
            ha="left",
        )
        return figure

    save(path, draw)
