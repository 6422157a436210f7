"""From configuration to a run: networks, learners, method, monitors, loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from dollar.cli.build.data import build_data
from dollar.cli.build.notes import notes_of
from dollar.cli.build.objective import check_supplied, objective_of
from dollar.cli.build.objects import instantiate
from dollar.cli.build.optimizers import check_optimizers, learners_of
from dollar.cli.build.pairs import check_dropped, check_method, check_pair_settings, reference_of
from dollar.cli.build.rewards import (
    Rewards,
    build_decoder,
    build_latent_reward,
    check_rewards,
    followed,
    guard_of,
    rewards_of,
)
from dollar.cli.build.teacher import check_guidance, check_text, dtype_of, with_text
from dollar.cli.build.validation import check_scored, check_validation, how_validated, prompts_of
from dollar.diffusion.timesteps import FewStep
from dollar.export.student import (
    check_shares,
    check_steps,
    denoiser_of,
    few_steps,
    prediction_of,
    read_as_x_0,
)
from dollar.log import logger
from dollar.losses.objective import Objective
from dollar.losses.term import Host, is_used
from dollar.methods.ingredients import Ingredients
from dollar.models.denoiser import Denoiser
from dollar.models.discriminator import Discriminator
from dollar.models.roles import Role, separate
from dollar.models.teacher import Teacher
from dollar.parallel.shard import fits_whole, spread, trainable_copy
from dollar.parallel.world import World, device_memory
from dollar.sampling.samplers import finite, make_latents, student_sampler
from dollar.surrogate.pixel_reward import PixelReward
from dollar.training.average import Average
from dollar.training.clip_files import ClipFiles
from dollar.training.learner import not_finite
from dollar.training.log import Log
from dollar.training.loop import Loop, Timetable
from dollar.training.monitors.best import Best
from dollar.training.monitors.guard import Guard
from dollar.training.monitors.monitor import Monitor
from dollar.training.validation import Scores, Validation


def check(config: DictConfig, processes: int, supplied: bool = True) -> Objective:
    """The objective; ValueError, naming the key, for all mistakes that show before anything is loaded.

    supplied: whether a reward, or a fitted latent reward model, must be there where a term needs it.
    """
    objective = objective_of(config)
    check_method(config, objective)
    check_pair_settings(config, objective)
    if supplied:
        check_supplied(config, objective)
    timetable_of(config), guard_of(config, objective), monitors_of(config, Guard())
    check_validation(config)
    dtype_of(config, "dtype"), dtype_of(config, "teacher_dtype")
    check_steps(config.student.timesteps, config.student.steps)
    check_shares(config.student.shares, config.student.steps)
    objective.check_use(config.student.steps)
    check_batch(config, objective, processes)
    check_optimizers(config, objective)
    if config.student.lora is not None and config.student.lora < 1:
        raise ValueError(f"student.lora is {config.student.lora}; it is a rank, such as 32, or null for all weights")
    if config.student.parameterization not in ("homogeneous", "heterogeneous"):
        raise ValueError(
            f"student.parameterization is {config.student.parameterization!r}; use homogeneous or heterogeneous"
        )
    if config.student.lora is not None and config.student.parameterization == "heterogeneous":
        raise ValueError(
            "student.parameterization is heterogeneous, which turns the sign of the network's output; a LoRA can't, so "
            "set student.lora=null, or student.parameterization=homogeneous"
        )
    if not 0 <= config.ema < 1:
        raise ValueError(f"ema is {config.ema}; it is a decay, 0 (off) or more and below 1")
    if config.clip_gradient <= 0:
        raise ValueError(f"clip_gradient is {config.clip_gradient}; it must be positive, or nothing is learned")
    if not 0 <= config.decay_from <= 1:
        raise ValueError(f"decay_from is {config.decay_from}; it is a fraction of the cycles, 1 for rates that stay")
    return objective


def check_batch(config: DictConfig, objective: Objective, processes: int) -> None:
    """Raise ValueError for batches that the processes can't share, and numbers of a cycle that can't be."""
    lrm, micro_batch = config.lrm, config.parallel.micro_batch
    least = {"batch": (config.batch, 1), "seed": (config.seed, 0), "fake_updates": (config.fake_updates, 1)}
    least |= {"fake_warmup": (config.fake_warmup, 0), "log.gradients_every": (config.log.gradients_every, 0)}
    least |= {f"lrm.{key}": (lrm[key], 1) for key in ("clips", "updates")} | {"lrm.warmup": (lrm.warmup, 0)}
    least |= {"decoder.updates": (config.decoder.updates, int(config.decoder.path is None))}
    least |= {f"decoder.{key}": (config.decoder[key], 1) for key in ("frames", "memory")}
    for key, (value, smallest) in least.items():
        if value < smallest:
            raise ValueError(f"{key} is {value}; it must be at least {smallest}")
    if config.parallel.shard not in ("auto", True, False):
        raise ValueError(f"parallel.shard is {config.parallel.shard!r}; use auto, true or false")
    if micro_batch is not None and micro_batch < 1:
        raise ValueError(f"parallel.micro_batch is {micro_batch}; it is a number of clips, or null for all at once")
    if config.fake_warmup >= config.cycles:
        raise ValueError(
            f"fake_warmup is {config.fake_warmup} of cycles={config.cycles}, so the student would never be updated"
        )
    if config.batch % processes:
        fewer = max(n for n in range(1, processes + 1) if config.batch % n == 0)
        raise ValueError(
            f"batch={config.batch} must be a multiple of the {processes} processes; the next is "
            f"batch={-(-config.batch // processes) * processes}, or start {fewer} process{'es' * (fewer > 1)}"
        )


def timetable_of(config: DictConfig) -> Timetable:
    """How long and how often; ValueError names a key at fault."""
    watched = config.validation.first or config.guard.action != "none"
    every = config.validation.every
    return Timetable(config.cycles, config.save_every, config.keep, every, validate_first=watched)


class Run(NamedTuple):
    """A run: its loop, and the ingredients of its method."""

    loop: Loop
    ingredients: Ingredients


def build_run(
    config: DictConfig, world: World, teacher: Teacher, folder: Path, resume_cycle: int, rewards: Rewards | None = None
) -> Run:
    """Everything that a run holds, ready for `load` or `train`; rewards: where they are built already."""
    objective = check(config, world.size)
    if world.is_main:
        for note in notes_of(config, objective, world.size):
            logger.warning(f"note: {note}")
    rewards = rewards or rewards_of(config, objective)
    teacher = with_text(config, teacher)
    samplers = few_steps(teacher, config.student.timesteps, config.student.steps, config.student.between)
    check_terms(config, objective, teacher, samplers)
    data = build_data(config, teacher, world)
    if (report := getattr(data, "report", None)) is not None:
        logger.info(report)
    check_text(config, teacher, data, objective)
    check_dropped(config, objective, teacher)
    if config.parallel.activation_checkpointing and any(t.cost(1).teacher_gradient for t in objective.terms.values()):
        teacher.denoiser.network.checkpoint_activations()  # type: ignore[operator]
    roles = roles_of(config, world, teacher, objective, samplers)
    average = Average(roles["student"].parameters, config.ema)
    pixel, second = (None if reward is None else PixelReward(reward, teacher.codec) for reward in rewards)
    surrogate = None
    small = build_decoder(config, teacher, objective)
    if objective.needs.surrogate:
        surrogate = build_latent_reward(config, teacher, world, pixel, data.captions[0], small)
        small = getattr(surrogate.model, "decoder", small)
    decoder = followed(config, teacher, world, small)
    if surrogate is not None and surrogate.scorer is not None:
        surrogate.scorer.decoder = decoder if config.decoder.updates > 0 else None
    guard = guard_of(config, objective)
    run = Ingredients(
        teacher=teacher.denoiser,
        roles=roles,
        samplers=list(samplers.values()),
        objective=objective,
        latent_shape=teacher.latent_shape,
        null=teacher.null,
        text=teacher.text,
        data=data,
        world=world,
        seed=config.seed,
        batch=config.batch,
        micro_batch=config.parallel.micro_batch,
        surrogate=surrogate,
        decoder=decoder,
        pixel=pixel,
        averaged=average.swapped,
        moved=average.update,
        reward_scale=lambda: guard.scale,
        fitted=config.lrm.mode != "frozen",
        shares=config.student.shares,
        networks=term_networks(config, objective, teacher, world, roles),
        reference=reference_of(config, objective, teacher),
    )
    prompts = prompts_of(config, teacher, data)
    check_rewards(pixel, second, data.captions, teacher, objective)
    check_scored(config, prompts, pixel, second)
    scores, monitors = Scores(pixel, second, surrogate), monitors_of(config, guard)
    for monitor in monitors.values():
        monitor.check(scores.names(list(samplers)))
    return Run(loop_of(config, run, folder, resume_cycle, average, monitors, (teacher, samplers, prompts, scores)), run)


def loop_of(
    config: DictConfig,
    run: Ingredients,
    folder: Path,
    resume_cycle: int,
    average: Average,
    monitors: Mapping[str, Monitor],
    shown: tuple[Teacher, Mapping[int, FewStep], Sequence[str], Scores],
) -> Loop:
    """The loop around a method; shown: the teacher, samplers, prompts and scores of its validations."""
    settings: Any = OmegaConf.to_container(config, resolve=True)
    resume_step = resume_cycle + 1 if resume_cycle else 0
    log = Log(folder, run.world.is_main, resume_step, trackers=config.log.trackers, settings=settings)
    validation = None
    teacher, samplers, prompts, scores = shown
    if config.validation.every > 0:
        files = ClipFiles(folder, config.validation.mp4s, resume_step) if run.world.is_main else None
        how = how_validated(config, files)
        validation = Validation(teacher, run.student, samplers, prompts, scores, log, run.world, **how)
    student = run.roles["student"].parameters
    return Loop(
        timetable_of(config),
        instantiate(config.method, _convert_="all")(run),
        learners_of(config, run, [blocks.name for blocks in teacher.family.block_lists]),
        run.world,
        folder,
        log,
        average,
        run.data,
        validation,
        monitors,
        settings,
        kept=lambda: {f"ema/{name}": p for name, p in student.items()},
        validated_on="" if validation is None else validation.identity(),
        probe=partial(probe, teacher, run.student, samplers, run.data.captions[0]),
    )


def probe(teacher: Teacher, student: Denoiser, samplers: Mapping[int, FewStep], prompt: str) -> str:
    """What is wrong with a clip that the student makes as it is now, as a sentence's part; "" where nothing is."""
    sampler = student_sampler(teacher, student, samplers[max(samplers)])
    latents = make_latents(sampler, teacher, [prompt], [0], show=False)
    return "" if bool(finite(latents).all()) else "the clips that the student makes are not finite"


