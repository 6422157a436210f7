"""A reward's weights: where they are, reading them, and comparing them with the network that they are for."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dollar.models.pipeline import HUB_ID, offline

SUFFIXES = (".pt", ".pth", ".bin", ".safetensors")  # what ends so is a file, never a hub id
PREFIX = "module."  # what a parallel wrapper leaves before every name


def locate(
    place: str | Path, key: str, patterns: Sequence[str], holds: str, fetch: bool = True, file: str | None = None
) -> Path:
    """A local folder or file, or the folder that a hub id was fetched to; ValueError says what is not there.

    key: the setting that names the place; patterns: which of the hub's files are needed; holds: what they are, for
    a sentence; fetch: whether they may be fetched. If not, and offline, only what was fetched before is looked for.
    file: the one of the hub's files that is needed, where it is one.
    """
    path = Path(str(place)).expanduser()  # a name may look like a number
    if path.exists():
        return path
    if str(place).startswith((".", "/", "~")) or path.suffix in SUFFIXES or not HUB_ID.fullmatch(str(place)):
        raise ValueError(f"{key} is {place}, and there is no such file or folder; give {holds}, or a hub id")
    from huggingface_hub import snapshot_download

    kept = offline() or not fetch
    try:
        return Path(snapshot_download(str(place), allow_patterns=list(patterns), local_files_only=kept))
    except Exception as error:  # the hub's errors are of many kinds; what they mean for the user is one
        why = "HF_HUB_OFFLINE is set" if offline() else "nothing is, beside weights of one's own"
        way = f"and nothing may be fetched ({why})" if kept else f"and can't be fetched ({error})"
        wanted = f"{place} {file}" if file else place
        raise ValueError(
            f"{key} is {place}: there is no such folder here, it was not fetched from the hub before, {way}. Fetch it "
            f"with `hf download {wanted}` where there is a network, or set {key} to {holds}"
        ) from None


@contextmanager
def described(place: object, kind: str) -> Iterator[None]:
    """Build a network by the settings at `place`; numbers that don't fit each other all raise one ValueError."""
    try:
        yield
    except Exception as error:
        why = " ".join(str(error).split())[:200]
        raise ValueError(
            f"{place} describes no {kind} that can be built ({why}); reward.path needs what was published with its "
            "weights"
        ) from None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file, {} where there is none; ValueError where it can't be read."""
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} can't be read ({error}); copy it again from where it was made") from None


def read_tensors(path: Path, key: str = "reward.path") -> dict[str, Tensor]:
    """The named tensors of a safetensors file, or of a file of torch.save that holds tensors and nothing else.

    Those of torch.save may lie under "state_dict" and have names that begin with "module.". key: the setting that names
    its place. ValueError for a file that can't be read, or one that would have to run code.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ValueError(f"{path} can't be opened ({error.strerror or type(error).__name__}); {key} needs it") from None
    except Exception:  # broken files fail in many ways, hostile ones in one more; a library's advice is to trust them
        raise ValueError(
            f"{path} can't be read as tensors and nothing else: it is damaged, or of another kind. Copy it again from "
            f"where it was made, or name another with {key}. A file that needs code to be read is refused"
        ) from None
    named: Any = state.get("state_dict", state) if isinstance(state, dict) else {}
    tensors = {str(name): value for name, value in named.items() if isinstance(value, Tensor)}
    if not tensors:
        raise ValueError(f"{path} holds no named tensors; give the file of weights itself by {key}")
    return {name.removeprefix(PREFIX): value for name, value in tensors.items()}


def check_names(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor], path: Path, what: str) -> None:
    """ValueError that names the first differences unless the tensors given have the names and shapes of the wanted."""
    faults = [f"{name} is missing" for name in wanted if name not in given]
    faults += [f"{name} is unknown" for name in given if name not in wanted]
    faults += [
        f"{name} is {list(given[name].shape)} in place of {list(wanted[name].shape)}"
        for name in wanted
        if name in given and given[name].shape != wanted[name].shape
    ]
    if faults:
        more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise ValueError(f"{path} doesn't hold the weights of {what}: {'; '.join(faults[:3])}{more}")


def fill(network: nn.Module, state: Mapping[str, Tensor], path: Path, what: str) -> nn.Module:
    """The network with these weights in float32, in eval mode and frozen; ValueError as check_names."""
    check_names(network.state_dict(), state, path, what)
    network.load_state_dict({name: value.float() for name, value in state.items()}, assign=True)
    return network.eval().requires_grad_(False)


def transformers_class(name: str) -> Any:
    """A class of transformers by its name; imported here, because that takes seconds."""
    return getattr(importlib.import_module("transformers"), name)
