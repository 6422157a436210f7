"""From configuration to the embedded networks."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from dollar.cli.build.objects import as_text

CONFIG = "config.yaml"
SHARED = ("seed", "ema", "out", "work", "parallel")
# Keys that one thing to make reads alone, and all those that the teacher doesn't read.
ALONE = {"clip": ("clip", "pictures", "autoencoder"), "deep": ("deep", "deep_body", "predictions_of")}
# Keys that decide what is made; of the teacher all but ALONE's.
DECIDE = {
    "clip": (*SHARED, *ALONE["clip"]),
    "deep": (*SHARED, *ALONE["deep"], "init", "clips", "loss", "drop_caption", "text_length"),
}


def needless(make: str) -> list[str]:
    """The keys that what is made doesn't depend on."""
    own = ALONE.get(make, ())
    return ["make", *(key for keys in ALONE.values() for key in keys if key not in own)]


def check(config: DictConfig, processes: int) -> dict[str, Any]:
    """The stages by name; ValueError, naming the key, for what could only fail hours later."""
    from dollar.pretraining.autoencoder import STAGES
    from dollar.pretraining.clip import Pictures
    from dollar.pretraining.deep_teacher import Deep
    from dollar.pretraining.stages import Stage
    from dollar.pretraining.teacher import LOSSES

    if config.make not in MAKERS:
        raise ValueError(f"make is {config.make!r}; it is {' or '.join(MAKERS)}")
    for make, key in (("clip", "autoencoder"), ("deep", "predictions_of")):
        if config.make == make and config[key] is None:
            raise ValueError(f"{key} is null; make={make} needs a diffusers folder, such as dollar/assets/shapes")
    if not 0 <= config.drop_caption <= 1:
        raise ValueError(f"drop_caption is {config.drop_caption}; it is a fraction, between 0 and 1")
    if config.loss not in LOSSES:
        raise ValueError(f"loss is {config.loss!r}; use {' or '.join(LOSSES)}")
    if not 0 <= config.ema < 1:
        raise ValueError(f"ema is {config.ema}; it is a decay, 0 (off) or more and below 1")
    for key, least in (("seed", 0), ("clips", 1), ("text_length", 1)):
        if config[key] < least:
            raise ValueError(f"{key} is {config[key]}; it must be at least {least}")
    stages = {}
    for name in (*STAGES, "teacher", "clip", "deep"):
        try:
            stages[name] = Stage(**OmegaConf.to_container(config[name]))  # type: ignore[arg-type]
        except ValueError as error:
            raise ValueError(f"{name}.{error}") from None
        if stages[name].batch < processes:
            raise ValueError(f"{name}.batch is {stages[name].batch}; each of the {processes} processes needs a clip")
    for key, kind in (("pictures", Pictures), ("deep_body", Deep)):
        try:
            kind(**OmegaConf.to_container(config[key]))  # type: ignore[arg-type]
        except ValueError as error:
            raise ValueError(f"{key}.{error}") from None
    return stages


def begun(config: DictConfig, work: Path) -> tuple[Path, bool]:
    """The file that keeps the configuration, and whether any of its stages has begun."""
    from dollar.pretraining.stages import begun as stages_begun

    states = stages_begun(work)
    if config.make in ALONE:
        return work / config.make / CONFIG, config.make in states
    return work / CONFIG, any(name not in ALONE for name in states)


def decides(config: DictConfig) -> dict[str, Any]:
    """The configuration without the keys that only other things to make depend on."""
    stored: Any = as_text(OmegaConf.to_container(config, resolve=True))
    wanted = DECIDE.get(config.make, set(stored) - set(needless(config.make)))
    return {key: value for key, value in stored.items() if key in wanted}


def make_teacher(config: DictConfig, work: Path, stages: dict[str, Any], world: Any, precision: Any) -> None:
    """Autoencoder, then text encoder and transformer; writes a diffusers folder."""
    from dollar.pretraining.autoencoder import train_autoencoder
    from dollar.pretraining.teacher import save_pipeline, train_teacher

    init = None if config.init is None else Path(config.init)
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
        config.loss,
    )
    if world.is_main:
        save_pipeline(Path(config.out), vae, network, tokenizer)
        print(f"the teacher is in {config.out}; its curves are in {work}")


def make_clip(config: DictConfig, work: Path, stages: dict[str, Any], world: Any, precision: Any) -> None:
    """The small CLIP of docs/clip.md, and its measures."""
    from dollar.models.pipeline import Pipeline
    from dollar.pretraining.clip import Pictures, save_clip, train_clip
    from dollar.pretraining.clip_measures import measure
    from dollar.pretraining.teacher import shapes_codec

    vae = Pipeline(config.autoencoder, ["vae"]).read("vae", "AutoencoderKLCogVideoX").to(world.device)
    pictures = Pictures(**OmegaConf.to_container(config.pictures))  # type: ignore[arg-type]
    network, tokenizer = train_clip(work, vae, stages["clip"], pictures, config.seed, config.ema, world, precision)
    if world.is_main:
        out = Path(config.out)
        save_clip(out, network, tokenizer)
        (out / "metrics.json").write_text(
            json.dumps(measure(network, tokenizer, shapes_codec(vae), config.seed), indent=2)
        )
        print(f"the CLIP is in {config.out}, with its measures in metrics.json; its curves are in {work}")


def make_deep(config: DictConfig, work: Path, stages: dict[str, Any], world: Any, precision: Any) -> None:
    """The deeper teacher's transformer, which shares all else with the teacher whose predictions it learns."""
    from dollar.data import shapes
    from dollar.models.cogvideox import load
    from dollar.pretraining.deep_teacher import Deep, save_transformer, train_deep_teacher

    deep = Deep(**OmegaConf.to_container(config.deep_body))  # type: ignore[arg-type]
    teacher = load(
        name="shapes",
        folder=config.predictions_of,
        frames=shapes.FRAMES,
        height=shapes.HEIGHT,
        width=shapes.WIDTH,
        fps=shapes.FPS,
        guidance_scale=1.0,
        text_length=config.text_length,
        device=world.device,
    )
    init = None if config.init is None else Path(config.init) / "transformer"
    network = train_deep_teacher(
        work,
        teacher,
        stages["deep"],
        deep,
        config.seed,
        config.clips,
        config.drop_caption,
        config.ema,
        world,
        precision,
        init,
        config.loss,
    )
    if world.is_main:
        save_transformer(Path(config.out), network, teacher)
        print(f"the deeper teacher's transformer is in {config.out}; its curves are in {work}")


MAKERS: dict[str, Callable[..., None]] = {"teacher": make_teacher, "clip": make_clip, "deep": make_deep}
