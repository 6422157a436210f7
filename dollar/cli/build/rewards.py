"""From configuration to what leads a student: rewards, the latent reward model, further terms, the guard."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from omegaconf import DictConfig

from dollar.cli.build.objects import instantiate
from dollar.log import logger
from dollar.losses.objective import Objective
from dollar.losses.reward_gradient import number_of
from dollar.losses.term import check_range
from dollar.models.reward_models import BACKBONES, make_reward_model, new_decoder, read_reward_card
from dollar.models.small_decoder import FrozenDecoder
from dollar.models.teacher import Teacher
from dollar.models.tiny_decoder import published
from dollar.parallel.world import World
from dollar.rewards.weights import check_names, locate, read_tensors
from dollar.surrogate.fitted_decoder import FittedDecoder
from dollar.surrogate.latent_reward import FITS, LatentReward, check_smooth
from dollar.surrogate.pixel_reward import PixelReward
from dollar.training.monitors.guard import Guard


def check_latent_reward(config: DictConfig, objective: Objective) -> None:
    """Raise ValueError for keys of lrm that don't go together."""
    lrm = config.lrm
    if lrm.mode not in ("online", "pretrained", "frozen"):
        raise ValueError(f"lrm.mode is {lrm.mode!r}; use online, pretrained or frozen")
    if lrm.mode == "online" and lrm.path is not None:
        raise ValueError(f"lrm.path is {lrm.path}, but lrm.mode is online, which reads none; set lrm.mode=pretrained")
    if lrm.backbone not in BACKBONES:
        raise ValueError(f"lrm.backbone is {lrm.backbone!r}; use {' or '.join(BACKBONES)}")
    if lrm.fit not in FITS:
        raise ValueError(f"lrm.fit is {lrm.fit!r}; use {' or '.join(FITS)}")
    noise_of(lrm), by_frames(lrm, None)
    check_smooth(lrm.smooth)
    if lrm.mode != "online" and not objective.needs.surrogate:
        raise ValueError(
            f"lrm.mode is {lrm.mode}, but beta_ft is 0, so no student would follow it; set beta_ft above 0"
        )
    if lrm.fit == "pairwise" and lrm.memory == 1 and not config.data.get("latents", True):
        raise ValueError(
            "lrm.fit=pairwise compares two clips of a sample, but this data has prompts alone and lrm.memory=1 keeps "
            "one; set lrm.memory=2 or more"
        )
    _check_decoder(config, objective)
    if lrm.backbone == "teacher" and config.parallel.shard_teacher:
        raise ValueError(
            "lrm.backbone is teacher, but parallel.shard_teacher spreads the teacher's blocks; set one of them back"
        )


def _check_decoder(config: DictConfig, objective: Objective) -> None:
    """Raise ValueError for a small decoder that would be another than the one given, or that nothing would fit."""
    lrm, path = config.lrm, config.decoder.path
    if lrm.mode != "online" and lrm.backbone == "pixels" and path is not None:
        raise ValueError(
            f"decoder.path is {path}, but the latent reward model of lrm.mode={lrm.mode} looks at the pixels of the "
            "small decoder that is stored with it; set decoder.path=null"
        )
    if lrm.mode == "frozen" and lrm.backbone != "pixels" and objective.needs.decoder and path is None:
        raise ValueError(
            "the loss looks through a small decoder (rg.decoder=small), but with lrm.mode=frozen none is fitted; give "
            "a published one by decoder.path, or set lrm.mode=pretrained or rg.decoder=full"
        )


def check_noise(lrm: DictConfig) -> None:
    """Raise ValueError where a stored latent reward model would be shown latents of another noise than in its fit."""
    card, wanted = read_reward_card(lrm.path), noise_of(lrm)
    stored = None if card.get("noise") is None else tuple(card["noise"])
    if stored == wanted or card["model"].get("backbone") != lrm.backbone:  # another backbone is reported elsewhere
        return
    fitted = "clean latents" if stored is None else f"latents at noise {list(stored)}"
    keys = "lrm.noised=false" if stored is None else f"lrm.noised=true and lrm.noise={list(stored)}"
    raise ValueError(
        f"the latent reward model in {lrm.path} was fitted to {fitted}, and here it would see "
        f"{'clean ones' if wanted is None else f'noise {list(wanted)}'}; set {keys}"
    )


def noise_of(lrm: DictConfig) -> tuple[float, float] | None:
    """The fractions of T between which latents are noised for a latent reward model; None for clean ones.

    ValueError for two that aren't.
    """
    check_range("lrm.noise", lrm.noise)
    return tuple(lrm.noise) if lrm.noised or lrm.backbone == "teacher" else None


def reads_text(lrm: DictConfig, reward: Any) -> bool:
    """Whether a latent reward model reads the caption; `auto` is as its reward (or the reward's class) does.

    Where the reward reads none, the words explain it and take the latents' part: the gradient is the worse for it.
    """
    if lrm.text != "auto":
        return bool(lrm.text)
    return bool(lrm.backbone == "teacher" or getattr(reward, "reads_captions", True))


