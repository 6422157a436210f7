"""The model card of an exported student: README.md, with the front matter that hubs read."""

from __future__ import annotations

import json
import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from dollar import __version__
from dollar.export.lora import Described
from dollar.export.places import by_name
from dollar.export.recipe import pursued, training

LIBRARIES = ("diffusers", "transformers", "torch")


@dataclass
class Facts:
    """The facts of one export that its card states.

    card: the student's, with all places by name; calls: the pipeline's arguments by step count; times: [K] as the
    network sees them; run: the folder of its run, None where there is none; weights: what tells the student's, None
    for those of a checkpoint; lrm: where the latent reward model lies that training has read; lora: what the LoRA is,
    None for none; averaged: which weights; tuned: whether it is its teacher tuned by a reward, which is sampled with
    guidance as its teacher is; configuration: the training's, as yaml, "" where it is not known; choices: the names
    that conf/ offers for `teacher` and `loss`; pruned: what of the teacher's blocks is left, None where none is gone;
    slim: whether it has half blocks, which diffusers can't read.
    """

    card: Mapping[str, Any]
    teacher_folder: Path
    pipeline_class: str
    calls: Mapping[int, Mapping[str, Any]]
    times: Sequence[float]
    clip: str
    switches: Sequence[str]
    embeds_guidance: bool
    tuned: bool
    dtype: str
    averaged: bool
    run: Path | None
    weights: str | None
    lrm: Path | None
    lora: Described | None
    full: bool
    licence: str | None
    prompt: str
    seed: int
    configuration: str
    choices: Mapping[str, Collection[str]]
    pruned: str | None = None
    slim: bool = False


def model_card(facts: Facts) -> str:
    """README.md's text."""
    card, config = facts.card, facts.card.get("config") or {}
    head = yaml.safe_dump(front_matter(facts), sort_keys=False, allow_unicode=True).rstrip()
    times = ", ".join(f"{t:g}" for t in facts.times)
    counts = sorted(facts.calls, reverse=True)
    lines = [
        f"---\n{head}\n---\n\n{opening(facts)}",
        "## Use\n",
        python(facts),
        *notes(facts),
        "## What it is\n",
        f"- teacher: `{base_model(facts)}` ({facts.pipeline_class}){merged(card)}",
        *([f"- blocks: {facts.pruned}"] if facts.pruned else []),
        f"- clips: {facts.clip}",
        f"- steps: {', '.join(map(str, counts))}; the scheduler in `scheduler/` is for "
        + ("these counts" if len(counts) > 1 else "this count alone"),
        f"- timesteps of the longest: {list(facts.card['timesteps'])} as they were asked for, {times} as the network "
        "sees them",
        f"- between two steps: {card['between']}",
        f"- output: {card.get('parameterization', 'homogeneous')} parameterization",
        f"- weights: {'averaged over the training' if facts.averaged else 'the last ones'}, in {facts.dtype}",
        *([f"- LoRA: {facts.lora.sentence}"] if facts.lora else []),
        *training(config, card, facts.run, facts.choices, facts.lrm),
        *figures(facts.run, facts.weights, counts),
        "\n## Versions\n",
        ", ".join([*(f"{name} {version(name)}" for name in LIBRARIES), f"dollar {__version__}"]) + "\n",
        *stored(facts.configuration),
    ]
    return "\n".join(lines)


def opening(facts: Facts) -> str:
    """Title and first sentences."""
    name, base = facts.card["teacher_name"], base_model(facts)
    counts = " or ".join(map(str, sorted(facts.calls, reverse=True)))
    needs = "It needs this package, for diffusers has no half blocks." if facts.slim else "It needs diffusers alone."
    if facts.tuned and facts.pruned:
        return (
            f"# {name}, pruned\n\nThe text-to-video model `{base}` with fewer blocks: {facts.pruned}. It is sampled "
            f"as it was before, in {counts} steps and with guidance. {needs}\n"
        )
    if facts.tuned:
        reward = pursued(facts.card.get("config") or {}, facts.run, facts.lrm).reward
        by = f" by the reward {reward}" if reward else ""
        return (
            f"# {name}, tuned\n\nThe text-to-video model `{base}`, tuned{by}. "
            f"It is sampled as it was before, in {counts} steps and with guidance. It needs diffusers alone.\n"
        )
    what = "A student" if facts.full or not facts.lora else f"A LoRA of a student ({facts.lora.kept})"
    return (
        f"# {name} in {counts} steps\n\n{what} of the text-to-video model `{base}`, distilled so that it makes a "
        f"clip in {counts} steps instead of its teacher's 50 or so. {needs}\n"
    )


def merged(card: Mapping[str, Any]) -> str:
    """The LoRA that the teacher had, in words."""
    teacher = card.get("teacher") or {}
    if teacher.get("lora") is None:
        return ""
    return f" with the LoRA `{teacher['lora']}` merged into it at {teacher.get('lora_scale', 1.0):g}"


def base_model(facts: Facts) -> str:
    """The teacher by the name that others know: its hub id, or its own name."""
    named = str((facts.card.get("teacher") or {}).get("folder", ""))
    known = named.count("/") == 1 and named[0].isalnum() and not Path(named).exists()
    return named if known else str(facts.card["teacher_name"])


