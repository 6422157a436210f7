"""The loop of a stage of pre-training: resumes where it was stopped, logs its curve."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dollar.log import progress
from dollar.parallel.world import World
from dollar.training.average import Ema
from dollar.training.log import Log
from dollar.training.lr_schedule import falling

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


class Muon(torch.optim.Muon):
    """Muon for weights [out, ...] of any shape, each taken as a matrix [out, in]."""

    def __init__(self, weights: Sequence[nn.Parameter], lr: float) -> None:
        self.weights = list(weights)
        matrices = [nn.Parameter(w.data.view(len(w), -1)) for w in self.weights]  # the same memory, as matrices
        super().__init__(matrices, lr=lr, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")

    def step(self, closure: Any = None) -> Any:
        """One update from the weights' gradients."""
        for matrix, weight in zip(self.param_groups[0]["params"], self.weights, strict=True):
            matrix.grad = None if weight.grad is None else weight.grad.view_as(matrix)
        return super().step(closure)


def optimizers_of(network: nn.Module, lr: float, adam_lr: float, outer: Sequence[str]) -> list[torch.optim.Optimizer]:
    """Muon for inner matrices and convolutions; Adam for vectors and weights whose name has a word of `outer`.

    With Adam alone the autoencoder needs twice the updates (docs/log.md).
    """
    named = dict(network.named_parameters())
    inner = {n for n, p in named.items() if p.ndim >= 2 and not any(word in n for word in outer)}
    rest = [p for n, p in named.items() if n not in inner]
    return [
        Muon([named[n] for n in named if n in inner], lr),
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
    loss: Callable[[int], dict[str, Tensor]],
    world: World,
    ema: Ema | None = None,
) -> None:
    """The loop of a stage: resumes from `folder`, logs there, and leaves the last weights in the network."""
    first = _resume(folder, network, optimizers, ema)
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    rates = [group["lr"] for group in groups]
    with Log(folder, active=world.is_main, resume_step=first) as log:
        for step in progress(range(first, stage.steps), folder.name, active=world.is_main):
            for group, rate in zip(groups, rates, strict=True):
                group["lr"] = rate * stage.pace(step)
            losses = loss(step)
            network.zero_grad(set_to_none=True)
            losses["total"].backward()
            world.average([p.grad for p in network.parameters()])
            norm = nn.utils.clip_grad_norm_(network.parameters(), stage.clip_gradient)
            if bool(torch.isfinite(norm)):  # the same in every process, since the gradients are
                for optimizer in optimizers:
                    optimizer.step()
                if ema is not None:
                    ema.update()
            if step % 20 == 0:
                log.scalars(step, {f"loss/{k}": v.detach() for k, v in losses.items()} | {"grad_norm": norm})
            if world.is_main and ((step + 1) % stage.save_every == 0 or step + 1 == stage.steps):
                _save(folder, step + 1, network, optimizers, ema)


def _save(
    folder: Path, step: int, network: nn.Module, optimizers: Sequence[torch.optim.Optimizer], ema: Ema | None
) -> None:
    tensors = {f"network/{n}": p.detach() for n, p in network.named_parameters()}
    for number, optimizer in enumerate(optimizers):
        for i, moments in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{number}/{i}/{key}": torch.as_tensor(value) for key, value in moments.items()}
    tensors |= {f"ema/{i}": a for i, a in enumerate(ema.average)} if ema else {}
    plain = {"step": str(step), "ema_updates": str(ema.updates if ema else 0)}
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "state.tmp", metadata=plain)
    os.replace(folder / "state.tmp", folder / "state.safetensors")


@torch.no_grad()
def _resume(folder: Path, network: nn.Module, optimizers: Sequence[torch.optim.Optimizer], ema: Ema | None) -> int:
    path = folder / "state.safetensors"
    if not path.is_file():
        return 0
    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        plain = file.metadata()
    weights = {key.removeprefix("network/"): value for key, value in tensors.items() if key.startswith("network/")}
    take_weights(network, weights, path, "Give another folder with work=FOLDER, or remove this one")
    parameters = [[p for group in o.param_groups for p in group["params"]] for o in optimizers]
    for key, value in tensors.items():
        if key.startswith("optimizer/"):
            _, number, index, what = key.split("/")
            optimizers[int(number)].state[parameters[int(number)][int(index)]][what] = value
    if ema is not None:
        for i, average in enumerate(ema.average):
            average.copy_(tensors[f"ema/{i}"])
        ema.updates = int(plain["ema_updates"])
    return int(plain["step"])
