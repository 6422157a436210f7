"""A critic that distinguishes decoded clips from their originals, so that a decoder learns edges as sharp as theirs."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

FRAMES = 3  # consecutive frames that the critic sees together


class Critic(nn.Sequential):
    """How much each patch of 14 pixels and three frames looks like an original: [B', 1, H/2, W/2].

    It takes pixels [B, 3, T, H, W] in [-1, 1] with T of 3 or more; B' is B times the (T - 1) // 2 triples of frames.
    """

    def __init__(self, width: int = 32) -> None:
        super().__init__(
            nn.Conv2d(3 * FRAMES, width, 3, 1, 1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(width, 2 * width, 4, 2, 1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(2 * width, 2 * width, 3, 1, 1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(2 * width, 1, 3, 1, 1),
        )

    def forward(self, pixels: Tensor) -> Tensor:
        """Scores of the patches around every second frame."""
        neighbours = pixels.unfold(2, FRAMES, 2)  # [B, 3, T', H, W, 3]
        return super().forward(rearrange(neighbours, "b c t h w n -> (b t) (c n) h w")).float()


def adversarial_losses(critic: Critic, decoded: Tensor, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """The decoder's loss and the critic's; both [B, 3, T, H, W], the decoded clips and their originals.

    Each patch is compared with the same patch of its original (a relativistic pairing, arXiv:1807.00734), so the critic
    can only go by how it is drawn, not by what it shows. Neither loss has a gradient for the other's weights.
    """
    fixed = {name: weight.detach() for name, weight in critic.named_parameters()}
    original = functional_call(critic, fixed, (pixels,)).detach()
    for_decoder = F.softplus(original - functional_call(critic, fixed, (decoded,))).mean()
    for_critic = F.softplus(critic(decoded.detach()) - critic(pixels)).mean()
    return for_decoder, for_critic


def share_of(loss: Tensor, reference: Tensor, at: Tensor, share: float) -> Tensor:
    """The factor that makes the loss's gradient `share` times as large as the reference's at a tensor; no gradient."""
    own, other = (torch.autograd.grad(value, at, retain_graph=True)[0].norm() for value in (loss, reference))
    return share * other / own.clamp(min=1e-12)
