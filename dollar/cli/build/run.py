"""From configuration to objects: the only place where keys become arguments."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from dollar.cli.build.rewards import (
    Rewards,
    build_latent_reward,
    check_latent_reward,
    check_rewards,
    guard_of,
    rewards_of,
    terms_of,
)
from dollar.data.latents import Fit, Samples
from dollar.data.mixture import shares
from dollar.data.shards import listed
from dollar.export.student import denoiser_of, few_steps, prediction_of, student_weights
from dollar.log import logger
from dollar.losses.objective import Objective
from dollar.methods.distill import Distiller
from dollar.models.assemble import DTYPES
from dollar.models.denoiser import Condition
from dollar.models.teacher import Teacher
from dollar.parallel.shard import fill_from, fill_teacher, trainable_copy
from dollar.parallel.world import World
from dollar.surrogate.pixel_reward import PixelReward
from dollar.training.average import Ema
from dollar.training.log import Log
from dollar.training.trainer import Learner, Plan, Trainer
from dollar.training.validation import Scores, Validation

TRAINED = ("float32", "bfloat16")  # gradients in float16 would need scaling


def dtype_of(config: DictConfig, key: str, known: Collection[str] = TRAINED) -> torch.dtype:
    """The dtype that parallel.<key> names."""
    name = config.parallel[key]
    if name not in known:
        raise ValueError(f"parallel.{key} is {name!r}; use {' or '.join(known)}")
    return DTYPES[name]


def take_teacher(config: DictConfig) -> None:
    """Put the teacher of the student in `checkpoint` into the configuration; keys of the command line stay.

    ValueError where the command line names another teacher.
    """
    from hydra.core.hydra_config import HydraConfig

    from dollar.export.student import read_card

    card, overrides = read_card(config.checkpoint), HydraConfig.get().overrides.task
    if "teacher" not in card:
        raise ValueError(f"the student in {config.checkpoint} doesn't say which teacher made it; train it again")
    if any(o.startswith("teacher=") for o in overrides) and config.teacher.name != card["teacher_name"]:
        raise ValueError(
            f"teacher is {config.teacher.name}, but the student in {config.checkpoint} came from the teacher "
            f"{card['teacher_name']}; leave teacher= out"
        )
    given = [o.removeprefix("teacher.") for o in overrides if o.startswith("teacher.")]
    # Prompts that come are not among those that training had stored; and the student's times stay those that it was
    # trained for, where another size would shift its teacher's.
    online = {"text": "online"} | ({"shift": card["shift"]} if card.get("shift") is not None else {})
    config.teacher = OmegaConf.merge(card["teacher"], online, OmegaConf.from_dotlist(given))


def build_teacher(config: DictConfig, world: World, weights: bool = True) -> Teacher:
    """The teacher that conf/teacher names, on this process's device; without weights its transformer is left empty."""
    dtype = dtype_of(config, "teacher_dtype", DTYPES)
    teacher = instantiate(config.teacher, device=world.device, compute_dtype=dtype, weights=False)
    if weights:
        fill_teacher(teacher, world, config.parallel.shard_teacher and world.size > 1)
    return teacher


