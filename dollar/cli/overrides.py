"""The command line: options, prompts in quotes, and checks of keys, types and values."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import OmegaConf

from dollar.cli import kinds
from dollar.cli.declared import UNDECLARED, flat, kind_of, source_of
from dollar.cli.settings import COMMANDS

PACKAGE = Path(__file__).resolve().parents[1]
# Next to the package in a checkout, inside it where it is installed.
CONF = PACKAGE / "conf" if (PACKAGE / "conf").is_dir() else PACKAGE.parent / "conf"
SHARED = "common"  # the folder of conf/ that holds what several yamls share, and no choices
FURTHER = ("--config-dir", "-cd")  # a folder of the user's own with further choices
# Those options that a word without = follows.
VALUED = (*FURTHER, "--cfg", "-c", "--package", "-p", "--info", "-i", "--config-name", "-cn", "--config-path", "-cp")


def options_first(arguments: Sequence[str]) -> list[str]:
    """The same words with hydra's options before the key=value ones, since it understands no option between those."""
    words = list(zip(_options(arguments), arguments, strict=True))
    return [word for option, word in words if option] + [word for option, word in words if not option]


def _options(arguments: Sequence[str]) -> list[bool]:
    """Which words are options of hydra's, or what follows one."""
    pairs = zip(["", *arguments], arguments, strict=False)
    return [word.startswith("-") or (before in VALUED and "=" not in word) for before, word in pairs]


def further_folder(arguments: Sequence[str]) -> Path | None:
    """The folder that --config-dir names; ValueError where there is none."""
    found = None
    for before, word in zip(["", *arguments], arguments, strict=False):
        option, _, value = word.partition("=")
        if before in FURTHER or (option in FURTHER and value):
            found = Path(word if before in FURTHER else value).absolute()
            if not found.is_dir():
                raise ValueError(f"--config-dir={found}: there is no such folder; name one with yamls of your own")
    return found


def quote_prompt(argument: str) -> str:
    """A prompt as one quoted word, so that commas, brackets, quotes and ${} in it mean nothing to hydra.

    A list [first, second] and what is quoted already stay as they are.
    """
    key, _, value = argument.partition("=")
    enclosed = len(value) > 1 and (value[0], value[-1]) in (("[", "]"), ('"', '"'), ("'", "'"))
    if key != "prompt" or enclosed or value in ("", "null"):
        return argument
    return f"{key}={quoted(value)}"


def whole_data(config_name: str, argument: str) -> str:
    """data=PATH as data.path="PATH" for a command whose data is no group, for hydra would look for a group's choice."""
    key, _, value = argument.partition("=")
    if key != "data" or OmegaConf.select(OmegaConf.load(CONF / f"{config_name}.yaml"), "data.path", default=0) == 0:
        return argument
    as_it_is = value in ("", "null") or value[0] in "[\"'"
    return f"data.path={value if as_it_is else quoted(value)}"


def quoted(text: str) -> str:
    """A value in which nothing means anything to hydra."""
    # Within quotes hydra reads a backslash as one, unless a quote follows.
    escaped = re.sub(r'(\\*)("|$)', lambda found: 2 * found[1] + ('\\"' if found[2] else ""), text)
    return f'"{escaped}"'.replace("${", "\\${")


def check_overrides(config_name: str, arguments: Sequence[str]) -> list[str]:
    """Raise ValueError for an unknown key (naming the nearest), or for a value of another type than is declared.

    Returns the given keys whose values are text, whatever they look like.
    """
    words = [word for option, word in zip(_options(arguments), arguments, strict=True) if not option]
    _check_words(words, several=bool({"-m", "--multirun"} & set(arguments)))
    pairs = [w.lstrip("+").split("=", 1) for w in words if "=" in w and not w.startswith(("hydra", "~"))]
    places = [CONF, *filter(None, [further_folder(arguments)])]
    folders = {p.name for place in places for p in place.iterdir() if p.is_dir()} - {SHARED}
    # reward@guard.reward=NAME is a choice of the folder reward for the keys below guard.reward.
    groups = folders | {key for key, _ in pairs if key.partition("@")[0] in folders}
    for key, value in pairs:
        if key in groups:
            _check_choice(key, value, places)
    config = composed(config_name, words, groups, places)
    known = _keys(config)
    given = [leaf for k, v in pairs if k not in groups for leaf in _leaves(k, v, known)]
    text = []
    for key, value in given:
        if key not in known:
            raise ValueError(f"there is no key {key!r}; {_nearest(key, sorted({*known, *groups}))}")
        kind = kind_of(COMMANDS[config_name], config, key)
        _check_value(key, value, kinds.guessed(known[key]) if kind is UNDECLARED else kind, known[key])
        if kind is not UNDECLARED and kinds.is_text(kind):
            text.append(key)
    return text


def _check_words(words: Sequence[str], several: bool) -> None:
    """Raise ValueError for a word that hydra can't read, or that gives several values outside a sweep."""
    if bare := [w for w in words if "=" not in w and not w.startswith("~")]:
        raise ValueError(f"{bare[0]!r} says nothing; everything is given as key=value")
    for word in words:
        try:
            OverridesParser.create().parse_override(word)
        except HydraException as error:
            raise ValueError(f"{word} can't be read: {str(error).splitlines()[0]}") from None
        key, _, value = word.lstrip("+").partition("=")
        one = several or word.startswith(("hydra", "~")) or value.startswith(("[", "{", "'", '"'))
        if "," in value and not one:
            raise ValueError(f"{key}={value} gives several values; add -m to run one after the other, or give one")


