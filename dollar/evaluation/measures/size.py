"""What a network costs: its parameters, and the operations and seconds of a forward."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from dollar.evaluation.measures.speed import in_turn
from dollar.models.teacher import Teacher


class Size(NamedTuple):
    """parameters: numbers; flops: multiplications and additions of one clip's forward; seconds: of that."""

    parameters: int
    flops: int
    seconds: float


@torch.no_grad()
def sizes(teacher: Teacher, networks: Mapping[str, nn.Module], repeats: int = 5) -> dict[str, Size]:
    """The sizes of networks of a teacher's kind, by name; their forwards are timed in turn, so that all meet the same.

    seconds: the median of `repeats` forwards of a single clip, after one that doesn't count; nan for no repeats.
    """
    x, t = torch.randn(1, *teacher.latent_shape, device=teacher.device), teacher.grid(2)[1:2].to(teacher.device)
    condition = teacher.null(1)
    operations: dict[str, int] = {}
    for name, network in networks.items():
        operations[name] = flops_of(partial(network, x, t, condition))
    forwards = {name: partial(network, x, t, condition) for name, network in networks.items()}
    taken = in_turn(forwards, repeats, teacher.device) if repeats else {}
    return {
        name: Size(
            sum(p.numel() for p in network.parameters()),
            operations[name],
            float(np.median(taken[name])) if repeats else math.nan,
        )
        for name, network in networks.items()
    }


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query, key, value))


# The CPU's own attention, which the counter doesn't know and would count as none.
ON_CPU = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention}


@torch.no_grad()
def flops_of(forward: Callable[[], object]) -> int:
    """The multiplications and additions of a forward's products of matrices, on either kind of device."""
    with FlopCounterMode(display=False, custom_mapping=ON_CPU) as counter:
        forward()
    return int(counter.get_total_flops())


def sizes_text(sizes: Mapping[str, Size]) -> str:
    """Sizes by name, and what each is of the first, as lines of text."""
    (first, *_) = sizes.values()
    rows = {
        "parameters": [(f"{size.parameters:,}", size.parameters / first.parameters) for size in sizes.values()],
        "GFLOPs of a forward": [(f"{size.flops / 1e9:.4g}", size.flops / first.flops) for size in sizes.values()],
        "milliseconds": [(f"{size.seconds * 1e3:.4g}", size.seconds / first.seconds) for size in sizes.values()],
    }
    lines = ["".ljust(22) + "".join(f"{name:>16}{'left':>8}" for name in sizes)]
    return "\n".join(
        [
            *lines,
            *(name.ljust(22) + "".join(f"{v:>16}{share:>8.1%}" for v, share in cells) for name, cells in rows.items()),
        ]
    )
