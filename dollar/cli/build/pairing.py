"""From conf/pairs.yaml to the two models that make clips, the prompts, and the pairs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from omegaconf import DictConfig, OmegaConf

from dollar.cli.build.configs import Configs, check_grid
from dollar.cli.build.ranking import clip_shape_of, given_prompts, named_reward, values_of
from dollar.cli.build.sampling import LARGEST_SEED, TEACHER_STEPS
from dollar.cli.kept import Kept, kept_in
from dollar.cli.places import Compared, is_below, stored_at
from dollar.cli.run_folders import CONFIG
from dollar.cli.same import check_same

if TYPE_CHECKING:
    from dollar.models.teacher import Teacher
    from dollar.parallel.world import World
    from dollar.vip.curation import Curation, Outcome
    from dollar.vip.prompts import Filter

LOSERS = "losers"
# What the full model's clips depend on.
FULL = ("teacher", "reward", "reference", "steps", "parallel.dtype", "parallel.teacher_dtype")


class Steps(NamedTuple):
    """Step counts of the full model and of the smaller one."""

    full: int
    smaller: int


def check_keys(config: DictConfig) -> None:
    """Raise ValueError for what could only fail once something was made."""
    for key in ("clips", "probe", "batch"):
        if config[key] < 1:
            raise ValueError(f"{key} is {config[key]}; it must be at least 1")
    for key in ("steps", "smaller_steps"):
        if config[key] is not None and config[key] < 1:
            raise ValueError(f"{key} is {config[key]}; it must be at least 1, or null")
    if config.targets is not None and config.targets < 1:
        raise ValueError(f"targets is {config.targets}; it must be at least 1, or null")
    if config.shown < 0:
        raise ValueError(f"shown is {config.shown}; it must be at least 0")
    for key in ("checkpoint", "out"):
        if config[key] is None or not str(config[key]).strip():
            raise ValueError(f"{key} is not given; name a folder by {key}=FOLDER")
    if config.winners is not None and not str(config.winners).strip():
        raise ValueError("winners is empty; name a folder by winners=FOLDER, or give null for one in out")
    fewest, most = config.words
    if not 0 <= fewest <= most:
        raise ValueError(f"words is {list(config.words)}; it is the fewest and the most, such as [5,25]")
    for name, least in config.suited.items():
        if not all(0 <= score <= 3 for score in least):
            raise ValueError(f"suited.{name} is {list(least)}; it is the least motion and richness, each from 0 to 3")
    if not 0 <= config.seed <= LARGEST_SEED // 2:
        raise ValueError(f"seed is {config.seed}; it is from 0 to {LARGEST_SEED // 2}")
    if config.parallel.shard_teacher:
        raise ValueError(
            "parallel.shard_teacher is true, but each process makes clips of its own with a whole network; leave it out"
        )


def check_before(config: DictConfig) -> None:
    """Raise ValueError for what is known before anything is loaded: keys, and a chat model that isn't there."""
    check_keys(config)
    check_chat(config)


def check_chat(config: DictConfig) -> None:
    """Raise ValueError where prompts are still to be judged at an address, and nobody answers there."""
    from dollar.vip.chat import AtAddress
    from dollar.vip.requests import is_chosen

    if is_address(config.chat) and not is_chosen(Path(config.out)):
        AtAddress(config.chat).check()


def is_address(chat: str | None) -> bool:
    """Whether a chat model is at an address, and not in a folder of transformers."""
    return chat is not None and str(chat).startswith(("http://", "https://"))


def winners_of(config: DictConfig) -> Path:
    """The folder of the full model's clips."""
    return Path(config.winners) if config.winners is not None else Path(config.out) / "winners"


def kept_full(config: DictConfig) -> Kept:
    """What the full model's clips depend on; ValueError where their folder was begun with something else."""
    from dollar.export.student import read_card

    folder = winners_of(config)
    whole = kept_in("pairs", config, folder, begun=False)
    # Which teacher that is the card says, whatever the command line leaves out.
    settings: dict[str, Any] = {"made_by": read_card(config.checkpoint)["teacher_name"]}
    for key in FULL:
        node, _, name = key.partition(".")
        if name:
            settings.setdefault(node, {})[name] = whole.settings[node][name]
        else:
            settings[node] = whole.settings[node]
    places = [key for key in whole.places if is_below(key, FULL)]
    if (folder / CONFIG).is_file():
        way_out = "Name another folder with winners=FOLDER, or remove this one"
        check_same(folder / CONFIG, settings, way_out, (), config, Compared(places, stored_at(folder)))
    return Kept(folder, settings, places)


