"""From a study's configuration to its settings, and the check of its rows' commands before any is run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from dollar.cli.arguments import as_they_stand
from dollar.cli.entry import ROOT, check_folder_for
from dollar.cli.overrides import check_overrides
from dollar.studies.content import Content
from dollar.studies.rows import groups_of, rows_of, seeds_of
from dollar.studies.settings import Settings, check

PATHS = ("work", "out")


def settings_of(config: DictConfig, content: Content) -> Settings:
    """The settings of a study's configuration; ValueError for what can't be."""
    given = cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))
    if given["only"] is not None and not isinstance(given["only"], list):
        raise ValueError(f"only is {given['only']}; write only=[{given['only']}]")
    groups = groups_of(given["groups"])
    read = {
        "rows": rows_of(given["rows"], groups, content.rewards, content.usual, content.steps),
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
