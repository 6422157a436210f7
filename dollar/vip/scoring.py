"""The values that a reward gives the clips of a network, on prompts and seeds that several networks share."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dollar.evaluation.measures.bootstrap import Interval, paired_interval
from dollar.media import atomically
from dollar.models.teacher import Teacher
from dollar.parallel.world import World
from dollar.sampling.samplers import Sampler, decode, make_latents


class Requests(NamedTuple):
    """Prompts and seeds, one of each a clip, and how many clips are made at once."""

    prompts: Sequence[str]
    seeds: Sequence[int]
    batch: int = 16


def score_clips(sampler: Sampler, teacher: Teacher, reward: Any, wanted: Requests, world: World) -> dict[str, Tensor]:
    """Each of the reward's values [N], float64 on the CPU, by name, nan where a clip has none.

    The processes share the batches, which are cut as one process cuts them, so that what comes out is the same to the
    bit.
    """
    prompts, seeds, batch = wanted
    batches = [range(i, min(i + batch, len(prompts))) for i in range(0, len(prompts), batch)]
    rounds = -(-len(batches) // world.size)
    own = [batches[min(i, len(batches) - 1)] for i in world.own(0, rounds * world.size)]
    found = [_values(sampler, teacher, reward, [prompts[i] for i in p], [seeds[i] for i in p]) for p in own]
    names = list(found[0])
    values = torch.full((rounds, batch, len(names)), math.nan, dtype=torch.double)
    for row, part in zip(values, found, strict=True):
        row[: len(part[names[0]])] = torch.stack([part[name].double().cpu() for name in names], 1)
    gathered = world.gather(values.to(world.device)).cpu().flatten(0, 1)[: len(prompts)]
    return dict(zip(names, gathered.unbind(1), strict=True))


def _values(
    sampler: Sampler, teacher: Teacher, reward: Any, prompts: Sequence[str], seeds: Sequence[int]
) -> Mapping[str, Tensor]:
    latents = make_latents(sampler, teacher, prompts, seeds, len(prompts), show=False)
    videos = decode(teacher, latents, show=False).float().to(teacher.device) / 255
    found: Mapping[str, Tensor] = reward.scores(videos, list(prompts))
    return found


def means_of(values: Mapping[str, Tensor]) -> tuple[dict[str, float], int]:
    """The mean of each value over the clips that have all of them, and how many have not.

    ValueError where none has.
    """
    whole = torch.stack(list(values.values())).isfinite().all(0)
    if not bool(whole.any()):
        raise ValueError("no clip got a score that is a number; look at the reward by launch/evaluate.py")
    return {name: float(value[whole].mean()) for name, value in values.items()}, int((~whole).sum())


@dataclass
class Scores:
    """Networks by label, each with the digest of its weights and its values [N] by name, of the same clips."""

    weights: dict[str, str]
    values: dict[str, dict[str, list[float]]]

    @staticmethod
    def read(path: Path) -> Scores:
        """Those of a file, none where there is none; ValueError where it can't be read."""
        if not path.is_file():
            return Scores({}, {})
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            return Scores(dict(found["weights"]), dict(found["values"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} can't be read ({error!r}); remove it, and the clips are scored anew") from None

    def write(self, path: Path) -> None:
        """Write them."""
        with atomically(path) as temporary:
            temporary.write_text(json.dumps(asdict(self)) + "\n", encoding="utf-8")

    def add(self, label: str, weights: str, values: Mapping[str, Tensor]) -> None:
        """Take a network's; ValueError where no clip has all of its values."""
        means_of(values)
        self.weights[label], self.values[label] = weights, {name: value.tolist() for name, value in values.items()}

    def has(self, label: str, weights: str) -> bool:
        """Whether a network of these weights is known by this label."""
        return self.weights.get(label) == weights

    def total(self, label: str, properties: Sequence[str] = ()) -> Tensor:
        """The mean [N] of a network's values, of these or of all; nan where a clip lacks one."""
        values = self.values[label]
        return torch.tensor([values[name] for name in properties or values], dtype=torch.double).mean(0)

    def mean(self, label: str, properties: Sequence[str] = ()) -> float:
        """The mean of `total` over the clips that have one."""
        return float(self.total(label, properties).nanmean())

    def difference(self, label: str, other: str, prompts: Sequence[str], properties: Sequence[str] = ()) -> Interval:
        """A network's total minus another's, with its paired 95 % interval over prompts."""
        a, b = self.total(label, properties), self.total(other, properties)
        both = (a - b).isfinite()
        chosen = [prompt for prompt, there in zip(prompts, both.tolist(), strict=True) if there]
        return paired_interval(a[both].numpy(), b[both].numpy(), chosen)

    def table(self, first: str, prompts: Sequence[str]) -> str:
        """All networks as lines of text, with their differences from the first."""
        names = list(self.values[first])
        wide = max(map(len, self.values)) + 2
        lines = ["".ljust(wide) + "".join(name[:14].rjust(16) for name in ("mean", *names)) + f"   minus {first}, 95 %"]
        for label in self.values:
            cells = [self.mean(label), *(self.mean(label, [name]) for name in names)]
            line = label.ljust(wide) + "".join(f"{cell:.4f}".rjust(16) for cell in cells)
            unscored = int((~self.total(label).isfinite()).sum())
            if label != first:
                d = self.difference(label, first, prompts)
                line += f"   {d.difference:+.4f} [{d.low:.4f}, {d.high:.4f}]"
            if unscored:
                line += f"   {unscored} of {len(prompts)} clips got no score and are left out"
            lines.append(line)
        return "\n".join(lines)
