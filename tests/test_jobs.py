"""Jobs of processes: their order, what becomes of those that fail, and how a stop ends them."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from dollar.parallel.signals import Stop
from dollar.studies.jobs import Job, Outcome, minutes_left, start, wanted, work


class Fake:
    """A command that ends after some looks at it with a code, or when it is asked to."""

    def __init__(self, code: int, looks: int = 1) -> None:
        self.code, self.looks, self.asked = code, looks, False

    def poll(self) -> int | None:
        self.looks -= 1
        return 3 if self.asked else self.code if self.looks < 0 else None

    def terminate(self) -> None:
        self.asked = True

    def kill(self) -> None:
        raise AssertionError("it ended when it was asked")


class NoProcess(Exception):
    """What no command's end explains."""


def jobs(*given: tuple[str, str | None], commands: int = 1) -> list[Job]:
    return [
        Job(name, tuple(("python", f"{i}.py", name) for i in range(commands)), Path(f"{name}.log"), after)
        for name, after in given
    ]


def go(
    which: Sequence[Job],
    codes: dict[str, int] | None = None,
    workers: int = 2,
    finish: Callable[[Job, float], None] = lambda job, seconds: None,
    stop_at: str | None = None,
) -> tuple[Outcome, list[str], int]:
    """The outcome, what began in its order (name:command), and the most that ran at once."""
    began: list[str] = []
    stop, most = Stop(), 0

    def begin(command: Sequence[str], log: Path) -> Fake:
        began.append(f"{command[2]}:{command[1][0]}")
        stop.requested = stop.requested or command[2] == stop_at
        return Fake((codes or {}).get(command[2], 0), looks=1000 if command[2] == stop_at else 1)

    def show(outcome: Outcome, running: Sequence[Any]) -> None:
        nonlocal most
        most = max(most, len(running))

    outcome = work(which, workers, finish, stop, show, begin, pause=0)
    return outcome, began, most


def test_jobs_wait_for_what_they_start_from_and_use_all_workers() -> None:
    outcome, began, most = go(jobs(("late", "a"), ("a", None), ("b", None), ("c", None)))
    assert began == ["a:0", "b:0", "late:0", "c:0"] or began == ["a:0", "b:0", "c:0", "late:0"]
    assert set(outcome.done) == {"late", "a", "b", "c"} and most == 2 and not outcome.failed


def test_a_jobs_commands_follow_one_another() -> None:
    _, began, _ = go(jobs(("a", None), ("b", None), commands=2), workers=1)
    assert began == ["a:0", "a:1", "b:0", "b:1"]


def test_a_failed_job_ends_only_what_needs_it() -> None:
    outcome, began, _ = go(jobs(("a", None), ("needs", "a"), ("too", "needs"), ("b", None), commands=2), {"a": 1})
    assert set(outcome.done) == {"b"} and "a:1" not in began
    assert outcome.failed["a"] == "0.py ended with code 1; see a.log"
    assert "since a failed" in outcome.failed["needs"] and "since needs failed" in outcome.failed["too"]


@pytest.mark.parametrize("error", [KeyError("student"), NoProcess("of any kind"), TypeError("None")])
def test_results_that_cannot_be_read_fail_the_job(error: Exception) -> None:
    def finish(job: Job, seconds: float) -> None:
        if job.name == "a":
            raise error

    outcome, _, _ = go(jobs(("a", None), ("b", None)), finish=finish)
    assert "can't be read" in outcome.failed["a"] and set(outcome.done) == {"b"}


@pytest.mark.parametrize("error", [NoProcess, KeyboardInterrupt])
def test_no_process_is_left_when_something_else_goes_wrong(error: type[BaseException]) -> None:
    began: list[Fake] = []

    def begin(command: Sequence[str], log: Path) -> Fake:
        if command[2] == "c":
            raise error
        began.append(Fake(0, looks=1 if command[2] == "a" else 1000))
        return began[-1]

    with pytest.raises(error):
        work(
            jobs(("a", None), ("b", None), ("c", "a")),
            2,
            lambda job, s: None,
            Stop(),
            begin=begin,
            pause=0,
        )
    assert len(began) == 2 and began[1].asked and began[1].poll() == 3


def test_a_stop_ends_what_runs_and_begins_nothing() -> None:
    outcome, began, _ = go(jobs(("a", None), ("b", None), ("c", None)), stop_at="b")
    assert outcome.stopped and began == ["a:0", "b:0"] and not outcome.failed


def test_only_what_lacks_a_result_is_wanted_and_what_it_starts_from() -> None:
    chain = jobs(("a", None), ("b", "a"), ("c", "b"), ("d", None))

    def names(fresh: set[str], there: set[str]) -> list[str]:
        return [job.name for job in wanted(chain, fresh, lambda job: job.name in there)]

    assert names({"a", "b", "d"}, {"b"}) == ["c"]
    assert names({"a", "b", "d"}, set()) == ["a", "b", "c"], "the students that c needs are gone"
    assert names({"a", "b", "d"}, {"a"}) == ["b", "c"]
    assert names({"a", "b", "c", "d"}, set()) == []


def test_a_process_runs_on_one_thread_and_writes_its_log(tmp_path: Path) -> None:
    process = start((sys.executable, "-c", "import os; print(os.environ['OMP_NUM_THREADS'])"), tmp_path / "x")
    until = time.monotonic() + 30
    while process.poll() is None and time.monotonic() < until:
        time.sleep(0.01)
    assert (tmp_path / "x").read_text() == "1\n"


def test_minutes_left_follow_the_jobs_done() -> None:
    which = [Job(name, ((),), Path(), size=size) for name, size in (("a", 1.0), ("b", 2.0), ("c", 3.0))]
    assert minutes_left(which, Outcome(), [], 1) is None
    outcome = Outcome(done={"a": 60.0})
    assert minutes_left(which, outcome, [], 1) == pytest.approx(5)
    assert minutes_left(which, outcome, [], 2) == pytest.approx(3), "no sooner than the longest job"
