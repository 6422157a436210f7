"""Fit a latent reward model to a pixel reward: `python launch/fit_reward.py reward=NAME out=FOLDER [key=value ...]`."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from omegaconf import DictConfig, OmegaConf

from dollar.cli.entry import check_folder_for
from dollar.log import logger

if TYPE_CHECKING:
    from torch import Tensor

    from dollar.models.teacher import Teacher
    from dollar.surrogate.latent_reward import Climb, LatentReward
    from dollar.surrogate.observations import Row

LITTLE = 0.1  # the share of the predicted rise below which the true one counts as nothing


class Fitted(NamedTuple):
    """Where the best model was found: after `step` updates of `steps`, in `seconds`."""

    step: int
    steps: int
    seconds: float


def check(config: DictConfig) -> None:
    """Raise ValueError for what could only fail after the clips are scored."""
    if config.reward.get("_target_") is None:
        raise ValueError("reward=none gives nothing to fit; name a reward, such as reward=shapes")
    for key, least in (
        ("clips", 0),
        ("made_clips", 0),
        ("climb", 0),
        ("seed", 0),
        ("steps", 1),
        ("batch", 1),
        ("every", 1),
    ):
        if config[key] < least:
            raise ValueError(f"{key} is {config[key]}; it must be at least {least}")
    if config.patience < 1:
        raise ValueError(f"patience is {config.patience}; it must be at least 1")
    for key in ("held_out", "watched"):
        if not 0 < config[key] < 1:
            raise ValueError(f"{key} is {config[key]}; it is a fraction of the clips, between 0 and 1")
    if not 0 <= config.decay_from <= 1:
        raise ValueError(f"decay_from is {config.decay_from}; it is a fraction of the steps, 1 for a rate that stays")
    if any(not isinstance(steps, int) or steps < 1 for steps in config.made):
        raise ValueError(f"made is {list(config.made)}; it is a list of step counts, such as [1,4]")
    if len(set(config.made)) < len(config.made):
        raise ValueError(f"made is {list(config.made)}; give each step count once")
    real = config.clips if config.data.get("latents", True) else 0
    if real == 0 and config.made_clips * len(config.made) == 0:
        raise ValueError("there are no clips to fit on: give clips by data, or let the teacher make some (made_clips)")
    if config.teacher.get("text") == "stored" and config.data.get("text") is None:
        raise ValueError("teacher.text is stored, but this data stores none; use data=latents, or teacher.text=online")
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise ValueError("this command runs in one process; start it by python, without torchrun")
    from dollar.cli.build.rewards import noise_of
    from dollar.cli.build.run import check_optimizers

    noise_of(config.lrm)
    check_optimizers(config)


def main(config: DictConfig) -> None:
    """Score the clips that are not scored yet, fit, print how well, and write the folder."""
    check(config)
    out = Path(config.out)
    check_folder_for("out", out)
    from hydra.utils import instantiate

    from dollar.cli.build.rewards import check_captions
    from dollar.cli.build.run import build_data, build_teacher, check_data, quiet, with_text
    from dollar.parallel.world import start
    from dollar.surrogate.observations import FILE, Observations, Scoring
    from dollar.surrogate.pixel_reward import PixelReward

    check_data(config)
    quiet()
    world = start(config.parallel.device, config.parallel.timeout_minutes)
    reward = instantiate(config.reward)
    teacher = with_text(config, build_teacher(config, world))
    data = build_data(config, teacher)
    check_captions(reward, data.captions)
    pixel = PixelReward(reward, teacher.codec)
    surrogate = new_surrogate(config, teacher, pixel, data.captions[0])  # a key at fault is told before any scoring
    file = Path(config.observations or out) / FILE
    if config.observations is not None and not file.is_file():
        raise ValueError(f"observations is {config.observations}, but there is no {file}; leave it out")
    observed = Observations.at(file, identity(config, teacher, data))
    asked = (config.clips, config.mismatched, config.made, config.made_clips, config.seed)
    scoring = Scoring(teacher, data, pixel, *asked)
    scoring.run(observed, file)
    rows = scoring.wanted(observed)
    if pixel.trouble:
        logger.warning(f"note: clips that got no reward are left out; the last trouble: {pixel.trouble}")
    rest, held_out = split(rows, config.held_out, config.seed, file)
    fitted_on, watched = split(rest, config.watched, config.seed, file)  # the best is not chosen by what is reported
    check_rewards([row.reward for _, row in fitted_on], file)
    fitted = fit(config, surrogate, teacher, observed.latents, fitted_on, watched)
    figures: dict[str, Any] = {
        "held_out": figures_of(surrogate, observed.latents, held_out, config.batch),
        "clips": len(fitted_on),
        "watched": len(watched),
        **fitted._asdict(),
        "scoring_seconds": observed.seconds,
    }
    surrogate.save(out, teacher, plain(figures))  # before what may still fail
    climb = climb_of(config, surrogate, observed.latents, held_out)
    if climb is not None:
        surrogate.save(out, teacher, plain(figures | {"climb": climb._asdict()}))
    tried = f"\n{told(climb, config.lrm)}\n" if climb is not None else ""
    print(
        f"fitted on {len(fitted_on)} clips in {fitted.seconds:.0f} s, best after {fitted.step} of {fitted.steps} "
        f"updates; scoring took {observed.seconds:.0f} s\n\n{table(figures['held_out'])}\n{tried}\n"
        f"the latent reward model is in {out}"
    )


def new_surrogate(config: DictConfig, teacher: Teacher, pixel: Any, prompt: str) -> LatentReward:
    """A surrogate that has seen nothing; prompt: any that the teacher can encode."""
    import torch

    from dollar.cli.build.rewards import noise_of
    from dollar.models.reward_models import make_reward_model
    from dollar.surrogate.latent_reward import LatentReward

    lrm: Any = OmegaConf.to_container(config.lrm, resolve=True)
    how, noised = lrm.pop("fit"), noise_of(config.lrm)
    del lrm["noise"], lrm["noised"]
    if getattr(pixel.reward, "sees_motion", False) and (lrm["backbone"], lrm["temporal"]) == ("cnn", "frames"):
        logger.warning(f"note: {pixel.name} sees motion, which lrm.temporal=frames can't; conv3d can")
    torch.manual_seed(config.seed)
    model: Any = make_reward_model(teacher, **lrm, prompt=prompt)
    return LatentReward(model, pixel, teacher.text, fit=how, noised=noised, schedule=teacher.denoiser.schedule)


def identity(config: DictConfig, teacher: Teacher, data: Any) -> dict[str, Any]:
    """What a clip's latents and reward depend on, in words that a sentence can name."""
    from dollar.models.teacher_reward_model import weights_hash

    return {
        "reward": OmegaConf.to_container(config.reward, resolve=True),
        "teacher": [teacher.fingerprint(), weights_hash(teacher.denoiser.network), teacher.guidance_scale],
        "clip size": [*teacher.clip_shape, teacher.fps],
        "data": data.identity(),
        "seed": config.seed,
    }


