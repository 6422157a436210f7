"""Dynamic degree: how much moves in a clip, by optical flow that needs no weights."""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dollar.rewards.frames import check_videos

SIDE = 128  # pixels of the shorter side at which flow is found
PATCH, STRIDE = 16, 4  # of the flow; with the preset's patches of 8, patches slide along straight edges
FASTEST = 0.05  # the fraction of pixels, those that move most, over which a pair's motion is averaged


class DynamicDegree:
    """Speed of the 5 % of pixels that move most, in shorter sides of the frame a second, averaged over pairs of frames.

    Flow is OpenCV's dense inverse search (DIS, medium preset, patches of 16) on gray frames. VBench takes the same 5 %
    of RAFT's flow between frames an eighth of a second apart, and calls a clip dynamic or not; what a pair must exceed
    there is 6 pixels of 256, here threshold 0.19.
    How well it measures: a textured picture that slides by 1 to 8 pixels of 128 is read within 10 %, one that slides by
    half a pixel up to 20 % too high; objects of the shapes world, flat areas on flat backgrounds, 4 % too high with a
    deviation of 13 %; what stands still has 0.
    Pixels that change without moving have a flow too: on a still clip, new grain in every frame scores 0.13, as much as
    an object of the shapes world that moves, and noise in patches or a cut in every frame 1 to 2; only changes of
    brightness hardly count. So a student that is rewarded for this alone may learn to boil: watch Flicker, or mix them.

    fps: frames a second of the clips. apart: seconds between the two frames of a pair, at least a frame. threshold:
    None for the mean motion; a number for the share of pairs that move faster. Looks at every frame. Reads no caption.
    """

    sees_motion = True
    reads_captions = False

    def __init__(self, fps: float = 8, apart: float = 0.125, threshold: float | None = None) -> None:
        for name, value in (("fps", fps), ("apart", apart)):
            if not value > 0:
                raise ValueError(f"reward.{name} is {value}; give a number above 0")
        if threshold is not None and threshold < 0:
            raise ValueError(f"reward.threshold is {threshold}; give at least 0, or null for the mean motion")
        if importlib.util.find_spec("cv2") is None:
            raise ValueError("dynamic degree needs OpenCV, which is not installed; pip install opencv-python-headless")
        self.fps = fps
        self.gap = max(1, round(apart * fps))
        self.threshold = threshold

    def score(self, videos: Tensor, prompts: Sequence[str]) -> Tensor:
        """[B], float32; videos [B, T, 3, H, W] in [0, 1], T at least 2.

        A clip with pixels that are not finite gets nan.
        """
        check_videos(videos, "dynamic degree")
        if videos.shape[1] < 2:
            raise ValueError("dynamic degree compares frames, and these clips have one")
        clips = videos.detach().float().cpu()
        return torch.tensor([self._of_clip(clip) for clip in clips], dtype=torch.float32, device=videos.device)

    def _of_clip(self, clip: Tensor) -> float:
        """The score of one clip [T, 3, H, W], in float32 on the CPU."""
        cv2: Any = importlib.import_module("cv2")  # its type hints lack this flow
        if not bool(clip.isfinite().all()):
            return float("nan")
        flow = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
        flow.setPatchSize(PATCH)
        flow.setPatchStride(STRIDE)
        gap = min(self.gap, len(clip) - 1)
        frames = [_gray(frame) for frame in clip[::gap]]
        moved = np.array([_motion(flow.calc(a, b, None)) for a, b in itertools.pairwise(frames)])
        speed = moved * self.fps / gap
        return float(speed.mean() if self.threshold is None else (speed > self.threshold).mean())


def _gray(frame: Tensor) -> np.ndarray:
    """A frame [3, H, W] in [0, 1] as uint8 with SIDE pixels on its shorter side."""
    import cv2

    levels = (255 * frame.clamp(0, 1)).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
    height, width = levels.shape[:2]
    scale = SIDE / min(height, width)
    size = (round(width * scale), round(height * scale))
    gray: Any = cv2.cvtColor(levels, cv2.COLOR_RGB2GRAY)
    return cv2.resize(gray, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)


def _motion(flow: np.ndarray) -> float:
    """The mean length of the longest FASTEST of a flow [h, w, 2], in shorter sides."""
    length = np.hypot(flow[..., 0], flow[..., 1]).ravel()
    fastest = max(1, int(FASTEST * length.size))
    return float(np.partition(length, -fastest)[-fastest:].mean()) / SIDE
