"""From conf/prune.yaml to what is pruned, and the folder that is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from dollar.cli.build.configs import check_grid, configs_of_teacher
from dollar.cli.entry import check_alone

if TYPE_CHECKING:
    from torch import nn

    from dollar.diffusion.timesteps import FewStep
    from dollar.models.pruned import Pruning
    from dollar.models.teacher import Teacher
    from dollar.models.units import Unit


@dataclass
class Subject:
    """What is pruned: its network, what is left of it before, the units that go, its samplers, and its card's lines."""

    network: Any
    pruning: Pruning
    units: list[Unit]
    samplers: Mapping[int, FewStep]
    card: dict[str, Any]
    teacher: Teacher

    def without(self) -> nn.Module:
        """A network without the units, its parameters those of the whole one."""
        from dollar.models.units import take_out

        network: Any = self.teacher.empty_network(self.pruning)
        network.load_state_dict(self.network.state_dict(), assign=True)
        take_out(network.transformer, self.units, self.teacher.family.block_lists)
        return network.eval().requires_grad_(False)


def check_keys(config: DictConfig) -> None:
    """Raise ValueError for what could only fail once something was read."""
    from dollar.models.pruned import FILE

    check_alone("pruning")
    if config.out is None or not str(config.out).strip():
        raise ValueError("out is not given; name the folder for the pruned network, as out=runs/pruned")
    out = Path(config.out)
    if config.checkpoint is not None and out.resolve() == Path(config.checkpoint).resolve():
        raise ValueError(f"out={out} is what is pruned; name another folder")
    if out.is_dir() and any(out.iterdir()):
        if not config.overwrite:
            raise ValueError(f"out={out} is not empty; name another folder, or give overwrite=true")
        if not (out / FILE).is_file():
            raise ValueError(f"overwrite=true replaces an earlier pruned folder, and out={out} holds something else")
    if config.repeats < 0:
        raise ValueError(f"repeats is {config.repeats}; it must be at least 0")


def units_in(config: DictConfig) -> list[Unit]:
    """The units of `remove`; ValueError for one that there isn't, by the configs alone."""
    from dollar.models.pruned import pruning_of
    from dollar.models.units import parse

    configs = configs_of_teacher(config)
    folder = None if config.checkpoint is None else Path(config.checkpoint)
    if folder is None:
        check_steps_of(config, configs)
    lists = configs.family.block_lists
    pruning = pruning_of(folder, config.teacher.name, configs.pipeline.config("transformer"), lists)
    return pruning.completed(parse([str(name) for name in config.remove], lists, pruning.counts))


def check_steps_of(config: DictConfig, configs: Any) -> None:
    """Raise ValueError for step counts that the teacher can't be sampled at."""
    from dollar.export.student import check_steps

    check_steps(None, config.steps)
    for steps in config.steps:
        check_grid(configs, steps, "steps")


def subject_of(config: DictConfig, teacher: Teacher) -> Subject:
    """The teacher itself, sampled with guidance at config.steps, or the student that `checkpoint` names."""
    from dollar.cli.origin import STORED, places_of
    from dollar.cli.run_folders import command_line, teacher_to_store
    from dollar.export.student import few_steps, read_card

    units = units_in(config)
    if config.checkpoint is None:
        stored = {"teacher": teacher_to_store(config), "reward": {}}
        samplers = few_steps(teacher, None, list(config.steps), "ddim")
        card: dict[str, Any] = {
            "cycle": 0,
            "trained": 0,
            "ended": None,
            "guided": True,
            "parameterization": "homogeneous",
        }
        card |= {"teacher": stored["teacher"], STORED: places_of(stored), "config": {}}
        pruning = teacher.pruning()
        network: Any = teacher.denoiser.network
    else:
        folder = Path(config.checkpoint)
        card = read_card(folder)
        samplers = few_steps(teacher, card["timesteps"], card["steps"], card["between"])
        pruning, network = teacher.pruning(folder), teacher.load_network(folder)
    return Subject(network, pruning, units, samplers, card | {"pruned": command_line()}, teacher)


def save_pruned(
    config: DictConfig, folder: Path, teacher: Teacher, network: nn.Module, subject: Subject, pruning: Pruning
) -> None:
    """Write the student's folder."""
    from dollar.export.student import save_student

    save_student(folder, teacher, network, subject.samplers, subject.card, pruning=pruning)
