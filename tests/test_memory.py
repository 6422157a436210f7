"""Bytes of tensors: the count against sums worked out by hand, autograd's own hooks and what is really resident."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT
from torch import Tensor, nn

from dollar.benchmarks import memory, reward_tables
from dollar.benchmarks.memory import Count, Tally, Workload, count, operations, rise, seconds
from dollar.benchmarks.reward_costs import (
    CLIP,
    DIRECT,
    LRMS,
    SMALL,
    SPREAD,
    VIT_H,
    Measured,
    Variant,
    measure,
    new_workload,
)
from dollar.benchmarks.reward_tables import HALF, TEXT, WHOLE, BenchmarkRun, put_section

FLOAT = 4


def work_of(network: nn.Module, x: Tensor, frozen: bool = True) -> Workload:
    """The sum of what a network makes of x, as a reward."""
    return Workload([network.requires_grad_(not frozen)], [x.requires_grad_()], lambda: network(x).sum()[None])


# The count


def test_a_tally_counts_living_storages_once() -> None:
    tally = Tally()
    with tally:
        a = torch.zeros(1000)
        b = a.view(10, 100)[:, 1:]  # shares
        assert tally.live == 4000
        c = b + 1
        assert tally.live == 4000 + 990 * FLOAT
        del a
        assert tally.live == 4000 + 990 * FLOAT  # b holds it
        del b, c
    assert tally.live == 0 and tally.peak == 4000 + 990 * FLOAT


@pytest.mark.parametrize("frozen", [True, False])
def test_a_stack_of_convolutions_by_hand(frozen: bool) -> None:
    """conv 3 -> 8, SiLU, conv 8 -> 4 of 2 pictures of 10x10, with padding: sizes stay."""
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.SiLU(), nn.Conv2d(8, 4, 3, padding=1)).to("meta")
    x = torch.empty(2, 3, 10, 10, device="meta")
    pixels = 2 * 100 * FLOAT
    weights = FLOAT * (8 * 3 * 9 + 8 + 4 * 8 * 9 + 4)
    found = count(work_of(network, x, frozen))
    assert found.weights == weights and found.inputs == 3 * pixels and found.held == weights + 3 * pixels
    # Without gradient the most is two neighbours at once: what goes into the SiLU and what comes out of it.
    assert found.forward == found.held + 16 * pixels
    # Both what SiLU reads and what the second convolution does are kept, and the sum: a convolution keeps its input
    # also where its weights want no gradient.
    assert found.kept == 16 * pixels + FLOAT
    if frozen:  # what SiLU read and made, or the gradient at its input in the latter's place, with that at its output
        assert found.backward == found.held + 24 * pixels + 3 * FLOAT  # the reward, its sum and the 1 that goes back
    else:  # the gradients of the weights, and what autograd adds up on its way
        assert found.backward > found.held + 24 * pixels + FLOAT * (4 * 8 * 9 + 4)


def test_attention_and_a_linear_layer_by_hand() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv = nn.Linear(32, 96, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.qkv(x).unflatten(-1, (3, 2, 16)).permute(2, 0, 3, 1, 4)
            return nn.functional.scaled_dot_product_attention(q, k, v)

    x = torch.empty(5, 64, 32, device="meta")
    tokens, pairs = 5 * 64 * 32 * FLOAT, 5 * 2 * 64 * 64 * FLOAT
    fused = count(work_of(Attention().to("meta"), x))
    plain = count(work_of(Attention().to("meta"), x), fused=False)
    # Query, key and value in one storage, the output, and one number for each query and head.
    assert 0 <= fused.kept - (3 * tokens + tokens + 5 * 2 * 64 * FLOAT) < 64
    # Without fusing, query and key, both scaled anew, value, and a table of all pairs; the output isn't needed.
    assert plain.kept == 3 * tokens + pairs + FLOAT and plain.backward > fused.backward + pairs


def test_what_is_kept_is_what_autograd_saves() -> None:
    """The same by another reading: the storages that autograd's hooks are shown, for models that are really used."""
    for kind, frozen in [(kind, frozen) for kind in LRMS for frozen in (True, False)]:
        work = new_workload(kind, 7, Variant(dtype=torch.float32, frozen=frozen))
        held = {t.untyped_storage()._cdata for t in (*work.weights, *work.inputs)}
        saved: dict[int, Tensor] = {}

        def note(tensor: Tensor, into: dict[int, Tensor] = saved) -> Tensor:
            into[tensor.untyped_storage()._cdata] = tensor
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
            reward = work.reward()
        found = sum(t.untyped_storage().nbytes() for address, t in saved.items() if address not in held)
        assert found > 1000 and 0 <= count(work).kept - found <= 2 * reward.nbytes, kind


