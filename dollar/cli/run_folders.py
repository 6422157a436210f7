"""A run's folder: its name, the configuration it keeps, and the messages at its beginning and end."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from dollar.cli.build.objects import as_text
from dollar.cli.former import take_former
from dollar.cli.places import Compared, is_below, known_now, place_keys, store, stored_at
from dollar.cli.same import check_same
from dollar.cli.settings import COMMANDS, free_keys
from dollar.cli.sweeps import job_folder
from dollar.media import atomically

CONFIG = "config.yaml"
GROWING = ("data", "init")  # what is added there is no other run: data is known by its captions, and init was read


def check_name(config: DictConfig) -> None:
    """Raise ValueError for a run's name that names no folder below runs."""
    name = "" if config.run is None else str(config.run).strip()
    if name in ("", ".") or ".." in Path(name).parts or Path(name).is_absolute():
        raise ValueError(f"run={name} names no folder below runs={config.runs}; give run=NAME, a word of its own")


def run_folder(config: DictConfig) -> Path:
    """runs/<run>, or a folder below it for each job of a sweep, named by what varies; ValueError for no name."""
    check_name(config)
    hydra_config = HydraConfig.get()
    if hydra_config.mode == RunMode.MULTIRUN:
        return job_folder(config, hydra_config)
    return Path(config.runs) / str(config.run)


def check_run(config: DictConfig, folder: Path) -> list[str]:
    """Raise ValueError if the folder holds a run of another configuration, or of places that hold something else.

    Where defaults have changed since it began, `config` gets those that it began with. Returns the keys of places that
    decide what is trained.
    """
    keys = kept_places(config)
    if any((folder / part).is_dir() for part in ("checkpoints", "student")):  # otherwise nothing could be lost
        way_out = "Give this run a name of its own with run=NAME, or remove the folder"
        take_former(config, folder / CONFIG)
        places = Compared(keys, stored_at(folder), list(config.same), GROWING)
        check_same(folder / CONFIG, to_store(config), way_out, free_keys(COMMANDS["train"]), config, places)
    return keys


def kept_places(config: DictConfig) -> list[str]:
    """The keys of places that decide what is trained; of a configuration from which nothing was built yet."""
    plain: Any = OmegaConf.to_container(config, resolve=False)
    free = free_keys(COMMANDS["train"])
    return [key for key in place_keys(COMMANDS["train"], plain) if not is_below(key, free)]


def store_config(config: DictConfig, folder: Path, places: Sequence[str]) -> None:
    """Write config.yaml, and what the places of these keys hold into places.json."""
    stored = to_store(config)
    folder.mkdir(parents=True, exist_ok=True)
    with atomically(folder / CONFIG) as temporary:
        OmegaConf.save(OmegaConf.create(stored), temporary)
    store(folder, known_now(places, stored))


def check_init(config: DictConfig) -> None:
    """Raise ValueError unless the student to start from, if any, has outputs of the configured meaning."""
    if config.init is None:
        return
    from dollar.export.student import read_card
    from dollar.models.pruned import read_pruning

    if (pruning := read_pruning(config.init)) is not None and pruning.teacher != config.teacher.name:
        raise ValueError(
            f"init={config.init} is what is left of the teacher {pruning.teacher}, and teacher is "
            f"{config.teacher.name}; give teacher={pruning.teacher}"
        )
    before, now = read_card(config.init).get("parameterization", "homogeneous"), config.student.parameterization
    if before != now:
        raise ValueError(
            f"the student in {config.init} is {before} and student.parameterization is {now}; use {before}, or start "
            "from the teacher with init=null"
        )


def to_store(config: DictConfig) -> dict[str, Any]:
    """The configuration as it is stored: resolved, but for the embedded folders, which may move with the project."""
    resolved: dict[str, Any] = as_text(OmegaConf.to_container(config, resolve=True))
    return resolved | {"teacher": teacher_to_store(config)}


def teacher_to_store(config: DictConfig) -> dict[str, Any]:
    """The teacher's settings as they are stored."""
    unresolved: Any = OmegaConf.to_container(config.teacher, resolve=False)
    resolved: Any = as_text(OmegaConf.to_container(config.teacher, resolve=True))
    return _embedded(unresolved, resolved)


def _embedded(unresolved: Any, resolved: Any) -> Any:
    """The resolved values, but for texts that name an embedded folder."""
    if isinstance(resolved, dict):
        return {key: _embedded(unresolved[key], value) for key, value in resolved.items()}
    return unresolved if "${embedded:" in str(unresolved) else resolved


def announce(config: DictConfig, run: Any, folder: Path, done: int) -> None:
    """Print what is about to be trained, with guidance in both the paper's form and diffusers'."""
    objective = run.ingredients.objective
    terms = ", ".join(f"{name} {term.beta:g}" for name, term in objective.terms.items())
    scales = ", ".join(f"{name} s = {scale:g} (w = {scale - 1:g})" for name, scale in objective.guidance.items())
    processes, longest = run.loop.world.size, max(run.ingredients.samplers, key=lambda sampler: sampler.steps)
    print(
        f"{'going on at cycle ' + str(done) if done else 'training'} in {folder}: teacher {config.teacher.name}, "
        f"student {list(longest.configured)} for {list(config.student.steps)} steps, terms {terms}, "
        f"{config.cycles} cycle{'s' * (config.cycles > 1)} of {config.batch} clips on {processes} "
        f"process{'es' if processes > 1 else ''}"
        + (f"\nguidance u + s (c - u), in the paper's form w = s - 1: {scales}" if scales else "")
    )


def announce_end(config: DictConfig, folder: Path, done: int, ended: str) -> None:
    """Print that there is nothing left to train; ended: why the run ended before its last cycle, "" where it didn't."""
    early = f" It ended early: {ended}." if ended else ""
    print(f"{folder} is finished: {done} of {config.cycles} cycles.{early} Its student is in {folder / 'student'}")


def command_line() -> list[str]:
    """The key=value settings of the command line."""
    return list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []


def last_reward(folder: Path) -> float | None:
    """The last validation reward of a run, None where there was none."""
    from dollar.training.log import read_scalars

    if not (folder / "metrics.jsonl").is_file():
        return None
    scores = [c.values[-1] for n, c in sorted(read_scalars(folder).items()) if n.startswith("validation/reward")]
    return float(scores[-1]) if scores else None
