"""What the yamls of conf/ say of their keys: the comments next to them, or right above."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml


class Manual(NamedTuple):
    """The words of one yaml: what it is, what each dotted key and each line of its defaults means."""

    about: str
    keys: dict[str, str]
    defaults: dict[str, str]
    is_global: bool
    """Whether its keys lie at the top, whatever its folder."""


@cache
def manual(path: Path) -> Manual:
    """Read a yaml's comments. A comment that goes on in the next lines, below its beginning, is one."""
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    first = next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))
    header = [line.removeprefix("#").strip() for line in lines[:first]]
    about = " ".join(line for line in header if not line.startswith("@package"))
    found = Manual(about, {}, {}, any(line == "@package _global_" for line in header))
    root = yaml.compose(text)
    if isinstance(root, yaml.MappingNode):
        _walk(root, "", lines, first, found)
    return found


def _walk(node: yaml.MappingNode, prefix: str, lines: list[str], first: int, found: Manual) -> None:
    for key, value in node.value:
        name = f"{prefix}{key.value}"
        if name == "defaults":
            for item in value.value:
                if isinstance(item, yaml.MappingNode):
                    (group, choice) = item.value[0]
                    found.defaults[group.value.removeprefix("optional ")] = _after(choice, lines)
            continue
        below = isinstance(value, yaml.CollectionNode) and value.start_mark.line > key.start_mark.line
        said = _after(key, lines, skip=":") if below else _after(value, lines)
        found.keys[name] = ". ".join(filter(None, [said, _above(key, lines, first)]))
        if isinstance(value, yaml.MappingNode) and not value.flow_style:
            _walk(value, f"{name}.", lines, first, found)


def _after(node: Any, lines: list[str], skip: str = "") -> str:
    """The comment that follows a node on its last line, with the lines that it goes on in."""
    line, column = node.end_mark.line, node.end_mark.column
    rest = lines[line][column:].removeprefix(skip) if line < len(lines) else ""
    if not (start := re.match(r"\s+#\s?", rest)):
        return ""
    words, at = [rest[start.end() :].strip()], lines[line].index("#", column)
    for further in lines[line + 1 :]:
        if not further.strip().startswith("#") or further.index("#") < max(at - 2, 4):
            break
        words.append(further.strip().removeprefix("#").strip())
    return " ".join(words)


def _above(key: Any, lines: list[str], first: int) -> str:
    """The lines of comment right above a key, as far to the left as it."""
    words: list[str] = []
    for number in range(key.start_mark.line - 1, first - 1, -1):
        if not re.match(rf"\s{{{key.start_mark.column}}}#", lines[number]):
            break
        words.insert(0, lines[number].strip().removeprefix("#").strip())
    return " ".join(words)
