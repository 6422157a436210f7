"""What a training would need: `python launch/plan.py processes=8 memory=80 [key=value of launch/train.py ...]`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, cast

from omegaconf import DictConfig, OmegaConf

if TYPE_CHECKING:
    from dollar.models.outline import Outline, Work
    from dollar.planning.memory import Cycle, Memory, Role, Setup

GIB = 2**30
PREFIXES = ("", "k", "M", "G", "T", "P", "E", "Z")
SPEED = 400e12  # operations a second that hours are reckoned with: about 40 % of what an H100 does in bfloat16
NOT_COUNTED = (
    "not counted: decoding and the pixel reward, the latent reward model's own work, validation, and what the "
    "allocator leaves unused"
)


def setup_of(config: DictConfig, outline: Outline, work: Work) -> Setup:
    """What the memory of a process depends on."""
    from dollar.cli.build.objective import objective_of
    from dollar.cli.build.teacher import dtype_of
    from dollar.models.assemble import DTYPES
    from dollar.planning.memory import FLOAT, Setup

    o, names = objective_of(config), {"vae": "autoencoder"}
    joint = ("ft" in o.terms) and not o.apart
    has_latents = config.data.get("latents", True)
    pairs = config.lrm.clips * (1 + has_latents * (1 + config.lrm.mismatched))
    clip = math.prod(outline.latent_shape) * FLOAT + FLOAT + 1  # with its reward and whether that is a number
    return Setup(
        shapes=outline.shapes,
        blocks=outline.block_shapes,
        lrm=lrm_shapes(config, outline) if ("ft" in o.terms) else [],
        frozen={names.get(name, name.replace("_", " ")): count for name, count in outline.frozen.items()},
        processes=config.processes,
        clips=config.batch // config.processes,
        outside=work.outside,
        inputs=work.inputs,
        inside=work.inside,
        largest=work.largest,
        terms=("vsd" in o.terms) + ("cd" in o.terms) + joint,
        fake=("vsd" in o.terms),
        shard_teacher=config.parallel.shard_teacher,
        checkpointing=config.parallel.activation_checkpointing,
        looks=config.log.gradients_every > 0,
        gathers=("ft" in o.terms) and not joint,
        dtype=dtype_of(config, "dtype").itemsize,
        frozen_dtype=DTYPES[config.teacher.frozen_dtype].itemsize,
        remembered=config.lrm.memory * pairs * clip if ("ft" in o.terms) else 0,
    )


def lrm_shapes(config: DictConfig, outline: Outline) -> list[tuple[int, ...]]:
    """The shapes of the latent reward model's trained parameters; none of one that is only read."""
    import torch

    from dollar.models.latent_reward_model import LatentRewardModel
    from dollar.models.teacher_reward_model import QueryHead, width_of

    lrm, text_dim = config.lrm, outline.text_width if config.lrm.text else None
    if lrm.mode == "frozen":
        return []
    with torch.device("meta"):
        if lrm.backbone == "teacher":
            model: Any = QueryHead(width_of(outline.network), lrm.width)
        else:
            model = LatentRewardModel(outline.latent_shape[0], text_dim, lrm.width, lrm.temporal, lrm.groups)
    return [tuple(p.shape) for p in model.parameters()]


def cycle_of(config: DictConfig) -> Cycle:
    """What the forwards of a cycle depend on."""
    from dollar.cli.build.objective import objective_of
    from dollar.planning.memory import Cycle

    o = objective_of(config)
    return Cycle(
        steps=list(config.student.steps),
        simulate=config.student.input == "simulate",
        vsd=("vsd" in o.terms),
        cd=("cd" in o.terms),
        ft=("ft" in o.terms),
        separate=bool(o.apart),
        vsd_guided=config.vsd.guidance_scale != 1,
        cd_guided=config.cd.guidance_scale != 1,
        cd_m=config.cd.m,
        fake_updates=config.fake_updates,
        target=config.cd.target,
        checkpointing=config.parallel.activation_checkpointing,
    )


def outline_of(config: DictConfig) -> Outline:
    """The teacher in outline; ValueError where training would refuse the configuration."""
    from dollar.cli.build.loop import check_batch
    from dollar.cli.build.objective import objective_of
    from dollar.cli.build.teacher import check_guidance, quiet
    from dollar.export.student import check_steps
    from dollar.models.assemble import DTYPES
    from dollar.models.outline import outline

    for key in ("processes", "memory"):
        if config[key] <= 0:
            raise ValueError(f"{key} is {config[key]}; it must be positive")
    objective = objective_of(config)
    check_batch(config, objective, config.processes)
    check_steps(config.student.timesteps, config.student.steps)
    if config.teacher.frozen_dtype not in DTYPES:
        raise ValueError(f"teacher.frozen_dtype is {config.teacher.frozen_dtype!r}; use {' or '.join(DTYPES)}")
    quiet()
    found = outline(cast(dict[str, Any], OmegaConf.to_container(config.teacher, resolve=True)))
    check_guidance(objective, cast(Any, found))
    return found


