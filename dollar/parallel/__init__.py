"""The only room that touches torch.distributed: who we are among the processes, sharding, checkpoints, locks.

The names below are loaded when they are first used, since sharding takes a second to import and a lock needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dollar.parallel.lock import Lock
    from dollar.parallel.shard import fill_teacher, own, parallelize, trainable_copy, whole
    from dollar.parallel.world import World, finish, peak_memory, start

_FILES = {
    "lock": ("Lock",),
    "shard": ("fill_teacher", "own", "parallelize", "trainable_copy", "whole"),
    "world": ("World", "finish", "peak_memory", "start"),
}
__all__ = [
    "Lock",
    "World",
    "fill_teacher",
    "finish",
    "own",
    "parallelize",
    "peak_memory",
    "start",
    "trainable_copy",
    "whole",
]


def __getattr__(name: str) -> Any:
    file = next((file for file, names in _FILES.items() if name in names), None)
    if file is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{file}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
