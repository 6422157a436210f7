"""How a learning rate changes over a run."""

from __future__ import annotations

LEAST = 0.02  # what is left of a rate at the end


def falling(step: int, steps: int, start: float) -> float:
    """The share of the rate at a step: 1 until the fraction `start` of all steps, then linearly to nearly nothing."""
    first = start * steps
    return 1.0 if step < first or start >= 1 else max(LEAST, (steps - step) / (steps - first))
