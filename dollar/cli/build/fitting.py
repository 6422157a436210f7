"""From configuration to a latent reward model's own fit."""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import time
from collections.abc import Sequence
from contextlib import closing, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from dollar.cli.build.optimizers import adamw, check_optimizers
from dollar.cli.build.rewards import by_frames, noise_of, note_motion, reads_text, started_decoder
from dollar.cli.code import code_of
from dollar.cli.declared import flat
from dollar.cli.places import CODE, by_content, held_below
from dollar.cli.settings.commands import FitReward
from dollar.data.latents import Samples
from dollar.diffusion.draws import Draws
from dollar.log import logger
from dollar.losses.latent_reward import denoised
from dollar.losses.term import check_range
from dollar.methods.surrogate_alone import SurrogateAlone
from dollar.models.denoiser import Condition
from dollar.models.reward_models import make_reward_model
from dollar.models.roles import trainable
from dollar.models.teacher import Teacher
from dollar.models.teacher_reward_model import weights_hash
from dollar.parallel import checkpoint
from dollar.parallel.lock import Lock
from dollar.parallel.shard import assign
from dollar.parallel.signals import STOPPED
from dollar.parallel.world import World
from dollar.surrogate.climb import Climb, Through
from dollar.surrogate.fit import Rows, climb_of, figures_of, remember, steepness_of
from dollar.surrogate.fitted_decoder import FittedDecoder
from dollar.surrogate.latent_reward import LatentReward
from dollar.surrogate.observations import Observations, Scoring
from dollar.surrogate.pixel_reward import PixelReward
from dollar.training.learner import Learner
from dollar.training.log import Log
from dollar.training.loop import Loop, Timetable
from dollar.training.lr_schedule import falling
from dollar.training.monitors.best import Best
from dollar.training.monitors.least_steep import LeastSteep

# Keys whose change begins no fit anew.
FREE = ("out", "observations", "climb", "climb_noise", "parallel", "save_every")


class Fitted(NamedTuple):
    """Where the chosen model was found: after `step` updates of `steps`, in `seconds`."""

    step: int
    steps: int
    seconds: float


def check(config: DictConfig) -> None:
    """Raise ValueError for what could only fail after the clips are scored."""
    if config.reward.get("_target_") is None:
        raise ValueError("reward=none gives nothing to fit; name a reward, such as reward=shapes")
    for key, least in (
        ("clips", 0),
        ("made_clips", 0),
        ("climb", 0),
        ("seed", 0),
        ("steps", 1),
        ("batch", 1),
        ("every", 1),
        ("save_every", 1),
        ("decoder.clips", 1),
        ("decoder.frames", 1),
        ("decoder.steps", int(config.decoder.path is None)),
    ):
        if OmegaConf.select(config, key) < least:
            raise ValueError(f"{key} is {OmegaConf.select(config, key)}; it must be at least {least}")
    if config.patience < 1:
        raise ValueError(f"patience is {config.patience}; it must be at least 1")
    for key in ("held_out", "watched"):
        if not 0 < config[key] < 1:
            raise ValueError(f"{key} is {config[key]}; it is a fraction of the clips, between 0 and 1")
    if config.tolerance < 0:
        raise ValueError(f"tolerance is {config.tolerance}; it is a difference of R^2, 0 or more")
    if not 0 <= config.decay_from <= 1:
        raise ValueError(f"decay_from is {config.decay_from}; it is a fraction of the steps, 1 for a rate that stays")
    if any(not isinstance(steps, int) or steps < 1 for steps in config.made):
        raise ValueError(f"made is {list(config.made)}; it is a list of step counts, such as [1,4]")
    if len(set(config.made)) < len(config.made):
        raise ValueError(f"made is {list(config.made)}; give each step count once")
    real = config.clips if config.data.get("latents", True) else 0
    if real == 0 and config.made_clips * len(config.made) == 0:
        raise ValueError("there are no clips to fit on: give clips by data, or let the teacher make some (made_clips)")
    if config.teacher.get("text") == "stored" and config.data.get("text") is None:
        raise ValueError("teacher.text is stored, but this data stores none; use data=latents, or teacher.text=online")
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise ValueError("this command runs in one process; start it by python, without torchrun")
    noise_of(config.lrm), by_frames(config.lrm, None)
    if config.fit_on is not None and config.fit_on < 4:
        raise ValueError(f"fit_on is {config.fit_on}; it must be at least 4, for some clips choose the best update")
    if config.climb_noise is not None:
        check_range("climb_noise", config.climb_noise)
    check_optimizers(config)


