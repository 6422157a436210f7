"""Stored embeddings of prompts without a clip: the empty and the negative one, which guidance needs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dollar.data.shard_format import Text
from dollar.media import atomically

NULLS = "nulls.safetensors"


def write_nulls(folder: str | Path, prompts: Mapping[str, tuple[Tensor, Tensor, Tensor | None]]) -> None:
    """nulls.safetensors: prompt -> embeddings [L, D], mask [L] and pooled [P] or None, of prompts without a clip."""
    tensors, names = {}, {}
    for i, (prompt, text) in enumerate(prompts.items()):
        names[str(i)] = prompt
        for field, tensor in zip(Text._fields, text, strict=True):
            if tensor is not None:
                tensors[f"{i}/{field}"] = tensor.detach().cpu().contiguous().clone()
    with atomically(Path(folder) / NULLS) as temporary:
        save_file(tensors, temporary, metadata=names)


def read_nulls(path: Path) -> dict[str, Text]:
    """What `write_nulls` wrote into this file, none where there is no file."""
    if not path.is_file():
        return {}
    try:
        with safe_open(path, "pt") as file:
            there, names = file.keys(), file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in there}
        return {
            prompt: Text(*(tensors.get(f"{i}/{field}") for field in Text._fields))  # type: ignore[arg-type]
            for i, prompt in names.items()
        }
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}); remove it and run launch/preprocess.py again") from error
