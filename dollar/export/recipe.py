"""How a student was trained, in words, read from the configuration that was stored with it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Collection, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from dollar.losses.term import Needs

# What a reader looks at first of a training command; the rest is in the configuration below it.
KEYS_ALONE = "The keys that say most; all of them are below.\n\n"
# Terms that configurations of an earlier version have as beta_<name> alone.
EARLIER = {
    "vsd": "dollar.losses.vsd.VSD",
    "cd": "dollar.losses.consistency.Consistency",
    "ft": "dollar.losses.latent_reward.LatentRewardTerm",
}
MAIN_KEYS = (
    *("run", "seed", "cycles", "batch", "beta_vsd", "beta_cd", "beta_ft", "vsd.guidance_scale", "cd.guidance_scale"),
    *("beta_pull", "beta_ddpo", "beta_rg", "lrm.mode", "lrm.path", "student.input", "student.guided"),
    *("preference.dpo", "preference.beta", "preference.sft", "preference.times", "preference.reference"),
    *("student.timesteps", "student.steps", "student.between", "student.parameterization", "init"),
)


def training(
    config: Mapping[str, Any],
    card: Mapping[str, Any],
    run: Path | None,
    choices: Mapping[str, Collection[str]],
    lrm: Path | None = None,
) -> list[str]:
    """The card's lines on the losses, the reward, the cycles and the command.

    choices: as `command` takes them; lrm: as `pursued` does.
    """
    if not config:
        return []
    losses = [f"{name} {described(term)}" for name, term in terms_of(config).items()]
    return [
        f"- losses: {', '.join(losses)}",
        f"- reward: {followed(config, run, lrm)}",
        f"- cycles: {card.get('cycle')} of {config.get('cycles')}, {config.get('batch')} clips each",
        f"\n## Training\n\n{'' if 'command' in card else KEYS_ALONE}```sh\n{command(config, card, choices)}\n```",
    ]


def terms_of(config: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The loss's terms that have a weight, by name."""
    weights = {name: config.get(f"beta_{name}") for name in EARLIER}
    terms = {name: {"_target_": EARLIER[name], "beta": beta} for name, beta in weights.items() if beta is not None}
    terms |= {name: term for name, term in (config.get("terms") or {}).items() if term}
    return {name: term for name, term in terms.items() if term.get("beta", 1) > 0}


def described(term: Mapping[str, Any]) -> str:
    """A term's weight and its other settings, but for those by which it is used in all updates."""
    plain = {"step_counts": None, "at": "all"}
    told = {key: value for key, value in term.items() if key not in ("_target_", "beta")}
    rest = ", ".join(f"{key} {value}" for key, value in told.items() if key not in plain or value != plain[key])
    return f"{term.get('beta', 1.0)}{f' ({rest})' if rest else ''}"


class Pursued(NamedTuple):
    """The reward that a run followed, "" for none, and through what."""

    reward: str
    ways: list[str]


def pursued(config: Mapping[str, Any], run: Path | None, lrm_place: Path | None = None) -> Pursued:
    """What a run's terms led to; run: its folder, which knows what a latent reward model that was only read follows.

    lrm_place: where lrm.path lies, if the configuration has it by name alone.
    """
    reward, lrm = reward_of(config.get("reward") or {}), config.get("lrm") or {}
    needs = {name: needs_of(term) for name, term in terms_of(config).items()}
    mode, path = lrm.get("mode", "online"), lrm.get("path")
    surrogate = "a latent reward model" if mode == "online" else f"the {mode} latent reward model {path}"
    ways = [surrogate if need.surrogate else name for name, need in needs.items() if need.pursues]
    if surrogate in ways:
        own = [folder / "lrm.json" for folder in (run and run / "lrm", lrm_place or (path and Path(path))) if folder]
        if not reward and (card := next((place for place in own if place.is_file()), None)):
            reward = json.loads(card.read_text(encoding="utf-8")).get("reward") or ""
    return Pursued(reward if ways else "", ways)


def reward_of(node: Mapping[str, Any]) -> str:
    """A reward by its class, with the parts of a mixture or the place of its weights; "" for none."""
    name = str(node.get("_target_") or "").rsplit(".", 1)[-1]
    parts = [f"{part} {weight}" for part, weight in (node.get("weights") or {}).items() if weight]
    detail = ", ".join(parts) or node.get("path")
    return f"{name} ({detail})" if detail else name


def needs_of(term: Mapping[str, Any]) -> Needs:
    """What a term needs; a term whose class can't be imported any more is assumed to follow the reward."""
    try:
        module, _, name = str(term["_target_"]).rpartition(".")
        kind = getattr(import_module(module), name)
        if isinstance(kind.needs, Needs):
            return kind.needs
        needs: Needs = kind(**{key: value for key, value in term.items() if key != "_target_"}).needs
        return needs
    except Exception:  # whatever a class of somebody else's making raises
        return Needs(reward="numbers")


def followed(config: Mapping[str, Any], run: Path | None, lrm: Path | None = None) -> str:
    """The reward that was followed and by which ways, in words; lrm: as `pursued` takes it."""
    reward, ways = pursued(config, run, lrm)
    if ways:
        return f"{reward or 'unknown'}, by way of {' and '.join(ways)}"
    measured = reward_of(config.get("reward") or {})
    return f"none ({measured} was only measured)" if measured else "none"


def command(config: Mapping[str, Any], card: Mapping[str, Any], choices: Mapping[str, Collection[str]]) -> str:
    """The training's command; with the keys that matter most where the run didn't keep it.

    choices: the names that conf/ offers for `teacher` and `loss`.
    """
    if "command" in card:
        return " ".join(map(shlex.quote, ["torchrun", "launch/train.py", *card["command"]]))
    teacher = config.get("teacher") or {}
    named = teacher.get("name") in choices["teacher"]
    words = [f"teacher={teacher['name']}" if named else f"teacher.folder={teacher.get('folder')}"]
    words += [f"loss={name}" for name in terms_of(config) if name in choices["loss"]][:1]  # its keys give the others
    for key in MAIN_KEYS:
        value: Any = config
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if value is not None:
            words.append(f"{key}={json.dumps(value, separators=(',', ':')) if isinstance(value, list) else value}")
    return "torchrun launch/train.py " + " ".join(map(shlex.quote, words))
