"""The student's few steps: its times, its generator G, and its way from one step to the next (Algorithm 1, line 8)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from dollar.diffusion.denoise import ddim_step
from dollar.diffusion.schedule import Schedule, diffuse, expand_like

NativeFunction = Callable[[Tensor, Tensor], Tensor]  # (x_t, t) -> the x_0 that the network predicts
NoiseFunction = Callable[[int], Tensor]  # step index -> fresh noise, drawn like the sample

SIGMA_DATA, TIMESTEP_SCALING = 0.5, 10.0


class Boundary(NamedTuple):
    """c_skip and c_out, each [B]."""

    c_skip: Tensor
    c_out: Tensor


def boundary(thousandths: Tensor) -> Boundary:
    """The consistency model's boundary condition with LCM's constants; the identity at time 0.

    thousandths: [B] times on the 0..1000 scale, negative (clean) taken as 0.
    """
    # Whole numbers are turned into float32 and multiplied in this order because LCMScheduler does so.
    t = thousandths.clamp(min=0)
    scaled = (t if t.is_floating_point() else t.float()) * TIMESTEP_SCALING
    return Boundary(
        SIGMA_DATA**2 / (scaled**2 + SIGMA_DATA**2),
        scaled / (scaled**2 + SIGMA_DATA**2) ** 0.5,
    )


def consistency_function(x_t: Tensor, x_0: Tensor, thousandths: Tensor) -> Tensor:
    """f = c_skip x_t + c_out x_0 (LCM's form of the student in Eq. 6); x_t, x_0 [B, ...], thousandths [B]."""
    c_skip, c_out = boundary(thousandths)
    return expand_like(c_out, x_0) * x_0 + expand_like(c_skip, x_t) * x_t


def check_timesteps(timesteps: Sequence[float], key: str = "student.timesteps") -> None:
    """Raise ValueError unless the times are positive and strictly descending."""
    times = list(timesteps)
    if not times or any(t <= 0 for t in times):
        raise ValueError(f"{key} is {times}: give one or more positive times, for example [999, 749, 499, 249]")
    if any(late <= early for late, early in pairwise(times)):
        best = sorted(set(times), reverse=True)
        raise ValueError(f"{key} is {times}: times run from noise to data, each once; use {best}")


@dataclass(frozen=True, eq=False)
class FewStep:
    """How a student of K steps samples.

    schedule: the exported scheduler's own numbers. times: [K], descending, in the schedule's unit. between: `renoise`
    (x_0 with fresh noise, as LCM and DMD2 do) or `ddim` (the noise that x_t and x_0 imply). boundary: whether the
    exported scheduler applies the consistency boundary to x_0. configured: the times as a
    configuration gives them.
    """

    schedule: Schedule
    times: Tensor
    between: str = "renoise"
    boundary: bool = False
    configured: tuple[float, ...] = ()
    _next: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.between not in ("renoise", "ddim"):
            raise ValueError(f"student.between is {self.between!r}; use renoise or ddim")
        clean = self.times.new_tensor([self.schedule.clean])
        object.__setattr__(self, "_next", torch.cat([self.times[1:], clean]))

    @property
    def steps(self) -> int:
        return len(self.times)

    def time(self, k: int, like: Tensor) -> Tensor:
        """The k-th time for each sample, [B]."""
        return self.times[k].to(like.device).expand(len(like))

    def generate(self, predict: NativeFunction, x: Tensor, k: int) -> Tensor:
        """The student's x_0 from x at its k-th time: x_0hat, or f where its scheduler has the boundary (LCM's has)."""
        t = self.time(k, x)
        x_0 = predict(x, t)
        return consistency_function(x, x_0, self.schedule.thousandths(t)) if self.boundary else x_0

    def advance(self, x: Tensor, x_0: Tensor, k: int, noise: NoiseFunction) -> Tensor:
        """x at the (k+1)-th time; the last step ends on x_0 itself."""
        if k + 1 == self.steps:
            return x_0
        t, s = self.time(k, x), self._next[k].to(x.device).expand(len(x))
        if self.between == "renoise":
            return diffuse(x_0, noise(k + 1), s, self.schedule)
        return ddim_step(x, x_0, t, s, self.schedule)

    def rollout(self, predict: NativeFunction, noise: NoiseFunction, until: int) -> Tensor:
        """x at the `until`-th time, from pure noise, by `until` of the student's own steps (no gradient is kept)."""
        x = noise(0)
        with torch.no_grad():
            for k in range(until):
                x = self.advance(x, self.generate(predict, x, k), k, noise)
        return x

    def sample(self, predict: NativeFunction, noise: NoiseFunction) -> Tensor:
        """x_0 by all K steps."""
        last = self.steps - 1
        return self.generate(predict, self.rollout(predict, noise, last), last)
