"""How long a clip takes, teacher against student; timed in turn, so that a busy machine slows all alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from dollar.models.teacher import Teacher
from dollar.sampling.samplers import Sampler, generators


@torch.no_grad()
def in_turn(works: Mapping[str, Callable[[], object]], repeats: int, device: torch.device) -> dict[str, np.ndarray]:
    """Seconds [repeats] of each work: all of them one after another, so often after a warm-up, synchronised."""
    taken: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeats + 1):
        for name, work in works.items():
            _synchronise(device)
            start = time.perf_counter()
            work()
            _synchronise(device)
            taken[name].append(time.perf_counter() - start)
    return {name: np.array(seconds[1:]) for name, seconds in taken.items()}


@torch.no_grad()
def measure_speed(
    teacher: Teacher,
    reference: Sampler,
    prompt: str,
    repeats: int = 20,
    samplers: Sequence[Sampler] = (),
) -> tuple[dict[str, float], dict[int, dict[str, Any]]]:
    """Seconds {text, diffusion, decode} of one clip of the reference, and for each of the students' samplers, by its
    step count, its seconds, its speed-up in diffusion time and the most that its count of forwards could give.

    What is guided, the teacher as a rule, runs both halves in one doubled batch, which costs less than two forwards, so
    the ceiling is N T(2B) / (K T(B)), or T(2B) in both places, each measured as so many forwards in a row. Ratios are
    taken round by round, and of these the median, since what slows a machine lasts longer than a round. The speed-up
    passes the ceiling by what the teacher does between its forwards, and the student needn't: guidance and steps.
    """
    condition = teacher.text([prompt])
    latents = reference.diffusion(generators([0]), condition)

    def diffusion(sampler: Sampler) -> Callable[[], object]:
        return lambda: sampler.diffusion(generators([0]), condition)

    def forwards(sampler: Sampler) -> Callable[[], object]:
        denoiser, batch = sampler.denoiser, 1 + sampler.guided
        x, null = teacher.noise(generators(range(batch))), teacher.null(batch)
        t = denoiser.schedule.grid(1)[:1].expand(batch).to(x.device)
        return lambda: [denoiser(x, t, null) for _ in range(sampler.steps)]

    works = {
        "text": lambda: teacher.text.encode([prompt]),
        "decode": lambda: teacher.codec.decode(latents),
        "reference": diffusion(reference),
    }
    if samplers:
        works["forwards"] = forwards(reference)
    for sampler in samplers:
        works |= {f"{sampler.steps} steps": diffusion(sampler), f"{sampler.steps} forwards": forwards(sampler)}
    took = in_turn(works, repeats, teacher.device)

    def seconds(diffusion: str) -> dict[str, float]:
        parts = {"text": "text", "diffusion": diffusion, "decode": "decode"}
        return {part: float(np.median(took[work])) for part, work in parts.items()}

    speeds = {}
    for sampler in samplers:
        speeds[sampler.steps] = {
            "seconds": seconds(f"{sampler.steps} steps"),
            "speedup": float(np.median(took["reference"] / took[f"{sampler.steps} steps"])),
            "speedup_ceiling": float(np.median(took["forwards"] / took[f"{sampler.steps} forwards"])),
        }
    return seconds("reference"), speeds


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
