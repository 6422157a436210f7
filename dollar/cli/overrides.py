"""Checks of keys, types and values that a command line gives, and what can be given."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import OmegaConf

from dollar.cli import kinds
from dollar.cli.declared import UNDECLARED, kind_of, source_of
from dollar.cli.options import further_folder, settings_in, several_in
from dollar.cli.settings import COMMANDS
from dollar.cli.written import exists, quoted

PACKAGE = Path(__file__).resolve().parents[1]
# Next to the package in a checkout, inside it where it is installed.
CONF = PACKAGE / "conf" if (PACKAGE / "conf").is_dir() else PACKAGE.parent / "conf"
SHARED = "common"  # the folder of conf/ that holds what several yamls share, and no choices


class Known(NamedTuple):
    """What can be given to a command, once its groups are chosen."""

    settings: type
    config: Mapping[str, Any]
    keys: Mapping[str, Any]
    """Every dotted key with its default."""
    groups: frozenset[str]
    choices: Mapping[str, str | None]
    """Of each group that the command reads, the choice."""

    def kind(self, key: str) -> Any:
        """The declared kind of a key, or UNDECLARED."""
        return kind_of(self.settings, self.config, key)


def check_overrides(config_name: str, arguments: Sequence[str]) -> list[str]:
    """Raise ValueError for an unknown key (naming the nearest), or for a value of another type than is declared.

    arguments: in hydra's grammar. Returns the given keys whose values are text, whatever they look like.
    """
    words = settings_in(arguments)
    _check_words(words, several_in(arguments))
    known = known_of(config_name, words, further_folder(arguments))
    pairs = [w.lstrip("+").split("=", 1) for w in words if "=" in w and not w.startswith(("hydra", "~"))]
    given = [leaf for k, v in pairs if k not in known.groups for leaf in _leaves(k, v, known.keys)]
    text = []
    for key, value in given:
        check_key(key, known)
        kind = known.kind(key)
        now = known.keys.get(key)
        _check_value(key, value, kinds.guessed(now) if kind is UNDECLARED else kind, now)
        if kind is not UNDECLARED and kinds.is_text(kind):
            text.append(key)
    return text


def known_of(config_name: str, words: Sequence[str], further: Path | None) -> Known:
    """What can be given along with these words; ValueError for a choice that there is not."""
    pairs = [w.lstrip("+").split("=", 1) for w in words if "=" in w and not w.startswith(("hydra", "~"))]
    places = [CONF, *filter(None, [further])]
    folders = {p.name for place in places for p in place.iterdir() if p.is_dir()} - {SHARED}
    # reward@guard.reward=NAME is a choice of the folder reward for the keys below guard.reward.
    groups = folders | {key for key, _ in pairs if key.partition("@")[0] in folders}
    for key, value in pairs:
        if key in groups:
            _check_choice(key, value, places)
    config = composed(config_name, words, groups, places)
    choices = {k: v for k, v in config.pop("hydra")["runtime"]["choices"].items() if not k.startswith("hydra/")}
    return Known(COMMANDS[config_name], config, _keys(config), frozenset(groups), choices)


def check_key(key: str, known: Known) -> None:
    """Raise ValueError, with the nearest key, for one that there is not."""
    if key not in known.keys:
        raise ValueError(f"there is no key {key!r}; {_nearest(key, sorted({*known.keys, *known.groups}))}")


def _check_words(words: Sequence[str], several: bool) -> None:
    """Raise ValueError for a word that hydra can't read, or that gives several values outside a sweep."""
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
    """The configuration of these choices, hydra's own with it, with everything else at its default.

    Plain values; interpolations are text.
    """
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
            config = hydra.compose(config_name, overrides=[*further, *chosen], return_hydra_config=True)
    except HydraException as error:
        raise ValueError(f"{' '.join(chosen)} can't be read: {str(error).splitlines()[0]}") from None
    finally:
        GlobalHydra.instance().clear()
    plain: Any = OmegaConf.to_container(config, resolve=False)
    return plain


