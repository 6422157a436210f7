"""Train, measure and compare the ablation's rows: `python launch/ablation.py [seeds=3] [key=value ...]`."""

from __future__ import annotations

import sys

from omegaconf import DictConfig

from dollar.cli.build.studies import check_commands, settings_of
from dollar.studies.ablation import ABLATION
from dollar.studies.engine import carry_out
from dollar.studies.runs import Runs


def main(config: DictConfig) -> None:
    """Run what is missing, then write the document; exit code 2 when a job failed, 3 when stopped."""
    runs = Runs(settings_of(config, ABLATION), ABLATION)
    outcome = carry_out(runs, check_commands)
    print(f"the document is {runs.document}, its figures are in {runs.results}")
    for name, why in outcome.failed.items():
        print(f"failed: {name}: {why}", file=sys.stderr)
    if outcome.stopped:
        print(f"stopped; the same command{' without again=true' * config.again} goes on from there")
    if outcome.failed or outcome.stopped:
        sys.exit(2 if outcome.failed else 3)
