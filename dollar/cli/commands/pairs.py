"""Pairs of clips, a full model's preferred to a smaller one's: `torchrun launch/pairs.py checkpoint=FOLDER`.

Killed and started again, it makes no clip a second time, and ends with the same pairs.
"""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from dollar.cli.build.configs import configs_of_teacher
from dollar.cli.build.pairing import (
    check_before,
    curation_of,
    kept_full,
    reward_and_prompts,
    steps_of,
    targets_given,
    tell,
    winners_of,
)
from dollar.cli.entry import check_folder_for
from dollar.cli.run_folders import CONFIG

if TYPE_CHECKING:
    from dollar.cli.kept import Kept
    from dollar.parallel.lock import Lock


def main(config: DictConfig) -> None:
    """Choose prompts, make what clips are missing, pair them, and write the list and its page."""
    check_before(config)
    out, winners = Path(config.out), winners_of(config)
    check_folder_for("out", out)
    check_folder_for("winners", winners)
    from dollar.cli.build.teacher import quiet, take_teacher
    from dollar.cli.kept import kept_in
    from dollar.parallel.lock import Lock

    kept = kept_in("pairs", config, out, (out / CONFIG).is_file()), kept_full(config)
    take_teacher(config)
    quiet()
    rank = int(os.environ.get("RANK", 0))
    with ExitStack() as stack:
        ways = ((out, "name another folder with out=FOLDER"), (winners, "name another with winners=FOLDER"))
        locks = [stack.enter_context(closing(Lock(folder, rank, way, stays=False))) for folder, way in ways]
        make(config, kept, locks)


def make(config: DictConfig, kept: tuple[Kept, Kept], locks: list[Lock]) -> None:
    """This process's part of the work; the first one writes the list."""
    from dollar.cli.build.processes import join
    from dollar.cli.build.teacher import build_teacher
    from dollar.parallel.signals import STOPPED, Stop
    from dollar.parallel.world import finish

    steps = steps_of(config, configs_of_teacher(config))
    reward, prompts, names = reward_and_prompts(config)
    targets = targets_given(config, names)
    world = join(config)
    for lock in locks:
        lock.join()
    world.barrier()  # all have seen the same folders
    teacher, stop = build_teacher(config, world, weights=config.reference is None), Stop()
    work = curation_of(config, teacher, reward, steps, prompts, world, lambda: world.any(stop.requested))
    if world.is_main:
        for stored, maker in zip(kept, (work.smaller, work.full), strict=True):
            stored.store()
            maker.begin()
    with stop.in_order():
        found = work.run(targets)
    if world.is_main:
        tell(config, work, found, teacher)
    finish(world)
    if found is None:
        sys.exit(STOPPED)
