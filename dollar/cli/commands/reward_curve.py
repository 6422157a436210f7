"""How many scored clips a latent reward model needs, form by form: `python launch/reward_curve.py [key=value ...]`."""

from __future__ import annotations

from omegaconf import DictConfig

from dollar.cli.build.studies import check_commands, end_with, settings_of
from dollar.studies.engine import carry_out
from dollar.studies.reward_curve import REWARD_CURVE, Fits


def main(config: DictConfig) -> None:
    """Run what is missing, then write the page; exit code 2 when a fit failed, 3 when stopped."""
    runs = Fits(settings_of(config, REWARD_CURVE), REWARD_CURVE)
    end_with(runs, carry_out(runs, check_commands))
