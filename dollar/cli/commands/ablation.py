"""Train, measure and compare the ablation's rows: `python launch/ablation.py [seeds=3] [key=value ...]`."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from dollar.cli.entry import check_folder_for
from dollar.cli.overrides import check_overrides
from dollar.log import logger
from dollar.studies.jobs import Job, Outcome, Running, minutes_left, wanted, work
from dollar.studies.plan import TEACHER, Plan, check_numbers, key_of, place_of, rows_of, seeds_of
from dollar.studies.results import Results, Row, measured, measured_teacher


def machine() -> str:
    """Cores and their kind."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    kinds = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{os.cpu_count()} cores" + (f" of {kinds[0]}" if kinds else "")


def keep(plan: Plan, results: Results, job: Job, seconds: float) -> None:
    """Take a job's result into results.json; its checkpoints, which nothing needs any more, are removed."""
    name, seed = place_of(job.name)
    common = {"hash": plan.identity(name, seed), "machine": machine(), "seconds": seconds}
    if seed is None:
        command = shlex.join(plan.evaluate_teacher())
        results.put(name, None, common | {"commands": [command]} | measured_teacher(plan.work / TEACHER))
        return
    row, folder = plan.rows[name], plan.folder(name, seed)
    commands = [shlex.join(plan.train(row, seed)), shlex.join(plan.evaluate(row, seed))]
    results.put(name, seed, common | {"commands": commands} | measured(folder))
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)


def is_fresh(plan: Plan, results: Results, key: str) -> bool:
    """Whether results.json has a job's result with the settings of now."""
    name, seed = place_of(key)
    known = results.stored["teacher"] if seed is None else results.stored["rows"].get(key, {})
    return known.get("hash") == plan.identity(name, seed)


def forget(plan: Plan, results: Results, seeds: Sequence[int]) -> None:
    """Remove the runs and results of the rows of `only`, so that they are made again, and of all that follow them."""
    if TEACHER in plan.config.only:
        results.stored["teacher"] = {}
    names = plan.followers(plan.config.only)
    for name in names:
        for seed in seeds:
            shutil.rmtree(plan.folder(name, seed), ignore_errors=True)
            results.stored["rows"].pop(key_of(name, seed), None)
    results.write()
    if left := [name for name in names if name not in plan.config.only]:
        logger.warning(f"note: what starts from these rows has no results now, until it is made too: {', '.join(left)}")


def jobs_of(plan: Plan, results: Results, seeds: Sequence[int]) -> list[Job]:
    """The jobs to run, in order: what `only` names and lacks a result, and the students that these start from."""
    only = set(plan.config.only or [TEACHER, *plan.rows])
    keys: list[tuple[str, int | None]] = [(TEACHER, None), *((name, seed) for seed in seeds for name in plan.rows)]
    fresh = {key_of(*k) for k in keys if k[0] not in only or is_fresh(plan, results, key_of(*k))}

    def there(job: Job) -> bool:
        name, seed = place_of(job.name)
        return seed is not None and plan.trained(plan.rows[name], seed)

    return wanted([plan.job(*k) for k in keys], fresh, there)


def check_jobs(plan: Plan, jobs: Sequence[Job]) -> None:
    """Raise ValueError for a row whose keys the commands would refuse, before any is run."""
    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()  # each check composes a configuration of its own
    named = [place_of(job.name) for job in jobs]
    first = {name: seed for name, seed in reversed(named) if seed is not None}
    commands = [(name, plan.train(plan.rows[name], seed)) for name, seed in first.items()]
    commands += [(name, plan.evaluate(plan.rows[name], seed)) for name, seed in list(first.items())[:1]]  # all alike
    for name, command in commands:
        script = Path(command[1])
        try:
            check_overrides(script.stem, list(command[2:]))
        except ValueError as error:
            raise ValueError(f"the row {name}, {script.name}: {error}") from None


def bar(jobs: Sequence[Job], workers: int) -> Callable[[Outcome, Sequence[Running]], None]:
    """What `work` shows: jobs done, which run, and the minutes left."""
    from dollar.log import progress

    shown = progress(len(jobs), "ablation")
    shown.bar_format = "{desc}: {percentage:3.0f}%|{bar:20}| {n_fmt} of {total_fmt} jobs, {elapsed}{postfix}"

    def show(outcome: Outcome, running: Sequence[Running]) -> None:
        left = minutes_left(jobs, outcome, running, workers)
        names = " and ".join(r.job.name for r in running)
        about = "" if left is None else f"about {left:.0f} minutes left, "
        if names:
            shown.set_postfix_str(f"{about}running {names}", refresh=sys.stderr.isatty())
        shown.update(len(outcome.done) + len(outcome.failed) - shown.n)

    return show


def run(plan: Plan, results: Results, seeds: Sequence[int]) -> Outcome:
    """Run what these seeds lack."""
    from dollar.parallel.lock import Stop

    if plan.config.again:
        forget(plan, results, seeds)
    jobs = jobs_of(plan, results, seeds)
    check_jobs(plan, jobs)
    for name, seed in (place_of(job.name) for job in jobs if len(job.commands) > 1):
        assert seed is not None
        plan.prepare(plan.rows[name], seed)
    stop, workers = Stop(), plan.config.workers
    with stop.in_order():
        return work(jobs, workers, lambda job, s: keep(plan, results, job, s), stop, bar(jobs, workers))


def lock(key: str, folder: Path) -> Any:
    """A folder that this command has alone until the lock is closed; ValueError where another has it."""
    from dollar.parallel.lock import Lock

    try:
        return Lock(folder, alone=True)
    except ValueError:
        raise ValueError(f"another ablation runs in {key}={folder}; wait for it, or name another folder") from None


def document(plan: Plan, rows: Sequence[Row], results: Results) -> None:
    """Write docs/ablation.md and its plots anew."""
    from dollar.studies.document import write_document

    known = [key for key in results.stored["rows"] if place_of(key)[0] in plan.rows]
    stale = [key for key in known if not is_fresh(plan, results, key)]
    path = Path(plan.config.out) / "ablation.md"
    titles = {name: group.title for name, group in plan.config.groups.items()}
    write_document(path, rows, titles, results, stale)
    print(f"the document is {path}, its figures are in {results.path}")


def main(config: DictConfig) -> None:
    """Run what is missing, then write the document; exit code 2 when a job failed, 3 when stopped."""
    rows = rows_of(config)
    check_numbers(config, [TEACHER, *(row.name for row in rows)])
    check_folder_for("out", Path(config.out))
    check_folder_for("work", Path(config.work))
    plan, seeds = Plan(config, rows), seeds_of(config.seeds)
    for row in rows:
        plan.overrides(row)  # numbers that don't go together are told before anything
    folder = Path(config.out) / "ablation"
    # Before results are read: another command would write its own over them.
    with contextlib.closing(lock("out", folder)), contextlib.ExitStack() as held:
        if not config.only_document:
            held.enter_context(contextlib.closing(lock("work", plan.work)))
        results = Results(folder / "results.json")
        outcome = Outcome() if config.only_document else run(plan, results, seeds)
        document(plan, rows, results)
    for name, why in outcome.failed.items():
        print(f"failed: {name}: {why}", file=sys.stderr)
    if outcome.stopped:
        print(f"stopped; the same command{' without again=true' * config.again} goes on from there")
    if outcome.failed or outcome.stopped:
        sys.exit(2 if outcome.failed else 3)
