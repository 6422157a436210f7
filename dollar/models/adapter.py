"""A student that is a LoRA: two small trained factors added to each frozen linear layer of the blocks."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from dollar.models.lora import largest_rank, linear_layers

BASE, A, B = ".base_layer.", ".lora_A.default.", ".lora_B.default."  # what peft puts into the names


def add_lora(network: nn.Module, rank: int) -> nn.Module:
    """Give a family's network, whose parameters are on the meta device, a LoRA with alpha = rank.

    ValueError for a rank that no change of its layers has.
    """
    from peft import LoraConfig, inject_adapter_in_model

    if rank > (most := largest_rank(network.transformer, network.blocks)):  # type: ignore[arg-type]
        raise ValueError(
            f"student.lora is {rank}, and no change of this network's layers has a rank above {most}; give a smaller "
            "one, such as 32, or null for all weights"
        )
    layers = linear_layers(network.transformer, network.blocks)  # type: ignore[arg-type]
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=layers)
    inject_adapter_in_model(config, network.transformer, low_cpu_mem_usage=True)  # type: ignore[arg-type]
    return network


def is_lora(name: str) -> bool:
    """Whether a parameter belongs to a LoRA."""
    return A in name or B in name


def plain(name: str) -> str:
    """A frozen parameter's name in a network without a LoRA."""
    return name.replace(BASE, ".")


def start(name: str, shape: torch.Size) -> Tensor:
    """A LoRA's first values, which change nothing: A [rank, in] is drawn by its name, B [out, rank] is zero."""
    if B in name:
        return torch.zeros(shape)
    seed = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")
    bound = shape[1] ** -0.5
    return (2 * torch.rand(shape, generator=torch.Generator().manual_seed(seed)) - 1) * bound


def factors(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The LoRA among a network's weights, by the names that diffusers' files have."""
    names = {name: name.removeprefix("transformer.").replace(".default.", ".") for name in weights if is_lora(name)}
    return {theirs: weights[ours].contiguous() for ours, theirs in names.items()}


@torch.no_grad()
def with_factors(weights: Mapping[str, Tensor], lora: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A network's weights with a LoRA by diffusers' names added: W + B A. ValueError where the LoRA is of another."""
    found = dict(weights)
    for name in [n for n in lora if n.endswith(".lora_A.weight")]:
        layer = name.removesuffix(".lora_A.weight")
        full = f"transformer.{layer}.weight"
        if full not in found:
            raise ValueError(
                f"the LoRA changes {layer}, which this teacher doesn't have; give the teacher it came from"
            )
        found[full] = found[full] + (lora[f"{layer}.lora_B.weight"] @ lora[name]).to(found[full])
    return found


def merged(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of the network without a LoRA that computes the same: W + B A."""
    found = {}
    for name, value in weights.items():
        if is_lora(name):
            continue
        a, b = (weights.get(name.replace(BASE, part)) if BASE in name else None for part in (A, B))
        found[plain(name)] = value if a is None or b is None else value + b @ a
    return found