def test_the_latent_reward_models_grow_by_their_frames_and_halve_with_their_dtype() -> None:
    one, two, four = (count(new_workload(TEXT, n, HALF)) for n in (1, 2, 4))
    assert one.weights == 2 * 763_009 and new_workload("image LRM", 1, HALF).parameters == 189_441
    assert four.kept - two.kept == pytest.approx(2 * (two.kept - one.kept), rel=0.01)
    assert count(new_workload(TEXT, 4, replace(HALF, dtype=torch.float32))).weights == 2 * four.weights


@pytest.fixture
def small_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CLIP of 3 narrow blocks and a clip of few small frames."""
    from dollar.benchmarks import reward_costs

    towers = {part: dict(VIT_H[part]) for part in ("vision_config", "text_config")}
    for tower in towers.values():
        tower |= {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 3, "num_attention_heads": 4}
    monkeypatch.setattr(reward_costs, "VIT_H", VIT_H | towers)
    monkeypatch.setattr(reward_costs, "PIXELS", (25, 16, 24))
    monkeypatch.setattr(reward_costs, "LATENTS", (12, 7, 2, 3))


def test_clip_by_hand(small_clip: None) -> None:
    """Of each block, frozen: what both norms and the attention read, the attention's output and what GELU reads."""
    four, eight = (count(new_workload(CLIP, n, Variant(dtype=torch.float32))) for n in (4, 8))
    tokens = 4 * 257 * 64 * FLOAT
    a_block = (1 + 3 + 1 + 1 + 4) * tokens
    # A norm keeps its mean and deviation, attention its number of each head and query: 2 norms' 2, and 4, of 64.
    small = 3 * (4 + 4) * tokens / 64
    pictures = 4 * 3 * 224 * 224 * FLOAT  # a convolution cuts them into patches, and a norm reads these
    assert eight.kept - four.kept == pytest.approx(3 * a_block + small + pictures + tokens, rel=0.05)
    trained = count(new_workload(CLIP, 4, Variant(dtype=torch.float32, frozen=False)))
    assert trained.kept > four.kept + 3 * 6 * tokens * 0.95  # what the four linear layers read: 1, 1 and 4
    assert trained.backward > four.backward
    unfused = count(new_workload(CLIP, 4, Variant(dtype=torch.float32, fused=False)), fused=False)
    tables = 4 * 4 * 257 * 257 * FLOAT  # of each head; the output is kept by the fused kernel alone, with its numbers
    assert unfused.kept - four.kept == pytest.approx(3 * (tables - tokens - tokens / 16), rel=0.01)


def test_recomputing_keeps_less(small_clip: None) -> None:
    for kind in (CLIP, DIRECT, SMALL):
        kept, recomputed = (count(new_workload(kind, 5, Variant(checkpointing=c))) for c in (False, True))
        assert recomputed.kept < 0.5 * kept.kept and recomputed.backward <= kept.backward
        assert recomputed.weights == kept.weights


def test_a_direct_gradient_reaches_the_latents_and_pays_for_what_is_before_its_frames(small_clip: None) -> None:
    variant = Variant(dtype=torch.float32, device="cpu")
    work = new_workload(DIRECT, 2, variant)
    work.reward().sum().backward()
    seen = work.inputs[0].grad
    assert seen is not None and seen[0, :, :2].abs().sum() > 0 and seen[0, :, 3:].abs().sum() == 0
    leading, spread, whole = (count(new_workload(k, n, HALF)) for k, n in ((DIRECT, 2), (SPREAD, 2), (SPREAD, 25)))
    assert leading.kept < 0.7 * spread.kept and spread.kept > 0.75 * whole.kept


