"""What a training would need: `python launch/plan.py processes=8 memory=80 [key=value of launch/train.py ...]`."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig


def main(config: DictConfig) -> None:
    """Print the plan of what launch/train.py with the same keys would run."""
    from dollar.cli.build.planning import (
        cycle_of,
        further_text,
        lora_instead,
        not_counted_of,
        outline_of,
        setup_of,
        student_work,
        validations_of,
    )
    from dollar.cli.build.teacher import dtype_of
    from dollar.models.outline import measure
    from dollar.planning import report
    from dollar.planning.memory import memory
    from dollar.planning.work import forwards
    from dollar.storage import free_bytes

    outline, t = outline_of(config), config.teacher
    work = measure(outline, dtype_of(config, "dtype"))
    own = student_work(config, outline, work)
    setup, needed, looks = (
        setup_of(config, outline, work, own),
        forwards(cycle_of(config, own)),
        validations_of(config, outline),
    )
    whole = report.work_of(needed, own, work, config.batch, looks)
    print(report.clip_text(outline, work, setup, t.frames, t.height, t.width, own))
    print()
    print(report.memory_table(setup, memory(setup), config.log.gradients_every))
    print()
    print(report.work_text(needed, whole, config.batch, config.cycles, config.fake_updates, config.processes, looks))
    print(report.disk_text(setup, config.keep, free_bytes(Path(config.runs))))
    print()
    print(report.not_counted(not_counted_of(config)))
    print(report.verdict(setup, config.memory, lora_instead(config, outline, work, setup)))
    if text := further_text(config):
        print(text)
