"""Packages whose exports are loaded when they are first used, so that importing one of their files loads no other."""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any


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