def objective_of(config: DictConfig) -> Objective:
    """Eq. 16's weights and settings; ValueError names a key at fault."""
    terms, there = terms_of(config), config.reward.get("_target_") is not None
    if config.batch < 2 and (alone := [name for name, term in terms.items() if term.needs == "reward"]):
        raise ValueError(
            f"batch is {config.batch}, but the loss's {alone[0]} compares the rewards of a batch; give at least 2"
        )
    if config.beta_ft > 0 and config.lrm.mode != "frozen" and not there:
        raise ValueError("beta_ft is above 0 but reward=none; name a reward, or set beta_ft=0")
    if wanting := [name for name, term in terms.items() if term.needs and not there]:
        raise ValueError(f"the loss's {wanting[0]} needs a reward, but reward=none; name one with reward=NAME")
    check_latent_reward(config)
    if not config.data.get("latents", True) and (config.beta_cd > 0 or config.student.input == "noised_data"):
        raise ValueError(
            f"beta_cd={config.beta_cd} and student.input={config.student.input}, but this data has prompts alone; set "
            "beta_cd=0 and student.input=simulate, or give clips with data=clips or data=latents"
        )
    if config.teacher.get("text") == "stored" and config.data.get("text") is None:
        raise ValueError("teacher.text is stored, but this data stores none; use data=latents, or teacher.text=online")
    check_data(config)
    return Objective(
        beta_vsd=config.beta_vsd,
        beta_cd=config.beta_cd,
        beta_ft=config.beta_ft,
        balance=config.balance,
        vsd_guidance_scale=config.vsd.guidance_scale,
        vsd_weighting=config.vsd.weighting,
        vsd_range=tuple(config.vsd.range),
        vsd_lower_half=config.vsd.lower_half,
        vsd_lower_half_over=tuple(config.vsd.lower_half_over),
        cd_guidance_scale=config.cd.guidance_scale,
        cd_m=config.cd.m,
        cd_grid=config.cd.grid,
        cd_target=config.cd.target,
        cd_distance=config.cd.distance,
        ft_unit=config.ft.unit,
        ft_update=config.ft["update"],
        student_input=config.student.input,
        student_parameterization=config.student.parameterization,
        fake_loss=config.fake.loss,
        terms=terms,
    )


def check_data(config: DictConfig) -> None:
    """Raise ValueError for numbers of conf/data that can't be."""
    data = config.data
    for key in ("cache", "cache_bytes", "block_bytes"):
        if data.get(key, 0) < 0:
            raise ValueError(f"data.{key} is {data[key]}; it must be at least 0")
    if OmegaConf.is_list(data.get("path")) and "clips" not in data:
        raise ValueError(f"data.path is {list(data.path)}; it is one place here. data=mixture takes several, of shards")
    if data.get("weights") is not None and data.get("paths") is not None:
        shares(data.weights, len(listed(data.paths)))


def check_optimizers(config: DictConfig) -> None:
    """Raise ValueError for rates, betas or decays that no optimizer can take."""
    for network, keys in config.optim.items():
        if not keys.lr > 0 or not all(0 <= beta < 1 for beta in keys.betas) or keys.weight_decay < 0:
            raise ValueError(
                f"optim.{network} is {OmegaConf.to_container(keys)}; lr must be positive, betas lie from 0 to below 1, "
                "and weight_decay is 0 or positive"
            )


def plan_of(config: DictConfig, processes: int = 1) -> Plan:
    """The loop's numbers; ValueError names a key at fault."""
    if config.student.lora is not None and config.student.lora < 1:
        raise ValueError(f"student.lora is {config.student.lora}; it is a rank, such as 32, or null for all weights")
    if config.batch % processes:
        raise ValueError(f"batch={config.batch} must be a multiple of the {processes} processes")
    if config.beta_ft > 0 and config.lrm.mode != "frozen":  # otherwise no clips are asked about
        if config.lrm.clips % processes:
            raise ValueError(f"lrm.clips={config.lrm.clips} must be a multiple of the {processes} processes")
        if 0 < config.batch < config.lrm.clips:
            raise ValueError(
                f"lrm.clips is {config.lrm.clips}, more than the batch={config.batch} that they are taken from"
            )
    check_optimizers(config)
    if not 0 <= config.ema < 1:
        raise ValueError(f"ema is {config.ema}; it is a decay, 0 (off) or more and below 1")
    return Plan(
        cycles=config.cycles,
        batch=config.batch,
        seed=config.seed,
        fake_updates=config.fake_updates,
        fake_warmup=config.fake_warmup,
        ft_accumulate=config.ft.accumulate,
        lrm_clips=config.lrm.clips,
        lrm_warmup=config.lrm.warmup,
        lrm_updates=config.lrm.updates,
        lrm_mismatched=config.lrm.mismatched,
        clip_gradient=config.clip_gradient,
        decay_from=config.decay_from,
        save_every=config.save_every,
        keep=config.keep,
        validate_every=config.validation.every,
        gradients_every=config.log.gradients_every,
        keep_best=config.keep_best,
        patience=config.patience,
        validate_first=config.validation.first,
    )


