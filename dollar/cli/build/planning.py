"""From a training's configuration to what its plan depends on: the teacher in outline, its memory and its work."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple, cast

from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf

from dollar.cli.build.loop import check, timetable_of
from dollar.cli.build.notes import notes_of
from dollar.cli.build.objective import check_supplied, objective_of
from dollar.cli.build.rewards import reads_text
from dollar.cli.build.teacher import check_guidance, dtype_of, quiet
from dollar.cli.declared import flat
from dollar.losses.objective import Objective
from dollar.losses.reward_gradient import number_of
from dollar.losses.term import SampleTerm, has_optimizer, is_used
from dollar.methods.surrogate_fit import scored_clips
from dollar.models.assemble import DTYPES
from dollar.models.outline import ForwardCost, Outline, measure, outline
from dollar.models.pruned import read_pruning
from dollar.models.roles import trainable
from dollar.models.small_decoder import SmallDecoder
from dollar.models.tiny_decoder import TinyDecoder
from dollar.parallel.shard import fits_whole
from dollar.planning.memory import FLOAT, Setup, elements, memory
from dollar.planning.work import Cycle, TermWork, Validations, most_kept, validations
from dollar.rewards.frames import FrameReward

RANK = 64  # of the LoRA that is proposed
FROZEN = {"vae": "autoencoder"}  # what a frozen model is called in the plan


def outline_of(config: DictConfig) -> Outline:
    """The teacher in outline; ValueError where training would refuse the configuration."""
    for key in ("processes", "memory"):
        if config[key] <= 0:
            raise ValueError(f"{key} is {config[key]}; it must be positive")
    objective = check(config, config.processes, supplied=False)
    if config.teacher.frozen_dtype not in DTYPES:
        raise ValueError(f"teacher.frozen_dtype is {config.teacher.frozen_dtype!r}; use {' or '.join(DTYPES)}")
    quiet()
    found = outline(cast(dict[str, Any], OmegaConf.to_container(config.teacher, resolve=True)))
    check_guidance(objective, cast(Any, found))
    return found


def setup_of(config: DictConfig, outline: Outline, work: ForwardCost, own: ForwardCost | None = None) -> Setup:
    """What the memory of a process depends on; work: of a forward of all weights, own: of the student's."""
    cycle, objective = cycle_of(config), objective_of(config)
    surrogate, fitted = objective.needs.surrogate, config.lrm.mode != "frozen"  # a frozen one scores no clips
    model = lrm_shapes(config, outline) if surrogate else []
    student = student_outline(config, outline)
    small = small_decoder_of(config, objective, outline)
    networks = networks_of(objective, outline)
    clips = scored_clips(config.lrm.clips, config.batch, config.processes)
    has_latents = config.data.get("latents", True)
    pairs = clips * (1 + has_latents * (1 + config.lrm.mismatched))
    whole = any(term.fake or term.through for term in cycle.terms)
    kept = larger(work, own or work) if whole else own or work
    # With its reward, those of its frames, and whether they are numbers.
    clip = (math.prod(outline.latent_shape) + 1 + frames_scored(config)) * FLOAT + 1
    read = {} if fitted or not model else {"latent reward model": elements([*model, *small.shapes])}
    if objective.pair_terms and config.preference.reference is not None:
        read["student to compare with"] = elements(outline.shapes)
    return Setup(
        shapes=outline.shapes,
        blocks=outline.block_shapes,
        student=student.shapes if student is not outline else [],
        lora=[] if config.student.lora is None else student.lora_shapes(config.student.lora),
        lrm=model if fitted else [],
        networks={name: [tuple(p.shape) for p in trainable(n).values()] for name, n in networks.items()},
        buffers={name: sum(b.nbytes for b in network.buffers()) for name, network in networks.items()},
        spread=[name for name, network in networks.items() if getattr(network, "trained", False)],
        decoder=small.shapes if fitted else [],
        optimizers=1 + sum(map(has_optimizer, objective.terms.values())),
        read=read,
        frozen={FROZEN.get(name, name.replace("_", " ")): count for name, count in outline.frozen.items()},
        processes=config.processes,
        batch=config.batch,
        micro_batch=config.parallel.micro_batch,
        shard=shards(config, outline, any(term.fake for term in cycle.terms)),
        outside=kept.outside,
        inputs=kept.inputs,
        inside=kept.inside,
        largest=kept.largest,
        terms=sum(not term.apart for term in cycle.terms),
        fake=any(term.fake for term in cycle.terms),
        shard_teacher=config.parallel.shard_teacher,
        checkpointing=config.parallel.activation_checkpointing,
        kept=most_kept(cycle),
        compares=config.log.gradients_every > 0,
        branches=max(1, objective.clips_of_a_pair),
        gathers=any(term.every > 1 for term in objective.apart.values()),
        dtype=dtype_of(config, "dtype").itemsize,
        frozen_dtype=DTYPES[config.teacher.frozen_dtype].itemsize,
        remembered=config.lrm.memory * pairs * clip if surrogate and fitted else 0,
        shown=config.decoder.memory * clips * small.shown if fitted else 0,
        pixels=small.pixels,
        best=config.keep_best is not None,
    )


