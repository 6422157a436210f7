"""The study's figures: where an evaluation has them, what they are called, and a row's against the teacher's."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dollar.studies.compare import Gaps
from dollar.studies.readings import figures_of, times_of
from dollar.studies.results import Results
from dollar.training.log import read_scalars

ATTRIBUTES = ("colour", "shape", "size", "motion", "background")
# A figure's name -> where metrics.json has its value.
FIGURES = {
    "alignment": ("alignment",),
    **{f"right_{name}": ("attributes", name) for name in ATTRIBUTES},
    "verifier": ("reward",),
    "frechet": ("frechet", "excess"),
    "vendi": ("vendi", "mean"),
    "sharpness": ("sharpness",),
    "saturation": ("saturation",),
    "contrast": ("contrast",),
    "flow": ("flow",),
    "position": ("spread", "position"),
    "speed": ("spread", "speed"),
    "clip": ("scored", "scores", "pickscore"),
    "colourfulness": ("scored", "scores", "colourfulness"),
    "jpeg": ("scored", "scores", "jpeg_compressibility"),
    "motion": ("scored", "scores", "dynamic_degree"),
    "flicker": ("scored", "scores", "flicker"),
    "consistency": ("scored", "scores", "frame_consistency"),
}
NAMES = {
    "alignment": "alignment",
    **{f"right_{name}": f"{name} right" for name in ATTRIBUTES},
    "verifier": "reward (the verifier's margin)",
    "frechet": "Fréchet above floor",
    "vendi": "Vendi",
    "sharpness": "sharpness",
    "saturation": "saturation",
    "contrast": "contrast",
    "flow": "flow in pixels a frame",
    "position": "spread of position",
    "speed": "spread of speed",
    "clip": "CLIP reward",
    "colourfulness": "colourfulness",
    "jpeg": "JPEG compressibility",
    "motion": "dynamic degree",
    "flicker": "steadiness (flicker)",
    "consistency": "frame consistency",
    "cycles": "cycles",
    "seconds_per_cycle": "seconds a cycle",
}
FORMS = {
    **{name: "{:.2f}" for name in ("frechet", "vendi", "sharpness", "position", "seconds_per_cycle")},
    **{name: "{:.4f}" for name in ("speed", "clip", "flicker", "consistency")},
    "cycles": "{:.0f}",
}
LESS = ("frechet",)  # of which less is better
Z = 1.96  # standard errors that an evaluation's 95 % interval reaches to either side


def measured_teacher(folder: Path) -> dict[str, Any]:
    """The teacher's figures and those of real clips, from an evaluation without a student."""
    metrics = json.loads((folder / "metrics.json").read_text("utf-8"))
    return {"figures": system_figures(metrics["teacher"]), "real": system_figures(metrics["real"])}


def measured(folder: Path) -> dict[str, Any]:
    """A trained and evaluated student's figures and what it took. OSError or ValueError for a run that lacks a file."""
    metrics = json.loads((folder / "metrics.json").read_text("utf-8"))
    scalars = read_scalars(folder)
    if "time/cycle" not in scalars:
        raise ValueError(f"{folder} has no times in its metrics.jsonl; it was not trained by launch/train.py")
    times = times_of(scalars)
    return {
        "figures": {steps: system_figures(system) for steps, system in metrics["student"].items()},
        "seconds_per_cycle": float(np.median(times.values)),
        "cycles": int(times.steps[-1]),
        "curves": {},
    }


def system_figures(system: Mapping[str, Any]) -> dict[str, float]:
    """The figures of one model in metrics.json, with standard errors (FIGURE_se) of shares of clips and of rewards.

    FIGURE_paired_se: that of its difference from the teacher's on the same pairs, from its bootstrap interval.
    """
    found = figures_of(system, FIGURES)
    for name in ATTRIBUTES:
        share = found[f"right_{name}"]
        found[f"right_{name}_se"] = math.sqrt(share * (1 - share) / system["clips"])
    for name, key in (("alignment", "alignment"), ("verifier", "reward")):
        if "difference" in system:
            interval = system["difference"][key]
            found[f"{name}_paired_se"] = (interval["high"] - interval["low"]) / (2 * Z)
    return found


def above_teacher(results: Results, row: str, figure: str) -> Gaps:
    """A row's figure minus the teacher's, seed by seed.

    All seeds are measured on the same pairs, against the same clips of the teacher, so that evaluation's error is much
    the same in each of them and doesn't become less in their mean: it is taken as the mean of theirs.
    """
    teacher = results.teacher(figure)
    if teacher is None:
        return Gaps([])
    values = [value - teacher.mean for value in results.figure(row, figure).values()]
    paired, own = (list(results.figure(row, f"{figure}{end}").values()) for end in ("_paired_se", "_se"))
    if paired:
        return Gaps(values, float(np.mean(paired)))
    return Gaps(values, math.hypot(float(np.mean(own)), teacher.error or 0.0) if own else 0.0)


def share_of_teacher(results: Results, row: str, figure: str, zero: float = 0.0) -> Gaps:
    """A row's figure as a share of the teacher's, seed by seed, both counted from `zero`."""
    teacher, above = results.teacher(figure), above_teacher(results, row, figure)
    if teacher is None:
        return Gaps([])
    whole = teacher.mean - zero
    return Gaps([1 + value / whole for value in above.values], above.error / whole)
