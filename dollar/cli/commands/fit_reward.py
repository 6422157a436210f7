"""Fit a latent reward model to a pixel reward: `python launch/fit_reward.py reward=NAME out=FOLDER [key=value ...]`."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from dollar.cli.entry import check_folder_for


def main(config: DictConfig) -> None:
    """Score the clips that are not scored yet, fit, print how well, and write the folder."""
    from dollar.cli.build.data import check_data
    from dollar.cli.build.fitting import check
    from dollar.parallel.lock import Lock

    check(config)
    out = Path(config.out)
    check_folder_for("out", out)
    check_data(config)
    with closing(Lock(out, stays=False)):
        fit_in(config, out)


def fit_in(config: DictConfig, out: Path) -> None:
    """Fit into a folder that no other command has."""
    from dollar.cli.build.data import build_data
    from dollar.cli.build.fitting import climbs_of, fit, former_identity, identity, new_surrogate, scored, scoring_of
    from dollar.cli.build.objects import instantiate
    from dollar.cli.build.processes import join
    from dollar.cli.build.rewards import check_captions, noise_of
    from dollar.cli.build.teacher import build_teacher, quiet, with_text
    from dollar.log import logger
    from dollar.surrogate import fit as fits
    from dollar.surrogate.observations import FILE
    from dollar.surrogate.pixel_reward import PixelReward

    quiet()
    world = join(config)
    reward = instantiate(config.reward)
    teacher = with_text(config, build_teacher(config, world))
    data = build_data(config, teacher, world)
    check_captions(reward, data.captions)
    pixel = PixelReward(reward, teacher.codec)
    surrogate = new_surrogate(config, teacher, pixel, data.captions[0])  # a key at fault is refused before any scoring
    file = Path(config.observations or out) / FILE
    if config.observations is not None and not file.is_file():
        raise ValueError(f"observations is {config.observations}, but there is no {file}; leave it out")
    scoring = scoring_of(config, teacher, data, pixel, surrogate.by_frames)
    observed = scored(scoring, file, out, identity(config, teacher, data), former_identity(config, data))
    rows = scoring.wanted(observed)
    if pixel.trouble:
        logger.warning(f"note: clips that got no reward are left out; the last trouble: {pixel.trouble}")
    rest, held_out = fits.split(rows, config.held_out, config.seed, file)
    rest = fits.some(rest, config.fit_on, config.seed, file)
    # The best is not chosen by what is reported.
    fitted_on, watched = fits.split(rest, config.watched, config.seed, file)
    fits.check_rewards([row.reward for _, row in fitted_on], file)
    fits.check_measured({"watched": watched, "held-out": held_out})
    fitted = fit(config, surrogate, world, observed.latents, fitted_on, watched)
    figures: dict[str, Any] = {
        "held_out": fits.figures_of(surrogate, observed.latents, held_out, config.batch),
        "clips": len(fitted_on),
        "watched": len(watched),
        "step": fitted.step,
        "steps": fitted.steps,
        "seconds": fitted.seconds,
        "scoring_seconds": observed.seconds,
    }
    surrogate.save(out, teacher, fits.plain(figures))  # before what may still fail
    climbs, tried = climbs_of(config, surrogate, observed.latents, held_out, teacher), ""
    if climbs:
        figures |= {name: [climb._asdict() for climb in found] for name, found in climbs.items()}
        surrogate.save(out, teacher, fits.plain(figures))
        lrm = config.lrm
        tried = f"\n{fits.climb_text(climbs['climb'], noise_of(lrm) is not None, lrm.backbone, lrm.smooth)}\n"
    tell(figures, f"{fits.table(figures['held_out'])}\n{tried}", out)


def tell(figures: dict[str, Any], measured: str, out: Path) -> None:
    """Print what was fitted, how well, and where it is."""
    print(
        f"fitted on {figures['clips']} clips in {figures['seconds']:.0f} s, best after {figures['step']} of "
        f"{figures['steps']} updates; scoring took {figures['scoring_seconds']:.0f} s\n\n{measured}\n"
        f"the latent reward model is in {out}"
    )
