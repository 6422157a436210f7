"""Distils text-to-video diffusion teachers into students of a few steps.

The names below are loaded when they are first used, so that `import dollar` itself loads neither torch nor diffusers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dollar.export.student import Student
    from dollar.library import distil, export_student, load_student, load_teacher, sample, save_video
    from dollar.losses.term import Term
    from dollar.models.teacher import Teacher
    from dollar.surrogate.latent_reward import LatentReward
    from dollar.surrogate.pixel_reward import PixelReward, Reward

__version__ = "0.1.0"
__all__ = [
    "LatentReward",
    "PixelReward",
    "Reward",
    "Student",
    "Teacher",
    "Term",
    "__version__",
    "distil",
    "export_student",
    "load_student",
    "load_teacher",
    "sample",
    "save_video",
]

_HOMES = {
    "LatentReward": "dollar.surrogate.latent_reward",
    "PixelReward": "dollar.surrogate.pixel_reward",
    "Reward": "dollar.surrogate.pixel_reward",
    "Student": "dollar.export.student",
    "Teacher": "dollar.models.teacher",
    "Term": "dollar.losses.term",
    **dict.fromkeys(
        ("distil", "export_student", "load_student", "load_teacher", "sample", "save_video"), "dollar.library"
    ),
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
