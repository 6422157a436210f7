"""Runs: one command at a time in a folder, what is said when a folder can't be written, and runs that end badly."""

from __future__ import annotations

import errno
import os
import shutil
import socket
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import PROMPT, TINY_DATA, TINY_RUN, Said, compose, fork, free_port
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf
from safetensors import SafetensorError
from test_launch import sentence

from dollar.cli.former import take_former
from dollar.parallel import checkpoint
from dollar.parallel.lock import EVALUATION, Lock
from dollar.parallel.world import World
from dollar.storage import explained, why
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


def test_a_run_of_other_defaults_goes_on_as_it_began(train: Callable[..., Said], runs: Path) -> None:
    """Its latent reward model reads captions and is fitted to clips, which are no defaults any more."""
    given = ("student.steps=[2]", "reward._target_=dollar.rewards.colourfulness.Colourfulness", "lrm.temporal=frames")
    began = ("lrm.text=true", "lrm.targets=clip")
    assert train("run=whole", *given, *began, "cycles=3").code == 0
    assert train("run=older", *given, *began, "cycles=2").code == 0
    path = runs / "older" / "config.yaml"
    stored: Any = OmegaConf.load(path)
    assert stored.lrm.pop("targets") == "clip" and stored.lrm.text is True  # before there was such a key
    OmegaConf.save(stored, path)
    sentence(train("run=older", *given, "cycles=3", "lrm.text=false"), "lrm.text was True, now False")
    assert train("run=older", *given, "cycles=3").code == 0
    for name in ("student/transformer/diffusion_pytorch_model.safetensors", "lrm/model.safetensors"):
        assert (runs / "older" / name).read_bytes() == (runs / "whole" / name).read_bytes()
    assert OmegaConf.load(path).lrm == OmegaConf.merge(stored.lrm, {"targets": "clip"})


def test_the_defaults_that_a_run_goes_on_with_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("lrm: {text: true, backbone: cnn, smooth: 0.0}\nbeta_ft: 0.7\n")
    given = SimpleNamespace(overrides=SimpleNamespace(task=["lrm.smooth=3"]))
    monkeypatch.setattr(HydraConfig, "get", staticmethod(lambda: given))
    config = compose("train", "lrm.smooth=3", "ft.unit=vsd")
    take_former(config, path)
    assert (config.lrm.text, config.lrm.targets, config.lrm.backbone, config.ft.unit) == (True, "clip", "cnn", "reward")
    assert (config.lrm.smooth, config.beta_ft) == (3, compose("train").beta_ft), (
        "what was given, and what was no default"
    )
    said = "goes on with lrm.text=True, lrm.targets=clip, lrm.backbone=cnn, ft.unit=reward, as it began"
    assert said in capsys.readouterr().out
    take_former(config, path)
    assert capsys.readouterr().out == ""


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
        sentence(command("evaluate", f"out={folder}"), f"another command writes to {folder} (")


def test_a_second_launch_on_two_processes_is_refused(arguments: list[str], runs: Path, tmp_path: Path) -> None:
    folder, port = runs / "two", free_port()
    with closing(Lock(folder)):
        given = [*arguments, "run=two"]
        both = [fork(tmp_path, "train", *given, rank=rank, size=2, port=port) for rank in (0, 1)]
        both[0].join(60)
        assert both[0].exitcode == 2 and both[1].is_alive()  # until torchrun ends it: it waits for the first
        both[1].kill()
        both[1].join()
        assert {p.name for p in folder.iterdir()} == {".lock", ".held.lock"}


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
    (tmp_path / "x").mkdir()
    with closing(Lock(tmp_path / "x")):
        said = command(name, f"{key}={tmp_path / 'x'}", *given)
    sentence(said, f"another command writes to {tmp_path / 'x'} (", f"with {key}=FOLDER")
    assert said.code == 2 and [p.name for p in (tmp_path / "x").iterdir()] == [".lock"]


def test_a_folder_in_which_nothing_was_written_is_not_left(tmp_path: Path) -> None:
    for there in (False, True):
        with closing(Lock(tmp_path / "new", stays=False)):
            assert {p.name for p in (tmp_path / "new").iterdir()} == {".lock", ".held.lock"}
        assert (tmp_path / "new").exists() == there
        (tmp_path / "new").mkdir(exist_ok=True)
    with closing(Lock(tmp_path / "new")):
        pass
    assert [p.name for p in (tmp_path / "new").iterdir()] == [".lock"]
    with closing(Lock(tmp_path / "other", stays=False)):
        (tmp_path / "other" / "a").touch()
    assert [p.name for p in (tmp_path / "other").iterdir()] == ["a"]


