"""The values that an annotation allows, and their name in a sentence."""

from __future__ import annotations

import collections.abc
import dataclasses
import math
import types
import typing
from pathlib import Path
from typing import Any, Literal

from dollar.cli.settings.base import Place, Prompt

LISTS = (list, tuple, collections.abc.Sequence, collections.abc.Collection, collections.abc.Iterable)
MAPPINGS = (dict, collections.abc.Mapping)
PLACES = (Path, Place)
TEXT = (str, Prompt, *PLACES)
NUMBERS = (int, float)


def members(kind: Any) -> tuple[Any, ...]:
    """The kinds of a union, or the kind alone."""
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return tuple(m for inner in typing.get_args(kind) for m in members(inner))
    return (type(None) if kind is None else kind,)


def optional(kind: Any) -> bool:
    """Whether null is allowed."""
    return not is_known(kind) or type(None) in members(kind)


def is_known(kind: Any) -> bool:
    """Whether the values can be checked; those that only code can make can't."""
    return all(
        m in (*TEXT, *NUMBERS, bool, type(None)) or is_choice(m) or is_list(m) or is_mapping(m) for m in members(kind)
    )


def is_choice(kind: Any) -> bool:
    """Whether the kind is one of several literals."""
    return typing.get_origin(kind) is Literal


def is_list(kind: Any) -> bool:
    """Whether the kind is a list of others; text, although a sequence, is none."""
    return (typing.get_origin(kind) or kind) in LISTS


def is_mapping(kind: Any) -> bool:
    """Whether the kind holds keys of its own."""
    return (typing.get_origin(kind) or kind) in MAPPINGS or dataclasses.is_dataclass(kind)


def item_of(kind: Any, place: int = 0) -> Any:
    """The kind of a list's item."""
    inner = typing.get_args(kind)
    if typing.get_origin(kind) is tuple and inner[-1] is not Ellipsis:
        return inner[place] if place < len(inner) else Any
    return inner[0] if inner else Any


def length_of(kind: Any) -> int | None:
    """How many items a list has to have; None for any number."""
    inner = typing.get_args(kind)
    return len(inner) if typing.get_origin(kind) is tuple and inner[-1] is not Ellipsis else None


def is_text(kind: Any) -> bool:
    """Whether the values are text, or lists of text, whatever they look like."""
    found = [m for m in members(kind) if m is not type(None)]
    return bool(found) and all(m in TEXT or (is_list(m) and item_of(m) is not m and is_text(item_of(m))) for m in found)


def is_place(kind: Any) -> bool:
    """Whether the values name a file or a folder, or lists of them."""
    return any(m in PLACES or (is_list(m) and item_of(m) is not m and is_place(item_of(m))) for m in members(kind))


def list_in(kind: Any) -> Any:
    """The kind of a list among those of a union, None where there is none."""
    return next((m for m in members(kind) if is_list(m)), None)


def accepts(kind: Any, value: Any) -> bool:
    """Whether a plain value is of the kind; what a yaml leaves unquoted is text where text is wanted."""
    return any(_accepts(member, value) for member in members(kind))


def _accepts(kind: Any, value: Any) -> bool:
    if not is_known(kind):
        return True
    if kind is type(None) or value is None:
        return kind is type(None) and value is None
    if is_choice(kind):
        return value in typing.get_args(kind) and not isinstance(value, bool)
    if is_mapping(kind):
        return isinstance(value, dict)
    if is_list(kind):
        right = isinstance(value, list) and length_of(kind) in (None, len(value))
        return right and all(accepts(item_of(kind, i), item) for i, item in enumerate(value))
    if kind is bool or isinstance(value, bool):
        return isinstance(value, bool) and (kind is bool or kind in TEXT)
    if kind is int:
        return isinstance(value, int)
    if kind is float:
        return isinstance(value, NUMBERS) and math.isfinite(value)
    return not isinstance(value, dict)  # a list where one place is wanted is better explained by who reads it


def named(kind: Any) -> str:
    """The kind in a sentence, as in `cycles is a whole number`; null is left out."""
    names = {bool: "true or false", int: "a whole number", float: "a number"}
    found = []
    for member in members(kind):
        if is_choice(member):
            found += [str(choice) for choice in typing.get_args(member)]
        elif member is not type(None):
            held = "a list" if is_list(member) else "{key: value, ...}" if is_mapping(member) else None
            found.append(held or names.get(member, "text"))
    return " or ".join(dict.fromkeys(found))


def guessed(value: Any) -> Any:
    """The kind of a key that nothing declares, by its default."""
    if isinstance(value, list):
        first = type(value[0]) if value else Any
        return list[float] if first in NUMBERS else list[Any]
    return type(value) if type(value) in (bool, int, float, dict) else Any