def build_trainer(
    config: DictConfig,
    world: World,
    teacher: Teacher,
    folder: Path,
    resume_cycle: int,
    rewards: Rewards | None = None,
) -> Trainer:
    """Everything that a run holds, ready for `load` or `train`; rewards: where they are made already."""
    rewards = rewards or rewards_of(config)
    objective, plan, guard = objective_of(config), plan_of(config), guard_of(config)
    check_guidance(objective, teacher)
    teacher.check_prediction(prediction_of(teacher, objective.student_parameterization))
    teacher = with_text(config, teacher)
    teacher.denoiser.schedule.grid(objective.cd_grid)  # a grid that this schedule doesn't have is told now
    samplers = few_steps(teacher, config.student.timesteps, config.student.steps, config.student.between)
    data = build_data(config, teacher)
    if (report := getattr(data, "report", None)) is not None:
        logger.info(report)
    check_text(config, teacher, data)
    recompute = config.parallel.activation_checkpointing
    student = trainable_copy(teacher, world, recompute, config.student.lora)
    if config.init is not None:
        fill_from(student, student_weights(config.init))
    learners = {"student": Learner("student", student, optimizer(config, "student", student))}
    dtype = dtype_of(config, "dtype")
    longest = samplers[max(samplers)]
    denoiser = denoiser_of(teacher, student, longest, objective.student_parameterization, dtype)
    fake = teacher.denoiser
    if objective.beta_vsd > 0:
        network = trainable_copy(teacher, world, recompute)
        learners["fake"] = Learner("fake", network, optimizer(config, "fake", network))
        fake = teacher.denoiser_of(network, dtype)
    pixel, second = (None if reward is None else PixelReward(reward, teacher.codec) for reward in rewards)
    surrogate = None
    if objective.beta_ft > 0:
        surrogate = build_latent_reward(config, teacher, world, pixel, data.captions[0])
        if config.lrm.mode != "frozen":
            learners["lrm"] = Learner("lrm", surrogate.model, optimizer(config, "lrm", surrogate.model), shared=True)
    ema = Ema(student, config.ema)
    distiller = Distiller(
        teacher.denoiser,
        denoiser,
        fake,
        list(samplers.values()),
        objective,
        teacher.latent_shape,
        teacher.null,
        surrogate,
        ema.swapped,
        pixel=pixel,
        gather=world.gather,
    )
    for term in objective.terms.values():
        term.check(distiller.samplers)
    prompts = instantiate(config.data.held_out) if config.data.held_out else some_captions(data)
    check_rewards(pixel, second, itertools.chain(data.captions, prompts), teacher, objective)
    scores = Scores(pixel, second, surrogate)
    check_keep_best(plan, config.validation.every, scores.names(list(samplers)))
    log = Log(
        folder,
        active=world.is_main,
        resume_step=resume_cycle + 1 if resume_cycle else 0,
        trackers=config.log.trackers,
        settings=OmegaConf.to_container(config, resolve=True),  # type: ignore[arg-type]
    )
    validation = None
    if config.validation.every > 0:
        validation = Validation(teacher, denoiser, samplers, prompts, scores, log, world, **validation_of(config))
    trainer = Trainer(
        plan,
        distiller,
        learners,
        ema,
        data,
        teacher.text,
        world,
        folder,
        log,
        validation,
        OmegaConf.to_container(config, resolve=True),  # type: ignore[arg-type]
        guard,
    )
    if config.lrm.mode == "pretrained":
        trainer.lrm_count = plan.lrm_warmup  # it has been fitted before
    return trainer


def check_keep_best(plan: Plan, every: int, scored: Sequence[str]) -> None:
    """Raise ValueError unless keep_best names what validation measures."""
    if plan.keep_best is not None and every == 0:
        raise ValueError(f"keep_best is {plan.keep_best!r}, but validation.every is 0, so nothing is measured")
    if plan.keep_best not in (None, *scored):
        raise ValueError(f"keep_best is {plan.keep_best!r}; validation measures {', '.join(scored)}")


