"""From conf/vip.yaml to the stages and what follows them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf, open_dict

if TYPE_CHECKING:
    from dollar.cli.build.configs import Configs
    from dollar.evaluation.measures.size import Size
    from dollar.models.teacher import Teacher
    from dollar.vip.stages import Stages, Step

VERBS = ("rank", "prune", "pairs", "train", "score", "evaluate", "export")
# What the stages give each of their steps, by which these find each other's folders.
OWN = {
    "rank": ("k", "units", "checkpoint", "out"),
    "prune": ("remove", "checkpoint", "out"),
    "pairs": ("checkpoint", "reference", "out"),
    "train": ("init", "data", "data.path", "run", "runs"),
    "score": ("checkpoints", "full", "out"),
}


def check_keys(config: DictConfig) -> None:
    """Raise ValueError for what could only fail hours later."""
    from dollar.cli.entry import check_alone

    check_alone("launch/vip.py")
    for key in ("stages", *VERBS):
        if not OmegaConf.is_list(config[key]):
            raise ValueError(f"{key} is {config[key]}; write {key}=[{config[key]}]")
    for key, least in (("steps", 1), ("processes", 1), ("repeats", 0), ("seed", 0)):
        if config[key] < least:
            raise ValueError(f"{key} is {config[key]}; it must be at least {least}")
    if not 0 <= config.give_up <= 1:
        raise ValueError(f"give_up is {config.give_up}; it is a share, from 0 (never) to 1")
    if not str(config.out).strip():
        raise ValueError("out is empty; name the folder of the whole")
    if not config.fresh and not config.online:
        raise ValueError(
            "fresh=false keeps the first stage's pairs, and online=false leaves one stage; give one of them"
        )


def check_teacher(config: DictConfig) -> None:
    """Raise ValueError where the teacher of the checkpoint isn't that of the commands, before it is taken."""
    from dollar.export.student import read_card

    name = config.teacher.name if config.checkpoint is None else read_card(config.checkpoint)["teacher_name"]
    if name != config.teacher.name:
        raise ValueError(
            f"the student in {config.checkpoint} is one of the teacher {name}, and teacher is {config.teacher.name}; "
            f"give teacher={name}"
        )


def stages_of(config: DictConfig) -> Stages:
    """The stages; with online=false one that takes all units."""
    from dollar.vip.stages import Stages

    counts = [int(count) for count in config.stages]
    return Stages(
        Path(config.out),
        counts if config.online else [sum(counts)],
        [*given_of("teacher"), *given_of("parallel")],
        given_of("reward"),
        student_of(config),
        None if config.checkpoint is None else str(config.checkpoint),
        config.steps,
        config.units,
        config.seed,
        config.fresh,
        config.unfallen,
        {verb: [str(word) for word in config[verb]] for verb in VERBS},
    )


def student_of(config: DictConfig) -> list[str]:
    """How what is left is sampled: as the teacher, in so many guided steps, or as the student that is made smaller."""
    from dollar.export.student import read_card

    if config.checkpoint is None:
        return [f"student.steps=[{config.steps}]"]
    card = read_card(config.checkpoint)
    lists = {key: f"[{','.join(map(str, card[key]))}]" for key in ("timesteps", "steps")}
    guided = bool(card.get("guided", False))
    plain = {"between": card["between"], "guided": str(guided).lower()}
    # One of many guided steps, as an earlier result of this command, is sampled at any time.
    times = f"preference.times={'uniform' if guided else 'student'}"
    return [*(f"student.{key}={value}" for key, value in (lists | plain).items()), times]


def given_of(group: str) -> list[str]:
    """A choice of a group of conf/ with what the command line says of its keys, as arguments of another command."""
    from hydra.core.hydra_config import HydraConfig

    hydra = HydraConfig.get()
    below = [word for word in hydra.overrides.task if word.lstrip("+").startswith(f"{group}.")]
    return [f"{group}={hydra.runtime.choices[group]}", *below]


