"""What the families on rectified flow share: a noise layout, latents normalised by channel, and few-step schedulers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from dollar.diffusion.schedule import RectifiedFlow
from dollar.diffusion.timesteps import FewStep, check_timesteps
from dollar.models.codec import Normalisation

PREDICTIONS = {"flow": None}  # flow schedulers have no setting for another
TOLERANCE = 1e-4  # of a time in [0, 1]: diffusers computes its grids in float32

# Sets a scheduler to a number of steps, as the family's pipeline does.
SetSteps = Callable[[Any, int], None]


def noise(generators: Sequence[torch.Generator], shape: tuple[int, int, int, int]) -> Tensor:
    """Standard normal [B, C, F, h, w], drawn clip by clip in this layout."""
    return torch.stack([torch.randn(*shape, generator=g, device=g.device) for g in generators])


def by_channel(mean: Tensor, sd: Tensor, scale: float = 1.0) -> Normalisation:
    """Latents (z - mean) scale / sd for mean and sd [C], rounded as diffusers rounds the way back."""

    def wide(values: Tensor, like: Tensor) -> Tensor:
        return values.view(1, -1, 1, 1, 1).to(like.device, like.dtype)

    return Normalisation(
        lambda z: (z - wide(mean, z)) * scale / wide(sd, z),
        lambda latents: latents * wide(sd, latents) / scale + wide(mean, latents),
    )


def times(scheduler: Any, steps: int, set_steps: SetSteps) -> Tensor:
    """The times [steps + 1] of a scheduler that is set to so many steps; the last one is clean."""
    set_steps(scheduler, steps)
    return scheduler.sigmas.clone()


def even(steps: int) -> list[float]:
    """Evenly spaced timesteps from 1000, before any shift."""
    return [1000 * (steps - i) / steps for i in range(steps)]


def few_step(timesteps: Sequence[float], between: str, shift: float, scheduler: Any, set_steps: SetSteps) -> FewStep:
    """A student's sampler in the numbers of the scheduler that it is saved with.

    timesteps: unshifted, on the 0..1000 scale; ValueError where the scheduler doesn't give them.
    """
    check_timesteps(timesteps)
    steps = len(timesteps)
    if max(timesteps) > 1000:
        raise ValueError(f"student.timesteps starts at {max(timesteps)}; this teacher's noisiest time is 1000")
    given = times(scheduler, steps, set_steps)[:-1]
    wanted = RectifiedFlow(shift).shifted(torch.tensor(timesteps, dtype=torch.float64) / 1000)
    if not torch.allclose(given.double(), wanted, rtol=0, atol=TOLERANCE):
        raise ValueError(
            f"student.timesteps {list(timesteps)} can't be given to this teacher's pipeline as {steps} steps; the "
            f"evenly spaced {even(steps)} can (they are given before the teacher's shift of {shift:g})"
        )
    return FewStep(RectifiedFlow(shift), given, between, configured=tuple(timesteps))


def student_scheduler(between: str, **config: Any) -> Any:
    """diffusers' scheduler that steps as a student does between its steps."""
    from diffusers import FlowMatchEulerDiscreteScheduler, FlowMatchLCMScheduler

    kind = FlowMatchLCMScheduler if between == "renoise" else FlowMatchEulerDiscreteScheduler
    return kind(num_train_timesteps=1000, **config)


def stretched(steps: int, shift: float) -> dict[str, float]:
    """The shift and end of a scheduler whose default grid of so many steps is s u / (1 + (s - 1) u) at even u.

    By itself it spaces u from 1 to nearly 0, so that the last step is wasted, and shifts that; then it stretches the
    times linearly to an end. 1 - time is i / (K s - (s - 1) i) in what is wanted and, up to the stretch,
    i / (s' / d - (s' - 1) i) in what it gives, d being the spacing: both agree for one s'.
    """
    if steps == 1:
        return {"shift": shift}
    inner = shift
    for _ in range(100):  # d depends on s' a little, for the scheduler shifts its smallest time twice
        smallest = inner * 1e-3 / (1 + (inner - 1) * 1e-3)
        spacing = (1 - smallest) / (steps - 1)
        inner = 1 / (1 - (shift - 1) / (steps * shift) / spacing)
    last = float(RectifiedFlow(shift).shifted(torch.tensor(1 / steps, dtype=torch.float64)))
    return {"shift": inner, "shift_terminal": last}
