"""From conf/toy.yaml to the toy's setting."""

from __future__ import annotations

from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from dollar.studies.toy.modes import Modes
from dollar.studies.toy.seeds import Setting, Size
from dollar.studies.toy.training import Course

OWN = ("preferred", "pairs", "beta", "sft_weight", "samples", "steps")


def setting_of(config: DictConfig) -> Setting:
    """The setting; ValueError, naming the key, for what can't be."""
    given = cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))
    return Setting(
        modes=Modes(given["weights"], given["centres"], given["sds"]),
        teacher=size_of("teacher", given["teacher"]),
        base=size_of("base", given["base"]),
        distillation=course_of("distillation", given["distillation"]),
        **{key: given[key] for key in OWN},
    )


def size_of(name: str, given: dict[str, Any]) -> Size:
    """A network's size and training."""
    course = course_of(name, {key: given[key] for key in ("updates", "batch", "lr")})
    try:
        return Size(given["layers"], given["width"], course)
    except ValueError as error:
        raise ValueError(f"{name}.{error}") from None


def course_of(name: str, given: dict[str, Any]) -> Course:
    """A training's length and rate."""
    try:
        return Course(**given)
    except ValueError as error:
        raise ValueError(f"{name}.{error}") from None
