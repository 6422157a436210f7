"""Runs: one command at a time in a folder, what is said when a folder can't be written, and runs that end badly."""

from __future__ import annotations

import errno
import os
import shutil
import socket
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from conftest import PROMPT, TINY_DATA, TINY_RUN, Said, fork, free_port
from safetensors import SafetensorError
from test_launch import sentence

from dollar.parallel import checkpoint
from dollar.parallel.lock import EVALUATION, Lock
from dollar.parallel.world import World
from dollar.training.loop import Loop


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def arguments(runs: Path, tiny_teacher_folder: Path) -> list[str]:
    return [*TINY_RUN, *TINY_DATA, f"runs={runs}", f"teacher.folder={tiny_teacher_folder}"]


@pytest.fixture
def train(command: Callable[..., Said], arguments: list[str]) -> Callable[..., Said]:
    return lambda *overrides: command("train", *arguments, *overrides)


def times(folder: Path) -> dict[Path, int]:
    return {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


# One command at a time


def test_a_second_launch_of_a_run_is_refused_at_once(
    command: Callable[..., Said], train: Callable[..., Said], runs: Path, tmp_path: Path
) -> None:
    given, folder = ("run=first", "cycles=1", "student.steps=[4,2]"), runs / "first"
    assert train(*given).code == 0
    with closing(Lock(folder)):
        before = times(folder)
        for more in ("cycles=1", "cycles=3"):
            said = train(*given, more)
            sentence(said, f"another command writes to {folder} (", f"process {os.getpid()} on {socket.gethostname()}")
            assert said.code == 2 and "since 20" in said.err and "name of its own with run=NAME" in said.err
        assert times(folder) == before
        sampled = command(
            "sample", f"checkpoint={folder / 'student'}", f"prompt={PROMPT}", f"out={tmp_path}", "steps=2"
        )
        assert sampled.code == 0, sampled.err  # it only reads the run
    with closing(Lock(folder, name=EVALUATION)):
        assert train(*given, "cycles=2").code == 0  # an evaluation beside it has files of its own
        sentence(command("evaluate", f"checkpoint={folder / 'student'}"), f"another command writes to {folder}")


def test_a_second_launch_on_two_processes_is_refused(arguments: list[str], runs: Path, tmp_path: Path) -> None:
    folder, port = runs / "two", free_port()
    with closing(Lock(folder)):
        given = [*arguments, "run=two"]
        both = [fork(tmp_path, "train", *given, rank=rank, size=2, port=port) for rank in (0, 1)]
        both[0].join(60)
        assert both[0].exitcode == 2 and both[1].is_alive()  # until torchrun ends it: it waits for the first
        both[1].kill()
        both[1].join()
        assert [p.name for p in folder.iterdir()] == [".lock"]


@pytest.mark.parametrize(
    ("name", "key", "given"),
    [
        ("sample", "out", ("prompt=a",)),
        ("fit_reward", "out", ()),
        ("pretrain", "work", ()),
    ],
)
def test_every_command_that_writes_over_time_has_its_folder_alone(
    command: Callable[..., Said], tmp_path: Path, name: str, key: str, given: tuple[str, ...]
) -> None:
    with closing(Lock(tmp_path / "x")):
        said = command(name, f"{key}={tmp_path / 'x'}", *given)
    sentence(said, f"another command writes to {tmp_path / 'x'} (", f"with {key}=FOLDER")
    assert said.code == 2 and [p.name for p in (tmp_path / "x").iterdir()] == [".lock"]


def test_two_exports_do_not_replace_one_another(tmp_path: Path) -> None:
    from dollar.export.folder import whole_folder

    out = tmp_path / "out"
    with whole_folder(out, overwrite=False) as aside:
        (aside / "a").write_text("first")
        with pytest.raises(ValueError, match="another command writes to .*out"), whole_folder(out, overwrite=False):
            pass
    assert [p.name for p in out.iterdir()] == ["a"] and list(tmp_path.iterdir()) == [out]
    with pytest.raises(ValueError, match="was filled by another command meanwhile"), whole_folder(out, overwrite=False):
        pass
    assert (out / "a").read_text() == "first" and list(tmp_path.iterdir()) == [out]


def test_a_run_whose_folder_is_taken_away_ends_with_a_sentence(
    train: Callable[..., Said], runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, real = runs / "taken", Loop.run_cycle

    def removed(self: Loop, cycle: int) -> dict[str, float]:
        shutil.rmtree(folder)
        if begun_anew:
            folder.mkdir()
            (folder / ".lock").write_text("of another command")
        return real(self, cycle)

    monkeypatch.setattr(Loop, "run_cycle", removed)
    for begun_anew in (False, True):
        said = train("run=taken", "cycles=3")
        last = said.err.splitlines()[-1]
        assert f"{folder} is no longer the folder" in last and "removed, renamed or begun anew" in last
        assert (
            said.code == 2
            and "Traceback" not in said.err
            and [p.name for p in folder.glob("*")] == [".lock"] * begun_anew
        )
        shutil.rmtree(folder, ignore_errors=True)


# What the disk is blamed for


SAID = {
    errno.ENOSPC: r"no space is left \(No space left on device\)\. It needs 12 bytes and [\d,]+ are free",
    errno.EDQUOT: r"no space is left \(Disk quota exceeded\)\. It needs 12 bytes and [\d,]+ are free",
    errno.EACCES: r"nothing may be written there now \(Permission denied\)",
    errno.EROFS: r"its file system may only be read now \(Read-only file system\)",
    errno.EIO: r"the system says: Input/output error",
    errno.ENAMETOOLONG: r"the system says: File name too long",
}


@pytest.mark.parametrize("moment", ["save_file", "_sync", "shutil.rmtree"])
@pytest.mark.parametrize("number", SAID)
def test_the_disk_is_blamed_where_it_is_full_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, moment: str
) -> None:
    import torch

    def fails(*_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number), "x")

    monkeypatch.setattr(f"dollar.parallel.checkpoint.{moment}", fails)
    with pytest.raises(OSError, match=f"step 2 could not be written to .*: {SAID[number]}. The older") as told:
        checkpoint.save(tmp_path, 2, {"w": torch.zeros(3)}, {}, World())
    assert told.value.errno == number


