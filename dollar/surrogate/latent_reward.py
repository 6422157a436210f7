"""The latent reward model, kept in step with a pixel reward while the student changes (Algorithm 1, lines 15-17)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from scipy.stats import spearmanr
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from dollar.diffusion.draws import Draws
from dollar.diffusion.schedule import Schedule, diffuse, expand_like
from dollar.losses.latent_reward import RunningStatistics, fit, nudged_steepness, pairwise, steepness
from dollar.losses.term import check_range
from dollar.models.denoiser import Condition
from dollar.models.reward_models import RewardModel, load_reward_model, save_reward_model
from dollar.models.teacher import Teacher
from dollar.parallel.checkpoint import State
from dollar.surrogate.fitted_decoder import FittedDecoder
from dollar.surrogate.pixel_reward import PixelReward

FITS = ("mse", "pairwise")
LEVELLED = 8  # newest cycles on which a model of pairs finds its level


class Observation(NamedTuple):
    """The pixel reward of one turn's clips: reward [B] in its own unit, usable [B] where it is a number."""

    turn: int
    prompts: list[str]
    latents: Tensor
    reward: Tensor
    usable: Tensor


class Recalled(NamedTuple):
    """Remembered latents [B, C, F, h, w] with their prompts, standardised targets [B] and which are usable [B]."""

    latents: Tensor
    prompts: list[str]
    target: Tensor
    usable: Tensor


class Agreement(NamedTuple):
    """How well predictions follow the truth: Pearson's and Spearman's correlation, nan where either doesn't vary;
    pairwise: the pairwise accuracy, how often the better of two has the higher prediction, over `pairs` of them."""

    correlation: float
    rank_correlation: float
    pairwise: float
    pairs: int


