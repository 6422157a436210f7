"""A pruned student for plain diffusers: whole blocks in which the halves that are gone do nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dollar.models.pruned import Pruning
from dollar.models.teacher import Teacher

FORMS = ("dense", "slim")


class Dense(NamedTuple):
    """A network of whole blocks, and what of its teacher's it has."""

    network: nn.Module
    pruning: Pruning


def dense(teacher: Teacher, network: nn.Module, pruning: Pruning) -> Dense:
    """A network that computes the same with whole blocks: halves that are gone have weights of 0, so add nothing."""
    if not pruning.halves:
        return Dense(network, pruning)
    whole = replace(pruning, halves=())
    filled = teacher.empty_network(whole)
    read: dict[str, Tensor] = dict(network.named_parameters())
    for name, absent in filled.named_parameters():
        if name not in read:
            read[name] = torch.zeros(absent.shape, device=teacher.device)
    filled.load_state_dict(read, strict=False, assign=True)
    return Dense(filled.to(teacher.device).eval().requires_grad_(False), whole)
