"""How long a clip takes, teacher against student; timed in turn, so that a busy machine slows all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from dollar.models.denoiser import Denoiser
from dollar.models.teacher import Teacher
from dollar.sampling import Sampler, generators


@torch.no_grad()
def in_turn(works: Mapping[str, Callable[[], object]], repeats: int, device: torch.device) -> dict[str, float]:
    """Median seconds of each work: all of them one after another, `repeats` times after a warm-up, synchronised."""
    taken: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeats + 1):
        for name, work in works.items():
            _synchronise(device)
            start = time.perf_counter()
            work()
            _synchronise(device)
            taken[name].append(time.perf_counter() - start)
    return {name: statistics.median(seconds[1:]) for name, seconds in taken.items()}


@torch.no_grad()
def measure_speed(
    teacher: Teacher,
    reference: Sampler,
    prompt: str,
    repeats: int = 20,
    student: Denoiser | None = None,
    samplers: Sequence[Sampler] = (),
) -> tuple[dict[str, float], dict[int, dict[str, Any]]]:
    """Seconds {text, diffusion, decode} of one clip of the reference, and for each of the student's samplers, by its
    step count, its seconds, its speed-up in diffusion time and the most that its count of forwards could give.

    The teacher runs both halves of guidance in one doubled batch, which costs less than two forwards, so the ceiling is
    N T(2B) / (K T(B)).
    """
    condition = teacher.text([prompt])
    latents = reference.diffusion(generators([0]), condition)

    def diffusion(sampler: Sampler) -> Callable[[], object]:
        return lambda: sampler.diffusion(generators([0]), condition)

    def forward(denoiser: Denoiser, batch: int) -> Callable[[], object]:
        x, null = teacher.noise(generators(range(batch))), teacher.null(batch)
        t = denoiser.schedule.grid(1)[:1].expand(batch).to(x.device)
        return lambda: denoiser(x, t, null)

    works = {
        "text": lambda: teacher.text.encode([prompt]),
        "decode": lambda: teacher.codec.decode(latents),
        "reference": diffusion(reference),
        "doubled": forward(teacher.denoiser, 2),
    }
    if student is not None:
        works["single"] = forward(student, 1)
    works |= {f"{sampler.steps} steps": diffusion(sampler) for sampler in samplers}
    took = in_turn(works, repeats, teacher.device)

    def seconds(diffusion: float) -> dict[str, float]:
        return {"text": took["text"], "diffusion": diffusion, "decode": took["decode"]}

    speeds = {}
    for sampler in samplers:
        mine = took[f"{sampler.steps} steps"]
        ceiling = reference.steps * took["doubled"] / (sampler.steps * took["single"])
        speeds[sampler.steps] = {
            "seconds": seconds(mine),
            "speedup": took["reference"] / mine,
            "speedup_ceiling": ceiling,
        }
    return seconds(took["reference"]), speeds


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
