"""Places on this machine by their names alone, for what leaves it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

# What begins with one of these is a place: from the root, home or here, of a drive or a share.
_PLACE = re.compile(r"/[^/]|~[\w.-]*/|\.{1,2}/|file://|[A-Za-z]:[\\/]|\\\\\w")
# A path within other words; not the slash of "and/or", of a fraction or of an address.
_INSIDE = re.compile(r"(?<![\w.:/~<-])(?:~[\w.-]*/|\.{1,2}/|/)[^\s/,;:'\"()\[\]{}][^\s,;:'\"()\[\]{}]*")

# A config's text that is a place and nothing else: of two names at least, as no token or template is.
_WHOLE = re.compile(r"(?:~|[A-Za-z]:)?(?:[\\/][^\\/\n<>{}]+){2,}[\\/]?")
ORIGINS = ("_name_or_path", "name_or_path")
TOKENS = "added_tokens_decoder"  # a tokenizer's, which say whatever they say


def by_name(value: Any) -> Any:
    """A value, however deep, with each text that is a place on this machine replaced by the place's last name.

    A folder named from the current one without `./` counts where it exists, which tells it from a hub id. What holds an
    interpolation (`${embedded:shapes}`) stays, and so do keys.
    """
    if isinstance(value, Mapping):
        return {key: by_name(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [by_name(inner) for inner in value]
    if not isinstance(value, (str, Path)) or "${" in (text := str(value)):
        return value
    if "\n" not in text and (_PLACE.match(text) or _is_here(text)):
        return _last(text)
    return _INSIDE.sub(lambda found: _last(found[0]), text)


def clean_configs(folder: Path) -> None:
    """Take the places on this machine out of the configs of a pipeline's folder, as loaders leave them there.

    A config that is a link becomes a file of its own.
    """
    for path in [*folder.rglob("*config.json"), *folder.glob("model_index.json")]:
        before = json.loads(path.read_text(encoding="utf-8"))
        if (after := _clean(before)) != before:
            path.unlink()
            path.write_text(json.dumps(after, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _clean(value: Any) -> Any:
    """A config's value with whole texts that are places by name, and without the place that it was read from."""
    if isinstance(value, Mapping):
        kept = {key: inner for key, inner in value.items() if key not in ORIGINS or not _is_place(inner)}
        return {key: inner if key == TOKENS else _clean(inner) for key, inner in kept.items()}
    if isinstance(value, list):
        return [_clean(inner) for inner in value]
    return _last(value) if _is_place(value) else value


def _is_place(value: Any) -> bool:
    return isinstance(value, str) and _WHOLE.fullmatch(value) is not None


def _last(place: str) -> str:
    return PurePosixPath(place.rstrip("\\/").replace("\\", "/")).name or "."


def _is_here(text: str) -> bool:
    """Whether this is the relative path of something that exists."""
    try:
        return "/" in text.strip("/") and Path(text).exists()
    except (OSError, ValueError):  # too long, or with a zero in it
        return False
