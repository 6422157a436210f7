"""Text in hydra's grammar: what a user writes for a place, a name or a prompt is taken as it stands."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from dollar.cli import kinds
from dollar.cli.settings.base import Prompt

QUOTED = re.compile(r"""\s*("(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')\s*""", re.DOTALL)
SWEEP = re.compile(r"(choice|shuffle|sort|tag)\(.*\)", re.DOTALL)  # functions of hydra's that give several values
INTERPOLATION = re.compile(r"\$\{[\w.:,/~ \[\]'\"-]+\}")
INNER = re.compile(r"""(\A|(?<=[\[{,:\s]))("(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')(?=\s*([,\]}]|\Z))""", re.DOTALL)
CLOSING = {"[": "]", "(": ")", "{": "}"}


def written(kind: Any, text: str, several: bool = False) -> str:
    """A value of this kind of text so that hydra reads just that; several: whether commas may separate a sweep's.

    A list [a,b], where one is allowed, stays a list; null, an interpolation and what is quoted already stay as they
    are. A place that exists is that place, however it is spelled. In a sweep a comma that a blank follows is text.
    """
    if several and Prompt not in kinds.members(kind) and not (kinds.is_place(kind) and exists(text)):
        if SWEEP.fullmatch(text):
            return text
        return ",".join(_one(kind, part) for part in pieces(text, r",(?!\s)", kinds.is_place(kind)))
    return _one(kind, text)


def _one(kind: Any, text: str) -> str:
    if text == "" or text.lower() == "null":
        return text
    if kinds.is_place(kind) and exists(text):
        return quoted(expanded(text))
    if QUOTED.fullmatch(text):
        return text
    if (several := kinds.list_in(kind)) is not None and is_enclosed(text, "["):
        inner = text.strip()[1:-1]
        parts = pieces(inner, ",", kinds.is_place(kind)) if inner.strip() else []
        return f"[{','.join(_one(kinds.item_of(several), part.strip()) for part in parts)}]"
    literal = Prompt in kinds.members(kind) or not INTERPOLATION.search(text)
    if kinds.is_place(kind):  # what is to be written into a folder that exists is meant as it stands, too
        literal |= any("${" in folder.name and exists(str(folder)) for folder in Path(text).parents)
    return quoted(expanded(text) if kinds.is_place(kind) else text, literal)


def quoted(text: str, literal: bool = True) -> str:
    """A value in which nothing means anything to hydra; literal: nor an interpolation to OmegaConf."""
    if literal:
        text = escaped(text)
    # Within quotes hydra reads a backslash as one, unless a quote follows.
    doubled = re.sub(r'(\\*)("|\Z)', lambda found: 2 * found[1] + ('\\"' if found[2] else ""), text)
    return f'"{doubled}"'


def escaped(text: str) -> str:
    """Text as OmegaConf has to hold it to give it back: without interpolations."""
    return re.sub(r"(\\*)\$\{", lambda found: 2 * found[1] + "\\${", text)


def exists(place: str) -> bool:
    """Whether there is such a file or folder."""
    return bool(place) and os.path.lexists(expanded(place))


def expanded(place: str) -> str:
    """A place with a home folder for ~ or ~user, unless there is something of that very name."""
    if not place.startswith("~") or os.path.lexists(place):
        return place
    return os.path.expanduser(place)


def is_enclosed(text: str, bracket: str) -> bool:
    """Whether the whole text is one list or dictionary: [a] and [b] is none."""
    text = text.strip()
    opened = text[:1] == bracket and text[-1:] == CLOSING[bracket] and len(text) > 1
    return opened and not any(_balanced(text[:end]) for end in range(1, len(text)))


def pieces(text: str, comma: str, places: bool = False) -> list[str]:
    """The parts of a list: commas in quotes, in brackets and in the names of existing places are no ends."""
    found = []
    while True:
        ends = [match.start() for match in re.finditer(comma, text)] + [len(text)]
        quote = [end for end in ends if QUOTED.fullmatch(text[:end])]
        there = [end for end in ends if places and exists(text[:end].strip())]
        whole = [end for end in ends if _balanced(text[:end])]
        end = there[-1] if there else (quote or whole or ends)[0]
        found.append(text[:end])
        if end == len(text):
            return found
        text = text[end + 1 :]


def _balanced(text: str) -> bool:
    waiting: list[str] = []
    for letter in INNER.sub("", text):
        if letter in CLOSING:
            waiting.append(CLOSING[letter])
        elif letter in CLOSING.values() and (not waiting or waiting.pop() != letter):
            return False
    return not waiting
