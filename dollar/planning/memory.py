"""The bytes that a process will hold, by plain numbers, and the settings that save some."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

Shapes = Sequence[Sequence[int]]

FLOAT = 4  # bytes of a float32 number, which all that is trained is kept in


class Holding(NamedTuple):
    """What one process holds for a network, in bytes; parameters: of the whole network."""

    name: str
    parameters: int
    weights: int
    gradients: int = 0
    moments: int = 0

    @property
    def held(self) -> int:
        """All of it, in bytes."""
        return self.weights + self.gradients + self.moments


@dataclass(frozen=True)
class Setup:
    """What the memory of a process depends on.

    shapes: of the teacher's parameters, which the fake score has and the student, unless blocks were taken out of it:
    then `student` are its own; blocks: those of each repeated block; lora: of the factors that a student which is a
    LoRA trains in place of its own, empty where it trains all; lrm: of what is trained of the latent reward model,
    decoder: of the small decoder, empty without one; networks: of each term's own, whose buffers are of so many bytes,
    those named in `spread` being spread over the processes as the student is; read: parameters of what is only read in
    float32, frozen: of each other frozen model. batch: clips of an update over all processes; micro_batch: the most
    that one takes at once, None for its share. shard: whether student and fake score are spread over the processes;
    dtype and frozen_dtype: bytes of a number. outside, inputs, inside, largest:
    bytes that one clip's forward keeps outside the blocks, as their inputs, inside all and inside one. terms: of the
    student's update; optimizers: of its weights; kept: the most forwards that one branch of it holds for its backward;
    compares: whether the terms' gradients are compared now and then; gathers: whether gradients are kept over cycles
    (ft.update=separate); branches: how many branches' gradients are held apart until they are weighed.
    remembered: bytes of the latents whose rewards are kept, shown: of the clips that the small decoder is fitted to, in
    all; pixels: that its frames of one clip take while a gradient comes back through them; best: whether a best
    checkpoint is kept as well.
    """

    shapes: Shapes
    blocks: Sequence[Shapes]
    lrm: Shapes
    frozen: Mapping[str, int]
    processes: int
    batch: int
    outside: int
    inputs: int
    inside: int
    largest: int
    terms: int
    student: Shapes = ()
    decoder: Shapes = ()
    optimizers: int = 1
    lora: Shapes = ()
    networks: Mapping[str, Shapes] = field(default_factory=dict)
    buffers: Mapping[str, int] = field(default_factory=dict)
    spread: Sequence[str] = ()
    read: Mapping[str, int] = field(default_factory=dict)
    micro_batch: int | None = None
    fake: bool = True
    shard: bool = True
    shard_teacher: bool = False
    checkpointing: bool = False
    kept: float = 1.0
    compares: bool = False
    gathers: bool = False
    branches: int = 1
    dtype: int = FLOAT
    frozen_dtype: int = FLOAT
    remembered: int = 0
    shown: int = 0
    pixels: int = 0
    best: bool = False

    @property
    def clips(self) -> int:
        """How many clips a process takes through a network at once."""
        share = -(-self.batch // self.processes)
        return share if self.micro_batch is None else min(share, self.micro_batch)

    @property
    def trains(self) -> Shapes:
        """The shapes of what is trained of the student."""
        return self.lora or self.own

    @property
    def own(self) -> Shapes:
        """The shapes of all of the student."""
        return self.student or self.shapes

    @property
    def cut(self) -> int:
        """Over how many processes student and fake score are spread."""
        return self.processes if self.shard else 1


class Memory(NamedTuple):
    """Bytes of one process: what it holds all the time by role, and estimates of what comes on top.

    gathered: weights that are gathered or cast for the work; activations: of one branch of the student's or the
    fake score's update; comparing: while the terms' gradients are compared.
    """

    roles: list[Holding]
    gathered: int
    activations: int
    comparing: int
    peak: int

    @property
    def held(self) -> int:
        """What stays from cycle to cycle, and the gradients."""
        return sum(role.held for role in self.roles)


class Remedy(NamedTuple):
    """A change of the settings, the bytes of the peak that it saves, and the set-up with it."""

    setting: str
    saves: int
    setup: Setup


def elements(shapes: Shapes, processes: int = 1) -> int:
    """How many numbers the fullest of so many processes holds, each tensor being cut along its first dimension."""
    return sum(-(-shape[0] // processes) * math.prod(shape[1:]) for shape in shapes)


def trained(name: str, shapes: Shapes, processes: int = 1, gathers: bool = False) -> Holding:
    """A network under AdamW: two moments a number and one count a tensor; gathers: gradients are kept twice."""
    own = FLOAT * elements(shapes, processes)
    return Holding(name, elements(shapes), own, own * (1 + gathers), 2 * own + FLOAT * len(shapes))


def roles(setup: Setup) -> list[Holding]:
    """Everything that is held from the first cycle to the last."""
    whole, cut = elements(setup.shapes), setup.cut
    student = trained("student", setup.trains, cut, setup.gathers)
    gradients, moments = setup.branches * student.gradients, setup.optimizers * student.moments
    found = [student._replace(gradients=gradients, moments=moments)]
    if setup.lora:
        found[0] = found[0]._replace(name="student's LoRA")
        found.append(Holding("student's frozen weights", elements(setup.own), FLOAT * elements(setup.own, cut)))
    if setup.fake:
        found.append(trained("fake score", setup.shapes, cut))
    found.append(Holding("averaged weights", elements(setup.trains), FLOAT * elements(setup.trains, cut)))
    found.append(
        Holding("teacher", whole, FLOAT * elements(setup.shapes, setup.processes if setup.shard_teacher else 1))
    )
    if setup.lrm:
        found.append(trained("latent reward model", setup.lrm))
    if setup.decoder:
        found.append(trained("small decoder", setup.decoder))
    for name, shapes in setup.networks.items():
        role = trained(f"network of {name}", shapes, cut if name in setup.spread else 1)
        found.append(role._replace(weights=role.weights + setup.buffers.get(name, 0)))
    found += [Holding(name, n, n * FLOAT) for name, n in setup.read.items()]
    found += [Holding(name, n, n * setup.frozen_dtype) for name, n in setup.frozen.items()]
    if setup.remembered:
        found.append(Holding("latents with rewards", 0, setup.remembered // setup.processes))
    if setup.shown:
        found.append(Holding("clips of the small decoder", 0, setup.shown // setup.processes))
    return found


def activations(setup: Setup) -> int:
    """An estimate of what the forwards of one branch keep for their backward.

    Without checkpointing everything that operations save; with it the blocks' inputs, what is outside the blocks, and
    the inside of the one block that is being recomputed.
    """
    inside = setup.largest if setup.checkpointing else setup.inside
    return round(setup.clips * (setup.kept * (setup.outside + setup.inputs + inside) + setup.pixels))


def gathered(setup: Setup) -> int:
    """An estimate of the weights that a process gathers for the work, in addition to its own share.

    Of a sharded network all that is outside its blocks, the block at work, the next one, and one block's gradients.
    Under a lower precision the forward keeps a cast copy of all weights.
    """
    whole, blocks = elements(setup.shapes), [elements(block) for block in setup.blocks]
    cast = setup.dtype * whole if setup.dtype < FLOAT else 0
    sharded = setup.processes > 1 and (setup.shard or setup.shard_teacher)
    return cast + (FLOAT * (whole - sum(blocks) + 3 * max(blocks)) if sharded else 0)


def memory(setup: Setup) -> Memory:
    """The bytes of one process; its peak is within an update, while gradients are compared, or as they are averaged."""
    held, kept, work = roles(setup), activations(setup), gathered(setup)
    # To compare, a process holds its share of the gradients of each earlier term and of those before the term while it
    # is carried back; in the end each term's, with those before and after the last.
    share = FLOAT * elements(setup.trains, setup.cut) if setup.compares else 0
    during, after = setup.terms * share, (setup.terms + 2) * share
    rest = max(work + kept + during, after, averaged(setup))
    return Memory(held, work, kept, after, sum(role.held for role in held) + rest)


def averaged(setup: Setup) -> int:
    """Where processes hold networks whole, one message of all gradients is what their average goes through."""
    if setup.processes == 1 or setup.shard:
        return 0
    return FLOAT * max(elements(setup.trains), elements(setup.shapes) if setup.fake else 0)


def checkpoint_bytes(setup: Setup) -> int:
    """The tensors of one checkpoint: weights and moments of all that is trained, the average, and what is gathered.

    Those of a latent reward model that is only read lie in it, too.
    """
    learners = [role for role in roles(replace(setup, processes=1)) if role.moments]
    average, read = FLOAT * elements(setup.trains), FLOAT * sum(setup.read.values())
    return (
        sum(role.weights + role.moments for role in learners)
        + average * (1 + setup.gathers)
        + read
        + setup.remembered
        + setup.shown
    )


def kept_bytes(setup: Setup, keep: int) -> int:
    """What lies on the disk at most: `keep` checkpoints, the next one while it is written, and the best's weights."""
    best = FLOAT * elements(setup.trains) * (2 if setup.best else 0)
    return checkpoint_bytes(setup) * (keep + 1) + best


