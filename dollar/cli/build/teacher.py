"""From configuration to a teacher."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from dollar.cli.arguments import given_below
from dollar.cli.build.objects import instantiate
from dollar.cli.declared import flat
from dollar.cli.origin import teacher_of
from dollar.data.latents import Samples
from dollar.losses.objective import Objective
from dollar.models.assemble import DTYPES
from dollar.models.denoiser import Condition
from dollar.models.teacher import Teacher
from dollar.parallel.shard import fill_teacher
from dollar.parallel.world import World

TRAINED = ("float32", "bfloat16")  # gradients in float16 would need scaling


def dtype_of(config: DictConfig, key: str, known: Collection[str] = TRAINED) -> torch.dtype:
    """The dtype that parallel.<key> names."""
    name = config.parallel[key]
    if name not in known:
        raise ValueError(f"parallel.{key} is {name!r}; use {' or '.join(known)}")
    return DTYPES[name]


def take_teacher(config: DictConfig) -> None:
    """Put the teacher of the student in `checkpoint` into the configuration; keys of the command line stay.

    ValueError where the command line names another teacher.
    """
    from hydra.core.hydra_config import HydraConfig

    from dollar.export.student import read_card

    card, overrides = read_card(config.checkpoint), HydraConfig.get().overrides.task
    if "teacher" not in card:
        raise ValueError(f"the student in {config.checkpoint} doesn't say which teacher made it; train it again")
    if any(o.startswith("teacher=") for o in overrides) and config.teacher.name != card["teacher_name"]:
        raise ValueError(
            f"teacher is {config.teacher.name}, but the student in {config.checkpoint} came from the teacher "
            f"{card['teacher_name']}; leave teacher= out"
        )
    # Prompts that come are not among those that training had stored; and the student's times stay those that it was
    # trained for, where another size would shift its teacher's.
    online = {"text": "online"} | ({"shift": card["shift"]} if card.get("shift") is not None else {})
    given = given_below("teacher")
    plain: Any = OmegaConf.to_container(given)
    found = teacher_of(card, Path(config.checkpoint), flat(plain))
    config.teacher = OmegaConf.merge(found, online, given)


def build_teacher(config: DictConfig, world: World, weights: bool = True) -> Teacher:
    """The teacher that conf/teacher names, on this process's device; without weights its transformer is left empty."""
    dtype = dtype_of(config, "teacher_dtype", DTYPES)
    teacher = instantiate(config.teacher, device=world.device, compute_dtype=dtype, weights=False)
    if weights:
        fill_teacher(teacher, world, config.parallel.shard_teacher and world.size > 1)
    return teacher


def with_text(config: DictConfig, teacher: Teacher) -> Teacher:
    """The teacher, with the data's stored prompts for its text encoder where teacher.text=stored."""
    if config.teacher.get("text") != "stored":
        return teacher
    text = instantiate(config.data.text, _convert_="all")(
        length=teacher.text_length, condition=Condition, device=teacher.device, fingerprint=teacher.fingerprint()
    )
    return replace(teacher, text=text)


def check_text(config: DictConfig, teacher: Teacher, data: Samples, objective: Objective) -> None:
    """Raise ValueError where stored prompts lack a caption, or the unconditional prompt where guidance needs it.

    Without this a run would end at the first sample that needs it.
    """
    if config.teacher.get("text") != "stored":
        return
    teacher.text.check(data.captions)
    validation = config.validation
    scales = list(objective.guidance.values())
    shown = validation.every > 0 and (validation.clips > 0 or config.student.guided)
    if shown and not teacher.family.embeds_guidance:
        scales.append(teacher.guidance_scale)
    if any(scale != 1 for scale in scales):
        teacher.null(1)


def check_guidance(objective: Objective, teacher: Teacher) -> None:
    """Raise ValueError where a teacher that has its guidance inside is to be guided once more."""
    twice = [f"{name}.guidance_scale={scale}" for name, scale in objective.guidance.items() if scale != 1]
    if teacher.family.embeds_guidance and twice:
        raise ValueError(
            f"{' and '.join(twice)}, but {teacher.name} takes its guidance scale ({teacher.guidance_scale}) as an "
            "input and has no unconditional half; set "
            f"{' '.join(f'{name}.guidance_scale=1' for name in objective.guidance)}; teacher.guidance_scale is what it "
            "gets"
        )


def quiet() -> None:
    """Turn diffusers' and transformers' progress bars and notes off, for output that a person reads."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    diffusers_logging.set_verbosity_error()
    diffusers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
