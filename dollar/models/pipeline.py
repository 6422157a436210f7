"""A diffusers pipeline on disk: where its components are, their configs, and reading them."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

INDEX = "model_index.json"
EMBEDDED = "the embedded one is dollar/assets/shapes (teacher=shapes)"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
SINGLE = ("transformer", "vae")  # components that may be one file
AT_ROOT = ["config.json", "*_config.json", "model*.safetensors*", "diffusion_pytorch_model*", "tokenizer*", "*.model"]
VOCABULARIES = ("tokenizer.json", "spiece.model", "tokenizer.model", "vocab.json", "vocab.txt")
CONFIGS = {"tokenizer": "tokenizer_config.json", "scheduler": "scheduler_config.json"}  # all else: config.json


def offline() -> bool:
    """Whether nothing may be fetched (HF_HUB_OFFLINE)."""
    return os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on")


def find(
    place: str | Path, what: str = "teacher", patterns: list[str] | None = None, key: str = "teacher.folder"
) -> Path:
    """A local folder or file, or the folder that a hub id was fetched to; ValueError says what is not there.

    key: that the place is given by. patterns: which of the hub's files are needed. Offline only what was fetched before
    is looked for.
    """
    path = Path(place).expanduser()
    if path.exists():
        return path
    local = str(place).startswith((".", "/", "~")) or path.suffix == ".safetensors"
    if local or not HUB_ID.fullmatch(str(place)):
        example = f" such as THUDM/CogVideoX-2b; {EMBEDDED}" if key == "teacher.folder" else ""
        thing, kind = ("folder", "FOLDER") if example else ("file or folder", "PLACE")
        raise ValueError(f"no {what} at {place}: the {thing} doesn't exist. Give {key}={kind}, or a hub id{example}")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(place), allow_patterns=patterns, local_files_only=offline()))
    except Exception as error:  # the hub's errors are of many kinds; what they mean for the user is one
        way = "and nothing may be fetched (HF_HUB_OFFLINE is set)" if offline() else f"and can't be fetched ({error})"
        raise ValueError(
            f"no {what} at {place}: there is no such folder here, it was not fetched from the hub before, {way}. "
            f"Fetch it with `hf download` where there is a network, or give {key}=FOLDER"
        ) from None


def diffusers_class(name: str) -> Any:
    """A class of diffusers or transformers by its name; imported here, because that takes seconds."""
    library, _, cls = name.rpartition(".")
    return getattr(importlib.import_module(library or "diffusers"), cls)


@dataclass(frozen=True)
class Weights:
    """Named tensors in safetensors files, read one by one or in rows; nothing is held."""

    files: Mapping[str, Path]

    @staticmethod
    def of(paths: Sequence[Path]) -> Weights:
        """All tensors of these files."""
        files: dict[str, Path] = {}
        for path in paths:
            try:
                with safe_open(path, "pt") as opened:
                    files |= dict.fromkeys(opened.keys(), path)
            except Exception as error:
                raise ValueError(f"{path} can't be read ({error}); copy it again from where it was made") from None
        return Weights(files)

    def read(self, name: str, rows: slice | None = None) -> Tensor:
        """A tensor, or those rows of its first dimension."""
        with safe_open(self.files[name], "pt") as opened:
            return opened.get_tensor(name) if rows is None else opened.get_slice(name)[rows]


class Pipeline:
    """A pipeline's folder, with components that may have places of their own.

    parts: component -> a folder, a hub id or one safetensors file that it is read from instead; key: that the folder is
    given by.
    """

    def __init__(
        self,
        folder: str | Path,
        names: Sequence[str],
        parts: Mapping[str, str | Path | None] | None = None,
        key: str = "teacher.folder",
    ) -> None:
        self.names = tuple(names)
        given = {name: place for name, place in (parts or {}).items() if place is not None}
        fetched = [f"{name}/*" for name in self.names if name not in given]
        self.folder = find(folder, patterns=[INDEX, "README.md", *fetched], key=key)
        own = {n: (f"teacher.parts.{n}", [f"{n}/*", *AT_ROOT]) for n in given}
        self.parts = {n: find(place, *own[n], key=own[n][0]) for n, place in given.items()}
        for name, place in self.parts.items():
            if place.is_file() and name not in SINGLE:
                raise ValueError(
                    f"teacher.parts.{name} is the file {place}; only {' and '.join(SINGLE)} may be single files, give "
                    "a folder"
                )
        self._check()

    def place(self, name: str) -> Path:
        """The folder of a component, or the single file that it was given as."""
        own = self.parts.get(name)
        if own is None:
            return self.folder / name
        return own / name if (own / name).is_dir() else own

    def config(self, name: str) -> dict[str, Any]:
        """A component's config; that of a single file stands in the pipeline's folder."""
        place = self.place(name)
        place = self.folder / name if place.is_file() else place
        return _json(place / CONFIGS.get(name.removesuffix("_2"), "config.json"))

    @property
    def index(self) -> dict[str, Any]:
        """model_index.json."""
        return _json(self.folder / INDEX)

    def weights(self, name: str) -> Weights:
        """A component's tensors by name."""
        place = self.place(name)
        return Weights.of([place] if place.is_file() else sorted(place.glob("*.safetensors")))

    def read(self, name: str, cls: str, dtype: torch.dtype = torch.float32) -> Any:
        """A component with its weights, from a folder or a single file, on the CPU."""
        place, kind = self.place(name), diffusers_class(cls)
        if place.is_file():
            return self._read_single(name, place, kind, dtype)
        return kind.from_pretrained(place, torch_dtype=dtype, local_files_only=True)

    def empty(self, name: str, cls: str) -> Any:
        """A component of diffusers without its weights: parameters on the meta device, buffers as they should be.

        None where its file has other names for the tensors, which could not be filled in one by one.
        """
        network = empty(cls, self.config(name))
        named = {n for n, _ in network.named_parameters()}
        return network if named <= self.weights(name).files.keys() else None

    def _read_single(self, name: str, place: Path, kind: Any, dtype: torch.dtype) -> Any:
        model, held = empty(kind.__name__, self.config(name)), self.weights(name)
        if model.state_dict().keys() == held.files.keys():  # diffusers' own names
            model.load_state_dict({n: held.read(n).to(dtype) for n in held.files}, assign=True)
            return model
        if hasattr(kind, "from_single_file"):
            with contextlib.suppress(Exception):  # where it doesn't know the names it fails in many ways
                return kind.from_single_file(str(place), config=str(self.folder), subfolder=name, torch_dtype=dtype)
        raise ValueError(
            f"{place} doesn't hold the tensors of this {kind.__name__}, neither by diffusers' names nor by others that "
            "it knows; give a folder or a file that save_pretrained wrote"
        )

    def _check(self) -> None:
        if not (self.folder / INDEX).is_file():
            raise ValueError(f"{self.folder} is not a diffusers pipeline: it has no {INDEX}")
        absent = [lack for lack in (self._lack(name) for name in self.names) if lack]
        if absent:
            raise ValueError(
                f"the teacher at {self.folder} lacks {', '.join(absent)}; copy what is missing from where it was made"
            )

    def _lack(self, name: str) -> str | None:
        """What is missing of one component, or None."""
        place = self.place(name)
        if place.is_file():
            folder, config = self.folder / name, CONFIGS.get(name, "config.json")
            return None if (folder / config).is_file() else f"{name}/{config}, which its single file needs"
        return lack(place, name)


def lack(place: Path, name: str) -> str | None:
    """What a component's folder lacks, or None."""
    kind = name.removesuffix("_2")
    config = CONFIGS.get(kind, "config.json")
    if not place.is_dir():
        return name
    if not (place / config).is_file():
        return f"{name}/{config}"
    index = next(place.glob("*.safetensors.index.json"), None)
    if index is not None:
        named = sorted(set(_json(index)["weight_map"].values()))
        missing = [file for file in named if not (place / file).is_file()]
        return f"{name}'s {', '.join(missing)}" if missing else None
    if kind == "tokenizer" and not any((place / file).is_file() for file in VOCABULARIES):
        return f"{name}'s vocabulary ({' or '.join(VOCABULARIES[:3])})"
    weights = kind in CONFIGS or any(place.glob("*.safetensors"))
    return None if weights else f"{name}'s weights (*.safetensors)"


def empty(cls: str, config: Mapping[str, Any]) -> nn.Module:
    """A network of diffusers from its config, its parameters on the meta device; buffers are real."""
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        return diffusers_class(cls).from_config(dict(config))


def _json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} can't be read ({error}); copy it again from where it was made") from None
