"""Preference distillation (V.I.P., Eq. 1-3): the full model's clip is preferred to the pruned one's of the same noise.

An error e is the mean squared error of the native prediction against its target, [B], as `score_matching.native`
gives it; `_ref` is the reference's, which is the full model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn.functional import softplus

from dollar.diffusion.timesteps import FewStep
from dollar.losses.pairs import Outputs
from dollar.losses.score_matching import native
from dollar.losses.term import Cost, Needs, check_weight

SATURATED = 5.0  # |logit| beyond which a pair's gradient is within 0.7 % of none, or of a constant


def margin(e_w: Tensor, e_l: Tensor, e_w_ref: Tensor, e_l_ref: Tensor) -> Tensor:
    """How much more the student's error exceeds the reference's on the winner than on the loser, [B]."""
    return (e_w.float() - e_w_ref.float()) - (e_l.float() - e_l_ref.float())


def preference(margins: Tensor, beta: float) -> Tensor:
    """-log sigmoid(-(beta / 2) margin) of each pair, [B] (V.I.P., Eq. 1); the mean is taken after it, not inside.

    margins: [B], as `margin` gives them, 0 or below where the winner is explained better than by the reference.
    """
    return softplus(0.5 * beta * margins.float())


def departure(output: Tensor, reference: Tensor) -> Tensor:
    """The mean squared distance of the student's output from the reference's on the winner (Eq. 2), [B].

    output, reference: [B, ...] native predictions at one x_t and one t.
    """
    return native(output, reference)


def safeguard_share(winner: float, both: float) -> float:
    """By what the losers' gradient is multiplied, so that what is asked of the winners can't get worse to first order.

    A batch's loss is a sum of what it says of the winners, whose gradient at the weights is u, and of the losers, -v: u
    is the mean of c_i grad e_w,i + w grad d_i and v that of c_i grad e_l,i, where c_i = beta / 2 times the pair's own
    sigmoid, and w is the weight of the departure d. The step -(u - s v) changes what is said of the winners, their
    weights c_i held, by -<u, u - s v>, which is 0 or below as long as s <u, v> <= <u, u>. So the share is
    min(1, <u, u> / <u, v>) where the product is positive, and 1 elsewhere, for there the losers' part helps.

    Without the departure that is the winners' own error, each by its sigmoid. With it u is still the direction in which
    that error grows: of winners that the reference made, the mean gradient of d is that of e_w, with less noise.
    It holds for steps along the gradient; AdamW scales each number of the step by itself.

    winner: <u, u>; both: <u, v>, over all of the weights and processes. What isn't a number stays none.
    """
    if math.isnan(winner) or math.isnan(both):
        return math.nan
    return min(1.0, winner / both) if both > 0 else 1.0


@dataclass
class Preferred:
    """The preference for winners over losers, against the reference (DPO, Eq. 1).

    beta: its weight among the terms; strength: the paper's beta, half of which multiplies the margin before the
    sigmoid; safeguard: whether the losers' gradient is scaled by `safeguard_share`.
    """

    beta: float = 1.0
    strength: float = 5000.0
    safeguard: bool = False
    losers: ClassVar[bool] = True
    needs: ClassVar[Needs] = Needs(pairs=True)

    def __post_init__(self) -> None:
        check_weight("preference.dpo", self.beta)
        if not 0 < self.strength < math.inf:
            raise ValueError(f"preference.beta is {self.strength}; it must be positive, as the paper's 5000")

    def check(self, samplers: Sequence[FewStep]) -> None:
        """Any student will do."""

    def cost(self, steps: int) -> Cost:
        return Cost()

    def pair_loss(self, winner: Outputs, loser: Outputs | None) -> Tensor:
        return preference(self._margin(winner, loser), self.strength)

    def pair_scalars(self, winner: Outputs, loser: Outputs | None) -> dict[str, Tensor]:
        """Margin, logit, the share of pairs that are saturated, and that of those which are told apart rightly."""
        margins = self._margin(winner, loser)
        logits = -0.5 * self.strength * margins
        saturated, right = (logits.abs() > SATURATED).float(), (logits > 0).float()
        return {"margin": margins, "logit": logits, "saturated": saturated, "accuracy": right}

    @staticmethod
    def _margin(winner: Outputs, loser: Outputs | None) -> Tensor:
        assert loser is not None, "a term that looks at losers is given them"
        return margin(winner.error, loser.error, winner.reference_error, loser.reference_error)


@dataclass
class Departure:
    """The distance from the reference's output on the winners (SFT, Eq. 2); beta: its weight among the terms."""

    beta: float = 1.0
    losers: ClassVar[bool] = False
    safeguard: ClassVar[bool] = False
    needs: ClassVar[Needs] = Needs(pairs=True)

    def __post_init__(self) -> None:
        check_weight("preference.sft", self.beta)

    def check(self, samplers: Sequence[FewStep]) -> None:
        """Any student will do."""

    def cost(self, steps: int) -> Cost:
        return Cost()

    def pair_loss(self, winner: Outputs, loser: Outputs | None) -> Tensor:
        return departure(winner.student, winner.reference)

    def pair_scalars(self, winner: Outputs, loser: Outputs | None) -> dict[str, Tensor]:
        return {}
