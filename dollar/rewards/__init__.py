"""Pixel rewards, one a file: score(videos [B, T, C, H, W] in [0, 1], prompts) -> [B]."""

from dollar.rewards.aesthetic import Aesthetic
from dollar.rewards.clip_score import ClipScore
from dollar.rewards.colourfulness import Colourfulness
from dollar.rewards.dynamic_degree import DynamicDegree
from dollar.rewards.flicker import Flicker
from dollar.rewards.frame_consistency import FrameConsistency
from dollar.rewards.function import Function
from dollar.rewards.hpsv2 import HPSv2
from dollar.rewards.image_reward import ImageReward
from dollar.rewards.jpeg import JpegSize
from dollar.rewards.mixture import Mixture
from dollar.rewards.pickscore import PickScore
from dollar.rewards.shapes import ShapesVerifier
from dollar.rewards.video_score import VideoScore

__all__ = [
    "Aesthetic",
    "ClipScore",
    "Colourfulness",
    "DynamicDegree",
    "Flicker",
    "FrameConsistency",
    "Function",
    "HPSv2",
    "ImageReward",
    "JpegSize",
    "Mixture",
    "PickScore",
    "ShapesVerifier",
    "VideoScore",
]
