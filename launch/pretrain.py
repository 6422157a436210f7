"""Train the embedded teacher from nothing: `torchrun launch/pretrain.py [key=value ...]`; resumes when stopped."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from door import check_folder_for, enter
from omegaconf import DictConfig, OmegaConf
from same import check_same

CONFIG = "config.yaml"
FREE = ("out", "work", "parallel.device", "parallel.timeout_minutes", "teacher.steps")  # may change on going on


def check(config: DictConfig, processes: int) -> dict[str, Any]:
    """The stages by name; ValueError, naming the key, for what could only fail hours later."""
    from dollar.pretraining.autoencoder import STAGES
    from dollar.pretraining.stages import Stage

    if not 0 <= config.drop_caption <= 1:
        raise ValueError(f"drop_caption is {config.drop_caption}; it is a fraction, between 0 and 1")
    if not 0 <= config.ema < 1:
        raise ValueError(f"ema is {config.ema}; it is a decay, 0 (off) or more and below 1")
    for key, least in (("seed", 0), ("clips", 1), ("text_length", 1)):
        if config[key] < least:
            raise ValueError(f"{key} is {config[key]}; it must be at least {least}")
    stages = {}
    for name in (*STAGES, "teacher"):
        try:
            stages[name] = Stage(**OmegaConf.to_container(config[name]))  # type: ignore[arg-type]
        except ValueError as error:
            raise ValueError(f"{name}.{error}") from None
        if stages[name].batch < processes:
            raise ValueError(f"{name}.batch is {stages[name].batch}; each of the {processes} processes needs a clip")
    return stages


def main(config: DictConfig) -> None:
    """Autoencoder, then text encoder and transformer; writes a diffusers folder."""
    from build import dtype_of, quiet

    from dollar.media import atomically
    from dollar.models.cogvideox import CogVideoX
    from dollar.models.pipeline import Pipeline
    from dollar.parallel.world import finish, start
    from dollar.pretraining.autoencoder import train_autoencoder
    from dollar.pretraining.teacher import save_pipeline, train_teacher

    work = Path(config.work)
    check_folder_for("out", Path(config.out))
    check_folder_for("work", work)
    stages = check(config, int(os.environ.get("WORLD_SIZE", 1)))
    stored = OmegaConf.to_container(config, resolve=True)
    init = None if config.init is None else Path(config.init)
    if init is not None:
        Pipeline(init, list(CogVideoX.classes))  # it says what is missing
    precision = dtype_of(config, "dtype")
    if any(work.glob("*/state.safetensors")):  # otherwise nothing could be lost
        check_same(work / CONFIG, stored, FREE, {}, "Give another folder with work=FOLDER, or remove this one")
    world = start(config.parallel.device, config.parallel.timeout_minutes)
    if world.is_main:
        work.mkdir(parents=True, exist_ok=True)
        with atomically(work / CONFIG) as temporary:
            OmegaConf.save(OmegaConf.create(stored), temporary)
    quiet()
    vae = train_autoencoder(work, stages, config.seed, world, precision, init)
    network, tokenizer = train_teacher(
        work,
        vae,
        stages["teacher"],
        config.seed,
        config.clips,
        config.text_length,
        config.drop_caption,
        config.ema,
        world,
        precision,
        init,
    )
    if world.is_main:
        save_pipeline(Path(config.out), vae, network, tokenizer)
        print(f"the teacher is in {config.out}; its curves are in {work}")
    finish(world)


if __name__ == "__main__":
    enter(main, "pretrain")