def check_terms(config: DictConfig, objective: Objective, teacher: Teacher, samplers: Mapping[int, FewStep]) -> None:
    """Raise ValueError where this teacher, or a student that is sampled like this, can't have one of the terms."""
    check_guidance(objective, teacher)
    teacher.check_prediction(prediction_of(teacher, config.student.parameterization))
    for term in objective.terms.values():
        if (grid := getattr(term, "grid", None)) is not None:
            teacher.denoiser.schedule.grid(grid)  # a grid that this schedule doesn't have is refused now
        term.check([sampler for steps, sampler in samplers.items() if is_used(term, steps)])


def roles_of(
    config: DictConfig, world: World, teacher: Teacher, objective: Objective, samplers: Mapping[int, FewStep]
) -> dict[str, Role]:
    """The student, and the fake score where a term needs one, each with a network of its own."""
    recompute, dtype = config.parallel.activation_checkpointing, dtype_of(config, "dtype")
    shard = shards(config, teacher, world, objective)
    init = None if config.init is None else Path(config.init)
    student = trainable_copy(teacher, world, recompute, config.student.lora, shard, init)
    if init is None and config.student.parameterization == "heterogeneous":
        read_as_x_0(student, teacher.denoiser.prediction)
    if init is not None and (broken := not_finite(dict(student.named_parameters()))):
        raise ValueError(f"init={config.init}: {broken[0]} of this student is not finite; name another one")
    longest = samplers[max(samplers)]
    roles = {
        "student": separate("student", denoiser_of(teacher, student, longest, config.student.parameterization, dtype))
    }
    if objective.needs.fake:
        network = trainable_copy(teacher, world, recompute, shard=shard)
        roles["fake"] = separate("fake", teacher.denoiser_of(network, dtype))
    return roles


