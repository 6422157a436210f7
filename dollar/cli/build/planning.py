"""From a training's configuration to what its plan depends on: the teacher in outline, its memory and its work."""

from __future__ import annotations

import math
from typing import Any, cast

from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf

from dollar.cli.build.loop import check
from dollar.cli.build.objective import objective_of
from dollar.cli.build.rewards import reads_text
from dollar.cli.build.teacher import check_guidance, dtype_of, quiet
from dollar.losses.objective import Objective
from dollar.losses.term import SampleTerm
from dollar.models.assemble import DTYPES
from dollar.models.outline import ForwardCost, Outline, outline
from dollar.parallel.shard import fits_whole
from dollar.planning.memory import FLOAT, Setup
from dollar.planning.work import Cycle, TermWork, most_kept

FROZEN = {"vae": "autoencoder"}  # what a frozen model is called in the plan


def outline_of(config: DictConfig) -> Outline:
    """The teacher in outline; ValueError where training would refuse the configuration."""
    for key in ("processes", "memory"):
        if config[key] <= 0:
            raise ValueError(f"{key} is {config[key]}; it must be positive")
    objective = check(config, config.processes)
    if config.teacher.frozen_dtype not in DTYPES:
        raise ValueError(f"teacher.frozen_dtype is {config.teacher.frozen_dtype!r}; use {' or '.join(DTYPES)}")
    quiet()
    found = outline(cast(dict[str, Any], OmegaConf.to_container(config.teacher, resolve=True)))
    check_guidance(objective, cast(Any, found))
    return found


def setup_of(config: DictConfig, outline: Outline, work: ForwardCost) -> Setup:
    """What the memory of a process depends on."""
    cycle = cycle_of(config)
    fitted = objective_of(config).needs.surrogate and config.lrm.mode != "frozen"  # a frozen one scores no clips
    clips = config.batch // config.processes
    has_latents = config.data.get("latents", True)
    pairs = config.lrm.clips * (1 + has_latents * (1 + config.lrm.mismatched))
    clip = math.prod(outline.latent_shape) * FLOAT + FLOAT + 1  # with its reward and whether that is a number
    return Setup(
        shapes=outline.shapes,
        blocks=outline.block_shapes,
        lrm=lrm_shapes(config, outline) if fitted else [],
        frozen={FROZEN.get(name, name.replace("_", " ")): count for name, count in outline.frozen.items()},
        processes=config.processes,
        clips=min(clips, config.parallel.micro_batch or clips),
        shard=shards(config, outline, any(term.fake for term in cycle.terms)),
        outside=work.outside,
        inputs=work.inputs,
        inside=work.inside,
        largest=work.largest,
        terms=sum(not term.apart for term in cycle.terms),
        fake=any(term.fake for term in cycle.terms),
        shard_teacher=config.parallel.shard_teacher,
        checkpointing=config.parallel.activation_checkpointing,
        kept=most_kept(cycle),
        compares=config.log.gradients_every > 0,
        gathers=any(term.apart for term in cycle.terms),
        dtype=dtype_of(config, "dtype").itemsize,
        frozen_dtype=DTYPES[config.teacher.frozen_dtype].itemsize,
        remembered=config.lrm.memory * pairs * clip if fitted else 0,
    )


def shards(config: DictConfig, outline: Outline, fake: bool) -> bool:
    """Whether the trained networks would be spread over the processes, each on a GPU of `memory` GiB."""
    if config.parallel.shard != "auto":
        return bool(config.parallel.shard)
    size = sum(math.prod(shape) for shape in outline.shapes)
    return not fits_whole(size, int(config.memory * 2**30), fake, config.student.lora is not None)


def lrm_shapes(config: DictConfig, outline: Outline) -> list[tuple[int, ...]]:
    """The shapes of the latent reward model's trained parameters; none of one that is only read."""
    import torch

    from dollar.models.latent_reward_model import LatentRewardModel
    from dollar.models.teacher_reward_model import QueryHead, width_of

    target = config.reward.get("_target_")
    reward = None if target is None else get_class(target)
    lrm, text_dim = config.lrm, outline.text_width if reads_text(config.lrm, reward) else None
    if lrm.mode == "frozen":
        return []
    with torch.device("meta"):
        if lrm.backbone == "teacher":
            model: Any = QueryHead(width_of(outline.network), lrm.width)
        else:
            channels = 3 if lrm.backbone == "pixels" else outline.latent_shape[0]
            model = LatentRewardModel(channels, text_dim, lrm.width, lrm.temporal, lrm.groups)
    return [tuple(p.shape) for p in model.parameters()]


def cycle_of(config: DictConfig) -> Cycle:
    """What the forwards of a cycle depend on."""
    return Cycle(
        steps=list(config.student.steps),
        terms=terms_of(objective_of(config)),
        simulate=config.student.input == "simulate",
        fake_updates=config.fake_updates,
        checkpointing=config.parallel.activation_checkpointing,
    )


def terms_of(objective: Objective) -> list[TermWork]:
    """What each term needs and costs."""
    found = []
    for name, term in objective.terms.items():
        apart = name in objective.apart
        found.append(TermWork(name, term.cost, isinstance(term, SampleTerm), term.needs.fake, apart))
    return found


def not_counted_of(config: DictConfig) -> list[str]:
    """The parts of this run's loss whose forwards and activations are not counted: what a term brings along."""
    blocks = ["the teacher's blocks in the latent reward model"]
    objective = objective_of(config)
    through = [name for name, term in objective.terms.items() if term.needs.reward == "gradient"]
    decoders = [f"decoder and reward under {name}" for name in through]
    networks = [f"the network of {name}" for name in objective.learning_terms]
    return [*decoders, *networks, *(blocks if config.lrm.backbone == "teacher" else [])]
