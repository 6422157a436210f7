"""`--help`: every key of a command with its comment and default, each group's choices, and how to give values."""

from __future__ import annotations

import ast
import json
import re
import shutil
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from dollar.cli.arguments import known_to
from dollar.cli.comments import Manual, manual
from dollar.cli.declared import source_of
from dollar.cli.options import further_folder
from dollar.cli.overrides import CONF

HOW = """\
Give settings as key=value; the others stay as they are here. null is none, true and false are switches, [a,b] is a
list, and inner keys have dots, as in group.key=value. A value with blanks, or with signs that the shell reads, goes in
quotes, as in 'key=a dog, running'; places, names and prompts are taken as they stand, and ~ is your home folder.
${key} repeats another key, ${oc.env:NAME} is a variable of the environment.

  --help              this page; with choices, as in reward=pickscore --help, it shows their keys
  --cfg job           the settings as they would be used, as a yaml
  --config-dir FOLDER a folder of your own with further choices, as FOLDER/teacher/mine.yaml for teacher=mine
  -m                  several runs, one after the other: -m beta_cd=0,0.5 seed=1,2 makes four"""
LEFT, MOST = 34, 120  # columns of a key with its value, and of a line at most


def description(command: str) -> str:
    """What a command does, without the line of a shell that its docstring ends with."""
    source = (Path(__file__).parent / "commands" / f"{command}.py").read_text(encoding="utf-8")
    text = ast.get_docstring(ast.parse(source)) or ""
    return text.splitlines()[0].partition(": `")[0].rstrip(".") + "." if text else ""


class Part(NamedTuple):
    """A yaml that a configuration was composed of, and below which key its own keys lie."""

    prefix: str
    path: Path


class Row(NamedTuple):
    """A key, its default and what it means."""

    key: str
    value: str
    comment: str


def help_of(command: str, arguments: Sequence[str]) -> str:
    """The help of a command with the choices that are among these words; ValueError for words that can't be."""
    known, further = known_to(command, arguments), further_folder(arguments)
    columns = max(60, min(MOST, shutil.get_terminal_size((100, 24)).columns))
    folders = [CONF, *([further] if further else [])]
    groups = _groups(command)
    chosen = {group: known.choices[group] for group in sorted(known.choices, key=[*groups, *known.choices].index)}
    everything = rows(known.config, list(_parts(command, chosen, folders)), groups)
    usage = f"Usage: python launch/{command}.py [key=value ...], or dollar {command} [key=value ...]"
    blocks = [description(command), usage, HOW]
    if chosen:
        blocks.append(f"Choices\n\n{_choices(chosen, groups, folders, columns)}")
    for title, keys in _sections(everything, chosen):
        blocks.append(f"{title}\n\n" + "\n".join(_line(row, columns) for row in keys))
    return "\n\n".join(blocks)


def rows(config: Mapping[str, Any], parts: Sequence[Part], groups: Mapping[str, str]) -> list[Row]:
    """Every key that can be given, but for those that only repeat another; groups: what is said of each."""
    said = {**groups, **_said(parts)}
    return [Row(key, _text(value), said.get(key) or _whole(key, said)) for key, value in _keys(config, said)]


def _whole(key: str, said: Mapping[str, str]) -> str:
    """What is said of the mapping that a key lies in, where nothing is said of the key itself."""
    return said.get(key.rpartition(".")[0], "") if "." in key else ""


def _said(parts: Sequence[Part]) -> dict[str, str]:
    """By each key, what the last yaml says that says anything."""
    found: dict[str, str] = {}
    for part in parts:
        for key, comment in manual(part.path).keys.items():
            if comment:
                found[f"{part.prefix}{key}"] = comment
    return found


