"""A study from its settings to its document: run what has no result yet, keep what it gives, write the document."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dollar.log import logger
from dollar.studies.document import write_document
from dollar.studies.jobs import Job, Outcome, Running, minutes_left, wanted, work
from dollar.studies.results import Results
from dollar.studies.rows import TEACHER
from dollar.studies.runs import Runs, key_of, place_of

Check = Callable[[Sequence[tuple[str, Sequence[str]]]], None]  # of rows' names with their commands


def carry_out(runs: Runs, check: Check) -> Outcome:
    """Run what is missing, then write the document; ValueError where another command works in the same folders.

    check: raises ValueError for a row's command that would be refused, before any is run.
    """
    settings, name = runs.settings, runs.content.name
    for row in settings.rows:
        runs.overrides(row)  # numbers that don't go together are reported before anything
    # Before results are read: another command would write its own over them.
    with contextlib.closing(lock(name, "out", runs.results.parent)), contextlib.ExitStack() as held:
        if not settings.only_document:
            held.enter_context(contextlib.closing(lock(name, "work", settings.work)))
        counts = {row.name: row.steps[0] for row in settings.rows}
        results = Results(runs.results, runs.content.steps, counts)
        outcome = Outcome() if settings.only_document else run(runs, results, check)
        document(runs, results)
    return outcome


def lock(name: str, key: str, folder: Path) -> Any:
    """A folder that this command has alone until the lock is closed; ValueError where another has it."""
    from dollar.parallel.lock import Held, Lock

    try:
        return Lock(folder)
    except Held as held:
        raise ValueError(
            f"another {name} runs in {key}={folder} ({held.holder}); wait for it, or name another folder"
        ) from None


def run(runs: Runs, results: Results, check: Check) -> Outcome:
    """Run what the rows and seeds of the settings lack."""
    from dollar.parallel.signals import Stop

    if runs.settings.again:
        forget(runs, results)
    jobs = jobs_of(runs, results)
    check(commands_of(runs, jobs))
    for name, seed in (place_of(job.name) for job in jobs):
        if seed is not None and not runs.trained(runs.rows[name], seed):
            runs.prepare(runs.rows[name], seed)
    stop, workers = Stop(), runs.settings.workers
    show = bar(jobs, workers, runs.content.name)
    with stop.in_order():
        return work(jobs, workers, lambda job, seconds: keep(runs, results, job, seconds), stop, show)


def forget(runs: Runs, results: Results) -> None:
    """Remove the runs and results of the rows of `only`, so that they are made again, and of all that follow them."""
    only = runs.settings.only
    if TEACHER in only:
        results.stored["teacher"] = {}
    names = runs.followers(only)
    for name in names:
        for seed in runs.settings.seeds:
            shutil.rmtree(runs.folder(name, seed), ignore_errors=True)
            results.stored["rows"].pop(key_of(name, seed), None)
    results.write()
    if left := [name for name in names if name not in only]:
        logger.warning(f"note: what starts from these rows has no results now, until it is made too: {', '.join(left)}")


def is_fresh(runs: Runs, results: Results, key: str) -> bool:
    """Whether results.json has a job's result with the settings of now, and of networks and data of now.

    Of one of an earlier version, which kept its settings alone, those decide.
    """
    name, seed = place_of(key)
    known = results.stored["teacher"] if seed is None else results.stored["rows"].get(key, {})
    inputs = runs.inputs(name)
    return bool(known.get("hash") == runs.identity(name, seed) and known.get("inputs", inputs) == inputs)


def jobs_of(runs: Runs, results: Results) -> list[Job]:
    """The jobs to run, in order: what `only` names and lacks a result, and the students that these start from."""
    only, seeds = set(runs.settings.only or [TEACHER, *runs.rows]), runs.settings.seeds
    keys: list[tuple[str, int | None]] = [(name, seed) for seed in seeds for name in runs.rows]
    keys = [*([(TEACHER, None)] if runs.content.measured_teacher else []), *keys]
    fresh = {key_of(*k) for k in keys if k[0] not in only or is_fresh(runs, results, key_of(*k))}

    def is_there(job: Job) -> bool:
        name, seed = place_of(job.name)
        return seed is not None and runs.trained(runs.rows[name], seed)

    return wanted([runs.job(*k) for k in keys], fresh, is_there)


def commands_of(runs: Runs, jobs: Sequence[Job]) -> list[tuple[str, Sequence[str]]]:
    """Each row's first command of its first seed, and one of its further ones, which are all alike."""
    named = [place_of(job.name) for job in jobs]
    first = {name: seed for name, seed in reversed(named) if seed is not None}
    commands = {n: runs.commands(runs.rows[n], seed) for n, seed in first.items()}
    further = [(n, command) for n, found in list(commands.items())[:1] for command in found[1:]]
    return [*((n, found[0]) for n, found in commands.items()), *further]


def keep(runs: Runs, results: Results, job: Job, seconds: float) -> None:
    """Take a job's result into results.json; its checkpoints, which nothing needs any more, are removed."""
    name, seed = place_of(job.name)
    follows = {"hash": runs.identity(name, seed), "inputs": runs.inputs(name)}
    common = {**follows, "machine": machine(), "seconds": seconds}
    if seed is None:
        command = shlex.join(runs.evaluate_teacher())
        assert runs.content.measured_teacher is not None
        measured = runs.content.measured_teacher(runs.work / TEACHER)
        results.put(name, None, common | {"commands": [command]} | measured)
        return
    row, folder = runs.rows[name], runs.folder(name, seed)
    commands = [shlex.join(command) for command in runs.commands(row, seed)]
    results.put(name, seed, common | {"commands": commands} | runs.content.measured(folder))
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)


def machine() -> str:
    """Cores and their kind, and the GPU that jobs take where there is one."""
    import torch

    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    kinds = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{os.cpu_count()} cores" + (f" of {kinds[0]}" if kinds else "") + gpu


def bar(jobs: Sequence[Job], workers: int, name: str) -> Callable[[Outcome, Sequence[Running]], None]:
    """What `work` shows: jobs done, which run, and the minutes left."""
    from dollar.log import progress

    shown = progress(len(jobs), name)
    shown.bar_format = "{desc}: {percentage:3.0f}%|{bar:20}| {n_fmt} of {total_fmt} jobs, {elapsed}{postfix}"

    def show(outcome: Outcome, running: Sequence[Running]) -> None:
        left = minutes_left(jobs, outcome, running, workers)
        names = " and ".join(r.job.name for r in running)
        about = "" if left is None else f"about {left:.0f} minutes left, "
        if names:
            shown.set_postfix_str(f"{about}running {names}", refresh=sys.stderr.isatty())
        shown.update(len(outcome.done) + len(outcome.failed) - shown.n)

    return show


def document(runs: Runs, results: Results) -> None:
    """Write the document and its plots anew."""
    settings, content = runs.settings, runs.content
    known = [key for key in results.stored["rows"] if place_of(key)[0] in runs.rows]
    stale = [key for key in known if not is_fresh(runs, results, key)]
    rows, titles = settings.rows, {name: group.title for name, group in settings.groups.items()}
    plots, questions = content.plots(rows, results), content.questions(results, rows)
    write_document(runs.document, content.layout, rows, titles, results, plots, questions, stale)
