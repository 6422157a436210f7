"""Take blocks out of a teacher or a student: `python launch/prune.py remove=[transformer_blocks.3] out=FOLDER`."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from dollar.cli.build.pruning import Subject, check_keys, save_pruned, subject_of, units_in
from dollar.cli.entry import check_folder_for

if TYPE_CHECKING:
    from dollar.models.teacher import Teacher


def main(config: DictConfig) -> None:
    """Write a student's folder without these units, and print what is left."""
    check_keys(config)
    out = Path(config.out)
    check_folder_for("out", out)
    from dollar.cli.build.processes import join
    from dollar.cli.build.teacher import build_teacher, quiet, take_teacher
    from dollar.export.folder import whole_folder
    from dollar.parallel.lock import Lock
    from dollar.storage import explained

    if config.checkpoint is not None:
        take_teacher(config)
    quiet()
    units_in(config)  # mistakes show before any weight is read
    world = join(config)
    teacher = build_teacher(config, world, weights=config.checkpoint is None)
    subject = subject_of(config, teacher)
    pruning = subject.pruning.further(subject.units)
    network = subject.without()
    with (
        closing(Lock(out.parent, name=f".{out.name}.lock", stays=False)),
        explained("the pruned folder", out.parent, full=True),
        whole_folder(out) as aside,
    ):
        save_pruned(config, aside, teacher, network, subject, pruning)
    print(f"without {', '.join(map(subject.pruning.original, subject.units))} the rest of {teacher.name} is in {out}")
    if config.repeats > 0:
        print(table(config, teacher, subject, network))


def table(config: DictConfig, teacher: Teacher, subject: Subject, network: Any) -> str:
    """The sizes before and after."""
    from dollar.evaluation.measures.size import sizes, sizes_text

    return sizes_text(sizes(teacher, {"before": subject.network, "after": network}, config.repeats))
