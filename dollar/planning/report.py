"""What a plan of a run says: the clip, the memory of a process, the work of a cycle, the disk, and whether it fits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from dollar.models.outline import ForwardCost, Outline
from dollar.planning.memory import (
    Holding,
    Memory,
    Setup,
    activations,
    averaged,
    checkpoint_bytes,
    elements,
    enough,
    fewest,
    kept_bytes,
    memory,
    way_to_fit,
)
from dollar.planning.work import Forwards, Validations

GIB = 2**30
PREFIXES = ("", "k", "M", "G", "T", "P", "E", "Z")
SPEED = 400e12  # operations a second that hours are reckoned with: about 40 % of what an H100 does in bfloat16
NOT_COUNTED = (
    "not counted: decoding and the pixel reward, the latent reward model's own work, the memory of validation, and "
    "what the allocator leaves unused"
)


def clip_text(
    outline: Outline,
    work: ForwardCost,
    setup: Setup,
    frames: int,
    height: int,
    width: int,
    own: ForwardCost | None = None,
) -> str:
    """Who is distilled on what; own: a forward of the student's, where it isn't as large."""
    share = setup.batch // setup.processes
    return (
        f"{outline.name}, known from {outline.source}\n"
        f"a clip: {frames} frames of {height}x{width}, latents {'x'.join(map(str, outline.latent_shape))}, "
        f"{work.tokens:,} tokens and {outline.text_length} of its prompt; a forward of it is "
        f"{large(work.flops)}FLOP{_smaller(setup, work, own)}\n"
        f"{share} clip{'s' if share > 1 else ''} of an update on {'each of ' * (setup.processes > 1)}{setup.processes} "
        f"process{'es' if setup.processes > 1 else ''}{f', {setup.clips} at once' * (setup.clips < share)}"
    )


def _smaller(setup: Setup, work: ForwardCost, own: ForwardCost | None) -> str:
    """The student's size where blocks were taken out of it."""
    if not setup.student or own is None:
        return ""
    part = elements(setup.student) / elements(setup.shapes)
    return f", and of the student, of whose parameters {part:.1%} are left, {large(own.flops)}FLOP"


