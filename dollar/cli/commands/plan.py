"""What a training would need: `python launch/plan.py processes=8 memory=80 [key=value of launch/train.py ...]`."""

from __future__ import annotations

from omegaconf import DictConfig


def main(config: DictConfig) -> None:
    """Print the plan of what launch/train.py with the same keys would run."""
    from dollar.cli.build.planning import cycle_of, not_counted_of, outline_of, setup_of
    from dollar.cli.build.teacher import dtype_of
    from dollar.models.outline import measure
    from dollar.planning import report
    from dollar.planning.memory import memory
    from dollar.planning.work import forwards

    outline, t = outline_of(config), config.teacher
    work = measure(outline, dtype_of(config, "dtype"))
    setup, needed = setup_of(config, outline, work), forwards(cycle_of(config))
    print(report.clip_text(outline, work, setup, t.frames, t.height, t.width))
    print()
    print(report.memory_table(setup, memory(setup), config.log.gradients_every))
    print()
    print(report.work_text(needed, work.flops, config.batch, config.cycles, config.processes))
    print(report.disk_text(setup, config.keep))
    print()
    print(report.not_counted(not_counted_of(config)))
    print(report.verdict(setup, config.memory))
