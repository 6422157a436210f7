"""How well predictions of a reward follow the truth."""

from __future__ import annotations

from typing import NamedTuple

import torch
from scipy.stats import spearmanr
from torch import Tensor


class Agreement(NamedTuple):
    """How well predictions follow the truth: Pearson's and Spearman's correlation, nan where either doesn't vary;
    pairwise: the pairwise accuracy, how often the better of two has the higher prediction, over `pairs` of them."""

    correlation: float
    rank_correlation: float
    pairwise: float
    pairs: int


def agreement(predicted: Tensor, true: Tensor, gap: float) -> Agreement:
    """Agreement of predictions [N] with true rewards [N]; gap: true difference from which a pair counts."""
    p, r = predicted.double().cpu(), true.double().cpu()
    clear = r[:, None] - r > gap
    ordered = (p[:, None] - p)[clear] > 0  # of the clear pairs, those that the predictions order rightly
    accuracy = float(ordered.double().mean())
    if len(p) < 2 or p.std() == 0 or r.std() == 0:
        return Agreement(float("nan"), float("nan"), accuracy, int(clear.sum()))
    linear = float(torch.corrcoef(torch.stack([p, r]))[0, 1])
    return Agreement(linear, float(spearmanr(p.numpy(), r.numpy()).statistic), accuracy, int(clear.sum()))
