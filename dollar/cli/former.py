"""Defaults that were others when a run began: the same command goes on with those."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from dollar.cli.declared import flat
from dollar.log import logger

# By key, what runs had that were begun before its default, or the key itself, was what it is now.
FORMER: dict[str, Any] = {
    "lrm.text": True,
    "lrm.targets": "clip",
    "lrm.backbone": "cnn",
    "lrm.smooth": 0.0,
    "ft.unit": "reward",
    "beta_ft": 0.5,
}


def take_former(config: DictConfig, path: Path) -> None:
    """Give the keys of FORMER what they had in the run whose settings are at `path`, where the command gives none."""
    try:
        stored: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
        before = flat(stored)
    except Exception:  # whatever is wrong with the file is reported where it is compared
        return
    given = {word.lstrip("+").partition("=")[0] for word in HydraConfig.get().overrides.task}
    taken = []
    for key, value in FORMER.items():
        if key not in given and before.get(key, value) == value and OmegaConf.select(config, key) not in (None, value):
            OmegaConf.update(config, key, value)
            taken.append(f"{key}={value}")
    if taken:
        logger.warning(f"note: this run goes on with {', '.join(taken)}, as it began; such settings are others now")
