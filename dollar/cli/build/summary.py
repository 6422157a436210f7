"""What came out of the stages of V.I.P.: a table, result.json and report.html."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from dollar.cli.build.vip import sizes_of
from dollar.log import logger

if TYPE_CHECKING:
    from dollar.models.teacher import Teacher
    from dollar.sampling.samplers import Sampler
    from dollar.vip.loop import Result
    from dollar.vip.stages import Stages

SHOWN = 6  # prompts whose clips the report has


def summarize(config: DictConfig, stages: Stages, result: Result) -> None:
    """Measure the sizes, print the table, and write result.json and report.html."""
    from dollar.cli.build.processes import join
    from dollar.cli.build.teacher import build_teacher
    from dollar.evaluation.measures.size import sizes_text
    from dollar.vip.report import shares, write_report
    from dollar.vip.scoring import Scores

    world = join(config)
    teacher = build_teacher(config, world)
    students = {f"stage {i}": str(stages.student(i)) for i in range(1, len(result.stages) + 1)}
    if stages.checkpoint is not None:
        students = {"before": stages.checkpoint} | students
    sizes = sizes_of(config, teacher, students)
    scores = Scores.read(stages.scores / "scores.json")
    result.write(stages.out, {"sizes": {name: size._asdict() for name, size in sizes.items()}})
    # Where the last stage is given up, the student is an earlier one's.
    saved = shares(sizes, next(label for label, folder in students.items() if folder == result.student))
    lines = [recovery.text(stage) for stage, recovery in enumerate(result.stages, 1)]
    print("\n".join(["", sizes_text(sizes), "", *lines, ""]))
    write_report(stages, result, sizes, saved, scores, clips_of(config, stages, teacher), teacher.fps)
    logger.info(f"{saved}\nthe student is {result.student}, its pipeline for diffusers {stages.out / 'export'},")
    print(f"what came out is in {stages.out / 'result.json'} and {stages.out / 'report.html'}")


def clips_of(config: DictConfig, stages: Stages, teacher: Teacher) -> list[Any]:
    """The same prompts and seeds by the full network and by each stage, before its training and after."""
    from dollar import media
    from dollar.cli.build.ranking import prompts_of
    from dollar.evaluation.report.page import SampleRow
    from dollar.export.student import load_student
    from dollar.sampling.samplers import make_clips, teacher_sampler

    shown = _keys_of(config, stages)
    prompts = prompts_of(shown, "held_out")
    seeds = list(range(len(prompts)))

    def student(folder: str | Path) -> Sampler:
        loaded = load_student(folder, teacher)
        return loaded.sampler(teacher, max(loaded.few_steps))

    places: dict[str, Any] = {"full": stages.checkpoint}
    for i in range(1, len(stages.counts) + 1):
        if stages.student(i).is_dir():
            places |= {f"stage {i}, pruned": stages.pruned(i), f"stage {i}, trained": stages.student(i)}
    rows = [SampleRow(prompt, seed, {}) for prompt, seed in zip(prompts, seeds, strict=True)]
    for label, folder in places.items():
        sampler = teacher_sampler(teacher, stages.steps) if folder is None else student(folder)
        for row, video in zip(rows, make_clips(sampler, teacher, prompts, seeds), strict=True):
            row.clips[label] = media.to_uint8(video.float() / 255)
    return rows


def _keys_of(config: DictConfig, stages: Stages) -> Any:
    """What `prompts_of` reads: the prompts that the scores are of, a few of them."""
    from omegaconf import OmegaConf

    given = dict(word.partition("=")[::2] for word in stages.given.get("score", ()))
    return OmegaConf.create({"prompts": given.get("prompts"), "clips": SHOWN, "teacher": config.teacher})
