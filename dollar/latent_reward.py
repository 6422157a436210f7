"""The latent reward model, kept in step with a pixel reward while the student changes (Algorithm 1, lines 15-17)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
from scipy.stats import spearmanr
from torch import Tensor

from dollar.diffusion.draws import Draws
from dollar.losses.latent_reward import RunningStatistics, fit
from dollar.models.codec import Codec
from dollar.models.denoiser import Condition
from dollar.models.latent_reward_model import LatentRewardModel


class Reward(Protocol):
    """A pixel reward: any black box, differentiable or not."""

    def score(self, videos: Tensor, prompts: Sequence[str]) -> Tensor:
        """[B] for videos [B, T, C, H, W] in [0, 1] and B prompts."""
        ...


class Observation(NamedTuple):
    """What the pixel reward said in one turn: reward [B] in its own unit, usable [B] where it was a number."""

    turn: int
    prompts: list[str]
    latents: Tensor
    reward: Tensor
    usable: Tensor


class Agreement(NamedTuple):
    """How well predictions follow the truth: Pearson's and Spearman's correlation, nan where either doesn't vary;
    pairwise: how often the better of two is told, over `pairs` of them."""

    correlation: float
    rank_correlation: float
    pairwise: float
    pairs: int


def agreement(predicted: Tensor, true: Tensor, gap: float) -> Agreement:
    """Agreement of predictions [N] with true rewards [N]; gap: true difference from which a pair counts."""
    p, r = predicted.double().cpu(), true.double().cpu()
    clear = r[:, None] - r > gap
    told = (p[:, None] - p)[clear] > 0
    if len(p) < 2 or p.std() == 0 or r.std() == 0:
        return Agreement(float("nan"), float("nan"), float(told.double().mean()), int(clear.sum()))
    linear = float(torch.corrcoef(torch.stack([p, r]))[0, 1])
    return Agreement(
        linear, float(spearmanr(p.numpy(), r.numpy()).statistic), float(told.double().mean()), int(clear.sum())
    )


class LatentReward:
    """The surrogate R^l, its target statistics, and a memory of what the pixel reward has said.

    Decoding and scoring are far dearer than a step of the surrogate, so each observation can be used again: `memory`
    is how many past cycles an update may draw from (1 is Algorithm 1 as printed).
    gather: collects [B] from all processes, so that the statistics are the same on each.
    """

    def __init__(
        self,
        model: LatentRewardModel,
        reward: Reward,
        codec: Codec,
        encode_text: Callable[[Sequence[str]], Condition],
        memory: int = 1,
        gather: Callable[[Tensor], Tensor] = lambda x: x,
    ) -> None:
        if memory < 1:
            raise ValueError(f"lrm.memory is {memory}; an update needs the observations of at least 1 cycle")
        self.model = model
        self.reward = reward
        self.codec = codec
        self.encode_text = encode_text
        self.memory = memory
        self.gather = gather
        self.statistics = RunningStatistics()
        self.past: list[Observation] = []
        self.bad = 0
        self._known: dict[tuple[tuple[int, int], str], float] = {}

    def predict(self, x: Tensor, condition: Condition) -> Tensor:
        """R^l(x, c) in the pixel reward's own unit, [B]; x [B, C, F, h, w] may carry a gradient."""
        return self.statistics.destandardise(self.model(x, condition.embeddings, condition.mask))

    def observe(
        self, turn: int, latents: Tensor, prompts: list[str], keys: Sequence[tuple[int, int] | None] | None = None
    ) -> Observation:
        """Ask the pixel reward about latents [B, C, F, h, w]; rewards of data (those with a key) are asked for once."""
        keys = keys or [None] * len(prompts)
        known = [None if key is None else self._known.get((key, p)) for key, p in zip(keys, prompts, strict=True)]
        ask = [i for i, value in enumerate(known) if value is None]
        reward = torch.tensor([float("nan") if value is None else value for value in known])
        if ask:
            # A clip that stands under two captions is decoded once.
            first = {keys[i] or (-1, i): i for i in reversed(ask)}
            places = {key: place for place, key in enumerate(first)}
            decoded = self._decode(latents[list(first.values())])[[places[keys[i] or (-1, i)] for i in ask]]
            reward[ask] = self._score(decoded, [prompts[i] for i in ask])
            for i in ask:
                if keys[i] is not None and reward[i].isfinite():
                    self._known[(keys[i], prompts[i])] = float(reward[i])  # type: ignore[index]
        usable = reward.isfinite()
        return Observation(turn, list(prompts), latents.detach(), reward.to(latents.device), usable.to(latents.device))

    def _decode(self, latents: Tensor) -> Tensor:
        """The frames that the pixel reward looks at: all, or evenly spaced ones where it has a number of `frames`."""
        count = getattr(self.reward, "frames", None)
        return self.codec.decode(latents, None if count is None else self.codec.spread(latents, count))

    def _score(self, videos: Tensor, prompts: list[str]) -> Tensor:
        scored = self.reward.score(videos, prompts)
        if tuple(scored.shape) != (len(prompts),):
            raise ValueError(
                f"the reward {type(self.reward).__name__} gave a tensor of shape {tuple(scored.shape)} for "
                f"{len(prompts)} clips; it must give one number a clip"
            )
        return scored.detach().float().cpu()

    def remember(self, observation: Observation) -> bool:
        """Take an observation into the memory and the statistics; False, and no trace, if no process can use any."""
        every, usable = self.gather(observation.reward), self.gather(observation.usable)
        self.bad += int((~usable.bool()).sum())
        if not usable.any():
            return False
        self.statistics.update(every[usable.bool()])
        self.past = [*self.past, observation][-self.memory :]
        return True

    @torch.no_grad()
    def follow(self) -> Agreement:
        """How well it follows the pixel reward on all that is remembered here; pairs half a deviation apart count."""
        predicted = torch.cat([self.predict(o.latents, self.encode_text(o.prompts))[o.usable] for o in self.past])
        true = torch.cat([o.reward[o.usable] for o in self.past])
        return agreement(predicted, true, 0.5 * float(self.statistics.sd))

    def loss(self, draws: Draws, purpose: str) -> Tensor:
        """The fit's loss [B] (Eq. 14) on one remembered observation for each place of the batch, 0 where unusable.

        Which cycle a place is taken from is drawn for that place, so that one process and several fit the same pairs.
        """
        ages = draws.integers(purpose, len(self.past)).tolist()
        ages = [ages[i % len(ages)] for i in range(len(self.past[-1].prompts))]
        latents = torch.stack([self.past[age].latents[i] for i, age in enumerate(ages)])
        prompts = [self.past[age].prompts[i] for i, age in enumerate(ages)]
        reward = torch.stack([self.past[age].reward[i] for i, age in enumerate(ages)])
        usable = torch.stack([self.past[age].usable[i] for i, age in enumerate(ages)])
        condition = self.encode_text(prompts)
        predicted = self.model(latents, condition.embeddings, condition.mask)
        target = self.statistics.standardise(torch.where(usable, reward, self.statistics.mean))
        return torch.where(usable, fit(predicted, target), 0.0)
