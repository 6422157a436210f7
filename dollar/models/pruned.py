"""A transformer of which units were taken out, as a folder: what of whom is left, and reading it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from dollar.models.pipeline import Weights, lack
from dollar.models.units import BlockList, Unit, counts_of, parse, take_out

FILE = "pruning.json"


@dataclass(frozen=True)
class Pruning:
    """What is left of a teacher's transformer.

    teacher: its name; blocks: how many it has, by list; left: which of them are left, in order, by list; halves: those
    that are gone from blocks that are left, as units of the folder's own numbers.
    """

    teacher: str
    blocks: dict[str, int]
    left: dict[str, list[int]]
    halves: tuple[str, ...] = ()

    @staticmethod
    def none(teacher: str, counts: Mapping[str, int]) -> Pruning:
        """Of a teacher as it is."""
        return Pruning(teacher, dict(counts), {name: list(range(count)) for name, count in counts.items()})

    @property
    def counts(self) -> dict[str, int]:
        """Blocks that are left, by list."""
        return {name: len(places) for name, places in self.left.items()}

    @property
    def is_less(self) -> bool:
        """Whether anything is gone."""
        return bool(self.halves) or self.counts != self.blocks

    @property
    def gone(self) -> list[Unit]:
        """The units that are gone, by the teacher's numbers."""
        blocks = [
            Unit(name, place)
            for name, count in self.blocks.items()
            for place in range(count)
            if place not in self.left[name]
        ]
        halves = (unit_of(half) for half in self.halves)
        return [*blocks, *(unit._replace(place=self.left[unit.list][unit.place]) for unit in halves)]

    def is_part_of(self, other: Pruning) -> bool:
        """Whether all that is gone from `other` is gone here, too."""
        gone = {*self.gone}
        return all(unit in gone or unit._replace(half="") in gone for unit in other.gone)

    @property
    def described(self) -> str:
        """What is left, in words."""
        parts = [
            f"{len(kept)} of {self.blocks[name]} {name}, without {', '.join(map(str, gone))}"
            for name, kept in self.left.items()
            if (gone := sorted(set(range(self.blocks[name])) - set(kept)))
        ]
        return "; ".join([*parts, *(f"without {self.original(unit_of(half))}" for half in self.halves)])

    def completed(self, units: Sequence[Unit], key: str = "remove") -> list[Unit]:
        """These units, a block in place of its half where the other half is gone already.

        ValueError for a half that is gone itself, and where nothing would be left of a list.
        """
        if again := [str(unit) for unit in units if str(unit) in self.halves]:
            raise ValueError(f"{key} has {again[0]}, which is gone already; leave it out")
        lone = {unit_of(half)._replace(half="") for half in self.halves}
        found = [whole if unit.half and (whole := unit._replace(half="")) in lone else unit for unit in units]
        for name, count in self.counts.items():
            if len({unit for unit in found if unit.list == name and not unit.half}) >= count:
                raise ValueError(f"{key} leaves nothing of {name}; leave one of its units out")
        return found

    def further(self, units: Sequence[Unit]) -> Pruning:
        """After these units, by the present numbers, have gone as well."""
        gone = {(unit.list, unit.place) for unit in units if not unit.half}
        stay = {name: [p for p in range(count) if (name, p) not in gone] for name, count in self.counts.items()}
        half = [*map(unit_of, self.halves), *(unit for unit in units if unit.half)]
        left = [
            unit._replace(place=stay[unit.list].index(unit.place))
            for unit in half
            if (unit.list, unit.place) not in gone
        ]
        places = {name: [self.left[name][p] for p in kept] for name, kept in stay.items()}
        return Pruning(self.teacher, self.blocks, places, tuple(sorted(map(str, left))))

    def original(self, unit: Unit) -> str:
        """A unit of the present numbers by the teacher's."""
        return str(unit._replace(place=self.left[unit.list][unit.place]))

    def write(self, folder: Path) -> None:
        """Write pruning.json."""
        (folder / FILE).write_text(json.dumps(asdict(self), indent=1) + "\n")


def unit_of(name: str) -> Unit:
    """A unit by its name, which must be one."""
    blocks, place, *half = name.split(".")
    return Unit(blocks, int(place), *half)


def read_pruning(folder: str | Path) -> Pruning | None:
    """What pruning.json says of a student's folder; None where nothing was taken out."""
    path = Path(folder) / FILE
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return Pruning(
            str(found["teacher"]),
            {str(name): int(count) for name, count in found["blocks"].items()},
            {str(name): [int(place) for place in places] for name, places in found["left"].items()},
            tuple(str(unit) for unit in found["halves"]),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} can't be read ({error!r}); copy it again from where it was made") from None


def pruning_of(folder: Path | None, teacher: str, config: Mapping[str, Any], lists: Sequence[BlockList]) -> Pruning:
    """What is left in a student's folder, all of it where it says nothing; None is the teacher itself.

    config: of the teacher's transformer. ValueError where the folder is of another teacher, or its transformer has
    other counts.
    """
    counts = counts_of(config, lists)
    found = None if folder is None else read_pruning(folder)
    if found is not None and (found.teacher != teacher or found.blocks != counts):
        raise ValueError(
            f"{folder} is what is left of {found.teacher} with {_blocks(found.blocks)}, and this teacher is {teacher} "
            f"with {_blocks(counts)}; give teacher={found.teacher}"
        )
    left = found or Pruning.none(teacher, counts)
    path = None if folder is None else folder / "transformer" / "config.json"
    if path is not None and path.is_file():
        _check_counts(path, left, lists, f"{FILE} beside it" if found else f"the teacher {teacher}")
    return left


def _check_counts(path: Path, left: Pruning, lists: Sequence[BlockList], beside: str) -> None:
    try:
        there = counts_of(json.loads(path.read_text(encoding="utf-8")), lists)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} can't be read ({error!r}); copy it again from where it was made") from None
    if there != left.counts:
        raise ValueError(
            f"{path} counts {_blocks(there)}, and {beside} {_blocks(left.counts)}; diffusers would leave blocks empty "
            "in silence. Copy the folder again from where it was made, or name the teacher that it came from"
        )


def _blocks(counts: Mapping[str, int]) -> str:
    return " and ".join(f"{count} {name}" for name, count in counts.items())


def take_halves(transformer: nn.Module, pruning: Pruning, lists: Sequence[BlockList]) -> None:
    """Take the halves out of a transformer that has as many blocks as are left."""
    if pruning.halves:
        take_out(transformer, parse(pruning.halves, lists, pruning.counts), lists)


def weights_in(folder: Path, transformer: nn.Module) -> Weights:
    """The tensors of a student's transformer; ValueError unless they are those of this network."""
    place = folder / "transformer"
    if missing := lack(place, "transformer"):
        raise ValueError(f"no student in {folder}: it lacks {missing}; a finished run has one in runs/<run>/student")
    weights = Weights.of(sorted(place.glob("*.safetensors")))
    wanted = set(transformer.state_dict())
    absent, further = sorted(wanted - weights.files.keys()), sorted(weights.files.keys() - wanted)
    if absent or further:
        what = f"lack {absent[0]}" if absent else f"have {further[0]}, which it doesn't count"
        raise ValueError(
            f"the weights in {place} disagree with its config.json: they {what}. Blocks may have been renumbered or "
            "the config edited; copy the folder again from where it was made"
        )
    return weights
