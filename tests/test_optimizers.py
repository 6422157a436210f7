"""optim.*: AdamW for all of a network, or Muon for the matrices of its blocks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import TINY, TINY_RUN, Said, compose
from omegaconf import DictConfig
from safetensors.torch import load_file
from torch import nn

from dollar.cli.build import optimizers as built
from dollar.cli.build.optimizers import check_optimizers, optimizers_of


def config_of(*words: str) -> DictConfig:
    return compose("train", *words)


def parameters() -> dict[str, nn.Parameter]:
    draws = torch.Generator().manual_seed(0)
    shapes = {
        "transformer.blocks.0.attn.weight": (6, 4),
        "transformer.blocks.0.norm.weight": (4,),
        "transformer.more_blocks.0.weight": (4, 4),
        "transformer.proj_out.weight": (4, 6),
    }
    return {name: nn.Parameter(torch.randn(*shape, generator=draws)) for name, shape in shapes.items()}


def test_muon_takes_the_matrices_of_the_blocks_and_adamw_the_rest() -> None:
    weights = parameters()
    keys = ("optim.student.muon_lr=0.02", "optim.student.lr=0.1", "optim.student.betas=[0.9,0.99]")
    muon, adam = optimizers_of(config_of(*keys), "student", weights, ["blocks"])
    assert [id(p) for p in muon.param_groups[0]["params"]] == [id(weights["transformer.blocks.0.attn.weight"])]
    assert len(adam.param_groups[0]["params"]) == 3 and adam.param_groups[0]["lr"] == 0.1
    # A first update is the polar factor of the gradient, of 0.2 sqrt(larger side) times the rate.
    inner = weights["transformer.blocks.0.attn.weight"]
    before = inner.detach().clone()
    inner.grad = torch.linalg.qr(torch.randn(6, 4, generator=torch.Generator().manual_seed(1)))[0] * 7
    muon.step()
    moved = (before - inner.detach()) / (0.02 * 0.2 * 6**0.5)
    cosine = torch.nn.functional.cosine_similarity(moved.flatten(), inner.grad.flatten(), dim=0)
    assert float(cosine) > 0.999 and 0.6 < float(torch.linalg.svdvals(moved).mean()) < 1.3
    assert len(optimizers_of(config_of(), "student", weights, ["blocks"])) == 1
    assert len(optimizers_of(config_of(*keys), "fake", weights, ["blocks"])) == 1
    lora = {"transformer.blocks.0.lora_A.weight": nn.Parameter(torch.ones(2, 4))}
    assert len(optimizers_of(config_of(*keys), "student", lora, ["blocks"])) == 1, "nothing is left for AdamW"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("optim.student.muon_lr=0",), "optim.student.muon_lr is 0; it must be positive, or null"),
        (("optim.student.muon_lr=0.01", "parallel.shard=true"), "parallel.shard is true, but optim.student.muon_lr"),
    ],
)
def test_what_muon_cannot_take_is_refused(words: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        check_optimizers(config_of(*words))


def test_spread_matrices_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(built, "is_sharded", lambda p: True)
    with pytest.raises(ValueError, match="the student is spread over the processes"):
        optimizers_of(config_of("optim.student.muon_lr=0.01"), "student", parameters(), ["blocks"])


def test_a_stopped_run_with_muon_goes_on_to_the_same_bits(
    command: Callable[..., Said], tiny_teacher_folder: Path, tmp_path: Path
) -> None:
    numbers = [f"teacher.{key}={value}" for key, value in TINY.items()]
    teacher = ["teacher.name=tiny", f"teacher.folder={tiny_teacher_folder}", *numbers, "parallel.device=cpu"]
    run = [*TINY_RUN, *teacher, f"runs={tmp_path}", "beta_ft=0", "log.trackers=[]", "optim.student.muon_lr=0.01"]
    for name, cycles in (("whole", 4), ("parts", 2), ("parts", 4)):
        said = command("train", *run, f"run={name}", f"cycles={cycles}")
        assert said.code == 0, said.err
    assert "going on at cycle 2" in said.out
    whole, parts = (
        load_file(next((tmp_path / name / "student" / "transformer").glob("*.safetensors")))
        for name in ("whole", "parts")
    )
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
