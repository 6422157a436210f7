"""Which clips pairs are made of: prompts that suit a target, in an order of their own, each with a seed of its own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, TypedDict

import numpy as np

from dollar.media import atomically
from dollar.vip.clips import named
from dollar.vip.pairing import Clips
from dollar.vip.prompts import Filter, Judged, Scorer, check_found

CHOSEN, JUDGED = "prompts.json", "judged.jsonl"
PROBE = "finding the targets"  # the use of prompts whose clips show what fell


class Kept(TypedDict):
    """What prompts.json has of a use: the prompts that suit, and counts by reason."""

    prompts: list[str]
    counts: dict[str, int]


class Wanted(NamedTuple):
    """The clips that are wanted, and how many prompts were left out by reason; `suited` are not."""

    clips: list[Clips]
    counts: dict[str, int]


def choose(
    folder: Path, use: str, given: Sequence[str], count: int, least: Sequence[int], seed: int, filter: Filter
) -> Wanted:
    """`count` clips of prompts that suit; a choice that is kept in the folder for this use is not made again.

    given: all prompts; each has the seed `seed` + its place, and where fewer suit than clips are wanted they come round
    with further seeds. least: of motion and of richness. ValueError where no prompt passes.
    """
    kept = _read(folder / CHOSEN)
    if use not in kept:
        distinct = list(dict.fromkeys(given))
        order = np.random.Generator(np.random.PCG64([seed, 10])).permutation(len(distinct))
        found, counts = filter.suited((distinct[i] for i in order), count, least)
        check_found(found, counts, use)
        kept[use] = {"prompts": found, "counts": {"suited": len(found), **counts}}
        with atomically(folder / CHOSEN) as temporary:
            temporary.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    return _wanted(kept[use], given, count, seed)


def is_chosen(folder: Path) -> bool:
    """Whether the prompts of the pairs are kept there, so that no further one is judged."""
    return any(use != PROBE for use in _read(folder / CHOSEN))


def chosen(folder: Path, use: str, given: Sequence[str], count: int, seed: int) -> Wanted:
    """What `choose` has kept, for the other processes."""
    return _wanted(_read(folder / CHOSEN)[use], given, count, seed)


def _wanted(kept: Kept, given: Sequence[str], count: int, seed: int) -> Wanted:
    places = {prompt: place for place, prompt in enumerate(dict.fromkeys(given))}
    found = kept["prompts"]
    clips = [
        named(prompt, seed + places[prompt] + rounds * len(places))
        for rounds in range(-(-count // len(found)))
        for prompt in found
    ]
    return Wanted(clips[:count], kept["counts"])


def _read(path: Path) -> dict[str, Kept]:
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{path} can't be read ({error!r}); remove it, and prompts are chosen anew") from None


class Remembered:
    """A scorer whose answers are kept in a folder as they come, so that no prompt is asked for twice."""

    def __init__(self, scorer: Scorer, folder: Path) -> None:
        self.scorer, self.path = scorer, folder / JUDGED
        self.known: dict[str, Judged] = {}
        lines = self.path.read_text(encoding="utf-8").split("\n") if self.path.is_file() else []
        try:
            for row in map(json.loads, lines[:-1]):  # what a killed process began to write has no end
                self.known[row["prompt"]] = Judged(row["motion"], row["richness"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{self.path} can't be read ({error!r}); remove it, and prompts are asked anew") from None
        if lines and lines[-1]:
            with atomically(self.path) as temporary:
                temporary.write_text("".join(f"{line}\n" for line in lines[:-1]), encoding="utf-8")

    def __call__(self, prompt: str) -> Judged | None:
        """Its scores; None where it can't be had, which is not kept."""
        if prompt not in self.known:
            judged = self.scorer(prompt)
            if judged is None:
                return None
            self.known[prompt] = judged
            with self.path.open("a", encoding="utf-8") as opened:
                opened.write(json.dumps({"prompt": prompt, **judged._asdict()}) + "\n")
        return self.known[prompt]