def frames_scored(config: DictConfig) -> int:
    """How many rewards of its frames are kept with a scored clip; of a mixture they aren't known before it is built."""
    reward, lrm = reward_class(config), config.lrm
    averaged = lrm.backbone != "teacher" and lrm.temporal == "frames" and lrm.fit == "mse" and lrm.targets != "clip"
    if not averaged or reward is None or not issubclass(reward, FrameReward) or reward.score is not FrameReward.score:
        return 0
    wanted = config.reward.get("frames")
    return min(wanted, config.teacher.frames) if isinstance(wanted, int) else int(config.teacher.frames)


def reward_class(config: DictConfig) -> Any:
    """The class of the run's reward; None where there is none yet."""
    target = config.reward.get("_target_")
    return None if target in (None, "???") else get_class(target)


class SmallDecoderPlan(NamedTuple):
    """A small decoder's parameters; bytes of one clip that it is fitted to, and of its pixels that carry a gradient."""

    shapes: list[tuple[int, ...]]
    shown: int = 0
    pixels: int = 0


def small_decoder_of(config: DictConfig, objective: Objective, outline: Outline) -> SmallDecoderPlan:
    """What is counted of the small decoder; nothing where none is looked through."""
    import torch

    through = [term for term in objective.terms.values() if term.needs.decoder]
    looks = objective.needs.surrogate and config.lrm.backbone == "pixels"
    if not through and not looks:
        return SmallDecoderPlan([])
    channels, latent_frames, height, _ = outline.latent_shape
    with torch.device("meta"):
        scale = config.teacher.height // height
        ratio = 4 if latent_frames == 1 else round((config.teacher.frames - 1) / (latent_frames - 1))
        tiny = config.decoder.path is not None
        model: Any = TinyDecoder(channels, scale, ratio) if tiny else SmallDecoder(channels, scale)
    frame = 3 * config.teacher.height * config.teacher.width
    wanted = config.reward.get("frames")
    seen = min(wanted, latent_frames) if isinstance(wanted, int) else latent_frames
    scored = objective.needs.surrogate  # else whole clips are there to choose from
    kept = min(config.decoder.frames, seen if scored else latent_frames)
    carried = [min(number_of(getattr(term, "frames", None)) or latent_frames, latent_frames) for term in through]
    carried += [seen if config.lrm.temporal == "frames" else latent_frames] if looks else []
    # All frames are made, and a gradient keeps those that count as the reward or the network has them.
    return SmallDecoderPlan(
        [tuple(p.shape) for p in model.parameters()],
        shown=FLOAT * math.prod(outline.latent_shape) + kept * frame,
        pixels=FLOAT * frame * (latent_frames + max(carried)),
    )


def larger(one: ForwardCost, other: ForwardCost) -> ForwardCost:
    """The larger of each number."""
    return ForwardCost(*map(max, zip(one, other, strict=True)))


def lora_instead(config: DictConfig, outline: Outline, work: ForwardCost, setup: Setup) -> tuple[int, Setup] | None:
    """The rank and the set-up of a LoRA in place of all weights, where one could save something."""
    if config.student.lora is not None or (config.processes == 1 and memory(setup).peak <= config.memory * 2**30):
        return None
    rank = min(RANK, outline.largest_rank)
    other = cast(DictConfig, OmegaConf.merge(config, {"student": {"lora": rank}}))
    changed = setup_of(other, outline, work, student_work(other, outline, work))
    return (rank, changed) if elements(changed.lora) < elements(changed.shapes) else None


def further_text(config: DictConfig) -> str:
    """Notes on the settings, and what has to be given before this can be trained, one sentence a line."""
    objective, lines = objective_of(config), []
    plain: Any = OmegaConf.to_container(config, resolve=False)
    lines += [f"{key} has no default; give {key}=VALUE" for key, value in flat(plain).items() if value == "???"]
    try:
        check_supplied(config, objective)
    except (ValueError, OSError) as error:
        lines.append(str(error))
    notes = [f"note: {note}" for note in notes_of(config, objective, config.processes)]
    return "\n".join([*notes, *(f"to train it: {line}" for line in lines)])


def student_outline(config: DictConfig, outline: Outline) -> Outline:
    """The student in outline, which is smaller where it starts from one that blocks were taken out of."""
    if config.init is None or (pruning := read_pruning(config.init)) is None:
        return outline
    return outline.left(pruning)