def steps_of(config: DictConfig, configs: Configs) -> Steps:
    """How many steps both models take; ValueError for counts that they aren't made for."""
    from dollar.export.student import check_trained, read_card

    if config.reference is None:
        full = int(config.steps or TEACHER_STEPS)
        check_grid(configs, full, "steps")
    else:
        check_reference(config, configs)
        counts = read_card(config.reference)["steps"]
        full = int(config.steps or max(counts))
        check_trained(config.reference, counts, full)
    counts, smaller = read_card(config.checkpoint)["steps"], int(config.smaller_steps or full)
    if smaller not in counts:
        known = " or ".join(map(str, sorted(counts, reverse=True)))
        raise ValueError(
            f"the student in {config.checkpoint} is sampled in {known} steps, and its clips are to be made in "
            f"{smaller}; give steps={max(counts)}, or smaller_steps={max(counts)}"
        )
    return Steps(full, smaller)


def check_reference(config: DictConfig, configs: Configs) -> None:
    """Raise ValueError for a full model of which the smaller one is not what is left."""
    from dollar.models.pruned import pruning_of

    places = Path(config.reference), Path(config.checkpoint)
    of_teacher = config.teacher.name, configs.pipeline.config("transformer"), configs.family.block_lists
    full, smaller = (pruning_of(place, *of_teacher) for place in places)
    if places[0].resolve() == places[1].resolve() or not smaller.is_part_of(full):
        raise ValueError(
            f"reference={config.reference} is the full model, but checkpoint={config.checkpoint} isn't pruned from it: "
            f"{'they are one folder' if places[0].resolve() == places[1].resolve() else f'it lacks {full.described}'}; "
            "give the student that was pruned, or leave reference out for the teacher"
        )


def reward_and_prompts(config: DictConfig) -> tuple[Any, list[str], list[str]]:
    """The reward, all prompts, and the names of the reward's values."""
    prompts = given_prompts(config)
    reward = named_reward(config.reward, prompts, "pairing")
    return reward, prompts, values_of(reward, prompts, clip_shape_of(config))


def targets_given(config: DictConfig, names: Sequence[str]) -> list[str] | None:
    """The targets that were named, None where they are to be found; ValueError for what the reward doesn't give."""
    if config.target is None:
        return None
    given = list(config.target) if OmegaConf.is_list(config.target) else [config.target]
    if not given or len({*given}) < len(given):
        raise ValueError(f"target is {given}; give one property or several, each once, or null")
    if missing := [name for name in given if name not in names]:
        raise ValueError(f"target has {missing[0]}; the reward gives {', '.join(names)}")
    return given


def filter_of(config: DictConfig, world: World) -> Filter:
    """What looks through the prompts, by keywords or by a chat model."""
    from dollar.vip.prompts import Filter, by_keywords
    from dollar.vip.requests import Remembered

    fewest, most = config.words
    if config.chat is None:
        return Filter((fewest, most), by_keywords)
    from dollar.models.chat import ChatModel
    from dollar.vip.chat import AtAddress, ByChat

    place = str(config.chat)
    chat = AtAddress(place) if is_address(place) else ChatModel(place, world.device)
    return Filter((fewest, most), Remembered(ByChat(chat), Path(config.out)))


def curation_of(
    config: DictConfig,
    teacher: Teacher,
    reward: Any,
    steps: Steps,
    prompts: Sequence[str],
    world: World,
    stopped: Callable[[], bool],
) -> Curation:
    """What makes the clips of both models, and pairs them."""
    from dollar.cli.build.teacher import dtype_of
    from dollar.export.student import load_student
    from dollar.sampling.samplers import teacher_sampler
    from dollar.vip.clips import Maker
    from dollar.vip.curation import Curation, Plan

    out, dtype = Path(config.out), dtype_of(config, "dtype")
    if config.reference is None:
        full = teacher_sampler(teacher, steps.full)
    else:
        full = load_student(config.reference, teacher, dtype).sampler(teacher, steps.full)
    smaller = load_student(config.checkpoint, teacher, dtype).sampler(teacher, steps.smaller)
    rest = teacher, reward, config.batch
    suited = {str(name): tuple(least) for name, least in config.suited.items()}
    plan = Plan(
        config.clips, config.probe, config.targets, config.seed, suited, config.floor, config.widest, config.unit
    )
    return Curation(
        out,
        Maker(winners_of(config), "clips of the full model", full, *rest),
        Maker(out / LOSERS, "clips of the smaller model", smaller, *rest),
        plan,
        prompts,
        filter_of(config, world) if world.is_main else None,
        world,
        stopped,
    )


def tell(config: DictConfig, work: Curation, found: Outcome | None, teacher: Teacher) -> None:
    """Write the list and its page, and print what came out."""
    from dollar.vip.curation import write_pairs
    from dollar.vip.pairs_page import write_pairs_page

    winners, losers = work.full.folder, work.smaller.folder
    if found is None:
        print(f"stopped; the same command goes on with the clips in {winners} and {losers}")
        return
    page = work.out / "pairs.html"
    write_pairs(work.out, winners, losers, found)
    write_pairs_page(page, winners, losers, found, teacher, config.shown)
    print("\n".join(found.lines))
    if (count := len(found.paired.pairs)) < config.batch:
        print(f"note: these are fewer than batch={config.batch}; a training takes at least its own batch of pairs")
    print(f"the {count} pairs are listed in {work.out / 'pairs.jsonl'} and shown in {page}")
