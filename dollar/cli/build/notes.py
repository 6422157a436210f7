"""Settings that are allowed and yet do something else than they seem to: each a sentence for the user."""

from __future__ import annotations

from omegaconf import DictConfig

from dollar.losses.objective import Objective
from dollar.methods.surrogate_fit import scored_clips


def notes_of(config: DictConfig, objective: Objective, processes: int) -> list[str]:
    """What a person should know before the run begins; empty where settings are as they seem."""
    lrm, cycles, found = config.lrm, config.cycles, _unread(config)
    if not objective.needs.surrogate or lrm.mode == "frozen":
        return [*found, *_apart(config, objective, 0)]
    clips = scored_clips(lrm.clips, config.batch, processes)
    if clips != lrm.clips:
        found.append(
            f"lrm.clips is {lrm.clips}, and {clips} are scored a cycle: as many by each of {processes} process"
            f"{'es' if processes > 1 else ''}, and at most the batch of {config.batch}"
        )
    warm = -(-lrm.warmup // lrm.updates) if lrm.mode == "online" else 0  # cycles whose fits come before
    joint = [name for name, term in objective.sample_terms.items() if term.needs.surrogate]
    if joint and warm >= cycles:
        found.append(
            f"{joint[0]} follows the latent reward model after {lrm.warmup} updates of it (lrm.warmup), which are "
            f"{warm} cycles, and cycles={cycles}, so it won't move the student; lower lrm.warmup or raise cycles"
        )
    return [*found, *_apart(config, objective, max(warm - 1, 0))]


def _unread(config: DictConfig) -> list[str]:
    """Of prompts for validations that don't come."""
    v = config.validation
    unread = v.prompts_file is not None and v.every == 0
    return ["validation.prompts_file is given, and with validation.every=0 nothing samples it"] if unread else []


def _apart(config: DictConfig, objective: Objective, warm: int) -> list[str]:
    """Of terms that gather more cycles for their update than the run has; warm: before the latent reward model is."""
    found = []
    for name, term in objective.apart.items():
        left = config.cycles - max(config.fake_warmup, warm if term.needs.surrogate else 0)
        if term.every > left:
            found.append(
                f"{name} gathers {term.every} cycles for an update of its own ({name}.accumulate), and {max(left, 0)} "
                f"of cycles={config.cycles} are left for it, so it won't move the student; lower {name}.accumulate or "
                "raise cycles"
            )
    return found
