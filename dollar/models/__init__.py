"""Networks behind one convention (x_t, t, condition) -> x_0: teachers of every family, codecs, text, rewards."""

from dollar.models.assemble import DTYPES, assemble
from dollar.models.codec import Codec
from dollar.models.cogvideox import CogVideoX
from dollar.models.denoiser import Condition, Denoiser, Network, Wrapped
from dollar.models.hunyuanvideo import HunyuanVideo
from dollar.models.latent_reward_model import LatentRewardModel
from dollar.models.ltx import LTX
from dollar.models.pipeline import Pipeline, Weights
from dollar.models.reward_models import RewardModel, load_reward_model, make_reward_model, save_reward_model
from dollar.models.teacher import Family, Teacher, VideoSpec
from dollar.models.teacher_reward_model import TeacherRewardModel
from dollar.models.text import TextEncoder
from dollar.models.wan import Wan

__all__ = [
    "DTYPES",
    "LTX",
    "Codec",
    "CogVideoX",
    "Condition",
    "Denoiser",
    "Family",
    "HunyuanVideo",
    "LatentRewardModel",
    "Network",
    "Pipeline",
    "RewardModel",
    "Teacher",
    "TeacherRewardModel",
    "TextEncoder",
    "VideoSpec",
    "Wan",
    "Weights",
    "Wrapped",
    "assemble",
    "load_reward_model",
    "make_reward_model",
    "save_reward_model",
]
