"""The text in a composed configuration: names stay text whatever they look like, and ~ is a home folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dollar.cli import kinds
from dollar.cli.declared import UNDECLARED, flat, kind_of
from dollar.cli.settings import COMMANDS
from dollar.cli.written import escaped, expanded


def settle_text(config_name: str, config: DictConfig, given: Sequence[str] = ()) -> None:
    """Make what is declared as text text, and places whole; given: further keys whose values are text."""
    plain: Any = OmegaConf.to_container(config, resolve=False)
    make_text(config, [*given, *text_keys(config_name, plain)])
    expand_homes(config_name, config)


def text_keys(config_name: str, config: Mapping[str, Any]) -> list[str]:
    """The keys whose values the command's own settings declare as text."""
    settings = COMMANDS[config_name]
    declared = {key: kind_of(settings, {}, key) for key in flat(config)}
    return [key for key, kind in declared.items() if kind is not UNDECLARED and kinds.is_text(kind)]


def make_text(config: DictConfig, keys: Sequence[str]) -> None:
    """Make the values of these keys text, for a name may look like a number."""
    for key in keys:
        given = OmegaConf.select(config, key)
        several = list(given) if OmegaConf.is_list(given) else [given]
        if all(value is None or isinstance(value, str) for value in several):
            continue  # written anew, a name with ${ in it would be looked up
        text = [None if value is None else escaped(str(value)) for value in several]
        OmegaConf.update(config, key, text if OmegaConf.is_list(given) else text[0])


def expand_homes(config_name: str, config: DictConfig) -> None:
    """Replace ~ and ~user at the beginning of places by home folders, those that an interpolation brings last."""
    plain: Any = OmegaConf.to_container(config, resolve=False)
    written = {key: value for key, value in flat(plain).items() if value != "???"}
    for key in sorted(written, key=lambda key: "${" in str(written[key])):
        value = written[key]
        several = value if isinstance(value, list) else [value]
        if not any(isinstance(text, str) and (text.startswith("~") or "${" in text) for text in several):
            continue
        try:
            now = OmegaConf.select(config, key)
            texts = list(now) if OmegaConf.is_list(now) else [now]
        except OmegaConfBaseException:  # better explained where it is read
            continue
        if not any(isinstance(text, str) and text.startswith("~") for text in texts):
            continue
        kind = kind_of(COMMANDS[config_name], plain, key)
        if kind is not UNDECLARED and kinds.is_place(kind):
            whole = [escaped(expanded(text)) if isinstance(text, str) else text for text in texts]
            OmegaConf.update(config, key, whole if OmegaConf.is_list(now) else whole[0])
