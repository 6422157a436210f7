"""From configuration to objects: the only place where keys become arguments."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from dollar.data.latents import Fit, Samples
from dollar.data.mixture import shares
from dollar.data.shards import listed
from dollar.distill import Distiller
from dollar.evaluation.validate import Scores, Validation
from dollar.guard import Guard
from dollar.latent_reward import LatentReward
from dollar.log import Log
from dollar.losses.term import Term
from dollar.models.assemble import DTYPES
from dollar.models.denoiser import Condition
from dollar.models.ema import Ema
from dollar.models.reward_models import make_reward_model
from dollar.models.teacher import Teacher
from dollar.objective import Objective
from dollar.parallel.shard import fill_from, fill_teacher, trainable_copy
from dollar.parallel.world import World
from dollar.pixel_reward import PixelReward
from dollar.student import denoiser_of, few_steps, prediction_of, student_weights
from dollar.trainer import Learner, Plan, Trainer

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

    from dollar.student import read_card

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


def plan_of(config: DictConfig, processes: int = 1) -> Plan:
    """The loop's numbers; ValueError names a key at fault."""
    if config.student.lora is not None and config.student.lora < 1:
        raise ValueError(f"student.lora is {config.student.lora}; it is a rank, such as 32, or null for all weights")
    if config.batch % processes or config.lrm.clips % processes:
        raise ValueError(
            f"batch={config.batch} and lrm.clips={config.lrm.clips} must be multiples of the {processes} processes"
        )
    for network, keys in config.optim.items():
        if not keys.lr > 0 or not all(0 <= beta < 1 for beta in keys.betas) or keys.weight_decay < 0:
            raise ValueError(
                f"optim.{network} is {OmegaConf.to_container(keys)}; lr must be positive, betas lie from 0 to below 1, "
                "and weight_decay is 0 or positive"
            )
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
    )


def build_latent_reward(
    config: DictConfig, teacher: Teacher, world: World, pixel: PixelReward | None, prompt: str = ""
) -> LatentReward:
    """The latent reward model with the pixel reward that it follows; prompt: any that the teacher can encode."""
    lrm = config.lrm
    if lrm.backbone == "cnn" and lrm.temporal == "frames" and getattr(pixel and pixel.reward, "sees_motion", False):
        print(f"note: {pixel.name} sees motion, which lrm.temporal=frames can't; conv3d can")  # type: ignore[union-attr]
    how = {"memory": lrm.memory, "gather": world.gather, "fit": lrm.fit}
    if lrm.mode != "online":
        read = LatentReward.from_folder(lrm.path, teacher, pixel, **how)
        read.model.requires_grad_(lrm.mode == "pretrained")
        return read
    generator_state = torch.random.get_rng_state()
    torch.manual_seed(config.seed)  # the same first weights in every process
    keys = {key: lrm[key] for key in ("backbone", "text", "width", "temporal", "groups", "blocks")}
    model = make_reward_model(teacher, **keys, prompt=prompt).to(world.device)
    torch.random.set_rng_state(generator_state)
    schedule = teacher.denoiser.schedule
    return LatentReward(model, pixel, teacher.text, noised=tuple(lrm.noise), schedule=schedule, **how)  # type: ignore[arg-type]


def build_pixel_reward(node: DictConfig, teacher: Teacher) -> PixelReward | None:
    """The reward that a choice of conf/reward describes, behind the teacher's decoder; None for none."""
    return None if node.get("_target_") is None else PixelReward(instantiate(node), teacher.codec)


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


def build_trainer(config: DictConfig, world: World, teacher: Teacher, folder: Path, resume_cycle: int) -> Trainer:
    """Everything that a run holds, ready for `load` or `train`."""
    objective, plan, guard = objective_of(config), plan_of(config), guard_of(config)
    check_guidance(objective, teacher)
    teacher.check_prediction(prediction_of(teacher, objective.student_parameterization))
    teacher = with_text(config, teacher)
    teacher.denoiser.schedule.grid(objective.cd_grid)  # a grid that this schedule doesn't have is told now
    samplers = few_steps(teacher, config.student.timesteps, config.student.steps, config.student.between)
    data = build_data(config, teacher)
    if world.is_main and (report := getattr(data, "report", None)) is not None:
        print(report)
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
    pixel = build_pixel_reward(config.reward, teacher)
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
    second = build_pixel_reward(config.guard.reward, teacher)
    if objective.pursues_reward or config.validation.every > 0:  # otherwise nobody asks it
        check_rewards(pixel, second, itertools.chain(data.captions, prompts), teacher, objective)
    scores = Scores(pixel, second, surrogate)
    check_keep_best(plan, config.validation.every, scores.names(list(samplers)))
    log = Log(folder, active=world.is_main, resume_step=resume_cycle + 1)
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
    guided = [
        (config.beta_vsd > 0, config.vsd.guidance_scale),
        (config.beta_cd > 0, config.cd.guidance_scale),
        (
            validation.every > 0 and validation.clips > 0,
            1.0 if teacher.family.embeds_guidance else teacher.guidance_scale,
        ),
    ]
    if any(used and scale != 1 for used, scale in guided):
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


def check_guidance(objective: Objective, teacher: Teacher) -> None:
    """Raise ValueError where a teacher that has its guidance inside is to be guided once more."""
    scales = {"vsd": objective.vsd_guidance_scale, "cd": objective.cd_guidance_scale}
    used = {"vsd": objective.beta_vsd > 0, "cd": objective.beta_cd > 0}
    twice = [f"{name}.guidance_scale={scale}" for name, scale in scales.items() if used[name] and scale != 1]
    if teacher.family.embeds_guidance and twice:
        raise ValueError(
            f"{' and '.join(twice)}, but {teacher.name} is told its guidance scale ({teacher.guidance_scale}) and has "
            "no second half; set vsd.guidance_scale=1 cd.guidance_scale=1; teacher.guidance_scale is what it is told"
        )


def validation_of(config: DictConfig) -> dict[str, Any]:
    """The numbers of validation; ValueError names a key at fault."""
    v = config.validation
    for key, least in (("every", 0), ("prompts", 1), ("clips", 0), ("guidance_steps", 1)):
        if v[key] < least:
            raise ValueError(f"validation.{key} is {v[key]}; it must be at least {least}")
    return {"count": v.prompts, "shown": v.clips, "teacher_steps": v.guidance_steps}


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
