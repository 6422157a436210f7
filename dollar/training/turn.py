"""Turns and methods: what the loop runs, whatever is trained."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from torch import Tensor

from dollar.parallel.checkpoint import State


class Moment(NamedTuple):
    """When an update happens: its cycle, and its place among the updates of its turn."""

    cycle: int
    update: int = 0


class Pullback(NamedTuple):
    """One branch of an update: `gradient` at `tensor`, to be carried back to the weights.

    name: of the term, or terms, that it comes from; last: whether the branch is then done with; if not, another
    gradient follows through the same activations.
    """

    name: str
    tensor: Tensor
    gradient: Tensor
    last: bool = True


Products = dict[tuple[str, str], float]  # inner products of the branches' gradients at the weights, by their names


class NoUpdate(NamedTuple):
    """Why a turn makes no update this time.

    trouble: a sentence, given how many times in a row, where that counts as a skipped update; None where it is meant.
    """

    trouble: Callable[[int], str] | None = None


def _go(cycle: int) -> NoUpdate | None:
    return None


def _nothing(*_: int) -> None:
    return None


@dataclass(frozen=True)
class Turn:
    """One learner's share of a cycle.

    name: of its phase; learner: whose parameters its losses move; losses: gives an update's branches one by one, so
    that only one branch's activations are held; updates: in a cycle; every: cycles whose gradients make one update;
    begin: called before the updates of a cycle, gives a `NoUpdate` where there are none; end: called after them;
    stepped: called after each update that was not skipped; logged: what the gradient's norm is logged as; compared:
    cycles between comparisons of the branches' gradients, 0 for none. weigh: gives each branch's weight in the update
    by the inner products of their gradients, which are then held apart; None adds them as they are.
    """

    name: str
    learner: str
    losses: Callable[[Moment], Iterable[Pullback]]
    updates: int = 1
    every: int = 1
    begin: Callable[[int], NoUpdate | None] = _go
    end: Callable[[int], None] = _nothing
    stepped: Callable[[], None] = _nothing
    logged: str = ""
    compared: int = 0
    weigh: Callable[[Products], Mapping[str, float]] | None = None

    def compares(self, cycle: int) -> bool:
        """Whether the gradients of this cycle's branches are compared."""
        return self.compared > 0 and cycle % self.compared == 0


class Scalars(dict[str, float]):
    """What a cycle measured, by name; of a mean, several micro-batches may each add their share."""

    def add(self, name: str, value: float, share: float = 1.0) -> None:
        """Add a micro-batch's share of a mean."""
        self[name] = self.get(name, 0.0) + value * share


class Method(Protocol):
    """A list of turns, and what they have in common; `logged` is emptied by `begin` and filled by the turns.

    One that has `remarks(ended=False)` gives sentences for the user, by what they are of: each is said once when it
    first comes, and again at the run's end, with ended=True. One that has `scores()` adds what it gives to the scores
    of each validation.
    """

    logged: Scalars

    def begin(self, cycle: int, progress: float) -> None:
        """A cycle begins; progress: the fraction of the run that is done."""
        ...

    def turns(self, cycle: int) -> Sequence[Turn]:
        """The turns of a cycle in their order."""
        ...

    def samples(self, cycle: int) -> list[int]:
        """The samples whose latents this process will want in a cycle, in their order, to be read ahead."""
        ...

    def state(self) -> State:
        """What the next cycle depends on and no learner holds."""
        ...

    def load(self, state: State) -> None:
        """Take up a `state`."""
        ...
