"""The latent reward: the pixel reward behind the decoder, its surrogate on latents, and the scored clips."""

from dollar.surrogate.latent_reward import LatentReward
from dollar.surrogate.memory import Observation
from dollar.surrogate.pixel_reward import PixelReward, Reward

__all__ = ["LatentReward", "Observation", "PixelReward", "Reward"]
