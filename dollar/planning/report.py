"""What a plan of a run says: the clip, the memory of a process, the work of a cycle, the disk, and whether it fits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from dollar.models.outline import ForwardCost, Outline
from dollar.planning.memory import Holding, Memory, Setup, activations, checkpoint_bytes, memory, way_to_fit
from dollar.planning.work import Forwards

GIB = 2**30
PREFIXES = ("", "k", "M", "G", "T", "P", "E", "Z")
SPEED = 400e12  # operations a second that hours are reckoned with: about 40 % of what an H100 does in bfloat16
NOT_COUNTED = (
    "not counted: decoding and the pixel reward, the latent reward model's own work, validation, and what the "
    "allocator leaves unused"
)


def clip_text(outline: Outline, work: ForwardCost, setup: Setup, frames: int, height: int, width: int) -> str:
    """Who is distilled on what."""
    return (
        f"{outline.name}, known from {outline.source}\n"
        f"a clip: {frames} frames of {height}x{width}, latents {'x'.join(map(str, outline.latent_shape))}, "
        f"{work.tokens:,} tokens and {outline.text_length} of its prompt; a forward of it is "
        f"{large(work.flops)}FLOP\n"
        f"{setup.clips} clip{'s' if setup.clips > 1 else ''} on {'each of ' * (setup.processes > 1)}{setup.processes} "
        f"process{'es' if setup.processes > 1 else ''}"
    )


def memory_table(setup: Setup, found: Memory, every: int) -> str:
    """The table of roles, and what comes on top; every: cycles between comparisons of the terms' gradients."""
    columns = ("parameters", "weights", "gradients", "moments", "all")
    head = "GiB of a process".ljust(36) + "".join(name.rjust(12 + 4 * (name == "parameters")) for name in columns)
    other = activations(replace(setup, checkpointing=not setup.checkpointing))
    rest = {
        "held": found.held,
        "gathered or cast weights, about": found.gathered,
        "activations, about": found.activations,
        f"gradients compared every {every} cycles": found.comparing,
        "peak, about": found.peak,
    }
    notes = {
        "activations, about": f"   ({gib(other).strip()} with{'out' * setup.checkpointing} activation checkpointing)"
    }
    lines = [name.ljust(100 - 12) + gib(count) + notes.get(name, "") for name, count in rest.items() if count]
    return "\n".join([head, *map(row, found.roles), *lines])


def row(role: Holding) -> str:
    """One line of the table."""
    parts = (role.weights, role.gradients, role.moments, role.held)
    return role.name.ljust(36) + f"{role.parameters:16,}" + "".join(gib(n) if n else " " * 12 for n in parts)


def work_text(f: Forwards, flops: int, batch: int, cycles: int, processes: int) -> str:
    """The forwards of a cycle, and of the run; flops: of one clip's forward."""
    cycle = f.total * batch * flops
    hours = cycle * cycles / SPEED / 3600
    return (
        f"a cycle: {f.total:.2f} forwards of {batch} clips, a backward pass counting as two (student "
        f"{f.student:.2f}, fake score {f.fake:.2f}, teacher {f.teacher:.2f}), {large(cycle)}FLOP\n"
        f"the run: {cycles:,} cycles, {large(cycle * cycles)}FLOP; {hours:,.3g} GPU hours at "
        f"{SPEED / 1e12:.0f} TFLOP/s, {hours / processes:,.3g} hours on {processes}"
    )


def disk_text(setup: Setup, keep: int) -> str:
    """What checkpoints take."""
    each = checkpoint_bytes(setup)
    return (
        f"a checkpoint: {gib(each).strip()} GiB, {gib(each * (keep + 1)).strip()} with the {keep} that are kept while "
        "one more is written; the first process gathers it in main memory"
    )


def not_counted(further: Sequence[str]) -> str:
    """What the plan leaves out; further: what of this run's loss it can't count."""
    names = f"; nor are the forwards and activations of {', '.join(further)}" if further else ""
    return f"{NOT_COUNTED}{names}"


def verdict(setup: Setup, available: float) -> str:
    """Whether it fits, and if not what helps most."""
    peak = memory(setup).peak
    if peak <= available * GIB:
        return f"it fits: about {gib(peak).strip()} of {available:g} GiB"
    lines = [
        f"it doesn't fit: about {gib(peak).strip()} of {available:g} GiB. What helps most, one on top of the other:"
    ]
    for remedy in way_to_fit(setup, int(available * GIB)):
        peak -= remedy.saves
        lines.append(f"  {remedy.setting} saves {gib(remedy.saves).strip()} and leaves {gib(peak).strip()}")
    lines.append(
        "with which it fits" if peak <= available * GIB else "which is still too much: smaller clips, or more GPUs"
    )
    return "\n".join(lines)


def gib(count: int) -> str:
    """Bytes in GiB, right-aligned."""
    return f"{count / GIB:,.{1 if count >= GIB else 3}f}".rjust(12)


def large(number: float) -> str:
    """A number with the unit's prefix that makes it short."""
    place = min(max(int(math.log10(number) // 3), 0), len(PREFIXES) - 1)
    return f"{number / 1000**place:,.4g} {PREFIXES[place]}"
