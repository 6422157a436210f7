"""Measure a student and its teacher: `python launch/evaluate.py checkpoint=runs/mine/student [key=value ...]`."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from dollar.cli.build.evaluation import (
    check_before,
    check_keys,
    folders_of,
    out_of,
    own_reward,
    reward_behind,
    settings_of,
    yardstick_of,
)

if TYPE_CHECKING:
    from dollar.evaluation.systems import Evaluation


def main(config: DictConfig) -> None:
    """Print the table and write metrics.json and report.html."""
    check_keys(config)
    from dollar.cli.build.teacher import quiet, take_teacher
    from dollar.parallel.lock import EVALUATION, Lock

    if config.checkpoint is not None:
        take_teacher(config)
    out = out_of(config)
    quiet()
    check_before(config)
    with closing(Lock(out, name=EVALUATION, stays=False)):  # a training of the run may go on
        evaluate(config, out)


def evaluate(config: DictConfig, out: Path) -> None:
    """Measure, and write into a folder that no other evaluation has."""
    from dollar.cli.build.processes import join
    from dollar.cli.build.teacher import build_teacher, dtype_of
    from dollar.evaluation.files import store_figures
    from dollar.evaluation.report.table import format_table
    from dollar.evaluation.systems import TEACHER_STEPS, Evaluation
    from dollar.export.student import Students, load_student, weights_of

    world = join(config)
    teacher = build_teacher(config, world)
    pixel = reward_behind(config.reward, teacher)  # weights that are missing are noticed before anything is sampled
    evaluation = Evaluation(teacher, yardstick_of(config), settings_of(config), out)
    fresh = evaluation.measure_teacher(Path(config.teacher_metrics))
    if config.checkpoint is None and fresh is not None and config.teacher_steps == TEACHER_STEPS:
        videos = evaluation.clips[f"teacher {TEACHER_STEPS}"]  # what later evaluations compare with
        store_figures(out / "teacher_metrics.json", teacher, evaluation.yardstick, videos, fresh)
    evaluation.save()
    student = None
    if config.checkpoint is not None:
        student = Students([load_student(folder, teacher, dtype_of(config, "dtype")) for folder in folders_of(config)])
        evaluation.metrics["weights"] = weights_of(config.checkpoint)
        if config.also:
            evaluation.metrics["also"] = {str(folder): weights_of(folder) for folder in config.also}
        evaluation.measure_student(student)
        evaluation.save()  # what is known is kept, whatever a reward does
    own = None if student is None else own_reward(student.members[0], teacher)
    evaluation.measure_scores(pixel or own)
    evaluation.measure_sizes(student)
    evaluation.measure_times(student)
    evaluation.save()
    if student is not None:
        evaluation.measure_latent_reward(Path(config.checkpoint).parent / "lrm", student, own)
        evaluation.save()
    print("\n" + format_table(evaluation.metrics) + "\n")
    if config.report:
        write_report_of(config, evaluation, out)
    print(f"figures are in {out / 'metrics.json'}" + (f", pictures in {out / 'report.html'}" if config.report else ""))


def write_report_of(config: DictConfig, evaluation: Evaluation, out: Path) -> None:
    """report.html: the table, the run's curves, and clips side by side."""
    from dollar.evaluation.report.evaluation import notes, sample_rows
    from dollar.evaluation.report.page import write_report
    from dollar.training.log import read_scalars

    metrics, title = evaluation.metrics, f"Student of {config.teacher.name}"
    rows = sample_rows(*evaluation.yardstick.pairs, evaluation.clips, config.shown)
    remarks = notes(metrics, config.clips, config.teacher_steps)
    write_report(out / "report.html", metrics, read_scalars(out), rows, title, remarks, evaluation.teacher.fps)
