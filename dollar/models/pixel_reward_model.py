"""A reward model on the pixels that a small decoder makes of latents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from dollar.models.denoiser import Condition
from dollar.models.latent_reward_model import LatentRewardModel
from dollar.models.small_decoder import FrozenDecoder


class PixelRewardModel(nn.Module):
    """R(dec(x), c) of latents [B, C, F, h, w], in standardised units: the latent reward model's network on pixels.

    Only the network is a part of this module and trains with it. The decoder is fitted to the autoencoder by itself,
    and frozen here.
    """

    twice_differentiable = True

    def __init__(
        self,
        decoder: FrozenDecoder,
        text_dim: int | None = None,
        width: int = 64,
        temporal: str = "conv3d",
        groups: int = 8,
    ) -> None:
        super().__init__()
        self._decoder = [decoder]  # in a list, so not registered
        self.network = LatentRewardModel(3, text_dim, width, temporal, groups)
        self.card: dict[str, Any] = {**self.network.card, "backbone": "pixels", "decoder": decoder.card}

    @property
    def decoder(self) -> FrozenDecoder:
        """The decoder whose pixels it looks at."""
        return self._decoder[0]

    @property
    def out(self) -> nn.Linear:
        """The layer that gives the reward."""
        return self.network.out

    def forward(
        self,
        x: Tensor,
        condition: Condition | None = None,
        t: Tensor | None = None,
        held: Sequence[int] | None = None,
    ) -> Tensor:
        """The reward [B], float32; x: [B, C, F, h, w]; t is ignored; held: the latent frames that count."""
        return self.network(self._pixels(x, held), condition)

    def by_frame(self, x: Tensor, condition: Condition | None = None, held: Sequence[int] | None = None) -> Tensor:
        """The reward of each latent frame by itself [B, F]; of temporal=frames alone."""
        return self.network.by_frame(self._pixels(x, held), condition)

    def _pixels(self, x: Tensor, held: Sequence[int] | None) -> Tensor:
        """What the decoder makes of these latent frames [B, 3, F, H, W], near [-1, 1]."""
        return 2 * self.decoder.frozen(x, held).transpose(1, 2) - 1
