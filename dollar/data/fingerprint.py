"""Whether stored latents and texts were made by the teacher that is to use them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dollar.data.nulls import NULLS, read_nulls
from dollar.data.shard_format import Text

FINGERPRINT = "fingerprint.json"


def companion(path: Path, name: str) -> Path:
    """A file of launch/preprocess.py's folder, which `path` is or is a bucket of."""
    return path / name if (path / name).is_file() else path.parent / name


def nulls_of(place: Path, expected: Mapping[str, Any]) -> dict[str, Text]:
    """The prompts of a nulls.safetensors or of the folder that it is in; ValueError where another encoder made them."""
    file = place if place.is_file() else place / NULLS
    if not file.is_file():
        raise ValueError(
            f"data.nulls={place}: there is no {file}; any run of launch/preprocess.py with this teacher makes one"
        )
    text = {key: value for key, value in expected.items() if key.startswith(("text", "tokenizer"))}
    check_fingerprint(file.parent, text)
    return read_nulls(file)


def check_fingerprint(path: Path, expected: Mapping[str, Any]) -> None:
    """Raise ValueError where the folder was encoded by something else than this teacher.

    expected: as the folder's own file has them; `fps` is the clips' speed there.
    """
    file = companion(path, FINGERPRINT)
    if not file.is_file():
        return
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
        fps = dict(stored.get("preprocess", {})).get("fps")
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{file} is damaged ({error}); put the one back that launch/preprocess.py wrote, or run it again into "
            "another folder"
        ) from error
    mine = json.loads(json.dumps(dict(expected)))  # tuples are lists there
    speed = mine.pop("fps", fps)
    differing = [
        f"{key} {stored[key]} there, {mine[key]} here" for key in mine if stored.get(key, mine[key]) != mine[key]
    ]
    if differing:
        raise ValueError(
            f"{path} was made with another teacher: {'; '.join(differing)}. Train with the teacher that it was made "
            "with, or run launch/preprocess.py with this one and another out=FOLDER"
        )
    if fps is not None and fps != speed:
        raise ValueError(
            f"{path} holds clips of {fps} frames a second, and this teacher's have {speed}. Set teacher.fps={fps} if "
            f"that is its speed, or run launch/preprocess.py with teacher.fps={speed} and another out=FOLDER"
        )
