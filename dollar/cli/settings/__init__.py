"""The settings: one declaration a key, by command. A key's default and its meaning are in conf/.

Where a node has a `_target_`, the keys are those that this class or function takes, and are declared there.
"""

from __future__ import annotations

from dataclasses import is_dataclass
from typing import Any, get_type_hints

from dollar.cli.settings.base import FREE, Place, Prompt, Target
from dollar.cli.settings.commands import (
    Ablation,
    BenchReward,
    Evaluate,
    Export,
    FewSteps,
    FitReward,
    Preprocess,
    Pretrain,
    RewardCurve,
    Sample,
    VipAblation,
)
from dollar.cli.settings.smaller import Pairs, Prune, Rank, Score, Vip
from dollar.cli.settings.toy import Toy
from dollar.cli.settings.train import Plan, Train

__all__ = ["COMMANDS", "Place", "Prompt", "Target", "free_keys"]

COMMANDS: dict[str, type] = {
    "ablation": Ablation,
    "bench_reward": BenchReward,
    "evaluate": Evaluate,
    "export": Export,
    "few_step": FewSteps,
    "fit_reward": FitReward,
    "pairs": Pairs,
    "plan": Plan,
    "preprocess": Preprocess,
    "pretrain": Pretrain,
    "prune": Prune,
    "rank": Rank,
    "reward_curve": RewardCurve,
    "sample": Sample,
    "score": Score,
    "toy": Toy,
    "train": Train,
    "vip": Vip,
    "vip_ablation": VipAblation,
}


def free_keys(settings: Any, prefix: str = "") -> list[str]:
    """The dotted keys, with what lies below them, that may change when a run goes on."""
    found = []
    for name, kind in get_type_hints(settings, include_extras=True).items():
        if FREE in getattr(kind, "__metadata__", ()):
            found.append(f"{prefix}{name}")
        elif is_dataclass(kind):
            found += free_keys(kind, f"{prefix}{name}.")
    return found
