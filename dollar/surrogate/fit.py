"""A latent reward model fitted to scored clips, apart from any student: rows in, figures out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dollar.diffusion.draws import Draws
from dollar.log import logger
from dollar.surrogate.agreement import agreement
from dollar.surrogate.climb import Climb, Through, climb
from dollar.surrogate.latent_reward import LatentReward
from dollar.surrogate.memory import Observation
from dollar.surrogate.observations import MISMATCHED, REAL, ScoredClip
from dollar.surrogate.pixel_reward import alike

LITTLE = 0.1  # the share of the predicted rise below which the true one counts as nothing

Rows = Sequence[tuple[str, ScoredClip]]  # each with its kind


class Parts(NamedTuple):
    """Rows to fit on, and rows set apart."""

    rest: list[tuple[str, ScoredClip]]
    held: list[tuple[str, ScoredClip]]


def split(rows: Rows, fraction: float, seed: int, file: Path) -> Parts:
    """Rows to fit on and rows held out, by clip: a clip that is held out under one caption is held out under all.

    file: where the scores are kept. ValueError where either would have less than two rewards.
    """
    clips = sorted({row.clip for _, row in rows})
    order = torch.randperm(len(clips), generator=torch.Generator().manual_seed(seed)).tolist()
    held = {clips[i] for i in order[: round(fraction * len(clips))]}
    parts = Parts([row for row in rows if row[1].clip not in held], [row for row in rows if row[1].clip in held])
    if min(map(len, parts)) < 2:
        raise ValueError(
            f"{len(rows)} clips have a reward that is a number, and {len(parts.held)} would be set apart; at least 2 "
            "are needed to fit on and 2 to be set apart. Raise clips, made_clips or the share that is set apart "
            "(held_out, watched), or look at the reward by itself: "
            f"{file} keeps what it gave, and clips without a number are scored again"
        )
    return parts


def some(rows: Rows, count: int | None, seed: int, file: Path) -> list[tuple[str, ScoredClip]]:
    """So many of the rows, or all; fewer of one seed are among more. ValueError where there are not so many."""
    if count is None:
        return list(rows)
    if count > len(rows):
        raise ValueError(
            f"fit_on is {count}, but {len(rows)} clips of {file} have a reward and are not held out; raise clips or "
            "made_clips, or lower fit_on"
        )
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
    return [rows[i] for i in order[:count]]


def check_rewards(rewards: Sequence[float], file: Path) -> None:
    """Raise ValueError unless the rewards to fit on differ by more than they are rounded."""
    if alike(min(rewards), max(rewards)):
        raise ValueError(
            f"all {len(rewards)} rewards to fit on are {rewards[0]:g}, so there is nothing to learn. Look at the "
            f"reward by itself; {file} keeps what it gave, so remove that once the reward is mended"
        )


def check_measured(parts: Mapping[str, Rows]) -> None:
    """Warn of rows, by what they are for, whose rewards are all alike: nothing can be measured on them."""
    for purpose, rows in parts.items():
        rewards = [row.reward for _, row in rows]
        if alike(min(rewards), max(rewards)):
            logger.warning(
                f"note: all {len(rewards)} rewards of the {purpose} clips are {rewards[0]:g}, so R^2 and correlations "
                "on them are not defined (nan). Raise clips or made_clips"
            )


def remember(surrogate: LatentReward, latents: Sequence[Tensor], rows: Rows, batch: int, seed: int) -> None:
    """Put all rows into the surrogate's memory, shuffled, as if a cycle had seen `batch` of them."""
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed + 1)).tolist()
    surrogate.memory.size = -(-len(rows) // batch)
    for turn in range(surrogate.memory.size):
        part = [rows[i][1] for i in order[turn * batch : (turn + 1) * batch]]
        usable = torch.arange(batch) < len(part)
        part += part[:1] * (batch - len(part))  # the last is filled up with clips that don't count
        observation = Observation(
            turn,
            [row.prompt for row in part],
            torch.stack([latents[row.place] for row in part]),
            torch.tensor([row.reward for row in part]),
            usable,
            torch.tensor([row.frames for row in part]) if surrogate.by_frames else None,
        )
        surrogate.remember(observation)
    surrogate.bad = 0


def figures_of(
    surrogate: LatentReward, latents: Sequence[Tensor], rows: Rows, batch: int
) -> dict[str, dict[str, float]]:
    """How well the model predicts the rewards of rows, of all and of every kind; pairs half a deviation apart count.

    r2: the share of the rewards' variance that is predicted, below 0 where their mean would predict better; error: the
    root of the mean squared error, in the reward's unit.
    """
    device, found = surrogate.model.out.weight.device, []
    with torch.no_grad():
        for first in range(0, len(rows), batch):
            part = [row for _, row in rows[first : first + batch]]
            x = torch.stack([latents[row.place] for row in part]).to(device)
            found.append(surrogate.predict(x, surrogate.encode_text([row.prompt for row in part])).double().cpu())
    predicted, true = torch.cat(found), torch.tensor([row.reward for _, row in rows], dtype=torch.float64)
    kinds, figures = [kind for kind, _ in rows], {}
    for name in ("all", *dict.fromkeys(kinds)):
        which = torch.tensor([name in ("all", kind) for kind in kinds])
        p, r = predicted[which], true[which]
        error, variance = float(((r - p) ** 2).mean()), float(r.var(correction=0))
        r2 = 1 - error / variance if variance > 0 else math.nan
        agreed = agreement(p, r, 0.5 * surrogate.statistics.sd)._asdict()
        figures[name] = {"clips": len(r), "r2": r2, "error": math.sqrt(error), **agreed}
    return figures


def steepness_of(surrogate: LatentReward, latents: Sequence[Tensor], rows: Rows, batch: int) -> float:
    """The mean of the squared length of the model's gradient at the clips of rows, in squared standard deviations."""
    device, found = surrogate.model.out.weight.device, []
    for first in range(0, len(rows), batch):
        part = [row for _, row in rows[first : first + batch]]
        x = torch.stack([latents[row.place] for row in part]).to(device).requires_grad_()
        predicted = surrogate.predict(x, surrogate.encode_text([row.prompt for row in part]))
        (gradient,) = torch.autograd.grad(predicted.sum() / surrogate.statistics.sd, x)
        found.append(gradient.flatten(1).square().sum(1))
    return float(torch.cat(found).mean())


def climb_of(
    surrogate: LatentReward,
    latents: Sequence[Tensor],
    rows: Rows,
    most: int,
    seed: int,
    through: Through | None = None,
) -> list[Climb]:
    """What steps up the gradient bring to `most` held-out clips, generated ones if there are any; empty for none.

    through: of `climb`.
    """
    generated = [row for kind, row in rows if kind not in (REAL, MISMATCHED)]  # which a student's clips are like
    tried = generated or [row for _, row in rows]
    count = min(most, len(tried))
    if count == 0:
        return []
    chosen = [tried[i * len(tried) // count] for i in range(count)]  # of all step counts alike
    draws = Draws(seed, 0, range(count), surrogate.model.out.weight.device)
    x = torch.stack([latents[row.place] for row in chosen]).to(draws.device)
    scored = torch.tensor([row.reward for row in chosen])
    return climb(surrogate, x, [row.prompt for row in chosen], draws, scored, through=through)


def climb_text(climbs: Sequence[Climb], noised: bool, backbone: str, smooth: float) -> str:
    """Climbs as sentences, with advice where little of what the shortest predicts is true."""
    first = climbs[0]
    if first.clips == 0:
        return "no held-out clip got a reward after a step up its gradient, so what that is worth isn't known"
    steps = "; ".join(
        f"of {climb.share:.0%}: {climb.predicted:.3g} predicted, {climb.true:.3g}"
        f"{f' ± {climb.true_se:.2g}' if math.isfinite(climb.true_se) else ''} true"
        for climb in climbs
    )
    tried = f"on {first.clips} held-out clip{'s' * (first.clips != 1)}"
    text = f"the reward's rise by a step up its gradient, a share of a clip's norm, {tried}: {steps}"
    if first.cosine == first.cosine:
        text += f"; its cosine with the reward's own gradient is {first.cosine:.2f}"
    if first.true > LITTLE * max(first.predicted, 0.0):
        return text
    ways = ["lrm.backbone=pixels"] * (backbone != "pixels") + ["lrm.smooth=30"] * (smooth == 0)
    ways += ["lrm.noised=true"] * (not noised and backbone == "cnn")
    return f"{text}; little of what it promises is true" + (f", try {' or '.join(ways)}" if ways else "")


def table(figures: dict[str, dict[str, float]]) -> str:
    """The held-out figures, a kind a line."""
    columns = {
        "clips": "clips",
        "r2": "R^2",
        "error": "error",
        "correlation": "Pearson",
        "rank_correlation": "Spearman",
        "pairwise": "pairwise",
    }
    lines = ["held out".ljust(12) + "".join(title.rjust(11) for title in columns.values())]
    for kind, row in figures.items():
        cells = [f"{row[key]}" if key == "clips" else f"{row[key]:.3g}" for key in columns]
        lines.append(kind.ljust(12) + "".join(cell.rjust(11) for cell in cells))
    return "\n".join(lines)


def plain(value: Any) -> Any:
    """The same with null for what is not a number, since JSON knows no nan."""
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
