"""A discriminator of noised latents on the hidden states of a denoiser's blocks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dollar.models.denoiser import Condition, Denoiser
from dollar.models.teacher_reward_model import QueryHead, width_of


class Discriminator(nn.Module):
    """D(x_t, t, c), the larger the more it takes x_t for a noised real clip: the mean of heads on some blocks.

    trunk: whose hidden states it looks at; heads: how many of its blocks have one, evenly spaced up to the last;
    width: of a head; level: whether D has a constant of its own, on which differences don't depend. trained: whether
    the trunk's weights are this module's own and learn; else the heads alone do, and only where the latents carry a
    gradient is anything of the trunk held for its way back.
    """

    def __init__(self, trunk: Denoiser, heads: int, width: int, level: bool = True, trained: bool = False) -> None:
        super().__init__()
        blocks = len(list(trunk.network.blocks))  # type: ignore[arg-type]
        if not 1 <= heads <= blocks:
            raise ValueError(f"adversarial.heads is {heads}; this teacher has 1 to {blocks} blocks for a head each")
        self.trunk, self.trained = trunk, trained  # a dataclass, so not registered
        self.places = [(i + 1) * blocks // heads - 1 for i in range(heads)]
        if trained:
            self.network = trunk.network
        made = [QueryHead(width_of(trunk.network), width) for _ in range(heads)]
        for head in made if not level else ():
            head.out.register_parameter("bias", None)
        self.heads = nn.ModuleList(made)

    def forward(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """D [B], float32; x_t: [B, C, F, h, w], t: [B]; B may be several times the condition's number of samples."""
        condition = condition.repeated(len(x_t) // len(condition.mask))
        with torch.set_grad_enabled(torch.is_grad_enabled() and (self.trained or x_t.requires_grad)):
            states = self.trunk.hidden(x_t, t, condition, self.places)
        judged = [head(state) for head, state in zip(self.heads, states, strict=True)]
        return torch.stack(judged).mean(0).float()