def scoring_of(config: DictConfig, teacher: Teacher, data: Samples, pixel: PixelReward, by_frames: bool) -> Scoring:
    """What scores the clips; ValueError where more are to be fitted on than will be scored and not held out."""
    chosen = (config.clips, config.mismatched, config.made, config.made_clips, config.seed)
    scoring = Scoring(teacher, data, pixel, *chosen, by_frames=by_frames)
    most = scoring.count - round(config.held_out * scoring.count)
    if config.fit_on is not None and config.fit_on > most:
        raise ValueError(
            f"fit_on is {config.fit_on}, but of {scoring.count} scored clips about {most} aren't held out; raise "
            "made_clips, or clips where the data has more, or lower fit_on"
        )
    return scoring


def new_surrogate(config: DictConfig, teacher: Teacher, pixel: PixelReward, prompt: str) -> LatentReward:
    """A surrogate before its fit; prompt: any that the teacher can encode."""
    lrm: Any = OmegaConf.to_container(config.lrm, resolve=True)
    how, noised = lrm.pop("fit"), noise_of(config.lrm)
    smooth, lrm["text"] = lrm.pop("smooth"), reads_text(config.lrm, pixel.reward)
    frames = by_frames(config.lrm, pixel)
    del lrm["noise"], lrm["noised"], lrm["targets"]
    note_motion(config.lrm, pixel)
    torch.manual_seed(config.seed)
    decoder = started_decoder(config, teacher) if lrm["backbone"] == "pixels" else None
    model: Any = make_reward_model(teacher, **lrm, prompt=prompt, decoder=decoder)
    schedule = teacher.denoiser.schedule
    keys: Any = {"fit": how, "noised": noised, "schedule": schedule, "smooth": smooth, "by_frames": frames}
    return LatentReward(model, pixel, teacher.text, **keys)


def climbs_of(
    config: DictConfig, surrogate: LatentReward, latents: Sequence[Tensor], rows: Rows, teacher: Teacher
) -> dict[str, list[Climb]]:
    """Steps up the gradient on held-out rows: `climb`, and as `climb_through` those through the teacher, if asked."""
    measured = surrogate, latents, rows, config.climb, config.seed
    found = {"climb": climb_of(*measured)}
    if found["climb"] and config.climb_noise is not None:
        found["climb_through"] = climb_of(*measured, through_teacher(teacher, *config.climb_noise))
    return {name: climbs for name, climbs in found.items() if climbs}


def through_teacher(teacher: Teacher, low: float, high: float) -> Through:
    """The teacher's unguided x_0 of a clip noised to a time between these fractions of T, as ft.through looks at it."""

    def through(x: Tensor, condition: Condition, draws: Draws) -> Tensor:
        return denoised(teacher.denoiser.given(condition), x, draws, teacher.denoiser.schedule, low, high)

    return through


