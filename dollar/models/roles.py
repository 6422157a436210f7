"""Roles: what a network computes as, by its trainable parameters, so that several may share one base."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from torch import nn

from dollar.models.denoiser import Denoiser


@dataclass
class Role:
    """A denoiser that is trained, with its trainable parameters by name.

    use: the context in which the network computes as this role. It must be held through backward too, where activation
    checkpointing computes again. A network of its own needs none.
    """

    name: str
    denoiser: Denoiser
    parameters: dict[str, nn.Parameter]
    use: Callable[[], AbstractContextManager[Any]] = nullcontext


def trainable(network: nn.Module) -> dict[str, nn.Parameter]:
    """A network's trainable parameters by name."""
    return {name: p for name, p in network.named_parameters() if p.requires_grad}


def separate(name: str, denoiser: Denoiser) -> Role:
    """A role with a network of its own."""
    return Role(name, denoiser, trainable(denoiser.network))
