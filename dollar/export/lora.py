"""The LoRA of an exported student: the one that it was trained as, or one that is extracted of the changed weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dollar.log import logger, progress
from dollar.models.lora import FILE, Extracted, extract
from dollar.models.pipeline import diffusers_class
from dollar.models.teacher import Teacher


def write_lora(
    folder: Path,
    lora: Mapping[str, Tensor],
    teacher: Teacher,
    network: nn.Module,
    rank: int | None,
    dtype: torch.dtype,
) -> str | None:
    """Write the student's own LoRA, or else one of this rank, if any; returns a sentence that says what it is."""
    if lora:
        kind = diffusers_class(teacher.family.pipeline_class)
        kind.save_lora_weights(folder, transformer_lora_layers=dict(lora), weight_name=FILE)
        return "what was trained, alone; the transformer has it merged"
    if rank is None:
        return None
    extracted = extract_lora(teacher, network, rank, dtype)
    extracted.save(folder, teacher.family.pipeline_class)
    sentence = coverage(extracted)
    logger.info(sentence)
    return sentence


def extract_lora(teacher: Teacher, network: nn.Module, rank: int, dtype: torch.dtype) -> Extracted:
    """The LoRA that leads from the teacher's files to the student; ValueError where these lack a tensor."""
    before: Any = teacher.pipeline.weights("transformer")
    transformer: Any = network.transformer
    if missing := [n for n, _ in transformer.named_parameters() if n not in before.files]:
        raise ValueError(
            f"the teacher's transformer at {teacher.pipeline.place('transformer')} has no tensor {missing[0]}, so the "
            "difference can't be taken; give a folder that diffusers wrote by teacher.parts.transformer=FOLDER"
        )
    blocks: Any = network.blocks
    return extract(transformer, blocks, before.read, rank, dtype, lambda n: progress(n, f"LoRA of rank {rank}"))


def coverage(extracted: Extracted) -> str:
    """What a LoRA covers and leaves, in words."""
    worst = ", ".join(f"{layer.name} {layer.residual:.3g}" for layer in extracted.layers[:3])
    text = (
        f"rank {extracted.rank} leaves {extracted.residual:.3g} of the change of {len(extracted.layers)} linear layers "
    )
    text += f"(Frobenius norm; the worst: {worst})"
    if not extracted.uncovered:
        return text
    first = ", ".join(f"{name} {norm:.3g}" for name, norm in list(extracted.uncovered.items())[:5])
    total = sum(norm**2 for norm in extracted.uncovered.values()) ** 0.5
    covered = sum(layer.changed**2 for layer in extracted.layers) ** 0.5
    return (
        f"{text}; not covered: {len(extracted.uncovered)} other tensors, whose change has the norm {total:.3g} beside "
        f"{covered:.3g} of the linear layers (the most: {first})"
    )
