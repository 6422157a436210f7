"""A pruned student for plain diffusers: whole blocks in which the halves that are gone do nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import nn

from dollar.models.pruned import Pruning
from dollar.models.teacher import Teacher

FORMS = ("dense", "slim")


class Dense(NamedTuple):
    """A network of whole blocks, and what of its teacher's it has."""

    network: nn.Module
    pruning: Pruning


def dense(teacher: Teacher, network: nn.Module, pruning: Pruning) -> Dense:
    """A network that computes the same with whole blocks: every weight of a half that is gone is 0, so it adds "
    "nothing."
    if not pruning.halves:
        return Dense(network, pruning)
    whole = replace(pruning, halves=())
    filled = teacher.empty_network(whole)
    given = dict(network.named_parameters())
    read = {
        name: given.get(name, torch.zeros(empty.shape, device=teacher.device))
        for name, empty in filled.named_parameters()
    }
    filled.load_state_dict(read, strict=False, assign=True)
    return Dense(filled.to(teacher.device).eval().requires_grad_(False), whole)
