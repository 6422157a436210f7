"""From conf/evaluate.yaml to a yardstick, rewards and what is measured."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from hydra.errors import InstantiationException
from omegaconf import DictConfig, ListConfig, OmegaConf

from dollar.cli.build.configs import Configs, check_grid, configs_of_teacher
from dollar.cli.entry import check_alone, check_folder_for
from dollar.cli.origin import found_now
from dollar.log import logger

if TYPE_CHECKING:
    from dollar.evaluation.systems import EvaluationSettings
    from dollar.evaluation.yardstick import Yardstick
    from dollar.export.student import Student
    from dollar.models.teacher import Teacher
    from dollar.surrogate.pixel_reward import PixelReward


class Known(NamedTuple):
    """What is known of a teacher before it is read: (frames, height, width) of its clips, its folder and its scale."""

    name: str
    clip_shape: tuple[int, int, int]
    folder: Path
    guidance_scale: float


def check_keys(config: DictConfig) -> None:
    """Raise ValueError for numbers that could only fail after an hour of sampling."""
    check_alone("an evaluation")
    alone = config.teacher_clips == 0 and config.checkpoint is not None  # the teacher's stored figures are enough
    if config.clips < 64 or (config.teacher_clips < 64 and not alone):
        raise ValueError(
            f"clips={config.clips}, teacher_clips={config.teacher_clips}: at least 64 of each are needed for a Frechet "
            "distance in 16 directions and for the report's rows; 1024 for figures to quote"
        )
    if config.training_clips <= 64:
        raise ValueError(
            f"training_clips={config.training_clips}: diversity is measured in 64 directions, more is needed"
        )
    for key, least in (("repeats", 0), ("shown", 1), ("lrm_prompts", 0), ("teacher_steps", 1)):
        if config[key] < least:
            raise ValueError(f"{key} is {config[key]}; it must be at least {least}")
    if config.steps is not None and not isinstance(config.steps, ListConfig):
        raise ValueError(f"steps is {config.steps}; write steps=[{config.steps}]")
    if not isinstance(config.also, ListConfig):
        raise ValueError(f"also is {config.also}; write also=[{config.also}]")
    for key in ("steps", "also"):
        if config.checkpoint is None and config[key]:
            raise ValueError(f"{key} is {config[key]}, a student's; give checkpoint=FOLDER, or leave {key} out")
    trained = trained_counts(config)
    if unknown := [k for k in config.steps or () if k not in trained]:
        what = f"the student in {config.checkpoint} was" if not config.also else "these students were"
        raise ValueError(f"steps has {unknown}, but {what} trained for {trained}")


def folders_of(config: DictConfig) -> list[str]:
    """The folders of the students that are measured."""
    return [] if config.checkpoint is None else [config.checkpoint, *config.also]


def trained_counts(config: DictConfig) -> list[int]:
    """The step counts of all students, the most steps first; ValueError where two have one in common."""
    from dollar.export.student import read_card

    found: dict[int, str] = {}
    for folder in folders_of(config):
        for count in read_card(folder)["steps"]:
            if count in found:
                raise ValueError(
                    f"the students in {found[count]} and {folder} were both trained for {count} steps, which have one "
                    "column; evaluate one of them by itself, with out=FOLDER"
                )
            found[count] = folder
    return sorted(found, reverse=True)


def check_before(config: DictConfig) -> None:
    """Raise ValueError for a teacher, a student or figures that can't be measured; no weight is read.

    The configuration holds the student's own teacher.
    """
    from dollar.evaluation.yardstick import check_size
    from dollar.export.student import student_weights

    check_size(known_of(config, Path()))
    configs = configs_of_teacher(config)
    for folder in folders_of(config):
        student_weights(folder)
    check_figures(config, configs)


def known_of(config: DictConfig, folder: Path) -> Known:
    """What the configuration says of the teacher in a folder."""
    teacher = config.teacher
    return Known(teacher.name, (teacher.frames, teacher.height, teacher.width), folder, teacher.guidance_scale)


def check_figures(config: DictConfig, configs: Configs) -> None:
    """Raise ValueError for a teacher that can't be sampled in so many steps, or has no figures where they are asked."""
    from dollar.evaluation.systems import needed_figures

    if config.teacher_clips == 0:
        known = known_of(config, configs.pipeline.folder)
        needed_figures(Path(config.teacher_metrics), known, config.clips, config.teacher_steps)
    else:
        check_grid(configs, config.teacher_steps, "teacher_steps")


def out_of(config: DictConfig) -> Path:
    """The folder of the results; ValueError where it or the cache can't be written."""
    out = Path(config.out or (Path(config.checkpoint).parent if config.checkpoint else "runs/teacher"))
    check_folder_for("out", out)
    if config.cache is not None:
        check_folder_for("cache", Path(str(config.cache)))
    return out


def settings_of(config: DictConfig) -> EvaluationSettings:
    """What is measured; without `steps` the student is measured at all that it was trained for."""
    from dollar.evaluation.systems import EvaluationSettings

    keys = ("clips", "teacher_clips", "teacher_steps", "repeats", "lrm_prompts", "real", "untrained")
    steps = list(config.steps) if config.steps else trained_counts(config)
    return EvaluationSettings(**{key: config[key] for key in keys}, steps=steps)


def yardstick_of(config: DictConfig) -> Yardstick:
    """Real clips of the shapes world to measure against."""
    from dollar.data import shapes
    from dollar.evaluation.yardstick import Yardstick, pairs

    training = shapes.ShapesClips("train", config.training_clips, seed=1)
    return Yardstick(
        pairs(shapes.captions("held_out"), max(config.clips, config.teacher_clips)),
        lambda prompt, seed: shapes.render(shapes.parse(prompt), seed),
        list(zip(training.captions, training.seeds, strict=True)),
        cache=None if config.cache is None else Path(str(config.cache)),
    )


def reward_behind(node: DictConfig, teacher: Teacher) -> PixelReward | None:
    """The reward of a choice of conf/reward behind the teacher's decoder, tried on a gray clip; None for none."""
    import torch

    from dollar.cli.build.rewards import check_captions, reward_of
    from dollar.data import shapes
    from dollar.surrogate.pixel_reward import PixelReward

    if (reward := reward_of(node)) is None:
        return None
    pixel, prompts = PixelReward(reward, teacher.codec), shapes.captions("held_out")
    check_captions(reward, prompts)
    frames, height, width = teacher.clip_shape
    pixel.trial(torch.full((1, frames, 3, height, width), 0.5, device=teacher.device), prompts[:1])
    return pixel


def own_reward(student: Student, teacher: Teacher) -> PixelReward | None:
    """The pixel reward that the student was trained with; None where there was none, or it can't be had any more."""
    try:
        stored = student.card["config"].get("reward") or {}  # a pruned teacher was trained with none
        reward = found_now(student.card, "reward", stored, student.folder)
        node: Any = OmegaConf.create(reward)
        return reward_behind(node, teacher)
    except (InstantiationException, ValueError) as error:
        logger.warning(
            f"note: the student's own reward is not measured: {str(error.__cause__ or error).splitlines()[0]}"
        )
        return None
