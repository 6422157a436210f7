"""A comparison of the settings stored in a folder with those of a command."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dollar.cli.code import code_of
from dollar.cli.declared import flat, source_of
from dollar.cli.former import FORMER
from dollar.cli.places import Compared, Known, Verdict, is_below, judge
from dollar.log import logger


def check_same(
    path: Path,
    now: Mapping[str, Any],
    way_out: str,
    free: Sequence[str] = (),
    config: DictConfig | None = None,
    places: Compared | None = None,
) -> None:
    """Raise ValueError if the settings stored at `path` differ from `now` in what decides the result.

    now: plain and resolved; way_out: what the user can do, which ends the sentence; free: keys, and what lies below
    them, that may differ; config: the composed configuration that `now` comes from. A key that came after the file was
    written is taken to have had its default then, or what it has in FORMER, and one that only repeats another key is
    not missed. places: those among the keys, which are compared by where they are and by what they hold, however they
    are spelled.
    """
    places = places or Compared((), Known({}, {}))
    if unknown := [key for key in places.vouched if key not in map(places.name, places.keys)]:
        named = ", ".join(sorted(map(places.name, places.keys)))
        raise ValueError(f"same has {', '.join(unknown)}, which names no place; the keys that do are {named}")
    before = _stored(path, way_out)
    after, sources = flat(now), {} if config is None else sources_of(config)
    new = [key for key in after if key not in before]
    missed = [key for key in new if _repeated(key, sources) is None]
    if missed and config is not None:
        before |= defaults_of(missed) | {key: FORMER[key] for key in missed if key in FORMER}
    verdicts = _judged(before, after, places, free, sources)
    differing = [
        key
        for key in sorted((before.keys() | after.keys()) - ({*new} - {*missed}))
        if not is_below(key, free)
        and (not verdicts[key].same if key in verdicts else _one(before.get(key)) != _one(after.get(key)))
        and not (key not in after and _is_elsewhere(key, before, after))
    ]
    # What only follows from another key that differs, or that may differ, goes without saying.
    shown = [key for key in differing if not is_below(_repeated(key, sources) or "", [*differing, *free])]
    noted = [key for key in shown if key in verdicts and verdicts[key].edited and is_below(key, places.growing)]
    shown = [key for key in shown if key not in noted]
    if shown:
        changes = "; ".join(_change(key, before, after, verdicts.get(key)) for key in shown[:5])
        moved = [places.name(key) for key in shown if key in verdicts and verdicts[key].why]
        end = _way_out(way_out, moved, alone=len(moved) == len(shown))
        raise ValueError(f"{path.parent} holds a run of another configuration ({changes}). {end}")
    notes = [f"what {key}={after[key]} holds has changed since this run began: {verdicts[key].why}" for key in noted]
    code = code_of(after.values())
    edited = [name for name, then in places.stored.code.items() if code.get(name, then) != then]
    for note in (*notes, *(f"the module of {name} has changed since this run began" for name in edited)):
        logger.warning(f"note: {note}")


def _stored(path: Path, way_out: str) -> dict[str, Any]:
    """The settings stored at `path`, one a key; ValueError when it can't be read, whatever is wrong with it."""
    try:
        return flat(_plain(OmegaConf.load(path)))
    except Exception as error:
        raise ValueError(
            f"{path.parent} holds a run, but its {path.name} can't be read ({type(error).__name__}), so it is not "
            f"known what was trained there. {way_out}"
        ) from None


def _judged(
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    places: Compared,
    free: Sequence[str],
    sources: Mapping[str, Any],
) -> dict[str, Verdict]:
    """Of each key that names a place in both settings, whether it is the same place or holds the same."""
    verdict = judge(places)
    verdicts = {
        key: verdict(key, before[key], after[key])
        for key in places.keys
        if key in before and key in after and not is_below(key, free)
    }
    for key in after.keys() & before.keys() - verdicts.keys():  # within a node that repeats another
        if (source := _repeated(key, sources)) in verdicts:
            verdicts[key] = verdicts[source]
    return verdicts


def _way_out(usual: str, moved: Sequence[str], alone: bool) -> str:
    """What the user can do; moved: places that hold something else, alone: whether nothing but these differs."""
    text = usual.partition(", or")[0] if alone else usual  # nothing is to be removed for a place alone
    if not moved:
        return text
    hold = "holds" if len(moved) == 1 else "hold"
    return f"{text}. Where {' and '.join(moved)} {hold} what the run began with, add same=[{','.join(moved)}]"


def _change(key: str, before: Mapping[str, Any], after: Mapping[str, Any], verdict: Verdict | None) -> str:
    """What differs, in words."""
    if verdict is not None and verdict.edited:
        return f"{key}={after[key]} has changed: {verdict.why}"
    why = f", and {verdict.why}" if verdict is not None and verdict.why else ""
    return f"{key} was {before.get(key)}, now {after.get(key)}{why}"


def sources_of(config: DictConfig) -> dict[str, str]:
    """By each key whose value is nothing but another key, that other key."""
    found = {key: source_of(value) for key, value in flat(_plain(config)).items()}
    return {key: source for key, source in found.items() if source is not None}


def defaults_of(keys: Sequence[str]) -> dict[str, Any]:
    """The values of this command's keys where the command line gives nothing but choices of groups."""
    if not HydraConfig.initialized():
        return {}
    now, found = HydraConfig.get(), {}
    chosen = [word for word in now.overrides.task if word.lstrip("+").partition("=")[0] in now.runtime.choices]
    defaults = hydra.compose(now.job.config_name, overrides=chosen)
    for key in keys:
        try:
            found[key] = _plain(OmegaConf.select(defaults, key))
        except OmegaConfBaseException:  # it follows from a key that has no default
            found[key] = None
    return found


def _repeated(key: str, sources: Mapping[str, str]) -> str | None:
    """The key that this one repeats, by itself or because the node that it lies in repeats another."""
    names = key.split(".")
    for count in range(len(names), 0, -1):
        if (node := ".".join(names[:count])) in sources:
            return ".".join([sources[node], *names[count:]])
    return None


def _is_elsewhere(key: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    """Whether a key that is gone only repeated another one, which is still there under the same last name."""
    node, _, last = key.rpartition(".")
    others = [other for other in before.keys() & after.keys() if other.rpartition(".")[2] == last]
    return bool(node) and any(before[other] == before[key] for other in others)


def _one(value: Any) -> Any:
    """A place by itself for a list of one."""
    return value[0] if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str) else value


def _plain(config: Any) -> Any:
    return OmegaConf.to_container(config, resolve=False) if OmegaConf.is_config(config) else config
