"""How frames of any size become the squares that image models read, as their publishers did it.

Publishers read pictures of 8 bits. So frames are rounded to 256 levels, unless a gradient must come back through them.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional


def crop(frames: Tensor, shortest: int, size: int, nearest: bool = False) -> Tensor:
    """[N, 3, size, size], float32: the shorter side scaled to `shortest` by a bicubic, then the middle cut out.

    frames: [N, 3, H, W] in [0, 1]. Without gradient it is done in 8 bits by PIL, as CLIP's own image processor does;
    with one in float32, which is nearly the same.
    """
    height, width = frames.shape[-2:]
    new = [int(shortest * side / min(height, width)) for side in (height, width)]
    top, left = (round((side - size) / 2) if nearest else (side - size) // 2 for side in new)
    if frames.requires_grad and torch.is_grad_enabled():
        scaled = _bicubic(frames.float(), new).clamp(0, 1)  # what overshoots is cut in 8 bits as well
    else:
        scaled = _pil_bicubic(frames, new)
    return scaled[:, :, top : top + size, left : left + size]


def pad(frames: Tensor, size: int) -> Tensor:
    """[N, 3, size, size], float32: the longer side scaled to `size` by a bicubic, black on both sides of the shorter.

    frames: [N, 3, H, W] in [0, 1]. Scaled in float32, what overshoots is kept, and black goes in before normalising.
    """
    if not (frames.requires_grad and torch.is_grad_enabled()):
        frames = (255 * frames.float()).round() / 255
    height, width = frames.shape[-2:]
    scale = size / max(height, width)
    new = [max(1, round(side * scale)) for side in (height, width)]
    top, left = (size - new[0]) // 2, (size - new[1]) // 2
    scaled = _bicubic(frames.float(), new)
    return functional.pad(scaled, (left, size - new[1] - left, top, size - new[0] - top))


def _bicubic(frames: Tensor, size: list[int]) -> Tensor:
    return functional.interpolate(frames, size=size, mode="bicubic", align_corners=False, antialias=True)


def _pil_bicubic(frames: Tensor, size: list[int]) -> Tensor:
    from PIL import Image

    levels = (255 * frames.detach().float()).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    pictures = [Image.fromarray(picture).resize((size[1], size[0]), Image.Resampling.BICUBIC) for picture in levels]
    scaled = torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures]))
    return scaled.to(frames.device).permute(0, 3, 1, 2).float() / 255
