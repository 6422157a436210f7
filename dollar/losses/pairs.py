"""Terms on pairs of clips, of which one is preferred: what they are given and what they say of themselves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol, runtime_checkable

from torch import Tensor

from dollar.losses.score_matching import native


class Outputs(NamedTuple):
    """Native outputs for one clip of each pair at one x_t and one t, and what a perfect network gives, [B, ...] each.

    student: with a gradient where it is wanted; reference: of the model that the student is compared with.
    """

    student: Tensor
    reference: Tensor
    target: Tensor

    @property
    def error(self) -> Tensor:
        """The student's mean squared error of each clip, [B]."""
        return native(self.student, self.target)

    @property
    def reference_error(self) -> Tensor:
        """The reference's, [B]."""
        return native(self.reference, self.target)

    @property
    def excess(self) -> Tensor:
        """How far the student's error lies above the reference's, [B]."""
        return self.error - self.reference_error


@runtime_checkable
class PairTerm(Protocol):
    """A term on pairs, beta times the mean of its losses, for a method that runs both clips.

    losers: whether it looks at the losers; where no term does, none is run. safeguard: whether the losers' gradient is
    scaled by `safeguard_share`. `cost` tells what comes on top of the forwards of the clips, which all terms share.
    """

    beta: float

    @property
    def losers(self) -> bool: ...

    @property
    def safeguard(self) -> bool: ...

    def pair_loss(self, winner: Outputs, loser: Outputs | None) -> Tensor:
        """[B], float32, with a gradient at whichever student's outputs carry one."""
        ...

    def pair_scalars(self, winner: Outputs, loser: Outputs | None) -> Mapping[str, Tensor]:
        """What is logged of it, [B] each, by name."""
        ...