def by_frames(lrm: DictConfig, pixel: PixelReward | None) -> bool:
    """Whether a latent reward model is fitted frame by frame; `auto` where that goes. ValueError where it can't."""
    trouble = ""
    if lrm.backbone == "teacher" or lrm.temporal != "frames":
        trouble = "only a model that averages over frames has some; set lrm.temporal=frames (pixels or cnn)"
    elif lrm.fit != "mse":
        trouble = f"lrm.fit={lrm.fit} compares clips, by their frames' mean; set lrm.fit=mse"
    elif pixel is not None and not pixel.by_frames:
        trouble = f"{pixel.name} gives a clip one number; name a reward that scores frame by frame"
    if lrm.targets == "frames" and trouble:
        raise ValueError(f"lrm.targets is frames, but {trouble}, or set lrm.targets=clip")
    return lrm.targets != "clip" and not trouble and pixel is not None


def note_motion(lrm: DictConfig, pixel: PixelReward | None) -> None:
    """Say where a latent reward model can't see what its reward looks at: of the teacher's blocks, each sees motion."""
    if lrm.backbone != "teacher" and lrm.temporal == "frames" and pixel is not None and pixel.sees_motion:
        logger.warning(f"note: {pixel.name} sees motion, which lrm.temporal=frames can't; conv3d can")


def guard_of(config: DictConfig, objective: Objective) -> Guard:
    """The guard against over-optimisation; ValueError where it would have nothing to look at."""
    keys = config.guard
    guard = Guard(keys.action, keys.patience, keys.tolerance, keys.factor, config.keep_best, rise=keys.rise)
    second = config.guard.reward.get("_target_") is not None
    if not guard.active:
        return guard
    if config.validation.every == 0:
        raise ValueError(f"guard.action is {guard.action}, but validation.every is 0, so it would see nothing")
    if not objective.needs.pursues:
        raise ValueError(f"guard.action is {guard.action}, but no term leads to a reward; set guard.action=none")
    tried = objective.needs.surrogate and config.lrm.mode != "frozen" and config.log.gradients_every > 0
    if keys.rise and not tried:
        raise ValueError(
            "guard.rise is true, but no step up a latent reward's gradient is tried; it needs beta_ft above 0, "
            "lrm.mode=online and log.gradients_every above 0, or guard.rise=false"
        )
    tries, looks = config.log.gradients_every, config.validation.every
    if keys.rise and tries > looks:
        raise ValueError(
            f"guard.rise is true, but log.gradients_every={tries} tries a step up the latent reward's gradient less "
            f"often than validation.every={looks} looks at it; set log.gradients_every={looks} or less, or "
            "guard.rise=false"
        )
    if not second and config.reward.get("_target_") is None:
        raise ValueError(
            f"guard.action is {guard.action}, but there is no reward that could fall; name one with "
            "reward@guard.reward=NAME"
        )
    if not objective.needs.surrogate and not second:
        raise ValueError(
            f"guard.action is {guard.action}, but the one reward that is pursued can't be its own guard; name a second "
            "one with reward@guard.reward=NAME"
        )
    return guard


class Rewards(NamedTuple):
    """The reward that a run pursues or looks at, and the one that guards it; None where there is none."""

    pursued: Any
    guard: Any


def rewards_of(config: DictConfig, objective: Objective) -> Rewards:
    """The rewards of a run, built before anything large is loaded, so that a wrong path is reported at once.

    None where nothing would use them.
    """
    used = objective.needs.pursues or config.validation.every > 0
    return Rewards(*(reward_of(node) if used else None for node in (config.reward, config.guard.reward)))


def reward_of(node: DictConfig) -> Any:
    """The reward that a choice of conf/reward describes; None for none."""
    return None if node.get("_target_") is None else instantiate(node)


def build_latent_reward(
    config: DictConfig,
    teacher: Teacher,
    world: World,
    pixel: PixelReward | None,
    prompt: str = "",
    decoder: FrozenDecoder | None = None,
) -> LatentReward:
    """The latent reward model with the pixel reward that it follows; prompt: any that the teacher can encode.

    decoder: a new small decoder for one that looks at its pixels.
    """
    lrm = config.lrm
    note_motion(lrm, pixel)
    how: dict[str, Any] = {"memory": lrm.memory, "gather": world.gather, "fit": lrm.fit, "smooth": lrm.smooth}
    keys = {key: lrm[key] for key in ("backbone", "width", "temporal", "groups", "blocks")}
    keys["text"] = reads_text(lrm, pixel and pixel.reward)
    if lrm.mode != "online":
        known = {key: value for key, value in keys.items() if key != "text" or lrm.text != "auto"}
        read = LatentReward.from_folder(lrm.path, teacher, pixel, known, **how)
        if lrm.targets not in ("auto", stored := "frames" if read.by_frames else "clip"):
            raise ValueError(
                f"the latent reward model in {lrm.path} was fitted with targets={stored}, and goes on so; set "
                f"lrm.targets={stored}, or auto"
            )
        follows = read_reward_card(lrm.path).get("reward")
        if pixel is not None and follows != pixel.name:
            raise ValueError(
                f"the latent reward model in {lrm.path} follows {follows}, and reward is {pixel.name}; name the reward "
                "that it follows, or fit another by launch/fit_reward.py"
            )
        read.model.requires_grad_(lrm.mode == "pretrained")
        if lrm.mode == "pretrained":
            read.updates = lrm.warmup  # it has been fitted before
        return read
    generator_state = torch.random.get_rng_state()
    torch.manual_seed(config.seed)  # the same first weights in every process
    model = make_reward_model(teacher, **keys, prompt=prompt, decoder=decoder).to(world.device)
    torch.random.set_rng_state(generator_state)
    how |= {"noised": noise_of(lrm), "schedule": teacher.denoiser.schedule, "by_frames": by_frames(lrm, pixel)}
    return LatentReward(model, pixel, teacher.text, **how)  # type: ignore[arg-type]


