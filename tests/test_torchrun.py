"""How commands end under torchrun: one sentence and their own exit code, however many processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT


def plugged(folder: Path) -> dict[str, str]:
    """The environment of a shell in which this package is installed, as setup.cfg has it."""
    import configparser
    from importlib.metadata import entry_points

    environment = {**os.environ, "PYTHONPATH": f"{folder}:{ROOT}", "OMP_NUM_THREADS": "1"}
    if any(point.name == "dollar" for point in entry_points(group="torchrun.handlers")):
        return environment  # torchrun refuses a name that comes twice
    read = configparser.ConfigParser()
    read.read(ROOT / "setup.cfg")
    (folder / "own-0.dist-info").mkdir(parents=True)
    (folder / "own-0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: own\nVersion: 0\n")
    points = f"[torchrun.handlers]\n{read['options.entry_points']['torchrun.handlers'].strip()}\n"
    (folder / "own-0.dist-info" / "entry_points.txt").write_text(points)
    return environment


def test_a_mistake_under_torchrun_is_one_sentence(tmp_path: Path) -> None:
    words = ["--standalone", "--nproc-per-node=2", str(ROOT / "launch" / "train.py"), "cycles=abc"]
    line = [sys.executable, "-m", "torch.distributed.run", *words]
    said = subprocess.run(line, env=plugged(tmp_path), capture_output=True, text=True, cwd=tmp_path)
    assert (said.returncode, said.stdout) == (2, "")
    assert said.stderr == "train.py: cycles=abc: cycles is a whole number (now 200)\n"


def test_the_exit_code_of_processes_that_left_theirs(tmp_path: Path) -> None:
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

    from dollar.parallel.outcome import exit_code

    def failed(**codes: int) -> ChildFailedError:
        given = {int(pid[1:]): code for pid, code in codes.items()}
        return ChildFailedError("x", {i: ProcessFailure(i, p, c, "") for i, (p, c) in enumerate(given.items())})

    stopped = SignalException("", sigval=signal.SIGTERM)
    assert exit_code(tmp_path, failed(p1=1)) is None and exit_code(tmp_path, stopped) == 143
    (tmp_path / "1").write_text("3")
    assert exit_code(tmp_path, failed(p1=3, p2=-signal.SIGTERM)) == 3 and exit_code(tmp_path, stopped) == 3
    assert exit_code(tmp_path, failed(p1=3, p2=-signal.SIGKILL)) == 3  # it waited in vain for the first
    assert exit_code(tmp_path, failed(p1=3, p2=1)) is None  # a process that failed by itself
    (tmp_path / "2").write_text("2")
    assert exit_code(tmp_path, failed(p1=3, p2=2)) == 2 and exit_code(tmp_path, ValueError()) is None


def test_a_sentence_is_said_by_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dollar.parallel import outcome

    assert [outcome.first_to_say("a") for _ in range(2)] == [True, True]  # alone
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "attempt_0" / "1" / "error.json"))
    assert [outcome.first_to_say(text) for text in "aab"] == [True, False, True]
    monkeypatch.setenv(outcome.FOLDER, str(tmp_path / "gone"))
    assert outcome.first_to_say("a")
    outcome.leave(2)  # torchrun is gone, and with it the folder


def test_what_fails_because_another_process_ended_says_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from dollar.cli.entry import enter
    from dollar.parallel import outcome

    def alone(config: Any) -> None:
        raise RuntimeError("Connection closed by peer")

    monkeypatch.setattr(sys, "argv", ["plan.py"])
    monkeypatch.setenv(outcome.FOLDER, str(tmp_path))
    with pytest.raises(SystemExit) as end:
        enter(alone, "plan")
    assert end.value.code == 1 and "RuntimeError: Connection closed by peer" in capsys.readouterr().err
    (tmp_path / "1").write_text("2")  # as the first process leaves it after its sentence
    with pytest.raises(SystemExit) as end:
        enter(alone, "plan")
    assert end.value.code == 2 and capsys.readouterr().err == ""
    assert (tmp_path / str(os.getpid())).read_text() == "2"


def test_torchruns_command_line_names_a_command(tmp_path: Path) -> None:
    from dollar.parallel.outcome import _is_ours

    (tmp_path / "mine.py").symlink_to(ROOT / "launch" / "train.py")
    ours = (
        str(ROOT / "launch" / "train.py"),
        str(tmp_path / "mine.py"),
        "/any/bin/dollar",
        "dollar",
        "dollar.cli.main",
    )
    assert all(map(_is_ours, ours))
    assert not any(map(_is_ours, ("train.py", "--standalone", "dollars", "data=a/dollar", str(tmp_path / "other.py"))))