def _keys(
    node: Mapping[str, Any], said: Mapping[str, str], prefix: str = "", made: bool = False
) -> Iterator[tuple[str, Any]]:
    """The leaves; a mapping that only its whole has a comment for, or that an object takes, is one leaf."""
    made = made or "_target_" in node
    for name, value in node.items():
        key = f"{prefix}{name}"
        if name.startswith("_") or source_of(value) is not None:
            continue
        if not isinstance(value, Mapping) or not value:
            yield key, value
            continue
        objects = "_target_" in value or any(isinstance(v, Mapping) and "_target_" in v for v in value.values())
        inner = any(other.startswith(f"{key}.") for other in said)
        if objects or (inner and not made) or (key not in said and not made):
            yield from _keys(value, said, f"{key}.", made)
        elif any(source_of(v) is None for v in value.values()):
            yield key, value


def _parts(command: str, chosen: Mapping[str, str | None], folders: Sequence[Path]) -> Iterator[Part]:
    """The yamls of a configuration, those that are read first first."""
    yield from _file(folders[0] / f"{command}.yaml", "", folders)
    for group, choice in chosen.items():
        folder, _, package = group.partition("@")
        found = [place / folder / f"{choice}.yaml" for place in folders]
        for path in [path for path in found if path.is_file()][:1]:
            yield from _file(path, f"{package or folder}.", folders)


def _file(path: Path, prefix: str, folders: Sequence[Path]) -> Iterator[Part]:
    prefix = "" if manual(path).is_global else prefix
    for item in (yaml.safe_load(path.read_text(encoding="utf-8")) or {}).get("defaults") or []:
        if not isinstance(item, str) or item == "_self_":
            continue
        name, _, package = item.partition("@")
        places = [place / name.lstrip("/") for place in folders] if name.startswith("/") else [path.parent / name]
        below = prefix if package in ("", "_here_") else f"{prefix}{package}."
        for other in [p.with_suffix(".yaml") for p in places if p.with_suffix(".yaml").is_file()][:1]:
            yield from _file(other, below, folders)
    yield Part(prefix, path)


def _groups(command: str) -> dict[str, str]:
    """What the defaults of a command's yaml say of each group."""
    found: dict[str, str] = {}
    for part in _file(CONF / f"{command}.yaml", "", [CONF]):
        found |= manual(part.path).defaults
    return found


def _choices(chosen: Mapping[str, str | None], groups: Mapping[str, str], folders: Sequence[Path], columns: int) -> str:
    lines: list[str] = []
    for group, choice in chosen.items():
        about = groups.get(group, "")
        lines.append(_line(Row(group, str(choice or "null"), about), columns))
        if "@" in group:
            continue
        files = {path.stem: path for place in folders for path in sorted((place / group).glob("*.yaml"))}
        width = columns - LEFT - 2
        for name, path in files.items():
            lines.append(f"    {name:{LEFT - 4}}  {_first(manual(path), width)}".rstrip())
    return "\n".join(lines)


def _first(words: Manual, width: int) -> str:
    """The first sentence about a yaml, cut to a width."""
    sentence = re.split(r"(?<!Eq)\. (?=[A-Z])", words.about)[0].rstrip(".")
    return textwrap.shorten(sentence, width, placeholder=" ...")


def _sections(everything: Sequence[Row], chosen: Mapping[str, str | None]) -> Iterator[tuple[str, list[Row]]]:
    """The command's own keys, then those below each key that holds others."""
    top = [row for row in everything if "." not in row.key]
    if top:
        yield "Settings", top
    for name in dict.fromkeys(row.key.partition(".")[0] for row in everything if "." in row.key):
        choice = f" ({name}={chosen[name]})" if chosen.get(name) else ""
        yield f"{name}{choice}", [row for row in everything if row.key.startswith(f"{name}.")]


def _text(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if value == "":
        return '""'
    if isinstance(value, str):
        return "VALUE (no default)" if value == "???" else value
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k}: {_text(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_text, value)) + "]"
    return str(value)


def _line(row: Row, columns: int) -> str:
    """key=value and its comment, below it where it is long."""
    left = textwrap.shorten(f"{row.key}={row.value}", columns - 2, placeholder=" ...")
    comment = textwrap.wrap(row.comment, columns - LEFT - 2)
    first = [f"  {left:{LEFT}}{comment.pop(0)}"] if comment and len(left) < LEFT else [f"  {left}"]
    return "\n".join([*first, *(" " * (LEFT + 2) + line for line in comment)])
