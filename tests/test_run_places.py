"""Places of a run are known by what they hold, however they are spelled and wherever they lie now."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import TINY_DATA, TINY_RUN, compose
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from test_probed import film

from dollar import media
from dollar.cli.places import place_keys, stored_at
from dollar.cli.settings import COMMANDS
from dollar.contents import BLOCK, SMALL, contents_of


def change(path: Path) -> None:
    """Other weights of the same names, sizes and place."""
    tensors = load_file(path)
    save_file({name: t * 1.01 for name, t in tensors.items()}, path)


def test_what_contents_tell(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    (folder / "inner").mkdir(parents=True)
    big = {f"t{i}": torch.full((BLOCK,), float(i)) for i in range(80)}  # 16 KiB each, above what is read whole
    save_file(big, folder / "inner" / "weights.safetensors")
    assert (folder / "inner" / "weights.safetensors").stat().st_size > SMALL
    (folder / "config.json").write_text("{}")
    (folder / "clip.mp4").write_bytes(b"x" * 10)
    before = contents_of(folder)
    assert before[:2] == (3, (folder / "inner" / "weights.safetensors").stat().st_size + 12)
    # A copy of another age under another name, with what others leave in folders, holds the same.
    other = tmp_path / "b"
    shutil.copytree(folder, other)
    for path in other.rglob("*"):
        os.utime(path, (1, 1))
    (other / ".DS_Store").write_text("x")
    (other / "README.md").write_text("x")
    (other / "loop").symlink_to(other, target_is_directory=True)
    assert contents_of(other) == before
    for name in ("t0", "t41", "t79"):  # one tensor of many is enough
        save_file({**big, name: big[name] + 1}, other / "inner" / "weights.safetensors")
        assert contents_of(other) != before
    save_file(big, other / "inner" / "weights.safetensors")
    (other / "config.json").write_text("[]")
    assert contents_of(other) != before
    (other / "config.json").write_text("{}")
    (other / "clip.mp4").write_bytes(b"y" * 10)  # films are known by their sizes
    assert contents_of(other) == before
    (other / "clip.mp4").write_bytes(b"y" * 11)
    assert contents_of(other) != before
    # A file by itself is read from end to end, whatever it is called.
    (tmp_path / "p.txt").write_text("one")
    (tmp_path / "q.list").write_text("one")
    assert contents_of(tmp_path / "p.txt") == contents_of(tmp_path / "q.list")
    (tmp_path / "q.list").write_text("two")
    assert contents_of(tmp_path / "p.txt") != contents_of(tmp_path / "q.list")


def test_contents_of_some_folders(tmp_path: Path) -> None:
    for name in ("clip", "shapes"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(name)
    before = contents_of(tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text("more")
    assert contents_of(tmp_path) != before and contents_of(tmp_path, ("clip", "shapes")) == before


def test_places_are_keys_by_their_types() -> None:
    plain = OmegaConf.to_container(compose("train", "data=clips", "reward=clip_score"), resolve=False)
    found = place_keys(COMMANDS["train"], plain)
    assert {"data.path", "data.clips.path", "init", "lrm.path", "teacher.folder", "teacher.lora"} <= {*found}
    assert {f"teacher.parts.{part}" for part in ("vae", "transformer", "tokenizer")} <= {*found}
    assert not {"run", "seed", "teacher.name", "data.clips.stills"} & {*found}


@pytest.fixture
def teacher(tiny_teacher_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_teacher_folder, tmp_path / "models" / "tiny"))


@pytest.fixture
def train(command: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable:
    """Train two cycles of a run, or see whether it is found finished; the words come last."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str):
        few = ("cycles=2", "beta_ft=0", "student.steps=[2,1]", f"runs={tmp_path / 'runs'}", "run=one")
        data = () if any(word.startswith("data=") for word in words) else TINY_DATA
        return command("train", *TINY_RUN, *data, *few, *words)

    return run


def refused(said, *parts: str) -> None:
    assert said.code == 2 and "Traceback" not in said.err, said
    for part in parts:
        assert part in said.err, said.err


