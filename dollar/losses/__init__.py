"""The objectives, one a file: the equation as a pure function giving [B], and the term that applies it."""

from dollar.losses.adversarial import Adversarial
from dollar.losses.consistency import Consistency
from dollar.losses.latent_reward import LatentRewardTerm
from dollar.losses.moments import Moments
from dollar.losses.objective import Objective
from dollar.losses.pairs import Outputs, PairTerm
from dollar.losses.policy_gradient import PolicyGradient
from dollar.losses.preference import Departure, Preferred
from dollar.losses.pull import Pull
from dollar.losses.reward_gradient import DRaFT, ReFL
from dollar.losses.term import (
    Context,
    Cost,
    FollowingTerm,
    Host,
    LearningTerm,
    Needs,
    RolloutTerm,
    Sample,
    SampleTerm,
    Term,
)
from dollar.losses.vsd import VSD

__all__ = [
    "VSD",
    "Adversarial",
    "Consistency",
    "Context",
    "Cost",
    "DRaFT",
    "Departure",
    "FollowingTerm",
    "Host",
    "LatentRewardTerm",
    "LearningTerm",
    "Moments",
    "Needs",
    "Objective",
    "Outputs",
    "PairTerm",
    "PolicyGradient",
    "Preferred",
    "Pull",
    "ReFL",
    "RolloutTerm",
    "Sample",
    "SampleTerm",
    "Term",
]
