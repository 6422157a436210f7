"""What the places of a configuration held when a run began: known again elsewhere, and an edit is noticed."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf

from dollar.cli import kinds
from dollar.cli.code import code_of
from dollar.cli.declared import UNDECLARED, flat, kind_of
from dollar.contents import Contents, contents_of
from dollar.media import atomically

Read = Callable[[Path], Contents | None]
PLACES = "places.json"  # beside a run's config.yaml
CODE = "code"


class KeptPlace(NamedTuple):
    """A place as it was given, where that was, and what it held; None for what is no folder or file here."""

    given: str
    resolved: str | None
    contents: Contents | None


class Known(NamedTuple):
    """What is stored of a run: its places by key, several of a list, and hashes of the user's own modules by name."""

    places: dict[str, list[KeptPlace]]
    code: dict[str, str]


class Verdict(NamedTuple):
    """Whether a key names what it named when the run began, or why not, in words; edited: it is the same place."""

    same: bool
    why: str = ""
    edited: bool = False


class Compared(NamedTuple):
    """How the places of a configuration are compared: their keys, and what was stored when the run began.

    vouched: keys of which the user says that they hold the same. growing: keys, with what lies below them, whose
    content may change where they are; `noted` says whether that is worth a note. shown: what a key is called.
    """

    keys: Sequence[str]
    stored: Known
    vouched: Sequence[str] = ()
    growing: Sequence[str] = ()
    noted: bool = True
    shown: Mapping[str, str] = {}

    def name(self, key: str) -> str:
        """What the user calls a key."""
        return self.shown.get(key, key)


def place_keys(settings: type, config: Mapping[str, Any]) -> list[str]:
    """The keys that name files or folders, by their declared types; config: plain, with interpolations."""
    found = []
    for key in flat(config):
        kind = kind_of(settings, config, key)
        if kind is not UNDECLARED and kinds.is_place(kind):
            found.append(key)
    return found


def known_now(keys: Sequence[str], config: Mapping[str, Any]) -> Known:
    """The places of these keys as they are; config: plain and resolved, as it is stored."""
    values, read = flat(config), cache(_contents)  # several keys may repeat one place
    places = {key: [place_at(given, read) for given in _several(values.get(key))] for key in keys}
    return Known({key: found for key, found in places.items() if found}, code_of(values.values()))


def place_at(given: str, read: Read | None = None) -> KeptPlace:
    """A place as it is now."""
    path = path_of(given)
    if not path.exists():
        return KeptPlace(given, None, None)
    path = path.resolve()
    # What moves with the project has no place of its own.
    return KeptPlace(given, None if given.startswith("${") else str(path), (read or _contents)(path))


def path_of(given: str) -> Path:
    """The path that a stored or given value means."""
    if given.startswith("${embedded:"):
        given = str(OmegaConf.create([given])[0])
    return Path(given).expanduser()


def _contents(path: Path) -> Contents | None:
    """What is there; None for what can't be read."""
    try:
        return contents_of(path)
    except OSError:
        return None


def store(folder: Path, known: Known) -> None:
    """Write places.json."""
    with atomically(folder / PLACES) as temporary:
        temporary.write_text(json.dumps(to_plain(known), indent=1), encoding="utf-8")


def stored_at(folder: Path) -> Known:
    """What `store` wrote; nothing for a run of before there was any, or where it can't be read."""
    try:
        found = json.loads((folder / PLACES).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return Known({}, {})
    return read_known(found) or Known({}, {})


def to_plain(known: Known) -> dict[str, Any]:
    """Plain values that json keeps."""
    places = {
        key: [{**place._asdict(), "contents": place.contents and place.contents._asdict()} for place in found]
        for key, found in known.places.items()
    }
    return {"places": places, CODE: known.code}


def read_known(plain: Any) -> Known | None:
    """What `to_plain` made; None for anything else."""
    try:
        places = {
            key: [
                KeptPlace(row["given"], row["resolved"], row["contents"] and Contents(**row["contents"]))
                for row in rows
            ]
            for key, rows in plain["places"].items()
        }
        return Known(places, dict(plain[CODE]))
    except (TypeError, KeyError, ValueError, AttributeError):
        return None


def judge(compared: Compared) -> Callable[[str, Any, Any], Verdict]:
    """Says of a key and its values, one or several, then and now, whether its places are the same.

    They are by where they are and by what they hold; a place is read once.
    """
    read = cache(_contents)

    def verdict(key: str, before: Any, now: Any) -> Verdict:
        if compared.name(key) in compared.vouched:
            return Verdict(True)
        were, are, stored = _several(before), _several(now), compared.stored.places.get(key, [])
        if len(were) != len(are):
            return Verdict(False)
        if [place.given for place in stored] != were:
            stored = [KeptPlace(given, None, None) for given in were]
        look = compared.noted or not is_below(key, compared.growing)
        verdicts = [_judged(place, given, read if look else None) for place, given in zip(stored, are, strict=True)]
        return next((verdict for verdict in verdicts if not verdict.same), Verdict(True))

    return verdict


def is_below(key: str, names: Sequence[str]) -> bool:
    """Whether a key is one of these, or lies below one."""
    return any(key == name or key.startswith(f"{name}.") for name in names)


def _judged(was: KeptPlace, now: str, read: Read | None) -> Verdict:
    """read: None where what a place holds may change as long as it stays where it is."""
    path = path_of(now)
    there = was.given == now if was.resolved is None else Path(was.resolved) == path.resolve()
    there = there or path_of(was.given).resolve() == path.resolve()
    if not path.exists():  # a hub id, or what is missing, which is reported where it is read if it is the same
        return Verdict(there, "" if there or was.contents is None else "there is no such file or folder here")
    if was.contents is None:
        return Verdict(there, "what it held then was not stored")
    if there and read is None:
        return Verdict(True)
    found = (read or _contents)(path.resolve())
    if found == was.contents:
        return Verdict(True)
    return Verdict(False, f"it held {was.contents} then, and {found or 'what cannot be read'} now", edited=there)


def _several(value: Any) -> list[str]:
    """A key's places: none, one or more."""
    given = value if isinstance(value, list) else [value]
    return [str(item) for item in given if item is not None]


def by_content(settings: type, config: DictConfig, leave: Sequence[str] = ()) -> dict[str, Any]:
    """A configuration as plain values, with what its places hold in their stead, and hashes of the user's own modules.

    leave: keys that are left out, with what lies below them. So two are equal where they lead to the same, wherever
    things lie.
    """
    plain: Any = OmegaConf.to_container(config, resolve=False)
    resolved: Any = OmegaConf.to_container(config, resolve=True)
    keys = [key for key in place_keys(settings, plain) if not is_below(key, leave)]
    for key, places in known_now(keys, resolved).places.items():
        *nodes, last = key.split(".")
        node = resolved
        for name in nodes:
            node = node[name]
        held = [place.contents.digest if place.contents else place.given for place in places]
        node[last] = held if isinstance(node[last], list) else held[0]
    kept = {key: value for key, value in resolved.items() if key not in leave}
    code = code_of(flat(kept).values())
    return {**kept, **({CODE: code} if code else {})}


def held_below(node: str, settings: type, config: DictConfig) -> list[str]:
    """What the places below a node hold, each once."""
    plain: Any = OmegaConf.to_container(config, resolve=False)
    resolved: Any = OmegaConf.to_container(config, resolve=True)
    known = known_now([key for key in place_keys(settings, plain) if is_below(key, [node])], resolved)
    return sorted({place.contents.digest for places in known.places.values() for place in places if place.contents})
