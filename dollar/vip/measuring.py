"""Measuring what a network is without a unit: by a reward of its clips, by its output, by the unit's own change."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dollar.diffusion.draws import Draws
from dollar.diffusion.schedule import diffuse
from dollar.log import progress
from dollar.models.denoiser import Condition, Denoiser
from dollar.models.teacher import Teacher
from dollar.models.units import HALVES, Unit, without
from dollar.parallel.world import World
from dollar.sampling.samplers import Sampler, decode, make_latents
from dollar.vip.ranking import Table, Worth


@dataclass
class Ranker:
    """Measures units of a network on prompts and seeds that all of them share.

    sampler: makes its clips; denoiser: holds the network; reward: has `scores`; prompts, seeds: one of each a clip.
    looks: noised clips on which outputs and hidden states are compared; batch: clips at once.
    """

    teacher: Teacher
    denoiser: Denoiser
    sampler: Sampler
    reward: Any
    prompts: Sequence[str]
    seeds: Sequence[int]
    world: World
    looks: int = 16
    batch: int = 16
    _noised: tuple[Tensor, Tensor, Condition] | None = field(default=None, repr=False)

    @property
    def network(self) -> Any:
        return self.denoiser.network

    def scored(self, unit: Unit | None = None) -> Worth:
        """The means of the reward's values over the clips of the network without a unit; None is the whole network.

        The processes share the batches, which are cut as one process cuts them, so that the means are the same to the
        bit. A clip of which a value is no number is left out and counted.
        """
        batches = [range(i, min(i + self.batch, len(self.prompts))) for i in range(0, len(self.prompts), self.batch)]
        rounds = -(-len(batches) // self.world.size)
        own = [batches[min(i, len(batches) - 1)] for i in self.world.own(0, rounds * self.world.size)]
        lists = self.teacher.family.block_lists
        with without(self.network.transformer, [unit], lists) if unit is not None else nullcontext():
            found = [self._values([self.prompts[i] for i in part], [self.seeds[i] for i in part]) for part in own]
        names = sorted(found[0])
        values = torch.full((rounds, self.batch, len(names)), math.nan, dtype=torch.double)
        for row, part in zip(values, found, strict=True):
            row[: len(part[names[0]])] = torch.stack([part[name].double().cpu() for name in names], 1)
        gathered = self.world.gather(values.to(self.world.device)).cpu().flatten(0, 1)[: len(self.prompts)]
        whole = gathered.isfinite().all(1)
        if not bool(whole.any()):
            raise ValueError("no clip got a score that is a number; look at the reward by launch/evaluate.py")
        means = gathered[whole].mean(0).tolist()
        return Worth(dict(zip(names, means, strict=True)), int((~whole).sum()))

    def _values(self, prompts: Sequence[str], seeds: Sequence[int]) -> Mapping[str, Tensor]:
        """The reward's values [B] of a batch's clips, by name."""
        latents = make_latents(self.sampler, self.teacher, prompts, seeds, self.batch, show=False)
        videos = decode(self.teacher, latents, show=False).float().to(self.teacher.device) / 255
        found: Mapping[str, Tensor] = self.reward.scores(videos, list(prompts))
        return found

    @torch.no_grad()
    def prediction(self, unit: Unit) -> float:
        """The mean squared change of the network's output at random times of its own clips."""
        x_t, t, condition = self._looks()
        before = self.denoiser.output(x_t, t, condition)
        with without(self.network.transformer, [unit], self.teacher.family.block_lists):
            after = self.denoiser.output(x_t, t, condition)
        return float((after - before).double().square().mean())

    @torch.no_grad()
    def influence(self, units: Sequence[Unit]) -> dict[str, float]:
        """1 - the mean cosine of the hidden states before and after each unit, all by one forward of the network."""
        x_t, t, condition = self._looks()
        found: dict[str, float] = {}
        lists, transformer = self.teacher.family.block_lists, self.network.transformer
        wanted = {(unit.list, unit.place): [u for u in units if u[:2] == unit[:2]] for unit in units}

        def watch(here: tuple[str, int], block: nn.Module) -> Any:
            def look(module: nn.Module, args: Any, kwargs: Any) -> None:
                handles.pop(here).remove()  # what runs below is the block once more
                before = _hidden(args, kwargs)
                for unit in wanted[here]:
                    if unit.half:  # the block with this half alone
                        other = next(half for half in HALVES if half != unit.half)
                        with without(transformer, [unit._replace(half=other)], lists):
                            after = module(*args, **kwargs)
                    else:
                        after = module(*args, **kwargs)
                    found[str(unit)] = _apart(before, after[0] if isinstance(after, tuple) else after)

            return block.register_forward_pre_hook(look, with_kwargs=True)

        handles = {here: watch(here, getattr(transformer, here[0])[here[1]]) for here in wanted}
        try:
            self.denoiser.output(x_t, t, condition)
        finally:
            for handle in list(handles.values()):
                handle.remove()
        return found

    def _looks(self) -> tuple[Tensor, Tensor, Condition]:
        """Noised clips of the whole network, their times, and their prompts."""
        if self._noised is None:
            count = min(self.looks, len(self.prompts))
            prompts, seeds = self.prompts[:count], self.seeds[:count]
            x_0 = make_latents(self.sampler, self.teacher, prompts, seeds, self.batch, show=False)
            draws = Draws(0, 0, range(count), self.teacher.device)
            schedule = self.denoiser.schedule
            t = schedule.uniform(draws.uniform("time"))
            x_t = diffuse(x_0, draws.normal("noise", x_0.shape[1:]), t, schedule)
            self._noised = x_t, t, self.teacher.text(list(prompts))
        return self._noised


def _hidden(args: Any, kwargs: Any) -> Tensor:
    """The hidden states among a block's inputs."""
    found: Tensor = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
    return found


def _apart(before: Tensor, after: Tensor) -> float:
    """1 - the mean cosine of tokens [B, N, D] before and after."""
    return float(1 - nn.functional.cosine_similarity(before.double(), after.double(), dim=-1).mean())


def measure(
    table: Table, units: Sequence[Unit], ranker: Ranker, shortlist: int | None, path: Path, stopped: Callable[[], bool]
) -> bool:
    """Measure what the table lacks, and write it after every unit; False where a stop was requested before the end.

    The cheap measures come first, of all units; by a reward, where the ranker has one, those of the `shortlist` are
    scored whose absence changes the prediction least, None for all. stopped: the same in every process.
    """

    def write() -> None:
        if ranker.world.is_main:
            table.write(path)

    known = {unit: table.rows.get(str(unit), Worth()) for unit in units}
    if any(worth.influence is None for worth in known.values()):
        for name, influence in ranker.influence(units).items():
            table.add(name, influence=influence)
        write()
    for unit in (unit for unit, worth in known.items() if worth.prediction is None):
        table.add(str(unit), prediction=ranker.prediction(unit))
        write()
    if ranker.reward is None:
        return True
    chosen = set(table.order("prediction")[:shortlist])
    missing = [unit for unit in units if str(unit) in chosen and table.rows[str(unit)].scores is None]
    whole: list[Unit | None] = [None] if table.full is None else []
    for unit in progress([*whole, *missing], "ranking", active=ranker.world.is_main):
        if stopped():
            return False
        worth = ranker.scored(unit)
        if unit is None:
            table.full = worth
        else:
            table.add(str(unit), scores=worth.scores, unscored=worth.unscored)
        write()
    return True
