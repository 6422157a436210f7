"""Commands one after the other, each a process of its own; those that have ended well are never run again."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dollar.log import logger
from dollar.media import atomically
from dollar.parallel.signals import Stop
from dollar.studies.jobs import PATIENCE, Job, Process, work
from dollar.vip.stages import Step

FILE, RUNNING = "steps.json", "running.json"


class Failed(ValueError):
    """A command that didn't end well; its sentence says why and where its log is."""


def ends_with_parent() -> None:
    """Have this process stop in order when the one that started it is gone, where the system can (Linux)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


@dataclass
class Steps:
    """The commands of a folder, with the seconds of those that have ended well.

    root: the folder that launch/ is in; processes: of each command that can share its work.
    """

    folder: Path
    root: Path
    processes: int = 1
    done: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        path = self.folder / FILE
        if path.is_file():
            try:
                self.done = dict(json.loads(path.read_text(encoding="utf-8")))
            except ValueError as error:
                raise ValueError(f"{path} can't be read ({error}); remove the folder, and it is made anew") from None

    def run(self, step: Step, stop: Stop) -> bool:
        """Run a command unless it has ended well before; False where a stop was requested. `Failed` where it failed."""
        if step.name in self.done:
            return True
        self._wait_for_another()
        command = self.executed(step)
        log = self.folder / "logs" / f"{step.name.replace('/', '-')}.log"
        logger.info(f"\n{step.name}: {self.shown(step)}")
        outcome = work(
            [Job(step.name, (command,), log)],
            1,
            lambda job, seconds: self._keep(step, seconds),
            stop,
            _last_line(log),
            begin=self._begin,
        )
        (self.folder / RUNNING).unlink(missing_ok=True)
        if outcome.stopped or stop.requested:
            return False
        if outcome.failed:
            raise Failed(f"{step.name} failed: {_sentence(log)} (its log is {log})")
        logger.info(f"{step.name} took {self.done[step.name]['seconds']:.0f} s")
        return True

    def executed(self, step: Step) -> tuple[str, ...]:
        """A command as it is run."""
        script = str(self.root / "launch" / f"{step.verb}.py")
        if self.processes == 1 or step.verb in ("prune", "evaluate", "export"):
            return (sys.executable, script, *step.arguments)
        several = ("-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={self.processes}")
        return (sys.executable, *several, script, *step.arguments)

    def shown(self, step: Step) -> str:
        """A command as the user would give it."""
        return shlex.join(["python", f"launch/{step.verb}.py", *step.arguments])

    def _keep(self, step: Step, seconds: float) -> None:
        self.done[step.name] = {"command": self.shown(step), "seconds": seconds}
        with atomically(self.folder / FILE) as temporary:
            temporary.write_text(json.dumps(self.done, indent=1) + "\n", encoding="utf-8")

    def _begin(self, command: Sequence[str], log: Path) -> Process:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as out:
            process = subprocess.Popen(
                list(command),
                stdout=out,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # a Ctrl-C of the terminal is for this command, which ends that one
                preexec_fn=ends_with_parent if sys.platform == "linux" else None,
            )
        (self.folder / RUNNING).write_text(json.dumps({"process": process.pid, "command": list(command)}))
        return process

    def _wait_for_another(self) -> None:
        """Wait for the end of what a killed command of this folder had started."""
        try:
            process = int(json.loads((self.folder / RUNNING).read_text())["process"])
        except (OSError, ValueError, KeyError, TypeError):
            return
        until = time.monotonic() + PATIENCE
        while _lives(process, self.root):
            if time.monotonic() > until:
                raise Failed(f"process {process}, which an earlier command began in {self.folder}, still runs; end it")
            time.sleep(0.2)


def _lives(process: int, root: Path) -> bool:
    """Whether a process is one of our commands and still runs; a number may be another's by now."""
    try:
        os.kill(process, 0)
        words = Path(f"/proc/{process}/cmdline")
        return not words.is_file() or str(root / "launch").encode() in words.read_bytes()
    except OSError:
        return False


def _last_line(log: Path) -> Callable[..., None]:
    """What shows how far a command is: the last line of its log, on a terminal."""

    def show(outcome: Any, running: Sequence[Any]) -> None:
        if sys.stderr.isatty() and log.is_file():
            line = _tail(log).replace("\r", "\n").strip().rpartition("\n")[2][:110]
            sys.stderr.write(f"\r{line:110}" + ("" if running else "\r"))
            sys.stderr.flush()

    return show


def _tail(log: Path, most: int = 4000) -> str:
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - most))
        return file.read().decode("utf-8", "replace")


def _sentence(log: Path) -> str:
    """The last line of a failed command, without its own name."""
    lines = [line.strip() for line in _tail(log).replace("\r", "\n").splitlines() if line.strip()]
    return lines[-1].partition(".py: ")[2] or lines[-1] if lines else "it said nothing"
