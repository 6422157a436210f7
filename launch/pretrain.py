"""Train the embedded teacher from nothing: `torchrun launch/pretrain.py [key=value ...]`; resumes when stopped."""

from __future__ import annotations

from pathlib import Path

from door import enter
from omegaconf import DictConfig, OmegaConf


def main(config: DictConfig) -> None:
    """Autoencoder, then teacher; writes a diffusers folder."""
    from build import dtype_of, quiet

    from dollar.models.codec import Codec
    from dollar.parallel.world import finish, start
    from dollar.pretraining import Stage, save_pipeline, train_autoencoder, train_teacher

    world = start(config.parallel.device, config.parallel.timeout_minutes)
    work = Path(config.work)
    stages = {name: Stage(**OmegaConf.to_container(config[name])) for name in ("windows", "whole", "teacher")}  # type: ignore[arg-type]
    with quiet():
        vae = train_autoencoder(work, stages["windows"], stages["whole"], config.seed, world)
        if world.is_main:
            vae.save_pretrained(work / "vae")
        codec = Codec(vae, vae.config.scaling_factor, chunk=4)
        network, tokenizer = train_teacher(
            work,
            codec,
            stages["teacher"],
            config.seed,
            config.clips,
            config.text_length,
            config.drop_caption,
            config.ema,
            world,
            dtype_of(config, "dtype"),
        )
        if world.is_main:
            save_pipeline(Path(config.out), vae, network, tokenizer)
            print(f"the teacher is in {config.out}; its curves are in {work}")
    finish(world)


if __name__ == "__main__":
    enter(main, "pretrain")
