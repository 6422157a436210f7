"""Settings that are allowed and yet do something else than they seem to: each a sentence for the user."""

from __future__ import annotations

from omegaconf import DictConfig

from dollar.cli.build.rewards import decoder_is_fitted
from dollar.losses.objective import Objective
from dollar.losses.term import Needs
from dollar.methods.surrogate_fit import scored_clips


def notes_of(config: DictConfig, objective: Objective, processes: int) -> list[str]:
    """What a person should know before the run begins; empty where settings are as they seem."""
    lrm, found = config.lrm, _unread(config)
    clips = scored_clips(lrm.clips, config.batch, processes)
    if objective.needs.surrogate and lrm.mode != "frozen" and clips != lrm.clips:
        found.append(
            f"lrm.clips is {lrm.clips}, and {clips} are scored a cycle: as many by each of {processes} process"
            f"{'es' if processes > 1 else ''}, and at most the batch of {config.batch}"
        )
    return [*found, *_late(config, objective), *_apart(config, objective), *_compared(config, objective)]


def _warm_up(config: DictConfig, needs: Needs) -> int:
    """Cycles whose fits come before a term with these needs follows what is fitted."""
    lrm, found, looks = config.lrm, [0], needs.surrogate and config.lrm.backbone == "pixels"
    if needs.surrogate and lrm.mode == "online":
        found.append(-(-lrm.warmup // lrm.updates))
    if (needs.decoder or looks) and not decoder_is_fitted(config):
        found.append(-(-lrm.warmup // config.decoder.updates))
    return max(found)


def _late(config: DictConfig, objective: Objective) -> list[str]:
    """Of terms that would follow what is fitted after the run has ended."""
    lrm, cycles, found = config.lrm, config.cycles, []
    first = int(lrm.first and objective.needs.surrogate)  # the last of those fits is in the same cycle then
    for name, term in (objective.sample_terms | objective.rollout_terms).items():
        warm = _warm_up(config, term.needs)
        if warm == 0 or warm - first < cycles:
            continue
        what = "the latent reward model" if term.needs.surrogate else "the small decoder"
        both = " and of its small decoder" * (term.needs.surrogate and lrm.backbone == "pixels")
        found.append(
            f"{name} follows {what} after {lrm.warmup} updates of it{both} (lrm.warmup), which are {warm} cycles, and "
            f"cycles={cycles}, so it won't move the student; lower lrm.warmup or raise cycles"
        )
    return found


def _unread(config: DictConfig) -> list[str]:
    """Of prompts for validations that don't come."""
    v = config.validation
    unread = v.prompts_file is not None and v.every == 0
    return ["validation.prompts_file is given, and with validation.every=0 nothing samples it"] if unread else []


def _apart(config: DictConfig, objective: Objective) -> list[str]:
    """Of terms that gather more cycles for their update than the run has."""
    found = []
    for name, term in objective.apart.items():
        left = config.cycles - max(config.fake_warmup, _warm_up(config, term.needs) - 1)
        if term.every > left:
            found.append(
                f"{name} gathers {term.every} cycles for an update of its own ({name}.accumulate), and {max(left, 0)} "
                f"of cycles={config.cycles} are left for it, so it won't move the student; lower {name}.accumulate or "
                "raise cycles"
            )
    return found


def _compared(config: DictConfig, objective: Objective) -> list[str]:
    """Of a student of few steps whose predictions are compared with those of the teacher, which it has left."""
    if not objective.pair_terms or config.student.guided or config.preference.reference is not None:
        return []
    return [
        "the student is sampled without its teacher's guidance (student.guided=false), and is compared with the "
        "teacher; for one of few steps give preference.reference=FOLDER, the student before it was pruned"
    ]