def build_decoder(config: DictConfig, teacher: Teacher, objective: Objective) -> FrozenDecoder | None:
    """A new small decoder where something in this run would look through it."""
    looks = objective.needs.surrogate and config.lrm.mode == "online" and config.lrm.backbone == "pixels"
    if not looks and not objective.needs.decoder:
        return None
    generator_state = torch.random.get_rng_state()
    torch.manual_seed(config.seed)
    decoder = started_decoder(config, teacher)
    torch.random.set_rng_state(generator_state)
    return decoder


def started_decoder(config: DictConfig, teacher: Teacher) -> FrozenDecoder:
    """A small decoder as its fit begins: new, or the published one of decoder.path; ValueError where that isn't one."""
    if config.decoder.path is None:
        return new_decoder(teacher)
    decoder = new_decoder(teacher, tiny=True)
    file = locate(config.decoder.path, "decoder.path", ("*",), "a file of the TAEHV family", fetch=False)
    if not file.is_file():
        raise ValueError(f"decoder.path is {file}, a folder; give the file in it, as {file}/taew2_1.pth")
    state = published(read_tensors(file, "decoder.path"), teacher.codec.ratio)
    check_names(decoder.state_dict(), state, file, f"a small decoder of {teacher.name}'s latents")
    decoder.load_state_dict(state)
    return decoder


def followed(config: DictConfig, teacher: Teacher, world: World, decoder: FrozenDecoder | None) -> FittedDecoder | None:
    """A small decoder with what it is fitted to."""
    if decoder is None:
        return None
    keys = config.decoder
    found = FittedDecoder(decoder, teacher.codec, keys.frames, keys.memory, world.gather)
    if decoder_is_fitted(config):
        found.updates = config.lrm.warmup
    return found


def decoder_is_fitted(config: DictConfig) -> bool:
    """Whether the small decoder was fitted before: a published one, or that of a stored latent reward model."""
    return config.decoder.path is not None or (config.lrm.mode != "online" and config.lrm.backbone == "pixels")


def check_rewards(
    pursued: PixelReward | None, guard: PixelReward | None, captions: Iterable[str], teacher: Teacher, o: Objective
) -> None:
    """Raise ValueError where a reward can't score the run's clips, or lacks the gradient that a term needs."""
    wanting = [name for name, term in o.terms.items() if term.needs.reward == "gradient"]
    if wanting and pursued is not None and not pursued.differentiable:
        raise ValueError(
            f"the loss's {wanting[0]} needs the reward's gradient, and {pursued.name} has none; reach it through the "
            "latent reward model (loss=dollar) or by policy gradient (loss=ddpo)"
        )
    distinct = list(dict.fromkeys(captions))
    frames, height, width = teacher.clip_shape
    gray = torch.full((1, frames, 3, height, width), 0.5, device=teacher.device)
    for pixel in (pursued, guard):
        if pixel is not None:
            check_captions(pixel.reward, distinct)
            pixel.trial(gray, distinct[:1])
    for name in wanting:
        if pursued is not None:
            count = number_of(getattr(o.terms[name], "frames", None))
            small = o.terms[name].needs.decoder  # it has a frame for each latent frame
            shown = min(count or frames, teacher.latent_shape[1] if small else frames)
            pursued.trial(gray[:, :shown], distinct[:1], gradient=True)
            if shown < frames and pursued.sees_motion:
                key = f"rg.frames={count}" if count == shown else "rg.decoder=small"
                logger.warning(f"note: {pursued.name} sees motion, and {key} shows it {shown} frames of {frames}")


def check_captions(reward: Any, captions: Iterable[str]) -> None:
    """Raise ValueError where a reward that knows which captions it can score finds one that it can't."""
    if hasattr(reward, "check"):
        try:
            reward.check(dict.fromkeys(captions))
        except ValueError as error:
            raise ValueError(
                f"the reward {type(reward).__name__} can't score these clips: {error} Name a reward that can, or train "
                "without one by reward=none beta_ft=0"
            ) from error
