"""A teacher by its configs alone: what a command must know of it before anything large is read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from omegaconf import DictConfig, OmegaConf

if TYPE_CHECKING:
    from dollar.models.pipeline import Pipeline
    from dollar.models.teacher import Family


class Configs(NamedTuple):
    """A teacher's folder and its family's adapter, with the settings of conf/teacher as plain values."""

    pipeline: Pipeline
    family: Family
    settings: dict[str, Any]


def configs_of_teacher(config: DictConfig) -> Configs:
    """The configs of the teacher in a command's configuration; no weight is read.

    ValueError says what is missing or disagrees, and names the nearest sizes where its clips' don't fit.
    """
    from dollar.models.assemble import TeacherSettings, configs_of
    from dollar.models.outline import family_of

    plain = cast(dict[str, Any], OmegaConf.to_container(config.teacher, resolve=True))
    given = {key: value for key, value in plain.items() if key != "_target_"}
    settings = TeacherSettings(**given)
    if settings.text != "online":
        raise ValueError("teacher.text is stored, but prompts are to be encoded here; set teacher.text=online")
    pipeline, family = configs_of(family_of(plain["_target_"]), settings)
    family.latent_shape(settings.frames, settings.height, settings.width)
    return Configs(pipeline, family, given)


def check_grid(configs: Configs, steps: int, key: str) -> None:
    """Raise ValueError for a number of steps that the teacher's scheduler can't be set to."""
    try:
        configs.family.grid(steps)
    except (ValueError, ArithmeticError, IndexError) as error:
        raise ValueError(f"{key} is {steps}, which this teacher's scheduler can't take: {error}") from None


def check_lengths(configs: Configs, prompts: Sequence[str]) -> None:
    """Raise ValueError for prompts of more tokens than the teacher reads."""
    from dollar.models.pipeline import diffusers_class

    place, most = configs.pipeline.place("tokenizer"), configs.settings["text_length"]
    tokenizer = diffusers_class("transformers.AutoTokenizer").from_pretrained(place, local_files_only=True)
    counts = {prompt: len(tokenizer(prompt).input_ids) for prompt in dict.fromkeys(prompts)}
    if long := {prompt: count for prompt, count in counts.items() if count > most}:
        first, count = next(iter(long.items()))
        also = f", as {len(long) - 1} others are too" if len(long) > 1 else ""
        raise ValueError(
            f"the prompt {first[:60]!r} has {count} tokens and this teacher reads {most}{also}; shorten it, or give "
            "force=true to have it cut"
        )