def test_a_teacher_that_is_spelled_otherwise_or_moved_is_the_same(
    train: Callable, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = train("teacher.folder=models/tiny")
    assert said.code == 0, said.err
    kept = stored_at(tmp_path / "runs" / "one").places["teacher.folder"]
    assert [p.resolved for p in kept] == [str(teacher)] and kept[0].contents == contents_of(teacher)
    (tmp_path / "link").symlink_to(teacher, target_is_directory=True)
    monkeypatch.setenv("HOME", str(tmp_path))
    for spelled in (teacher, f"{teacher}/", "./models/../models/tiny", "link", "'~/models/tiny'"):
        said = train(f"teacher.folder={spelled}")
        assert said.code == 0 and "is finished" in said.out, (spelled, said.err)
    moved = shutil.move(teacher, tmp_path / "elsewhere")
    said = train(f"teacher.folder={moved}")
    assert "is finished" in said.out, said.err
    # And a run that goes on keeps where it found it.
    assert train(f"teacher.folder={moved}", "cycles=3").code == 0
    assert stored_at(tmp_path / "runs" / "one").places["teacher.folder"][0].resolved == str(moved)


def test_another_teacher_or_one_that_was_trained_in_place_is_refused(
    train: Callable, teacher: Path, tmp_path: Path
) -> None:
    assert train(f"teacher.folder={teacher}").code == 0
    other = Path(shutil.copytree(teacher, tmp_path / "other"))
    weights = next((other / "transformer").glob("*.safetensors"))
    change(weights)
    said = train(f"teacher.folder={other}")
    refused(said, f"teacher.folder was {teacher}, now {other}, and it held", "run=NAME", "same=[teacher.folder]")
    assert "remove" not in said.err
    said = train("teacher.folder=no/such/place")
    refused(said, f"teacher.folder was {teacher}, now no/such/place, and there is no such file or folder here")
    assert "remove" not in said.err
    shutil.copy(weights, teacher / "transformer" / weights.name)
    said = train(f"teacher.folder={teacher}")
    refused(said, f"teacher.folder={teacher} has changed: it held", "same=[teacher.folder]")
    refused(train(f"teacher.folder={teacher}", "same=[teacher.name]"), "same has teacher.name, which names no place")
    said = train(f"teacher.folder={teacher}", "same=[teacher.folder]", "cycles=3")
    assert said.code == 0, said.err
    assert "is finished" in train(f"teacher.folder={teacher}", "cycles=3").out  # what it holds now was stored


def test_a_run_of_before_contents_were_stored(train: Callable, teacher: Path, tmp_path: Path) -> None:
    assert train("teacher.folder=models/tiny").code == 0
    (tmp_path / "runs" / "one" / "places.json").unlink()
    assert "is finished" in train(f"teacher.folder={teacher}").out
    moved = shutil.move(teacher, tmp_path / "elsewhere")
    said = train(f"teacher.folder={moved}")
    refused(said, "teacher.folder was models/tiny", "what it held then was not stored", "same=[teacher.folder]")
    assert "remove" not in said.err
    assert "is finished" in train(f"teacher.folder={moved}", "same=[teacher.folder]").out


def test_data_that_moved_and_data_that_was_edited(train: Callable, teacher: Path, tmp_path: Path) -> None:
    for name in "abcd":
        media.write_mp4(tmp_path / "clips" / f"{name}.mp4", film(9), 8)
        (tmp_path / "clips" / f"{name}.txt").write_text(f"a small {name}")
    given = (f"teacher.folder={teacher}", "data=clips")
    said = train(*given, "data.path=clips")
    assert said.code == 0, said.err
    moved = (tmp_path / "clips").rename(tmp_path / "mount")
    said = train(*given, f"data.path={moved}")
    assert "is finished" in said.out, said.err
    media.write_mp4(moved / "a.mp4", film(17), 8)
    said = train(*given, f"data.path={moved}", "cycles=3")
    refused(said, "data.path was clips", "it held 8 files")
    moved.rename(tmp_path / "clips")
    said = train(*given, "data.path=clips", "cycles=3")
    assert said.code == 0 and "what data.path=clips holds has changed since this run began" in said.out, said
    (tmp_path / "clips" / "b.txt").write_text("another caption")
    refused(train(*given, "data.path=clips", "cycles=4"), "begun on other data")


def test_a_module_of_ones_own_that_was_edited_is_noted(
    train: Callable, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    module = tmp_path / "mine_for_places.py"
    module.write_text("from conftest import Redness as R\nclass Mine(R):\n    pass\n")
    given = (f"teacher.folder={teacher}", "reward._target_=mine_for_places.Mine")
    assert train(*given).code == 0
    module.write_text(module.read_text() + "# a comment\n")
    assert "changed" not in train(*given).out
    module.write_text(module.read_text() + "SCALE = 2\n")
    assert "note: the module of mine_for_places.Mine has changed since this run began" in train(*given).out


def test_a_student_finds_its_teacher_from_anywhere(
    train: Callable, command: Callable, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import dollar

    vae = Path(shutil.copytree(teacher / "vae", tmp_path / "parts" / "vae"))
    assert train("teacher.folder=models/tiny", "teacher.parts.vae=parts/vae").code == 0
    student = tmp_path / "runs" / "one" / "student"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    words = (f"checkpoint={student}", "prompt=a b", f"out={tmp_path / 'out'}", "gif=false", "parallel.device=cpu")
    said = command("sample", *words)
    assert said.code == 0, said.err
    assert dollar.load_student(student).teacher.folder == teacher
    # A folder of the same name here, which is another teacher, isn't taken for it.
    other = Path(shutil.copytree(teacher, elsewhere / "models" / "tiny"))
    change(next((other / "transformer").glob("*.safetensors")))
    assert dollar.load_student(student).teacher.folder == teacher
    shutil.rmtree(elsewhere / "models")
    # The whole project moved.
    moved = tmp_path / "moved"
    moved.mkdir()
    for name in ("runs", "models", "parts"):
        shutil.move(tmp_path / name, moved / name)
    student = moved / "runs" / "one" / "student"
    found = dollar.load_student(student).teacher.pipeline
    assert (found.folder, found.place("vae")) == (moved / "models" / "tiny", moved / "parts" / "vae")
    export = (f"out={tmp_path / 'export'}", "verify=false", "parallel.device=cpu")
    said = command("export", f"checkpoint={moved / 'runs' / 'one' / 'checkpoints'}", *export)
    assert said.code == 0, said.err
    # One that is gone is hinted at in every command; one that isn't what it was is noted.
    shutil.move(moved / "models", tmp_path / "gone")
    shutil.move(moved / "parts", tmp_path / "gone" / "parts")
    place, gone = f"checkpoint={student}", tmp_path / "gone"
    for name, given in (("sample", [*words[1:]]), ("evaluate", ["clips=64"]), ("export", ["out=new", "verify=false"])):
        said = command(name, place, *given)
        refused(said, f"no teacher at models/tiny, nor at {teacher}; no teacher.parts.vae at parts/vae, nor at {vae}")
        refused(said, "Give teacher.folder=FOLDER teacher.parts.vae=FOLDER")
        refused(command(name, place, *given, f"teacher.folder={gone / 'tiny'}"), ". Give teacher.parts.vae=FOLDER")
    with pytest.raises(ValueError, match=r"no teacher at models/tiny.*Give teacher.folder=FOLDER"):
        dollar.load_student(student)
    for name in ("tiny", "parts"):
        shutil.move(tmp_path / "gone" / name, moved / ("models/tiny" if name == "tiny" else name))
    change(next((moved / "models" / "tiny" / "text_encoder").glob("*.safetensors")))
    said = command("sample", place, *words[1:])
    assert said.code == 0 and "holds something else than when the student" in said.out, said


def test_a_students_own_reward_is_found_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dollar.cli.origin import found_now, places_of

    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "w.pt").write_bytes(b"w")
    reward = {"_target_": "dollar.rewards.image_reward.ImageReward", "path": "weights/w.pt", "tokenizer": "some/hub-id"}
    card = {"places": places_of({"teacher": {"name": "x"}, "reward": reward})}
    assert [*card["places"]] == ["reward.path", "reward.tokenizer"]
    monkeypatch.chdir("/")
    elsewhere = Path("/nowhere/student")
    found = found_now(card, "reward", reward, elsewhere)
    assert found == {**reward, "path": str(tmp_path / "weights" / "w.pt")} and reward["path"] == "weights/w.pt"
    shutil.rmtree(tmp_path / "weights")
    with pytest.raises(ValueError, match=r"no reward.path at weights/w.pt, nor at .*. Give reward.path=FOLDER"):
        found_now(card, "reward", reward, elsewhere)


def test_a_student_of_before_its_teachers_place_was_stored(
    train: Callable, command: Callable, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert train("teacher.folder=models/tiny").code == 0
    card = tmp_path / "runs" / "one" / "student" / "student.json"
    plain = json.loads(card.read_text())
    assert plain["places"].pop("teacher.folder")[0]["resolved"] == str(teacher)
    card.write_text(json.dumps({key: value for key, value in plain.items() if key != "places"}))
    monkeypatch.chdir("/")
    words = (f"checkpoint={card.parent}", "prompt=a b", f"out={tmp_path / 'out'}", "gif=false", "parallel.device=cpu")
    assert command("sample", *words).code == 0  # it lies below a folder above the student
    teacher.rename(tmp_path / "gone")
    refused(command("sample", *words), "no teacher at models/tiny", "teacher.folder=FOLDER")