def split(rows: Sequence[tuple[str, Row]], fraction: float, seed: int, file: Path) -> tuple[list, list]:
    """Rows to fit on and rows held out, by clip: what a clip is held out under one caption it is under all.

    file: where what was scored is kept. ValueError where either would have less than two rewards.
    """
    import torch

    clips = sorted({row.clip for _, row in rows})
    order = torch.randperm(len(clips), generator=torch.Generator().manual_seed(seed)).tolist()
    held = {clips[i] for i in order[: round(fraction * len(clips))]}
    parts = [row for row in rows if row[1].clip not in held], [row for row in rows if row[1].clip in held]
    if min(map(len, parts)) < 2:
        raise ValueError(
            f"{len(rows)} clips have a reward that is a number, and {len(parts[1])} would be set apart; at least 2 "
            "are needed to fit on and 2 to be set apart. Raise clips or made_clips, or look at the reward by itself: "
            f"{file} keeps what it said, and clips without a number are asked about again"
        )
    return parts


def check_rewards(rewards: Sequence[float], file: Path) -> None:
    """Raise ValueError unless the rewards to fit on differ by more than they are rounded."""
    lowest, highest = min(rewards), max(rewards)
    if highest - lowest <= 1e-6 * max(abs(lowest), abs(highest)):
        raise ValueError(
            f"all {len(rewards)} rewards to fit on are {rewards[0]:g}, so there is nothing to learn. Look at the "
            f"reward by itself; {file} keeps what it said, so remove that once the reward is mended"
        )


