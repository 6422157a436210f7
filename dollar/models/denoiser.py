"""The one convention that every network is brought to: (x_t, t, condition) -> x_0."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from dollar.diffusion.denoise import DenoiseFunction, guide
from dollar.diffusion.prediction import Prediction
from dollar.diffusion.schedule import Schedule


class Condition(NamedTuple):
    """Prompt embeddings [B, L, D], their mask [B, L], 1 at real tokens, and where a family has one a pooled [B, P]."""

    embeddings: Tensor
    mask: Tensor
    pooled: Tensor | None = None

    def map(self, function: Callable[[Tensor], Tensor]) -> Condition:
        """The condition with every part replaced."""
        return Condition(*(None if part is None else function(part) for part in self))  # type: ignore[arg-type]

    def first(self, count: int) -> Condition:
        """The condition of the first `count` samples."""
        return self.map(lambda part: part[:count])

    def repeated(self, times: int) -> Condition:
        """The condition of `times` batches of the same samples, one after the other."""
        return self if times == 1 else self.map(lambda part: part.repeat(times, *[1] * (part.ndim - 1)))

    def replaced(self, where: Tensor, other: Condition) -> Condition:
        """The condition with that of another in the samples where `where` [B] is true."""

        def chosen(parts: list[Tensor]) -> Tensor:
            mine, theirs = parts
            return torch.where(where.to(mine.device).reshape(-1, *[1] * (mine.ndim - 1)), theirs, mine)

        return Condition.joined([self, other], chosen)

    @staticmethod
    def joined(conditions: Sequence[Condition], join: Callable[[list[Tensor]], Tensor] = torch.cat) -> Condition:
        """Several conditions as one, part by part."""
        parts: list[Any] = [None if p[0] is None else join(list(p)) for p in zip(*conditions, strict=True)]
        return Condition(*parts)


class Network(Protocol):
    """A family's adapter: the native output [B, C, F, H, W] for x_t [B, C, F, H, W], t [B] and a condition."""

    def __call__(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor: ...


class Wrapped(nn.Module):
    """A transformer of diffusers, to which a family's `Network` adds its way of being called."""

    transformer: Any

    def __init__(self, transformer: nn.Module) -> None:
        super().__init__()
        self.transformer = transformer

    @property
    def blocks(self) -> nn.ModuleList:
        """The repeated blocks, which parallelism shards and activation checkpointing wraps one by one."""
        return self.transformer.transformer_blocks

    @property
    def projection(self) -> nn.Linear:
        """The last layer, which gives the output."""
        projection: nn.Linear = self.transformer.proj_out
        return projection

    def hidden(self, x_t: Tensor, t: Tensor, condition: Condition, places: Sequence[int]) -> list[Tensor]:
        """The hidden states [B, N, dim] that the blocks at these places give; all of the network runs."""
        seen: dict[int, Tensor] = {}

        def keeper(place: int) -> Callable[..., None]:
            def keep(_: nn.Module, __: Any, output: Any) -> None:
                seen[place] = output[0] if isinstance(output, tuple) else output

            return keep

        blocks = list(self.blocks)
        # Only for this call. A backward pass that computes again does without them.
        handles = [blocks[place].register_forward_hook(keeper(place)) for place in places]
        try:
            self.forward(x_t, t, condition)
        finally:
            for handle in handles:
                handle.remove()
        return [seen[place] for place in places]

    def checkpoint_activations(self) -> None:
        """Recompute each block in the backward pass instead of keeping what is inside it."""
        self.transformer.enable_gradient_checkpointing()


@dataclass
class Denoiser:
    """A network with the schedule it was trained on and the meaning of its output.

    compute_dtype other than float32 runs the network under autocast; everything around it stays in float32.
    """

    network: nn.Module
    schedule: Schedule
    prediction: Prediction
    compute_dtype: torch.dtype = torch.float32

    def output(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """The native output, float32 [B, C, F, H, W]."""
        with self._autocast(x_t):
            return self.network(x_t, t, condition).float()

    def hidden(self, x_t: Tensor, t: Tensor, condition: Condition, places: Sequence[int]) -> list[Tensor]:
        """The hidden states that the blocks at these places give, float32 [B, N, dim] each."""
        with self._autocast(x_t):
            states = self.network.hidden(x_t, t, condition, places)  # type: ignore[operator]
        return [state.float() for state in states]

    def __call__(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """x_0, float32 [B, C, F, H, W]."""
        return self.prediction.x_0(x_t.float(), self.output(x_t, t, condition), t, self.schedule)

    def guided(self, x_t: Tensor, t: Tensor, condition: Condition, null: Condition, guidance_scale: float) -> Tensor:
        """x_0 with classifier-free guidance in diffusers' form: unconditional and conditional half in one batch."""
        if guidance_scale == 1:
            return self(x_t, t, condition)
        both = Condition.joined([null, condition])
        output = self.output(torch.cat([x_t, x_t]), torch.cat([t, t]), both)
        output_null, output_condition = output.chunk(2)
        guided = guide(output_condition, output_null, guidance_scale)
        return self.prediction.x_0(x_t.float(), guided, t, self.schedule)

    def given(
        self, condition: Condition, null: Condition | None = None, guidance_scale: float = 1.0
    ) -> DenoiseFunction:
        """This denoiser with its condition filled in: (x_t, t) -> x_0."""
        if null is None or guidance_scale == 1:
            return lambda x_t, t: self(x_t, t, condition)
        return lambda x_t, t: self.guided(x_t, t, condition, null, guidance_scale)

    def _autocast(self, x: Tensor) -> contextlib.AbstractContextManager[Any]:
        if self.compute_dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(x.device.type, self.compute_dtype)
