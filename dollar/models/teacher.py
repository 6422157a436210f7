"""A teacher as the rest of the package sees it, whatever its family, and how one is put together from a folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
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
from dollar.models.original_names import Layers
from dollar.models.pipeline import Pipeline, empty, lack
from dollar.models.pruned import Pruning, pruning_of, take_halves, weights_in
from dollar.models.units import BlockList

SAMPLED = 2**20  # bytes at both ends of a weight file that its fingerprint reads


class VideoSpec(NamedTuple):
    """The clips that a teacher makes: frames, pixels, frames a second, its own guidance scale, and the shift of its
    times where it is not the folder's."""

    frames: int
    height: int
    width: int
    fps: float
    guidance_scale: float
    shift: float | None = None


class Family(Protocol):
    """What one family's adapter knows, built as Family(pipeline, spec) from the folder's configs alone.

    pipeline_class: diffusers' pipeline; classes: component -> its class (the transformer's and the autoencoder's of
    diffusers, others with their library); embeds_guidance: the network reads the guidance scale and needs no
    unconditional half; predictions: which outputs of a network its schedulers can be set to, and the value of
    prediction_type that sets each, None where they have no such setting; original_layers: the layers of its authors'
    model, by which their LoRAs are named, None where LoRAs go by diffusers' names alone; block_lists: its transformer's
    repeated blocks, from the first to the last.
    """

    pipeline_class: ClassVar[str]
    classes: ClassVar[Mapping[str, str]]
    embeds_guidance: ClassVar[bool]
    predictions: ClassVar[Mapping[str, str | None]]
    original_layers: ClassVar[Layers | None]
    block_lists: ClassVar[Sequence[BlockList]]

    @property
    def schedule(self) -> Schedule: ...

    @property
    def prediction(self) -> Prediction: ...

    def __init__(self, pipeline: Pipeline, spec: VideoSpec) -> None: ...

    def states(self) -> dict[str, Any]:
        """The folder's values of what a yaml states."""
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
        """The diffusers scheduler that gives these timesteps when the family's pipeline sets it to as many steps.

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
    guidance_scale: the teacher's own, in diffusers' form, or the one that its network reads. lora: the one that is
    merged in its network, and how much of it.
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
    lora: tuple[Path, float] | None = None

    @property
    def device(self) -> torch.device:
        return self.codec.device

    @property
    def folder(self) -> Path:
        return self.pipeline.folder

    def null(self, count: int) -> Condition:
        """The unconditional (negative-prompt) condition, for `count` samples."""
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

    def empty_network(self, pruning: Pruning | None = None) -> nn.Module:
        """A network like the teacher's to be trained, its parameters on the meta device, its buffers real.

        pruning: what is left of it, None for all.
        """
        config, lists = self.pipeline.config("transformer"), self.family.block_lists
        if pruning is not None:
            config = {**config, **{blocks.count: pruning.counts[blocks.name] for blocks in lists}}
        transformer = empty(self.family.classes["transformer"], config)
        if pruning is not None:
            take_halves(transformer, pruning, lists)
        return self.family.network(transformer).train()

    def pruning(self, student: Path | None = None) -> Pruning:
        """What is left of the teacher's blocks in a student's folder; None is the teacher itself.

        ValueError where the folder is what is left of another teacher, or disagrees with itself.
        """
        return pruning_of(student, self.name, self.pipeline.config("transformer"), self.family.block_lists)

    def save_network(self, network: nn.Module, folder: Path, sampler: FewStep, prediction: Prediction) -> None:
        """Write transformer/ and scheduler/ as diffusers does, in float32; the scheduler says what is predicted."""
        network.transformer.save_pretrained(folder / "transformer")  # type: ignore[operator, union-attr]
        self.save_scheduler(folder, sampler, prediction)

    def save_scheduler(self, folder: Path, sampler: FewStep, prediction: Prediction) -> None:
        """Write the scheduler/ of a student with this sampler and meaning of its output."""
        self.check_prediction(prediction)
        saved = self.family.student_scheduler(sampler.configured, sampler.between)
        if (prediction_type := self.family.predictions[prediction.name]) is not None:
            saved.register_to_config(prediction_type=prediction_type)
        saved.save_pretrained(folder / "scheduler")

    def check_prediction(self, prediction: Prediction) -> None:
        """Raise ValueError for an output that none of the family's schedulers can be set to."""
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
        wanted = self.family.classes["transformer"]
        there = json.loads((student / "transformer" / "config.json").read_text()).get("_class_name")
        if there != wanted:
            raise ValueError(f"the student in {student} is a {there}, but this teacher's family has a {wanted}")
        network: Any = self.empty_network(self.pruning(student))
        weights = weights_in(student, network.transformer)
        read = {name: weights.read(name) for name in weights.files}
        floats = {name: t.float() if t.is_floating_point() else t for name, t in read.items()}
        network.transformer.load_state_dict(floats, assign=True)
        return network.to(self.device).eval().requires_grad_(False)

    def fingerprint(self) -> dict[str, Any]:
        """What stored latents and embeddings depend on: autoencoder, text models and token count."""
        models = [n for n in self.family.classes if n.startswith(("vae", "text_encoder", "tokenizer"))]
        found = {n: _fingerprint(self.pipeline.place(n)) for n in models if self.pipeline.place(n).exists()}
        return {**found, "scaling": self.family.states()["scaling"], "text_length": self.text_length}


def is_empty(network: nn.Module) -> bool:
    """Whether a network's parameters are on the meta device."""
    return any(p.is_meta for p in network.parameters())


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
