"""launch/train.py data=pairs loss=redpo, end to end on a pruned tiny teacher."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from conftest import TINY, TINY_RUN, Said, load_tiny_teacher
from pairs import write_pairs
from safetensors.torch import load_file
from torch import Tensor

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


def test_redpo(command: Callable[..., Said], place: Path, keys: list[str], pruned: Path) -> None:
    said = command(*words(place, keys, pruned, "loss=redpo", "run=a"))
    assert said.code == 0, said.err

    assert len(scalars(pruned.parent, "a")) == 3
