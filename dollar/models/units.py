"""What can be taken out of a transformer: its blocks, and the halves of blocks that have them apart."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

HALVES = ("attention", "feed_forward")


class Nothing(nn.Module):
    """Stands where a half of a block was: it adds nothing to the hidden states.

    outputs: how many the module gave whose place it takes; each is like one of the hidden states that it gets.
    """

    def __init__(self, outputs: int = 1) -> None:
        super().__init__()
        self.outputs = outputs

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        given = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        zeros = tuple(self._zeros(value) for value in given[: self.outputs])
        return zeros[0] if self.outputs == 1 else zeros

    @staticmethod
    def _zeros(like: Tensor) -> Tensor:
        # In the dtype that a linear layer would give, so that what it is added to keeps its own.
        device = like.device.type
        cast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
        return torch.zeros_like(like, dtype=torch.get_autocast_dtype(device) if cast else like.dtype)


class Unmodulated(nn.Module):
    """Stands where CogVideoX's modulated norm was: its inputs as they are, and gates that are shut."""

    def forward(self, hidden: Tensor, text: Tensor, time: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        shut = Nothing._zeros(hidden[:, :1])
        return hidden, text, shut, shut


# Of each half the modules that it alone needs, and what stands in their place.
Halves = Mapping[str, Mapping[str, Callable[[], nn.Module]]]


@dataclass(frozen=True)
class BlockList:
    """A list of repeated blocks in a transformer of diffusers.

    name: of the list; count: the config's key for its length; halves: of HALVES; empty where a block has none apart.
    """

    name: str
    count: str
    halves: Halves = field(default_factory=dict)


class Unit(NamedTuple):
    """A block, or the `half` of one, by its list and its place there."""

    list: str
    place: int
    half: str = ""

    def __str__(self) -> str:
        return ".".join([self.list, str(self.place), *([self.half] if self.half else [])])


def units_of(lists: Sequence[BlockList], counts: Mapping[str, int], halves: bool = False) -> list[Unit]:
    """All units in the order of the network: blocks, or the halves of those that have them apart and other blocks.

    counts: blocks by the name of their list.
    """
    found: list[Unit] = []
    for blocks in lists:
        for place in range(counts[blocks.name]):
            parts = [Unit(blocks.name, place, half) for half in HALVES if half in blocks.halves] if halves else []
            found += parts or [Unit(blocks.name, place)]
    return found


def parse(
    names: Sequence[str], lists: Sequence[BlockList], counts: Mapping[str, int], key: str = "remove"
) -> list[Unit]:
    """Units by their names, in the order of the network; both halves of a block are the block.

    ValueError for a name that is none, one that is given twice or lies within another, and where nothing would be left.
    """
    if not names:
        raise ValueError(f"{key} is empty; name blocks, as [{lists[0].name}.1]")
    by_name = {blocks.name: blocks for blocks in lists}
    units = [_parse(str(name), by_name, counts, key) for name in names]
    for unit in units:
        if units.count(unit) > 1 or (unit.half and unit._replace(half="") in units):
            raise ValueError(f"{key} has {unit} twice{' as its block is there, too' * bool(unit.half)}; give it once")
    halves = [unit for unit in units if unit.half]
    both = {unit._replace(half="") for unit in halves if len([u for u in halves if u[:2] == unit[:2]]) == len(HALVES)}
    whole = both | {unit for unit in units if not unit.half}
    for name, count in counts.items():
        if len([unit for unit in whole if unit.list == name]) >= count:
            raise ValueError(
                f"{key} leaves nothing of {name}, which has {count} block{'s' * (count > 1)}; leave one of them out"
            )
    found = [*whole, *(unit for unit in halves if unit._replace(half="") not in both)]
    order = [blocks.name for blocks in lists]
    return sorted(found, key=lambda unit: (order.index(unit.list), unit.place, unit.half))


def _parse(name: str, lists: Mapping[str, BlockList], counts: Mapping[str, int], key: str) -> Unit:
    parts = name.split(".")
    half = parts.pop() if len(parts) > 2 else ""
    if len(parts) != 2 or not (parts[1].isascii() and parts[1].isdigit()):
        raise ValueError(
            f"{key} has {name!r}; a unit is a block, as {next(iter(lists))}.1, or a half of one, as "
            f"{next(iter(lists))}.1.{HALVES[0]}"
        )
    blocks, place = lists.get(parts[0]), int(parts[1])
    if blocks is None:
        near = difflib.get_close_matches(parts[0], lists, 1, 0) or list(lists)
        raise ValueError(f"{key} has {name}, but this transformer has no {parts[0]}; its blocks are in {near[0]}")
    if place >= counts[blocks.name]:
        raise ValueError(
            f"{key} has {name}, but {blocks.name} has {counts[blocks.name]} blocks, from 0 to {counts[blocks.name] - 1}"
        )
    if half and not blocks.halves:
        raise ValueError(
            f"{key} has {name}, but a block of {blocks.name} computes attention and feed-forward together, so it can "
            f"only go as a whole; give {blocks.name}.{place}"
        )
    if half and half not in blocks.halves:
        near = difflib.get_close_matches(half, blocks.halves, 1, 0)
        raise ValueError(
            f"{key} has {name}; the halves of a block are {' and '.join(HALVES)}, the nearest is {near[0]}"
        )
    return Unit(blocks.name, place, half)


def counts_of(config: Mapping[str, Any], lists: Sequence[BlockList]) -> dict[str, int]:
    """Blocks by the name of their list, from a transformer's config."""
    return {blocks.name: int(config[blocks.count]) for blocks in lists}


def _stubs(transformer: Any, unit: Unit, lists: Sequence[BlockList]) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    """(block, name, what stands there) of a half."""
    halves = next(blocks.halves for blocks in lists if blocks.name == unit.list)
    block = getattr(transformer, unit.list)[unit.place]
    for name, stub in halves[unit.half].items():
        yield block, name, stub()


def take_out(transformer: Any, units: Sequence[Unit], lists: Sequence[BlockList]) -> None:
    """Take units out of a transformer for good: their parameters go, and its config counts the blocks that are left."""
    for unit in units:
        if unit.half:
            for block, name, stub in _stubs(transformer, unit, lists):
                setattr(block, name, stub)
    for blocks in lists:
        gone = {unit.place for unit in units if unit.list == blocks.name and not unit.half}
        left = [block for place, block in enumerate(getattr(transformer, blocks.name)) if place not in gone]
        setattr(transformer, blocks.name, nn.ModuleList(left))
        transformer.register_to_config(**{blocks.count: len(left)})


@contextmanager
def without(transformer: Any, units: Sequence[Unit], lists: Sequence[BlockList]) -> Iterator[None]:
    """The transformer with units skipped; hold it through the backward pass where activations are computed again."""
    kept = {blocks.name: getattr(transformer, blocks.name) for blocks in lists}
    stood: list[tuple[nn.Module, str, nn.Module]] = []
    try:
        for unit in units:
            if unit.half:
                for block, name, stub in _stubs(transformer, unit, lists):
                    stood.append((block, name, getattr(block, name)))
                    setattr(block, name, stub)
        for name, whole in kept.items():
            gone = {unit.place for unit in units if unit.list == name and not unit.half}
            setattr(transformer, name, nn.ModuleList(b for place, b in enumerate(whole) if place not in gone))
        yield
    finally:
        for name, whole in kept.items():
            setattr(transformer, name, whole)
        for block, name, module in reversed(stood):
            setattr(block, name, module)