def test_a_small_decoder_adds_its_pixels_to_what_clip_keeps(small_clip: None) -> None:
    """Its frames before they are clipped, and its latents; of each latent frame it makes one and sees the next ones."""
    work = new_workload(SMALL, 2, Variant(dtype=torch.float32, device="cpu"))
    assert work.parameters - new_workload(CLIP, 2, HALF).parameters == (12 * 27 + 1) * 3 * 8**2 == 62_400
    work.reward().sum().backward()
    seen = work.inputs[0].grad
    assert seen is not None and (seen[0].abs().amax((0, 2, 3)) > 0).tolist() == [True] * 2 + [False] * 3 + [True] * 2
    small, clip = (count(new_workload(kind, 4, HALF)) for kind in (SMALL, CLIP))
    read = 12 * 7 * 2 * 3 * 2  # latents in half precision, by the convolution
    assert small.kept - clip.kept == 4 * 3 * 16 * 24 * FLOAT + read
    seven, many = (count(new_workload(SMALL, n, HALF)) for n in (7, 25))
    assert seven.backward == many.backward, "there are no more frames than latent ones"
    pixels, plain = (count(new_workload(f"{TEXT}{on}", WHOLE, HALF)) for on in (" on a small decoder's pixels", ""))
    assert pixels.kept > 2 * plain.kept and pixels.weights > plain.weights


def test_operations_by_hand() -> None:
    network = nn.Sequential(nn.Linear(10, 20), nn.Linear(20, 30)).to("meta")
    frozen = operations(work_of(network, torch.empty(7, 10, device="meta")))
    assert frozen == 2 * 2 * 7 * (10 * 20 + 20 * 30)  # forward, and the gradient of what each layer reads


# What is measured

