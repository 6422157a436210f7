"""Distil a teacher into a student of a few steps: `torchrun launch/train.py [key=value ...]`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from dollar.cli.entry import check_folder_for
from dollar.cli.run_folders import announce, announce_end, check_init, check_run, last_reward, run_folder, store_config
from dollar.log import logger

if TYPE_CHECKING:
    from dollar.losses.objective import Objective
    from dollar.parallel.lock import Lock


def main(config: DictConfig) -> float | None:
    """Train, go on with what was stopped, or find the run finished; returns the last validation reward for sweeps."""
    from dollar.cli.build.loop import check
    from dollar.parallel.lock import Lock
    from dollar.parallel.signals import STOPPED
    from dollar.training.trackers import check_trackers

    # Mistakes in numbers are refused before anything is loaded.
    objective = check(config, int(os.environ.get("WORLD_SIZE", 1)))
    check_trackers(config.log.trackers)
    check_init(config)
    folder = run_folder(config)
    places = check_run(config, folder)
    check_folder_for("runs", folder)
    with closing(
        Lock(folder, int(os.environ.get("RANK", 0)), "give this run a name of its own with run=NAME", stays=False)
    ) as lock:
        finished = distil(config, objective, folder, lock, places)
    if not finished:
        sys.exit(STOPPED)
    return last_reward(folder)


def distil(config: DictConfig, objective: Objective, folder: Path, lock: Lock, places: Sequence[str]) -> bool:
    """This process's part of the run; False where it was stopped before its end.

    places: the keys of places that decide what is trained.
    """
    from dollar.cli.build.loop import build_run
    from dollar.cli.build.processes import join
    from dollar.cli.build.rewards import rewards_of
    from dollar.cli.build.student import is_written, write_student
    from dollar.cli.build.teacher import build_teacher, quiet
    from dollar.parallel import checkpoint
    from dollar.parallel.signals import Stop
    from dollar.parallel.world import finish
    from dollar.training.old_checkpoint import renewed

    stop = Stop()
    stop.watch()
    world = join(config)
    lock.join()  # the first process had it before the others could start
    quiet()
    latest = checkpoint.newest(folder / "checkpoints")
    state = None if latest is None else renewed(checkpoint.load(latest))
    done = 0 if state is None else state.plain["cycle"]
    ended = "" if state is None else state.plain["parts"]["loop"]["ended"]
    if (done >= config.cycles or ended) and is_written(folder / "student", done):
        if world.is_main:
            announce_end(config, folder, done, ended)
        finish(world)
        return True
    rewards = rewards_of(config, objective)
    teacher = build_teacher(config, world)
    run = build_run(config, world, teacher, folder, done, rewards)
    loop = run.loop
    loop.still_there, loop.stop = lock.check, stop
    if world.is_main:
        lock.check()
        store_config(config, folder, places)
        if config.init is not None and (pruning := teacher.pruning(Path(config.init))).is_less:
            pruning.write(folder)  # what a checkpoint's network has, wherever that student goes
        announce(config, run, folder, done)
    if state is not None:
        loop.load(state)
    with stop.busy():
        finished = loop.train()
        if finished:
            write_student(run, teacher, config)
    if finished and world.is_main:
        for remark in loop.remarks():
            logger.warning(f"note: {remark}")
    elif world.is_main:
        print(f"stopped after cycle {loop.cycle} and saved; the same command goes on from there")
    loop.log.close()
    finish(world)
    return finished
