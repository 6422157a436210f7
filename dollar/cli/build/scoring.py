"""From conf/score.yaml to the networks that are compared."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from omegaconf import DictConfig, OmegaConf

from dollar.cli.build.configs import Configs, check_grid
from dollar.cli.build.sampling import LARGEST_SEED, TEACHER_STEPS

if TYPE_CHECKING:
    from dollar.models.teacher import Teacher
    from dollar.sampling.samplers import Sampler

FULL = "full"  # the teacher's label


class Network(NamedTuple):
    """A network by its label and the digest of its weights; sampler: makes its clips, given the teacher."""

    label: str
    weights: str
    sampler: Callable[[Teacher], Sampler]


def check_keys(config: DictConfig) -> None:
    """Raise ValueError for what could only fail once something was read."""
    if not OmegaConf.is_list(config.checkpoints):
        raise ValueError(f"checkpoints is {config.checkpoints}; write checkpoints=[{config.checkpoints}]")
    if not config.checkpoints and not config.full:
        raise ValueError(
            "checkpoints is empty and full is false, so there is nothing to score; name a student's folder"
        )
    if not str(config.out).strip():
        raise ValueError("out is empty; name the folder of the values")
    if len({Path(name) for name in config.checkpoints}) < len(config.checkpoints) or FULL in config.checkpoints:
        raise ValueError(f"checkpoints is {list(config.checkpoints)}; name each folder once, and none {FULL!r}")
    for key, least in (("clips", 2), ("batch", 1)):
        if config[key] < least:
            raise ValueError(f"{key} is {config[key]}; it must be at least {least}")
    if config.steps is not None and config.steps < 1:
        raise ValueError(f"steps is {config.steps}; it must be at least 1, or null")
    if not 0 <= config.seed <= LARGEST_SEED - config.clips + 1:
        raise ValueError(f"seed is {config.seed}; seeds are from 0 to {LARGEST_SEED}, and each clip takes the next one")
    if config.parallel.shard_teacher:
        raise ValueError(
            "parallel.shard_teacher is true, but each process makes clips of its own with a whole network; leave it out"
        )


def take_teacher_of(config: DictConfig) -> None:
    """Put the students' teacher into the configuration; ValueError where they have not the same."""
    from omegaconf import open_dict

    from dollar.cli.build.teacher import take_teacher
    from dollar.export.student import read_card

    names = {str(folder): read_card(folder)["teacher_name"] for folder in config.checkpoints}
    if len(set(names.values())) > 1:
        raise ValueError(f"the students came from different teachers ({names}); score those of one teacher at a time")
    with open_dict(config):
        config.checkpoint = next(iter(names), None)
    if names:
        take_teacher(config)


def networks_of(config: DictConfig, configs: Configs) -> list[Network]:
    """The networks, the full one first; no weight is read.

    ValueError for step counts that one can't be sampled in, and for blocks that disagree with what a folder says.
    """
    from dollar.cli.build.sampling import places_behind
    from dollar.cli.build.teacher import dtype_of
    from dollar.contents import contents_of, short_hash
    from dollar.export.student import check_trained, load_student, read_card, student_weights, weights_of
    from dollar.models.pruned import pruning_of
    from dollar.sampling.samplers import teacher_sampler

    dtype, found = dtype_of(config, "dtype"), []
    if config.full:
        steps = int(config.steps or TEACHER_STEPS)
        check_grid(configs, steps, "steps")
        places = places_behind(OmegaConf.merge(config, {"checkpoint": None}), configs)  # type: ignore[arg-type]
        digest = short_hash([contents_of(place).digest for place in places])
        found.append(Network(FULL, digest, lambda teacher: teacher_sampler(teacher, steps)))

    def of(folder: str, count: int) -> Network:
        return Network(
            folder, weights_of(folder), lambda teacher: load_student(folder, teacher, dtype).sampler(teacher, count)
        )

    of_teacher = config.teacher.name, configs.pipeline.config("transformer"), configs.family.block_lists
    for folder in map(str, config.checkpoints):
        student_weights(folder)
        pruning_of(Path(folder), *of_teacher)
        counts = read_card(folder)["steps"]
        if config.steps is not None:
            check_trained(folder, counts, config.steps)
        found.append(of(folder, int(config.steps or max(counts))))
    return found


def first_of(config: DictConfig) -> str:
    """The label that the others are compared with."""
    return FULL if config.full else str(config.checkpoints[0])
