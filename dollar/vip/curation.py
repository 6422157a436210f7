"""Curating pairs: prompts, clips of both models, what the smaller one lost, and the pairs that show it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dollar.data.scored import read_scored
from dollar.log import logger
from dollar.media import atomically
from dollar.parallel.world import World
from dollar.storage import explained
from dollar.vip import prompts as filters
from dollar.vip.clips import Maker
from dollar.vip.pairing import Choice, Clips, Paired, all_pairs, check_some, columns, is_scored, pair_up, told
from dollar.vip.requests import PROBE, Wanted, choose, chosen
from dollar.vip.targets import Fall, falls_of, targets_in

LIST, FOLDERS = "pairs.jsonl", "pairs.json"


@dataclass(frozen=True)
class Plan:
    """Which clips are made, and how pairs are chosen; all as conf/pairs.yaml has it."""

    clips: int
    probe: int
    targets: int | None
    seed: int
    suited: Mapping[str, Sequence[int]]
    floor: float | None
    widest: bool
    unit: str


@dataclass(frozen=True)
class Outcome:
    """What came out: targets, none where nothing fell; falls, where they were looked for; prompts, pairs and counts."""

    targets: list[str]
    falls: dict[str, Fall]
    wanted: Wanted
    paired: Paired

    @property
    def lines(self) -> list[str]:
        """It in sentences."""
        prompts, pairs = self.wanted.counts, self.paired
        left = filters.told(prompts)
        found = [f"{prompts['suited']} prompts suit" + (f"; of others {left}" if left else "") + "."]
        if self.falls:
            text = ", ".join(f"{n} {-f.mean:+.4f} (± {f.error:.4f})" for n, f in self.falls.items())
            found.append(f"The smaller model's means minus the full one's, with standard errors: {text}.")
        if self.targets:
            found.append(f"The target is {', then '.join(self.targets)}.")
        else:
            found.append(
                "Nothing fell, so there is no target: all clips are listed, to train on the full model's (loss=sft) "
                "or not at all."
            )
        lost = told(pairs.counts)
        clips = f"Of {len(self.wanted.clips)} clips of each model {len(pairs.pairs)} make pairs"
        found.append(clips + (f"; of the others {lost}" if lost else "") + ".")
        return found


class Curation:
    """Makes what clips are missing, and pairs them.

    out: the folder of the list; full, smaller: make the models' clips; filter: looks through the prompts, in the first
    process alone; stopped: whether a stop was requested, the same in every process.
    """

    def __init__(
        self,
        out: Path,
        full: Maker,
        smaller: Maker,
        plan: Plan,
        prompts: Sequence[str],
        filter: filters.Filter | None,
        world: World,
        stopped: Callable[[], bool],
    ) -> None:
        self.out, self.full, self.smaller, self.plan = out, full, smaller, plan
        self.prompts, self.filter, self.world, self.stopped = prompts, filter, world, stopped

    def run(self, targets: Sequence[str] | None) -> Outcome | None:
        """The pairs for these targets, None for those that are found; None where a stop was requested before the end.

        ValueError where no prompt or no pair passes, with the counts by reason.
        """
        falls: dict[str, Fall] = {}
        if targets is None:
            probe = self._wanted(PROBE, self.plan.probe, (0, 0))
            if not self._made(probe.clips):
                return None
            falls = self._falls(probe.clips)
            targets = targets_in(falls, self.plan.targets)
            if targets and not falls[targets[0]].mean > falls[targets[0]].error:
                logger.warning(f"note: no property fell beyond its standard error; {targets[0]} fell most")
        least = tuple(self.plan.suited.get(targets[0], (0, 0))) if targets else (0, 0)
        use = f"pairs of motion {least[0]} and richness {least[1]} at least"
        wanted = self._wanted(use, self.plan.clips, least)
        if not self._made(wanted.clips):
            return None
        return Outcome(list(targets), falls, wanted, self._paired(wanted.clips, targets))

    def _wanted(self, use: str, count: int, least: Sequence[int]) -> Wanted:
        if self.filter is not None:
            choose(self.out, use, self.prompts, count, least, self.plan.seed, self.filter)
        self.world.barrier()
        return chosen(self.out, use, self.prompts, count, self.plan.seed)

    def _made(self, clips: Sequence[Clips]) -> bool:
        return all(maker.make(clips, self.world, self.stopped) for maker in (self.full, self.smaller))

    def _scores(self) -> list[dict[str, dict[str, float]]]:
        folders = (self.full.folder, self.smaller.folder)
        return [{id: clip.scores for id, clip in read_scored(folder).items()} for folder in folders]

    def _falls(self, clips: Sequence[Clips]) -> dict[str, Fall]:
        winners, losers = self._scores()
        scored = [clip for clip in clips if is_scored(winners[clip.id], losers[clip.id])]
        return falls_of(columns(scored, winners), columns(scored, losers), self.plan.unit)

    def _paired(self, clips: Sequence[Clips], targets: Sequence[str]) -> Paired:
        winners, losers = self._scores()
        if targets:
            how = Choice(targets, self.plan.floor, self.plan.widest, self.plan.unit)
            found = pair_up(clips, winners, losers, how)
        else:
            found = all_pairs(clips, winners, losers)
        check_some(found, len(clips))
        return found


def write_pairs(out: Path, winners: Path, losers: Path, outcome: Outcome) -> None:
    """Write pairs.json and pairs.jsonl, which data=pairs reads; places are relative to their folder."""
    pairs = outcome.paired
    counts = {"prompts": outcome.wanted.counts, "pairs": {"kept": len(pairs.pairs)} | pairs.counts}
    said: dict[str, Any] = {
        "winners": os.path.relpath(winners, out),
        "losers": os.path.relpath(losers, out),
        "targets": outcome.targets,
        "falls": {name: fall._asdict() for name, fall in outcome.falls.items()},
        "counts": counts,
    }
    lines = "".join(json.dumps(pair._asdict()) + "\n" for pair in pairs.pairs)
    for name, text in ((FOLDERS, json.dumps(said, indent=1) + "\n"), (LIST, lines)):
        with explained("the pairs", out), atomically(out / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
