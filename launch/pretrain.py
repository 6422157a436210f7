"""Train the embedded teacher from nothing: `torchrun launch/pretrain.py [key=value ...]`; resumes when stopped."""

from __future__ import annotations

from pathlib import Path

from door import check_folder_for, enter
from omegaconf import DictConfig, OmegaConf


def main(config: DictConfig) -> None:
    """Autoencoder, then text encoder and transformer; writes a diffusers folder."""
    from build import dtype_of, quiet

    from dollar.models.cogvideox import check_folder
    from dollar.parallel.world import finish, start
    from dollar.pretraining.autoencoder import STAGES, train_autoencoder
    from dollar.pretraining.stages import Stage
    from dollar.pretraining.teacher import save_pipeline, train_teacher

    work = Path(config.work)
    check_folder_for("out", Path(config.out))
    check_folder_for("work", work)
    if not 0 <= config.drop_caption <= 1:
        raise ValueError(f"drop_caption is {config.drop_caption}; it is a fraction, between 0 and 1")
    if config.seed < 0:
        raise ValueError(f"seed is {config.seed}; it must be at least 0")
    world = start(config.parallel.device, config.parallel.timeout_minutes)
    stages = {name: Stage(**OmegaConf.to_container(config[name])) for name in (*STAGES, "teacher")}  # type: ignore[arg-type]
    quiet()
    init = None if config.init is None else Path(config.init)
    if init is not None:
        check_folder(init)
    precision = dtype_of(config, "dtype")
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
