"""The model card of an exported student: README.md, with the front matter that hubs read."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from hydra.utils import get_class
from omegaconf import OmegaConf

from dollar.cli.entry import CONF

LIBRARIES = ("diffusers", "transformers", "torch", "dollar")
# What a reader looks at first of a training command; the rest is in the configuration below it.
KEYS_ALONE = "The keys that say most; all of them are below.\n\n"
TELLING = (
    *("run", "seed", "cycles", "batch", "beta_vsd", "beta_cd", "beta_ft", "vsd.guidance_scale", "cd.guidance_scale"),
    *("beta_pull", "beta_ddpo", "beta_rg", "lrm.mode", "lrm.path", "student.input", "student.guided"),
    *("student.timesteps", "student.steps", "student.between", "student.parameterization", "init"),
)


@dataclass
class Facts:
    """What the card tells of one export.

    card: the student's; calls: what the pipeline is told, by step count; times: [K] as the network sees them; run: the
    folder of its run, None where there is none; lora: a sentence about it, None for none; averaged: which weights;
    tuned: whether it is its teacher tuned by a reward, which is sampled with guidance as its teacher is.
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
    lora: str | None
    full: bool
    licence: str | None
    prompt: str
    seed: int


def model_card(facts: Facts) -> str:
    """README.md's text."""
    card, config = facts.card, facts.card.get("config") or {}
    head = OmegaConf.to_yaml(OmegaConf.create(front_matter(facts))).rstrip()
    times = ", ".join(f"{t:g}" for t in facts.times)
    counts = sorted(facts.calls, reverse=True)
    lines = [
        f"---\n{head}\n---\n\n{opening(facts)}",
        "## Use\n",
        python(facts),
        *notes(facts),
        "## What it is\n",
        f"- teacher: `{base_model(facts)}` ({facts.pipeline_class}){merged(card)}",
        f"- clips: {facts.clip}",
        f"- steps: {', '.join(map(str, counts))}; the scheduler in `scheduler/` is for "
        + ("these counts" if len(counts) > 1 else "this count alone"),
        f"- timesteps of the longest: {list(facts.card['timesteps'])} as they were asked for, {times} as the network "
        "sees them",
        f"- between two steps: {card['between']}",
        f"- output: {card.get('parameterization', 'homogeneous')} parameterization",
        f"- weights: {'averaged over the training' if facts.averaged else 'the last ones'}, in {facts.dtype}",
        *([f"- LoRA: {facts.lora}"] if facts.lora else []),
        *training(config, card, facts.run),
        *figures(facts.run, counts),
        "\n## Versions\n",
        ", ".join(f"{name} {version(name)}" for name in LIBRARIES) + "\n",
        *stored(config),
    ]
    return "\n".join(lines)


def opening(facts: Facts) -> str:
    """Title and first sentences."""
    name, base = facts.card["teacher_name"], base_model(facts)
    counts = " or ".join(map(str, sorted(facts.calls, reverse=True)))
    if facts.tuned:
        reward = pursued(facts.card.get("config") or {}, facts.run).reward
        by = f" by the reward {reward}" if reward else ""
        return (
            f"# {name}, tuned\n\nThe text-to-video model `{base}`, tuned{by}. "
            f"It is sampled as it was before, in {counts} steps and with guidance. It needs diffusers alone.\n"
        )
    return (
        f"# {name} in {counts} steps\n\nA student of the text-to-video model `{base}`, distilled so that it makes a "
        f"clip in {counts} steps instead of its teacher's 50 or so. It needs diffusers alone.\n"
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
        terms = {key: theirs[key] for key in ("license", "license_name", "license_link") if key in theirs}
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
        found = OmegaConf.to_container(OmegaConf.create(text[4 : text.index("\n---", 3)]), resolve=False)
    except Exception:  # a card of others' making; whatever is wrong with it, it says nothing
        return {}
    return {str(k): v for k, v in found.items()} if isinstance(found, dict) else {}


def python(facts: Facts) -> str:
    """The lines that make a clip."""
    steps = max(facts.calls)
    told = "".join(f", {key}={value!r}" for key, value in facts.calls[steps].items())
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
        f"frames = pipe({facts.prompt!r}{told}).frames[0]",
    ]
    return "```python\n" + "\n".join(lines) + "\n```\n"


def notes(facts: Facts) -> list[str]:
    """What isn't plain from the call."""
    counts = sorted(facts.calls, reverse=True)
    told = "Give no other number of steps: the network was not trained for it." if len(counts) == 1 else ""
    if len(counts) > 1:
        told = f"`num_inference_steps` may be {' or '.join(map(str, counts))}; it was trained for no other."
    if facts.embeds_guidance:
        scale = facts.calls[counts[0]]["guidance_scale"]
        guidance = (
            f"The network is told a guidance scale and was trained at {scale:g}: leave `guidance_scale={scale:g}`."
        )
    elif facts.tuned:
        scale = facts.calls[counts[0]]["guidance_scale"]
        guidance = f"Guidance is not within it, as it isn't within its teacher: `guidance_scale={scale:g}` is both's."
    else:
        guidance = "Guidance is within the student: leave `guidance_scale=1.0`."
    seeds = "The seed is torch's own, for noise is drawn from it between steps; a GPU draws other noise than a CPU."
    lacking = "license" not in read_front_matter(facts.teacher_folder / "README.md") and facts.licence is None
    unknown = ["The license is given as `other`, for the teacher's folder names none; its teacher's terms hold.\n"]
    return [f"{told} {guidance} {seeds}\n", *(unknown if lacking else [])]


