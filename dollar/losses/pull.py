"""An explicit pull towards the teacher: where a reward leads away, the teacher's own clip leads back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from dollar.diffusion.denoise import sample as denoise_along
from dollar.diffusion.schedule import Schedule, mean_flat
from dollar.diffusion.timesteps import FewStep
from dollar.losses.term import Context, Cost, Needs, Sample, check_weight, guided


def pull(x_hat: Tensor, target: Tensor) -> Tensor:
    """Squared distance from the teacher's clip, averaged over the elements; [B, ...] each. Returns [B], float32."""
    return mean_flat((x_hat.float() - target.detach().float()) ** 2)


def grid_from(t: Tensor, steps: int, schedule: Schedule) -> Tensor:
    """`steps` evenly spaced times from t [] down, and clean data: [steps + 1], in t's own kind of number."""
    whole = not t.is_floating_point()
    share = torch.arange(steps, 0, -1, dtype=torch.float64, device=t.device) / steps
    times = schedule.clean + (t.double() - schedule.clean) * share
    clean = times.new_tensor([schedule.clean])
    return torch.cat([times.round() if whole else times, clean]).to(t.dtype)


@dataclass
class Pull:
    """The distance of x_hat from what the teacher makes of the same x in `steps` guided DDIM steps.

    With one step that is the teacher's own prediction (for tuning a teacher, whose predictions should stay); with
    several it is a sharp clip, which keeps the teacher's variety as well, since each noise has a clip of its own.
    """

    beta: float = 1.0
    steps: int = 4
    guidance_scale: float = 1.0
    step_counts: list[int] | None = None
    at: Literal["all", "first", "later"] = "all"
    needs: ClassVar[Needs] = Needs()

    def __post_init__(self) -> None:
        check_weight("beta_pull", self.beta)
        if self.steps < 1:
            raise ValueError(f"pull.steps is {self.steps}; the teacher needs at least 1")
        if self.guidance_scale < 0:
            raise ValueError(f"pull.guidance_scale is {self.guidance_scale}; 1 is no guidance, more is usual")

    def check(self, samplers: Sequence[FewStep]) -> None:
        """Any student will do."""

    def cost(self, steps: int) -> Cost:
        return Cost(teacher=self.steps * guided(self.guidance_scale))

    def loss(self, context: Context, sample: Sample) -> Tensor:
        schedule = context.sampler.schedule
        start = context.sampler.times[sample.k]
        grid = grid_from(start, int(min(self.steps, _room(start, schedule))), schedule)
        with torch.no_grad():
            target = denoise_along(context.teacher(self.guidance_scale), sample.x, grid, schedule)
        return pull(sample.x_hat, target)


def _room(t: Tensor, schedule: Schedule) -> float:
    """How many different times there are from t to the data."""
    return float("inf") if t.is_floating_point() else float(t) - schedule.clean
