"""The mathematics of one diffusion step: schedules, predictions, denoising, timesteps and draws."""

from dollar.diffusion.denoise import DenoiseFunction, ddim_step, guide, posterior, sample, walk
from dollar.diffusion.draws import Draws
from dollar.diffusion.prediction import EPSILON, FLOW, PREDICTIONS, SAMPLE, Prediction
from dollar.diffusion.schedule import RectifiedFlow, Schedule, VariancePreserving, diffuse, expand_like, mean_flat
from dollar.diffusion.timesteps import FewStep, NoiseFunction, check_timesteps, consistency_function

__all__ = [
    "EPSILON",
    "FLOW",
    "PREDICTIONS",
    "SAMPLE",
    "DenoiseFunction",
    "Draws",
    "FewStep",
    "NoiseFunction",
    "Prediction",
    "RectifiedFlow",
    "Schedule",
    "VariancePreserving",
    "check_timesteps",
    "consistency_function",
    "ddim_step",
    "diffuse",
    "expand_like",
    "guide",
    "mean_flat",
    "posterior",
    "sample",
    "walk",
]
