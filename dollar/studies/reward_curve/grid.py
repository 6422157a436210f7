"""The rows of the study: a form and a count of scored clips each, and those that score a reward's clips for all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

SCORED = "scored"  # in the names of the rows that score the clips


def name_of(group: str, form: str, count: int) -> str:
    """A row's name."""
    return f"{group}_{form}_{count}"


def grid(given: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows from `groups` (a reward each), `forms` and `counts`; ValueError for counts that can't be.

    A count in `more` needs more clips than the others, which are scored on top of theirs.
    """
    counts: Sequence[int] = given["counts"]
    if not counts or list(counts) != sorted(set(counts)) or counts[0] < 4:
        raise ValueError(f"counts is {list(counts)}; give numbers of clips that rise, of which the first is at least 4")
    rows: list[dict[str, Any]] = []
    for group in given["groups"]:
        pool = f"{group}_{SCORED}"
        # One update: what it leaves for the others is the clips with their rewards.
        alone = ["steps=1", "climb=0"]
        rows.append({"name": pool, "label": "scores the clips", "group": group, "overrides": alone})
        more = {count: given["more"].get(count, ()) for count in counts}
        rows += [
            {
                "name": f"{pool}_{count}",
                "label": "scores further clips",
                "group": group,
                "after": pool,
                "overrides": [*alone, *further],
            }
            for count, further in more.items()
            if further
        ]
        rows += [
            {
                "name": name_of(group, key, count),
                "label": f"{form['label']}, {count:,} clips",
                "group": group,
                "after": f"{pool}_{count}" if more[count] else pool,
                "overrides": [*form["overrides"], *more[count], f"fit_on={count}"],
            }
            for key, form in given["forms"].items()
            for count in counts
        ]
    return rows
