"""Train the embedded networks from nothing: `torchrun launch/pretrain.py [key=value ...]`; resumes when stopped."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from dollar.cli.entry import check_folder_for
from dollar.cli.places import Compared, is_below, known_now, place_keys, store, stored_at
from dollar.cli.same import check_same
from dollar.cli.settings import COMMANDS, free_keys


def main(config: DictConfig) -> None:
    """The teacher, a diffusers folder, or the small CLIP, a folder of transformers and of HPSv2's format."""
    from dollar.cli.build.pretraining import MAKERS, begun, check, decides, needless
    from dollar.cli.build.processes import join
    from dollar.cli.build.teacher import dtype_of, quiet
    from dollar.media import atomically
    from dollar.models.cogvideox import CogVideoX
    from dollar.models.pipeline import Pipeline
    from dollar.parallel.lock import Lock
    from dollar.parallel.world import finish

    work = Path(config.work)
    check_folder_for("out", Path(config.out))
    check_folder_for("work", work)
    stages = check(config, int(os.environ.get("WORLD_SIZE", 1)))
    stored = decides(config)
    for key in {"clip": ["autoencoder"], "deep": ["predictions_of"]}.get(config.make, ["init"]):
        if config[key] is not None:  # it says what is missing
            Pipeline(config[key], ["vae"] if config.make == "clip" else list(CogVideoX.classes), key=key)
    precision = dtype_of(config, "dtype")
    path, some = begun(config, work)
    plain: Any = OmegaConf.to_container(config, resolve=False)
    free = free_keys(COMMANDS["pretrain"])
    places = [key for key in place_keys(COMMANDS["pretrain"], plain) if not is_below(key, free)]
    if some:  # otherwise nothing could be lost
        compared = Compared(places, stored_at(path.parent), list(config.same))
        remove = "Give another folder with work=FOLDER, or remove this one"
        check_same(path, stored, remove, (*free, *needless(config.make)), config, compared)
    way_out = "name another folder with work=FOLDER"
    with closing(Lock(path.parent, int(os.environ.get("RANK", 0)), way_out, stays=False)) as lock:
        world = join(config)
        lock.join()
        if world.is_main:
            with atomically(path) as temporary:
                OmegaConf.save(OmegaConf.create(stored), temporary)
            store(path.parent, known_now(places, stored))
        quiet()
        MAKERS[config.make](config, work, stages, world, precision)
        finish(world)
