"""Measuring what a network is without a unit: by a reward of its clips, by its output, by the unit's own change."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
from dollar.sampling.samplers import Sampler, make_latents
from dollar.vip.ranking import Table, Worth
from dollar.vip.scoring import Requests, means_of, score_clips


@dataclass
class Ranker:
    """Measures units of a network on clips that all of them are asked for.

    sampler: makes its clips; denoiser: holds the network; reward: has `scores`, or None.
    looks: noised clips on which outputs and hidden states are compared.
    """

    teacher: Teacher
    denoiser: Denoiser
    sampler: Sampler
    reward: Any
    wanted: Requests
    world: World
    looks: int = 16
    _noised: tuple[Tensor, Tensor, Condition] | None = field(default=None, repr=False)

    @property
    def network(self) -> Any:
        return self.denoiser.network

    def scored(self, unit: Unit | None = None) -> Worth:
        """The means of the reward's values over the clips of the network without a unit; None is the whole network.

        A clip of which a value is no number is left out and counted.
        """
        lists = self.teacher.family.block_lists
        with without(self.network.transformer, [unit], lists) if unit is not None else nullcontext():
            values = score_clips(self.sampler, self.teacher, self.reward, self.wanted, self.world)
        return Worth(*means_of(dict(sorted(values.items()))))

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
            prompts, seeds = self.wanted.prompts[: self.looks], self.wanted.seeds[: self.looks]
            x_0 = make_latents(self.sampler, self.teacher, prompts, seeds, self.wanted.batch, show=False)
            draws = Draws(0, 0, range(len(prompts)), self.teacher.device)
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
