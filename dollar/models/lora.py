"""What training changed in a transformer as a LoRA: the nearest matrices of low rank, layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

FILE = "pytorch_lora_weights.safetensors"  # the name that diffusers looks for


class Factors(NamedTuple):
    """A [rank, in] and B [out, rank]; the change that they stand for is B A."""

    a: Tensor
    b: Tensor


class Layer(NamedTuple):
    """Frobenius norms of one layer's change, and of what a LoRA leaves of it."""

    name: str
    changed: float
    left: float

    @property
    def residual(self) -> float:
        """The share that is left, from 0 to 1."""
        return self.left / self.changed


@dataclass
class Extracted:
    """A LoRA by diffusers' names, with what it leaves.

    layers: the layers that it covers, those least well first; uncovered: the norm of the change of every other tensor
    that did change, the largest first; spectrum: [n] float64, the squares of the layers' singular values, summed over
    the layers, the largest of each first.
    """

    rank: int
    tensors: dict[str, Tensor]
    layers: list[Layer]
    uncovered: dict[str, float]
    spectrum: Tensor

    @property
    def residual(self) -> float:
        """The share of the covered layers' change, in the Frobenius norm over all of them, that is left."""
        left, changed = (sum(getattr(layer, key) ** 2 for layer in self.layers) for key in ("left", "changed"))
        return (left / changed) ** 0.5

    @property
    def left_out(self) -> float:
        """The share of all that training changed, in the Frobenius norm, that the LoRA leaves: 0 is none of it."""
        left = sum(layer.left**2 for layer in self.layers) + self._uncovered
        return (left / (sum(layer.changed**2 for layer in self.layers) + self._uncovered)) ** 0.5

    def rank_for(self, left_out: float, covered: bool = False) -> int | None:
        """The smallest rank that leaves at most this share of all that training changed; None where no rank does.

        covered: of what it changed in the covered layers instead.
        """
        always, total = 0.0 if covered else self._uncovered, self.spectrum.sum()
        enough = total - torch.cumsum(self.spectrum, 0) + always <= left_out**2 * (total + always)
        return int(enough.nonzero()[0]) + 1 if enough.any() else None

    @property
    def _uncovered(self) -> float:
        return sum(norm**2 for norm in self.uncovered.values())


def low_rank(change: Tensor, rank: int) -> Factors:
    """The factors whose product is nearest to `change` [out, in] in the Frobenius norm (Eckart and Young), float32.

    A rank above what the matrix has is filled up with zeros, so that every layer of a LoRA has the same.
    """
    return _factors(torch.linalg.svd(change.float(), full_matrices=False), rank)


def _factors(svd: tuple[Tensor, Tensor, Tensor], rank: int) -> Factors:
    left, values, right = svd
    root = values[:rank].sqrt()
    a, b = root[:, None] * right[:rank], left[:, :rank] * root
    missing = rank - len(root)
    return Factors(nn.functional.pad(a, (0, 0, 0, missing)), nn.functional.pad(b, (0, missing)))


def linear_layers(transformer: nn.Module, blocks: Iterable[nn.Module]) -> list[str]:
    """The names of all linear layers in the repeated blocks."""
    inside = {id(module) for block in blocks for module in block.modules()}
    return [n for n, m in transformer.named_modules() if isinstance(m, nn.Linear) and id(m) in inside]


def largest_rank(transformer: nn.Module, blocks: Iterable[nn.Module]) -> int:
    """The largest rank that a change of any of these layers can have."""
    layers = dict(transformer.named_modules())
    return max(min(layers[name].weight.shape) for name in linear_layers(transformer, blocks))


@torch.no_grad()
def extract(
    transformer: nn.Module,
    blocks: Iterable[nn.Module],
    before: Callable[[str], Tensor],
    rank: int,
    dtype: torch.dtype = torch.float32,
    watch: Callable[[Sequence[str]], Iterable[str]] = iter,
) -> Extracted:
    """The LoRA of this rank, with alpha = rank, that takes `before` nearest to the transformer; one layer at a time.

    before: a parameter's value before training, by name; dtype: of what is stored, whose rounding counts as left;
    watch: wraps the names of all parameters, for a bar. A rank that no layer has is lowered to the largest of them,
    which leaves as much. ValueError where no linear layer of a block changed.
    """
    blocks = list(blocks)
    rank = min(rank, largest_rank(transformer, blocks))
    linear = {f"{name}.weight": name for name in linear_layers(transformer, blocks)}
    parameters = dict(transformer.named_parameters())
    tensors: dict[str, Tensor] = {}
    layers, uncovered, squares = list[Layer](), dict[str, float](), list[Tensor]()
    for full in watch(list(parameters)):
        now = parameters[full].float()
        change = now - before(full).to(now)
        if not (norm := float(torch.linalg.vector_norm(change))):
            continue
        if full not in linear:
            uncovered[full] = norm
            continue
        svd = torch.linalg.svd(change, full_matrices=False)
        squares.append(svd[1].double().square().cpu())
        a, b = (factor.to(dtype).contiguous() for factor in _factors(svd, rank))
        layers.append(Layer(linear[full], norm, float(torch.linalg.vector_norm(change - b.float() @ a.float()))))
        tensors |= {f"{linear[full]}.lora_A.weight": a.cpu(), f"{linear[full]}.lora_B.weight": b.cpu()}
    if not layers:
        raise ValueError("the student's blocks have the teacher's weights, so there is no LoRA to extract; train first")
    layers.sort(key=lambda layer: -layer.residual)
    spectrum = nn.utils.rnn.pad_sequence(squares).sum(1)
    return Extracted(rank, tensors, layers, dict(sorted(uncovered.items(), key=lambda item: -item[1])), spectrum)
