"""Train, measure and compare the ablation's rows: `python launch/ablation.py [seeds=3] [key=value ...]`."""

from __future__ import annotations

from omegaconf import DictConfig

from dollar.cli.build.studies import check_commands, end_with, settings_of
from dollar.studies.ablation import ABLATION
from dollar.studies.engine import carry_out
from dollar.studies.runs import Runs


def main(config: DictConfig) -> None:
    """Run what is missing, then write the document; exit code 2 when a job failed, 3 when stopped."""
    runs = Runs(settings_of(config, ABLATION), ABLATION)
    end_with(runs, carry_out(runs, check_commands))