def main(config: DictConfig) -> None:
    """Print the plan of what launch/train.py with the same keys would run."""
    outline = outline_of(config)
    from dollar.cli.build.teacher import dtype_of
    from dollar.models.outline import measure
    from dollar.planning.memory import memory

    work = measure(outline, dtype_of(config, "dtype"))
    setup = setup_of(config, outline, work)
    print_clip(config, outline, work, setup)
    print_memory(config, setup, memory(setup))
    print_work(config, work)
    print_disk(config, setup)
    print(f"\n{NOT_COUNTED}{further(config)}\n{verdict(setup, config.memory)}")


def print_clip(config: DictConfig, outline: Outline, work: Work, setup: Setup) -> None:
    """Who is distilled on what."""
    t = config.teacher
    print(
        f"{outline.name}, known from {outline.source}\n"
        f"a clip: {t.frames} frames of {t.height}x{t.width}, latents {'x'.join(map(str, outline.latent_shape))}, "
        f"{work.tokens:,} tokens and {outline.text_length} of its prompt; a forward of it is "
        f"{large(work.flops)}FLOP\n"
        f"{setup.clips} clip{'s' if setup.clips > 1 else ''} on {'each of ' * (setup.processes > 1)}{setup.processes} "
        f"process{'es' if setup.processes > 1 else ''}\n"
    )


def print_memory(config: DictConfig, setup: Setup, found: Memory) -> None:
    """The table of roles, and what comes on top."""
    from dataclasses import replace

    from dollar.planning.memory import activations

    columns = ("parameters", "weights", "gradients", "moments", "all")
    print("GiB of a process".ljust(36) + "".join(name.rjust(12 + 4 * (name == "parameters")) for name in columns))
    for role in found.roles:
        print(row(role))
    every = config.log.gradients_every
    other = activations(replace(setup, checkpointing=not setup.checkpointing))
    rest = {
        "held": found.held,
        "gathered or cast weights, about": found.gathered,
        "activations, about": found.activations,
        f"gradients compared every {every} cycles": found.looking,
        "peak, about": found.peak,
    }
    notes = {
        "activations, about": f"   ({gib(other).strip()} with{'out' * setup.checkpointing} activation checkpointing)"
    }
    for name, count in rest.items():
        if count:
            print(name.ljust(100 - 12) + gib(count) + notes.get(name, ""))


def row(role: Role) -> str:
    """One line of the table."""
    parts = (role.weights, role.gradients, role.moments, role.held)
    return role.name.ljust(36) + f"{role.parameters:16,}" + "".join(gib(n) if n else " " * 12 for n in parts)


def print_work(config: DictConfig, work: Work) -> None:
    """The forwards of a cycle, and of the run."""
    from dollar.planning.memory import forwards

    f = forwards(cycle_of(config))
    flops = f.total * config.batch * work.flops
    hours = flops * config.cycles / SPEED / 3600
    print(
        f"\na cycle: {f.total:.2f} forwards of {config.batch} clips, a backward pass counting as two (student "
        f"{f.student:.2f}, fake score {f.fake:.2f}, teacher {f.teacher:.2f}), {large(flops)}FLOP\n"
        f"the run: {config.cycles:,} cycles, {large(flops * config.cycles)}FLOP; {hours:,.3g} GPU hours at "
        f"{SPEED / 1e12:.0f} TFLOP/s, {hours / config.processes:,.3g} hours on {config.processes}"
    )


def print_disk(config: DictConfig, setup: Setup) -> None:
    """What checkpoints take."""
    from dollar.planning.memory import checkpoint_bytes

    each, keep = checkpoint_bytes(setup), config.keep
    print(
        f"a checkpoint: {gib(each).strip()} GiB, {gib(each * (keep + 1)).strip()} with the {keep} that are kept while "
        "one more is written; the first process gathers it in main memory"
    )


def further(config: DictConfig) -> str:
    """Which parts of this run's loss the plan says nothing of."""
    from dollar.cli.build.objective import objective_of

    o = objective_of(config)
    names = [name for name in o.terms if name not in ("vsd", "cd", "ft")] + (
        ["the teacher's blocks in the latent reward model"] if config.lrm.backbone == "teacher" else []
    )
    return f"; nor are the forwards and activations of {', '.join(names)}" if names else ""


def verdict(setup: Setup, available: float) -> str:
    """Whether it fits, and if not what helps most."""
    from dollar.planning.memory import memory, way_to_fit

    peak = memory(setup).peak
    if peak <= available * GIB:
        return f"it fits: about {gib(peak).strip()} of {available:g} GiB"
    told = [
        f"it doesn't fit: about {gib(peak).strip()} of {available:g} GiB. What helps most, one on top of the other:"
    ]
    for remedy in way_to_fit(setup, int(available * GIB)):
        peak -= remedy.saves
        told.append(f"  {remedy.setting} saves {gib(remedy.saves).strip()} and leaves {gib(peak).strip()}")
    told.append(
        "with which it fits" if peak <= available * GIB else "which is still too much: smaller clips, or more GPUs"
    )
    return "\n".join(told)


def gib(count: int) -> str:
    """Bytes in GiB, right-aligned."""
    return f"{count / GIB:,.{1 if count >= GIB else 3}f}".rjust(12)


def large(number: float) -> str:
    """A number with the unit's prefix that makes it short."""
    place = min(max(int(math.log10(number) // 3), 0), len(PREFIXES) - 1)
    return f"{number / 1000**place:,.4g} {PREFIXES[place]}"
