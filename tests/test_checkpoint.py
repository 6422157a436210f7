"""Checkpoints are whole or not there; damaged ones are named and passed over."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from dollar.parallel import checkpoint
from dollar.parallel.world import World


def save(folder: Path, step: int, keep: int = 9) -> Path:
    tensors = {"weight": torch.full((3, 4), float(step)), "scalar": torch.tensor(step)}
    checkpoint.save(folder, step, tensors, {"cycle": step, "nested": {"a": [1, 2.5, None]}}, World(), keep)
    return folder / f"step-{step:08d}"


def flip(path: Path) -> None:
    """Turn one bit in the middle, which leaves the size as it was."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def test_what_is_saved_is_read_back(tmp_path: Path) -> None:
    tensors, plain = checkpoint.load(save(tmp_path, 7))
    assert torch.equal(tensors["weight"], torch.full((3, 4), 7.0)) and tensors["scalar"].item() == 7
    assert plain == {"cycle": 7, "nested": {"a": [1, 2.5, None]}}
    assert checkpoint.newest(tmp_path) == tmp_path / "step-00000007"
    assert checkpoint.newest(tmp_path / "nowhere") is None


def test_the_save_holds_the_values_of_its_moment(tmp_path: Path) -> None:
    weight = torch.zeros(4)
    checkpoint.save(tmp_path, 1, {"weight": weight, "view": weight[1:3]}, {}, World())
    weight += 1
    tensors, _ = checkpoint.load(tmp_path / "step-00000001")
    assert torch.equal(tensors["weight"], torch.zeros(4)) and torch.equal(tensors["view"], torch.zeros(2))


def test_the_manifest_lists_both_files_with_size_and_hash(tmp_path: Path) -> None:
    saved = save(tmp_path, 1)
    manifest = json.loads((saved / checkpoint.MANIFEST).read_text())
    assert set(manifest) == {p.name for p in saved.iterdir()} - {checkpoint.MANIFEST}
    for name, fingerprint in manifest.items():
        assert fingerprint["bytes"] == (saved / name).stat().st_size and len(fingerprint["sha256"]) == 64


DAMAGE = {
    "bit flip in the tensors": lambda c: flip(c / checkpoint.TENSORS),
    "bit flip in the plain values": lambda c: flip(c / checkpoint.PLAIN),
    "truncated": lambda c: os.truncate(c / checkpoint.TENSORS, 40),
    "empty": lambda c: os.truncate(c / checkpoint.TENSORS, 0),
    "tensors missing": lambda c: (c / checkpoint.TENSORS).unlink(),
    "manifest missing": lambda c: (c / checkpoint.MANIFEST).unlink(),
    "manifest torn": lambda c: os.truncate(c / checkpoint.MANIFEST, 9),
    "manifest without a file": lambda c: (c / checkpoint.MANIFEST).write_text("{}"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(tmp_path: Path, kind: str) -> None:
    older, newer = save(tmp_path, 3), save(tmp_path, 12)
    assert checkpoint.newest(tmp_path) == newer
    DAMAGE[kind](newer)
    with pytest.warns(UserWarning, match=r"step-00000012 is damaged.*An older one"):
        assert checkpoint.newest(tmp_path) == older
    with pytest.raises(ValueError, match=r"step-00000012 is damaged.*Name an older one"):
        checkpoint.load(newer)
    shutil.rmtree(older)
    with pytest.warns(UserWarning, match="damaged"), pytest.raises(ValueError, match=r"every checkpoint.*start anew"):
        checkpoint.newest(tmp_path)


def test_leftovers_of_a_crash_are_no_checkpoints(tmp_path: Path) -> None:
    whole = save(tmp_path, 2)
    shutil.copytree(whole, tmp_path / "step-00000003.tmp")
    assert checkpoint.newest(tmp_path) == whole
    save(tmp_path, 3, keep=1)  # the leftover is neither counted nor in the way
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000003"]


@pytest.mark.parametrize("moment", ["save_file", "_fingerprint", "_sync", "os.replace"])
def test_a_crash_at_any_moment_leaves_the_older_one(tmp_path: Path, monkeypatch, moment: str) -> None:
    older = save(tmp_path, 1)

    class Killed(BaseException):
        pass

    def die(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        if moment == "os.replace":
            patch.setattr(os, "replace", die)
        else:
            patch.setattr(checkpoint, moment, die)
        save(tmp_path, 2)
    assert checkpoint.newest(tmp_path) == older
    assert checkpoint.load(older).plain["cycle"] == 1
    assert checkpoint.newest(save(tmp_path, 2).parent) == tmp_path / "step-00000002"


@pytest.mark.parametrize("kind", [OSError, SafetensorError])
@pytest.mark.parametrize("moment", ["save_file", "_sync"])
def test_a_full_disk_leaves_the_older_ones_and_says_how_much_is_needed(
    tmp_path: Path, monkeypatch, kind: type[Exception], moment: str
) -> None:
    older = save(tmp_path, 1)

    def full(*_: object) -> None:
        raise kind("No space left on device")

    monkeypatch.setattr(checkpoint, moment, full)
    with pytest.raises(OSError, match=r"step 2 could not be written.*It needs 56 bytes and [\d,]+ are free"):
        save(tmp_path, 2)
    assert [p.name for p in tmp_path.iterdir()] == [older.name]


def test_only_the_newest_are_kept(tmp_path: Path, monkeypatch) -> None:
    for step in (5, 10, 100):  # by number, not by the alphabet
        save(tmp_path, step, keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000010", "step-00000100"]

    def stuck(path: Path, **_: object) -> None:
        if "00000010" in str(path):
            raise OSError("busy")

    monkeypatch.setattr(checkpoint.shutil, "rmtree", stuck)
    with pytest.warns(UserWarning, match="step-00000010 could not be removed: busy"):
        save(tmp_path, 101, keep=2)


def test_what_was_just_written_is_never_pruned(tmp_path: Path) -> None:
    for step in (20, 40, 60):
        save(tmp_path, step, keep=3)
    for step in (40, 60):
        flip(tmp_path / f"step-{step:08d}" / checkpoint.TENSORS)
    written = save(tmp_path, 30, keep=2)  # the run went on from 20 and was stopped
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000020", "step-00000030"]
    assert checkpoint.newest(tmp_path) == written


def test_the_same_step_is_saved_anew(tmp_path: Path) -> None:
    saved = save(tmp_path, 4)
    flip(saved / checkpoint.TENSORS)
    assert checkpoint.fault(save(tmp_path, 4)) is None
