"""Train and measure students of 4, 2, 1, 8 and 16 steps: `python launch/few_step.py [key=value ...]`."""

from __future__ import annotations

from omegaconf import DictConfig

from dollar.cli.build.studies import check_commands, end_with, experiments_of, settings_of
from dollar.studies.engine import carry_out
from dollar.studies.few_step import FEW_STEPS, Recipes


def main(config: DictConfig) -> None:
    """Run what is missing, then write the page; exit code 2 when a job failed, 3 when stopped."""
    settings = settings_of(config, FEW_STEPS)
    runs = Recipes(settings, FEW_STEPS, experiments_of(settings.rows))
    end_with(runs, carry_out(runs, check_commands))
