"""The declared kind of a key: of the settings of a command, or of what the node's `_target_` names."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Mapping
from functools import cache
from typing import Any

from dollar.cli.kinds import is_mapping, members

UNDECLARED = object()
SPECIAL = {"_target_": str | None, "_partial_": bool, "_convert_": str, "_recursive_": bool}  # hydra's own


def kind_of(settings: type, config: Mapping[str, Any], key: str) -> Any:
    """The annotation that declares a dotted key, or UNDECLARED.

    config: the composed one as plain, unresolved values. A key that is passed on, as data.path is by
    `path: ${data.path}` below data.samples, has the kind that it has there.
    """
    found = _declared(settings, config, key)
    if found is UNDECLARED:
        passed = (_declared(settings, config, other) for other in passed_on(config).get(key, ()))
        found = next((kind for kind in passed if kind is not UNDECLARED), UNDECLARED)
    return found


def _declared(settings: type, config: Mapping[str, Any], key: str) -> Any:
    kind, node = settings, config
    for name in key.split("."):
        kind = _child(kind, node, name)
        node = node.get(name, {}) if isinstance(node, Mapping) else {}
    return kind


def _child(kind: Any, node: Any, name: str) -> Any:
    if name in SPECIAL:
        return SPECIAL[name]
    if isinstance(node, Mapping) and isinstance(node.get("_target_"), str):
        return arguments_of(node["_target_"]).get(name, UNDECLARED)
    for member in members(kind) if kind is not UNDECLARED else ():
        if member is Any:  # whatever lies below it, too
            return Any
        if isinstance(member, type) and dataclasses.is_dataclass(member):
            return _fields(member).get(name, UNDECLARED)
        if is_mapping(member):
            inner = typing.get_args(member)
            return inner[1] if inner else Any
    return UNDECLARED


@cache
def _fields(settings: type) -> dict[str, Any]:
    """The annotated fields of a dataclass; evaluating them takes longer than all that is asked of them."""
    return typing.get_type_hints(settings)


@cache
def arguments_of(target: str) -> dict[str, Any]:
    """The annotated arguments of a class or function by its dotted name; none of one that can't be imported.

    One that hands all its arguments on says to which dataclass by an attribute `settings`.
    """
    from hydra.utils import get_object

    try:
        found = get_object(target)
        found = getattr(found, "settings", found)
        function = found.__init__ if inspect.isclass(found) and not dataclasses.is_dataclass(found) else found
        hints = typing.get_type_hints(function)
    except Exception:  # the error is better explained where the object is built
        return {}
    return {name: kind for name, kind in hints.items() if name != "return"}


def passed_on(config: Mapping[str, Any]) -> dict[str, list[str]]:
    """By each key, those whose value is nothing but it: `steps: ${pull.steps}`."""
    found: dict[str, list[str]] = {}
    for key, value in flat(config).items():
        if (source := source_of(value)) is not None:
            found.setdefault(source, []).append(key)
    return found


def source_of(value: Any) -> str | None:
    """The key that an interpolation repeats; None for any other value, and for what a resolver gives."""
    if not isinstance(value, str) or not (value.startswith("${") and value.endswith("}")):
        return None
    inner = value[2:-1]
    return inner if all(part.replace("_", "").isalnum() for part in inner.split(".")) else None


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Every key that holds no others, dotted, with its value."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found