def remedies(setup: Setup) -> list[Remedy]:
    """Changes of the settings that leave the losses as they are and save something, the most saving first."""
    twice, halved = 2 * setup.processes, {n: getattr(setup, n) // 2 for n in ("outside", "inputs", "inside", "largest")}
    batch = -(-setup.batch // twice) * twice  # the next that so many processes can share
    changes: dict[str, dict[str, Any]] = {
        "parallel.activation_checkpointing=true": {"checkpointing": True},
        "parallel.shard=true": {"shard": True},
        "parallel.shard_teacher=true": {"shard_teacher": True},
        f"processes={twice}" + f" batch={batch}" * (batch != setup.batch): {"processes": twice, "batch": batch},
        "parallel.micro_batch=1": {"micro_batch": 1},
        "parallel.dtype=bfloat16": {"dtype": 2, **halved} if setup.dtype == FLOAT else {},
        "teacher.frozen_dtype=bfloat16": {"frozen_dtype": min(2, setup.frozen_dtype)},
        "teacher.text=stored": {"frozen": {n: count for n, count in setup.frozen.items() if "text" not in n}},
        "log.gradients_every=0": {"compares": False},
    }
    peak = memory(setup).peak
    changed = [(setting, replace(setup, **change)) for setting, change in changes.items()]
    found = [Remedy(setting, peak - memory(other).peak, other) for setting, other in changed]
    return sorted((r for r in found if r.saves > 0), key=lambda r: -r.saves)


def way_to_fit(setup: Setup, available: int, most: int = 3) -> list[Remedy]:
    """At most so many remedies, each the most saving on top of those before and of another key, until all fits."""
    taken: list[Remedy] = []
    while len(taken) < most and memory(setup).peak > available:
        keys = [remedy.setting.partition("=")[0] for remedy in taken]
        left = [remedy for remedy in remedies(setup) if remedy.setting.partition("=")[0] not in keys]
        if not left:
            break
        taken.append(left[0])
        setup = left[0].setup
    return taken


def fewest(setup: Setup, available: int) -> int | None:
    """The fewest processes, a divisor of the batch, that hold the run, each taking as many clips at once as now."""
    setup = replace(setup, micro_batch=setup.clips)
    numbers = [n for n in range(1, setup.processes + 1) if setup.batch % n == 0]
    return next((n for n in numbers if memory(replace(setup, processes=n)).peak <= available), None)


def enough(setup: Setup, available: int, most: int = 1024) -> int | None:
    """The first doubling of the processes, up to `most`, that holds the run; None where none does."""
    while setup.processes < most:
        twice = 2 * setup.processes
        setup = replace(setup, processes=twice, batch=-(-setup.batch // twice) * twice)
        if memory(setup).peak <= available:
            return twice
    return None
