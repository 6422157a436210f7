"""Preference distillation (V.I.P., Eq. 1-3): the full model's clip is preferred to the pruned one's of the same noise.

An error e is the mean squared error of the native prediction against its target, [B], as `score_matching.native`
gives it; `_ref` is the reference's, which is the full model.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import softplus

from dollar.losses.score_matching import native


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
