"""Parallelism put on a network from outside, in one order: activation checkpointing, then sharding (FSDP2)."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from dollar.parallel.world import World


class Blocks(Protocol):
    """What a family's adapter offers to parallelism."""

    @property
    def blocks(self) -> nn.ModuleList: ...

    def checkpoint_activations(self) -> None: ...


def parallelize(network: nn.Module, world: World, activation_checkpointing: bool = False) -> nn.Module:
    """Apply what was asked for to a family's network, in place, and return it."""
    if activation_checkpointing:
        network.checkpoint_activations()  # type: ignore[operator]
    if world.size > 1:
        for block in network.blocks:  # type: ignore[union-attr]
            fully_shard(block, mesh=world.mesh)
        # The root is resharded too: a forward without backward would leave its weights gathered and soon stale.
        fully_shard(network, mesh=world.mesh, reshard_after_forward=True)
    return network


def whole(tensor: Tensor) -> Tensor:
    """The full value of a tensor that may be sharded; every process must call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def assign(target: Tensor, value: Tensor) -> None:
    """Copy a full value into a tensor that may be sharded; every process must hold the value."""
    if isinstance(target, DTensor):
        placed = distribute_tensor(value.to(target.device, target.dtype), target.device_mesh, target.placements)
        target.to_local().copy_(placed.to_local())
    else:
        target.copy_(value)
