"""The latent reward model, kept in step with a pixel reward while the student changes (Algorithm 1, lines 15-17)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from dollar.diffusion.draws import Draws
from dollar.diffusion.schedule import Schedule, diffuse
from dollar.losses.latent_reward import RunningStatistics, fit, nudged_steepness, pairwise, steepness
from dollar.losses.term import check_range
from dollar.models.denoiser import Condition
from dollar.models.reward_models import RewardModel, load_reward_model, save_reward_model
from dollar.models.teacher import Teacher
from dollar.parallel.checkpoint import State
from dollar.surrogate.agreement import Agreement, agreement
from dollar.surrogate.fitted_decoder import FittedDecoder
from dollar.surrogate.memory import Memory, Observation, Place, Recalled
from dollar.surrogate.pixel_reward import PixelReward
from dollar.surrogate.scorer import Key, Scorer

FITS = ("mse", "pairwise")
LEVELLED = 8  # newest cycles on which a model of pairs finds its level


def check_smooth(smooth: float) -> None:
    """Raise ValueError for a weight of the squared gradient that is below 0, or no number."""
    if not 0 <= smooth < math.inf:
        raise ValueError(f"lrm.smooth is {smooth}; it is 0 (off) or positive, as 30")


class LatentReward:
    """The surrogate R^l, its target statistics, and a memory of clips that the pixel reward has scored.

    Decoding and scoring are far dearer than a step of the surrogate, so each observation can be used again: `memory`
    is how many past cycles an update may draw from (1 is Algorithm 1 as printed).
    pixel: what it is fitted to; None for one that is only used. gather: collects [B] from all processes, so that the
    statistics are the same on each. fit: `mse` (Eq. 14) or `pairwise` (Bradley-Terry). noised: None for a model that is
    shown clean latents (the paper's), or the noise range: the fractions of T between which the times are drawn to which
    they are noised on this schedule. Noise makes the reward's surface smooth: a model of clean latents may rank clips
    well, and yet its gradient may differ from the reward's own (docs/log.md has where this helped and where it didn't).
    smooth: weight of the squared gradient at the latents in the fit, which keeps the surface from rising in directions
    of which the clips say nothing. decoder: a small decoder, which is shown the generated clips that are decoded here.
    by_frames: whether a model that averages over frames is fitted frame by frame, each latent frame to the rewards of
    the pixel frames that it holds (the paper's R^l(x_f, c)); a clip's reward is then the mean over its pixel frames.
    """

    def __init__(
        self,
        model: RewardModel,
        pixel: PixelReward | None,
        encode_text: Callable[[Sequence[str]], Condition],
        memory: int = 1,
        gather: Callable[[Tensor], Tensor] = lambda x: x,
        fit: str = "mse",
        noised: tuple[float, float] | None = None,
        schedule: Schedule | None = None,
        smooth: float = 0.0,
        decoder: FittedDecoder | None = None,
        by_frames: bool = False,
    ) -> None:
        check_smooth(smooth)
        if fit not in FITS:
            raise ValueError(f"lrm.fit is {fit!r}; use {' or '.join(FITS)}")
        if noised is not None:
            check_range("lrm.noise", noised)
        if by_frames and fit != "mse":
            raise ValueError(f"lrm.targets is frames, but lrm.fit={fit} compares clips; set lrm.targets=clip")
        assert noised is None or schedule is not None
        self.model: Any = model
        self.pixel = pixel
        self.encode_text = encode_text
        self.memory = Memory(memory, gather)
        self.scorer = None if pixel is None else Scorer(pixel, by_frames, decoder)
        self.gather = gather
        self.fit = fit
        self.noised = noised
        self.schedule = schedule
        self.smooth = smooth
        self.by_frames = by_frames
        self.reward_name = None if pixel is None else pixel.name
        self.frames = None if pixel is None else pixel.frames
        self.codec = None if pixel is None else pixel.codec
        self.statistics = RunningStatistics()
        self.bad = 0
        self.updates = 0  # of its fit

    @property
    def past(self) -> list[Observation]:
        """What is remembered, the newest last."""
        return self.memory.past

    @classmethod
    def from_folder(
        cls,
        folder: str | Path,
        teacher: Teacher,
        pixel: PixelReward | None = None,
        expected: Mapping[str, Any] | None = None,
        **how: Any,
    ) -> LatentReward:
        """The surrogate that `save` wrote, with its statistics, to be used as it is or fitted further.

        expected: keys of `lrm` that it must have been built with; how: memory, gather and fit. ValueError where the
        folder holds none, or one that doesn't fit this teacher.
        """
        model, card = load_reward_model(folder, teacher, expected)
        how["noised"] = None if card.get("noise") is None else tuple(card["noise"])
        how["by_frames"] = card.get("targets") == "frames"
        found = cls(model, pixel, teacher.text, schedule=teacher.denoiser.schedule, **how)  # type: ignore[arg-type]
        found.statistics.load_state_dict(card["statistics"])
        if pixel is None:
            found.reward_name, found.frames, found.codec = card.get("reward"), card.get("frames"), teacher.codec
        elif found.averages and card.get("frames", pixel.frames) != pixel.frames:
            looked = "all frames" if card["frames"] is None else f"{card['frames']} frames"
            raise ValueError(
                f"the latent reward model in {folder} averages over those frames that its reward looked at, {looked} "
                f"of a clip, and {pixel.name} looks at {'all' if pixel.frames is None else pixel.frames}; set "
                "reward.frames as there"
            )
        return found

    def save(self, folder: Path, teacher: Teacher, figures: Mapping[str, Any] | None = None) -> None:
        """Write model.safetensors, which holds the trained weights, and lrm.json, which says how to read them.

        figures: plain values that are kept with it.
        """
        card = {
            "reward": self.reward_name,
            "frames": self.frames,
            "statistics": self.statistics.state_dict(),
            "fit": self.fit,
            "noise": None if self.noised is None else list(self.noised),
            "targets": "frames" if self.by_frames else "clip",
            **({} if figures is None else {"figures": dict(figures)}),
        }
        save_reward_model(folder, self.model, teacher, card)

    def predict(self, x: Tensor, condition: Condition, draws: Draws | None = None, purpose: str = "") -> Tensor:
        """R^l(x, c) in the pixel reward's own unit, [B]; x [B, C, F, h, w] may carry a gradient.

        draws: for a model of noised latents, where x is to be noised as in its fit; without them it sees x as it is, at
        the least noisy of its times.
        """
        return self.statistics.destandardise(self._standard(x, condition, draws, purpose))

    def _standard(self, x: Tensor, condition: Condition, draws: Draws | None = None, purpose: str = "") -> Tensor:
        """The standardised reward [B] of clips."""
        found = self._apart(x, condition, draws, purpose)
        return found[:, self._places(x)].mean(1) if self.by_frames else found

    def _apart(self, x: Tensor, condition: Condition, draws: Draws | None = None, purpose: str = "") -> Tensor:
        """What the model itself gives: [B], or [B, F] of the latent frames that hold what the reward looks at."""
        if self.noised is None:
            return self._output(x, condition)
        u = (
            torch.zeros(len(x), device=x.device)
            if draws is None
            else self._drawn_for(draws.uniform, f"{purpose} time", x)
        )
        return self._output_noised(u, x, condition, draws, f"{purpose} noise")

    @property
    def averages(self) -> bool:
        """Whether the model averages its prediction over frames."""
        return self.model.card.get("temporal") == "frames"

    def _output(self, x: Tensor, condition: Condition, t: Tensor | None = None) -> Tensor:
        """What the model gives of x; one that averages over frames sees those that hold the reward's."""
        if self.by_frames:
            return self.model.by_frame(x, condition, self._held(x))
        if self.averages and self.frames is not None and self.codec is not None:
            return self.model(x, condition, t, self._held(x))
        return self.model(x, condition, t)

    def _holders(self, x: Tensor) -> list[int]:
        """For each pixel frame that the reward looks at the latent frame that holds it."""
        assert self.codec is not None, "frames are matched by the autoencoder"
        return self.codec.holders(x, self.codec.spread(x, self.frames))

    def _held(self, x: Tensor) -> list[int]:
        """The latent frames that hold what the reward looks at."""
        return sorted(set(self._holders(x)))

    def _places(self, x: Tensor) -> list[int]:
        """For each pixel frame that the reward looks at the place of its latent frame among these."""
        held = self._held(x)
        return [held.index(i) for i in self._holders(x)]

    def _output_noised(self, u: Tensor, x: Tensor, condition: Condition, draws: Draws | None, purpose: str) -> Tensor:
        """What the model gives of x at the places u [B] of the noise range; x is noised where there are draws."""
        assert self.noised is not None and self.schedule is not None
        t = self.schedule.uniform(u, *self.noised)
        if draws is not None:
            shape = x.shape[1:]
            eps = self._drawn_for(lambda p: draws.normal(p, shape), purpose, x)
            x = diffuse(x, eps, t, self.schedule)
        return self._output(x, condition, t)

    def _drawn_for(self, draw: Callable[[str], Tensor], purpose: str, x: Tensor) -> Tensor:
        """A draw for each of x [B, ...], which may hold several groups of one sample for each index; group by group."""
        groups: list[Tensor] = []
        while sum(map(len, groups)) < len(x):
            groups.append(draw(f"{purpose} {len(groups)}"))
        return torch.cat(groups)[: len(x)].to(x.device)

    def observe(
        self, turn: int, latents: Tensor, prompts: list[str], keys: Sequence[Key | None] | None = None
    ) -> Observation:
        """Score latents [B, C, F, h, w] by the pixel reward; clips of the data (those with a key) are scored once."""
        assert self.scorer is not None, "a surrogate without a pixel reward observes nothing"
        return self.scorer.observe(turn, latents, prompts, keys)

    def remember(self, observation: Observation) -> bool:
        """Take an observation into the memory and the statistics; False, and no trace, if no process can use any."""
        every, usable = self.gather(observation.reward), self.gather(observation.usable)
        self.bad += int((~usable.bool()).sum())
        if not usable.any():
            return False
        self.statistics.update(every[usable.bool()])
        self.memory.add(observation)
        return True

    @torch.no_grad()
    def follow(self) -> Agreement:
        """How well it follows the pixel reward on all that is remembered here; pairs half a deviation apart count."""
        predicted = torch.cat([self.predict(o.latents, self.encode_text(o.prompts))[o.usable] for o in self.past])
        true = torch.cat([o.reward[o.usable] for o in self.past])
        return agreement(predicted, true, 0.5 * float(self.statistics.sd))

    def loss(self, draws: Draws, purpose: str, first: int = 0, samples: int | None = None) -> Tensor:
        """The fit's loss [B] (Eq. 14) on one remembered observation for each place of the batch, 0 where unusable.

        With fit=pairwise each is compared with another observation that is drawn for the same place.
        first, samples: where a micro-batch begins among the `samples` of this process's share, and how many those are.
        """
        samples = len(draws.indices) if samples is None else samples
        chosen = self.memory.chosen(draws, purpose, first, samples)
        if self.fit == "pairwise":
            return self._pairwise_loss(draws, purpose, chosen, first, samples)
        x, prompts, target, usable = self._recall(chosen)
        condition = self.encode_text(prompts)
        predicted, steep = self._with_steepness(lambda x: self._apart(x, condition, draws, purpose), x, draws, purpose)
        if self.by_frames:
            predicted = predicted[:, self._places(x)]
        error = fit(predicted, target).view(len(x), -1).mean(1)
        return torch.where(usable, error + self.smooth * steep, 0.0)

    def _pairwise_loss(self, draws: Draws, purpose: str, chosen: Sequence[Place], first: int, samples: int) -> Tensor:
        """The pairs' loss [B]; both of a pair are noised equally far, so that the noise favours neither."""
        partners = self.memory.partners(draws, purpose, chosen, first, samples)
        x, prompts, target, usable = self._recall([*chosen, *partners])
        condition = self.encode_text(prompts)
        u = None if self.noised is None else self._drawn_for(draws.uniform, f"{purpose} time", x[: len(chosen)])

        def predict(x: Tensor) -> Tensor:
            if u is None:
                return self._output(x, condition)
            return self._output_noised(torch.cat([u, u]), x, condition, draws, f"{purpose} noise")

        predicted, steep = self._with_steepness(predict, x, draws, purpose)
        others = torch.tensor([a != b for a, b in zip(chosen, partners, strict=True)], device=usable.device)
        both = usable.view(2, -1).all(0) & others  # a pair of one with itself teaches nothing
        loss = pairwise(*predicted.chunk(2), *target.chunk(2)) + self.smooth * steep.view(2, -1).mean(0)
        return torch.where(both, loss, 0.0)

    def _with_steepness(
        self, predict: Callable[[Tensor], Tensor], x: Tensor, draws: Draws, purpose: str
    ) -> tuple[Tensor, Tensor]:
        """Predictions of x [B, C, F, h, w], and the squared gradient there [B], 0 where nothing is smoothed."""
        if self.smooth == 0:
            return predict(x), torch.zeros(len(x), device=x.device)
        if not self.model.twice_differentiable:
            u = self._drawn_for(lambda p: draws.normal(p, x.shape[1:]), f"{purpose} nudge", x)
            precision = getattr(self.model, "precision", torch.float32)
            return (predicted := predict(x)), nudged_steepness(predict, predicted, x, u, precision)
        leaf = x.detach().requires_grad_()
        with sdpa_kernel(SDPBackend.MATH):  # the others have no second derivative
            predicted = predict(leaf)
        return predicted, steepness(predicted, leaf)

    def _recall(self, chosen: Sequence[Place]) -> Recalled:
        """The remembered clips at these places, their rewards standardised."""
        found = self.memory.recall(chosen, self.model.out.weight.device, self.by_frames)
        return found._replace(reward=self.statistics.standardise(found.reward))

    def state(self) -> State:
        """Statistics, memory and counts, and the weights of a model that is only read, on which a run depends too."""
        tensors, plain = self.memory.state()
        tensors |= {f"model/{n}": p for n, p in self._only_read().items()}
        counts = {"bad": self.bad, "updates": self.updates}
        return State(tensors, {"statistics": self.statistics.state_dict(), **counts, **plain})

    def _only_read(self) -> dict[str, Tensor]:
        """The weights of a model that is not fitted here, and of the decoder that it looks through."""
        if any(p.requires_grad for p in self.model.parameters()):
            return {}
        decoder = getattr(self.model, "decoder", None)
        below = {} if decoder is None else {f"decoder.{n}": p for n, p in decoder.named_parameters()}
        return dict(self.model.named_parameters()) | below

    @torch.no_grad()
    def load(self, state: State, prompts: Callable[[int], list[str]], own: slice) -> None:
        """Take up a `state`; prompts: those of a turn's observation here; own: this process's rows."""
        tensors, plain = state
        for name, parameter in self._only_read().items():
            parameter.copy_(tensors[f"model/{name}"])
        self.statistics.load_state_dict(plain["statistics"])
        self.bad, self.updates = plain["bad"], plain["updates"]
        self.memory.load(state, prompts, own, self.model.out.weight.device)

    @torch.no_grad()
    def level(self, turns: int = LEVELLED) -> None:
        """Set the model's level, which pairs leave open: its mean becomes the reward's on the newest observations.

        To be called after a turn's updates; does nothing unless fit=pairwise. All processes come to the same level.
        turns: how many of the remembered cycles are looked at.
        """
        if self.fit != "pairwise":
            return
        gaps, counted = [], []
        for age in range(len(self.past))[-turns:]:
            x, prompts, target, usable = self._recall([(age, i) for i in range(len(self.past[age].prompts))])
            predicted = self._standard(x, self.encode_text(prompts))
            gaps.append(self.gather(torch.where(usable, target - predicted, 0.0)))
            counted.append(self.gather(usable.float()))
        count = torch.cat(counted).sum()
        if count > 0:
            self.model.out.bias += (torch.cat(gaps).double().sum() / count).to(self.model.out.bias)