def memory_table(setup: Setup, found: Memory, every: int) -> str:
    """The table of roles, and what comes on top; every: cycles between comparisons of the terms' gradients."""
    columns = ("parameters", "weights", "gradients", "moments", "all")
    head = "GiB of a process".ljust(36) + "".join(name.rjust(12 + 4 * (name == "parameters")) for name in columns)
    other = activations(replace(setup, checkpointing=not setup.checkpointing))
    rest = {
        "held": found.held,
        "gathered or cast weights, about": found.gathered,
        "gradients in one message": averaged(setup),
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


class Work(NamedTuple):
    """Operations: of a cycle over all processes, and of what each process does for the run's validations."""

    cycle: float
    validation: float

    def hours(self, cycles: int, processes: int) -> float:
        """Hours of the run on so many GPUs."""
        return (self.cycle * cycles / processes + self.validation) / SPEED / 3600


def work_of(f: Forwards, own: ForwardCost, other: ForwardCost, batch: int, v: Validations) -> Work:
    """The operations of a run; own: of a forward of the student's, other: of the teacher's and the fake score's."""
    cycle = batch * (f.student * own.flops + (f.fake + f.teacher + f.own) * other.flops)
    return Work(cycle, v.times * v.student * own.flops + v.teacher * other.flops)


def work_text(f: Forwards, work: Work, batch: int, cycles: int, updates: int, processes: int, v: Validations) -> str:
    """The forwards of a cycle, and the hours of the run; updates: of the fake score in a cycle."""
    hours, looking = work.hours(cycles, processes), Work(0, work.validation).hours(0, 1)
    fake = f", {cycles * updates:,} of the fake score" if f.fake else ""
    further = f", networks of terms {f.own:.2f}" if f.own else ""
    looks = (
        f", {short(looking)} of them for {v.times} validation{'s' * (v.times > 1)}"
        if v.times
        else "; there is no validation"
    )
    return (
        f"a cycle: {f.total:.2f} forwards of {batch} clips, a backward pass counting as two (student "
        f"{f.student:.2f}, fake score {f.fake:.2f}, teacher {f.teacher:.2f}{further}), {large(work.cycle)}FLOP\n"
        f"the run: {cycles:,} cycles ({cycles:,} updates of the student{fake}), {large(work.cycle * cycles)}FLOP\n"
        f"at {SPEED / 1e12:.0f} TFLOP/s: {short(hours * processes)} GPU hours, {short(hours)} hours on {processes}"
        f"{looks}"
    )


def disk_text(setup: Setup, keep: int, free: int) -> str:
    """What checkpoints take; free: bytes of the disk that they would be written to."""
    each, most = checkpoint_bytes(setup), kept_bytes(setup, keep)
    there = f"{gib(free).strip()} are free there"
    fitting = next((k for k in range(keep - 1, 0, -1) if kept_bytes(setup, k) <= free), None)
    fewer_kept = "" if fitting is None else f", or keep={fitting}"
    lack = "" if most <= free else f", which is too little: give runs=FOLDER on another disk{fewer_kept}"
    return (
        f"a checkpoint: {gib(each).strip()} GiB, {gib(most).strip()} with the {keep} that are kept while one more is "
        f"written{', and the best' * setup.best}; {there}{lack}. The first process gathers it in main memory"
    )


def not_counted(further: Sequence[str]) -> str:
    """What the plan leaves out; further: what of this run's loss it can't count."""
    names = f"; nor are the forwards and activations of {', '.join(further)}" if further else ""
    return f"{NOT_COUNTED}{names}"


def verdict(setup: Setup, available: float, lora: tuple[int, Setup] | None = None) -> str:
    """Whether it fits, and if not what helps most; lora: the rank and the set-up of a LoRA in its place."""
    peak = memory(setup).peak
    if peak <= available * GIB:
        return f"it fits: about {gib(peak).strip()} of {available:g} GiB{fewer(setup, available, lora)}"
    lines = [
        f"it doesn't fit: about {gib(peak).strip()} of {available:g} GiB. What helps most, one on top of the other:",
        *_way(setup, available),
    ]
    if lora is not None:
        rank, other = lora
        peak = memory(other).peak
        lines.append(
            f"or {share(rank, other)}: about {gib(peak).strip()} GiB"
            + (", with which it fits" if peak <= available * GIB else "")
        )
        lines += _way(other, available) if peak > available * GIB else []
    return "\n".join(lines)


def _way(setup: Setup, available: float) -> list[str]:
    """The settings that help most, one on top of the other, each with what it saves, and whether it fits with them."""
    peak, lines, bytes_ = memory(setup).peak, [], int(available * GIB)
    for remedy in way_to_fit(setup, bytes_):
        peak, setup = peak - remedy.saves, remedy.setup
        lines.append(f"  {remedy.setting} saves {gib(remedy.saves).strip()} and leaves {gib(peak).strip()}")
    if peak <= bytes_:
        return [*lines, "with which it fits"]
    found = enough(setup, bytes_)
    more = "" if found is None else f", or processes={found}, with which it fits"
    return [*lines, f"which is still too much: smaller clips{more}"]


def share(rank: int, setup: Setup) -> str:
    """A LoRA in place of all weights, and how much of them it trains."""
    part = elements(setup.lora) / elements(setup.own)
    return f"student.lora={rank}, which trains {elements(setup.lora):,} numbers ({part:.1%} of the student's)"


def fewer(setup: Setup, available: float, lora: tuple[int, Setup] | None) -> str:
    """How few GPUs would hold it, and how few with a LoRA, where that is at most half of those without."""
    bytes_, now = int(available * GIB), setup.processes
    least = fewest(setup, bytes_) or now
    with_lora = None if lora is None else fewest(lora[1], bytes_)
    texts = [f"{least} without a change"] if 2 * least <= now else []
    if lora is not None and with_lora is not None and 2 * with_lora <= least:
        texts.append(f"{with_lora} with {share(*lora)}")
    if not texts:
        return ""
    clips = f" at parallel.micro_batch={setup.clips}" if setup.micro_batch != setup.clips else ""
    return f"; fewer GPUs would hold it{clips}, and take longer: {'; '.join(texts)}"


def gib(count: int) -> str:
    """Bytes in GiB, right-aligned."""
    return f"{count / GIB:,.{1 if count >= GIB else 3}f}".rjust(12)


def short(number: float) -> str:
    """A number to three digits, or to its last before the point."""
    if number < 0.01:
        return "under 0.01"
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def large(number: float) -> str:
    """A number with the unit's prefix that makes it short."""
    place = min(max(int(math.log10(number) // 3), 0), len(PREFIXES) - 1)
    return f"{number / 1000**place:,.4g} {PREFIXES[place]}"
