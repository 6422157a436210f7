"""What each part of V.I.P. does on the shapes world: `python launch/vip_ablation.py [key=value ...]`."""

from __future__ import annotations

from omegaconf import DictConfig

from dollar.cli.build.studies import check_commands, end_with, experiments_of, settings_of
from dollar.studies.engine import carry_out
from dollar.studies.vip import VIP, Smaller


def main(config: DictConfig) -> None:
    """Run what is missing, then write the page; exit code 2 when a job failed, 3 when stopped."""
    settings = settings_of(config, VIP)
    named = [row for row in settings.rows if any(word.startswith("experiment=") for word in row.overrides)]
    runs = Smaller(settings, VIP, experiments_of(named))
    end_with(runs, carry_out(runs, check_commands))
