"""From configuration to training on pairs: what must agree before it begins, and what the student is compared with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra.utils import get_object
from omegaconf import DictConfig

from dollar.cli.build.teacher import dtype_of
from dollar.export.student import load_student, read_card
from dollar.losses.objective import Objective
from dollar.models.denoiser import Denoiser
from dollar.models.teacher import Teacher


def check_method(config: DictConfig, objective: Objective) -> None:
    """Raise ValueError where the method of the configuration isn't for these terms."""
    check: Any = getattr(get_object(config.method["_target_"]), "check", None)
    if check is not None:
        check(objective)


def check_pair_settings(config: DictConfig, objective: Objective) -> None:
    """Raise ValueError, naming the key, for what training on pairs can't be."""
    if not objective.pair_terms:
        return
    if not config.data.get("pairs", False):
        raise ValueError(
            f"{' and '.join(objective.pair_terms)} need pairs of clips; give data=pairs data.path=FOLDER, which "
            "launch/pairs.py fills, or a folder of your own with pairs.csv"
        )
    if dtype_of(config, "dtype") != dtype_of(config, "teacher_dtype"):
        raise ValueError(
            f"parallel.dtype is {config.parallel.dtype} and parallel.teacher_dtype {config.parallel.teacher_dtype}, "
            "but the errors of student and reference are compared: rounding that one of them has alone would be taken "
            "for a difference. Give both the same"
        )
    if config.student.parameterization != "homogeneous":
        raise ValueError(
            f"student.parameterization is {config.student.parameterization}, but its outputs are compared with the "
            "reference's; use homogeneous"
        )
    keys = config.preference
    if not 0 <= keys.drop_caption <= 1:
        raise ValueError(f"preference.drop_caption is {keys.drop_caption}; it is a share of the pairs, 0 to 1")
    if keys.times == "student" and config.student.guided:
        raise ValueError(
            "preference.times is student, but this student is sampled in many steps as its teacher is "
            "(student.guided=true), at any time; use preference.times=uniform, or for a few-step student "
            "student.guided=false with its student.steps"
        )
    if keys.reference is not None:
        card = read_card(keys.reference)
        if card["teacher_name"] != config.teacher.name or card.get("parameterization", "homogeneous") != "homogeneous":
            raise ValueError(
                f"preference.reference={keys.reference} is a {card.get('parameterization', 'homogeneous')} student of "
                f"{card['teacher_name']}; it must predict as this student of {config.teacher.name} does"
            )


def check_dropped(config: DictConfig, objective: Objective, teacher: Teacher) -> None:
    """Raise ValueError where captions are to be left out, and the teacher can't do without one."""
    dropped = config.preference.drop_caption if objective.pair_terms else 0
    if dropped > 0 and teacher.family.embeds_guidance:
        raise ValueError(
            f"preference.drop_caption is {dropped}, but {teacher.name} takes its guidance scale as an input and has no "
            "unconditional half; set preference.drop_caption=0"
        )
    if dropped > 0 and config.teacher.get("text") == "stored":
        teacher.null(1)


def reference_of(config: DictConfig, objective: Objective, teacher: Teacher) -> Denoiser | None:
    """What the student is compared with; None is the teacher."""
    if not objective.pair_terms or config.preference.reference is None:
        return None
    return load_student(Path(config.preference.reference), teacher, dtype_of(config, "teacher_dtype")).denoiser
