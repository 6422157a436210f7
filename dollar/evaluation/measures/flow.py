"""Motion in pixels a frame: blocks of each frame are found again in the next one, to a fraction of a pixel."""

from __future__ import annotations

import itertools
import math

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional

from dollar.evaluation.measures.colour import luma

SIDE = 64  # pixels of the shorter side, or less than twice as many, at which motion is looked for
BLOCK = 8  # pixels of a block's side
REACH = 4  # the farthest that is looked along each axis, in pixels a frame
# The squared difference of luma that a displacement must save for each of its pixels, that of 2.5 levels of 255: a flat
# area stands still, whatever its noise.
STILL = 1e-4


def flow(videos: Tensor) -> Tensor:
    """Mean length of the blocks' motion, pixels a frame; videos [B, T, 3, H, W] in [0, 1], to [B], nan for one frame.

    A shifted pattern has exactly the shift, up to 4 pixels along an axis, and what stands still 0. Larger clips are
    made smaller by a whole factor first, and are looked at so much farther. A margin as wide as that has no blocks.
    Flat areas count as still, so this is a mean over the picture and not the speed of an object. Noise of 2 levels in
    each frame adds 0.03, of 4 levels 0.1; half the contrast takes about a tenth.
    """
    if videos.shape[1] < 2:
        return torch.full((len(videos),), math.nan, device=videos.device)
    factor = max(1, min(videos.shape[-2:]) // SIDE)
    gray = functional.avg_pool2d(luma(videos), factor)
    each = [displacements(clip[:-1], clip[1:]).norm(dim=-1).mean() for clip in gray]
    return factor * torch.stack(each)


def displacements(before: Tensor, after: Tensor) -> Tensor:
    """Where the blocks of frames before [N, H, W] are in after [N, H, W]: [N, h, w, 2] pixels down and across.

    The best whole displacement of each block, and from there one step of Lucas and Kanade's method.
    """
    size = min(BLOCK, *before.shape[1:])
    reach = min(REACH, (min(before.shape[1:]) - size) // 2)
    rows, columns = (n - 2 * reach - (n - 2 * reach) % size for n in before.shape[1:])  # of whole blocks
    patches = after.unfold(1, rows, 1).unfold(2, columns, 1)  # [N, down, across, rows, columns]
    ways = list(itertools.product(range(2 * reach + 1), repeat=2))
    blocks = before[:, reach : reach + rows, reach : reach + columns]
    costs = [
        functional.avg_pool2d((patches[:, down, across] - blocks).square(), size)
        + STILL * math.hypot(down - reach, across - reach)
        for down, across in ways
    ]
    best = torch.tensor(ways, device=before.device)[torch.stack(costs).argmin(0)]  # [N, h, w, 2]
    near = best.repeat_interleave(size, 1).repeat_interleave(size, 2)
    found = after[
        torch.arange(len(after), device=after.device)[:, None, None],
        torch.arange(rows, device=after.device)[:, None] + near[..., 0],
        torch.arange(columns, device=after.device) + near[..., 1],
    ]
    slopes = torch.stack(torch.gradient(before, dim=(1, 2)), -1)[:, reach : reach + rows, reach : reach + columns]
    moved: Tensor = best - reach + _step(slopes, blocks - found, size)
    return moved


def _step(slopes: Tensor, rest: Tensor, size: int) -> Tensor:
    """The displacement [N, h, w, 2] of each block of slopes [N, H, W, 2] that explains the rest [N, H, W] best.

    It is at most a pixel along an axis, and shrunk where slopes are as weak as noise.
    """
    slopes = rearrange(slopes, "n (h a) (w b) c -> n h w (a b) c", a=size, b=size)
    rest = rearrange(rest, "n (h a) (w b) -> n h w (a b) 1", a=size, b=size)
    normal = slopes.mT @ slopes / size**2 + STILL * torch.eye(2, device=slopes.device)
    step: Tensor = torch.linalg.solve(normal, slopes.mT @ rest / size**2)
    return step.squeeze(-1).clamp(-1, 1)
