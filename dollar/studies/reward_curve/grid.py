"""The rows of the study: a form and a count of scored clips each, and one a reward that scores the clips of all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

SCORED = "scored"  # the end of the name of the row that scores the clips


def name_of(group: str, form: str, count: int) -> str:
    """A row's name."""
    return f"{group}_{form}_{count}"


def grid(given: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows from `groups` (a reward each), `forms` and `counts`; ValueError for counts that can't be."""
    counts: Sequence[int] = given["counts"]
    if not counts or list(counts) != sorted(set(counts)) or counts[0] < 4:
        raise ValueError(f"counts is {list(counts)}; give numbers of clips that rise, of which the first is at least 4")
    rows: list[dict[str, Any]] = []
    for group in given["groups"]:
        pool = f"{group}_{SCORED}"
        # One update: what it leaves for the others is the clips with their rewards.
        rows.append({"name": pool, "label": "scores the clips", "group": group, "overrides": ["steps=1", "climb=0"]})
        rows += [
            {
                "name": name_of(group, key, count),
                "label": f"{form['label']}, {count:,} clips",
                "group": group,
                "after": pool,
                "overrides": [*form["overrides"], f"fit_on={count}"],
            }
            for key, form in given["forms"].items()
            for count in counts
        ]
    return rows