def front_matter(facts: Facts) -> dict[str, Any]:
    """License, base model, pipeline tag and library, as hubs name them."""
    theirs = read_front_matter(facts.teacher_folder / "README.md")
    if facts.licence is not None:
        terms: dict[str, Any] = {"license": facts.licence}
    else:
        terms = by_name({key: theirs[key] for key in ("license", "license_name", "license_link") if key in theirs})
    return {
        "license": "other",
        **terms,
        "base_model": base_model(facts),
        "pipeline_tag": "text-to-video",
        "library_name": "diffusers",
    }


def read_front_matter(path: Path) -> dict[str, Any]:
    """The yaml at the head of a model card; empty where there is none."""
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    if not text.startswith("---\n") or "\n---" not in text[3:]:
        return {}
    try:
        found = yaml.safe_load(text[4 : text.index("\n---", 3)])
    except Exception:  # a card of others' making; whatever is wrong with it, it says nothing
        return {}
    return {str(k): v for k, v in found.items()} if isinstance(found, dict) else {}


def python(facts: Facts) -> str:
    """The lines that make a clip."""
    steps = max(facts.calls)
    if facts.slim:
        return (
            f"```sh\npython launch/sample.py checkpoint=FOLDER steps={steps} prompt={shlex.quote(facts.prompt)}\n```\n"
        )
    arguments = "".join(f", {key}={value!r}" for key, value in facts.calls[steps].items())
    wanted = "" if facts.dtype == "float32" else f", dtype=torch.{facts.dtype}"
    if facts.full:
        load = [f'pipe = DiffusionPipeline.from_pretrained("FOLDER"{wanted})']
    else:
        scheduler = facts.card["scheduler"]
        load = [
            f'pipe = DiffusionPipeline.from_pretrained("{base_model(facts)}"{wanted})',
            'pipe.load_lora_weights("FOLDER")',
            f'pipe.scheduler = diffusers.{scheduler}.from_pretrained("FOLDER", subfolder="scheduler")',
        ]
    lines = [
        *(["import diffusers"] if not facts.full else []),
        "import torch",
        "from diffusers import DiffusionPipeline",
        "",
        *load,
        *(f"pipe.vae.{switch}()" for switch in facts.switches),
        f"torch.manual_seed({facts.seed})",
        f"frames = pipe({facts.prompt!r}{arguments}).frames[0]",
    ]
    return "```python\n" + "\n".join(lines) + "\n```\n"


def notes(facts: Facts) -> list[str]:
    """What isn't plain from the call."""
    counts = sorted(facts.calls, reverse=True)
    counted = "Give no other number of steps: the network was not trained for it." if len(counts) == 1 else ""
    if len(counts) > 1:
        counted = f"`num_inference_steps` may be {' or '.join(map(str, counts))}; it was trained for no other."
    if facts.embeds_guidance:
        scale = facts.calls[counts[0]]["guidance_scale"]
        guidance = f"The network reads a guidance scale and was trained at {scale:g}: leave `guidance_scale={scale:g}`."
    elif facts.tuned:
        scale = facts.calls[counts[0]]["guidance_scale"]
        guidance = f"Guidance is not within it, as it isn't within its teacher: `guidance_scale={scale:g}` is both's."
    else:
        guidance = "Guidance is within the student: leave `guidance_scale=1.0`."
    seeds = "The seed is torch's own, for noise is drawn from it between steps; a GPU draws other noise than a CPU."
    lacking = "license" not in read_front_matter(facts.teacher_folder / "README.md") and facts.licence is None
    unknown = ["The license is given as `other`, for the teacher's folder names none; its teacher's terms hold.\n"]
    return [f"{counted} {guidance} {seeds}\n", *(unknown if lacking else [])]


def figures(run: Path | None, weights: str | None, counts: Sequence[int]) -> list[str]:
    """What evaluation and the last validation have measured; an evaluation of other weights is left out."""
    from dollar.evaluation.report.table import format_table
    from dollar.training.log import read_scalars

    if run is None:
        return []
    parts: list[str] = []
    metrics = json.loads(found.read_text(encoding="utf-8")) if (found := run / "metrics.json").is_file() else {}
    if metrics and metrics.get("weights", weights) != weights:
        parts.append("\n## Evaluation\n\nThe figures in the run's folder are of other weights, and left out.")
    elif metrics:
        metrics["student"] = {n: f for n, f in (metrics.get("student") or {}).items() if int(n) in counts}
        parts.append(f"\n## Evaluation\n\n```\n{format_table(metrics)}\n```")
    curves = {n: c for n, c in read_scalars(run).items() if n.startswith("validation/") and len(c.values)}
    if curves:
        rows = "\n".join(f"- {n.removeprefix('validation/')}: {c.values[-1]:.4g}" for n, c in sorted(curves.items()))
        last = max(int(c.steps[-1]) for c in curves.values())
        parts.append(f"\n## Last validation\n\nAt cycle {last}, on a few held-out prompts:\n\n{rows}")
    return parts


def stored(configuration: str) -> list[str]:
    """The whole configuration, folded away."""
    if not configuration:
        return []
    title = "<details><summary>The training's whole configuration</summary>"
    return [f"{title}\n\n```yaml\n{configuration}```\n\n</details>\n"]
