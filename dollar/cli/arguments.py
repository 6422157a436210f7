"""A user's words in hydra's grammar: places, names and prompts are taken as they stand."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from dollar.cli import kinds
from dollar.cli.declared import UNDECLARED
from dollar.cli.options import absolute, check_words, further_folder, settings_in, several_in
from dollar.cli.overrides import CONF, Known, check_key, known_of
from dollar.cli.written import exists, is_enclosed, pieces, written


def as_they_stand(config_name: str, arguments: Sequence[str]) -> list[str]:
    """The same words in hydra's grammar, those whose values are text with the very text that was given.

    data=PATH is data.path=PATH for a command whose data is no group. ValueError for words that are no key=value, for an
    unknown choice and for an unknown key.
    """
    known, several = known_to(config_name, arguments), several_in(arguments)
    words = [_whole_data(config_name, word) for word in settings_in(arguments)]
    for key in (word.lstrip("+").partition("=")[0] for word in words if not word.startswith(("hydra", "~"))):
        if key not in known.groups:
            check_key(key, known)
    return [*absolute(arguments), *(_as_it_stands(word, known, several) for word in words)]


def given_below(node: str) -> DictConfig:
    """What the command line gives for the keys below a node, as a configuration of its own."""
    found = OmegaConf.create()
    words: Any = OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False)
    for override in map(OverridesParser.create().parse_override, words):
        if override.key_or_group.startswith(f"{node}."):
            OmegaConf.update(found, override.key_or_group.removeprefix(f"{node}."), override.value(), merge=True)
    return found


def known_to(config_name: str, arguments: Sequence[str]) -> Known:
    """What can be given along with these words; ValueError for an unknown choice, and for what is no key=value."""
    check_words(arguments)
    words = [_whole_data(config_name, word) for word in settings_in(arguments)]
    return known_of(config_name, words, further_folder(arguments))


def _whole_data(config_name: str, word: str) -> str:
    """data=PATH as data.path=PATH where data is no group, in which hydra would look for a choice."""
    key, equals, value = word.partition("=")
    if key != "data" or not equals or (is_enclosed(value, "{") and not exists(value)):
        return word
    path = OmegaConf.select(OmegaConf.load(CONF / f"{config_name}.yaml"), "data.path", default=0)
    return word if path == 0 else f"data.path={value}"


def _as_it_stands(word: str, known: Known, several: bool) -> str:
    key, equals, value = word.partition("=")
    name = key.lstrip("+")
    if not equals or name in known.groups or word.startswith(("hydra", "~")):
        return word
    return f"{key}={_value_as_it_stands(name, value, known, several)}"


def _value_as_it_stands(key: str, value: str, known: Known, several: bool = False) -> str:
    kind = known.kind(key)
    holds = isinstance(known.keys.get(key), Mapping) or (
        kind is not UNDECLARED and any(map(kinds.is_mapping, kinds.members(kind)))
    )
    if holds and is_enclosed(value, "{"):
        inner = [
            (name.strip(), text.strip()) for name, _, text in (i.partition(":") for i in _items(value.strip()[1:-1]))
        ]
        return f"{{{', '.join(f'{k}: ' + _value_as_it_stands(f'{key}.{k}', v, known) for k, v in inner)}}}"
    return written(kind, value, several) if kind is not UNDECLARED and kinds.is_text(kind) else value


def _items(text: str) -> list[str]:
    """The `key: value` of a dictionary; a comma that no key follows belongs to the value before it."""
    found: list[str] = []
    for piece in pieces(text, ",") if text.strip() else []:
        if re.match(r"\s*[\w./@-]+\s*:(?!//)", piece) or not found:
            found.append(piece.strip())
        else:
            found[-1] += f",{piece}"
    return found
