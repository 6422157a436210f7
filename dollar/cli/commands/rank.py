"""What each unit of a network is worth: `torchrun launch/rank.py reward=NAME k=2 out=FOLDER [key=value ...]`.

Killed and started again, it measures no unit a second time.
"""

from __future__ import annotations

import os
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from dollar.cli.build.configs import configs_of_teacher
from dollar.cli.build.ranking import (
    check_keys,
    clip_shape_of,
    named_reward,
    prompts_of,
    properties_of,
    ranker_of,
    steps_of,
    units_in,
    values_of,
)
from dollar.cli.entry import check_folder_for

if TYPE_CHECKING:
    from dollar.cli.kept import Kept
    from dollar.parallel.lock import Lock

FILE = "ranking.json"


def main(config: DictConfig) -> None:
    """Measure what is missing, choose, print the table and draw it."""
    check_keys(config)
    out = Path(config.out)
    check_folder_for("out", out)
    from dollar.cli.build.teacher import quiet, take_teacher
    from dollar.cli.kept import kept_in
    from dollar.parallel.lock import Lock

    kept = kept_in("rank", config, out, (out / FILE).is_file())
    if config.checkpoint is not None:
        take_teacher(config)
    quiet()
    with closing(Lock(out, int(os.environ.get("RANK", 0)), stays=False)) as lock:
        rank(config, kept, lock)


def rank(config: DictConfig, kept: Kept, lock: Lock) -> None:
    """This process's part of the measuring; the first one writes."""
    from dollar.cli.build.processes import join
    from dollar.cli.build.teacher import build_teacher
    from dollar.parallel.signals import STOPPED, Stop
    from dollar.parallel.world import finish
    from dollar.vip.measuring import measure
    from dollar.vip.picture import draw_ranking
    from dollar.vip.ranking import Table, table_text

    configs = configs_of_teacher(config)
    units, prompts, steps = units_in(config, configs), prompts_of(config), steps_of(config, configs)
    table = Table(list(map(str, units)))
    reward = None
    if config.by == "reward":
        reward = named_reward(config.reward, prompts, "ranking")
        table.properties, table.consistency = properties_of(
            config, values_of(reward, prompts, clip_shape_of(config)), reward
        )
    path = kept.folder / FILE
    if path.is_file():
        table.take(Table.read(path))
    world = join(config)
    lock.join()
    world.barrier()  # all have read the same file
    if world.is_main:
        kept.store()
    ranker = ranker_of(config, build_teacher(config, world), world, reward, prompts, steps)
    stop = Stop()
    with stop.in_order():
        done = measure(table, units, ranker, config.shortlist, path, lambda: world.any(stop.requested))
    if not done:
        if world.is_main:
            print(f"stopped; the same command goes on with what is in {path}")
        finish(world)
        sys.exit(STOPPED)
    chosen = table.chosen(config.k, config.by, config.rule)
    if world.is_main:
        table.write(path, chosen)
        draw_ranking(path.with_suffix(".svg"), table, chosen)
        print(f"{table_text(table, chosen)}\n\nthe table is in {path}, a picture in {path.with_suffix('.svg')}")
    finish(world)
