"""How many scored clips a latent reward model needs, form by form."""

from dollar.studies.reward_curve.content import REWARD_CURVE
from dollar.studies.reward_curve.runs import Fits

__all__ = ["REWARD_CURVE", "Fits"]
