"""Pre-training: one network and one loss, a method of one turn."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from dollar.parallel.checkpoint import State
from dollar.training.turn import Moment, Pullback, Scalars, Turn

Loss = Callable[[int], dict[str, Tensor]]  # step -> losses by name, each a scalar; `total` is carried back


class OneLoss:
    """A method whose only turn carries the `total` of a step's losses back to one learner.

    name: of the turn and the learner; stepped: called after each update that was not skipped.
    """

    def __init__(self, name: str, loss: Loss, stepped: Callable[[], None] = lambda: None) -> None:
        self.loss = loss
        self.logged = Scalars()
        self._turn = Turn(name, name, self._losses, stepped=stepped)

    def begin(self, cycle: int, progress: float) -> None:
        self.logged.clear()

    def turns(self, cycle: int) -> Sequence[Turn]:
        return [self._turn]

    def _losses(self, when: Moment) -> Iterator[Pullback]:
        losses = self.loss(when.cycle)
        self.logged |= {f"loss/{name}": float(loss.detach()) for name, loss in losses.items()}
        yield Pullback("total", losses["total"], torch.ones_like(losses["total"]))

    def samples(self, cycle: int) -> list[int]:
        return []

    def state(self) -> State:
        return State({}, {})

    def load(self, state: State) -> None:
        """Nothing is kept from one step to the next."""