def composed(config_name: str, words: Sequence[str], groups: set[str], places: Sequence[Path]) -> dict[str, Any]:
    """The configuration of these choices, with everything else at its default: plain values, interpolations as text."""
    chosen = []
    for word in words:
        key, equals, value = word.lstrip("+").partition("=")
        if equals and key in groups:
            chosen.append(f"{word.partition('=')[0]}={value.split(',')[0]}")
        elif equals and key.endswith("._target_") and "," not in value:  # which declares the other keys of its node
            chosen.append(word)
    further = [f"hydra.searchpath=[{','.join(quoted(f'file://{place}') for place in places[1:])}]"] * (len(places) > 1)
    try:
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            config = hydra.compose(config_name, overrides=[*further, *chosen])
    except HydraException as error:
        raise ValueError(f"{' '.join(chosen)} can't be read: {str(error).splitlines()[0]}") from None
    finally:
        GlobalHydra.instance().clear()
    plain: Any = OmegaConf.to_container(config, resolve=False)
    return plain


def _check_choice(group: str, value: str, places: Sequence[Path]) -> None:
    options = sorted(p.stem for place in places for p in (place / group.partition("@")[0]).glob("*.yaml"))
    for choice in value.split(","):
        if choice not in options:
            raise ValueError(f"there is no {group}={choice}; {_nearest(choice, options)} ({', '.join(options)})")


def _nearest(word: str, options: Sequence[str]) -> str:
    leaf = {o: o.rsplit(".", 1)[-1] for o in options}
    near = difflib.get_close_matches(word, options, 1, 0.5) or [
        o for o, last in leaf.items() if difflib.get_close_matches(word.rsplit(".", 1)[-1], [last], 1, 0.6)
    ]
    return f"the nearest is {near[0]!r}" if near else "--cfg job lists all keys"


def _keys(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Every key, dotted, those that hold others included, with its default (None where it must be given)."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        found[f"{prefix}{key}"] = None if value == "???" else value
        if isinstance(value, Mapping):
            found |= _keys(value, f"{prefix}{key}.")
    return found


def _leaves(key: str, text: str, known: Mapping[str, Any]) -> list[tuple[str, str]]:
    """A key and its value, or, where the key holds others, those that {inner: value, ...} gives."""
    inner = sorted(k for k in known if k.startswith(f"{key}."))
    if not isinstance(known.get(key), dict) or not inner:
        return [(key, text)]
    given = OverridesParser.create().parse_override(f"{key}={text}")
    if given.is_sweep_override():
        return [(key, text)]
    values = given.value()
    if not isinstance(values, dict):
        own = [k for k in inner if not k.rpartition(".")[2].startswith("_") and source_of(known[k]) is None] or inner
        raise ValueError(f"{key}={text}: {key} holds keys of its own; give one of them, as {own[0]}=VALUE")
    written = [(f"{key}.{k}", "null" if v is None else str(v)) for k, v in values.items()]
    return [leaf for k, v in written for leaf in _leaves(k, v, known)]


def _values(key: str, text: str) -> Iterator[tuple[str, Any]]:
    """What an override gives, or each value of a sweep, as it is written and as hydra reads it."""
    try:
        parsed = OverridesParser.create().parse_override(f"{key}={text}")
    except HydraException:  # of a dictionary's value that was written anew; it is checked when it is used
        return
    if not parsed.is_sweep_override():
        yield text, parsed.value()
    elif parsed.is_choice_sweep():
        for choice in parsed.value().list:  # type: ignore[union-attr]
            value = Override._convert_value(choice)
            yield str(value), value


def _check_value(key: str, text: str, kind: Any, default: Any) -> None:
    """Raise ValueError unless each value that is given is of the kind."""
    now = "" if default is None else f" (now {default})"
    for part, value in _values(key, text):
        if kinds.accepts(kind, value) or (isinstance(value, str) and "${" in value):
            continue
        lists = next((m for m in kinds.members(kind) if kinds.is_list(m)), None)
        if value is not None and all(kinds.is_choice(m) or m is type(None) for m in kinds.members(kind)):
            raise ValueError(f"{key} is {value!r}; use {kinds.named(kind)}")
        if lists is None or value is None or not isinstance(value, list):
            write = "" if lists is None or value is None else f"; write {key}=[{part}]"
            raise ValueError(f"{key}={part}: {key} is {kinds.named(kind)}{now}{write}")
        for place, item in enumerate(value):
            if not kinds.accepts(inner := kinds.item_of(lists, place), item):
                one = {int: "whole number", float: "number"}.get(inner, kinds.named(inner))
                raise ValueError(f"{key}={text}: {item!r} is no {one}, as all in {key} are{now}")
        raise ValueError(f"{key}={text}: {key} has {kinds.length_of(lists)} numbers{now}")


def text_keys(config_name: str, config: Mapping[str, Any]) -> list[str]:
    """The keys whose values the command's own settings declare as text."""
    settings = COMMANDS[config_name]
    declared = {key: kind_of(settings, {}, key) for key in flat(config)}
    return [key for key, kind in declared.items() if kind is not UNDECLARED and kinds.is_text(kind)]
