"""A run's folder: its name, the configuration it keeps, and what is said at its beginning and end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from dollar.cli.same import check_same
from dollar.cli.sweeps import job_folder

CONFIG = "config.yaml"
# Keys, and what lies below them, that may change when a run goes on: how long and how often, not what is learned.
FREE = (
    *("cycles", "save_every", "keep", "validation", "log", "runs", "run", "keep_best"),
    *("parallel.device", "parallel.timeout_minutes", "parallel.activation_checkpointing", "parallel.shard_teacher"),
    "data.samples",  # repeats the other keys of data
)

# Keys that came later, with what every run before them had.
LATER = {
    "vsd.lower_half": None,
    "vsd.lower_half_over": [0.3, 0.7],
    "student.lora": None,
    "student.guided": False,
    "patience": None,
    "beta_pull": 0.0,
    "pull.steps": 4,
    "pull.guidance_scale": 1.5,
    "guard.reward._target_": None,
    "terms.pull._target_": "dollar.losses.pull.Pull",
    "terms.pull.beta": 0.0,
    "terms.pull.steps": 4,
    "terms.pull.guidance_scale": 1.5,
    "guard.action": "none",
    "guard.patience": 2,
    "guard.tolerance": 0.02,
    "guard.factor": 0.5,
    "lrm.mode": "online",
    "lrm.path": None,
    "lrm.backbone": "cnn",
    "lrm.blocks": 2,
    "lrm.noise": [0.0, 0.5],
    "lrm.noised": False,
    "lrm.fit": "mse",
}


def run_folder(config: DictConfig) -> Path:
    """runs/<run>, or a folder below it for each job of a sweep, named by its overrides; ValueError for no name."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    name = "" if config.run is None else str(config.run).strip()
    if name in ("", ".") or ".." in Path(name).parts or Path(name).is_absolute():
        raise ValueError(f"run={name} names no folder below runs={config.runs}; give run=NAME, a word of its own")
    hydra = HydraConfig.get()
    if hydra.mode == RunMode.MULTIRUN:
        return job_folder(config, hydra.job.override_dirname)
    return Path(config.runs) / str(config.run)


def check_run(config: DictConfig, folder: Path) -> None:
    """Raise ValueError if the folder holds a run of another configuration."""
    if any((folder / part).is_dir() for part in ("checkpoints", "student")):  # otherwise nothing could be lost
        way_out = "Give this run a name of its own with run=NAME, or remove the folder"
        check_same(folder / CONFIG, to_store(config), FREE, LATER, way_out)


def check_init(config: DictConfig) -> None:
    """Raise ValueError unless the student to start from, if any, has outputs of the meaning that is asked for."""
    if config.init is None:
        return
    from dollar.export.student import read_card

    before, now = read_card(config.init).get("parameterization", "homogeneous"), config.student.parameterization
    if before != now:
        raise ValueError(
            f"the student in {config.init} is {before} and student.parameterization is {now}; use {before}, or start "
            "from the teacher with init=null"
        )


def to_store(config: DictConfig) -> dict[str, Any]:
    """The configuration as it is stored: resolved, but for the embedded folders, which may move with the project."""
    unresolved: Any = OmegaConf.to_container(config.teacher, resolve=False)
    resolved: Any = OmegaConf.to_container(config, resolve=True)
    if "${embedded:" in str(unresolved["folder"]):
        resolved["teacher"]["folder"] = unresolved["folder"]
    return resolved


def announce(config: DictConfig, run: Any, folder: Path, done: int) -> None:
    """Say what is about to be trained, with guidance in both the paper's form and diffusers'."""
    further = "".join(
        f" and {name} {t.beta:g}"
        for name, t in run.ingredients.objective.terms.items()
        if name not in ("vsd", "cd", "ft")
    )
    processes, longest = run.loop.world.size, max(run.ingredients.samplers, key=lambda sampler: sampler.steps)
    print(
        f"{'going on at cycle ' + str(done) if done else 'training'} in {folder}: teacher {config.teacher.name}, "
        f"student {list(longest.asked)} for {list(config.student.steps)} steps, "
        f"beta_vsd={config.beta_vsd} beta_cd={config.beta_cd} beta_ft={config.beta_ft}{further}, "
        f"{config.cycles} cycles of {config.batch} clips on {processes} process{'es' if processes > 1 else ''}\n"
        f"guidance u + s (c - u): VSD s = {config.vsd.guidance_scale} (paper's w = {config.vsd.guidance_scale - 1}), "
        f"CD s = {config.cd.guidance_scale} (w = {config.cd.guidance_scale - 1})"
    )


def command_line() -> list[str]:
    """What the command line gave, key=value."""
    from hydra.core.hydra_config import HydraConfig

    return list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []


def last_reward(folder: Path) -> float | None:
    """The last validation reward of a run, None where there was none."""
    from dollar.training.log import read_scalars

    if not (folder / "metrics.jsonl").is_file():
        return None
    scores = [c.values[-1] for n, c in sorted(read_scalars(folder).items()) if n.startswith("validation/reward")]
    return float(scores[-1]) if scores else None
