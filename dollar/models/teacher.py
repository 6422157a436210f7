"""A teacher as the rest of the package sees it, whatever its family, and how one is put together from a folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from dollar.diffusion.prediction import Prediction
from dollar.diffusion.schedule import Schedule
from dollar.diffusion.timesteps import FewStep
from dollar.models.codec import Codec
from dollar.models.denoiser import Condition, Denoiser
from dollar.models.pipeline import Pipeline, diffusers_class, empty, lack
from dollar.models.text import TextEncoder

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SAMPLED = 2**20  # bytes at both ends of a weight file that its fingerprint reads


class Clip(NamedTuple):
    """The clips that a teacher is asked for: frames, pixels, frames a second, and its own guidance scale."""

    frames: int
    height: int
    width: int
    fps: float
    guidance_scale: float


class Family(Protocol):
    """What one family's adapter knows, built as Family(pipeline, clip) from the folder's configs alone.

    pipeline_class: diffusers' pipeline; classes: component -> its class (the transformer's and the autoencoder's of
    diffusers, others with their library); embeds_guidance: the network reads the guidance scale and needs no second
    half; predictions: what its schedulers can be told that a network predicts, and by which word, None for no word.
    """

    pipeline_class: ClassVar[str]
    classes: ClassVar[Mapping[str, str]]
    embeds_guidance: ClassVar[bool]
    predictions: ClassVar[Mapping[str, str | None]]

    @property
    def schedule(self) -> Schedule: ...

    @property
    def prediction(self) -> Prediction: ...

    def __init__(self, pipeline: Pipeline, clip: Clip) -> None: ...

    def states(self) -> dict[str, Any]:
        """What the folder's configs say of the things that a yaml states."""
        ...

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """(C, F, h, w) of such a clip; ValueError names the nearest sizes that fit."""
        ...

    def network(self, transformer: nn.Module) -> nn.Module:
        """The transformer as a `Network`, with `blocks` and `checkpoint_activations`."""
        ...

    def codec(self, vae: Any, clips: int, chunk_frames: int | None, context: int) -> Codec: ...

    def condition(self, pipeline: Any, prompt: str, length: int) -> Condition:
        """The condition of one prompt, by diffusers' pipeline that holds the text models alone."""
        ...

    def noise(
        self, generators: Sequence[torch.Generator], shape: tuple[int, int, int, int], again: bool = False
    ) -> Tensor:
        """Standard normal [B, C, F, h, w] in the order in which its pipeline draws it.

        again: between two steps, where a pipeline may draw in another layout than at the start.
        """
        ...

    def grid(self, steps: int) -> Tensor:
        """The times [steps + 1] at which its pipeline samples with a one-step solver."""
        ...

    def even(self, steps: int) -> list[float]:
        """A student's evenly spaced timesteps from pure noise on, as a configuration gives them."""
        ...

    def student_scheduler(self, timesteps: Sequence[float], between: str) -> Any:
        """The diffusers scheduler that gives these timesteps when the family's pipeline asks for as many steps.

        ValueError, naming one that can be given, where there is none: such a student couldn't be sampled.
        """
        ...

    def few_step(self, timesteps: Sequence[float], between: str) -> FewStep:
        """The sampler of a student with these timesteps, in the numbers of `student_scheduler`."""
        ...


