"""From the configuration of a benchmark to the conditions that it is run under."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, ListConfig

from dollar.benchmarks.reward_runs import Conditions
from dollar.benchmarks.reward_tables import MOST
from dollar.models.assemble import DTYPES
from dollar.parallel.world import start

CPU_MEMORY = 10 * 2**30  # bytes that a run on a CPU may take by default


def conditions_of(config: DictConfig) -> Conditions:
    """What is run and on what; ValueError for what could only fail later, or would measure nothing."""
    check(config)
    device = start(config.device).device
    gpu = device.type == "cuda"
    frames = list(config.frames)
    measured, decoded = (
        (frames if gpu else usual) if config[key] == "auto" else list(config[key])
        for key, usual in (("measured", [1, 2]), ("decoded", [1]))
    )
    return Conditions(
        device=device,
        dtype=DTYPES[("bfloat16" if gpu else "float32") if config.dtype == "auto" else config.dtype],
        frames=frames,
        measured=measured,
        decoded=decoded,
        memory=memory_of(config, device),
        threads=config.threads,
        repeats=config.repeats,
        patience=config.patience,
    )


def memory_of(config: DictConfig, device: torch.device) -> float:
    """Bytes that a run may take."""
    if config.memory != "auto":
        return float(config.memory) * 2**30
    if device.type != "cuda":
        return CPU_MEMORY
    return float(torch.cuda.get_device_properties(device).total_memory)


def check(config: DictConfig) -> None:
    """Raise ValueError for what could only fail later, or would measure nothing."""
    if config.dtype not in ("auto", *DTYPES):
        raise ValueError(f"dtype is {config.dtype!r}; use auto or {' or '.join(DTYPES)}")
    for key in ("threads", "repeats"):
        if config[key] < 1:
            raise ValueError(f"{key} is {config[key]}; it must be at least 1")
    if config.patience < 0:
        raise ValueError(f"patience is {config.patience}; it must not be negative")
    if config.memory != "auto" and not (isinstance(config.memory, (int, float)) and config.memory > 0):
        raise ValueError(f"memory is {config.memory!r}; give GiB, or auto")
    for key in ("frames", "measured", "decoded"):
        check_frames(key, config[key])
    folder = Path(config.out).absolute().parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise ValueError(f"out={config.out}: {folder} is no folder that may be written to; name another file")


def check_frames(key: str, value: Any) -> None:
    """Raise ValueError unless these are rising numbers of frames, or a key that may be is `auto` or none."""
    if key != "frames" and value == "auto":
        return
    if not isinstance(value, ListConfig) or any(isinstance(n, bool) or not isinstance(n, int) for n in value):
        raise ValueError(f"{key} is {value}; write a list of numbers of frames, as {key}=[12,24]")
    if list(value) != sorted(set(value)) or (value and not 1 <= value[0] <= value[-1] <= MOST):
        raise ValueError(f"{key} is {list(value)}; give rising numbers from 1 to {MOST}")
    if key == "frames" and not value:
        raise ValueError("frames is []; give the numbers of frames that memory is counted for, as frames=[12,24]")
