"""The ablation's figures: where a run has them, what they are called, and which rows they compare."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dollar.studies.compare import rank_error
from dollar.studies.readings import curves_of, figures_of, late, peak_of, times_of
from dollar.studies.rows import ALL, Row
from dollar.training.log import Curve, read_scalars

# A figure's name -> where metrics.json has its value.
FIGURES = {
    "alignment": ("alignment",),
    "clip": ("scored", "scores", "pickscore"),
    "colourfulness": ("scored", "scores", "colourfulness"),
    "jpeg": ("scored", "scores", "jpeg_compressibility"),
    "motion": ("scored", "scores", "dynamic_degree"),
    "verifier": ("reward",),  # the mean of its margins
    "frechet": ("frechet", "excess"),
    "vendi": ("vendi", "mean"),
    "sharpness": ("sharpness",),
    "flicker": ("scored", "scores", "flicker"),
    "consistency": ("scored", "scores", "frame_consistency"),
    "saturation": ("saturation",),
    "contrast": ("contrast",),
    "flow": ("flow",),
}
# Those of them that a row may pursue, and how they are called.
PURSUED = {
    "clip": "CLIP reward",
    "colourfulness": "colourfulness",
    "jpeg": "JPEG compressibility",
    "motion": "dynamic degree",
}
# What a student is judged by besides what it was trained for: all cheap rewards, and measures of worn-out clips.
PANEL = {
    **PURSUED,
    "verifier": "verifier's margin",
    "flicker": "steadiness (flicker)",
    "consistency": "frame consistency",
    "saturation": "saturation",
    "contrast": "contrast",
    "flow": "flow",
}
# The trade-off's methods, with which the names of its rows begin.
METHODS = {
    "direct": "direct gradient through the decoder",
    "small": "direct gradient through the small decoder",
    "ddpo": "DDPO",
    "paper": "the paper's latent reward",
    "smooth": "latent reward, smooth",
    "through": "smooth, through the teacher",
    "ours": "ours: on a small decoder's pixels",
}
CONTROL = "control"  # the row that goes on as those of trade-off and over-optimisation do, but without a reward
# Validation's scalars that become curves, and the terms whose gradient at x_hat is the reward's.
CURVES = ("reward_4", "predicted_4", "guard_4", "alignment_4")
REWARD_TERMS = ("ft", "refl", "draft")
NAMES = {
    **PURSUED,
    "alignment": "alignment",
    "verifier": "the verifier's mean margin",
    "frechet": "Fréchet above floor",
    "vendi": "Vendi",
    "sharpness": "sharpness",
    "saturation": "saturation",
    "contrast": "contrast",
    "flow": "flow in pixels a frame",
    "peak_gib": "peak GiB",
    "seconds_per_cycle": "seconds a cycle",
    "held_rank": "rank correlation on held-out prompts",
    "held_pairwise": "pairwise accuracy there",
    "climb_true": "true rise of a step of 3 % up its gradient",
    "flicker": "steadiness",
    "consistency": "frame consistency",
}
# Of figures that three decimals don't tell apart, or that two do.
FORMS = {
    "clip": "{:.4f}",
    "climb_true": "{:+.4f}",
    "flicker": "{:.4f}",
    "consistency": "{:.4f}",
    "frechet": "{:.2f}",
    "vendi": "{:.2f}",
}
LESS = ("frechet", "peak_gib", "seconds_per_cycle")  # of which less is better


def along_push(rows: Sequence[Row], method: str) -> list[str]:
    """The trade-off's rows of a method, in order of push."""
    return [row.name for row in rows if row.group == "tradeoff" and row.name.startswith(f"{method}_")]


def pursued_by(rows: Sequence[Row], group: str) -> str:
    """The figure that the rows of a group pursue, the first where they differ; clip where they pursue none."""
    return next((row.pursued for row in rows if row.group == group and row.pursued != ALL), "clip")


def measured_teacher(folder: Path) -> dict[str, Any]:
    """The teacher's figures and those of real clips, from an evaluation without a student."""
    metrics = json.loads((folder / "metrics.json").read_text("utf-8"))
    return {
        "figures": figures_of(metrics["teacher"], FIGURES),
        "real": figures_of(metrics["real"], FIGURES),
    }


def measured(folder: Path) -> dict[str, Any]:
    """A trained and evaluated run's figures, curves and costs, and how its training ended.

    OSError or ValueError for a run that lacks a file.
    """
    metrics = json.loads((folder / "metrics.json").read_text("utf-8"))
    card = json.loads((folder / "student" / "student.json").read_text("utf-8"))
    scalars = read_scalars(folder)
    if "time/cycle" not in scalars:
        raise ValueError(f"{folder} has no times in its metrics.jsonl; it was not trained by launch/train.py")
    times, lrm = times_of(scalars), metrics.get("lrm") or {}
    return {
        "figures": {steps: figures_of(system, FIGURES) for steps, system in metrics["student"].items()},
        "rank_correlation": late(scalars, "reward/rank_correlation"),
        "held_rank": lrm.get("rank_correlation"),
        "held_rank_se": rank_error(lrm.get("rank_correlation"), lrm.get("clips", 0)),
        "held_pairwise": lrm.get("pairwise"),
        "climb_predicted": lrm.get("climb_3_predicted"),
        "climb_true": lrm.get("climb_3_true"),
        "climb_true_se": lrm.get("climb_3_true_se"),
        "seconds_per_cycle": float(np.median(times.values)),
        "peak_gib": peak_of(scalars),
        "cycles": int(times.steps[-1]),
        "ended": card.get("ended"),
        "kept": card.get("cycle"),
        "scale": float(scalars["guard/scale"].values[-1]) if "guard/scale" in scalars else None,
        **gradients_of(scalars),
        "curves": curves_of(scalars, CURVES),
    }


def gradients_of(scalars: Mapping[str, Curve]) -> dict[str, float]:
    """Medians over cycles of the gradients' norms at x_hat, VSD's and the reward's, and of the cosine between them."""
    names = {"norm_vsd": "grad_norm/x_hat/vsd"}
    for term in REWARD_TERMS:
        if f"grad_norm/x_hat/{term}" in scalars:
            names |= {"norm_reward": f"grad_norm/x_hat/{term}", "cosine": f"cosine/x_hat/vsd_{term}"}
    return {n: float(np.nanmedian(scalars[key].values)) for n, key in names.items() if key in scalars}
