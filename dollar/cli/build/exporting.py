"""From conf/export.yaml to an export: its settings and the student's teacher."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from dollar.cli import origin
from dollar.cli.arguments import given_below
from dollar.cli.build.objects import instantiate
from dollar.cli.declared import flat
from dollar.cli.entry import check_alone
from dollar.cli.overrides import CONF
from dollar.export.places import by_name
from dollar.export.source import KINDS, StudentSource

if TYPE_CHECKING:
    from dollar.export.exporter import ExportSettings
    from dollar.models.teacher import Teacher

PLAIN_PROMPT = "a dog runs along a beach at sunset"
# Of the teacher's keys, those that change how it computes: it must compute as the plain pipeline does.
AS_PLAIN = {"text": "online", "frozen_dtype": "float32", "decode_chunk": 1, "chunk_frames": None}


def check_keys(config: DictConfig) -> None:
    """Raise ValueError for a value that can't be."""
    from dollar.export.lora import NAMES
    from dollar.export.pruned import FORMS
    from dollar.models.assemble import DTYPES

    check_alone("an export")
    for key in ("checkpoint", "out"):
        if config[key] is None or not str(config[key]).strip():
            raise ValueError(f"{key} is not given; checkpoint=PATH names the student, and out=FOLDER where it goes")
    for key, known in (("weights", tuple(KINDS)), ("form", FORMS), ("dtype", tuple(DTYPES)), ("lora_names", NAMES)):
        if config[key] not in known:
            raise ValueError(f"{key} is {config[key]!r}; use {' or '.join(known)}")
    for key in ("steps", "lora"):
        if config[key] is not None and (type(config[key]) is not int or config[key] < 1):
            raise ValueError(f"{key} is {config[key]}; it is a whole number from 1 on, or null")
    if not re.fullmatch(r"\d+(\.\d+)?[KMGT]i?B", str(config.max_shard_size)):
        raise ValueError(f"max_shard_size is {config.max_shard_size}; it is a size such as 10GB or 500MB")
    if config.seed < 0:
        raise ValueError(f"seed is {config.seed}; it must be at least 0")


def teacher_of(config: DictConfig, source: StudentSource, device: Any, weights: bool) -> Teacher:
    """The student's teacher; keys of the command line stay. weights: whether its transformer is read, LoRA and all."""
    overrides = HydraConfig.get().overrides.task
    if any(o.startswith("teacher=") for o in overrides) and config.teacher.name != source.card["teacher_name"]:
        raise ValueError(
            f"teacher is {config.teacher.name}, but the student in {source.place} came from the teacher "
            f"{source.card['teacher_name']}; leave teacher= out"
        )
    shift = {} if source.card.get("shift") is None else {"shift": source.card["shift"]}
    given = given_below("teacher")
    plain: Any = OmegaConf.to_container(given)
    found = origin.teacher_of(source.card, source.place, flat(plain))
    config.teacher = OmegaConf.merge(found, shift, given)
    like_plain = AS_PLAIN if weights else {**AS_PLAIN, "lora": None}
    return instantiate(config.teacher, device=device, weights=weights, **like_plain)


def settings_of(config: DictConfig, source: StudentSource) -> ExportSettings:
    """How the student is exported, once the configuration holds its teacher."""
    from dollar.export.exporter import ExportSettings

    card = public(source.card)
    stored = card.get("config") or {}
    return ExportSettings(
        **{key: config[key] for key in ("weights", "steps", "form", "dtype", "max_shard_size", "link", "lora", "full")},
        **{key: config[key] for key in ("lora_names", "license", "verify", "seed")},
        prompt=prompt_of(config, source),
        switches=[f"enable_{key}" for key in ("tiling", "slicing") if config.teacher.get(key)],
        card=card,
        configuration=OmegaConf.to_yaml(OmegaConf.create(dict(stored)), resolve=False) if stored else "",
        choices=choices(),
    )


def public(card: Mapping[str, Any]) -> dict[str, Any]:
    """A student's card as it may leave this machine: places by name, in its command's words too."""
    found: dict[str, Any] = by_name(card)
    return found | ({"command": [_public(word) for word in card["command"]]} if "command" in card else {})


def _public(word: str) -> str:
    """One `key=value` of a command with the places in its value by name."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    key, equals, value = word.partition("=")
    try:
        override = OverridesParser.create().parse_override(word)
        before = override.value()
        if (after := by_name(before)) == before:
            return word
        override._value = after
        return f"{key}={override.get_value_element_as_str()}"
    except HydraException:  # a word of an older version, or a flag
        return key + equals + by_name(value)


def choices() -> dict[str, list[str]]:
    """The names that conf/ offers for the teacher and the loss."""
    return {group: sorted(path.stem for path in (CONF / group).glob("*.yaml")) for group in ("teacher", "loss")}


def prompt_of(config: DictConfig, source: StudentSource) -> str:
    """The caption to compare by: the given one, the data's first held-out one, or a plain one."""
    if config.prompt is not None:
        return str(config.prompt)
    data = (source.card.get("config") or {}).get("data") or {}
    held_out = data.get("held_out")
    captions = instantiate(held_out) if isinstance(held_out, dict) and "_target_" in held_out else []
    return str(captions[0]) if captions else PLAIN_PROMPT