def test_two_exports_do_not_replace_one_another(
    command: Callable[..., Said], train: Callable[..., Said], runs: Path, tmp_path: Path
) -> None:
    given = ("run=exported", "cycles=1", "student.steps=[2]", "beta_ft=0", "beta_vsd=0")
    assert train(*given).code == 0
    out = tmp_path / "out"
    export = (f"checkpoint={runs / 'exported'}", f"out={out}", "verify=false")
    with closing(Lock(tmp_path, name=".out.lock")):
        said = command("export", *export)
        sentence(said, f"another command writes to {tmp_path} (")
        assert said.code == 2 and not out.exists()
    (tmp_path / ".out.lock").unlink()
    assert command("export", *export).code == 0 and list(tmp_path.iterdir()) == [out]


def test_a_run_whose_folder_is_taken_away_ends_with_a_sentence(
    train: Callable[..., Said], runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, real = runs / "taken", Loop.run_cycle

    def removed(self: Loop, cycle: int) -> dict[str, float]:
        shutil.rmtree(folder)
        if begun_anew:
            folder.mkdir()
            (folder / ".held.lock").write_text("of another command")
        return real(self, cycle)

    monkeypatch.setattr(Loop, "run_cycle", removed)
    for begun_anew in (False, True):
        said = train("run=taken", "cycles=3")
        last = said.err.splitlines()[-1]
        assert f"{folder} is no longer the folder" in last and "removed, renamed or begun anew" in last
        assert (
            said.code == 2
            and "Traceback" not in said.err
            and [p.name for p in folder.glob("*")] == [".held.lock"] * begun_anew
        )
        shutil.rmtree(folder, ignore_errors=True)


def test_a_loop_does_not_make_its_folder_anew(build: Callable[..., Loop]) -> None:
    loop = build("cycles=2")
    shutil.rmtree(loop.folder)
    with pytest.raises(OSError, match=f"{loop.folder} was removed, renamed or unmounted"):
        loop.save()
    assert not loop.folder.exists()


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

    def fails(*_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number), "x")

    monkeypatch.setattr(f"dollar.parallel.checkpoint.{moment}", fails)
    with pytest.raises(OSError, match=f"step 2 could not be written to .*: {SAID[number]}. The older") as told:
        checkpoint.save(tmp_path, 2, {"w": torch.zeros(3)}, {}, World())
    assert told.value.errno == number


def test_a_full_disk_alone_is_explained_where_more_than_writing_is_done(tmp_path: Path) -> None:
    with (
        pytest.raises(OSError, match="a could not be written to .*: no space is left"),
        explained("a", tmp_path, full=True),
    ):
        raise OSError(errno.EDQUOT, "Disk quota exceeded")
    with pytest.raises(PermissionError), explained("a", tmp_path, full=True):
        raise PermissionError(errno.EACCES, "Permission denied")


def test_what_a_library_says_of_a_full_disk_and_a_folder_that_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    def fails(*_: Any) -> None:
        raise SafetensorError('IoError(Os { code: 28, kind: StorageFull, message: "No space left on device" })')

    weights = {"w": torch.zeros(3)}
    assert why(FileNotFoundError(errno.ENOENT, "No such file or directory"), tmp_path / "run") == (
        "the folder is gone (No such file or directory), removed, renamed or unmounted while the command ran"
    )
    monkeypatch.setattr(checkpoint, "save_file", fails)
    with pytest.raises(OSError, match=r"no space is left .*It needs 12 bytes"):
        checkpoint.save(tmp_path, 2, weights, {}, World())


def test_a_checkpoint_that_may_not_be_read_now_is_no_damaged_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

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


# Runs that turn to what is no number near their end


def spoil(monkeypatch: pytest.MonkeyPatch, cycle: int, change: Callable[[Loop], None]) -> None:
    """Change something in a run after this cycle's updates."""
    real = Loop.run_cycle

    def run_cycle(self: Loop, number: int) -> dict[str, float]:
        scalars = real(self, number)
        if number == cycle:
            change(self)
        return scalars

    monkeypatch.setattr(Loop, "run_cycle", run_cycle)


def first_of(loop: Loop, name: str) -> torch.Tensor:
    """The first weight of a learner or the average, or the last of its moments."""
    if name == "ema":
        return next(iter(loop.average.average.values())).data
    learner = loop.learners[name.removesuffix(" moment")]
    parameter = learner.tensors[0]
    return learner.optimizers[0].state[parameter]["exp_avg_sq"] if "moment" in name else parameter.data


