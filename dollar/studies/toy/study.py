"""The toy from its setting to its page: seeds without a result are made and kept, then the page is written."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dollar.log import logger, progress
from dollar.studies.engine import lock, machine
from dollar.studies.results import Results, rounded
from dollar.studies.toy.page import write_page
from dollar.studies.toy.rows import EXACT, LABELS
from dollar.studies.toy.seeds import Setting, one_seed

NAME = "toy"


def carry_out(setting: Setting, seeds: Sequence[int], out: Path) -> Path:
    """Make what is missing, and write `out`/toy.md, whose figures and results are in `out`/toy; returns the page.

    ValueError where results of another setting are there, or where another command works in the folder.
    """
    folder, page = out / NAME, out / f"{NAME}.md"
    with contextlib.closing(lock(NAME, "out", folder)):
        results = Results(folder / "results.json")
        check_same(results, setting)
        missing = [seed for seed in seeds if not is_known(results, seed)]
        if len(missing) < len(seeds):
            logger.info(f"{len(seeds) - len(missing)} of {len(seeds)} seeds are known")
        bar = progress(len(missing) * len(LABELS), NAME)
        for seed in missing:

            def made(name: str, seed: int = seed) -> None:
                bar.set_postfix_str(f"seed {seed}, {LABELS[name]}", refresh=False)
                bar.update()

            keep(results, seed, setting, one_seed(setting, seed, made))
        bar.close()
        write_page(page, setting, results)
    return page


def is_known(results: Results, seed: int) -> bool:
    """Whether all rows of a seed are there."""
    return all(f"{name}/{seed}" in results.stored["rows"] for name in LABELS)


def keep(results: Results, seed: int, setting: Setting, made: Mapping[str, Mapping[str, Any]]) -> None:
    """Take a seed's figures into results.json; points of one seed are enough for the picture."""
    have_points = any("points" in result for result in results.of(EXACT) if result["seed"] != seed)
    about = {"figures": {}, "machine": machine(), "setting": setting.plain()}
    for name, result in made.items():
        kept = {key: value for key, value in result.items() if key != "points" or not have_points}
        results.put(name, seed, kept | (about if name == EXACT else {"figures": {}}))


def check_same(results: Results, setting: Setting) -> None:
    """Raise ValueError, with the keys' names, where results are there that follow from another setting."""
    now = flat(rounded(setting.plain()))
    for result in results.of(EXACT):
        before = flat(result["setting"])
        changed = [key for key in {**before, **now} if before.get(key) != now.get(key)]
        if changed:
            told = ", ".join(f"{key} was {before.get(key)} and is {now.get(key)}" for key in changed)
            raise ValueError(
                f"{results.path} holds results of another setting: {told}. "
                "Name another folder with out=FOLDER, or remove the file"
            )


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values by dotted keys."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found
