"""From conf/parallel to the processes and the device of a command."""

from __future__ import annotations

from typing import TYPE_CHECKING

from omegaconf import DictConfig

from dollar.log import logger

if TYPE_CHECKING:
    from dollar.parallel.world import World


def join(config: DictConfig, *further: str) -> World:
    """Join the processes of a command, and say where its dtypes are slow on their device.

    further: keys of dtypes that it computes in, beside those of parallel.
    """
    from dollar.parallel.world import multiplies_bfloat16, start

    world, parallel = start(config.parallel.device, config.parallel.timeout_minutes), config.parallel
    keys = {f"parallel.{key}": parallel.get(key) for key in ("dtype", "teacher_dtype")}
    narrow = [key for key, dtype in (keys | {key: config[key] for key in further}).items() if dtype == "bfloat16"]
    if narrow and world.is_main and not multiplies_bfloat16(world.device):
        logger.warning(
            f"note: bfloat16 ({' and '.join(narrow)}) has no instructions on this processor, and takes many times as "
            "long as float32 there; float32 is the default"
        )
    return world
