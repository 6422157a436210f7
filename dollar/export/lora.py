"""The LoRA of an exported student: the one that it was trained as, or one that is extracted of the changed weights."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from dollar.export import pipeline as form
from dollar.log import logger, progress
from dollar.models.lora import FILE, Extracted, extract
from dollar.models.original_names import by_original_names
from dollar.models.pipeline import Pipeline, diffusers_class
from dollar.models.teacher import Family, Teacher

ALONG_LORA = 1e-3  # the share by which latents may differ: diffusers adds B (A x) to W x, and we x by W + B A
NAMES = ("diffusers", "original")
GOALS = (0.9, 0.99)  # shares of the change for which the ranks that keep them are named


class Described(NamedTuple):
    """A LoRA in words: a sentence for the model card, what it keeps in a few words, and what a higher rank would."""

    sentence: str
    kept: str
    hint: str = ""


class StudentLora(NamedTuple):
    """The factors by diffusers' names, in the dtype in which they are stored; extracted: whether some is left out."""

    tensors: Mapping[str, Tensor]
    described: Described
    extracted: bool


def lora_of(
    own: Mapping[str, Tensor], teacher: Teacher, network: nn.Module, rank: int | None, dtype: torch.dtype
) -> StudentLora | None:
    """The student's own LoRA, or else one of this rank, if any; ValueError where none can be extracted."""
    if own:
        tensors = {name: factor.to(dtype).contiguous() for name, factor in own.items()}
        sentence = "what was trained, alone; the transformer has it merged"
        return StudentLora(tensors, Described(sentence, "all that was trained"), extracted=False)
    if rank is None:
        return None
    extracted = extract_lora(teacher, network, rank, dtype)
    words = described(extracted)
    logger.warning(f"note: a LoRA of {words.kept}; {words.hint}")  # before anything is compared or written
    logger.info(words.sentence)
    return StudentLora(extracted.tensors, words, extracted=True)


def write_lora(folder: Path, lora: StudentLora, family: Family, network: nn.Module, names: str) -> None:
    """Write the factors by diffusers' names, or by the original ones, which must be the family's."""
    if names == "diffusers":
        kind = diffusers_class(family.pipeline_class)
        kind.save_lora_weights(folder, transformer_lora_layers=dict(lora.tensors), weight_name=FILE)
        return
    transformer: Any = network.transformer
    outputs = {n: m.out_features for n, m in transformer.named_modules() if isinstance(m, nn.Linear)}
    assert family.original_layers is not None
    renamed = by_original_names(lora.tensors, family.original_layers, outputs)
    save_file({name: factor.contiguous() for name, factor in renamed.items()}, folder / FILE, {"format": "pt"})


def check_names(family: type[Family], names: str, any_lora: bool) -> None:
    """Raise ValueError for names that a family's LoRAs don't have."""
    if names == "diffusers":
        return
    if not any_lora:
        raise ValueError(f"lora_names is {names}, but no LoRA is written; give its rank, as lora=64")
    if getattr(family, "original_layers", None) is None:
        raise ValueError(
            f"lora_names is {names}, but LoRAs of this family ({family.__name__}) go by diffusers' names everywhere; "
            "use lora_names=diffusers"
        )


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


def described(extracted: Extracted) -> Described:
    """What a LoRA keeps and leaves of what training changed, by the Frobenius norm, in words."""
    left = extracted.left_out
    kept = f"rank {extracted.rank}, which keeps {1 - left:.1%} of what training changed and leaves {left:.1%} out"
    hints = [hint(extracted, goal) for goal in GOALS]
    return Described(
        f"{coverage(extracted)}; of all that training changed it leaves {left:.1%} out", kept, "; ".join(hints)
    )


def hint(extracted: Extracted, goal: float) -> str:
    """Which rank would keep this share of what training changed, in words."""
    if (rank := extracted.rank_for(1 - goal)) is not None:
        return f"rank {rank} would keep {goal:.0%}"
    rank = extracted.rank_for(1 - goal, covered=True)
    return f"rank {rank} would keep {goal:.0%} of what changed in the layers that a LoRA covers, and no rank of all"


def coverage(extracted: Extracted) -> str:
    """What a LoRA covers and leaves, layer by layer, in words."""
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


# Whether diffusers makes the same clips of the teacher with the LoRA


class Base(NamedTuple):
    """Where the plain teacher is read from as a pipeline."""

    pipeline: Pipeline
    classes: Mapping[str, str]

    def load(self) -> Any:
        """The pipeline of diffusers in float32, with components that have places of their own from there."""
        parts: dict[str, Any] = {}
        for name in self.pipeline.parts:
            if name.startswith("tokenizer"):
                kind = diffusers_class(self.classes[name])
                parts[name] = kind.from_pretrained(self.pipeline.place(name), local_files_only=True)
            elif name != "scheduler":  # the student's own comes in its place
                parts[name] = self.pipeline.read(name, self.classes[name])
        kind = diffusers_class("DiffusionPipeline")
        return kind.from_pretrained(self.pipeline.folder, dtype=torch.float32, local_files_only=True, **parts)


def verify_lora(
    folder: Path,
    base: Base,
    expected: form.Expected,
    student: Mapping[int, form.Rendered],
    device: torch.device,
    switches: Sequence[str] = (),
) -> Iterator[str]:
    """Load the teacher and the LoRA in the folder as anyone does, and compare its clips with ours by step count.

    expected: our clips of the teacher with the LoRA merged, which diffusers must make; student: the student's, from
    which a LoRA that leaves something out differs: each line says by how much. ValueError names a clip that differs
    from what the LoRA should give.
    """
    pipe = base.load()
    scheduler = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())["_class_name"]
    pipe.scheduler = diffusers_class(scheduler).from_pretrained(folder, subfolder="scheduler")
    try:
        pipe.load_lora_weights(folder, weight_name=FILE)
    except (ValueError, RuntimeError, KeyError) as error:
        raise ValueError(
            f"diffusers can't read the LoRA ({str(error).splitlines()[0]}). Nothing was written; verify=false writes "
            "it all the same"
        ) from None
    pipe.set_progress_bar_config(disable=True)
    for switch in switches:
        getattr(pipe.vae, switch)()
    pipe = pipe.to(device)
    form.settle(*(part for part in pipe.components.values() if isinstance(part, nn.Module)))
    for steps, ours in expected.clips.items():
        made = form.by_pipeline(pipe, expected.calls[steps], expected.prompt, expected.seed)
        found = form.Difference.between(ours, made)
        if not found.share <= expected.most:
            raise ValueError(
                f"the teacher with the LoRA makes another clip in {steps} steps by diffusers than by us: latents "
                f"differ by {found.share:.2g} of their size, and {expected.most:g} is allowed. Nothing was written; "
                "verify=false writes it all the same"
            )
        yield f"{steps} steps by the teacher with the LoRA: " + difference(
            form.Difference.between(student[steps], made)
        )


def difference(found: form.Difference) -> str:
    """How far a LoRA's clip is from the student's, in words."""
    return f"the clip differs from the student's by {found.share:.2g} of the latents' size, pixels by {found.pixel}"
