"""What a network costs: its parameters, and the operations and seconds of a forward."""

from __future__ import annotations

import time
from collections.abc import Mapping
from statistics import median
from typing import NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from dollar.models.teacher import Teacher


class Size(NamedTuple):
    """parameters: numbers; flops: multiplications and additions of one clip's forward; seconds: of that."""

    parameters: int
    flops: int
    seconds: float


@torch.no_grad()
def sizes(teacher: Teacher, networks: Mapping[str, nn.Module], repeats: int = 5) -> dict[str, Size]:
    """The sizes of networks of a teacher's kind, by name; their forwards are timed in turn, so that all meet the same.

    seconds: the median of `repeats` forwards of a single clip, after one that doesn't count.
    """
    device = teacher.device
    x, t = torch.randn(1, *teacher.latent_shape, device=device), teacher.grid(2)[1:2].to(device)
    condition = teacher.null(1)
    taken: dict[str, list[float]] = {name: [] for name in networks}
    operations: dict[str, int] = {}
    for name, network in networks.items():
        with FlopCounterMode(display=False) as counter:
            network(x, t, condition)
        operations[name] = counter.get_total_flops()
    for _ in range(repeats):
        for name, network in networks.items():
            _wait(device)
            start = time.perf_counter()
            network(x, t, condition)
            _wait(device)
            taken[name].append(time.perf_counter() - start)
    return {
        name: Size(sum(p.numel() for p in network.parameters()), operations[name], median(taken[name]))
        for name, network in networks.items()
    }


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def size_table(before: Size, after: Size) -> str:
    """Both sizes and what is left, as lines of text."""
    rows = [
        ("parameters", f"{before.parameters:,}", f"{after.parameters:,}", after.parameters / before.parameters),
        ("GFLOPs of a forward", f"{before.flops / 1e9:.4g}", f"{after.flops / 1e9:.4g}", after.flops / before.flops),
        ("milliseconds", f"{before.seconds * 1e3:.4g}", f"{after.seconds * 1e3:.4g}", after.seconds / before.seconds),
    ]
    lines = [f"{'':22}{'before':>16}{'after':>16}{'left':>8}"]
    return "\n".join(lines + [f"{name:22}{a:>16}{b:>16}{share:>8.1%}" for name, a, b, share in rows])
