"""From configuration to what a run's samples come from."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from omegaconf import DictConfig, OmegaConf

from dollar.cli.build.objects import instantiate
from dollar.cli.written import exists, is_enclosed, pieces
from dollar.data.latents import Fit, Samples
from dollar.data.mixture import shares
from dollar.data.shards import listed
from dollar.models.teacher import Teacher
from dollar.parallel.world import World


def check_data(config: DictConfig) -> None:
    """Raise ValueError for numbers of conf/data that can't be."""
    data = config.data
    for key in ("cache", "cache_bytes", "block_bytes"):
        if data.get(key, 0) < 0:
            raise ValueError(f"data.{key} is {data[key]}; it must be at least 0")
    if "clips" not in data and (several := _several(data.get("path"))):
        raise ValueError(f"data.path is {several}; it is one place here. data=mixture takes several, of shards")
    if data.get("weights") is not None and data.get("paths") is not None:
        shares(data.weights, len(listed(data.paths)))
    if config.teacher.get("text") == "stored" and data.get("text") is None:
        raise ValueError("teacher.text is stored, but this data stores none; use data=latents, or teacher.text=online")


def _several(path: Any) -> list[str]:
    """The places of a list that was given where one is taken, [] where it is one."""
    if isinstance(path, str) and is_enclosed(path, "[") and not exists(path):
        return pieces(path.strip()[1:-1], ",")
    return list(path) if OmegaConf.is_list(path) else []


def build_data(config: DictConfig, teacher: Teacher, world: World) -> Samples:
    """The samples of conf/data, in the teacher's sizes and with the run's seed.

    Clips are looked into by one process of each machine; the others read what it found.
    """
    fit = Fit(
        encode=teacher.codec.encode,
        normalise=lambda latents: teacher.codec.normalise(latents.to(teacher.device)),
        shape=teacher.latent_shape,
        fingerprint=lambda: made_with(teacher),
        seed=config.seed,
    )

    def make() -> Samples:
        # Of a copy, for it resolves whole nodes that are repeated where they stand.
        return instantiate(deepcopy(config).data.samples, _convert_="all")(fit)

    return world.first_here(make) if config.data.get("clips") is not None else make()


def made_with(teacher: Teacher) -> dict[str, Any]:
    """What stored latents must agree with: the autoencoder, and clips of the teacher's speed."""
    found = {k: v for k, v in teacher.fingerprint().items() if not k.startswith(("text", "tokenizer"))}
    return {**found, "fps": float(teacher.fps)}


def some_captions(data: Samples, most: int = 100_000) -> list[str]:
    """Different captions from all over the data, all of them where they aren't too many to hold."""
    return list(dict.fromkeys(data.captions[:: 1 + len(data) // most]))
