"""Checkpoints that are whole or not there: safetensors and JSON, written aside, verified by a manifest.

<folder>/step-00000120/state.safetensors   every tensor, unsharded
<folder>/step-00000120/state.json          everything else
<folder>/step-00000120/manifest.json       size and hash of both
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import load_file, save_file
from torch import Tensor

from dollar.contents import sha256_of
from dollar.parallel.shard import whole
from dollar.parallel.world import World
from dollar.storage import FAILED, explained

DAMAGE = (errno.ENOENT, errno.EIO)  # a file that isn't there, or a part of the disk that is broken
TENSORS, PLAIN, MANIFEST = "state.safetensors", "state.json", "manifest.json"


class State(NamedTuple):
    """A checkpoint's content: tensors by name (on the CPU) and plain values."""

    tensors: dict[str, Tensor]
    plain: dict[str, Any]


def save(
    folder: Path, step: int, tensors: Mapping[str, Tensor], plain: Mapping[str, Any], world: World, keep: int = 2
) -> None:
    """Write the state of this step and then drop all but the `keep` newest; every process must call it.

    A crash at any point leaves the older checkpoints as they were, and never a half-written one under its final name.
    """
    gathered = {}
    for name, tensor in tensors.items():
        full = whole(tensor.detach())
        if world.is_main:
            gathered[name] = full.cpu().contiguous().clone()
        del full
    if world.is_main:
        _write(folder, step, gathered, dict(plain))
        _prune(folder, step, keep)
    world.barrier()


def _write(folder: Path, step: int, tensors: dict[str, Tensor], plain: dict[str, Any]) -> None:
    final = folder / f"step-{step:08d}"
    aside = folder / f"step-{step:08d}.tmp"
    needed = sum(t.numel() * t.element_size() for t in tensors.values())
    with explained(f"the checkpoint of step {step}", folder, needed, "The older checkpoints are untouched"):
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        try:
            save_file(tensors, aside / TENSORS)
            (aside / PLAIN).write_text(json.dumps(plain))
            manifest = {name: _fingerprint(aside / name) for name in (TENSORS, PLAIN)}
            (aside / MANIFEST).write_text(json.dumps(manifest))
            for name in (TENSORS, PLAIN, MANIFEST, "."):
                _sync(aside / name)
        except FAILED:
            shutil.rmtree(aside, ignore_errors=True)
            raise
        shutil.rmtree(final, ignore_errors=True)
        os.replace(aside, final)
        _sync(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _fingerprint(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": sha256_of(path)}


def _prune(folder: Path, step: int, keep: int) -> None:
    """Keep this step and the `keep` - 1 before it.

    Later ones are what a run left behind when it went on from an older checkpoint because they were damaged.
    """
    this = folder / f"step-{step:08d}"
    earlier = [p for p in _steps(folder) if p.name < this.name]
    later = [p for p in _steps(folder) if p.name > this.name]
    for old in [*earlier[: max(0, len(earlier) - keep + 1)], *later]:
        try:
            shutil.rmtree(old)
        except OSError as error:
            warnings.warn(f"the old checkpoint {old} could not be removed: {error}", stacklevel=2)


def _steps(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("step-*") if p.is_dir() and p.suffix != ".tmp")


def fault(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint folder, or None.

    OSError where the system doesn't let it be read, which says nothing of what it holds and may pass.
    """
    try:
        manifest = dict(json.loads((checkpoint / MANIFEST).read_text()))
        for name in (TENSORS, PLAIN):
            if not (checkpoint / name).is_file():
                return f"{name} is missing"
            if _fingerprint(checkpoint / name) != manifest.get(name):
                return f"{name} is not what was written (size or hash differ)"
    except OSError as error:
        if error.errno not in DAMAGE:
            raise OSError(
                f"the checkpoint {checkpoint} can't be read now ({error.strerror or error}). It is left as it is; "
                "make it readable, and start the same command again"
            ) from error
        return f"it can't be read ({error})"
    except (ValueError, TypeError) as error:
        return f"its manifest can't be read ({error})"
    return None


def newest(folder: Path) -> Path | None:
    """The newest whole checkpoint below a folder, None if there is none at all.

    Damaged ones are named in a warning and passed over; ValueError when all are damaged.
    """
    troubles = []
    for checkpoint in reversed(_steps(folder)):
        trouble = fault(checkpoint)
        if trouble is None:
            return checkpoint
        troubles.append(f"{checkpoint.name}: {trouble}")
        warnings.warn(f"the checkpoint {checkpoint} is damaged: {trouble}. An older one is looked for", stacklevel=2)
    if troubles:
        raise ValueError(
            f"every checkpoint in {folder} is damaged ({'; '.join(troubles)}). Remove the folder to start anew"
        )
    return None


def load(checkpoint: Path) -> State:
    """Read a checkpoint; ValueError if it is damaged. Nothing is unpickled."""
    trouble = fault(checkpoint)
    if trouble is not None:
        raise ValueError(f"the checkpoint {checkpoint} is damaged: {trouble}. Name an older one")
    return State(load_file(checkpoint / TENSORS), json.loads((checkpoint / PLAIN).read_text()))