@dataclass
class Teacher:
    """Everything that is known of one teacher.

    latent_shape: (C, F, h, w) of one clip; clip_shape: (T, H, W) in frames and pixels; fps: frames a second.
    guidance_scale: the teacher's own, in diffusers' form, or the one that its network is told.
    """

    name: str
    pipeline: Pipeline
    family: Family
    denoiser: Denoiser
    codec: Codec
    text: Any
    latent_shape: tuple[int, int, int, int]
    clip_shape: tuple[int, int, int]
    fps: float
    guidance_scale: float
    text_length: int
    negative_prompt: str = ""

    @property
    def device(self) -> torch.device:
        return self.codec.device

    @property
    def folder(self) -> Path:
        return self.pipeline.folder

    def null(self, count: int) -> Condition:
        """The condition of guidance's other half, for `count` samples."""
        return self.text([self.negative_prompt] * count)

    def noise(self, generators: Sequence[torch.Generator], again: bool = False) -> Tensor:
        """One standard normal latent [B, C, F, h, w] from B generators, as diffusers would draw it from them.

        again: between two steps.
        """
        return self.family.noise(generators, self.latent_shape, again).to(self.device)

    def grid(self, steps: int) -> Tensor:
        """The times [steps + 1] at which this teacher is sampled."""
        return self.family.grid(steps)

    def few_step(self, timesteps: Sequence[float], between: str) -> FewStep:
        """A student's sampler, read from the scheduler that the student is saved with."""
        return self.family.few_step(timesteps, between)

    def latent_shape_of(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """(C, F, h, w) of clips of another size; ValueError names the nearest sizes that fit."""
        return self.family.latent_shape(frames, height, width)

    def denoiser_of(self, network: nn.Module, compute_dtype: torch.dtype = torch.float32) -> Denoiser:
        """A denoiser of this family around another network (the student, the fake score)."""
        return Denoiser(network, self.denoiser.schedule, self.denoiser.prediction, compute_dtype)

    def empty_network(self) -> nn.Module:
        """A network like the teacher's to be trained, its parameters on the meta device, its buffers real."""
        transformer = empty(self.family.classes["transformer"], self.pipeline.config("transformer"))
        return self.family.network(transformer).train()

    def save_network(self, network: nn.Module, folder: Path, sampler: FewStep, prediction: Prediction) -> None:
        """Write transformer/ and scheduler/ as diffusers does, in float32; the scheduler says what is predicted."""
        network.transformer.save_pretrained(folder / "transformer")  # type: ignore[operator, union-attr]
        self.save_scheduler(folder, sampler, prediction)

    def save_scheduler(self, folder: Path, sampler: FewStep, prediction: Prediction) -> None:
        """Write the scheduler/ of a student with this sampler and meaning of its output."""
        self.check_prediction(prediction)
        saved = self.family.student_scheduler(sampler.asked, sampler.between)
        if (says := self.family.predictions[prediction.name]) is not None:
            saved.register_to_config(prediction_type=says)
        saved.save_pretrained(folder / "scheduler")

    def check_prediction(self, prediction: Prediction) -> None:
        """Raise ValueError for an output that none of the family's schedulers can be told of."""
        if prediction.name not in self.family.predictions:
            raise ValueError(
                f"a student of {self.name} that predicts {prediction.name} couldn't be sampled by diffusers, whose "
                f"schedulers of this family read {' or '.join(self.family.predictions)}; use "
                "student.parameterization=homogeneous"
            )

    def load_network(self, student: Path) -> nn.Module:
        """The network that `save_network` wrote; ValueError says what is missing."""
        if missing := lack(student / "transformer", "transformer"):
            raise ValueError(
                f"no student in {student}: it lacks {missing}; a finished run has one in runs/<run>/student"
            )
        kind = diffusers_class(self.family.classes["transformer"])
        read = kind.from_pretrained(student / "transformer", torch_dtype=torch.float32, local_files_only=True)
        return self.family.network(read).to(self.device).eval().requires_grad_(False)

    def fingerprint(self) -> dict[str, Any]:
        """What stored latents and embeddings depend on: autoencoder, text models and token count."""
        models = [n for n in self.family.classes if n.startswith(("vae", "text_encoder", "tokenizer"))]
        found = {n: _fingerprint(self.pipeline.place(n)) for n in models if self.pipeline.place(n).exists()}
        return {**found, "scaling": self.family.states()["scaling"], "text_length": self.text_length}


def assemble(
    family: type[Family],
    *,
    name: str,
    folder: str | Path,
    frames: int,
    height: int,
    width: int,
    fps: float,
    guidance_scale: float,
    text_length: int,
    negative_prompt: str = "",
    states: Mapping[str, Any] | None = None,
    parts: Mapping[str, str | None] | None = None,
    lora: str | None = None,
    lora_scale: float = 1.0,
    text: str = "online",
    tiling: bool = False,
    slicing: bool = False,
    decode_chunk: int = 1,
    chunk_frames: int | None = None,
    chunk_context: int = 8,
    frozen_dtype: str = "float32",
    compute_dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    weights: bool = True,
) -> Teacher:
    """Put a family's teacher together from a diffusers folder or hub id; ValueError says what is missing or disagrees.

    The keys are those of conf/teacher/*.yaml, which explain them. weights: whether the transformer's are read; if not,
    its parameters are on the meta device, for whoever fills them in (a LoRA to be merged, or a file with names of its
    own, needs them all the same).
    """
    positive = {
        "fps": fps,
        "text_length": text_length,
        "decode_chunk": decode_chunk,
        "chunk_frames": chunk_frames,
        "chunk_context": chunk_context,
    }
    for key, value in positive.items():
        if value is not None and value <= 0:
            raise ValueError(f"teacher.{key} is {value}; it must be positive")
    for key, given, known in (("text", text, ("online", "stored")), ("frozen_dtype", frozen_dtype, tuple(DTYPES))):
        if given not in known:
            raise ValueError(f"teacher.{key} is {given!r}; use {' or '.join(known)}")
    reads_text = [n for n in family.classes if text == "online" or not n.startswith(("text_encoder", "tokenizer"))]
    pipeline = Pipeline(folder, reads_text, parts)
    if (kind := pipeline.index.get("_class_name")) != family.pipeline_class:
        raise ValueError(
            f"{pipeline.folder} holds a {kind}; this teacher's adapter reads a {family.pipeline_class}. Name another "
            "folder, or the teacher=... of its family"
        )
    made = family(pipeline, Clip(frames, height, width, fps, guidance_scale))
    check_states(states or {}, made.states(), pipeline.folder)
    latent_shape = made.latent_shape(frames, height, width)
    most = pipeline.config("transformer").get("max_text_seq_length")
    if most is not None and text_length > most:
        raise ValueError(f"teacher.text_length is {text_length}; this transformer takes at most {most} tokens")
    frozen = DTYPES[frozen_dtype]
    vae = pipeline.read("vae", family.classes["vae"], frozen).to(device)
    for wanted, switch in ((tiling, "enable_tiling"), (slicing, "enable_slicing")):
        if wanted:
            getattr(vae, switch)()
    encoder = text_encoder(made, pipeline, text_length, frozen, device) if text == "online" else StoredElsewhere()
    transformer = read_transformer(made, pipeline, lora, lora_scale, weights)
    network = made.network(transformer).eval().requires_grad_(False)
    return Teacher(
        name=name,
        pipeline=pipeline,
        family=made,
        denoiser=Denoiser(
            network if is_empty(network) else network.to(device), made.schedule, made.prediction, compute_dtype
        ),
        codec=made.codec(vae, decode_chunk, chunk_frames, chunk_context),
        text=encoder,
        latent_shape=latent_shape,
        clip_shape=(frames, height, width),
        fps=fps,
        guidance_scale=guidance_scale,
        text_length=text_length,
        negative_prompt=negative_prompt,
    )


def is_empty(network: nn.Module) -> bool:
    """Whether a network's parameters are on the meta device."""
    return any(p.is_meta for p in network.parameters())


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
        """Nothing is known of any word."""
        return []

    def __call__(self, prompts: Sequence[str]) -> Condition:
        raise ValueError(
            f"teacher.text is stored, but no stored embedding of {prompts[0][:60]!r} is at hand; train on "
            "data=latents, or set teacher.text=online"
        )


def text_encoder(
    family: Family, pipeline: Pipeline, length: int, dtype: torch.dtype, device: torch.device | str
) -> TextEncoder:
    """The family's text models behind one call."""
    parts = {n: c for n, c in family.classes.items() if n.startswith(("text_encoder", "tokenizer"))}
    read: dict[str, Any] = {}
    for name, cls in parts.items():
        if name.startswith("tokenizer"):
            place = pipeline.place(name)
            read[name] = diffusers_class("transformers.AutoTokenizer").from_pretrained(place, local_files_only=True)
        else:
            read[name] = pipeline.read(name, cls, dtype).to(device)
    kind = diffusers_class(family.pipeline_class)
    others = {"vae": None, "transformer": None, "scheduler": None}
    alone = kind(**others, **read)  # diffusers' own pipeline, for the way it prepares prompts
    models = [part for name, part in read.items() if name.startswith("text_encoder")]
    return TextEncoder(
        read["tokenizer"], lambda prompt: family.condition(alone, prompt, length), length, models, device
    )


def read_transformer(family: Family, pipeline: Pipeline, lora: str | None, scale: float, weights: bool) -> nn.Module:
    """The transformer, with a LoRA merged into it where there is one."""
    cls = family.classes["transformer"]
    if not weights and lora is None and (made := pipeline.empty("transformer", cls)) is not None:
        return made
    transformer = pipeline.read("transformer", cls)
    if lora is not None:
        merge_lora(transformer, diffusers_class(family.pipeline_class), lora, scale)
    return transformer


def merge_lora(transformer: Any, pipeline_class: Any, lora: str, scale: float) -> None:
    """Add a LoRA, a file or folder in any form that the family's pipeline reads, to the transformer's weights."""
    from dollar.models.pipeline import find, offline

    place = find(lora, "LoRA (teacher.lora)")
    folder, file = (place.parent, place.name) if place.is_file() else (place, None)
    try:
        found = pipeline_class.lora_state_dict(folder, weight_name=file, local_files_only=offline())
        transformer.load_lora_adapter(found, prefix="transformer", adapter_name="teacher")
        if not getattr(transformer, "peft_config", None):
            raise ValueError(f"nothing in {place} belongs to a transformer")
        transformer.fuse_lora(lora_scale=scale)
        transformer.unload_lora()
    except Exception as error:  # whatever diffusers or peft find wrong with it
        raise ValueError(
            f"teacher.lora={lora} can't be merged into this teacher: {error}. It must be a LoRA of the same model"
        ) from None


def _fingerprint(place: Path) -> str:
    """A short hash of a component's files: names, sizes, and the bytes at both ends of each."""
    digest = hashlib.sha256()
    files = [place] if place.is_file() else sorted(p for p in place.rglob("*") if p.is_file())
    for path in files:
        size = path.stat().st_size
        digest.update(json.dumps([path.name, size]).encode())
        with path.open("rb") as opened:
            digest.update(opened.read(SAMPLED))
            if size > SAMPLED:
                opened.seek(max(SAMPLED, size - SAMPLED))
                digest.update(opened.read())
    return digest.hexdigest()[:16]
