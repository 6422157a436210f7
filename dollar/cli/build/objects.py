"""Objects of nodes with a `_target_`, whose texts stay as they are."""

from __future__ import annotations

from typing import Any

import hydra.utils
from omegaconf import OmegaConf

from dollar.cli.written import escaped


def instantiate(node: Any, **given: Any) -> Any:
    """What hydra makes of a node; a place with ${ in its name, which hydra would take for another key's, included."""
    plain = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
    if "${" in str(plain):  # hydra resolves it once, and whoever reads what is then made reads it once more
        node, given = OmegaConf.create(as_text(as_text(plain))), {"_convert_": "all", **given}
    return hydra.utils.instantiate(node, **given)


def as_text(plain: Any) -> Any:
    """Plain values as OmegaConf has to hold them to give them back, without interpolations."""
    if isinstance(plain, dict):
        return {key: as_text(value) for key, value in plain.items()}
    if isinstance(plain, list):
        return [as_text(value) for value in plain]
    return escaped(plain) if isinstance(plain, str) else plain