def fit(
    config: DictConfig,
    surrogate: LatentReward,
    teacher: Teacher,
    latents: Sequence[Tensor],
    rows: Sequence[tuple[str, Row]],
    watched: Sequence[tuple[str, Row]],
) -> Fitted:
    """Fit the surrogate on rows, and leave it as it was when it followed the watched ones best."""
    from dollar.cli.build.run import optimizer
    from dollar.diffusion.draws import Draws
    from dollar.log import progress
    from dollar.training.lr_schedule import falling

    remember(surrogate, latents, rows, config.batch, config.seed)
    learner = optimizer(config, "lrm", surrogate.model)
    rate, started = config.optim.lrm.lr, time.perf_counter()
    best, best_step, kept = -math.inf, 0, weights(surrogate)
    bar = progress(config.steps, "fitting")
    for step in bar:
        for group in learner.param_groups:
            group["lr"] = rate * falling(step, config.steps, config.decay_from)
        loss = surrogate.loss(Draws(config.seed, step, range(config.batch), teacher.device), "lrm").mean()
        if not math.isfinite(float(loss.detach())):
            raise FloatingPointError(f"the loss of update {step} is {float(loss.detach())}; lower optim.lrm.lr")
        loss.backward()
        learner.step()
        learner.zero_grad(set_to_none=True)
        if (step + 1) % config.every and step + 1 < config.steps:
            continue
        surrogate.level(turns=len(surrogate.past))
        r2 = figures_of(surrogate, latents, watched, config.batch)["all"]["r2"]
        bar.set_postfix_str(f"R^2 {r2:.3f}", refresh=False)
        if r2 > best or best_step == 0:
            best, best_step, kept = r2, step + 1, weights(surrogate)
        elif step + 1 - best_step >= config.patience * config.every:
            bar.close()
            break
    surrogate.model.load_state_dict(kept)
    return Fitted(best_step, config.steps, time.perf_counter() - started)


def weights(surrogate: LatentReward) -> dict[str, Tensor]:
    """A copy of what is trained."""
    return {name: value.detach().clone() for name, value in surrogate.model.state_dict().items()}


