"""launch/train.py data=pairs loss=redpo, end to end on a pruned tiny teacher."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from conftest import TINY, TINY_RUN, Said, load_tiny_teacher
from pairs import PROMPTS, write_pairs
from safetensors.torch import load_file
from torch import Tensor

from dollar.data.nulls import write_nulls
from dollar.media import write_mp4

REMOVE = "remove=[transformer_blocks.0.attention]"


@pytest.fixture(scope="module")
def place(tiny_teacher_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("pairs"), load_tiny_teacher(tiny_teacher_folder))


@pytest.fixture
def keys(tiny_teacher_folder: Path) -> list[str]:
    numbers = [f"teacher.{key}={value}" for key, value in TINY.items()]
    return ["teacher.name=tiny", f"teacher.folder={tiny_teacher_folder}", *numbers, "parallel.device=cpu"]


@pytest.fixture
def pruned(command: Callable[..., Said], keys: list[str], tmp_path: Path) -> Path:
    said = command("prune", *keys, REMOVE, f"out={tmp_path / 'pruned'}", "steps=[4]", "repeats=0")
    assert said.code == 0, said.err
    return tmp_path / "pruned"


def words(place: Path, keys: list[str], pruned: Path, *further: str) -> list[str]:
    run = [*TINY_RUN, *keys, f"runs={pruned.parent}", f"init={pruned}", "data=pairs", f"data.path={place}"]
    return ["train", *run, "beta_ft=0", "student.steps=[4]", "log.trackers=[]", "optim.student.lr=1e-3", *further]


def student_of(runs: Path, name: str) -> Mapping[str, Tensor]:
    return load_file(next((runs / name / "student" / "transformer").glob("*.safetensors")))


def scalars(runs: Path, name: str) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (runs / name / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "pairs/winner_error" in line]


def test_a_stopped_run_goes_on_to_the_same_bits(
    command: Callable[..., Said], place: Path, keys: list[str], pruned: Path
) -> None:
    how, runs = (
        ("loss=redpo", "preference.sft=100", "preference.safeguard=true", "optim.student.betas=[0.9,0.99]"),
        pruned.parent,
    )
    for name, cycles in (("whole", 4), ("parts", 2), ("parts", 4)):
        said = command(*words(place, keys, pruned, *how, f"run={name}", f"cycles={cycles}"))
        assert said.code == 0, said.err
    assert "terms dpo 1, sft 100" in said.out and "going on at cycle 2" in said.out
    whole, parts = student_of(runs, "whole"), student_of(runs, "parts")
    before = load_file(next((pruned / "transformer").glob("*.safetensors")))
    assert before.keys() == whole.keys() and all(torch.equal(whole[name], parts[name]) for name in whole)
    assert any(not torch.equal(before[name], whole[name]) for name in whole)
    found = scalars(runs, "whole")
    names = ("winner_error", "loser_error", "sft", "margin", "logit", "saturated", "accuracy")
    assert len(found) == 4 and {f"pairs/{name}" for name in names} <= found[0].keys()
    sides = {"grad_norm/winner", "grad_norm/loser", "cosine/winner_loser", "safeguard/share"}
    terms = {"grad_norm/term/dpo_winner", "grad_norm/term/dpo_loser", "grad_norm/term/sft_winner"}
    assert sides <= found[1].keys() and terms <= found[0].keys() and not terms & found[1].keys()  # every two cycles
    assert found[0]["pairs/margin"] == pytest.approx(found[0]["pairs/winner_error"] - found[0]["pairs/loser_error"])
    said = command("export", f"checkpoint={runs / 'whole' / 'student'}", f"out={runs / 'out'}", "parallel.device=cpu")
    assert said.code == 0, said.err
    card = (runs / "out" / "README.md").read_text()
    assert "losses: dpo 1.0 (strength 5000.0, safeguard True), sft 100" in card and "loss=redpo" in card


@pytest.mark.parametrize(
    "how",
    [
        ("student.lora=2", "parallel.activation_checkpointing=true"),
        ("loss=sft", "parallel.activation_checkpointing=true"),
        ("parallel.dtype=bfloat16", "parallel.teacher_dtype=bfloat16"),
    ],
)
def test_other_students_are_trained(
    command: Callable[..., Said], place: Path, keys: list[str], pruned: Path, how: tuple[str, ...]
) -> None:
    said = command(*words(place, keys, pruned, "loss=redpo" * ("loss=sft" not in how) or "seed=0", *how, "run=r"))
    assert said.code == 0, said.err
    found = scalars(pruned.parent, "r")
    assert ("pairs/loser_error" in found[0]) == ("loss=sft" not in how)
    before = load_file(next((pruned / "transformer").glob("*.safetensors")))
    assert any(not torch.equal(before[name], value) for name, value in student_of(pruned.parent, "r").items())


def test_a_few_step_student_is_held_to_what_it_was(
    command: Callable[..., Said], place: Path, keys: list[str], pruned: Path
) -> None:
    few = ("student.guided=false", "preference.times=student", "preference.drop_caption=0", "loss=sft")
    said = command(*words(place, keys, pruned, *few, f"preference.reference={pruned}", "run=same", "cycles=1"))
    assert said.code == 0, said.err
    assert scalars(pruned.parent, "same")[0]["pairs/sft"] == 0  # it is the reference itself
    said = command(*words(place, keys, pruned, *few, "run=teacher", "cycles=1"))
    assert said.code == 0 and "preference.reference" in said.out
    assert scalars(pruned.parent, "teacher")[0]["pairs/sft"] > 0


def test_the_plan_tells_what_it_costs(command: Callable[..., Said], place: Path, keys: list[str], pruned: Path) -> None:
    for loss, said in (
        (
            "redpo",
            "9.00 forwards of 4 clips, a backward pass counting as two (student 7.00, fake score 0.00, teacher 2.00)",
        ),
        (
            "sft",
            "4.00 forwards of 4 clips, a backward pass counting as two (student 3.00, fake score 0.00, teacher 1.00)",
        ),
    ):
        found = command("plan", *words(place, keys, pruned, f"loss={loss}")[1:])
        assert found.code == 0 and said in found.out, found.out + found.err


def test_pairs_with_stored_prompts(
    command: Callable[..., Said], tiny_teacher_folder: Path, tmp_path: Path, keys: list[str], pruned: Path
) -> None:
    teacher = load_tiny_teacher(tiny_teacher_folder)
    folder = write_pairs(tmp_path / "stored", teacher)
    run = words(folder, keys, pruned, "loss=redpo", "teacher.text=stored")
    said = command(*run, "run=a")
    assert said.code == 2 and "neither as a caption nor in nulls.safetensors" in said.err
    null = teacher.null(1)
    write_nulls(folder / "winners", {"": (null.embeddings[0], null.mask[0], None)})
    assert command(*run, "run=a").code == 0
    assert command(*words(folder, keys, pruned, "loss=redpo"), "run=b").code == 0
    one, two = student_of(pruned.parent, "a"), student_of(pruned.parent, "b")
    for name, value in one.items():
        torch.testing.assert_close(value, two[name])


def test_pairs_of_ones_own(
    command: Callable[..., Said], tiny_teacher_folder: Path, tmp_path: Path, keys: list[str], pruned: Path
) -> None:
    folder, generator = tmp_path / "own", torch.Generator().manual_seed(0)
    (folder / "winners").mkdir(parents=True)
    (folder / "losers").mkdir()
    rows = ["caption,winner,loser"]
    for n in range(5):
        for side in ("winners", "losers"):
            video = torch.rand(9 if n < 4 else 2, 3, 32, 32, generator=generator)
            write_mp4(folder / side / f"{n}.mp4", (video * 255).byte().permute(0, 2, 3, 1).numpy(), 8)
        rows.append(f'"{PROMPTS[n % 3]}",winners/{n}.mp4,losers/{n}.mp4')
    (folder / "pairs.csv").write_text("\n".join(rows) + "\n")
    said = command(*words(folder, keys, pruned, "loss=redpo", "run=own"))
    assert said.code == 0 and "4 pairs of clips" in said.out, said.err
    assert "1 of 5 pairs are left out (2 too short)" in said.out
    assert len(scalars(pruned.parent, "own")) == 3
    said = command(*words(folder, keys, pruned, "loss=redpo", "run=stored", "teacher.text=stored"))
    assert said.code == 2 and "use teacher.text=online" in said.err
    (folder / "winners" / "0.mp4").unlink()
    said = command(*words(folder, keys, pruned, "loss=redpo", "run=gone"))
    assert said.code == 2 and "1 of its files are not there" in said.err


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["batch=7"], "has 6 pairs, and batch=7 takes more at once; make more pairs, or give batch=6"),
        (["beta_vsd=1"], "dpo and sft look at pairs of clips and vsd at what the student makes"),
        (["preference.dpo=0", "preference.sft=0"], "the student has nothing to learn from"),
        (["parallel.dtype=bfloat16"], "the errors of student and reference are compared"),
        (["parallel.dtype=float16"], "parallel.dtype is 'float16'; use float32 or bfloat16"),
        (["parallel.dtype=float16", "parallel.teacher_dtype=float16"], "use float32 or bfloat16"),
        (["preference.times=student"], "this student is sampled in many steps as its teacher is"),
        (["preference.times=early"], "preference.times"),
        (["preference.beta=0"], "preference.beta is 0"),
        (["preference.sft=-1"], "preference.sft is -1"),
        (["preference.drop_caption=2"], "preference.drop_caption is 2"),
        (["student.parameterization=heterogeneous"], "use homogeneous"),
        (["preference.reference=/nowhere"], "no student in /nowhere"),
        (["monitors.alarm.action=lower"], "the alarm's action is 'lower'"),
        (["method=dollar"], "look at pairs of clips, and method=dollar runs none"),
        (["data=shapes"], "need pairs of clips; give data=pairs"),
        (["data.path=/nowhere"], "there is neither pairs.jsonl"),
    ],
)
def test_mistakes_show_before_anything_is_read(
    command: Callable[..., Said],
    place: Path,
    keys: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    given: list[str],
    said: str,
) -> None:
    monkeypatch.setattr("dollar.cli.build.teacher.build_teacher", None)
    run = [word for word in words(place, keys, tmp_path / "x", "loss=redpo") if not word.startswith("init=")]
    if given == ["data=shapes"]:
        run = [word for word in run if not word.startswith("data")]
    found = command(*run, *given)
    assert found.code == 2 and said in found.err and "Traceback" not in found.err, found.err
    assert not (tmp_path / "first").exists()


def test_pairs_whose_clips_are_not_there(
    command: Callable[..., Said], tiny_teacher_folder: Path, tmp_path: Path, keys: list[str]
) -> None:
    teacher = load_tiny_teacher(tiny_teacher_folder)
    folder = write_pairs(tmp_path / "pairs", teacher)
    run = [word for word in words(folder, keys, tmp_path / "x", "loss=redpo") if not word.startswith("init=")]

    def refused(said: str) -> None:
        found = command(*run)
        assert found.code == 2 and said in found.err and "Traceback" not in found.err, found.err

    (folder / "winners" / "fingerprint.json").write_text(json.dumps({"vae": "another"}))
    refused("was made with another teacher: vae another there")
    (folder / "winners" / "fingerprint.json").unlink()
    lines = (folder / "pairs.jsonl").read_text().splitlines()
    row = json.loads(lines[1])
    for key, value, said in (
        ("winner", "gone-1", "has 1 winners that are in no shard"),
        ("loser", "gone-1", "has 1 losers that are in no shard"),
        ("prompt", "a large cat", "line 2 of"),
    ):
        (folder / "pairs.jsonl").write_text("\n".join([lines[0], json.dumps({**row, key: value}), *lines[2:]]))
        refused(said)
    (folder / "pairs.jsonl").write_text("\n".join([lines[0], "{", *lines[2:]]))
    refused("line 2 of")
    (folder / "pairs.json").write_text("{}")
    refused("doesn't say where the clips are")


def test_the_alarm_ends_a_run_with_the_student_before(
    command: Callable[..., Said], place: Path, keys: list[str], pruned: Path
) -> None:
    alarm = ("monitors.alarm.action=stop", "monitors.alarm.every=2", "monitors.alarm.patience=2")
    dpo = ("loss=dpo", "optim.student.lr=3e-2", "cycles=40")
    said = command(*words(place, keys, pruned, *dpo, *alarm, "run=a"))
    assert said.code == 0, said.err
    assert "pairs/winner_error, which should not rise, is" in said.out
    best = json.loads((pruned.parent / "a" / "student" / "student.json").read_text())
    assert best["ended"].endswith("with the student of the last look below") and best["cycle"] < best["trained"] < 40
