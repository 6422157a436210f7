"""How a teacher is put together from a diffusers folder: its settings, the checks and the reading."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from dollar.models.denoiser import Condition, Denoiser
from dollar.models.pipeline import Pipeline, diffusers_class, find, offline
from dollar.models.teacher import Family, Teacher, VideoSpec, is_empty
from dollar.models.text import TextEncoder

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class TeacherSettings:
    """The keys of conf/teacher/*.yaml, which explain them; ValueError for a value that can't be."""

    name: str
    folder: str | Path
    frames: int
    height: int
    width: int
    fps: float
    guidance_scale: float
    text_length: int
    negative_prompt: str = ""
    shift: float | None = None
    states: Mapping[str, Any] = field(default_factory=dict)
    parts: Mapping[str, str | Path | None] = field(default_factory=dict)
    lora: str | Path | None = None
    lora_scale: float = 1.0
    text: Literal["online", "stored"] = "online"
    tiling: bool = False
    slicing: bool = False
    decode_chunk: int = 1
    chunk_frames: int | None = None
    chunk_context: int = 8
    frozen_dtype: str = "float32"

    def __post_init__(self) -> None:
        for key in ("fps", "text_length", "decode_chunk", "chunk_frames", "chunk_context", "shift"):
            if (value := getattr(self, key)) is not None and value <= 0:
                raise ValueError(f"teacher.{key} is {value}; it must be positive")
        for key, known in (("text", ("online", "stored")), ("frozen_dtype", tuple(DTYPES))):
            if (given := getattr(self, key)) not in known:
                raise ValueError(f"teacher.{key} is {given!r}; use {' or '.join(known)}")


def configured_by(settings: type) -> Callable[[F], F]:
    """Mark a loader whose keyword arguments are the fields of a dataclass, so that a configuration can be checked."""

    def mark(load: F) -> F:
        vars(load)["settings"] = settings
        return load

    return mark


def assemble(
    family: type[Family],
    *,
    compute_dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    weights: bool = True,
    **settings: Any,
) -> Teacher:
    """Put a family's teacher together from a diffusers folder or hub id; ValueError says what is missing or disagrees.

    settings: those of `TeacherSettings`. weights: whether the transformer's are read; if not, its parameters are on the
    meta device, for the caller to fill in (a LoRA to be merged, or a file with names of its own, needs them all the
    same).
    """
    s = TeacherSettings(**settings)
    pipeline, adapter = configs_of(family, s)
    latent_shape = adapter.latent_shape(s.frames, s.height, s.width)
    vae = pipeline.read("vae", family.classes["vae"], DTYPES[s.frozen_dtype]).to(device)
    for wanted, switch in ((s.tiling, "enable_tiling"), (s.slicing, "enable_slicing")):
        if wanted:
            getattr(vae, switch)()
    codec = adapter.codec(vae, s.decode_chunk, s.chunk_frames, s.chunk_context)
    if s.chunk_frames is not None and codec.streams:
        raise ValueError(
            f"teacher.chunk_frames is {s.chunk_frames}, but this teacher's autoencoder goes through time by itself; "
            "leave it at null"
        )
    network = (
        adapter.network(read_transformer(adapter, pipeline, s.lora, s.lora_scale, weights)).eval().requires_grad_(False)
    )
    network = network if is_empty(network) else network.to(device)
    return Teacher(
        name=s.name,
        pipeline=pipeline,
        family=adapter,
        denoiser=Denoiser(network, adapter.schedule, adapter.prediction, compute_dtype),
        codec=codec,
        text=text_encoder(adapter, pipeline, s, device) if s.text == "online" else StoredElsewhere(),
        latent_shape=latent_shape,
        clip_shape=(s.frames, s.height, s.width),
        fps=s.fps,
        guidance_scale=s.guidance_scale,
        text_length=s.text_length,
        negative_prompt=s.negative_prompt,
        lora=None if s.lora is None else (lora_at(s.lora), s.lora_scale),
    )


def configs_of(family: type[Family], s: TeacherSettings) -> tuple[Pipeline, Family]:
    """The folder and what its configs make of the family, all checked before any weight is read."""
    if unknown := sorted({n for n, place in s.parts.items() if place is not None} - set(family.classes)):
        raise ValueError(f"teacher.parts has {', '.join(unknown)}; this teacher has {', '.join(family.classes)}")
    names = [n for n in family.classes if s.text == "online" or not n.startswith(("text_encoder", "tokenizer"))]
    pipeline = Pipeline(s.folder, names, {n: place for n, place in s.parts.items() if n in names})
    if (kind := pipeline.index.get("_class_name")) != family.pipeline_class:
        raise ValueError(
            f"{pipeline.folder} holds a {kind}; this teacher's adapter reads a {family.pipeline_class}. Name another "
            "folder, or the teacher=... of its family"
        )
    check_parts(family, pipeline)
    adapter = family(pipeline, VideoSpec(s.frames, s.height, s.width, s.fps, s.guidance_scale, s.shift))
    check_states(s.states, adapter.states(), pipeline.folder)
    most = pipeline.config("transformer").get("max_text_seq_length")
    if most is not None and s.text_length > most:
        raise ValueError(f"teacher.text_length is {s.text_length}; this transformer takes at most {most} tokens")
    return pipeline, adapter


def check_parts(family: type[Family], pipeline: Pipeline) -> None:
    """Raise ValueError for a component that is another family's, or that doesn't fit the transformer."""
    configs = {name: pipeline.config(name) for name in pipeline.names if not name.startswith("tokenizer")}
    for name in ("transformer", "vae"):
        if (there := configs[name].get("_class_name")) not in (None, family.classes[name]):
            raise ValueError(
                f"the {name} at {pipeline.place(name)} is a {there}; this teacher's is a {family.classes[name]}"
            )
    transformer, vae, text = configs["transformer"], configs["vae"], configs.get("text_encoder", {})
    widths = {
        "latent channels": (vae.get("latent_channels", vae.get("z_dim")), transformer.get("in_channels")),
        "numbers in a token's embedding": (
            text.get("d_model", text.get("hidden_size")),
            next(
                (transformer[key] for key in ("text_embed_dim", "text_dim", "caption_channels") if key in transformer),
                None,
            ),
        ),
    }
    for what, (given, wanted) in widths.items():
        if given is not None and wanted is not None and given != wanted:
            part = "vae" if what.startswith("latent") else "text_encoder"
            raise ValueError(
                f"the {part} at {pipeline.place(part)} gives {given} {what}, and the transformer takes {wanted}; they "
                "are of different models"
            )


def check_states(stated: Mapping[str, Any], found: Mapping[str, Any], folder: Path) -> None:
    """Raise ValueError, naming every difference, unless the folder's configs say what the yaml states."""
    if unknown := sorted(set(stated) - set(found)):
        raise ValueError(f"teacher.states has {', '.join(unknown)}; what can be checked is {', '.join(sorted(found))}")
    if differing := list(_differences(stated, found, "")):
        raise ValueError(
            f"{folder} disagrees with what teacher.states says of it: {'; '.join(differing)}. It may be another model: "
            "choose its teacher=..., or correct teacher.states"
        )


def _differences(stated: Mapping[str, Any], found: Mapping[str, Any], prefix: str) -> Iterator[str]:
    for key, value in stated.items():
        there = found.get(key)
        if isinstance(value, Mapping) and isinstance(there, Mapping):
            yield from _differences(value, there, f"{prefix}{key}.")
        elif not _same(value, there):
            yield f"{prefix}{key} is {there} there and {value} in teacher.states"


def _same(stated: Any, found: Any) -> bool:
    if isinstance(stated, (int, float)) and isinstance(found, (int, float)):
        return abs(stated - found) <= 1e-6 * abs(found)
    if isinstance(stated, (list, tuple)) and isinstance(found, (list, tuple)):
        return len(stated) == len(found) and all(map(_same, stated, found))
    return stated == found


class StoredElsewhere:
    """Stands for the text encoder where teacher.text=stored; the data brings the embeddings."""

    def unknown(self, prompt: str) -> list[str]:
        """No word can be called unknown without a tokenizer."""
        return []

    def __call__(self, prompts: Sequence[str]) -> Condition:
        raise ValueError(
            f"teacher.text is stored, but no stored embedding of {prompts[0][:60]!r} is at hand; train on "
            "data=latents, or set teacher.text=online"
        )


def text_encoder(family: Family, pipeline: Pipeline, s: TeacherSettings, device: torch.device | str) -> TextEncoder:
    """The family's text models behind one call."""
    parts = {n: c for n, c in family.classes.items() if n.startswith(("text_encoder", "tokenizer"))}
    read: dict[str, Any] = {}
    for name, cls in parts.items():
        if name.startswith("tokenizer"):
            place = pipeline.place(name)
            read[name] = diffusers_class("transformers.AutoTokenizer").from_pretrained(place, local_files_only=True)
        else:
            read[name] = pipeline.read(name, cls, DTYPES[s.frozen_dtype]).to(device)
    kind = diffusers_class(family.pipeline_class)
    others = {"vae": None, "transformer": None, "scheduler": None}
    alone = kind(**others, **read)  # diffusers' own pipeline, for the way it prepares prompts
    models = [part for name, part in read.items() if name.startswith("text_encoder")]
    length = s.text_length
    return TextEncoder(
        read["tokenizer"], lambda prompt: family.condition(alone, prompt, length), length, models, device
    )


def read_transformer(
    family: Family, pipeline: Pipeline, lora: str | Path | None, scale: float, weights: bool
) -> nn.Module:
    """The transformer, with a LoRA merged into it where there is one."""
    cls = family.classes["transformer"]
    if not weights and lora is None and (transformer := pipeline.empty("transformer", cls)) is not None:
        return transformer
    transformer = pipeline.read("transformer", cls)
    if lora is not None:
        merge_lora(transformer, diffusers_class(family.pipeline_class), lora, scale)
    return transformer


def lora_at(lora: str | Path) -> Path:
    """The file or folder of a LoRA; ValueError where there is none."""
    return find(lora, "LoRA (teacher.lora)", ["*.safetensors"], key="teacher.lora")


def merge_lora(transformer: Any, pipeline_class: Any, lora: str | Path, scale: float) -> None:
    """Add a LoRA, a file or folder in any form that the family's pipeline reads, to the transformer's weights."""
    place = lora_at(lora)
    folder, file = (place.parent, place.name) if place.is_file() else (place, None)
    try:
        found, metadata = pipeline_class.lora_state_dict(
            folder, weight_name=file, local_files_only=offline(), return_lora_metadata=True
        )
        check_lora(transformer, {n.removeprefix("transformer."): t for n, t in found.items()})
        # The metadata has the LoRA's alpha, which is not always its rank.
        pipeline_class.load_lora_into_transformer(
            found, transformer=transformer, adapter_name="teacher", metadata=metadata
        )
        transformer.fuse_lora(lora_scale=scale)
        transformer.unload_lora()
    except Exception as error:  # whatever diffusers or peft find wrong with it
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(
            f"teacher.lora={lora} can't be merged into this teacher: {lines[0]}. It must be a LoRA of the same model"
        ) from None


def check_lora(transformer: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Raise ValueError unless every factor of a LoRA has a layer of its size in the transformer."""
    layers = {name: module.weight for name, module in transformer.named_modules() if hasattr(module, "weight")}
    factors = {n: t for n, t in tensors.items() if ".lora_A." in n or ".lora_B." in n}
    if not factors:
        raise ValueError("it holds no factors (lora_A, lora_B) for a transformer")
    for name, factor in factors.items():
        layer, which = (name.partition(".lora_A.")[0], 1) if ".lora_A." in name else (name.partition(".lora_B.")[0], 0)
        if layer not in layers:
            raise ValueError(f"it changes {layer}, which the transformer doesn't have")
        if factor.shape[which] != layers[layer].shape[which]:
            raise ValueError(f"its {name} is {list(factor.shape)}, but {layer}'s weight is {list(layers[layer].shape)}")
