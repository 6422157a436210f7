"""Consistency distillation: one prediction from far along the path agrees with one from nearer the data (Eq. 6-7)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from dollar.diffusion.denoise import DenoiseFunction, Reached, walk
from dollar.diffusion.schedule import Schedule, diffuse, expand_like, mean_flat
from dollar.diffusion.timesteps import FewStep, consistency_function
from dollar.losses.term import Context, Cost, Needs, check_choice, check_guidance, check_weight, guided

# (x_t [B, C, F, H, W], t [B]) -> f(x_t, t): c_skip x_t + c_out x_0hat; the condition is already inside.
ConsistencyFunction = Callable[[Tensor, Tensor], Tensor]


def consistency(f: Tensor, target: Tensor, distance: str = "pseudo_huber", c: float = 1e-3) -> Tensor:
    """d(f, target) (Eq. 6 with lambda = 1), averaged over the elements.

    f: [B, C, F, H, W] student's f at t_{n+m}; target: the same shape, at t_n, never followed by a gradient; c: where
    pseudo-Huber turns from squares to absolute values. Returns [B], float32.
    """
    d = f.float() - target.detach().float()
    if distance == "pseudo_huber":
        # sqrt(d^2 + c^2) - c, written so that a small d isn't lost in the subtraction.
        return mean_flat(d**2 / ((d**2 + c**2).sqrt() + c))
    if distance == "mse":
        return mean_flat(d**2)
    raise ValueError(f"the distance is {distance!r}; use pseudo_huber or mse")


@torch.no_grad()
def consistency_target(f: ConsistencyFunction, reached: Reached, schedule: Schedule) -> Tensor:
    """f at (x_hat_{t_n}, t_n) where Denoise^m has led (Eq. 7), and x_hat_0 itself where it has led to the data.

    f runs once whatever was reached, since every process must run the same number of forwards. No gradient.
    """
    # Networks have not seen a clean time of -1; 0 keeps f finite there and the result is not used.
    target = f(reached.x, reached.t.clamp(min=0))
    arrived = reached.t == schedule.clean
    return torch.where(expand_like(arrived, reached.x).bool(), reached.x, target)


@dataclass
class Consistency:
    """Multi-step consistency distillation (Eq. 6-7; Algorithm 1, lines 9-10).

    guidance_scale: of the teacher's walk of `m` steps on a grid of `grid`; target: whose f is the target; distance: as
    in `consistency`.
    """

    beta: float = 0.5
    guidance_scale: float = 8.5
    m: int = 5
    grid: int = 50
    target: Literal["student", "ema", "teacher"] = "student"
    distance: Literal["pseudo_huber", "mse"] = "pseudo_huber"
    step_counts: list[int] | None = None
    needs: ClassVar[Needs] = Needs(clips=True)

    def __post_init__(self) -> None:
        check_weight("beta_cd", self.beta)
        check_choice("cd.target", self.target, ("student", "ema", "teacher"))
        check_choice("cd.distance", self.distance, ("pseudo_huber", "mse"))
        check_guidance("cd.guidance_scale", self.guidance_scale)
        if not 1 <= self.m <= self.grid:
            raise ValueError(f"cd.m is {self.m}; a walk has 1 to cd.grid = {self.grid} steps")

    def check(self, samplers: Sequence[FewStep]) -> None:
        """Any student will do."""

    def cost(self, steps: int) -> Cost:
        at_teacher = self.target == "teacher"
        return Cost(
            student=0 if at_teacher else 1,
            student_gradient=1,
            teacher=self.m * guided(self.guidance_scale) + at_teacher,
            kept=1,
        )

    def losses(self, contexts: Sequence[Context]) -> Iterator[Tensor]:
        for context in contexts:
            yield self.loss_of(context)

    def loss_of(self, context: Context) -> Tensor:
        """L_CD [B] of one micro-batch."""
        if context.x_0 is None:
            raise ValueError("beta_cd > 0 needs clips, and there are only prompts; set beta_cd=0 or give clips")
        x_0, schedule = context.x_0, context.schedule

        def f_of(denoise: DenoiseFunction) -> ConsistencyFunction:
            return lambda x, t: consistency_function(x, denoise(x, t), schedule.thousandths(t))

        with torch.no_grad():
            grid = schedule.grid(self.grid).to(x_0.device)
            start = context.draws.integers("cd time", self.grid)  # line 9: uniformly sample t_n
            t = grid[start]
            x_t = diffuse(x_0, context.draws.normal("cd noise", x_0.shape[1:]), t, schedule)
            reached = walk(context.teacher(self.guidance_scale), x_t, start, grid, self.m, schedule)
            with context.averaged() if self.target == "ema" else nullcontext():
                denoise = context.teacher(1.0) if self.target == "teacher" else context.student
                target = consistency_target(f_of(denoise), reached, schedule)
        return consistency(f_of(context.student)(x_t, t), target, self.distance)
