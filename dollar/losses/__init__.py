"""The objectives, one a file: the equation as a pure function giving [B], and the term that applies it."""

from dollar.losses.policy_gradient import PolicyGradient
from dollar.losses.pull import Pull
from dollar.losses.reward_gradient import DRaFT, ReFL
from dollar.losses.term import Term

__all__ = [
    "DRaFT",
    "PolicyGradient",
    "Pull",
    "ReFL",
    "Term",
]