def shards(config: DictConfig, teacher: Teacher, world: World, objective: Objective) -> bool:
    """Whether the trained networks are spread over the processes: as parallel.shard says, or where they don't fit."""
    if config.parallel.shard != "auto":
        return bool(config.parallel.shard)
    size = sum(p.numel() for p in teacher.denoiser.network.parameters())
    lora = config.student.lora is not None
    fits = fits_whole(size, device_memory(world.device), objective.needs.fake, lora)
    return world.any(not fits)  # the same in every process, whatever memory each has


def term_networks(
    config: DictConfig, objective: Objective, teacher: Teacher, world: World, roles: Mapping[str, Role]
) -> dict[str, nn.Module]:
    """The networks of the terms that have one, the same first weights in every process."""

    def discriminator(features: str, heads: int, width: int, level: bool) -> nn.Module:
        if features != "own":
            trunk = teacher.denoiser if features == "teacher" else roles["fake"].denoiser
            return Discriminator(trunk, heads, width, level)
        shard = shards(config, teacher, world, objective)
        network = trainable_copy(teacher, world, config.parallel.activation_checkpointing, shard=shard)
        trunk = teacher.denoiser_of(network, dtype_of(config, "dtype"))
        judge = Discriminator(trunk, heads, width, level, trained=True)
        if shard:
            spread(judge.heads.to(world.device), world)
        return judge

    state = torch.random.get_rng_state()
    networks = {}
    for name, term in objective.learning_terms.items():
        torch.manual_seed(config.seed)
        networks[name] = term.network(Host(teacher.latent_shape, discriminator)).to(world.device)
    torch.random.set_rng_state(state)
    return networks


def monitors_of(config: DictConfig, guard: Guard) -> dict[str, Monitor]:
    """The monitors of the validations: the best score's keeper, the guard, and those of conf/monitors."""
    found: dict[str, Monitor] = {}
    patience, best = config.patience, config.keep_best
    if patience is not None and (patience < 1 or best is None):
        raise ValueError(
            f"patience is {patience} and keep_best {best!r}; it counts validations (1 or more) without a better score "
            "of keep_best, so give both, or patience=null"
        )
    if best is not None:
        found["best"] = Best(best, config.validation.every, patience)
    if guard.active:
        found["guard"] = guard
    further = {name: instantiate(node, _convert_="all") for name, node in config.monitors.items() if node is not None}
    for monitor in further.values():
        if best is not None and hasattr(monitor, "keeps"):
            monitor.keeps = False  # the best score's student is what there is to go back to
    return found | further