def test_what_a_library_says_of_a_full_disk_and_a_folder_that_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    def fails(*_: Any) -> None:
        raise SafetensorError('IoError(Os { code: 28, kind: StorageFull, message: "No space left on device" })')

    weights = {"w": torch.zeros(3)}
    with pytest.raises(OSError, match=r"run/checkpoints: the folder is gone \(No such file or directory\), removed"):
        checkpoint.save(tmp_path / "run" / "checkpoints", 2, weights, {}, World())
    assert not (tmp_path / "run").exists()  # it isn't begun anew, without its settings
    monkeypatch.setattr(checkpoint, "save_file", fails)
    with pytest.raises(OSError, match=r"no space is left .*It needs 12 bytes"):
        checkpoint.save(tmp_path, 2, weights, {}, World())


def test_a_checkpoint_that_may_not_be_read_now_is_no_damaged_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    for step in (1, 2):
        checkpoint.save(tmp_path, step, {"w": torch.zeros(3)}, {}, World())
    real, number = checkpoint._fingerprint, errno.EACCES

    def fails(path: Path) -> dict[str, Any]:
        if "00000002" in str(path):
            raise OSError(number, os.strerror(number), str(path))
        return real(path)

    monkeypatch.setattr(checkpoint, "_fingerprint", fails)
    with pytest.raises(OSError, match="step-00000002 can't be read now .Permission denied.. It is left as it is"):
        checkpoint.newest(tmp_path)
    number = errno.EIO
    with pytest.warns(UserWarning, match="step-00000002 is damaged: it can't be read"):
        assert checkpoint.newest(tmp_path) == tmp_path / "step-00000001"