def training(config: Mapping[str, Any], card: Mapping[str, Any], run: Path | None) -> list[str]:
    """How it was trained."""
    if not config:
        return []
    betas = [f"{key} {config.get(key)}" for key in ("beta_vsd", "beta_cd", "beta_ft")]
    betas += [f"{name} {told_of(term)}" for name, term in further(config).items()]
    return [
        f"- losses: {', '.join(betas)}",
        f"- reward: {followed(config, run)}",
        f"- cycles: {card.get('cycle')} of {config.get('cycles')}, {config.get('batch')} clips each",
        f"\n## Training\n\n{'' if 'command' in card else KEYS_ALONE}```sh\n{command(config, card)}\n```",
    ]


def further(config: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The loss's further terms that have a weight, by name."""
    return {name: term for name, term in (config.get("terms") or {}).items() if term and term.get("beta", 1) > 0}


def told_of(term: Mapping[str, Any]) -> str:
    """A term's weight and its other settings."""
    rest = ", ".join(f"{key} {value}" for key, value in term.items() if key not in ("_target_", "beta"))
    return f"{term.get('beta', 1.0)}{f' ({rest})' if rest else ''}"


class Pursued(NamedTuple):
    """The reward that a run followed, "" for none, and by which ways."""

    reward: str
    ways: list[str]


def pursued(config: Mapping[str, Any], run: Path | None) -> Pursued:
    """What a run's terms led to; run: its folder, which knows what a latent reward model that was only read follows."""
    reward, lrm = reward_of(config.get("reward") or {}), config.get("lrm") or {}
    ways = [name for name, term in further(config).items() if asks_reward(term)]
    if config.get("beta_ft", 0) > 0:
        mode, path = lrm.get("mode", "online"), lrm.get("path")
        ways.insert(0, "a latent reward model" if mode == "online" else f"the {mode} latent reward model {path}")
        own = [folder / "lrm.json" for folder in (run and run / "lrm", path and Path(path)) if folder]
        if not reward and (card := next((place for place in own if place.is_file()), None)):
            reward = json.loads(card.read_text(encoding="utf-8")).get("reward") or ""
    return Pursued(reward if ways else "", ways)


def reward_of(node: Mapping[str, Any]) -> str:
    """A reward by its class, with the parts of a mixture or the place of its weights; "" for none."""
    name = str(node.get("_target_") or "").rsplit(".", 1)[-1]
    parts = [f"{part} {weight}" for part, weight in (node.get("weights") or {}).items() if weight]
    told = ", ".join(parts) or node.get("path")
    return f"{name} ({told})" if told else name


def asks_reward(term: Mapping[str, Any]) -> bool:
    """Whether a term leads towards the reward; one whose class isn't there any more is taken to."""
    try:
        kind: Any = get_class(term["_target_"])
        return bool(kind.needs)
    except Exception:  # whatever the class of another's making does
        return True


def followed(config: Mapping[str, Any], run: Path | None) -> str:
    """The reward that was followed and by which ways, in words."""
    reward, ways = pursued(config, run)
    if ways:
        return f"{reward or 'unknown'}, by way of {' and '.join(ways)}"
    measured = reward_of(config.get("reward") or {})
    return f"none ({measured} was only measured)" if measured else "none"


def command(config: Mapping[str, Any], card: Mapping[str, Any]) -> str:
    """The training's command; with the keys that matter most where the run didn't keep it."""
    if "command" in card:
        return " ".join(map(shlex.quote, ["torchrun", "launch/train.py", *card["command"]]))
    teacher = config.get("teacher") or {}
    named = (CONF / "teacher" / f"{teacher.get('name')}.yaml").is_file()
    words = [f"teacher={teacher['name']}" if named else f"teacher.folder={teacher.get('folder')}"]
    words += [f"loss={name}" for name in further(config) if (CONF / "loss" / f"{name}.yaml").is_file()]
    for key in TELLING:
        value: Any = config
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if value is not None:
            words.append(f"{key}={json.dumps(value, separators=(',', ':')) if isinstance(value, list) else value}")
    return "torchrun launch/train.py " + " ".join(map(shlex.quote, words))


def figures(run: Path | None, counts: Sequence[int]) -> list[str]:
    """What evaluation and the last validation have measured."""
    from dollar.evaluation.report.page import format_table
    from dollar.training.log import read_scalars

    if run is None:
        return []
    parts: list[str] = []
    if (run / "metrics.json").is_file():
        metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
        metrics["student"] = {n: f for n, f in (metrics.get("student") or {}).items() if int(n) in counts}
        parts.append(f"\n## Evaluation\n\n```\n{format_table(metrics)}\n```")
    curves = {n: c for n, c in read_scalars(run).items() if n.startswith("validation/") and len(c.values)}
    if curves:
        rows = "\n".join(f"- {n.removeprefix('validation/')}: {c.values[-1]:.4g}" for n, c in sorted(curves.items()))
        last = max(int(c.steps[-1]) for c in curves.values())
        parts.append(f"\n## Last validation\n\nAt cycle {last}, on a few held-out prompts:\n\n{rows}")
    return parts


def stored(config: Mapping[str, Any]) -> list[str]:
    """The whole configuration, folded away."""
    if not config:
        return []
    text = OmegaConf.to_yaml(OmegaConf.create(dict(config)), resolve=False)
    return [f"<details><summary>The training's whole configuration</summary>\n\n```yaml\n{text}```\n\n</details>\n"]
