"""Whether a folder's stored configuration is the one that is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf


def check_same(path: Path, now: Any, free: Sequence[str], later: dict[str, Any], way_out: str) -> None:
    """Raise ValueError if the configuration stored at `path` differs from `now` in what decides the result.

    free: keys, and what lies below them, that may differ; later: keys that came later, with what runs before them had;
    way_out: what the user can do, which ends the sentence.
    """
    try:
        before = later | _flat(OmegaConf.load(path))
    except Exception as error:  # whatever is wrong with the file, what was trained there can't be told
        raise ValueError(
            f"{path.parent} holds a run, but its {path.name} can't be read ({type(error).__name__}), so it is not "
            f"known what was trained there. {way_out}"
        ) from None
    asked = _flat(now)
    differing = [k for k in sorted(before.keys() | asked.keys()) if before.get(k) != asked.get(k) and not _in(k, free)]
    if differing:
        shown = "; ".join(f"{k} was {before.get(k)}, now {asked.get(k)}" for k in differing[:5])
        raise ValueError(f"{path.parent} holds a run of another configuration ({shown}). {way_out}")


def _in(key: str, free: Sequence[str]) -> bool:
    return any(key == name or key.startswith(name + ".") for name in free)


def _flat(config: Any, prefix: str = "") -> dict[str, Any]:
    entries: Any = OmegaConf.to_container(config, resolve=False) if OmegaConf.is_config(config) else config
    found: dict[str, Any] = {}
    for key, value in entries.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found
