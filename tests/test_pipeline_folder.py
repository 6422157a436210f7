"""Finding a pipeline: local folders, hub ids, what was fetched before, and nothing from a network when offline."""

from __future__ import annotations

import json
import shutil
import socket
import time
from pathlib import Path

import pytest
import torch
from conftest import TINY, load_tiny_teacher
from safetensors.torch import save_file

from dollar.models.pipeline import Pipeline, Weights, find


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Every attempt to reach anything; there must be none."""
    attempts: list[object] = []

    def refuse(*arguments: object, **named: object) -> None:
        attempts.append(arguments)
        raise OSError("no network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    return attempts


def test_offline_an_unknown_hub_id_is_a_sentence_at_once(no_network: list[object], tmp_path: Path) -> None:
    started = time.perf_counter()
    with pytest.raises(ValueError, match=r"no teacher at nobody/nothing.*HF_HUB_OFFLINE is set.*hf download"):
        load_tiny_teacher("nobody/nothing")
    assert time.perf_counter() - started < 5 and no_network == []


def test_what_was_fetched_before_is_found_by_its_hub_id(
    no_network: list[object], tiny_teacher_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cache as the hub's library lays it out."""
    from huggingface_hub import constants

    kept = tmp_path / "models--somebody--tiny"
    shutil.copytree(tiny_teacher_folder, kept / "snapshots" / "0123abcd")
    (kept / "refs").mkdir()
    (kept / "refs" / "main").write_text("0123abcd")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    teacher = load_tiny_teacher("somebody/tiny")
    assert teacher.folder == kept / "snapshots" / "0123abcd" and teacher.clip_shape[0] == TINY["frames"]
    assert no_network == []


@pytest.mark.parametrize("place", ["./nowhere", "/nowhere/at/all", "~/nowhere-at-all", "one", "a/b/c", "x.safetensors"])
def test_what_can_be_no_hub_id_is_not_looked_for_there(no_network: list[object], place: str) -> None:
    with pytest.raises(ValueError, match="the folder doesn't exist"):
        find(place)
    assert no_network == []


def test_shards_that_an_index_names_must_be_there(tiny_teacher_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "teacher"
    shutil.copytree(tiny_teacher_folder, folder)
    index = {"weight_map": {"a": "diffusion_pytorch_model.safetensors", "b": "part-2-of-2.safetensors"}}
    (folder / "transformer" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"lacks transformer's part-2-of-2.safetensors"):
        load_tiny_teacher(folder)


@pytest.mark.parametrize("file", ["model_index.json", "transformer/config.json", "vae/config.json"])
def test_a_torn_config_is_named(tiny_teacher_folder: Path, tmp_path: Path, file: str) -> None:
    folder = tmp_path / "teacher"
    shutil.copytree(tiny_teacher_folder, folder)
    (folder / file).write_text('{"torn')
    with pytest.raises(ValueError, match=f"{file} can't be read"):
        load_tiny_teacher(folder)


def test_an_unknown_part_is_refused(tiny_teacher_folder: Path) -> None:
    with pytest.raises(ValueError, match=r"teacher.parts has text_encoder_2; this teacher has transformer"):
        load_tiny_teacher(tiny_teacher_folder, parts={"text_encoder_2": "somewhere"})


def test_rows_are_read_without_the_rest(tmp_path: Path) -> None:
    tensor = torch.arange(24.0).reshape(6, 4)
    save_file({"a": tensor, "b": torch.ones(3)}, tmp_path / "one.safetensors")
    weights = Weights.of([tmp_path / "one.safetensors"])
    assert torch.equal(weights.read("a", slice(2, 5)), tensor[2:5]) and torch.equal(weights.read("b"), torch.ones(3))
    (tmp_path / "two.safetensors").write_bytes(b"torn")
    with pytest.raises(ValueError, match=r"two.safetensors can't be read"):
        Weights.of([tmp_path / "two.safetensors"])


def test_the_folder_of_a_part_may_be_a_pipelines(tiny_teacher_folder: Path, tmp_path: Path) -> None:
    """parts.vae may name another pipeline's folder, whose vae/ is then meant."""
    pipeline = Pipeline(tiny_teacher_folder, ["vae"], {"vae": str(tiny_teacher_folder)})
    assert pipeline.place("vae") == tiny_teacher_folder / "vae"
