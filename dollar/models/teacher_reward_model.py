"""A reward model on the teacher's own features: its first blocks, frozen, and a small head (PRFL, arXiv 2511.21541)."""

from __future__ import annotations

import copy
import hashlib
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from dollar.models.denoiser import Condition, Denoiser

HASHED = 1024  # numbers at the beginning of each tensor that a hash of weights reads


def first_blocks(network: nn.Module, count: int) -> nn.Module:
    """A family's network that ends after its first `count` blocks; every parameter is the network's own.

    What follows the blocks (a norm and a projection) still runs, on their hidden states. ValueError for a count that
    the network doesn't have.
    """
    blocks = list(network.blocks)  # type: ignore[arg-type]
    if not 1 <= count <= len(blocks):
        raise ValueError(f"lrm.blocks is {count}; this teacher has 1 to {len(blocks)} of them")
    cut, transformer = _shallow(network), _shallow(network.transformer)  # type: ignore[arg-type]
    kept, repeated = {id(b) for b in blocks[:count]}, {id(b) for b in blocks}
    for name, child in list(transformer.named_children()):
        # A family may have two kinds of blocks, in two lists that run one after the other.
        if isinstance(child, nn.ModuleList) and any(id(b) in repeated for b in child):
            transformer._modules[name] = nn.ModuleList([b for b in child if id(b) in kept])
    cut._modules["transformer"] = transformer
    return cut


def _shallow(module: nn.Module) -> nn.Module:
    """A copy that shares everything but the table of its children."""
    copied = copy.copy(module)
    copied.__dict__["_modules"] = dict(module._modules)
    return copied


class QueryHead(nn.Module):
    """One number of hidden states [B, N, dim]: a learned query attends to all positions, an MLP reads the result."""

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.query = nn.Parameter(torch.randn(width))
        self.key = nn.Linear(dim, width, bias=False)
        self.value = nn.Linear(dim, width)
        self.mix = nn.Linear(width, width)
        self.out = nn.Linear(width, 1)

    def forward(self, hidden: Tensor) -> Tensor:
        """[B] of hidden [B, N, dim]."""
        hidden = self.norm(hidden)
        query = self.query.expand(len(hidden), 1, -1)
        pooled = scaled_dot_product_attention(query, self.key(hidden), self.value(hidden))[:, 0]  # [B, width]
        # A sum, not a view, which one that is spread over the processes must not give.
        return self.out(pooled + nn.functional.silu(self.mix(pooled))).sum(1)


class TeacherRewardModel(nn.Module):
    """R(x_t, c, t) of latents [B, C, F, h, w] at any noise, in standardised units.

    teacher: whose first `blocks` blocks are looked through. Only the head trains, is counted and is saved: the blocks
    are the teacher's own and no part of this module. A gradient at x runs back through them, so their activations are
    held as long as one may be needed: about blocks / (all blocks) of what a student's forward holds. Without it, as
    in the head's own fit, nothing of them is held.
    """

    twice_differentiable = False  # families' attention has no second derivative

    def __init__(self, teacher: Denoiser, blocks: int, width: int = 128) -> None:
        super().__init__()
        if width < 1:
            raise ValueError(f"lrm.width is {width}; it must be at least 1")
        parameters = list(teacher.network.parameters())
        if any(hasattr(p, "device_mesh") for p in parameters):
            raise ValueError(
                "lrm.backbone is teacher, but this teacher's weights are spread over the processes, where all must run "
                "it at once; set parallel.shard_teacher=false, or lrm.backbone=cnn"
            )
        if any(p.is_meta for p in parameters):
            raise ValueError("lrm.backbone is teacher, but this teacher was built without its weights")
        self.trunk = replace(teacher, network=first_blocks(teacher.network, blocks))  # a dataclass, so not registered
        self.head = QueryHead(width_of(teacher.network), width)
        self.card: dict[str, Any] = {"backbone": "teacher", "blocks": blocks, "width": width}

    @property
    def precision(self) -> torch.dtype:
        """In which the blocks compute."""
        return self.trunk.compute_dtype

    @property
    def out(self) -> nn.Linear:
        """The layer that gives the reward."""
        return self.head.out

    def hidden(self, x: Tensor, condition: Condition, t: Tensor) -> Tensor:
        """The output of the last of the kept blocks, float32 [B, N, dim]."""
        return self.trunk.hidden(x.float(), t, condition, [-1])[0]

    def forward(self, x: Tensor, condition: Condition | None = None, t: Tensor | None = None) -> Tensor:
        """The reward [B], float32; x: [B, C, F, h, w]; t: [B], None for the schedule's least noisy time.

        ValueError without a condition, which the blocks read.
        """
        if condition is None:
            raise ValueError("this latent reward model looks through the teacher's blocks, which read a caption")
        if t is None:
            t = self.trunk.schedule.uniform(torch.zeros(len(x), device=x.device))
        return self.head(self.hidden(x, condition, t)).float()


def weights_hash(network: nn.Module) -> str:
    """A short hash of a network's weights as they are in memory, so that a merged LoRA makes it another one."""
    digest = hashlib.sha256()
    for name, parameter in sorted(network.named_parameters()):
        digest.update(name.encode())
        digest.update(parameter.detach().flatten()[:HASHED].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def width_of(network: nn.Module) -> int:
    """The width of a family's hidden states."""
    config = network.transformer.config  # type: ignore[union-attr]
    return int(config.num_attention_heads * config.attention_head_dim)  # type: ignore[operator, union-attr]