def agreement(predicted: Tensor, true: Tensor, gap: float) -> Agreement:
    """Agreement of predictions [N] with true rewards [N]; gap: true difference from which a pair counts."""
    p, r = predicted.double().cpu(), true.double().cpu()
    clear = r[:, None] - r > gap
    ordered = (p[:, None] - p)[clear] > 0  # of the clear pairs, those that the predictions order rightly
    accuracy = float(ordered.double().mean())
    if len(p) < 2 or p.std() == 0 or r.std() == 0:
        return Agreement(float("nan"), float("nan"), accuracy, int(clear.sum()))
    linear = float(torch.corrcoef(torch.stack([p, r]))[0, 1])
    return Agreement(linear, float(spearmanr(p.numpy(), r.numpy()).statistic), accuracy, int(clear.sum()))


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
    ) -> None:
        if smooth < 0:
            raise ValueError(f"lrm.smooth is {smooth}; it is 0 (off) or positive, as 30")
        if memory < 1:
            raise ValueError(f"lrm.memory is {memory}; an update needs the observations of at least 1 cycle")
        if fit not in FITS:
            raise ValueError(f"lrm.fit is {fit!r}; use {' or '.join(FITS)}")
        if noised is not None:
            check_range("lrm.noise", noised)
        assert noised is None or schedule is not None
        self.model: Any = model
        self.pixel = pixel
        self.encode_text = encode_text
        self.memory = memory
        self.gather = gather
        self.fit = fit
        self.noised = noised
        self.schedule = schedule
        self.smooth = smooth
        self.decoder = decoder
        self.reward_name = None if pixel is None else pixel.name
        self.frames = None if pixel is None else pixel.frames
        self.codec = None if pixel is None else pixel.codec
        self.statistics = RunningStatistics()
        self.past: list[Observation] = []
        self.bad = 0
        self.updates = 0  # of its fit
        self._known: dict[tuple[tuple[int, int], str], float] = {}

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
        noised = None if card.get("noise") is None else tuple(card["noise"])
        found = cls(model, pixel, teacher.text, noised=noised, schedule=teacher.denoiser.schedule, **how)  # type: ignore[arg-type]
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
        if self.noised is None:
            return self._predict(x, condition)
        u = (
            torch.zeros(len(x), device=x.device)
            if draws is None
            else self._drawn_for(draws.uniform, f"{purpose} time", x)
        )
        return self._predict_noised(u, x, condition, draws, f"{purpose} noise")

    @property
    def averages(self) -> bool:
        """Whether the model averages its prediction over frames."""
        return self.model.card.get("temporal") == "frames"

    def _predict(self, x: Tensor, condition: Condition, t: Tensor | None = None) -> Tensor:
        """The standardised reward [B] that the model predicts of x; one that averages over frames sees the reward's."""
        if self.averages and self.frames is not None and self.codec is not None:
            held = self.codec.held(x, self.codec.spread(x, self.frames))
            return self.model(x, condition, t, held)
        return self.model(x, condition, t)

    def _predict_noised(self, u: Tensor, x: Tensor, condition: Condition, draws: Draws | None, purpose: str) -> Tensor:
        """The predicted reward of x at the places u [B] of the noise range; x is noised where there are draws."""
        assert self.noised is not None and self.schedule is not None
        t = self.schedule.uniform(u, *self.noised)
        if draws is not None:
            shape = x.shape[1:]
            eps = self._drawn_for(lambda p: draws.normal(p, shape), purpose, x)
            x = diffuse(x, eps, t, self.schedule)
        return self._predict(x, condition, t)

    def _drawn_for(self, draw: Callable[[str], Tensor], purpose: str, x: Tensor) -> Tensor:
        """A draw for each of x [B, ...], which may hold several groups of one sample for each index; group by group."""
        groups: list[Tensor] = []
        while sum(map(len, groups)) < len(x):
            groups.append(draw(f"{purpose} {len(groups)}"))
        return torch.cat(groups)[: len(x)].to(x.device)

    def observe(
        self, turn: int, latents: Tensor, prompts: list[str], keys: Sequence[tuple[int, int] | None] | None = None
    ) -> Observation:
        """Score latents [B, C, F, h, w] by the pixel reward; clips of the data (those with a key) are scored once."""
        assert self.pixel is not None, "a surrogate without a pixel reward observes nothing"
        keys = keys or [None] * len(prompts)
        known = [None if key is None else self._known.get((key, p)) for key, p in zip(keys, prompts, strict=True)]
        missing = [i for i, value in enumerate(known) if value is None]
        reward = torch.tensor([float("nan") if value is None else value for value in known])
        if missing:
            # A clip that stands under two captions is decoded once.
            first = {keys[i] or (-1, i): i for i in reversed(missing)}
            places = {key: place for place, key in enumerate(first)}
            decoded = self._decode(latents[list(first.values())], [places[-1, i] for i in missing if keys[i] is None])
            # Clips of the data are scored one by one: their neighbours in a batch would depend on what was scored
            # before, which a resumed run doesn't know, and a reward's last bits may depend on its batch.
            single = [[i] for i in missing if keys[i] is not None]
            fresh = [i for i in missing if keys[i] is None]
            for part in [*single, *([fresh] if fresh else [])]:
                shown = decoded[[places[keys[i] or (-1, i)] for i in part]]
                reward[part] = self.pixel.score_videos(shown, [prompts[i] for i in part])
            for i in missing:
                if keys[i] is not None and reward[i].isfinite():
                    self._known[(keys[i], prompts[i])] = float(reward[i])  # type: ignore[index]
        usable = reward.isfinite()
        return Observation(turn, list(prompts), latents.detach(), reward.to(latents.device), usable.to(latents.device))

    def _decode(self, latents: Tensor, generated: Sequence[int]) -> Tensor:
        """What the pixel reward looks at; a small decoder is shown frames of the generated ones."""
        assert self.pixel is not None
        if self.decoder is None or not generated:
            return self.pixel.decode(latents)
        held = self.decoder.wanted(latents, self.pixel.seen(latents))
        videos, ends = self.pixel.decode_with(latents, self.decoder.codec.ends(latents, held))
        self.decoder.remember(latents[list(generated)], ends[list(generated)], held)
        return videos

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

    def loss(self, draws: Draws, purpose: str, first: int = 0, samples: int | None = None) -> Tensor:
        """The fit's loss [B] (Eq. 14) on one remembered observation for each place of the batch, 0 where unusable.

        Which cycle a place is taken from is drawn for that place, so that one process and several fit the same pairs.
        With fit=pairwise each is compared with another observation that is drawn for the same place.
        first, samples: where a micro-batch begins among the `samples` of this process's share, and how many those are.
        """
        ages = draws.integers(purpose, len(self.past)).tolist()
        samples = len(ages) if samples is None else samples
        groups = -(-len(self.past[-1].prompts) // samples)  # real and generated clips of one sample stand a group apart
        chosen = [(age, group * samples + first + i) for group in range(groups) for i, age in enumerate(ages)]
        if self.fit == "mse":
            x, prompts, target, usable = self._recall(chosen)
            condition = self.encode_text(prompts)
            predicted, steep = self._with_steepness(
                lambda x: self._standard(x, condition, draws, purpose), x, draws, purpose
            )
            return torch.where(usable, fit(predicted, target) + self.smooth * steep, 0.0)
        return self._pairwise_loss(draws, purpose, chosen, first, samples)

    def _pairwise_loss(
        self, draws: Draws, purpose: str, chosen: list[tuple[int, int]], first: int, samples: int
    ) -> Tensor:
        """The pairs' loss [B]; both of a pair are noised equally far, so that the noise favours neither."""
        partners = self._partners(draws, purpose, chosen, first, samples)
        x, prompts, target, usable = self._recall(chosen + partners)
        condition = self.encode_text(prompts)
        u = None if self.noised is None else self._drawn_for(draws.uniform, f"{purpose} time", x[: len(chosen)])

        def predict(x: Tensor) -> Tensor:
            if u is None:
                return self._predict(x, condition)
            return self._predict_noised(torch.cat([u, u]), x, condition, draws, f"{purpose} noise")

        predicted, steep = self._with_steepness(predict, x, draws, purpose)
        others = torch.tensor([a != b for a, b in zip(chosen, partners, strict=True)], device=usable.device)
        both = usable.view(2, -1).all(0) & others  # a pair of one with itself teaches nothing
        loss = pairwise(*predicted.chunk(2), *target.chunk(2)) + self.smooth * steep.view(2, -1).mean(0)
        return torch.where(both, loss, 0.0)

    def _with_steepness(
        self, predict: Callable[[Tensor], Tensor], x: Tensor, draws: Draws, purpose: str
    ) -> tuple[Tensor, Tensor]:
        """Predictions [B] of x [B, C, F, h, w], and the squared gradient there [B], 0 where nothing is smoothed."""
        if self.smooth == 0:
            predicted = predict(x)
            return predicted, torch.zeros_like(predicted)
        if not self.model.twice_differentiable:
            u = self._drawn_for(lambda p: draws.normal(p, x.shape[1:]), f"{purpose} nudge", x)
            return predict(x), nudged_steepness(predict, x, u)
        leaf = x.detach().requires_grad_()
        with sdpa_kernel(SDPBackend.MATH):  # the others have no second derivative
            predicted = predict(leaf)
        return predicted, steepness(predicted, leaf)

    def _partners(
        self, draws: Draws, purpose: str, chosen: list[tuple[int, int]], first: int, samples: int
    ) -> list[tuple[int, int]]:
        """For each (age, place) another of the same sample of the batch: of another cycle or another group of clips."""
        n = samples
        groups = len(chosen) // len(draws.indices)
        others = len(self.past) * groups - 1
        if others == 0:
            return chosen
        drawn = [draws.integers(f"{purpose} partner {group}", others).tolist() for group in range(groups)]
        found = []
        for age, place in chosen:
            group, sample = divmod(place, n)
            other = drawn[group][sample - first]
            other += other >= age * groups + group  # all but itself
            found.append((other // groups, other % groups * n + sample))
        return found

    def _recall(self, chosen: Sequence[tuple[int, int]]) -> Recalled:
        """The remembered clips at these (age, place)."""
        # The memory may lie elsewhere, where it is more than the device can hold.
        device = self.model.out.weight.device
        latents, reward, usable = (
            torch.stack([getattr(self.past[age], name)[place] for age, place in chosen]).to(device)
            for name in ("latents", "reward", "usable")
        )
        target = self.statistics.standardise(torch.where(usable, reward, self.statistics.mean))
        # A nan would pass a mask of the loss in the backward pass.
        latents = torch.where(expand_like(usable.float(), latents).bool(), latents, 0.0)
        return Recalled(latents, [self.past[age].prompts[place] for age, place in chosen], target, usable)

    def state(self) -> State:
        """Statistics, memory and counts, and the weights of a model that is only read, on which a run depends too."""
        tensors: dict[str, Tensor] = {}
        tensors |= {f"model/{n}": p for n, p in self._only_read().items()}
        for i, observation in enumerate(self.past):
            for name in Observation._fields[2:]:
                tensors[f"past/{i}/{name}"] = self.gather(getattr(observation, name))
        counts = {"bad": self.bad, "updates": self.updates, "past": [o.turn for o in self.past]}
        return State(tensors, {"statistics": self.statistics.state_dict(), **counts})

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
        self.bad, self.updates, device = plain["bad"], plain["updates"], self.model.out.weight.device
        self.past = []
        for i, turn in enumerate(plain["past"]):
            latents, reward, usable = (tensors[f"past/{i}/{n}"][own].to(device) for n in Observation._fields[2:])
            self.past.append(Observation(turn, prompts(turn), latents, reward, usable))

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
