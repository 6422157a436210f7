"""Names of code: as users write them, and packages whose exports are loaded when they are first used."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any


def dotted(name: str) -> str | None:
    """The dotted name that is meant by a file's, as my.fn by my.py:fn; None for any other text."""
    found = re.fullmatch(r"(?:(.*)/)?([\w-]+)(\.py)?(?:::?|[.#])(\w+)(?:\(\))?", name.strip())
    if found is None or found[4] == "py" or not (found[1] is not None or found[3] or ":" in name or "#" in name):
        return None
    folders = [] if found[1] is None or found[1].startswith(("/", "~", "..")) else found[1].split("/")
    return ".".join([*(folder for folder in folders if folder != "."), found[2], found[4]])


def lazily(package: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The `__getattr__` and `__dir__` of a package whose `__init__.py` imports its exports for type checkers alone.

    The imports below its `if TYPE_CHECKING:` say where each name lives, so that nothing is written twice.
    """

    @cache
    def homes() -> dict[str, str]:
        loader: Any = sys.modules[package].__loader__
        imports = [node for node in ast.walk(ast.parse(loader.get_source(package))) if isinstance(node, ast.ImportFrom)]
        own = [node for node in imports if node.module and node.module.startswith(f"{package}.")]
        return {alias.name: str(node.module) for node in own for alias in node.names}

    def load(name: str) -> Any:
        if name.startswith("_") or name not in homes():
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(homes()[name]), name)
        setattr(sys.modules[package], name, value)
        return value

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *homes()})

    return load, names
