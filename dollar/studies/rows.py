"""A study's rows and groups: what is trained, from which student it starts, and which figure it pursues."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

TEACHER = "teacher"  # the name of the teacher's own job
ALL = "all"  # of a row that pursues no figure and is compared with rows of each


class Row(NamedTuple):
    """One line of a table.

    steps: the step counts that its student is measured at, the first of them in the tables; verb: the command of
    launch/ that makes it; overrides: of that command; after: the row whose student it starts from; pursued: the figure
    that it is trained for, or ALL; control: the row that it is compared with in all figures that it was not trained
    for, its group's where it names none.
    """

    name: str
    label: str
    group: str
    overrides: tuple[str, ...] = ()
    after: str | None = None
    steps: tuple[int, ...] = (4,)
    pursued: str = ""
    control: str = ""
    verb: str = "train"


@dataclass(frozen=True)
class Group:
    """The rows of one table: its title, and what its rows share.

    overrides: of launch/train.py; evaluation: of launch/evaluate.py; pursued: the figure that its rows are trained for,
    the study's own where it is empty; control: the row that they are compared with, none where it is empty.
    """

    title: str
    overrides: Sequence[str] = ()
    evaluation: Sequence[str] = ()
    pursued: str = ""
    control: str = ""


def groups_of(given: Mapping[str, Mapping[str, Any]]) -> dict[str, Group]:
    """The groups by their names; ValueError for a key that no group has."""
    known = [field.name for field in fields(Group)]
    for name, group in given.items():
        if unknown := group.keys() - set(known):
            raise ValueError(f"the group {name} has {', '.join(sorted(unknown))}; it may have {', '.join(known)}")
    return {name: Group(**group) for name, group in given.items()}


def rows_of(
    given: Sequence[Mapping[str, Any]],
    groups: Mapping[str, Group],
    figures: Collection[str],
    usual: str,
    steps: int = 4,
) -> tuple[Row, ...]:
    """The rows of a configuration; ValueError for a row that can't be.

    figures: those that a row may pursue; usual: the one it pursues where neither it nor its group names one;
    steps: the step count that it is measured at where it names none.
    """
    rows = tuple(_row(row, groups, usual, steps) for row in given)
    names = [row.name for row in rows]
    for i, row in enumerate(rows):
        if row.name in names[:i] or row.name == TEACHER:
            raise ValueError(f"two rows are called {row.name}; give each its own name")
        if row.after is not None and row.after not in names[:i]:
            raise ValueError(f"the row {row.name} is to come after {row.after}, but no row before it is called so")
        if row.group not in groups:
            raise ValueError(f"the row {row.name} is in group {row.group}; the groups are {', '.join(groups)}")
        if row.pursued not in (*figures, ALL):
            raise ValueError(f"the row {row.name} pursues {row.pursued}; the figures are {', '.join([*figures, ALL])}")
        if row.control not in ("", *names):
            raise ValueError(f"the row {row.name} is to be compared with {row.control}, but no row is called so")
    return rows


def _row(given: Mapping[str, Any], groups: Mapping[str, Group], usual: str, steps: int) -> Row:
    if not isinstance(given, Mapping):
        raise ValueError(f"a row is {given!r}; it is a mapping, such as {{name: mine, group: distillation}}")
    if unknown := given.keys() - set(Row._fields):
        raise ValueError(f"a row has {', '.join(map(str, sorted(unknown)))}; it may have {', '.join(Row._fields)}")
    if missing := [key for key in ("name", "label", "group") if key not in given]:
        raise ValueError(
            f"the row {given.get('name')} lacks {' and '.join(missing)}; each row has a name, label and group"
        )
    lists = {key: tuple(given[key]) for key in ("overrides", "steps") if key in given}
    group = groups.get(given.get("group", ""))
    pursued = given.get("pursued") or (group.pursued if group else "") or usual
    control = given.get("control") or (group.control if group else "")
    control = "" if control == given.get("name") else control
    return Row(**{"steps": (steps,), **given, **lists, "pursued": pursued, "control": control})


def seeds_of(given: Any) -> list[int]:
    """The seeds that `seeds` names: null is one, a number so many, a list those."""
    seeds = [0] if given is None else list(range(given)) if type(given) is int else list(given)
    if not seeds or not all(type(seed) is int and seed >= 0 for seed in seeds) or len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds is {given}; give how many, such as 3, or which, such as [0,2]")
    return seeds


def start_of(rows: Sequence[Row], group: str) -> str:
    """The row whose student the rows of a group start from; "" where they start from the teacher."""
    return next((row.after for row in rows if row.group == group and row.after), "")


def replaced(common: Sequence[str], own: Sequence[str]) -> list[str]:
    """The common overrides without those that a row's own replace, then its own; a choice takes its keys along."""
    keys = {override.partition("=")[0] for override in own}

    def is_replaced(override: str) -> bool:
        key = override.partition("=")[0]
        return any(key == mine or key.startswith(f"{mine}.") for mine in keys)

    return [*(override for override in common if not is_replaced(override)), *own]
