"""Figures as files: metrics.json of an evaluation, and teacher_metrics.json, which later evaluations compare with."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from dollar.contents import contents_of, short_hash
from dollar.data import shapes
from dollar.evaluation.yardstick import Figures, Yardstick, pairs
from dollar.log import logger
from dollar.media import atomically
from dollar.models.teacher import Teacher
from dollar.rewards import shapes as verifier

SIZES = (256, 512, 1024)  # numbers of clips that a teacher's figures are stored for


def write_metrics(metrics: dict[str, Any], out: Path) -> None:
    """metrics.json, in one atomic step; what is not a number is null there, since JSON knows no nan."""

    def strict(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: strict(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [strict(inner) for inner in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    with atomically(out / "metrics.json") as temporary:
        temporary.write_text(json.dumps(strict(metrics), indent=1, allow_nan=False))


class Guided(Protocol):
    """A teacher, or what is known of one before it is read: its folder, and the scale by which it is guided."""

    @property
    def folder(self) -> Path: ...
    @property
    def guidance_scale(self) -> float: ...


def identity(teacher: Guided) -> dict[str, Any]:
    """What stored figures must have been made with: these weights at this guidance, this world, verifier and pairs."""
    weights = hashlib.sha256()
    for path in sorted(Path(teacher.folder).rglob("*.safetensors")):
        weights.update(path.read_bytes())
    plain = (int, float, str, tuple, dict)
    constants = [(n, v) for m in (shapes, verifier) for n, v in vars(m).items() if n.isupper() and isinstance(v, plain)]
    measure = hashlib.sha256(repr((constants, pairs(shapes.captions("held_out"), 1024))).encode())
    return {
        "weights": weights.hexdigest(),
        "guidance_scale": teacher.guidance_scale,
        "measure": measure.hexdigest(),
    }


def settings_of(teacher: Any) -> dict[str, str]:
    """A short hash of what else a teacher's clips follow from: the files of its components, its LoRA and its settings.

    Nothing for a stand-in that has no pipeline.
    """
    if (pipeline := getattr(teacher, "pipeline", None)) is None:
        return {}
    places = {name: pipeline.place(name) for name in teacher.family.classes}
    held = {name: contents_of(place).digest for name, place in places.items() if place.exists()}
    lora = None if teacher.lora is None else [contents_of(teacher.lora[0]).digest, teacher.lora[1]]
    shift = getattr(teacher.denoiser.schedule, "shift", None)
    known = [held, lora, teacher.negative_prompt, teacher.text_length, shift]
    return {"settings": short_hash(known)}


def store_figures(path: Path, teacher: Teacher, yardstick: Yardstick, videos: Tensor, figures: Figures) -> None:
    """Write the teacher's figures of its videos uint8 [N, T, C, H, W] and of fewer, and its verdicts pair by pair."""
    sizes = [count for count in SIZES if count <= len(videos)]
    stored = {
        **identity(teacher),
        **settings_of(teacher),
        "by_clips": {str(count): yardstick.measure(videos, count).metrics for count in sizes},
        "pairs": {"right": figures.right.tolist(), "reward": [round(float(r), 5) for r in figures.reward]},
    }
    with atomically(path) as temporary:
        temporary.write_text(json.dumps(stored))


def stored_figures(path: Path, teacher: Guided, clips: int) -> dict[str, Any] | None:
    """The teacher's stored figures of so many clips; None where there are none, or they are of another teacher.

    ValueError for a file that holds no figures.
    """
    if not path.is_file():
        return None
    try:
        stored = json.loads(path.read_text())
        stored["by_clips"], stored["pairs"]
    except (ValueError, TypeError, KeyError):
        raise ValueError(
            f"{path} holds no figures of a teacher; remove it, or name what an evaluation without checkpoint= has "
            "written by teacher_metrics=FILE"
        ) from None
    mine = identity(teacher) | settings_of(teacher)
    if any(stored.get(key) != value for key, value in mine.items()) or str(clips) not in stored["by_clips"]:
        logger.warning(
            f"note: the figures in {path} are of another teacher or its settings, guidance, world or number of clips, "
            "and are not used"
        )
        return None
    return dict(stored)