def _check_choice(group: str, value: str, places: Sequence[Path]) -> None:
    """Raise ValueError for a choice of a group that there is not."""
    folders = [place / group.partition("@")[0] for place in places]
    files = {path.stem: path for folder in folders for path in sorted(folder.glob("*.yaml"))}
    options = sorted(files, key=_naturally)
    if "/" in value or (value not in files and exists(value)):
        keys = [(k, name) for name in options for k in re.findall(r"^(folder|path):", files[name].read_text(), re.M)]
        if keys and value not in files:
            key, name = keys[0]
            raise ValueError(
                f"{group}={value} names a place; name a choice and give the place by its key, as {group}={name} "
                f"{group}.{key}={value} ({', '.join(options)})"
            )
    for choice in value.split(","):
        if choice not in files and not (choice == "null" and group == "experiment"):
            near, every = _nearest_choice(choice, options), ", ".join(options)
            use = f"{near} ({every})" if near else f"use one of {every}"
            raise ValueError(f"there is no {group}={choice}; {use}")


def _nearest_choice(word: str, options: Sequence[str]) -> str:
    """The options that begin like the word, else those that have it as a part, else the one spelled most like it."""
    plain = {option: re.sub(r"\W|_", "", option.lower()) for option in options}
    given = re.sub(r"\W|_", "", word.lower())
    begin = [option for option in options if given and plain[option].startswith(given)]
    parts = [option for option in options if given and given in plain[option]]
    inside = [option for option in options if len(plain[option]) > 2 and given.startswith(plain[option])]
    near = difflib.get_close_matches(given, list(plain.values()), 1, 0.5)
    found = begin or parts or inside or [option for option in options if plain[option] in near]
    if not found:
        return ""
    others = f", then {', '.join(map(repr, found[1:]))}" if found[1:] else ""
    return f"the nearest is {found[0]!r}{others}"


def _naturally(name: str) -> list[tuple[int, str]]:
    """A key to sort by, in which 3 comes before 14."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)|_", name) if part]


def _nearest(word: str, options: Sequence[str]) -> str:
    leaf = {o: o.rsplit(".", 1)[-1] for o in options}
    near = difflib.get_close_matches(word, options, 1, 0.5) or [
        o for o, last in leaf.items() if difflib.get_close_matches(word.rsplit(".", 1)[-1], [last], 1, 0.6)
    ]
    return f"the nearest is {near[0]!r}" if near else "--help lists all keys"


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
    inner = [k for k in known if k.startswith(f"{key}.")]
    if not isinstance(known.get(key), dict) or not inner:
        return [(key, text)]
    given = OverridesParser.create().parse_override(f"{key}={text}")
    if given.is_sweep_override():
        return [(key, text)]
    values = given.value()
    if not isinstance(values, dict):
        own = [k for k in inner if not k.rpartition(".")[2].startswith("_") and source_of(known[k]) is None] or inner
        raise ValueError(f"{key}={text}: {key} holds keys of its own; give one of them, as {own[0]}=VALUE")
    written = [(f"{key}.{k}", _again(v)) for k, v in values.items()]
    return [leaf for k, v in written for leaf in _leaves(k, v, known)]


def _again(value: Any) -> str:
    """A value of a dictionary, as it was read, in hydra's grammar."""
    if isinstance(value, str):
        return quoted(value)
    return "null" if value is None else str(value)


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
        part = value if isinstance(value, str) else part  # without the quotes that it was given for hydra
        lists = next((m for m in kinds.members(kind) if kinds.is_list(m)), None)
        if value is not None and all(kinds.is_choice(m) or m is type(None) for m in kinds.members(kind)):
            raise ValueError(f"{key} is {value!r}; use {kinds.named(kind)}")
        if lists is None or value is None or not isinstance(value, list):
            write = "" if lists is None or value is None else f"; write {key}=[{part}]"
            if isinstance(value, float) and value.is_integer() and int in kinds.members(kind):
                write = f"; write {key}={int(value)}"
            raise ValueError(f"{key}={part}: {key} is {kinds.named(kind)}{now}{write}")
        for place, item in enumerate(value):
            if not kinds.accepts(inner := kinds.item_of(lists, place), item):
                one = {int: "whole number", float: "number"}.get(inner, kinds.named(inner))
                raise ValueError(f"{key}={text}: {item!r} is no {one}, as all in {key} are{now}")
        raise ValueError(f"{key}={text}: {key} has {kinds.length_of(lists)} numbers{now}")