def student_work(config: DictConfig, outline: Outline, work: ForwardCost) -> ForwardCost:
    """What a forward of the student computes and keeps; work: of the teacher's, if it trained all its weights."""
    student, rank = student_outline(config, outline), config.student.lora
    return work if rank is None and student is outline else measure(student, dtype_of(config, "dtype"), rank)


def networks_of(objective: Objective, outline: Outline) -> dict[str, Any]:
    """Each term's own network, without its values."""
    import torch

    from dollar.losses.term import Host
    from dollar.models.denoiser import Denoiser
    from dollar.models.discriminator import Discriminator

    def discriminator(features: str, heads: int, width: int, level: bool) -> Discriminator:
        trunk = Denoiser(outline.network, *cast(Any, (None, None)))  # it is only measured
        return Discriminator(trunk, heads, width, level, trained=features == "own")

    with torch.device("meta"):
        host = Host(outline.latent_shape, discriminator)
        return {name: term.network(host) for name, term in objective.learning_terms.items()}


def shards(config: DictConfig, outline: Outline, fake: bool) -> bool:
    """Whether the trained networks would be spread over the processes, each on a GPU of `memory` GiB."""
    if config.parallel.shard != "auto":
        return bool(config.parallel.shard)
    size = sum(math.prod(shape) for shape in outline.shapes)
    return not fits_whole(size, int(config.memory * 2**30), fake, config.student.lora is not None)


def lrm_shapes(config: DictConfig, outline: Outline) -> list[tuple[int, ...]]:
    """The shapes of the latent reward model's own parameters; the teacher's blocks are the teacher's."""
    import torch

    from dollar.models.latent_reward_model import LatentRewardModel
    from dollar.models.teacher_reward_model import QueryHead, width_of

    reads = reads_text(config.lrm, reward_class(config))
    lrm, text_dim = config.lrm, outline.text_width if reads else None
    with torch.device("meta"):
        if lrm.backbone == "teacher":
            model: Any = QueryHead(width_of(outline.network), lrm.width)
        else:
            channels = 3 if lrm.backbone == "pixels" else outline.latent_shape[0]
            model = LatentRewardModel(channels, text_dim, lrm.width, lrm.temporal, lrm.groups)
    return [tuple(p.shape) for p in model.parameters()]


def cycle_of(config: DictConfig, own: ForwardCost | None = None) -> Cycle:
    """What the forwards of a cycle depend on; own: of the student's forward, where it isn't one of all weights."""
    lrm, objective = config.lrm, objective_of(config)
    first = lrm.first and objective.needs.surrogate and lrm.mode != "frozen"
    return Cycle(
        steps=list(config.student.steps),
        shares=config.student.shares,
        terms=terms_of(objective),
        simulate=config.student.input == "simulate",
        fake_updates=config.fake_updates,
        checkpointing=config.parallel.activation_checkpointing,
        backward=2.0 if own is None else own.backward / own.flops,
        drawn_first=scored_clips(lrm.clips, config.batch, config.get("processes", 1)) / config.batch if first else 0.0,
    )


def validations_of(config: DictConfig, outline: Outline) -> Validations:
    """The work of the run's validations."""
    v, timetable = config.validation, timetable_of(config)
    guided = 1 + (outline.guidance_scale != 1 and not outline.family.embeds_guidance)
    return validations(
        config.cycles,
        v.every,
        timetable.validate_first,
        v.prompts,
        list(config.student.steps),
        v.clips,
        v.guidance_steps,
        guided,
        guided if config.student.guided else 1,
        config.processes,
    )


def terms_of(objective: Objective) -> list[TermWork]:
    """What each term needs and costs."""
    found, pairs = [], objective.pair_terms
    for name, term in objective.terms.items():
        apart = name in objective.apart
        cost, used = term.cost(1), partial(is_used, term)
        through = cost.teacher_gradient + cost.fake_gradient > 0
        pair = 1 + pairs[name].losers if name in pairs else 0
        sample = isinstance(term, SampleTerm)
        found.append(TermWork(name, term.cost, sample, term.needs.fake, apart, through, used, pair))
    return found


def not_counted_of(config: DictConfig) -> list[str]:
    """The parts of this run's loss whose forwards and activations are not counted: what a term brings along."""
    blocks = ["the teacher's blocks in the latent reward model"]
    objective = objective_of(config)
    through = [name for name, term in objective.terms.items() if term.needs.reward == "gradient"]
    small = [name for name in through if objective.terms[name].needs.decoder]
    decoders = [f"{'the' if name in small else 'decoder and'} reward under {name}" for name in through]
    # Of a term whose network has the teacher's blocks the cost tells their forwards.
    networks = [f"the network of {name}" for name, term in objective.learning_terms.items() if not any(term.cost(1))]
    return [*decoders, *networks, *(blocks if config.lrm.backbone == "teacher" else [])]
