"""From configuration to a run's validations: their prompts, and what they show."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig

from dollar.cli.build.data import some_captions
from dollar.cli.build.objects import instantiate
from dollar.cli.build.rewards import check_captions
from dollar.data.latents import Samples
from dollar.data.prompts import read_prompts
from dollar.models.teacher import Teacher
from dollar.surrogate.pixel_reward import PixelReward
from dollar.training.clip_files import ClipFiles
from dollar.training.validation import BATCH, Shown


def check_validation(config: DictConfig) -> None:
    """Raise ValueError, naming the key, for what a validation can't be."""
    v = config.validation
    for key, least in (("every", 0), ("prompts", 1), ("clips", 0), ("mp4s", 0), ("guidance_steps", 1)):
        if v[key] < least:
            raise ValueError(f"validation.{key} is {v[key]}; it must be at least {least}")
    own_prompts(config)


def how_validated(config: DictConfig, files: ClipFiles | None) -> dict[str, Any]:
    """The arguments of `Validation` that the configuration states; files: where clips go at full size."""
    v = config.validation
    shown = Shown(v.clips, v.guidance_steps, files)
    batch = config.parallel.micro_batch or BATCH
    return {"count": v.prompts, "shown": shown, "guided": config.student.guided, "batch": batch}


def own_prompts(config: DictConfig) -> list[str]:
    """The prompts of validation.prompts_file; none where there is no file."""
    if config.validation.prompts_file is None:
        return []
    try:
        return read_prompts(config.validation.prompts_file)
    except ValueError as error:
        raise ValueError(f"validation.prompts_file: {error}") from None


def check_scored(config: DictConfig, prompts: Sequence[str], *pixels: PixelReward | None) -> None:
    """Raise ValueError for prompts that a reward can't score; those of a file that nothing reads don't matter."""
    file = config.validation.prompts_file
    if config.validation.every == 0 and file is not None:
        return
    for pixel in pixels:
        if pixel is None:
            continue
        try:
            check_captions(pixel.reward, prompts)
        except ValueError as error:
            raise ValueError(f"validation.prompts_file={file}: {error}" if file is not None else str(error)) from error


def prompts_of(config: DictConfig, teacher: Teacher, data: Samples) -> list[str]:
    """The prompts of validations: of a file of one's own, else held-out ones of the data, else its captions."""
    own = own_prompts(config)
    if not own:
        return instantiate(config.data.held_out) if config.data.held_out else some_captions(data)
    if config.teacher.get("text") == "stored":
        try:
            teacher.text.check(own)
        except ValueError as error:
            raise ValueError(
                f"validation.prompts_file={config.validation.prompts_file}: {error}. teacher.text=stored knows the "
                "stored captions alone"
            ) from None
    return own
