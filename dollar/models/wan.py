"""Wan teachers: 2.1 (1.3B and 14B) and 2.2-TI2V-5B, whose network reads a time for each token."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dollar.diffusion.prediction import FLOW
from dollar.diffusion.schedule import RectifiedFlow
from dollar.diffusion.timesteps import FewStep
from dollar.models import flow
from dollar.models.assemble import TeacherSettings, assemble, configured_by
from dollar.models.codec import Codec, Normalisation
from dollar.models.denoiser import Condition, Wrapped
from dollar.models.original_names import Layers
from dollar.models.pipeline import Pipeline
from dollar.models.sizes import check_sizes
from dollar.models.teacher import Teacher, VideoSpec
from dollar.models.units import BlockList, Nothing

_ATTENTION = {"q": "to_q", "k": "to_k", "v": "to_v", "o": "to_out.0"}


@configured_by(TeacherSettings)
def load(**settings: Any) -> Teacher:
    """A Wan teacher; the settings are those of `assemble`."""
    return assemble(Wan, **settings)


class WanNetwork(Wrapped):
    """diffusers' transformer for x_t and output [B, C, F, H, W] and times t [B] in [0, 1].

    by_token: whether it reads the time of each token, as Wan 2.2's 5B is.
    """

    def __init__(self, transformer: nn.Module, by_token: bool = False) -> None:
        super().__init__(transformer)
        self.by_token = by_token

    def forward(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        timestep = (t * 1000).float()
        if self.by_token:
            _, _, frames, height, width = x_t.shape
            _, across, along = self.transformer.config.patch_size
            timestep = timestep[:, None].expand(-1, frames * (height // across) * (width // along))
        return self.transformer(
            hidden_states=x_t, timestep=timestep, encoder_hidden_states=condition.embeddings, return_dict=False
        )[0]

    @property
    def blocks(self) -> nn.ModuleList:
        """The repeated blocks, which parallelism shards and activation checkpointing wraps one by one."""
        return self.transformer.blocks


class Wan:
    """The family's adapter."""

    pipeline_class: ClassVar[str] = "WanPipeline"
    classes: ClassVar[Mapping[str, str]] = {
        "transformer": "WanTransformer3DModel",
        "vae": "AutoencoderKLWan",
        "scheduler": "FlowMatchEulerDiscreteScheduler",
        "text_encoder": "transformers.UMT5EncoderModel",
        "tokenizer": "transformers.AutoTokenizer",
    }
    embeds_guidance: ClassVar[bool] = False
    predictions: ClassVar[Mapping[str, str | None]] = flow.PREDICTIONS
    original_layers: ClassVar[Layers | None] = {
        **{f"blocks.{{}}.self_attn.{theirs}": [f"blocks.{{}}.attn1.{ours}"] for theirs, ours in _ATTENTION.items()},
        **{f"blocks.{{}}.cross_attn.{theirs}": [f"blocks.{{}}.attn2.{ours}"] for theirs, ours in _ATTENTION.items()},
        "blocks.{}.ffn.0": ["blocks.{}.ffn.net.0.proj"],
        "blocks.{}.ffn.2": ["blocks.{}.ffn.net.2"],
    }
    block_lists: ClassVar[Sequence[BlockList]] = (
        BlockList(
            "blocks",
            "num_layers",
            {"attention": {"attn1": Nothing, "norm2": nn.Identity, "attn2": Nothing}, "feed_forward": {"ffn": Nothing}},
        ),
    )
    prediction = FLOW

    def __init__(self, pipeline: Pipeline, spec: VideoSpec) -> None:
        self.transformer, self.vae = pipeline.config("transformer"), pipeline.config("vae")
        if pipeline.index.get("boundary_ratio") is not None:
            raise ValueError(
                f"{pipeline.folder} has two transformers, one for each half of the noise (Wan 2.2 A14B); this adapter "
                "takes teachers of one, such as Wan 2.1 or Wan 2.2's TI2V-5B"
            )
        self.by_token = bool(pipeline.index.get("expand_timesteps", False))
        scheduler = pipeline.config("scheduler")
        # Published folders name a multistep solver, which calls its shift flow_shift.
        shift = scheduler.get("flow_shift", scheduler.get("shift", 1.0))
        self.shift = float(shift)
        self.schedule = RectifiedFlow(spec.shift or self.shift)
        self.spatial, self.temporal = self.vae.get("scale_factor_spatial", 8), self.vae.get("scale_factor_temporal", 4)
        self.cell = math.lcm(self.spatial * self.transformer["patch_size"][1], 16)  # its pipeline wants sixteens

    def states(self) -> dict[str, Any]:
        return {
            "prediction": "flow",
            "shift": self.shift,
            "frames": f"{self.temporal}k + 1",
            "cell": self.cell,
            "scaling": [self.vae["latents_mean"], self.vae["latents_std"]],
            "time_of_each_token": self.by_token,
            "transformer": self.transformer,
        }

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        check_sizes(frames, height, width, self.temporal, self.cell)
        latent_frames = (frames - 1) // self.temporal + 1
        return (self.transformer["in_channels"], latent_frames, height // self.spatial, width // self.spatial)

    def network(self, transformer: nn.Module) -> nn.Module:
        return WanNetwork(transformer, self.by_token)

    def codec(self, vae: Any, clips: int, chunk_frames: int | None, context: int) -> Codec:
        mean, sd = (torch.tensor(vae.config[key]) for key in ("latents_mean", "latents_std"))
        plain = flow.by_channel(mean, sd)

        def denormalise(latents: Tensor) -> Tensor:
            # diffusers divides by 1 / sd, which rounds otherwise than a product.
            inverse = (1.0 / sd).view(1, -1, 1, 1, 1).to(latents)
            return latents / inverse + mean.view(1, -1, 1, 1, 1).to(latents)

        return Codec(vae, Normalisation(plain.normalise, denormalise), self.temporal, clips, streams=True)

    def condition(self, pipeline: Any, prompt: str, length: int) -> Condition:
        embeddings, _ = pipeline.encode_prompt(
            prompt, do_classifier_free_guidance=False, max_sequence_length=length, device=pipeline.text_encoder.device
        )
        # Beyond the prompt's tokens diffusers puts zeros, and the network reads them.
        return Condition(embeddings, (embeddings != 0).any(-1))

    def noise(
        self, generators: Sequence[torch.Generator], shape: tuple[int, int, int, int], again: bool = False
    ) -> Tensor:
        return flow.noise(generators, shape)

    def grid(self, steps: int) -> Tensor:
        return flow.times(flow.student_scheduler("ddim", shift=self.schedule.shift), steps, _set_steps)

    def even(self, steps: int) -> list[float]:
        return flow.even(steps)

    def student_scheduler(self, timesteps: Sequence[float], between: str) -> Any:
        # Its pipeline gives a scheduler nothing but the number of steps.
        return flow.student_scheduler(between, **flow.stretched(len(timesteps), self.schedule.shift))

    def few_step(self, timesteps: Sequence[float], between: str) -> FewStep:
        scheduler = self.student_scheduler(timesteps, between)
        return flow.few_step(timesteps, between, self.schedule.shift, scheduler, _set_steps)


def _set_steps(scheduler: Any, steps: int) -> None:
    scheduler.set_timesteps(steps)
