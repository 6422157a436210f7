"""The teacher that a student came from, and the reward that it was trained for, wherever they are now."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

from dollar.cli.places import KeptPlace, Known, known_now, path_of, place_at, place_keys, read_known, to_plain
from dollar.cli.settings import COMMANDS
from dollar.log import logger

STORED = "places"  # the key of a student's card
NODES = ("teacher", "reward")  # what is built again of a student's configuration


def places_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a student's card keeps of the places of its teacher and reward: as given, where that was, what they held."""
    nodes = {name: config[name] for name in NODES}
    return to_plain(known_now(place_keys(COMMANDS["train"], nodes), nodes))["places"]


def teacher_of(card: Mapping[str, Any], student: Path, given: Collection[str] = ()) -> dict[str, Any]:
    """The settings of a student's teacher, each place where it is found now; given: its keys that the user gives."""
    return found_now(card, "teacher", card["teacher"], student, given)


def found_now(
    card: Mapping[str, Any], node: str, settings: Mapping[str, Any], student: Path, given: Collection[str] = ()
) -> dict[str, Any]:
    """The settings of a node of a student's configuration, each place where it is found now.

    Looked in: the place as it was given, as it was resolved in training, and, where it was relative, below the folders
    that the student lies in; of several, the one that holds what it held in training. given: the node's keys that
    aren't looked for. ValueError where a local place is in none of these; a note where it holds something else.
    """
    known = read_known({"places": card.get(STORED) or {}, "code": {}}) or Known({}, {})
    found: dict[str, Any] = deepcopy(dict(settings))
    gone = {}
    for key in sorted(place_keys(COMMANDS["train"], {node: settings})):
        *nodes, last = key.split(".")[1:]
        inner = found
        for name in nodes:
            inner = inner[name]
        if {".".join([*nodes, last]), *nodes[:1]} & {*given} or not isinstance(inner[last], str):
            continue
        was = (known.places.get(key) or [KeptPlace(inner[last], None, None)])[0]
        inner[last] = where = _where(key, was, student)
        if where is None:
            nor = f", nor at {was.resolved}" if was.resolved != was.given else ""
            gone[key] = f"no {'teacher' if key == 'teacher.folder' else key} at {was.given}{nor}"
    if gone:
        remedy = " ".join(f"{key}=FOLDER" for key in gone)
        raise ValueError(f"{'; '.join(gone.values())}: the student in {student} was trained with it. Give {remedy}")
    return found


def _where(key: str, was: KeptPlace, student: Path) -> str | None:
    """Where a place is now, None where it is nowhere."""
    relative = not was.given.startswith(("/", "~", "$"))
    below = [folder / was.given for folder in student.resolve().parents] if relative else []
    tried = [path_of(was.given), *([Path(was.resolved)] if was.resolved else []), *below]
    there = list({path.resolve(): path for path in reversed(tried) if path.exists()}.values())[::-1]
    if not there:
        return was.given if was.resolved is None else None  # a hub id, as far as is known
    if was.contents is None:
        return was.given if path_of(was.given).exists() else str(there[0])
    holding = next((path for path in there if place_at(str(path)).contents == was.contents), None)
    if holding is None:
        logger.warning(
            f"note: {there[0]} holds something else than when the student in {student} was trained with it; where that "
            f"is elsewhere now, give {key}=FOLDER"
        )
    chosen = holding or there[0]
    return was.given if path_of(was.given).resolve() == chosen.resolve() else str(chosen)
