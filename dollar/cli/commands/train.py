"""Distil a teacher into a student of a few steps: `torchrun launch/train.py [key=value ...]`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from dollar.cli.entry import check_folder_for
from dollar.cli.run_folders import CONFIG, check_run, run_folder, to_store

STOPPED = 3  # exit code of a run that was asked to stop and saved; in a sweep no further job is begun


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


def main(config: DictConfig) -> float | None:
    """Train, go on with what was stopped, or find the run finished; returns the last validation reward for sweeps."""
    from dollar.cli.build.rewards import guard_of, rewards_of
    from dollar.cli.build.run import dtype_of, objective_of, plan_of, validation_of
    from dollar.export.student import check_steps

    # Mistakes in numbers are told before anything is loaded.
    objective_of(config), plan_of(config, int(os.environ.get("WORLD_SIZE", 1))), validation_of(config), guard_of(config)
    dtype_of(config, "dtype"), dtype_of(config, "teacher_dtype")
    check_steps(config.student.timesteps, config.student.steps)
    check_init(config)
    folder = run_folder(config)
    check_run(config, folder)
    check_folder_for("runs", folder)

    from dollar.cli.build.run import build_teacher, build_trainer, quiet
    from dollar.media import atomically
    from dollar.parallel import checkpoint
    from dollar.parallel.world import finish, start

    world = start(config.parallel.device, config.parallel.timeout_minutes)
    quiet()
    latest = checkpoint.newest(folder / "checkpoints")
    state = None if latest is None else checkpoint.load(latest)
    done = 0 if state is None else state.plain["cycle"]
    ended = "" if state is None else state.plain.get("ended", "")
    if (done >= config.cycles or ended) and is_written(folder / "student", done):
        if world.is_main:
            early = f" It ended early: {ended}." if ended else ""
            print(
                f"{folder} is finished: {done} of {config.cycles} cycles.{early} Its student is in {folder / 'student'}"
            )
        finish(world)
        return _last_reward(folder)
    rewards = rewards_of(config)
    teacher = build_teacher(config, world)
    trainer = build_trainer(config, world, teacher, folder, done, rewards)
    if world.is_main:
        folder.mkdir(parents=True, exist_ok=True)
        with atomically(folder / CONFIG) as temporary:
            OmegaConf.save(OmegaConf.create(to_store(config)), temporary)
        announce(config, trainer, folder, done)
    if state is not None:
        trainer.load(state)
    finished = trainer.train()
    if finished:
        write_student(trainer, teacher, config)
    elif world.is_main:
        print(f"stopped after cycle {trainer.cycle} and saved; the same command goes on from there")
    trainer.log.close()
    finish(world)
    if not finished:
        sys.exit(STOPPED)
    return _last_reward(folder)


def is_written(student: Path, cycles: int) -> bool:
    """Whether the student of a run of so many cycles is there."""
    from dollar.export.student import read_card

    try:
        return read_card(student)["trained"] == cycles
    except (ValueError, KeyError):
        return False


def announce(config: DictConfig, trainer: Any, folder: Path, done: int) -> None:
    """Say what is about to be trained, with guidance in both the paper's form and diffusers'."""
    further = "".join(f" and {name} {t.beta:g}" for name, t in trainer.distiller.objective.terms.items())
    processes, longest = trainer.world.size, max(trainer.distiller.samplers, key=lambda sampler: sampler.steps)
    print(
        f"{'going on at cycle ' + str(done) if done else 'training'} in {folder}: teacher {config.teacher.name}, "
        f"student {list(longest.asked)} for {list(config.student.steps)} steps, "
        f"beta_vsd={config.beta_vsd} beta_cd={config.beta_cd} beta_ft={config.beta_ft}{further}, "
        f"{config.cycles} cycles of {config.batch} clips on {processes} process{'es' if processes > 1 else ''}\n"
        f"guidance u + s (c - u): VSD s = {config.vsd.guidance_scale} (paper's w = {config.vsd.guidance_scale - 1}), "
        f"CD s = {config.cd.guidance_scale} (w = {config.cd.guidance_scale - 1})"
    )


def write_student(trainer: Any, teacher: Any, config: DictConfig) -> None:
    """runs/<run>/student (averaged weights, the best checkpoint's where keep_best is set) and runs/<run>/lrm."""
    from dollar.export.student import few_steps, save_student
    from dollar.models.adapter import factors, merged
    from dollar.parallel import checkpoint
    from dollar.parallel.shard import whole

    averages, weights = trainer.averages(), {}
    for name, parameter in trainer.learners["student"].network.named_parameters():
        gathered = whole(averages.get(name, parameter).detach())  # every process must ask, only the first keeps it
        if trainer.world.is_main:
            weights[name] = gathered.cpu()
    cycle = trainer.cycle
    best = checkpoint.newest(trainer.folder / "best") if trainer.uses_best else None
    if best is not None:
        tensors, plain = checkpoint.load(best)
        weights |= {n: tensors[f"ema/{n}"] for n in averages}
        cycle = plain["best"]["cycle"]
    if trainer.world.is_main:
        network = teacher.empty_network()
        network.load_state_dict(merged(weights), strict=False, assign=True)
        samplers = few_steps(teacher, config.student.timesteps, config.student.steps, config.student.between)
        stored = to_store(config)
        card = {
            "cycle": cycle,
            "trained": trainer.cycle,
            "ended": trainer.ended or None,
            "guided": bool(config.student.guided),
            "parameterization": config.student.parameterization,
            "teacher": stored["teacher"],
            "command": command_line(),
            "config": stored,
        }
        surrogate = trainer.distiller.latent_reward
        if surrogate is not None:
            surrogate.save(trainer.folder / "lrm", teacher)
        save_student(trainer.folder / "student", teacher, network, samplers, card, factors(weights))
        print(f"the student of cycle {cycle} is in {trainer.folder / 'student'}")
    trainer.world.barrier()


def command_line() -> list[str]:
    """What the command line gave, key=value."""
    from hydra.core.hydra_config import HydraConfig

    return list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []


def _last_reward(folder: Path) -> float | None:
    from dollar.log import read_scalars

    if not (folder / "metrics.jsonl").is_file():
        return None
    scores = [c.values[-1] for n, c in sorted(read_scalars(folder).items()) if n.startswith("validation/reward")]
    return float(scores[-1]) if scores else None
