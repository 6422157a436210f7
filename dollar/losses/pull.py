"""An explicit pull towards the teacher: its way from the same noise, where a reward or a score leads too far away."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from dollar.diffusion.denoise import leading_to
from dollar.diffusion.denoise import sample as denoise_along
from dollar.diffusion.schedule import Schedule
from dollar.diffusion.timesteps import FewStep
from dollar.losses.consistency import consistency
from dollar.losses.term import Context, Cost, Needs, Sample, check_choice, check_guidance, check_weight, guided


def pull(x_hat: Tensor, target: Tensor, distance: str = "mse") -> Tensor:
    """Distance from the teacher's clip, averaged over the elements; [B, ...] each. Returns [B], float32."""
    return consistency(x_hat, target, distance)


def grid_from(t: Tensor, steps: int, schedule: Schedule, end: float | None = None) -> Tensor:
    """`steps` evenly spaced times from t [] down, and `end`, None for clean: [steps + 1], in t's own kind of number."""
    whole, last = not t.is_floating_point(), schedule.clean if end is None else end
    share = torch.arange(steps, 0, -1, dtype=torch.float64, device=t.device) / steps
    times = last + (t.double() - last) * share
    return torch.cat([times.round() if whole else times, times.new_tensor([last])]).to(t.dtype)


@dataclass
class Pull:
    """The distance of x_hat from what leads to where the teacher goes from the same x in `steps` guided DDIM steps.

    until: `data`, the teacher's clip. With one step that is its own prediction (for tuning a teacher, whose predictions
    should stay); with several it is a sharp clip, which keeps the teacher's variety, since each noise has one of its
    own. `next`: the student's next time, and the target is the x_hat with which the student comes there itself. That is
    a clip again for the last step, and for a student that renoises: the noise that it adds leaves x at the next time
    with the teacher's law where x_hat is like data, not where it lies on the teacher's way, which varies less.
    distance: `mse` or `pseudo_huber`.
    """

    beta: float = 1.0
    steps: int = 4
    guidance_scale: float = 1.0
    until: Literal["data", "next"] = "data"
    distance: Literal["mse", "pseudo_huber"] = "mse"
    step_counts: list[int] | None = None
    at: Literal["all", "first", "later"] = "all"
    needs: ClassVar[Needs] = Needs()

    def __post_init__(self) -> None:
        check_weight("beta_pull", self.beta)
        check_choice("pull.until", self.until, ("data", "next"))
        check_choice("pull.distance", self.distance, ("mse", "pseudo_huber"))
        if self.steps < 1:
            raise ValueError(f"pull.steps is {self.steps}; the teacher needs at least 1")
        check_guidance("pull.guidance_scale", self.guidance_scale)

    def check(self, samplers: Sequence[FewStep]) -> None:
        """Any student will do."""

    def cost(self, steps: int) -> Cost:
        return Cost(teacher=self.steps * guided(self.guidance_scale))

    def loss(self, context: Context, sample: Sample) -> Tensor:
        return pull(sample.x_hat, self.target(context, sample), self.distance)

    @torch.no_grad()
    def target(self, context: Context, sample: Sample) -> Tensor:
        """What x_hat is pulled to, [B, ...]."""
        sampler, schedule, k = context.sampler, context.sampler.schedule, sample.k
        partly = self.until == "next" and sampler.between == "ddim" and k + 1 < sampler.steps
        start = sampler.times[k]
        end = float(sampler.times[k + 1]) if partly else schedule.clean
        grid = grid_from(start, int(min(self.steps, _room(start, end))), schedule, end)
        reached = denoise_along(context.teacher(self.guidance_scale), sample.x, grid, schedule)
        if not partly:
            return reached
        t, s = (time.expand(len(reached)).to(reached.device) for time in (start, sampler.times[k + 1]))
        return leading_to(reached, sample.x, t, s, schedule)


def _room(t: Tensor, end: float) -> float:
    """How many different times there are from t to the end."""
    return float("inf") if t.is_floating_point() else float(t) - end
