"""A LoRA by the names of a model's authors, which ComfyUI reads, in place of diffusers'."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

PREFIX = "diffusion_model."
# Layers of the authors' model -> diffusers' layers that make it up, stacked along its output; {} is a block's number.
Layers = Mapping[str, Sequence[str]]


def by_original_names(lora: Mapping[str, Tensor], layers: Layers, outputs: Mapping[str, int]) -> dict[str, Tensor]:
    """A LoRA by diffusers' names with those of the authors: `diffusion_model.<layer>.lora_A.weight` and lora_B.

    outputs: the output features of each of diffusers' layers. A layer that is several of diffusers' gets their factors
    as one, A stacked and B along a diagonal, of the sum of their ranks: the same change, to the bit. There are no
    `.alpha`s, so that every reader takes B A as it is. ValueError for a layer that the authors' model doesn't have.
    """
    found: dict[str, Tensor] = {}
    left = {name.rpartition(".lora_")[0] for name in lora}
    for theirs, parts in layers.items():
        for block in _blocks(left, parts):
            names = [part.format(block) for part in parts]
            a, b = _joined(lora, names, outputs)
            layer = PREFIX + theirs.format(block)
            found |= {f"{layer}.lora_A.weight": a, f"{layer}.lora_B.weight": b}
            left -= set(names)
    if left:
        raise ValueError(
            f"the LoRA changes {sorted(left)[0]}, for which the model's authors have no layer; use lora_names=diffusers"
        )
    return found


def _blocks(names: set[str], parts: Sequence[str]) -> list[str]:
    """The numbers of the blocks in which one of these layers is."""
    patterns = [re.escape(part).replace(r"\{\}", r"(\d+)") for part in parts]
    found = {match[1] for name in names for pattern in patterns if (match := re.fullmatch(pattern, name))}
    return sorted(found, key=int)


def _joined(lora: Mapping[str, Tensor], names: Sequence[str], outputs: Mapping[str, int]) -> tuple[Tensor, Tensor]:
    """The factors A [sum of ranks, in] and B [out, sum of ranks] of several layers as one; one alone stays as it is."""
    factors = {
        n: (lora[f"{n}.lora_A.weight"], lora[f"{n}.lora_B.weight"]) for n in names if f"{n}.lora_A.weight" in lora
    }
    if len(names) == 1:
        return factors[names[0]]
    a = torch.cat([factor for factor, _ in factors.values()])
    b = a.new_zeros(sum(outputs[name] for name in names), len(a))
    row = column = 0
    for name in names:
        if name in factors:
            part = factors[name][1]
            b[row : row + part.shape[0], column : column + part.shape[1]] = part
            column += part.shape[1]
        row += outputs[name]  # what didn't change has zeros
    return a, b
