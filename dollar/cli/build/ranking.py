"""From conf/rank.yaml to the units of a network and what measures them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from omegaconf import DictConfig

from dollar.cli.build.configs import Configs, check_grid
from dollar.cli.build.rewards import check_captions, reward_of
from dollar.cli.build.sampling import LARGEST_SEED, TEACHER_STEPS

if TYPE_CHECKING:
    from dollar.models.teacher import Teacher
    from dollar.models.units import Unit
    from dollar.parallel.world import World
    from dollar.vip.measuring import Ranker
    from dollar.vip.scoring import Requests


def check_keys(config: DictConfig) -> None:
    """Raise ValueError for what could only fail once something was read."""
    for key in ("k", "clips", "looks", "batch"):
        if config[key] < 1:
            raise ValueError(f"{key} is {config[key]}; it must be at least 1")
    for key in ("shortlist", "steps"):
        if config[key] is not None and config[key] < 1:
            raise ValueError(f"{key} is {config[key]}; it must be at least 1, or null")
    if not 0 <= config.seed <= LARGEST_SEED - config.clips + 1:
        raise ValueError(f"seed is {config.seed}; seeds are from 0 to {LARGEST_SEED}, and each clip takes the next one")
    if config.shortlist is not None and config.shortlist < config.k:
        raise ValueError(f"shortlist is {config.shortlist}, but k={config.k} units are to be chosen among them")
    if config.shortlist is not None and config.by != "reward":
        raise ValueError(f"shortlist is of units that the reward scores, and by is {config.by}; leave one of them out")
    if not str(config.out).strip():
        raise ValueError("out is empty; name the folder of the table")
    if config.parallel.shard_teacher:
        raise ValueError(
            "parallel.shard_teacher is true, but each process makes clips of its own with a whole network; leave it out"
        )


def units_in(config: DictConfig, configs: Configs) -> list[Unit]:
    """The units that are ranked, in the network's order; ValueError where there are none or too few."""
    from dollar.models.pruned import pruning_of
    from dollar.models.units import units_of

    folder = None if config.checkpoint is None else Path(config.checkpoint)
    lists = configs.family.block_lists
    pruning = pruning_of(folder, config.teacher.name, configs.pipeline.config("transformer"), lists)
    halves = config.units == "halves"
    if halves and not any(blocks.halves for blocks in lists):
        names = " and ".join(blocks.name for blocks in lists)
        raise ValueError(
            f"units is halves, but the blocks of {names} compute attention and feed-forward together; give units=blocks"
        )
    units = [unit for unit in units_of(lists, pruning.counts, halves) if str(unit) not in pruning.halves]
    if config.k >= len(units):
        raise ValueError(
            f"k is {config.k}, which leaves nothing of {len(units)} {config.units}; give at most {len(units) - 1}"
        )
    return units


def steps_of(config: DictConfig, configs: Configs) -> int:
    """The step count of the clips; ValueError for one that can't be sampled."""
    from dollar.export.student import check_trained, read_card

    if config.checkpoint is None:
        steps = config.steps or TEACHER_STEPS
        check_grid(configs, steps, "steps")
        return int(steps)
    counts = read_card(config.checkpoint)["steps"]
    if config.steps is not None:
        check_trained(config.checkpoint, counts, config.steps)
    return int(config.steps or max(counts))


def clip_shape_of(config: DictConfig) -> tuple[int, int, int]:
    """(frames, height, width) of the teacher's clips."""
    return config.teacher.frames, config.teacher.height, config.teacher.width


def given_prompts(config: DictConfig, split: str = "train") -> list[str]:
    """All prompts of the file, or captions of a split of the shapes world."""
    from dollar.data import shapes
    from dollar.data.prompts import read_prompts
    from dollar.evaluation.yardstick import is_of_shapes

    if config.prompts is not None:
        return read_prompts(config.prompts)
    if is_of_shapes(clip_shape_of(config)):
        return shapes.captions(split)
    raise ValueError(f"prompts is null, but {config.teacher.name} is no teacher of the shapes world; give prompts=FILE")


def prompts_of(config: DictConfig, split: str = "train") -> list[str]:
    """The prompts, or captions of a split of the shapes world, one a clip, evenly spaced through those there are.

    Where there are fewer than clips, some come more than once; each clip has a seed of its own.
    """
    found = given_prompts(config, split)
    return [found[i] for i in np.linspace(0, len(found) - 1, config.clips).round().astype(int)]


def named_reward(node: DictConfig, prompts: list[str], use: str) -> Any:
    """A reward with named values; ValueError for one with a single number, or of other prompts.

    use: what needs the values, for the sentence.
    """
    reward = reward_of(node)
    if reward is None or not hasattr(reward, "scores"):
        name = "none" if reward is None else type(reward).__name__
        raise ValueError(
            f"{use} needs a reward with named values (`scores`), and reward is {name}; use reward=shapes, "
            "reward=video_score, or reward=mixture with a part for each"
        )
    if below := [name for name, weight in getattr(reward, "weights", {}).items() if weight < 0]:
        raise ValueError(
            f"reward.weights.{below[0]} is below 0, but {use} looks at each part by itself and takes more for better; "
            "leave it out, or name a part that grows with what is wanted"
        )
    check_captions(reward, prompts)
    return reward


def values_of(reward: Any, prompts: list[str], clip_shape: tuple[int, int, int]) -> list[str]:
    """The names of a reward's values, from a gray clip (frames, height, width)."""
    import torch

    frames, height, width = clip_shape
    return list(reward.scores(torch.full((1, frames, 3, height, width), 0.5), prompts[:1]))


def properties_of(config: DictConfig, names: list[str], reward: Any) -> tuple[list[str], str]:
    """The values whose mean is the total, and the one of consistency; ValueError for what the reward doesn't give."""
    properties = names if config.properties is None else [str(name) for name in config.properties]
    if not properties or len(set(properties)) < len(properties):
        raise ValueError(
            f"properties is {properties}; name some of {', '.join(names)}, each once, or give null for all"
        )
    if missing := [name for name in properties if name not in names]:
        raise ValueError(f"properties has {missing[0]}; the reward gives {', '.join(names)}")
    consistency = config.consistency or getattr(reward, "consistency", "")
    if config.by == "reward" and config.rule == "intersection" and consistency not in names:
        raise ValueError(
            f"consistency is {config.consistency or 'null'}, and rule=intersection looks at one of the reward's "
            f"values, {', '.join(names)}; name it, or give rule=total"
        )
    return properties, consistency if consistency in names else ""


def requests_of(config: DictConfig, prompts: list[str]) -> Requests:
    """A clip of each prompt, with seeds from `seed` on."""
    from dollar.vip.scoring import Requests

    return Requests(prompts, list(range(config.seed, config.seed + len(prompts))), config.batch)


def ranker_of(
    config: DictConfig, teacher: Teacher, world: World, reward: Any, prompts: list[str], steps: int
) -> Ranker:
    """What measures the units of the teacher, or of the student that `checkpoint` names."""
    from dollar.cli.build.teacher import dtype_of
    from dollar.export.student import load_student
    from dollar.sampling.samplers import teacher_sampler
    from dollar.vip.measuring import Ranker

    wanted = requests_of(config, prompts)
    if config.checkpoint is None:
        denoiser, sampler = teacher.denoiser, teacher_sampler(teacher, steps)
    else:
        student = load_student(config.checkpoint, teacher, dtype_of(config, "dtype"))
        denoiser, sampler = student.denoiser, student.sampler(teacher, steps)
    return Ranker(teacher, denoiser, sampler, reward, wanted, world, config.looks)
