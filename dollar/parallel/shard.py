"""Parallelism put on a network from outside, in one order: activation checkpointing, then sharding (FSDP2).

A network that fits is held whole by every process, which costs one exchange of gradients an update; sharding gathers
its weights for every forward, and is for networks that don't fit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from dollar.models.adapter import add_lora, is_lora, plain, start
from dollar.models.pruned import weights_in
from dollar.models.teacher import Teacher, is_empty
from dollar.parallel.world import World

TRAINED_BYTES = 20  # of a trained number: weight, gradient, two moments and, at most, its average
MOST = 0.5  # the share of a device's memory that whole networks may take; activations and frozen models need the rest


def fits_whole(size: int, available: int, fake: bool = True, lora: bool = False) -> bool:
    """Whether a process with so many bytes can hold teacher, student and, if any, fake score of `size` numbers whole.

    lora: whether the student is one, whose base is frozen and whose factors are few.
    """
    trained, frozen = fake + (not lora), 1 + lora
    return (TRAINED_BYTES * trained + 4 * frozen) * size <= MOST * available


def parallelize(
    network: nn.Module, world: World, activation_checkpointing: bool = False, shard: bool = True
) -> nn.Module:
    """Recompute activations and shard where that is wanted, in place; returns the network."""
    if activation_checkpointing:
        network.checkpoint_activations()  # type: ignore[operator]
    if shard and world.size > 1:
        for block in network.blocks:  # type: ignore[union-attr]
            fully_shard(block, mesh=world.mesh)
        # The root is resharded too: a forward without backward would leave its weights gathered and soon stale.
        fully_shard(network, mesh=world.mesh, reshard_after_forward=True)
        register_fsdp_forward_method(network, "hidden")
    return network


def spread(modules: Iterable[nn.Module], world: World) -> None:
    """Spread modules that are called by themselves over the processes, all of which hold the same weights."""
    for module in modules if world.size > 1 else ():
        fully_shard(module, mesh=world.mesh)


def trainable_copy(
    teacher: Teacher,
    world: World,
    activation_checkpointing: bool = False,
    lora: int | None = None,
    shard: bool = True,
    student: Path | None = None,
) -> nn.Module:
    """A network with the teacher's weights, to be trained: built without weights, sharded, then filled shard by shard.

    No process ever holds more of it than its own shard, or all of it with shard=False. lora: the rank of one that is
    trained in its place; student: a folder with the weights to begin with, of which units may have been taken out.
    """
    network = teacher.empty_network(teacher.pruning(student))
    weights = None if student is None else weights_in(student, network.transformer)  # type: ignore[arg-type]
    network = network if lora is None else add_lora(network, lora)
    network = parallelize(network, world, activation_checkpointing, shard)
    source = teacher.denoiser.network
    held, shapes = dict(source.named_parameters()), {name: p.shape for name, p in network.named_parameters()}

    def value(name: str, rows: slice) -> Tensor:
        if is_lora(name):
            return start(name, shapes[name])[rows]
        if weights is not None:
            return weights.read(plain(name).removeprefix("transformer."), rows)
        found = held[plain(name)]
        if not isinstance(found, DTensor):
            return found[rows]
        return found if shard else found.full_tensor()

    fill(network, teacher.device, value)
    ours = dict(network.named_buffers())
    for name, buffer in source.named_buffers():
        if name in ours:  # a block that is gone has none
            ours[name].copy_(buffer)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(lora is None or is_lora(name))
    return network


def fill_teacher(teacher: Teacher, world: World, spread: bool = False) -> None:
    """Give a teacher without weights its own, tensor by tensor onto the device, so that no copy lies elsewhere.

    spread: over the processes, each of which then reads only its own rows.
    """
    network = parallelize(teacher.denoiser.network, world) if spread else teacher.denoiser.network
    if is_empty(network):
        weights = teacher.pipeline.weights("transformer")
        fill(network, teacher.device, lambda name, rows: weights.read(name.removeprefix("transformer."), rows))
    network.eval().requires_grad_(False)


@torch.no_grad()
def fill(network: nn.Module, device: torch.device, read: Callable[[str, slice], Tensor]) -> None:
    """Give a network whose parameters are on the meta device their values, only this process's rows of each.

    read: (name, rows) -> those rows, or a tensor that is sharded in the same way.
    """
    buffers = {name: buffer.to(device) for name, buffer in network.named_buffers()}
    network.to_empty(device=device)
    for name, buffer in buffers.items():
        network.get_buffer(name).copy_(buffer)
    for name, parameter in network.named_parameters():
        value = read(name, rows_of(parameter))
        own(parameter).copy_(own(value))


def rows_of(tensor: Tensor) -> slice:
    """The rows of a tensor that this process holds; all of one that is not sharded."""
    if not isinstance(tensor, DTensor):
        return slice(None)
    size, rank = tensor.device_mesh.size(), tensor.device_mesh.get_local_rank()
    each = -(-tensor.shape[0] // size)  # as torch.chunk cuts
    return slice(min(rank * each, tensor.shape[0]), min((rank + 1) * each, tensor.shape[0]))


def is_sharded(tensor: Tensor) -> bool:
    """Whether each process holds only a part of a tensor."""
    return isinstance(tensor, DTensor)


def own(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor that may be sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


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
