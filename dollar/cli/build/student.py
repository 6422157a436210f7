"""The student of a finished run as a folder."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig
from torch import Tensor

from dollar.cli.build.loop import Run
from dollar.cli.origin import STORED, places_of
from dollar.cli.run_folders import command_line, to_store
from dollar.export.student import few_steps, read_card, save_student
from dollar.models.adapter import factors, merged
from dollar.models.teacher import Teacher
from dollar.parallel import checkpoint
from dollar.parallel.shard import whole
from dollar.storage import explained


def is_written(student: Path, cycles: int) -> bool:
    """Whether the student of a run of so many cycles is there."""
    try:
        return read_card(student)["trained"] == cycles
    except (ValueError, KeyError):
        return False


def write_student(run: Run, teacher: Teacher, config: DictConfig) -> None:
    """runs/<run>/student (averaged weights, the kept ones where a monitor prefers those) and runs/<run>/lrm."""
    loop = run.loop
    assert loop.average is not None
    averages, weights, cycle = loop.average.average, dict[str, Tensor](), loop.cycle
    for name, parameter in run.ingredients.student.network.named_parameters():
        gathered = whole(
            averages.get(name, parameter).detach()
        )  # every process must call it, only the first keeps the result
        if loop.world.is_main:
            weights[name] = gathered.cpu()
    best = checkpoint.newest(loop.folder / "best") if loop.uses_best and loop.best else None
    if best is not None:
        tensors, plain = checkpoint.load(best)
        weights |= {name: tensors[f"ema/{name}"] for name in averages}
        cycle = plain["best"]["cycle"]
    if loop.world.is_main:
        pruning = teacher.pruning(None if config.init is None else Path(config.init))
        network = teacher.empty_network(pruning)
        network.load_state_dict(merged(weights), strict=False, assign=True)
        samplers = few_steps(teacher, config.student.timesteps, config.student.steps, config.student.between)
        stored = to_store(config)
        card = {
            "cycle": cycle,
            "trained": loop.cycle,
            "ended": loop.ended or None,
            "guided": bool(config.student.guided),
            "parameterization": config.student.parameterization,
            "teacher": stored["teacher"],
            STORED: places_of(stored),
            "command": command_line(),
            "config": stored,
        }
        surrogate, way_out = run.ingredients.surrogate, "The checkpoints are whole; the same command writes it again"
        with explained("the student", loop.folder, after=way_out):
            if surrogate is not None:
                surrogate.save(loop.folder / "lrm", teacher)
            save_student(loop.folder / "student", teacher, network, samplers, card, factors(weights), pruning)
        print(f"the student of cycle {cycle} is in {loop.folder / 'student'}")
    loop.world.barrier()
