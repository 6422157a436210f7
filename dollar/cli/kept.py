"""The settings of a command in the folder that it works in, so that the same command goes on there."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf

from dollar.cli.places import Compared, is_below, known_now, place_keys, store, stored_at
from dollar.cli.run_folders import CONFIG, to_store
from dollar.cli.same import check_same
from dollar.cli.settings import COMMANDS, free_keys
from dollar.media import atomically


class Kept(NamedTuple):
    """Settings as they are stored in a folder, and the keys of places that decide what comes out."""

    folder: Path
    settings: dict[str, Any]
    places: list[str]

    def store(self) -> None:
        """Write config.yaml and places.json."""
        with atomically(self.folder / CONFIG) as temporary:
            OmegaConf.save(OmegaConf.create(self.settings), temporary)
        store(self.folder, known_now(self.places, self.settings))


def kept_in(command: str, config: DictConfig, folder: Path, begun: bool) -> Kept:
    """The settings of a command; ValueError where the folder was begun with others, which it names.

    To be called before anything is built of the configuration, which changes it; begun: whether something is there
    that could be lost.
    """
    plain: Any = OmegaConf.to_container(config, resolve=False)
    free = free_keys(COMMANDS[command])
    places = [key for key in place_keys(COMMANDS[command], plain) if not is_below(key, free)]
    found = Kept(folder, to_store(config), places)
    if begun:
        way_out = "Name another folder with out=FOLDER, or remove this one"
        compared = Compared(places, stored_at(folder))
        check_same(folder / CONFIG, found.settings, way_out, free, config, compared)
    return found
