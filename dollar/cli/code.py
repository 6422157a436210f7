"""The user's own modules that a configuration names: rewards, losses or data of his own, which may be edited."""

from __future__ import annotations

import ast
import contextlib
import hashlib
import importlib.util
import re
import sysconfig
from collections.abc import Iterable
from pathlib import Path
from typing import Any

DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")
INSTALLED = [Path(sysconfig.get_path(kind)).resolve() for kind in ("stdlib", "platstdlib", "purelib", "platlib")]
PACKAGE = Path(__file__).resolve().parents[1]


def code_of(values: Iterable[Any]) -> dict[str, str]:
    """By each dotted name among these values that is of a module of the user's own, a short hash of its file.

    Modules of this package, of python and of installed packages don't count, nor what a module imports itself.
    """
    found = {}
    for name in dict.fromkeys(value for value in values if isinstance(value, str) and DOTTED.fullmatch(value)):
        if (file := _file_of(name)) is not None:
            found[name] = _hash(file.read_bytes())
    return found


def _hash(source: bytes) -> str:
    """Of what is computed: comments and blanks don't count."""
    with contextlib.suppress(SyntaxError, ValueError):  # which importing it reports
        source = ast.dump(ast.parse(source)).encode("utf-8", "surrogatepass")
    return hashlib.sha256(source).hexdigest()[:16]


def _file_of(name: str) -> Path | None:
    """The file of the module that a dotted name begins with; nothing is imported."""
    first, *others = name.split(".")
    try:
        spec = importlib.util.find_spec(first)
    except (ImportError, ValueError, AttributeError):
        return None
    if spec is None or not (spec.origin or spec.submodule_search_locations):
        return None
    place = Path(spec.origin or next(iter(spec.submodule_search_locations or ()))).resolve()
    if any(place.is_relative_to(folder) for folder in (*INSTALLED, PACKAGE)):
        return None
    folder = place.parent if place.name == "__init__.py" else place
    while others and folder.is_dir():  # modules of a package
        inner = folder / others.pop(0)
        place = next((p for p in (inner.with_suffix(".py"), inner / "__init__.py") if p.is_file()), place)
        folder = inner
    return place if place.is_file() else None
