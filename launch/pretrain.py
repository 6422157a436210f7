"""Train the embedded teacher from nothing: `torchrun launch/pretrain.py [key=value ...]`; resumes when stopped."""

from __future__ import annotations

from pathlib import Path

from door import enter
from omegaconf import DictConfig, OmegaConf

PARTS = ("autoencoder", "teacher")


def main(config: DictConfig) -> None:
    """Autoencoder and teacher; writes a diffusers folder when both were trained."""
    if config.only not in (None, *PARTS):
        raise ValueError(f"only is {config.only!r}; use {' or '.join(PARTS)}, or null for both")
    from build import dtype_of, quiet

    from dollar.parallel.world import finish, start
    from dollar.pretraining import Cells, Stage, save_pipeline, train_autoencoder, train_teacher

    world = start(config.parallel.device, config.parallel.timeout_minutes)
    work = Path(config.work)
    names = ("decoder", "encoder", "finish", "teacher")
    stages = {name: Stage(**OmegaConf.to_container(config[name])) for name in names}  # type: ignore[arg-type]
    with quiet():
        cells = Cells.fit(config.seed)
        if config.only != "teacher":
            vae = train_autoencoder(work, stages, cells, config.seed, world)
        if config.only != "autoencoder":
            network, tokenizer = train_teacher(
                work,
                cells,
                stages["teacher"],
                config.seed,
                config.clips,
                config.text_length,
                config.drop_caption,
                config.ema,
                world,
                dtype_of(config, "dtype"),
            )
        if config.only is None and world.is_main:
            save_pipeline(Path(config.out), vae, network, tokenizer)
            print(f"the teacher is in {config.out}; its curves are in {work}")
    finish(world)


if __name__ == "__main__":
    enter(main, "pretrain")
