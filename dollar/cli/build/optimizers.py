"""From conf/optim to the learners: each network's optimizers, and how their rates change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from dollar.cli.build.teacher import dtype_of
from dollar.losses.objective import Objective
from dollar.losses.term import has_optimizer
from dollar.models.roles import trainable
from dollar.parallel.shard import is_sharded
from dollar.training.learner import Learner, constant
from dollar.training.lr_schedule import falling
from dollar.training.muon import Muon

if TYPE_CHECKING:
    from dollar.methods.ingredients import Ingredients

WHOLE = (
    "optim.student.muon_lr is given, and Muon takes whole matrices; give parallel.shard=false, or "
    "optim.student.muon_lr=null for AdamW alone"
)


def check_optimizers(config: DictConfig, objective: Objective | None = None) -> None:
    """Raise ValueError for rates, betas or decays that no optimizer can take, and for a network that has none."""
    for network, keys in config.optim.items():
        if not keys.lr > 0 or not all(0 <= beta < 1 for beta in keys.betas) or keys.weight_decay < 0:
            raise ValueError(
                f"optim.{network} is {OmegaConf.to_container(keys)}; lr must be positive, betas lie from 0 to below 1, "
                "and weight_decay is 0 or positive"
            )
    student = config.optim.get("student", {})  # a fit has none
    if (rate := student.get("muon_lr")) is not None:
        if not rate > 0:
            raise ValueError(f"optim.student.muon_lr is {rate}; it must be positive, or null for AdamW alone")
        if config.parallel.shard is True:
            raise ValueError(f"parallel.shard is true, but {WHOLE}")
    for name in objective.learning_terms if objective is not None else ():
        if name not in config.optim:
            raise ValueError(
                f"the term {name} has a network of its own, but there is no optim.{name}; give its yaml "
                f"optim: {{{name}: {{lr: 1.0e-4, betas: [0.9, 0.99], weight_decay: 0.0}}}}"
            )


def learners_of(config: DictConfig, run: Ingredients, lists: Sequence[str]) -> dict[str, Learner]:
    """The learners; the rates of student and fake score fall together, the others stay; lists: of their blocks."""
    rates: dict[str, Any] = {"rate": partial(falling, start=config.decay_from), "lists": lists}
    found = {name: learner_of(config, name, role.parameters, **rates, use=role.use) for name, role in run.roles.items()}
    student = run.roles["student"]
    for name, term in run.objective.apart.items():
        if has_optimizer(term):
            own = learner_of(config, "student", student.parameters, **rates, use=student.use, keeps=False)
            found[f"student_{name}"] = replace(own, name=f"student_{name}")
    networks = dict(run.networks)
    if run.fitted and run.surrogate is not None:
        networks["lrm"] = run.surrogate.model
    if run.fitted and run.decoder is not None:
        networks["decoder"] = run.decoder.model
    return found | {name: learner_of(config, name, trainable(network)) for name, network in networks.items()}


def learner_of(
    config: DictConfig,
    name: str,
    parameters: dict[str, nn.Parameter],
    rate: Any = constant,
    lists: Sequence[str] = (),
    **how: Any,
) -> Learner:
    """A learner with the optimizers of optim.<name>; lists: of the blocks in its network."""
    optimizers = optimizers_of(config, name, parameters, lists)
    return Learner(name, parameters, optimizers, config.clip_gradient, rate, remedy=f"Lower optim.{name}.lr", **how)


def optimizers_of(
    config: DictConfig, name: str, parameters: Mapping[str, nn.Parameter], lists: Sequence[str] = ()
) -> list[torch.optim.Optimizer]:
    """AdamW by the numbers of optim.<name>, and Muon for the matrices of blocks in these lists where it has a rate.

    ValueError where those are spread over processes.
    """
    keys = config.optim[name]
    if keys.get("muon_lr") is None:
        return [adamw(config, name, parameters)]
    inner = {n: p for n, p in parameters.items() if p.ndim == 2 and any(f".{of}." in f".{n}" for of in lists)}
    if any(map(is_sharded, inner.values())):
        raise ValueError(f"the {name} is spread over the processes, since it doesn't fit into one, but {WHOLE}")
    found: list[torch.optim.Optimizer] = []
    if inner:
        found.append(Muon(inner.values(), keys.muon_lr, keys.weight_decay, dtype=dtype_of(config, "dtype")))
    rest = {n: p for n, p in parameters.items() if n not in inner}
    return [*found, *([adamw(config, name, rest)] if rest else [])]


def adamw(config: DictConfig, name: str, parameters: Mapping[str, nn.Parameter]) -> torch.optim.AdamW:
    """AdamW by the numbers of optim.<name>."""
    keys = OmegaConf.to_container(config.optim[name], resolve=True)
    assert isinstance(keys, dict)
    keys.pop("muon_lr", None)
    trained = list(parameters.values())
    fused = all(p.device.type in ("cpu", "cuda") for p in trained)  # a third of the time on a CPU
    return torch.optim.AdamW(trained, **{**keys, "betas": tuple(keys["betas"])}, fused=fused)
