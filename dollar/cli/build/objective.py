"""From configuration to the objective, and whether the run has what its terms need."""

from __future__ import annotations

from omegaconf import DictConfig, OmegaConf

from dollar.cli.build.data import check_data
from dollar.cli.build.objects import instantiate
from dollar.cli.build.rewards import check_latent_reward, check_noise
from dollar.data.preferred import check_pairs
from dollar.losses.objective import Objective
from dollar.losses.term import Term


def terms_of(config: DictConfig) -> dict[str, Term]:
    """The terms of the objective whose weight isn't 0."""
    terms = {name: instantiate(node, _convert_="all") for name, node in config.terms.items() if node is not None}
    if below := [name for name, term in terms.items() if term.beta < 0]:
        raise ValueError(f"the weight of {below[0]} is {terms[below[0]].beta}; it is 0 (off) or positive")
    return {name: term for name, term in terms.items() if term.beta > 0}


def objective_of(config: DictConfig) -> Objective:
    """Eq. 16's terms; ValueError names a key at fault."""
    objective = Objective(terms_of(config), config.balance)
    needing = {name: term.needs for name, term in objective.terms.items()}
    if config.batch < 2 and (alone := [name for name, needs in needing.items() if needs.reward == "numbers"]):
        raise ValueError(
            f"batch is {config.batch}, but the loss's {alone[0]} compares the rewards of a batch; give at least 2"
        )
    check_latent_reward(config, objective)
    noised = config.student.input == "noised_data"
    if not config.data.get("latents", True) and (objective.needs.clips or noised):
        wanting = [f"beta_{name}" for name, needs in needing.items() if needs.clips]
        given = [*(f"{key}={config.get(key)}" for key in wanting), f"student.input={config.student.input}"]
        instead = [*(f"{key}=0" for key in wanting), *(["student.input=simulate"] if noised else [])]
        raise ValueError(
            f"{' and '.join(given)}, but this data has prompts alone; set {' and '.join(instead)}, or give clips with "
            "data=clips or data=latents"
        )
    check_data(config)
    return objective


def check_supplied(config: DictConfig, objective: Objective) -> None:
    """Raise ValueError where a term needs a reward or a fitted latent reward model, which only the user can give."""
    if config.data.get("pairs", False) and not OmegaConf.is_missing(config.data, "path"):
        check_pairs(config.data.path, config.batch)
    there = config.reward.get("_target_") is not None
    if objective.needs.surrogate and config.lrm.mode != "frozen" and not there:
        raise ValueError("beta_ft is above 0 but reward=none; name a reward with reward=NAME, or set beta_ft=0")
    if wanting := [name for name, term in objective.terms.items() if term.needs.reward and not there]:
        raise ValueError(f"the loss's {wanting[0]} needs a reward, but reward=none; name one with reward=NAME")
    if (mode := config.lrm.mode) != "online":
        if config.lrm.path is None:
            raise ValueError(
                f"lrm.mode is {mode}, but lrm.path is null; give the folder of a latent reward model, which "
                "launch/fit_reward.py writes, or runs/<run>/lrm of another run"
            )
        check_noise(config.lrm)
