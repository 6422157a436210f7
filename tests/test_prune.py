"""launch/prune.py, and what is done with its folder: trained, sampled, planned, exported."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import PROMPT, TINY, TINY_DATA, TINY_RUN, Said, load_tiny_teacher
from safetensors.torch import load_file

from dollar.export.pipeline import settle
from dollar.models.pruned import read_pruning

UNITS = "remove=[transformer_blocks.0,transformer_blocks.1.attention]"
LEFT = {"transformer_blocks": [1]}


@pytest.fixture
def keys(tiny_teacher_folder: Path) -> list[str]:
    numbers = [f"teacher.{key}={value}" for key, value in TINY.items()]
    return ["teacher.name=tiny", f"teacher.folder={tiny_teacher_folder}", *numbers, "parallel.device=cpu"]


@pytest.fixture
def pruned(command: Callable[..., Said], keys: list[str], tmp_path: Path) -> Path:
    said = command("prune", *keys, UNITS, f"out={tmp_path / 'pruned'}", "steps=[4,2]", "repeats=2")
    assert said.code == 0, said.err
    assert "without transformer_blocks.0, transformer_blocks.1.attention the rest of tiny is in" in said.out
    assert [line.split()[0] for line in said.out.splitlines()[-3:]] == ["parameters", "GFLOPs", "milliseconds"]
    return tmp_path / "pruned"


def sentence(said: Said, part: str) -> None:
    assert said.code == 2 and part in said.err and "Traceback" not in said.err, said.err


def test_a_pruned_folder_goes_everywhere(
    command: Callable[..., Said], keys: list[str], pruned: Path, tmp_path: Path
) -> None:
    card = json.loads((pruned / "student.json").read_text())
    assert card["guided"] and card["steps"] == [4, 2] and card["pruned"][0].startswith("teacher.name=")
    found = read_pruning(pruned)
    assert found is not None and (found.left, found.halves) == (LEFT, ("transformer_blocks.0.attention",))
    # Sampled, with guidance as its teacher is.
    sample = ("sample", f"checkpoint={pruned}", "steps=2", f"prompt={PROMPT}", f"out={tmp_path / 'clips'}", "gif=false")
    assert command(*sample, "parallel.device=cpu").code == 0
    line = json.loads((tmp_path / "clips" / "manifest.jsonl").read_text().splitlines()[0])
    assert line["guidance_scale"] == 3.0
    # Exported for diffusers, whose clips are ours to the bit, and as it is.
    export = (f"checkpoint={pruned}", "parallel.device=cpu", "overwrite=true")
    said = command("export", *export, f"out={tmp_path / 'dense'}")
    assert said.code == 0 and "by diffusers alone" in said.out and "the pruned teacher for 4 or 2 steps" in said.out
    assert (
        "1 of 2 transformer_blocks, without 0; without transformer_blocks.1.attention"
        in (tmp_path / "dense" / "README.md").read_text()
    )
    said = command("export", *export, f"out={tmp_path / 'slim'}", "form=slim")
    assert (
        said.code == 0
        and "equal to the bit" in said.out
        and "launch/sample.py" in ((tmp_path / "slim" / "README.md").read_text())
    )
    sizes = [(tmp_path / form / "transformer").glob("*.safetensors") for form in ("slim", "dense")]
    slim, dense = (next(files).stat().st_size for files in sizes)
    assert slim < dense
    teacher = load_tiny_teacher(Path(keys[1].partition("=")[2]))
    x, t, condition = torch.randn(1, *teacher.latent_shape), teacher.grid(2)[:1], teacher.text([PROMPT])
    networks = [teacher.load_network(place) for place in (pruned, tmp_path / "dense", tmp_path / "slim")]
    settle(*networks)
    with torch.no_grad():
        outputs = [network(x, t, condition) for network in networks]
    assert torch.equal(outputs[0], outputs[1]) and torch.equal(outputs[0], outputs[2])
    for lora in (("lora=2",), ("full=false",)):
        sentence(command("export", *export, f"out={tmp_path / 'no'}", *lora), "blocks were taken out of the student")
    # Planned with both sizes.
    assert command("plan", *keys, f"init={pruned}").out.count("of whose parameters") == 1
    # Pruned further, by its own numbers.
    rest = ("prune", f"checkpoint={pruned}", "remove=[transformer_blocks.0.feed_forward]", f"out={tmp_path / 'less'}")
    sentence(command(*rest), "remove leaves nothing of transformer_blocks")  # the other half is gone, and all else


@pytest.mark.parametrize("how", [(), ("student.lora=2",)])
def test_a_pruned_student_is_trained(
    command: Callable[..., Said], keys: list[str], pruned: Path, tmp_path: Path, how: tuple[str, ...]
) -> None:
    """By every loss of DOLLAR, with the full teacher and fake score; its checkpoint and its student are exported."""
    run = (
        *TINY_RUN,
        *TINY_DATA,
        *keys,
        f"runs={tmp_path}",
        "run=r",
        f"init={pruned}",
        "cycles=2",
        "lrm.warmup=1",
        *how,
    )
    assert command("train", *run, "validation.every=0", "log.trackers=[]").code == 0
    found = read_pruning(tmp_path / "r" / "student")
    assert found is not None and found.left == LEFT and read_pruning(tmp_path / "r") == found
    before, after = (
        load_file(next((p / "transformer").glob("*.safetensors"))) for p in (pruned, tmp_path / "r" / "student")
    )
    assert before.keys() == after.keys() and any(not torch.equal(before[name], after[name]) for name in before)
    outputs = {}
    for place in ("student", "checkpoints"):
        out = tmp_path / f"export-{place}"
        said = command("export", f"checkpoint={tmp_path / 'r' / place}", f"out={out}", "parallel.device=cpu")
        assert said.code == 0 and "by diffusers alone" in said.out, said.err
        outputs[place] = load_file(next((out / "transformer").glob("*.safetensors")))
    for name, value in outputs["student"].items():
        torch.testing.assert_close(outputs["checkpoints"][name], value)
    said = command("train", *run, "validation.every=0", "log.trackers=[]", "cycles=3")  # goes on
    assert said.code == 0, said.err
    said = command("train", *run, "run=other", "teacher.name=another")
    sentence(said, "is what is left of the teacher tiny, and teacher is another; give teacher=tiny")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["remove=[transformer_blocks.9]"], "transformer_blocks has 2 blocks, from 0 to 1"),
        (["remove=[transformer_blocks.0,transformer_blocks.1]"], "leaves nothing of transformer_blocks"),
        (["remove=[]"], "remove is empty"),
        ([UNITS, "steps=[4,3]"], "student.steps has 3"),
        ([UNITS, "steps=[0]"], "steps"),
        ([UNITS, "repeats=-1"], "repeats is -1"),
    ],
)
def test_mistakes_show_before_anything_is_read(
    command: Callable[..., Said],
    keys: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    given: list[str],
    said: str,
) -> None:
    monkeypatch.setattr("dollar.cli.build.teacher.build_teacher", None)
    sentence(command("prune", *keys, f"out={tmp_path / 'out'}", *given), said)
    assert not (tmp_path / "out").exists()


def test_what_is_there_is_not_replaced(
    command: Callable[..., Said], keys: list[str], pruned: Path, tmp_path: Path
) -> None:
    sentence(
        command("prune", *keys, UNITS, f"out={pruned}"), "is not empty; name another folder, or give overwrite=true"
    )
    assert command("prune", *keys, UNITS, f"out={pruned}", "overwrite=true", "repeats=0").code == 0
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter").write_text("dear")
    sentence(command("prune", *keys, UNITS, f"out={tmp_path / 'mine'}", "overwrite=true"), "holds something else")
    sentence(command("prune", *keys, UNITS), "out is not given")
    sentence(command("prune", "remove=[transformer_blocks.0]", f"checkpoint={pruned}", f"out={pruned}"), "name another")
    again = command("prune", "remove=[transformer_blocks.0.attention]", f"checkpoint={pruned}", f"out={tmp_path / 'x'}")
    sentence(again, "is gone already")
