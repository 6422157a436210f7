"""The size of the frames as JPEG files: a reward without a gradient, which says how much detail a clip has."""

from __future__ import annotations

import io
from collections.abc import Sequence

import torch
from torch import Tensor

from dollar.rewards.frames import FrameReward, Frames, check_frames, check_videos, pick


class JpegSize(FrameReward):
    """Kilobytes (1,000 bytes) of a frame compressed by JPEG, averaged over the frames, times `sign`.

    sign: 1 for incompressibility, -1 for compressibility, the two rewards of Black et al., Training diffusion models
    with reinforcement learning, 2023. The number grows with the frames' size, so compare clips of one size only.
    quality: JPEG's, 1 to 95. frames: how many evenly spaced frames of a clip are looked at (and decoded); "all" or None
    is all. Reads no caption.
    """

    reads_captions = False

    def __init__(self, sign: int = 1, quality: int = 95, frames: Frames = None) -> None:
        if sign not in (1, -1):
            raise ValueError(f"reward.sign is {sign}; give 1 for incompressibility or -1 for compressibility")
        if not 1 <= quality <= 95:
            raise ValueError(f"reward.quality is {quality}; JPEG has 1 to 95")
        self.name = "jpeg_incompressibility" if sign > 0 else "jpeg_compressibility"
        self.sign = sign
        self.quality = quality
        self.frames = check_frames(frames)

    def score_frames(self, videos: Tensor, prompts: Sequence[str]) -> Tensor:
        """[B, n], float32; videos [B, T, 3, H, W] in [0, 1]. A clip with pixels that are not finite gets nan."""
        check_videos(videos, "JPEG size")
        seen = pick(videos.detach(), self.frames).float().cpu()
        broken = ~seen.flatten(1).isfinite().all(1)
        levels = (255 * seen.nan_to_num().clamp(0, 1)).round().to(torch.uint8)
        sizes = [[self._kilobytes(frame) for frame in clip] for clip in levels]
        scores = self.sign * torch.tensor(sizes, dtype=torch.float32)
        return scores.masked_fill(broken[:, None], float("nan")).to(videos.device)

    def _kilobytes(self, frame: Tensor) -> float:
        """Size of one frame, uint8 [3, H, W]."""
        from PIL import Image

        file = io.BytesIO()
        Image.fromarray(frame.permute(1, 2, 0).numpy()).save(file, "JPEG", quality=self.quality)
        return file.tell() / 1000
