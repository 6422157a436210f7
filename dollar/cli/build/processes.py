"""From conf/parallel to the processes and the device of a command."""

from __future__ import annotations

from typing import TYPE_CHECKING

from omegaconf import DictConfig

from dollar.log import logger

if TYPE_CHECKING:
    from dollar.parallel.world import World


def join(config: DictConfig) -> World:
    """Join the processes of a command, and say where its networks' dtypes are slow on their device."""
    from dollar.parallel.world import multiplies_bfloat16, start

    world, parallel = start(config.parallel.device, config.parallel.timeout_minutes), config.parallel
    narrow = [f"parallel.{key}" for key in ("dtype", "teacher_dtype") if parallel.get(key) == "bfloat16"]
    if narrow and world.is_main and not multiplies_bfloat16(world.device):
        logger.warning(
            f"note: {' and '.join(narrow)} {'are' if len(narrow) > 1 else 'is'} bfloat16, for which this processor has "
            "no instructions, so that it takes many times as long; float32 is faster here"
        )
    return world
