"""The study's figures: an evaluation's, what a network costs, and what its stages and trainings say of themselves."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dollar.studies.few_step import figures as common
from dollar.studies.readings import curves_of, times_of
from dollar.training.log import Curve, read_scalars

SHARES = tuple(f"right_{name}" for name in common.ATTRIBUTES)
# A figure's name -> where metrics.json has its value.
COSTS = {
    "parameters": ("size", "parameters"),
    "flops": ("size", "flops"),
    "forwards": ("size", "forwards"),
    "seconds": ("seconds", "diffusion"),
    "speedup": ("speedup",),
    "ceiling": ("speedup_ceiling",),
}
NAMES = {
    **{name: text for name, text in common.NAMES.items() if name not in ("jpeg", "colourfulness", "consistency")},
    "parameters": "million parameters",
    "flops": "GFLOPs a forward",
    "forwards": "forwards a clip",
    "seconds": "seconds a clip",
    "speedup": "speed-up",
    "ceiling": "speed-up, at most",
    "trained_for": "seconds of training",
    "winner_error": "winner's error above the reference's, at the end",
    "loser_error": "loser's error above the reference's, at the end",
    "cosine": "cosine of both sides' gradients",
}
FORMS = {
    **common.FORMS,
    "parameters": "{:.2f}",
    "flops": "{:.2f}",
    "forwards": "{:.0f}",
    "trained_for": "{:.0f}",
    "speedup": "{:.1f}",
    "ceiling": "{:.1f}",
    "winner_error": "{:.4f}",
    "loser_error": "{:.4f}",
    "cosine": "{:.2f}",
}
LESS = ("frechet", "parameters", "flops", "forwards", "seconds", "trained_for", "winner_error")
ERRORS = {"winner_error": "pairs/winner_error", "loser_error": "pairs/loser_error", "cosine": "cosine/winner_loser"}
POINTS = 12  # of a curve of errors
RANKED = "redpo"  # the row whose ranking and pairs are shown
CHANGES = {"parameters": 1e-6, "flops": 1e-9}  # the unit that a figure is told in


def measured_teacher(folder: Path) -> dict[str, Any]:
    """The teacher's figures and those of real clips, from an evaluation without a student."""
    metrics = json.loads((folder / "metrics.json").read_text("utf-8"))
    return {"figures": system_figures(metrics["teacher"]), "real": system_figures(metrics["real"])}


def measured(folder: Path) -> dict[str, Any]:
    """A row's figures, with what its stages, ranking, pairs and trainings say; OSError or ValueError for what lacks."""
    inside = folder / "evaluation"
    metrics = json.loads(((inside if inside.is_dir() else folder) / "metrics.json").read_text("utf-8"))
    result: dict[str, Any] = {
        "figures": {steps: system_figures(system) for steps, system in metrics["student"].items()},
        "curves": {},
    }
    stages = sorted(folder.glob("stage*"))
    result |= _trained([stage / "train" for stage in stages] or [folder])
    if stages:
        whole = json.loads((folder / "result.json").read_text("utf-8"))
        result["stages"] = whole["stages"]
        result["rankings"] = [_ranking(stage / "rank" / "ranking.json") for stage in stages]
        result["pairs"] = [_pairs(stage / "pairs") for stage in stages if (stage / "pairs").is_dir()]
        for pairs in () if folder.name == RANKED else result["pairs"]:
            del pairs["picture"]  # no other's is shown, and it would be most of a result
    return result


def system_figures(system: Mapping[str, Any]) -> dict[str, float]:
    """The figures of one model in metrics.json, its costs among them."""
    # An evaluation compares with the teacher's stored clips of 50 steps, and this study with those of fewer.
    found = {name: v for name, v in common.system_figures(system).items() if not name.endswith("_paired_se")}
    for name, path in COSTS.items():
        value: Any = system
        for key in path:
            value = value.get(key) if isinstance(value, Mapping) else None
        if value is not None:
            found[name] = float(value) * CHANGES.get(name, 1.0)
    return found


def _trained(runs: Sequence[Path]) -> dict[str, Any]:
    """What trainings took, and the curves of the last of them; nothing where nothing was trained."""
    scalars = [read_scalars(run) for run in runs if (run / "metrics.jsonl").is_file()]
    times = [times_of(found) for found in scalars if "time/cycle" in found]
    if not times:
        return {}
    cycles = [int(curve.steps[-1]) for curve in times]
    last = scalars[-1]
    found: dict[str, Any] = {
        "cycles": sum(cycles),
        "seconds_per_cycle": float(np.median(times[-1].values)),
        "trained_for": sum(n * float(np.median(curve.values)) for n, curve in zip(cycles, times, strict=True)),
        "curves": curves_of(last, [f"reward_{steps}" for steps in (10, 4)]),
    }
    for name, key in ERRORS.items():
        if key in last:
            found["curves"][name] = _thinned(last[key])
            found[name] = found["curves"][name][1][-1]
    return found


def _thinned(curve: Curve) -> list[list[float]]:
    """[cycles, means] of a curve over so many equal parts of it."""
    parts = min(POINTS, len(curve.values))
    ends = np.array_split(np.arange(len(curve.values)), parts)
    return [[float(curve.steps[i[-1]]) for i in ends], [float(np.nanmean(curve.values[i])) for i in ends]]


def _ranking(path: Path) -> dict[str, Any]:
    """Units, what the network is without each, and the proxies; and the units that went."""
    table = json.loads(path.read_text("utf-8"))
    rows = {unit: table["rows"][unit] for unit in table["units"] if unit in table["rows"]}

    def total(worth: Mapping[str, Any]) -> float:
        values = [worth["scores"][name] for name in table["properties"]] if worth["scores"] else []
        return float(np.mean(values)) if values else math.nan

    return {
        "units": list(rows),
        "total": [total(worth) for worth in rows.values()],
        "consistency": [(worth["scores"] or {}).get(table["consistency"]) for worth in rows.values()],
        "prediction": [worth["prediction"] for worth in rows.values()],
        "influence": [worth["influence"] for worth in rows.values()],
        "whole": total(table["full"]) if table["full"] else None,
        "chosen": table["chosen"],
    }


def _pairs(folder: Path) -> dict[str, Any]:
    """What the pairs were chosen by, how many there are, and their gaps."""
    told = json.loads((folder / "pairs.json").read_text("utf-8"))
    gaps = [json.loads(line)["gap"] for line in (folder / "pairs.jsonl").read_text("utf-8").splitlines()]
    picture = folder / "pairs.png"
    shown = base64.b64encode(picture.read_bytes()).decode() if picture.is_file() else None
    return {
        "targets": told["targets"],
        "falls": told["falls"],
        "counts": told["counts"]["pairs"],
        "gaps": gaps,
        "picture": shown,
    }


def rankings(results: Sequence[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """The rankings of whole teachers among a row's results, seed by seed."""
    return (result["rankings"][0] for result in results if result.get("rankings"))
