"""Checkpoints of the first format, before a checkpoint had parts."""

from __future__ import annotations

from typing import Any

from dollar.parallel.checkpoint import State

FORMAT = 2  # of today's checkpoints


def renewed(state: State) -> State:
    """The state in today's format; one that has it already comes back as it is."""
    if "format" in state.plain:
        return state
    plain = state.plain
    parts: dict[str, dict[str, Any]] = {
        name: {"skipped": counts[0], "in_a_row": counts[1]} for name, counts in plain["skipped"].items()
    }
    silent, unusable = plain.get("silent", [0, 0])
    parts["loop"] = {"ended": plain.get("ended", ""), "best": plain["best"]}
    parts["method"] = {"silent": silent, "unusable": unusable}
    parts["ema"] = {"updates": plain["ema_updates"]}
    parts["monitor best"] = plain["best"]
    if "guard" in plain:
        parts["monitor guard"] = plain["guard"]
    if plain["ft_held"]:
        parts["gathered ft"] = {"count": plain["ft_held"]}
    if "statistics" in plain:
        counts = {"bad": plain["bad"], "updates": plain["lrm_count"], "past": plain["past"]}
        parts["method"]["surrogate"] = {"statistics": plain["statistics"], **counts}
    kept: dict[str, Any] = {key: plain[key] for key in ("cycle", "config") if key in plain}
    tensors = {_name(name, parts): tensor for name, tensor in state.tensors.items()}
    return State(tensors, {"format": FORMAT, **kept, "data": plain.get("data", {}), "parts": parts})


def _name(name: str, parts: dict[str, Any]) -> str:
    """A tensor's name today."""
    part, _, rest = name.partition("/")
    if part.endswith(".optim"):
        return f"{part.removesuffix('.optim')}/optim/{rest}"
    if part == "ft":
        return f"gathered ft/{rest}"
    if part == "past":
        return f"method/surrogate/past/{rest}"
    if part == "lrm" and "lrm" not in parts:  # a latent reward model that was only read
        return f"method/surrogate/model/{rest}"
    return name