def check_commands(stages: Stages, config: DictConfig) -> None:
    """Raise ValueError for an argument that its command would refuse, and for units that there aren't."""
    from hydra.core.global_hydra import GlobalHydra

    from dollar.cli.arguments import as_they_stand
    from dollar.cli.build import evaluation, pairing, scoring
    from dollar.cli.build.configs import configs_of_teacher
    from dollar.cli.build.loop import check
    from dollar.cli.calls import composed_of
    from dollar.models.pruned import pruning_of
    from dollar.models.units import units_of

    check_given(stages)
    configs = configs_of_teacher(config)
    lists = configs.family.block_lists
    folder = None if config.checkpoint is None else Path(config.checkpoint)
    pruning = pruning_of(folder, config.teacher.name, configs.pipeline.config("transformer"), lists)
    halves = config.units == "halves"
    units = [unit for unit in units_of(lists, pruning.counts, halves) if str(unit) not in pruning.halves]
    if sum(stages.counts) >= len(units):
        raise ValueError(
            f"stages is {list(config.stages)}, {sum(stages.counts)} units in all, and there are {len(units)} "
            f"{config.units}; leave at least one"
        )
    check_reward(config.reward)
    # What they would refuse hours later; the pairs of a training aren't there yet.
    checks: dict[str, Callable[[DictConfig], Any]] = {
        "rank": lambda given: check_ranking(given, configs),
        "pairs": pairing.check_before,
        "train": lambda given: check(given, config.processes, supplied=False),
        "score": scoring.check_keys,
        "evaluate": lambda given: evaluation.check_figures(_of_teacher(given, config), configs),
    }
    GlobalHydra.instance().clear()  # each check composes a configuration of its own
    for step in [*stages.steps_of(1, [str(unit) for unit in units[:1]]), *further_of(stages, str(stages.student(1)))]:
        try:
            with composed_of(step.verb, as_they_stand(step.verb, list(step.arguments))) as given:
                checks.get(step.verb, lambda _: None)(given)
        except ValueError as error:
            raise ValueError(f"{step.name}, launch/{step.verb}.py: {error}") from None


def check_reward(node: DictConfig) -> None:
    """Raise ValueError for a reward without named values; it isn't built."""
    from hydra.utils import get_object

    target = node.get("_target_")
    if target is None or not hasattr(get_object(target), "scores"):
        raise ValueError(
            f"units, pairs and stages are judged by a reward with named values (`scores`), and reward is "
            f"{target or 'none'}; use reward=shapes, reward=video_score, or reward=mixture with a part for each"
        )


def check_ranking(given: DictConfig, configs: Configs) -> None:
    """Raise ValueError for a ranking whose clips can't be made."""
    from dollar.cli.build import ranking

    ranking.check_keys(given)
    ranking.steps_of(given, configs)
    ranking.prompts_of(given)


def check_given(stages: Stages) -> None:
    """Raise ValueError for an argument of a step that says what the stages themselves say to it."""
    for verb, own in OWN.items():
        for word in stages.given.get(verb, ()):
            if (key := word.lstrip("+").partition("=")[0]) in own:
                raise ValueError(f"{verb} has {word}, but each stage gives {key} itself; leave it out")


def _of_teacher(given: DictConfig, config: DictConfig) -> DictConfig:
    """The configuration of a step that takes its teacher from a student's card, which isn't there yet."""
    with open_dict(given):
        given.teacher = config.teacher
    return given


def further_of(stages: Stages, student: str, shapes: bool = True) -> list[Step]:
    """What follows the stages: an evaluation, where the teacher is of the shapes world, and an export."""
    clips = "teacher_clips=256"
    found = []
    if shapes:
        measured = [clips, "untrained=false", f"out={stages.out / 'evaluation'}"]
        steps = [] if stages.checkpoint else [f"teacher_steps={stages.steps}"]
        found.append(stages.step("evaluate", "evaluate", [f"checkpoint={student}", *steps, *measured]))
    export = [f"checkpoint={student}", f"out={stages.out / 'export'}", "overwrite=true"]
    return [*found, stages.step("export", "export", export)]


def sizes_of(config: DictConfig, teacher: Teacher, students: dict[str, str]) -> dict[str, Size]:
    """The sizes of the full network and of students by label, their forwards timed in turn."""
    from dollar.evaluation.measures.size import sizes

    networks: dict[str, Any] = {"full": teacher.denoiser.network}
    networks |= {label: teacher.load_network(Path(folder)) for label, folder in students.items()}
    return sizes(teacher, networks, config.repeats)
