"""Distil a teacher into a student of a few steps: `torchrun launch/train.py [key=value ...]`."""

from __future__ import annotations

import os
import sys

from omegaconf import DictConfig

from dollar.cli.entry import check_folder_for
from dollar.cli.run_folders import announce, check_init, check_run, last_reward, run_folder, store_config


def main(config: DictConfig) -> float | None:
    """Train, go on with what was stopped, or find the run finished; returns the last validation reward for sweeps."""
    from dollar.cli.build.loop import build_run, check
    from dollar.cli.build.rewards import rewards_of
    from dollar.cli.build.teacher import build_teacher, quiet
    from dollar.training.trackers import check_trackers

    # Mistakes in numbers are refused before anything is loaded.
    objective = check(config, int(os.environ.get("WORLD_SIZE", 1)))
    check_trackers(config.log.trackers)
    check_init(config)
    folder = run_folder(config)
    places = check_run(config, folder)
    check_folder_for("runs", folder)

    from dollar.cli.build.student import is_written, write_student
    from dollar.parallel import checkpoint
    from dollar.parallel.signals import STOPPED
    from dollar.parallel.world import finish, start
    from dollar.training.old_checkpoint import renewed

    world = start(config.parallel.device, config.parallel.timeout_minutes)
    quiet()
    latest = checkpoint.newest(folder / "checkpoints")
    state = None if latest is None else renewed(checkpoint.load(latest))
    done = 0 if state is None else state.plain["cycle"]
    ended = "" if state is None else state.plain["parts"]["loop"]["ended"]
    if (done >= config.cycles or ended) and is_written(folder / "student", done):
        if world.is_main:
            early = f" It ended early: {ended}." if ended else ""
            cycles = f"{done} of {config.cycles} cycles"
            print(f"{folder} is finished: {cycles}.{early} Its student is in {folder / 'student'}")
        finish(world)
        return last_reward(folder)
    rewards = rewards_of(config, objective)
    teacher = build_teacher(config, world)
    run = build_run(config, world, teacher, folder, done, rewards)
    loop = run.loop
    if world.is_main:
        store_config(config, folder, places)
        announce(config, run, folder, done)
    if state is not None:
        loop.load(state)
    finished = loop.train()
    if finished:
        write_student(run, teacher, config)
    elif world.is_main:
        print(f"stopped after cycle {loop.cycle} and saved; the same command goes on from there")
    loop.log.close()
    finish(world)
    if not finished:
        sys.exit(STOPPED)
    return last_reward(folder)
