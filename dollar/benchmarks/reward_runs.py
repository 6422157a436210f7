"""What of a reward's gradient is counted on the meta device, what is really run, and under which conditions."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from dollar.benchmarks.memory import Count, count, operations
from dollar.benchmarks.reward_costs import CLIP, DIRECT, LRMS, SMALL, Variant, measure, new_clip, new_workload
from dollar.benchmarks.reward_tables import (
    AS_PAPER,
    HALF,
    MOST,
    ROWS,
    TEXT,
    WHOLE,
    BenchmarkRun,
    measured_table,
    table_1,
    table_10,
    time_ratios,
    times_less,
    weights_table,
)
from dollar.log import logger


@dataclass(frozen=True)
class Conditions:
    """On what workloads are run, and which.

    frames: pixel frames that memory is counted for; measured and decoded: those that CLIP alone, and with the decoder
    before it, are run on. memory: bytes that a run may take by its count; repeats and patience: of each timing.
    """

    device: torch.device
    dtype: torch.dtype
    frames: Sequence[int]
    measured: Sequence[int]
    decoded: Sequence[int]
    memory: float
    threads: int = 1
    repeats: int = 20
    patience: float = 8.0

    def __str__(self) -> str:
        """What times depend on."""
        gpu = self.device.type == "cuda"
        threads = "" if gpu else f", {self.threads} thread{'s' * (self.threads > 1)}"
        return (
            f"{name_of(self.device)}{threads}, {short(self.dtype)}, torch {torch.__version__}; weights frozen, nothing "
            f"recomputed; seconds of {'a clock' if gpu else 'the processor'}, memory above weights and inputs."
        )


def tables(conditions: Conditions) -> dict[str, str]:
    """Every table by its title; what is counted and run is printed on the way."""
    frames = conditions.frames
    counts = count_all(frames)
    flops = operations_of(frames)
    parameters = {kind: new_workload(kind, 1, HALF).parameters for kind in (*LRMS, CLIP, DIRECT, SMALL)}
    clip = new_clip(HALF)
    tower = sum(p.numel() for part in (clip.vision_model, clip.visual_projection) for p in part.parameters())
    runs = run_all(conditions)
    found = {
        "Table 1: parameters and memory": table_1(counts, parameters, tower),
        "Weights": weights_table(counts, parameters),
        "Table 10: memory of forward and backward by frames": table_10(counts, frames),
        "How many times less": times_less(counts, flops, frames),
    }
    if runs:
        found["Really run"] = f"{conditions}\n\n{measured_table(runs)}"
        found["How much longer, within this run"] = time_ratios(runs)
    return found


def count_all(frames: Sequence[int]) -> dict[tuple[str, int, Variant], Count]:
    """What every table needs, counted on the meta device."""
    wanted = [(kind, n, variant) for kind in LRMS for n, variant in ((1, AS_PAPER), (WHOLE, HALF))]
    wanted += [(row.kind, n, row.variant) for row in ROWS for n in frames]
    wanted += [(CLIP, MOST, variant) for variant in (AS_PAPER, HALF)]
    found = {}
    for kind, n, variant in dict.fromkeys(wanted):
        key = kind, n, variant
        found[key] = count(new_workload(kind, n, variant), variant.fused)
        words = in_words(variant)
        logger.info(f"counted: {kind}, {n} frames, {words}: {found[key].backward / 2**30:.3f} GiB")
    return found


def operations_of(frames: Sequence[int]) -> dict[tuple[str, int], int]:
    """Multiplications and additions of gradients."""
    wanted = [(TEXT, WHOLE), *((kind, n) for kind in (CLIP, DIRECT) for n in frames)]
    return {(kind, n): operations(new_workload(kind, n, HALF)) for kind, n in wanted}


def run_all(conditions: Conditions) -> list[BenchmarkRun]:
    """Every workload that is to be really run, each in processes of its own."""
    c = conditions
    if not c.measured and not c.decoded:
        return []
    runs = []
    of_clip = [*((CLIP, n) for n in c.measured), *((kind, n) for n in c.decoded for kind in (DIRECT, SMALL))]
    for kind, n in [*((kind, WHOLE) for kind in LRMS), *of_clip]:
        # On a CPU nothing is faster than its own attention, which keeps no table either.
        counted = count(new_workload(kind, n, Variant(dtype=c.dtype)))
        if counted.backward > c.memory:
            why = f"not run: {counted.backward / 2**30:.1f} GiB by its count, more than {c.memory / 2**30:.1f}"
            runs.append(BenchmarkRun(kind, n, counted, why))
            continue
        variant = Variant(dtype=c.dtype, device=str(c.device))
        runs.append(BenchmarkRun(kind, n, counted, measure(kind, n, variant, c.threads, c.repeats, c.patience)))
        logger.info(f"run: {kind}, {n} frames: {runs[-1].result}")
    return runs


def in_words(variant: Variant) -> str:
    """What sets a variant apart."""
    words = [short(variant.dtype), "frozen" if variant.frozen else "the weights' gradients too"]
    words += ["blocks recomputed"] * variant.checkpointing + ["attention keeps its table"] * (not variant.fused)
    return ", ".join(words)


def short(dtype: torch.dtype) -> str:
    """A dtype's name."""
    return str(dtype).removeprefix("torch.")


def name_of(device: torch.device) -> str:
    """What the device calls itself."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        model = platform.processor() or platform.machine()
    return f"{model}, {os.cpu_count()} cores"