def remember(
    surrogate: LatentReward, latents: Sequence[Tensor], rows: Sequence[tuple[str, Row]], batch: int, seed: int
) -> None:
    """Put all rows into the surrogate's memory, shuffled, as if a cycle had seen `batch` of them."""
    import torch

    from dollar.surrogate.latent_reward import Observation

    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed + 1)).tolist()
    surrogate.memory = -(-len(rows) // batch)
    for turn in range(surrogate.memory):
        part = [rows[i][1] for i in order[turn * batch : (turn + 1) * batch]]
        usable = torch.arange(batch) < len(part)
        part += part[:1] * (batch - len(part))  # the last is filled up with what doesn't count
        observation = Observation(
            turn,
            [row.prompt for row in part],
            torch.stack([latents[row.place] for row in part]),
            torch.tensor([row.reward for row in part]),
            usable,
        )
        surrogate.remember(observation)
    surrogate.bad = 0


def figures_of(
    surrogate: LatentReward, latents: Sequence[Tensor], rows: Sequence[tuple[str, Row]], batch: int
) -> dict[str, dict[str, float]]:
    """How well rows are followed, of all and of every kind, where pairs half a deviation apart count.

    r2: the share of the rewards' variance that is predicted, below 0 where their mean would predict better; error: the
    root of the mean squared error, in the reward's unit.
    """
    import torch

    from dollar.surrogate.latent_reward import agreement

    device, told = surrogate.model.out.weight.device, []
    with torch.no_grad():
        for first in range(0, len(rows), batch):
            part = [row for _, row in rows[first : first + batch]]
            x = torch.stack([latents[row.place] for row in part]).to(device)
            told.append(surrogate.predict(x, surrogate.encode_text([row.prompt for row in part])).double().cpu())
    predicted, true = torch.cat(told), torch.tensor([row.reward for _, row in rows], dtype=torch.float64)
    kinds, found = [kind for kind, _ in rows], {}
    for name in ("all", *dict.fromkeys(kinds)):
        which = torch.tensor([name in ("all", kind) for kind in kinds])
        p, r = predicted[which], true[which]
        error, variance = float(((r - p) ** 2).mean()), float(r.var(correction=0))
        r2 = 1 - error / variance if variance > 0 else math.nan
        agreed = agreement(p, r, 0.5 * surrogate.statistics.sd)._asdict()
        found[name] = {"clips": len(r), "r2": r2, "error": math.sqrt(error), **agreed}
    return found


def climb_of(
    config: DictConfig, surrogate: LatentReward, latents: Sequence[Tensor], rows: Sequence[tuple[str, Row]]
) -> Climb | None:
    """What a step up the gradient brings to held-out clips, made ones if there are any; None where `climb` is 0."""
    import torch

    from dollar.diffusion.draws import Draws
    from dollar.surrogate.observations import MISMATCHED, REAL

    made = [row for kind, row in rows if kind not in (REAL, MISMATCHED)]  # which a student's clips are like
    rows_asked = made or [row for _, row in rows]
    count = min(config.climb, len(rows_asked))
    if count == 0:
        return None
    chosen = [rows_asked[i * len(rows_asked) // count] for i in range(count)]  # of all step counts alike
    draws = Draws(config.seed, 0, range(count), surrogate.model.out.weight.device)
    x = torch.stack([latents[row.place] for row in chosen]).to(draws.device)
    known = torch.tensor([row.reward for row in chosen])
    return surrogate.climb(x, [row.prompt for row in chosen], draws, known)


def told(climb: Climb, lrm: DictConfig) -> str:
    """A climb as a sentence, with advice where little of it is true."""
    from dollar.cli.build.rewards import noise_of
    from dollar.surrogate.latent_reward import STEP

    if climb.clips == 0:
        return "no held-out clip got a reward after a step up its gradient, so what that is worth isn't known"
    text = (
        f"a step of {STEP:.0%} up its gradient, on {climb.clips} held-out clips: the predicted reward rises by "
        f"{climb.predicted:.3g}, the true one by {climb.true:.3g} ± {climb.true_se:.2g}"
    )
    if climb.true > LITTLE * max(climb.predicted, 0.0):
        return text
    ways = ["lrm.noised=true"] * (noise_of(lrm) is None) + ["lrm.backbone=teacher"] * (lrm.backbone != "teacher")
    return f"{text}; little of what it promises is true" + (f", try {' or '.join(ways)}" if ways else "")


def table(figures: dict[str, dict[str, float]]) -> str:
    """The held-out figures, a kind a line."""
    columns = {
        "clips": "clips",
        "r2": "R^2",
        "error": "error",
        "correlation": "Pearson",
        "rank_correlation": "Spearman",
    }
    columns |= {"pairwise": "pairs told"}
    lines = ["held out".ljust(12) + "".join(title.rjust(11) for title in columns.values())]
    for kind, row in figures.items():
        cells = [f"{row[key]}" if key == "clips" else f"{row[key]:.3g}" for key in columns]
        lines.append(kind.ljust(12) + "".join(cell.rjust(11) for cell in cells))
    return "\n".join(lines)


def plain(value: Any) -> Any:
    """The same with null for what is not a number, since JSON knows no nan."""
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
