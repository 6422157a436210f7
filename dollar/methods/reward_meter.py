"""The pixel reward as terms use it: its scores in a cycle, and for how long it has given none."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dollar.log import ANY_RANK, logger
from dollar.methods.reward_spread import RewardSpread
from dollar.surrogate.pixel_reward import Decode, PixelReward
from dollar.training.turn import Scalars


class RewardMeter:
    """Scores by the pixel reward, and counts. gather: [B] -> that of all processes.

    silent: cycles in a row in which no process got a reward that is a number; unusable: clips that got none; spread: of
    the rewards that are numbers.
    """

    def __init__(self, pixel: PixelReward | None, gather: Callable[[Tensor], Tensor]) -> None:
        self._pixel, self.gather = pixel, gather
        self.silent = 0
        self.unusable = 0
        self.spread = RewardSpread()
        self._noted = False
        self._given: list[Tensor] = []

    @property
    def pixel(self) -> PixelReward:
        assert self._pixel is not None, "a term that needs a reward is built with one"
        return self._pixel

    def score(self, latents: Tensor, prompts: Sequence[str]) -> Tensor:
        """The pixel reward [B] of latents, on the CPU, nan where there is none."""
        reward = self.pixel.score(latents, prompts)
        self._given.append(reward.to(latents.device))
        return reward

    def with_gradient(
        self, latents: Tensor, prompts: Sequence[str], frames: int | None, decode: Decode | None = None
    ) -> Tensor:
        """The pixel reward [B] with a gradient at the latents, nan where there is none; decode: as in `PixelReward`."""
        reward = self.pixel.with_gradient(latents, prompts, frames, decode)
        self._given.append(reward.detach())
        return reward

    def close(self, cycle: int, scalars: Scalars, most: int) -> None:
        """End a cycle; FloatingPointError where no reward was a number for `most` cycles in a row."""
        if self._given:
            reward = self.gather(torch.cat(self._given))
            self._given = []
            usable = reward.isfinite()
            self.unusable += int((~usable).sum())
            self.silent = 0 if bool(usable.any()) else self.silent + 1
            scalars["reward/unusable"] = float(self.unusable)
            scalars["reward/true"] = float(reward[usable].mean())
            self.see(cycle, reward, scalars)
        if self.silent >= most:
            raise FloatingPointError(self.trouble(self.silent))

    def see(self, cycle: int, reward: Tensor, scalars: Scalars) -> None:
        """Look at the rewards [N] of all processes, wherever they come from."""
        self.spread.see(cycle, reward)
        scalars["reward/spread"] = self.spread.width

    def trouble(self, cycles: int) -> str:
        """The sentence for a reward that was no number for so long."""
        last = f" (the last time, {self.pixel.trouble})" if self._pixel is not None and self.pixel.trouble else ""
        return f"{cycles} cycles in a row gave no reward that is a number{last}. Look at the reward by itself"

    def note(self) -> None:
        """Say once what the reward's first trouble was; clips without a reward are left out and counted."""
        if self._pixel is not None and self.pixel.trouble and not self._noted:
            self._noted = True
            logger.warning(f"note: a clip got no reward and is left out: {self.pixel.trouble}", extra=ANY_RANK)