@pytest.mark.parametrize(
    ("name", "validation"),
    [
        (n, f"validation.every={v}")
        for n, v in (("student", 0), ("ema", 2), ("fake", 2), ("lrm", 0), ("student moment", 0))
    ],
)
def test_a_run_that_ends_in_no_number_saves_none_of_it(
    train: Callable[..., Said], runs: Path, monkeypatch: pytest.MonkeyPatch, name: str, validation: str
) -> None:
    given = (f"run=spoilt {name} {validation[-1]}", "cycles=2", "save_every=1", validation, "validation.clips=0")
    folder = runs / f"spoilt {name} {validation[-1]}"
    with monkeypatch.context() as patch:
        spoil(patch, 1, lambda loop: first_of(loop, name).view(-1)[:1].fill_(float("nan")))
        said = train(*given)
    what = "the averaged weights" if name == "ema" else f"the {name.split()[0]}'s weights or moments"
    last = said.err.splitlines()[-1]
    assert said.code == 2 and f"after cycle 2 {what} (" in last and "are not finite, so they are not saved" in last
    assert not (folder / "student").exists()
    assert [p.name for p in (folder / "checkpoints").iterdir()] == ["step-00000001"]
    assert train(*given).code == 0 and (folder / "student" / "student.json").is_file()  # from the older one


def test_a_student_whose_weights_are_numbers_and_whose_clips_are_not(
    train: Callable[..., Said], runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, 1, lambda loop: loop.average.average["transformer.proj_out.weight"].fill_(3e38))
    said = train("run=huge", "cycles=2", "save_every=1")
    assert said.code == 2 and "the clips that the student makes are not finite, so it is not saved" in said.err
    assert "Lower optim.student.lr" in said.err and not (runs / "huge" / "student").exists()
    assert [p.name for p in (runs / "huge" / "checkpoints").iterdir()] == ["step-00000001"]
    assert said.err.rstrip().endswith(
        "which goes on from the newest checkpoint in " + str(runs / "huge" / "checkpoints")
    )
    said = train("run=huge at once", "cycles=2", "save_every=5")
    assert said.err.rstrip().endswith("Lower optim.student.lr; there is no checkpoint to go back to")


def test_a_checkpoint_of_no_numbers_is_not_gone_on_from(build: Callable[..., Loop]) -> None:
    loop = build()
    state = loop.state()
    name = next(n for n in state.tensors if n.startswith("student/transformer."))
    tensors = {n: t.detach().clone() for n, t in state.tensors.items()}
    tensors[name].view(-1)[0] = float("inf")
    with pytest.raises(ValueError, match=r"step-00000000 can't be gone on from: .*student's weights.*Remove .*step-0"):
        build().load(checkpoint.State(tensors, state.plain))


class Darkness:
    """A reward that is highest for black clips, which a decoder's missing numbers become."""

    def score(self, videos: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        return -videos.nan_to_num().mean((1, 2, 3, 4))


@pytest.mark.parametrize("keeper", [("keep_best=reward_4",), ("guard.action=stop",)])
def test_the_best_is_never_a_student_of_no_numbers(
    build: Callable[..., Loop], monkeypatch: pytest.MonkeyPatch, keeper: tuple[str, ...]
) -> None:
    loop = build(
        "reward._target_=test_runs.Darkness",
        "validation.every=1",
        "validation.clips=0",
        "cycles=3",
        "lrm.warmup=1",
        *keeper,
    )

    def huge(self: Loop) -> None:
        self.average.average["transformer.proj_out.weight"].fill_(3e38)

    spoil(monkeypatch, 1, huge)
    scores = {}
    monkeypatch.setattr(loop, "_keep", lambda record: scores.update({record["cycle"]: record}))
    with pytest.raises(FloatingPointError, match="clips that the student makes are not finite"):
        loop.train()
    assert scores.keys() <= {0, 1} and 1 in scores
    lines = [line for line in (loop.folder / "metrics.jsonl").read_text().splitlines() if "validation/reward_4" in line]
    assert '"validation/reward_4": "nan"' in lines[-1] and "nan" not in lines[-3].split("validation/reward_4")[1][:12]


def test_updates_that_were_skipped_at_the_end_are_said(
    train: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    from dollar.training.learner import Learner, Stepped

    real = Learner.step

    def step(self: Learner, world: World) -> Stepped:
        if self.name == "fake":
            self.tensors[0].grad.fill_(float("nan"))
        return real(self, world)

    monkeypatch.setattr(Learner, "step", step)
    said = train("run=skipped", "cycles=2")
    assert said.code == 0
    assert "note: at the end 4 updates of the fake in a row had gradients that were not finite. Lower optim" in said.out
