"""A teacher or a student made smaller stage by stage: `python launch/vip.py stages=[2,1] out=FOLDER [key=value ...]`.

Each step is a command of its own, which is printed. The same command goes on after anything; no step is made twice.
"""

from __future__ import annotations

import sys
from contextlib import closing
from pathlib import Path

from omegaconf import DictConfig

from dollar.cli.build.vip import check_commands, check_keys, check_teacher, further_of, stages_of
from dollar.cli.entry import ROOT, check_folder_for


def main(config: DictConfig) -> None:
    """Run what is missing, and write what came out."""
    check_keys(config)
    check_teacher(config)
    stages = stages_of(config)
    check_folder_for("out", stages.out)
    from dollar.cli.build.teacher import quiet, take_teacher
    from dollar.cli.kept import kept_in
    from dollar.parallel.lock import Lock
    from dollar.vip.jobs import FILE

    quiet()
    kept = kept_in("vip", config, stages.out, (stages.out / FILE).is_file())
    if config.checkpoint is not None:
        take_teacher(config)
    check_commands(stages, config)
    with closing(Lock(stages.out, stays=False)):
        kept.store()
        run(config, Path(ROOT))


def run(config: DictConfig, root: Path) -> None:
    """The steps, and what came out of them."""
    from dollar.cli.build.ranking import clip_shape_of
    from dollar.cli.build.scoring import FULL
    from dollar.cli.build.summary import summarize
    from dollar.evaluation.yardstick import is_of_shapes
    from dollar.parallel.signals import STOPPED, Stop
    from dollar.vip.jobs import Steps
    from dollar.vip.loop import carry_out, then

    stages, stop = stages_of(config), Stop()
    steps = Steps(stages.out, root, config.processes)
    with stop.in_order():
        result = carry_out(stages, steps, stop, config.give_up, config.checkpoint or FULL)
        shapes = is_of_shapes(clip_shape_of(config))
        if result is None or not then(steps, further_of(stages, result.student, shapes), stop):
            print(f"stopped; the same command goes on with what is in {stages.out}")
            sys.exit(STOPPED)
    summarize(config, stages, result)
