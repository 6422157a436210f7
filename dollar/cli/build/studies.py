"""From a study's configuration to its settings, and the check of its rows' commands before any is run."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from dollar.cli.arguments import as_they_stand
from dollar.cli.entry import ROOT, check_folder_for
from dollar.cli.overrides import CONF, check_overrides
from dollar.studies.content import Content
from dollar.studies.few_step.runs import experiment_of, place_of_experiment
from dollar.studies.jobs import Outcome
from dollar.studies.rows import Row, groups_of, rows_of, seeds_of
from dollar.studies.runs import Runs
from dollar.studies.settings import Settings, check

PATHS = ("work", "out")


def settings_of(config: DictConfig, content: Content) -> Settings:
    """The settings of a study's configuration; ValueError for what can't be."""
    given = cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))
    if given["only"] is not None and not isinstance(given["only"], list):
        raise ValueError(f"only is {given['only']}; write only=[{given['only']}]")
    groups = groups_of(given["groups"])
    rows = given["rows"] if content.rows is None else content.rows(given)
    read = {
        "rows": rows_of(rows, groups, content.rewards, content.usual, content.steps),
        "groups": groups,
        "seeds": seeds_of(given["seeds"]),
        "only": given["only"] or (),
        "root": ROOT,
        **{key: Path(given[key]) for key in PATHS},
    }
    plain = {key: value for key, value in given.items() if key in Settings.__dataclass_fields__}
    settings = Settings(**{**plain, **read})
    check(settings)
    for key in reversed(PATHS):
        check_folder_for(key, getattr(settings, key))
    return settings


def experiments_of(rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """What the experiments of these rows hold, by their names; ValueError for a row without one."""
    places = {experiment_of(row): place_of_experiment(CONF / "experiment", row) for row in rows}
    return {name: cast(Any, OmegaConf.to_container(OmegaConf.load(place))) for name, place in places.items()}


def end_with(runs: Runs, outcome: Outcome) -> None:
    """Say where the document is and what failed; exit code 2 when a job failed, 3 when stopped."""
    print(f"the document is {runs.document}, its figures are in {runs.results}")
    for name, why in outcome.failed.items():
        print(f"failed: {name}: {why}", file=sys.stderr)
    if outcome.stopped:
        print(f"stopped; the same command{' without again=true' * runs.settings.again} goes on from there")
    if outcome.failed or outcome.stopped:
        sys.exit(2 if outcome.failed else 3)


def check_commands(commands: Sequence[tuple[str, Sequence[str]]]) -> None:
    """Raise ValueError for a row, by its name, whose keys its command would refuse."""
    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()  # each check composes a configuration of its own
    for name, command in commands:
        script = Path(command[1])
        try:
            check_overrides(script.stem, as_they_stand(script.stem, command[2:]))
        except ValueError as error:
            raise ValueError(f"the row {name}, {script.name}: {error}") from None