def fit_decoder(config: DictConfig, surrogate: LatentReward, latents: Sequence[Tensor], rows: Rows) -> None:
    """Fit the small decoder of a model that looks at pixels, on some of the clips of rows; others have none."""
    decoder = getattr(surrogate.model, "decoder", None)
    if decoder is None or config.decoder.steps == 0:
        return
    assert surrogate.codec is not None
    places = list(dict.fromkeys(row.place for _, row in rows))
    chosen = places[:: max(1, len(places) // config.decoder.clips)][: config.decoder.clips]
    fitted = FittedDecoder(decoder, surrogate.codec, config.decoder.frames)
    optimizer = adamw(config, "decoder", dict(decoder.named_parameters()))
    error = fitted.fit_to([latents[i] for i in chosen], config.decoder.steps, config.batch, config.seed, optimizer)
    logger.info(f"the small decoder is {255 * error:.1f} grey levels off (root mean square)")


def identity(config: DictConfig, teacher: Teacher, data: Samples) -> dict[str, Any]:
    """What a clip's latents and reward depend on, by names for a sentence."""
    held = by_content(FitReward, config)
    return {
        "reward": {**held["reward"], **({CODE: code} if (code := code_of(flat(held["reward"]).values())) else {})},
        "teacher": [teacher.fingerprint(), weights_hash(teacher.denoiser.network), teacher.guidance_scale],
        "clip size": [*teacher.clip_shape, teacher.fps],
        "data": {**data.identity(), **({"holds": holds} if (holds := held_below("data", FitReward, config)) else {})},
        "seed": config.seed,
    }


def former_identity(config: DictConfig, data: Samples) -> dict[str, Any]:
    """What a file of before contents were looked at has in the place of the identity's reward and data."""
    return {"reward": OmegaConf.to_container(config.reward, resolve=True), "data": data.identity()}


def scored(scoring: Scoring, file: Path, out: Path, made_by: dict[str, Any], former: dict[str, Any]) -> Observations:
    """The clips with their rewards, those that were missing scored now.

    file: where they are kept; out: the fit's folder, which is held already; made_by and former: of `Observations.at`.
    """
    observed = Observations.at(file, made_by, former)
    if scoring.missing(observed):
        with nullcontext() if file.parent.samefile(out) else closing(Lock(file.parent, stays=False)):
            observed = Observations.at(file, made_by, former)  # another fit may have written since
            scoring.run(observed, file)
    return observed


def begun(folder: Path, deciding: Any) -> checkpoint.State | None:
    """The state of a fit of these settings that was stopped in a folder; one of others is removed, with a note."""
    latest = checkpoint.newest(folder / "checkpoints")
    state = None if latest is None else checkpoint.load(latest)
    if state is not None and state.plain["config"] != deciding:
        logger.warning(f"note: the fit in {folder} was of other settings or content, and begins anew")
        shutil.rmtree(folder)
        return None
    return state


def fit(
    config: DictConfig,
    surrogate: LatentReward,
    world: World,
    latents: Sequence[Tensor],
    rows: Rows,
    watched: Rows,
) -> Fitted:
    """Fit the surrogate on rows, and leave it as it was when it was least steep of those that follow the watched best.

    Goes on where a fit of the same configuration was stopped; another one's state is removed. Stopped by a
    signal, it saves and exits with code 3.
    """
    fit_decoder(config, surrogate, latents, rows)
    remember(surrogate, latents, rows, config.batch, config.seed)
    folder, started = Path(config.out) / "fit", time.perf_counter()
    deciding = json.loads(json.dumps(by_content(FitReward, config, FREE)))  # as it is read again
    state = begun(folder, deciding)
    parameters = trainable(surrogate.model)
    optimizer = adamw(config, "lrm", parameters)
    rate = partial(falling, start=config.decay_from)
    learner = Learner("lrm", parameters, [optimizer], math.inf, rate, remedy="Lower optim.lrm.lr")

    def validate(step: int) -> dict[str, float]:
        surrogate.level(turns=len(surrogate.past))
        r2 = figures_of(surrogate, latents, watched, config.batch)["all"]["r2"]
        with torch.enable_grad():
            return {"r2": r2, "steepness": steepness_of(surrogate, latents, watched, config.batch)}

    monitor = LeastSteep(Best("r2", config.every, config.patience), config.tolerance)
    with Log(folder, resume_step=None if state is None else state.plain["cycle"] + 1) as log:
        loop = Loop(
            Timetable(config.steps, config.save_every, keep=1, validate_every=config.every, log_every=10),
            SurrogateAlone(surrogate, config.seed, config.batch, world, config.parallel.micro_batch),
            {"lrm": learner},
            world,
            folder,
            log,
            validate=validate,
            monitors={"best": monitor},
            config=deciding,
            description="fitting",
            kept=lambda: {f"lrm/{name}": p for name, p in parameters.items()},
            keeps=config.steps // config.every + 1,  # which of them is the one is known at the end
        )
        if state is not None:
            loop.load(state)
        finished = loop.train()
    if not finished:
        logger.info(f"stopped after update {loop.cycle} and saved; the same command goes on from there")
        sys.exit(STOPPED)
    chosen = monitor.chosen
    if chosen is not None:
        tensors = checkpoint.load(folder / "best" / f"step-{chosen.cycle:08d}").tensors
        with torch.no_grad():
            for name, p in parameters.items():
                assign(p, tensors[f"lrm/{name}"])
    return Fitted(loop.cycle if chosen is None else chosen.cycle, config.steps, time.perf_counter() - started)
