"""What a surrogate's gradient is worth: small steps up it, scored by the pixel reward."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from dollar.diffusion.draws import Draws
from dollar.models.denoiser import Condition
from dollar.surrogate.latent_reward import LatentReward

Through = Callable[[Tensor, Condition, Draws], Tensor]  # what the gradient comes back through, of clips [B, ...]

SHARES = (0.01, 0.03, 0.1)  # of a latent's norm, how far `climb` goes


class Climb(NamedTuple):
    """What a step up the surrogate's gradient, a `share` of a clip's norm, brings: means over `clips` of the rise that
    it predicts and of the true one, and the latter's standard error; nan where no clip has a reward, or for the error
    only one has. cosine: of the gradient with the reward's own through the decoder, nan for a reward that has none."""

    share: float
    predicted: float
    true: float
    true_se: float
    clips: int
    cosine: float


def climb(
    surrogate: LatentReward,
    x: Tensor,
    prompts: Sequence[str],
    draws: Draws,
    known: Tensor | None = None,
    shares: Sequence[float] = SHARES,
    through: Through | None = None,
) -> list[Climb]:
    """Move x [B, C, F, h, w] up the gradient by shares of each clip's norm, and score it by surrogate and reward.

    A surrogate that ranks clips well may still have a poor gradient: the clips that it was fitted to say nothing
    of how the reward changes between them. A long step also measures how the reward bends, and for some it bends so
    soon that any long step costs. known: the pixel reward [B] of x, where it was computed already. through: what the
    surrogate looks at for its gradient, instead of the clip itself. Clips go through one by one, so that no more is
    held than for one.
    """
    assert surrogate.pixel is not None, "a surrogate without a pixel reward can't be compared with it"
    rises: dict[float, list[tuple[float, float]]] = {share: [] for share in shares}
    cosines = []
    for i, prompt in enumerate(prompts):
        clip, condition = x[i : i + 1].detach(), surrogate.encode_text([prompt])
        leaf, drawn = clip.clone().requires_grad_(), replace(draws, indices=draws.indices[i : i + 1])
        seen = leaf if through is None else through(leaf, condition, drawn)
        (gradient,) = torch.autograd.grad(surrogate.predict(seen, condition, drawn, "climb").sum(), leaf)
        before = surrogate.pixel.score(clip, [prompt]) if known is None else known[i : i + 1].cpu()
        cosines.append(_cosine(surrogate, clip, prompt, gradient))
        for share in shares:
            moved = clip + share * clip.norm() * (gradient / gradient.norm().clamp(min=1e-12))
            true = float(surrogate.pixel.score(moved, [prompt]) - before)
            with torch.no_grad():
                predicted = float(surrogate.predict(moved, condition) - surrogate.predict(clip, condition))
            if math.isfinite(true):
                rises[share].append((predicted, true))
    return [_climb(share, pairs, cosines) for share, pairs in rises.items()]


def _cosine(surrogate: LatentReward, clip: Tensor, prompt: str, gradient: Tensor) -> float:
    """The cosine of a gradient at a clip [1, C, F, h, w] with the pixel reward's own; nan where it has none."""
    pixel = surrogate.pixel
    if pixel is None or not getattr(pixel, "differentiable", False):
        return math.nan
    leaf = clip.clone().requires_grad_()
    try:
        reward = pixel.with_gradient(leaf, [prompt], pixel.frames)
        if not bool(reward.isfinite().all()):
            return math.nan
        (true,) = torch.autograd.grad(reward.sum(), leaf)
    except torch.OutOfMemoryError:  # the way through a large decoder, which this model is there to avoid
        return math.nan
    return float(cosine_similarity(true.flatten(), gradient.flatten(), 0))


def _climb(share: float, rises: Sequence[tuple[float, float]], cosines: Sequence[float]) -> Climb:
    """The means of (predicted, true) rises, and of the cosines that are numbers."""
    measured = torch.tensor(rises, dtype=torch.float64).reshape(-1, 2)
    error = float(measured[:, 1].std()) / math.sqrt(len(measured)) if len(measured) > 1 else math.nan
    predicted, true = measured.mean(0).tolist()
    cosine = float(torch.tensor(cosines, dtype=torch.float64).nanmean())
    return Climb(share, predicted, true, error, len(measured), cosine)
