"""Jobs that run at the same time: which are needed, each as processes of its own, and what becomes of failed ones."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from dollar.parallel.signals import STOPPED, Stop

# One thread that sleeps when idle, and freed memory kept instead of returned, as the Makefile sets it for speed.
ENVIRONMENT = {
    "OMP_WAIT_POLICY": "PASSIVE",
    "HF_HUB_OFFLINE": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "4000000000",
}
PATIENCE = 120.0  # seconds that a stopped job has to save


@dataclass(frozen=True)
class Job:
    """Commands that run one after the other, and write into one log.

    after: the job whose end it waits for; size: how long it takes compared with others, in any unit.
    """

    name: str
    commands: tuple[tuple[str, ...], ...]
    log: Path
    after: str | None = None
    size: float = 1.0


class Process(Protocol):
    """What a started command must offer; subprocess.Popen does."""

    def poll(self) -> int | None: ...
    def terminate(self) -> None: ...
    def kill(self) -> None: ...


Start = Callable[[Sequence[str], Path], Process]


@dataclass
class Running:
    """A job at one of its commands."""

    job: Job
    process: Process
    began: float
    command: int = 0


@dataclass
class Outcome:
    """Jobs by how they ended: seconds of those that are done, a sentence for each that failed or could not begin."""

    done: dict[str, float] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    stopped: bool = False


def wanted(jobs: Sequence[Job], fresh: Collection[str], there: Callable[[Job], bool]) -> list[Job]:
    """The jobs to run: those not fresh, and those that such a job waits for, unless what they leave is there."""
    by_name, chosen = {job.name: job for job in jobs}, set[str]()

    def choose(job: Job) -> None:
        chosen.add(job.name)
        before = by_name[job.after] if job.after else None
        if before and before.name not in chosen and not (before.name in fresh and there(before)):
            choose(before)

    for job in jobs:
        if job.name not in fresh:
            choose(job)
    return [job for job in jobs if job.name in chosen]


def start(command: Sequence[str], log: Path) -> Process:
    """A command as a process of one thread that writes to its log, and that a Ctrl-C of the terminal doesn't reach."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as out:
        return subprocess.Popen(
            list(command),
            stdout=out,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=ENVIRONMENT | dict(os.environ) | {"OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )


def work(
    jobs: Sequence[Job],
    workers: int,
    finish: Callable[[Job, float], None],
    stop: Stop,
    show: Callable[[Outcome, Sequence[Running]], None] = lambda outcome, running: None,
    begin: Start = start,
    pause: float = 0.5,
) -> Outcome:
    """Run the jobs, as many at once as there are workers; on a request to stop, end them gently and run no other.

    finish: called with a job whose commands all ended well, and its seconds; what it raises fails the job. show: called
    each time they are polled. Whatever else goes wrong, no process is left behind.
    """
    outcome, running, waiting = Outcome(), list[Running](), list(jobs)
    names = {job.name for job in jobs}
    try:
        while (waiting or running) and not stop.requested:
            for r in list(running):
                if (code := r.process.poll()) is not None:
                    _advance(r, code, running, outcome, finish, begin)
            for job in list(waiting):
                if job.after in outcome.failed:
                    waiting.remove(job)
                    outcome.failed[job.name] = f"did not begin, since {job.after} failed"
                elif len(running) < workers and (job.after not in names or job.after in outcome.done):
                    running.append(Running(job, begin(job.commands[0], job.log), time.monotonic()))
                    waiting.remove(job)
            show(outcome, running)
            if running:
                time.sleep(pause)
    except BaseException:
        end(running)
        raise
    if stop.requested:
        outcome.stopped = bool(waiting or running)
        end(running)
    return outcome


def _advance(
    r: Running,
    code: int,
    running: list[Running],
    outcome: Outcome,
    finish: Callable[[Job, float], None],
    begin: Start,
) -> None:
    """After a command's end: the job's next command, or its own end."""
    if code == 0 and r.command + 1 < len(r.job.commands):
        r.command += 1
        r.process = begin(r.job.commands[r.command], r.job.log)
        return
    running.remove(r)
    if code != 0:
        what = "was stopped" if code == STOPPED else f"ended with code {code}"
        outcome.failed[r.job.name] = f"{Path(r.job.commands[r.command][1]).name} {what}; see {r.job.log}"
        return
    seconds = time.monotonic() - r.began
    try:
        finish(r.job, seconds)
    except Exception as error:  # of whatever kind: the other rows go on
        outcome.failed[r.job.name] = f"left results that can't be read ({type(error).__name__}: {error})"
    else:
        outcome.done[r.job.name] = seconds


def end(running: Sequence[Running], patience: float = PATIENCE) -> None:
    """Ask each process to stop, which training does after saving; kill what still runs when patience is over."""
    for r in running:
        r.process.terminate()
    until = time.monotonic() + patience
    while any(r.process.poll() is None for r in running) and time.monotonic() < until:
        time.sleep(0.1)
    for r in running:
        if r.process.poll() is None:
            r.process.kill()


def minutes_left(jobs: Sequence[Job], outcome: Outcome, running: Sequence[Running], workers: int) -> float | None:
    """From the time that the jobs done took for their size; None while none is done."""
    size = {job.name: job.size for job in jobs}
    if not outcome.done:
        return None
    pace = sum(outcome.done.values()) / sum(size[name] for name in outcome.done)
    over = {*outcome.done, *outcome.failed}
    now = {r.job.name: time.monotonic() - r.began for r in running}
    left = [max(0.0, pace * size[j.name] - now.get(j.name, 0.0)) for j in jobs if j.name not in over]
    return max(sum(left) / max(1, min(workers, len(left))), max(left, default=0.0)) / 60