RESIDENT = """
import torch
from dollar.benchmarks.memory import count, rise
from dollar.benchmarks.memory import Workload
torch.set_num_threads(1)
network = torch.nn.Sequential(*(torch.nn.Linear(256, 256) if i % 2 else torch.nn.GELU() for i in range(8)))
x = torch.zeros(32768, 256, requires_grad=True)
work = Workload([network.requires_grad_(False)], [x], lambda: network(x).sum()[None])
work.forward()
for function in (work.forward, work.gradient):
    with rise(torch.device("cpu")) as rose:
        function()
    print(rose.bytes)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells it")
def test_the_count_is_what_becomes_resident() -> None:
    """Within 5 %, of tensors of 32 MiB: three are kept, and two are made on the way back."""
    environment = {**os.environ, **memory.FREED_AT_ONCE, "OMP_NUM_THREADS": "1"}
    told = subprocess.run([sys.executable, "-c", RESIDENT], env=environment, cwd=ROOT, capture_output=True, check=True)
    forward, gradient = (float(line) for line in told.stdout.split())
    network = nn.Sequential(*(nn.Linear(256, 256) if i % 2 else nn.GELU() for i in range(8))).to("meta")
    counted = count(work_of(network, torch.empty(32768, 256, device="meta")))
    assert forward == pytest.approx(counted.forward - counted.held, rel=0.05)
    assert gradient == pytest.approx(counted.backward - counted.held, rel=0.05)
    assert counted.backward - counted.held > 4 * 32 * 2**20


def test_memory_that_nobody_tells_of_is_nan(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(memory, "PROCESS", tmp_path / "nowhere")
    with rise(torch.device("cpu")) as rose:
        torch.zeros(1000)
    assert math.isnan(rose.bytes)


def test_timing_stops_at_its_patience_but_not_before_one(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    for clock in ("perf_counter", "process_time"):
        monkeypatch.setattr(memory.time, clock, lambda: now[0])

    def work() -> None:
        now[0] += 3.0

    device = torch.device("cpu")
    assert seconds(work, 20, 8.0, device) == [3.0] * 3  # the third begins after 6 seconds, none after 9
    assert seconds(work, 20, 0.0, device) == [3.0] and seconds(work, 2, 99.0, device) == [3.0] * 2


def test_a_work_is_run_in_processes_of_its_own() -> None:
    found = measure("image LRM", 2, Variant(dtype=torch.float32, device="cpu"), 1, 2, 1.0)
    assert isinstance(found, Measured) and found.repeats == 2
    assert 0 < found.forward_seconds < found.gradient_seconds < 5
    if Path("/proc/self/clear_refs").exists():
        assert 0 <= found.forward_rise < 2**25


# Tables and document


def test_the_papers_latent_reward_models_are_met_with_cublas_workspace() -> None:
    """Table 1: one latent frame, float32, gradients of the weights too, in MiB; 8.125 for each thread that computes."""
    for kind, (_, forward, backward) in reward_tables.PAPER.items():
        found = count(new_workload(kind, 1, reward_tables.AS_PAPER))
        assert found.forward / 2**20 + 8.125 == pytest.approx(float(forward), rel=0.01)
        assert found.backward / 2**20 + 16.25 == pytest.approx(float(backward), rel=0.01)


def test_tables_divide_what_they_say() -> None:
    mega = 2**20
    counts: Any = {(TEXT, WHOLE, HALF): Count(0, 0, 0, 0, 2 * mega)}
    for n, factor in ((12, 1), (24, 2)):
        counts[DIRECT, n, HALF] = Count(0, 0, 0, 0, 2000 * mega * factor)
        counts[DIRECT, n, reward_tables.RECOMPUTED] = Count(0, 0, 0, 0, 400 * mega * factor)
        counts[CLIP, n, HALF] = Count(0, 0, 0, 0, 100 * mega * factor)
        counts[SMALL, n, HALF] = Count(0, 0, 0, 0, 120 * mega * factor)
        counts[SMALL, n, reward_tables.RECOMPUTED] = Count(0, 0, 0, 0, 40 * mega * factor)
    flops = {(TEXT, WHOLE): 10, (DIRECT, 12): 50, (DIRECT, 24): 100, (CLIP, 12): 20, (CLIP, 24): 40}
    rows = [row.split(" | ")[1:] for row in reward_tables.times_less(counts, flops, [12, 24]).splitlines()[2:]]
    shown = [[cell.removesuffix(" |") for cell in row] for row in rows]
    assert shown[:4] == [["1,000", "2,000"], ["200", "400"], ["60", "120"], ["20", "40"]]
    assert shown[4:7] == [["50", "100"], ["5", "10"], ["2", "4"]]
    took = Measured(0.5, 2.0, 3, 4.0 * mega, 9.0 * mega)
    counted = Count(mega, mega, 4 * mega, 0, 12 * mega)
    table = reward_tables.measured_table(
        [BenchmarkRun(CLIP, 2, counted, took), BenchmarkRun(DIRECT, 1, counted, "out of memory")]
    )
    assert "| CLIP | 2 | 0.5 | 2 | 3 | 2.0 | 4.0 | 2.000 | 10.0 | 9.0 | 0.900 |" in table
    assert "| decoder and CLIP | 1 | out of memory |" in table
    fast = BenchmarkRun(TEXT, WHOLE, counted, took._replace(gradient_seconds=0.01))
    assert "CLIP, 2 frames: 200 times" in reward_tables.time_ratios([fast, BenchmarkRun(CLIP, 2, counted, took)])


def test_a_section_replaces_its_own_alone(tmp_path: Path) -> None:
    document = tmp_path / "benchmarks.md"
    put_section(document, "one", "first \\1")
    put_section(document, "two", "second")
    document.write_text(f"{document.read_text()}by hand\n")
    put_section(document, "one", "anew")
    lines = ["# Benchmarks", "", "<!-- begin one -->", "anew", "<!-- end one -->", ""]
    lines += ["<!-- begin two -->", "second", "<!-- end two -->", "by hand"]
    assert document.read_text().splitlines() == lines


# The command


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("frames=[24,12]", "rising"),
        ("frames=[12,500]", "128"),
        ("frames=[]", "frames=[12,24]"),
        ("measured=2", "measured is 2"),
        ("dtype=float8", "float8"),
        ("memory=none", "GiB"),
        ("out=nowhere/at/all.md", "may be written"),
    ],
)
def test_mistakes_are_told_before_anything_is_counted(command: Callable[..., Any], given: str, told: str) -> None:
    said = command("bench_reward", given)
    assert said.code == 2 and told in said.err and "counted" not in said.out


def test_the_command_prints_and_writes_every_table(
    command: Callable[..., Any], small_clip: None, tmp_path: Path
) -> None:
    out = tmp_path / "benchmarks.md"
    said = command("bench_reward", "frames=[2]", "measured=[]", "decoded=[]", f"out={out}", "device=cpu")
    assert said.code == 0, said.err
    text = out.read_text()
    assert text.count("python launch/bench_reward.py frames=[2] measured=[]") == text.count("### ") == 4
    assert "189,441" in text and "763,009" in text and "12.373" not in text  # 12 frames weren't asked for
    assert "Table 10" in said.out and "Really run" not in said.out
