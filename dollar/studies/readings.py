"""What a trained and evaluated run says: figures in its metrics.json, costs and curves in its scalars."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dollar.training.log import Curve

WARM = 5  # cycles until everything that training holds is there: the latent reward model and its past were used

Paths = Mapping[str, tuple[str, ...]]  # a figure's name -> where metrics.json has its value


def figures_of(system: Mapping[str, Any], paths: Paths) -> dict[str, float]:
    """The figures of one model in metrics.json, and as FIGURE_se the standard errors of those that are means."""
    found: dict[str, Any] = {}
    for name, path in paths.items():
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


def late(scalars: Mapping[str, Curve], name: str) -> float | None:
    """The mean of a scalar's later half, for one value of few clips says little."""
    values = scalars[name].values if name in scalars else np.array([])
    values = values[np.isfinite(values)]
    return float(values[len(values) // 2 :].mean()) if len(values) else None


def times_of(scalars: Mapping[str, Curve]) -> Curve:
    """Seconds of each cycle: the processor's where it did the work, for the clock's depend on its other work."""
    return scalars.get("time/processor", scalars["time/cycle"])


def peak_of(scalars: Mapping[str, Curve]) -> float | None:
    """The most memory that training held, in GiB; None where it can't be distinguished from validation's.

    What is logged is the process's most so far, so it counts up to the first validation, if training is warm by then.
    """
    memory, looks = scalars.get("memory/peak_gib"), [c.steps for n, c in scalars.items() if n.startswith("validation/")]
    if memory is None:
        return None
    first = min((steps[0] for steps in looks), default=memory.steps[-1])
    return float(memory.values[memory.steps <= first].max()) if first >= WARM else None


def curves_of(scalars: Mapping[str, Curve], names: Sequence[str]) -> dict[str, list[list[float]]]:
    """Validation's scalars: name -> [cycles, values]."""
    found = {}
    for name in names:
        curve = scalars.get(f"validation/{name}")
        if curve is not None:
            # A latent reward model predicts nothing before it was fitted.
            first = int(name.startswith("predicted") and curve.steps[0] == 0)
            found[name] = [curve.steps[first:].tolist(), curve.values[first:].tolist()]
    return found
