"""What a reward's gradient costs, the latent reward model's beside the others': `python launch/bench_reward.py`."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, ListConfig

if TYPE_CHECKING:
    from dollar.benchmarks.memory import Count
    from dollar.benchmarks.reward_costs import How
    from dollar.benchmarks.reward_tables import Run


def check(config: DictConfig) -> None:
    """Raise ValueError for what could only fail later, or would say nothing."""
    from dollar.models.assemble import DTYPES

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
    from dollar.benchmarks.reward_tables import MOST

    if key != "frames" and value == "auto":
        return
    if not isinstance(value, ListConfig) or any(isinstance(n, bool) or not isinstance(n, int) for n in value):
        raise ValueError(f"{key} is {value}; write a list of numbers of frames, as {key}=[12,24]")
    if list(value) != sorted(set(value)) or (value and not 1 <= value[0] <= value[-1] <= MOST):
        raise ValueError(f"{key} is {list(value)}; give rising numbers from 1 to {MOST}")
    if key == "frames" and not value:
        raise ValueError("frames is []; give the numbers of frames that memory is counted for, as frames=[12,24]")


def main(config: DictConfig) -> None:
    """Count, run, print and write."""
    check(config)
    from dollar.benchmarks import reward_tables as tables
    from dollar.benchmarks.reward_costs import CLIP, DIRECT, LRMS, new_clip, new_work
    from dollar.cli.build.teacher import quiet
    from dollar.parallel.world import start

    quiet()
    device = start(config.device).device
    frames = list(config.frames)
    counts = count_all(frames)
    flops = operations_of(frames)
    parameters = {kind: new_work(kind, 1, tables.HALF).parameters for kind in (*LRMS, CLIP, DIRECT)}
    clip = new_clip(tables.HALF)
    tower = sum(p.numel() for part in (clip.vision_model, clip.visual_projection) for p in part.parameters())
    runs = run_all(config, device)
    parts = {
        "Table 1: parameters and memory": tables.table_1(counts, parameters, tower),
        "Weights": tables.weights_table(counts, parameters),
        "Table 10: memory of forward and backward by frames": tables.table_10(counts, frames),
        "How many times less": tables.times_less(counts, flops, frames),
    }
    if runs:
        parts["Really run"] = f"{conditions(config, device)}\n\n{tables.measured_table(runs)}"
        parts["How much longer, within this run"] = tables.time_ratios(runs)
    command = f"```sh\n{command_line()}\n```"
    for title, text in parts.items():
        print(f"\n{title}\n\n{text}", flush=True)
    body = f"## Rewards' gradients: {name_of(device)}\n\n" + "\n\n".join(
        f"### {title}\n\n{command}\n\n{text}" for title, text in parts.items()
    )
    tables.put_section(Path(config.out), f"rewards on {name_of(device)}", body)
    print(f"\nwritten to {config.out}, section {name_of(device)}")


def count_all(frames: list[int]) -> dict[tuple[str, int, How], Count]:
    """What every table needs, counted on the meta device."""
    from dollar.benchmarks.memory import count
    from dollar.benchmarks.reward_costs import CLIP, LRMS, new_work
    from dollar.benchmarks.reward_tables import AS_PAPER, HALF, MOST, ROWS, WHOLE

    wanted = [(kind, n, how) for kind in LRMS for n, how in ((1, AS_PAPER), (WHOLE, HALF))]
    wanted += [(row.kind, n, row.how) for row in ROWS for n in frames]
    wanted += [(CLIP, MOST, how) for how in (AS_PAPER, HALF)]
    found = {}
    for kind, n, how in dict.fromkeys(wanted):
        found[kind, n, how] = count(new_work(kind, n, how), how.fused)
        print(f"counted: {kind}, {n} frames, {told(how)}: {found[kind, n, how].backward / 2**30:.3f} GiB", flush=True)
    return found


def told(how: How) -> str:
    """What sets a work apart, in words."""
    words = [str(how.dtype).removeprefix("torch.")]
    words += ["frozen" if how.frozen else "the weights' gradients too"]
    words += ["blocks recomputed"] * how.checkpointing + ["attention keeps its table"] * (not how.fused)
    return ", ".join(words)


def operations_of(frames: list[int]) -> dict[tuple[str, int], int]:
    """Multiplications and additions of gradients."""
    from dollar.benchmarks.memory import operations
    from dollar.benchmarks.reward_costs import CLIP, DIRECT, new_work
    from dollar.benchmarks.reward_tables import HALF, TEXT, WHOLE

    wanted = [(TEXT, WHOLE), *((kind, n) for kind in (CLIP, DIRECT) for n in frames)]
    return {(kind, n): operations(new_work(kind, n, HALF)) for kind, n in wanted}


def run_all(config: DictConfig, device: Any) -> list[Run]:
    """Every work that is to be really run, each in processes of its own."""
    from dollar.benchmarks.memory import count
    from dollar.benchmarks.reward_costs import CLIP, DIRECT, LRMS, How, measure, new_work
    from dollar.benchmarks.reward_tables import WHOLE, Run
    from dollar.models.assemble import DTYPES

    gpu = device.type == "cuda"
    dtype = DTYPES[("bfloat16" if gpu else "float32") if config.dtype == "auto" else config.dtype]
    clip, direct = (
        (list(config.frames) if gpu else usual) if config[key] == "auto" else list(config[key])
        for key, usual in (("measured", [1, 2]), ("decoded", [1]))
    )
    if not clip and not direct:
        return []
    runs = []
    for kind, n in [*((k, WHOLE) for k in LRMS), *((CLIP, n) for n in clip), *((DIRECT, n) for n in direct)]:
        # On a CPU nothing is faster than its own attention, which keeps no table either.
        counted = count(new_work(kind, n, How(dtype=dtype)))
        limit = memory_of(config, device)
        if counted.backward > limit:
            told = f"not run: {counted.backward / 2**30:.1f} GiB by its count, more than {limit / 2**30:.1f}"
            runs.append(Run(kind, n, counted, told))
            continue
        how = How(dtype=dtype, device=str(device))
        runs.append(Run(kind, n, counted, measure(kind, n, how, config.threads, config.repeats, config.patience)))
        print(f"run: {kind}, {n} frames: {runs[-1].result}", flush=True)
    return runs


def memory_of(config: DictConfig, device: Any) -> float:
    """Bytes that a run may take."""
    if config.memory != "auto":
        return float(config.memory) * 2**30
    if device.type != "cuda":
        return 10 * 2**30
    import torch

    return float(torch.cuda.get_device_properties(device).total_memory)


def conditions(config: DictConfig, device: Any) -> str:
    """What times depend on."""
    import torch

    dtype = ("bfloat16" if device.type == "cuda" else "float32") if config.dtype == "auto" else config.dtype
    threads = "" if device.type == "cuda" else f", {config.threads} thread{'s' * (config.threads > 1)}"
    seconds = "of a clock" if device.type == "cuda" else "of the processor"
    return (
        f"{name_of(device)}{threads}, {dtype}, torch {torch.__version__}; weights frozen, nothing recomputed; seconds "
        f"{seconds}, memory above weights and inputs."
    )


def name_of(device: Any) -> str:
    """What the device calls itself."""
    if device.type == "cuda":
        import torch

        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        model = platform.processor() or platform.machine()
    return f"{model}, {os.cpu_count()} cores"


def command_line() -> str:
    """The command that this run is."""
    from hydra.core.hydra_config import HydraConfig

    return " ".join(["python launch/bench_reward.py", *HydraConfig.get().overrides.task])
