"""A stage of pre-training: how long, how fast, and one run of the loop."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from dollar.log import logger
from dollar.methods.pretraining import Loss, OneLoss
from dollar.models.roles import trainable
from dollar.parallel import checkpoint
from dollar.parallel.signals import STOPPED
from dollar.parallel.world import World
from dollar.training.average import Average
from dollar.training.learner import Learner
from dollar.training.log import Log
from dollar.training.loop import Loop, Timetable
from dollar.training.lr_schedule import falling
from dollar.training.muon import Muon

OLD = "state.safetensors"  # the state of a stage by an earlier version

START = "Start with init=FOLDER from one that launch/pretrain.py has made, or with init=null from random weights"


@dataclass(frozen=True)
class Stage:
    """One stage of pre-training: `steps` updates of `batch` clips; the rate falls linearly over its last part."""

    steps: int
    batch: int
    lr: float
    decay_from: float = 0.6  # fraction of the steps after which the rate falls
    warmup: int = 20
    clip_gradient: float = 5.0
    save_every: int = 100

    def __post_init__(self) -> None:
        for name, least in (("steps", 0), ("batch", 1), ("warmup", 1), ("save_every", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        for name in ("lr", "clip_gradient"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be positive")
        if not 0 <= self.decay_from <= 1:
            raise ValueError(f"decay_from is {self.decay_from}; it is a fraction of the steps, 1 for a rate that stays")

    def pace(self, step: int) -> float:
        """The share of the learning rate at a step."""
        return min(1.0, (step + 1) / self.warmup) * falling(step, self.steps, self.decay_from)


def optimizers_of(
    network: nn.Module, lr: float, adam_lr: float, outer: Sequence[str], precision: torch.dtype = torch.float32
) -> list[torch.optim.Optimizer]:
    """Muon for inner matrices and convolutions; Adam for vectors and weights whose name contains one of `outer`.

    With Adam alone the autoencoder needs twice the updates (docs/log.md). precision: what Muon multiplies in.
    """
    named = dict(network.named_parameters())
    inner = {n for n, p in named.items() if p.ndim >= 2 and not any(word in n for word in outer)}
    rest = [p for n, p in named.items() if n not in inner]
    return [
        Muon([named[n] for n in named if n in inner], lr, dtype=precision),
        torch.optim.Adam(rest, lr=adam_lr, betas=(0.9, 0.99)),
    ]


@torch.no_grad()
def take_weights(network: nn.Module, weights: Mapping[str, Tensor], source: Path, remedy: str) -> None:
    """Copy weights into the network by name; ValueError, with the remedy, when they are another network's."""
    for name, parameter in network.named_parameters():
        saved = weights.get(name)
        if saved is None or saved.shape != parameter.shape:
            raise ValueError(
                f"{source} is of another network: its {name} is {None if saved is None else list(saved.shape)} and "
                f"{list(parameter.shape)} is needed. {remedy}"
            )
        parameter.copy_(saved)


def run_stage(
    folder: Path,
    stage: Stage,
    network: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    loss: Loss,
    world: World,
    average: Average | None = None,
) -> None:
    """Run a stage to its end, going on where `folder` has it; the last weights are left in the network.

    Stopped by a signal, it saves and exits with code 3.
    """
    if stage.steps == 0:
        return
    if (folder / OLD).is_file():
        raise ValueError(
            f"{folder / OLD} is the state of an earlier version's stage, which this one can't go on from. Give another "
            "folder with work=FOLDER, or remove this one"
        )
    name = folder.name
    learner = Learner(
        name,
        trainable(network),
        optimizers,
        stage.clip_gradient,
        lambda step, steps: stage.pace(step),
        remedy=f"Lower {name}.lr",
    )
    latest = checkpoint.newest(folder / "checkpoints")
    state = None if latest is None else checkpoint.load(latest)
    with Log(folder, active=world.is_main, resume_step=None if state is None else state.plain["cycle"] + 1) as log:
        plan = Timetable(stage.steps, stage.save_every, keep=1, log_every=20)
        method = OneLoss(name, loss, average.update if average is not None else lambda: None)
        loop = Loop(plan, method, {name: learner}, world, folder, log, average, description=name)
        if state is not None:
            try:
                loop.load(state)
            except (KeyError, ValueError) as error:
                raise ValueError(
                    f"{latest} is of another network ({error}). Give another folder with work=FOLDER, or remove this "
                    "one"
                ) from None
        finished = loop.train()
    if not finished or world.any(loop.stop.requested):  # in the last step too, for another stage would follow
        logger.info(f"stopped after step {loop.cycle} of {name} and saved; the same command goes on from there")
        sys.exit(STOPPED)


def begun(work: Path) -> list[str]:
    """The stages that have begun below a folder."""
    kept = (*work.glob(f"*/{OLD}"), *work.glob("*/checkpoints"))
    return sorted({path.parent.name for path in kept})
