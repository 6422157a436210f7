"""From configuration to what a student is steered by: rewards, the latent reward model, further terms, the guard."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig

from dollar.guard import Guard
from dollar.latent_reward import LatentReward
from dollar.losses.term import Term
from dollar.models.reward_models import make_reward_model
from dollar.models.teacher import Teacher
from dollar.objective import Objective
from dollar.parallel.world import World
from dollar.pixel_reward import PixelReward


def terms_of(config: DictConfig) -> dict[str, Term]:
    """The further terms of the loss whose weight isn't 0."""
    made = {name: instantiate(node) for name, node in config.terms.items() if node is not None}
    if below := [name for name, term in made.items() if term.beta < 0]:
        raise ValueError(f"terms.{below[0]}.beta is {made[below[0]].beta}; a weight is 0 (off) or positive")
    return {name: term for name, term in made.items() if term.beta > 0}


def check_latent_reward(config: DictConfig) -> None:
    """Raise ValueError for keys of lrm that don't go together."""
    lrm = config.lrm
    if lrm.mode not in ("online", "pretrained", "frozen"):
        raise ValueError(f"lrm.mode is {lrm.mode!r}; use online, pretrained or frozen")
    if lrm.mode != "online" and lrm.path is None:
        raise ValueError(
            f"lrm.mode is {lrm.mode}, but lrm.path is null; give the folder of a latent reward model, which "
            "launch/fit_reward.py writes, or runs/<run>/lrm of another run"
        )
    if lrm.mode == "online" and lrm.path is not None:
        raise ValueError(f"lrm.path is {lrm.path}, but lrm.mode is online, which reads none; set lrm.mode=pretrained")
    if lrm.backbone == "teacher" and config.parallel.shard_teacher:
        raise ValueError(
            "lrm.backbone is teacher, but parallel.shard_teacher spreads the teacher's blocks; set one of them back"
        )


def guard_of(config: DictConfig) -> Guard:
    """The guard against over-optimisation; ValueError where it would have nothing to look at."""
    guard = Guard(config.guard.action, config.guard.patience, config.guard.tolerance, config.guard.factor)
    second, terms = config.guard.reward.get("_target_") is not None, terms_of(config)
    if not guard.active:
        return guard
    if config.validation.every == 0:
        raise ValueError(f"guard.action is {guard.action}, but validation.every is 0, so it would see nothing")
    if config.beta_ft == 0 and not any(term.needs for term in terms.values()):
        raise ValueError(f"guard.action is {guard.action}, but no term leads to a reward; set guard.action=none")
    if config.beta_ft == 0 and not second:
        raise ValueError(
            f"guard.action is {guard.action}, but the one reward that is pursued can't be its own guard; name a second "
            "one with reward@guard.reward=NAME"
        )
    return guard


def build_pixel_reward(node: DictConfig, teacher: Teacher) -> PixelReward | None:
    """The reward that a choice of conf/reward describes, behind the teacher's decoder; None for none."""
    return None if node.get("_target_") is None else PixelReward(instantiate(node), teacher.codec)


def build_latent_reward(
    config: DictConfig, teacher: Teacher, world: World, pixel: PixelReward | None, prompt: str = ""
) -> LatentReward:
    """The latent reward model with the pixel reward that it follows; prompt: any that the teacher can encode."""
    lrm = config.lrm
    if lrm.backbone == "cnn" and lrm.temporal == "frames" and getattr(pixel and pixel.reward, "sees_motion", False):
        print(f"note: {pixel.name} sees motion, which lrm.temporal=frames can't; conv3d can")  # type: ignore[union-attr]
    how = {"memory": lrm.memory, "gather": world.gather, "fit": lrm.fit}
    keys = {key: lrm[key] for key in ("backbone", "text", "width", "temporal", "groups", "blocks")}
    if lrm.mode != "online":
        read = LatentReward.from_folder(lrm.path, teacher, pixel, keys, **how)
        read.model.requires_grad_(lrm.mode == "pretrained")
        return read
    generator_state = torch.random.get_rng_state()
    torch.manual_seed(config.seed)  # the same first weights in every process
    model = make_reward_model(teacher, **keys, prompt=prompt).to(world.device)
    torch.random.set_rng_state(generator_state)
    schedule = teacher.denoiser.schedule
    return LatentReward(model, pixel, teacher.text, noised=tuple(lrm.noise), schedule=schedule, **how)  # type: ignore[arg-type]


def check_rewards(
    pursued: PixelReward | None, guard: PixelReward | None, captions: Iterable[str], teacher: Teacher, o: Objective
) -> None:
    """Raise ValueError where a reward can't judge the run's clips, or lacks the gradient that a term needs."""
    wanting = [name for name, term in o.terms.items() if term.needs == "gradient"]
    if wanting and pursued is not None and not pursued.differentiable:
        raise ValueError(
            f"the loss's {wanting[0]} needs the reward's gradient, and {pursued.name} has none; reach it through the "
            "latent reward model (loss=dollar) or by policy gradient (loss=ddpo)"
        )
    asked = list(dict.fromkeys(captions))
    frames, height, width = teacher.clip_shape
    gray = torch.full((1, frames, 3, height, width), 0.5, device=teacher.device)
    for pixel in (pursued, guard):
        if pixel is not None:
            check_captions(pixel.reward, asked)
            pixel.trial(gray, asked[:1])


def check_captions(reward: Any, captions: Iterable[str]) -> None:
    """Raise ValueError where a reward that knows which captions it can judge finds one that it can't."""
    if hasattr(reward, "check"):
        try:
            reward.check(dict.fromkeys(captions))
        except ValueError as error:
            raise ValueError(
                f"the reward {type(reward).__name__} can't judge these clips: {error} Name a reward that can, or train "
                "without one by reward=none beta_ft=0"
            ) from error