def build_data(config: DictConfig, teacher: Teacher) -> Samples:
    """What conf/data names, made to fit the teacher and the run."""
    fit = Fit(
        encode=teacher.codec.encode,
        normalise=lambda latents: teacher.codec.normalise(latents.to(teacher.device)),
        shape=teacher.latent_shape,
        fingerprint=lambda: made_with(teacher),
        seed=config.seed,
    )
    return instantiate(config.data.samples, _convert_="all")(fit)


def made_with(teacher: Teacher) -> dict[str, Any]:
    """What stored latents must have been made with: the autoencoder, and clips of the teacher's speed."""
    found = {k: v for k, v in teacher.fingerprint().items() if not k.startswith(("text", "tokenizer"))}
    return {**found, "fps": float(teacher.fps)}


def check_text(config: DictConfig, teacher: Teacher, data: Samples) -> None:
    """Raise ValueError where stored prompts lack a caption, or the prompt of guidance's other half where it is asked.

    Without this a run would end at the first sample that asks for it.
    """
    if config.teacher.get("text") != "stored":
        return
    teacher.text.check(data.captions)
    validation = config.validation
    scales = list(guidance_of(objective_of(config)).values())
    shown = validation.every > 0 and (validation.clips > 0 or config.student.guided)
    if shown and not teacher.family.embeds_guidance:
        scales.append(teacher.guidance_scale)
    if any(scale != 1 for scale in scales):
        teacher.null(1)


def with_text(config: DictConfig, teacher: Teacher) -> Teacher:
    """The teacher, with the data's stored prompts for its text encoder where teacher.text=stored."""
    if config.teacher.get("text") != "stored":
        return teacher
    text = instantiate(config.data.text, _convert_="all")(
        length=teacher.text_length, condition=Condition, device=teacher.device, fingerprint=teacher.fingerprint()
    )
    return replace(teacher, text=text)


def some_captions(data: Samples, most: int = 100_000) -> list[str]:
    """Different captions from all over the data, all of them where they aren't too many to hold."""
    return list(dict.fromkeys(data.captions[:: 1 + len(data) // most]))


def guidance_of(objective: Objective) -> dict[str, float]:
    """The guidance scales that the run's terms ask the teacher with, by the name of the term."""
    o = objective
    found = {"vsd": o.vsd_guidance_scale} if o.beta_vsd > 0 else {}
    found |= {"cd": o.cd_guidance_scale} if o.beta_cd > 0 else {}
    return found | {n: t.guidance_scale for n, t in o.terms.items() if hasattr(t, "guidance_scale")}


def check_guidance(objective: Objective, teacher: Teacher) -> None:
    """Raise ValueError where a teacher that has its guidance inside is to be guided once more."""
    twice = [f"{name}.guidance_scale={scale}" for name, scale in guidance_of(objective).items() if scale != 1]
    if teacher.family.embeds_guidance and twice:
        raise ValueError(
            f"{' and '.join(twice)}, but {teacher.name} is told its guidance scale ({teacher.guidance_scale}) and has "
            f"no second half; set {' '.join(f'{name}.guidance_scale=1' for name in guidance_of(objective))}; "
            "teacher.guidance_scale is what it is told"
        )


def validation_of(config: DictConfig) -> dict[str, Any]:
    """The numbers of validation; ValueError names a key at fault."""
    v = config.validation
    for key, least in (("every", 0), ("prompts", 1), ("clips", 0), ("guidance_steps", 1)):
        if v[key] < least:
            raise ValueError(f"validation.{key} is {v[key]}; it must be at least {least}")
    return {"count": v.prompts, "shown": v.clips, "teacher_steps": v.guidance_steps, "guided": config.student.guided}


def optimizer(config: DictConfig, name: str, network: torch.nn.Module) -> torch.optim.Optimizer:
    """AdamW with the numbers of optim.<name>."""
    keys = OmegaConf.to_container(config.optim[name], resolve=True)
    assert isinstance(keys, dict)
    trained = [p for p in network.parameters() if p.requires_grad]
    return torch.optim.AdamW(trained, **{**keys, "betas": tuple(keys["betas"])})


def quiet() -> None:
    """Turn diffusers' and transformers' progress bars and notes off, for output that a person reads."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    diffusers_logging.set_verbosity_error()
    diffusers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
