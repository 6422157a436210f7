"""HunyuanVideo teachers, whose guidance is distilled into the network: the scale is one of its inputs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import numpy as np
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


@configured_by(TeacherSettings)
def load(**settings: Any) -> Teacher:
    """A HunyuanVideo teacher; the settings are those of `assemble`."""
    return assemble(HunyuanVideo, **settings)


class HunyuanVideoNetwork(Wrapped):
    """diffusers' transformer for x_t and output [B, C, F, H, W] and times t [B] in [0, 1].

    guidance_scale: an input of the network; the student and the fake score get the same one.
    """

    def __init__(self, transformer: nn.Module, guidance_scale: float) -> None:
        super().__init__(transformer)
        self.guidance_scale = guidance_scale

    def forward(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        guidance = torch.full((len(x_t),), self.guidance_scale, device=x_t.device) * 1000.0
        return self.transformer(
            hidden_states=x_t,
            timestep=(t * 1000).float(),
            encoder_hidden_states=condition.embeddings,
            encoder_attention_mask=condition.mask.to(condition.embeddings),
            pooled_projections=condition.pooled,
            guidance=guidance if self.transformer.config.guidance_embeds else None,
            return_dict=False,
        )[0]

    @property
    def blocks(self) -> nn.ModuleList:
        """The repeated blocks, which parallelism shards and activation checkpointing wraps one by one."""
        return nn.ModuleList([*self.transformer.transformer_blocks, *self.transformer.single_transformer_blocks])


class HunyuanVideo:
    """The family's adapter."""

    pipeline_class: ClassVar[str] = "HunyuanVideoPipeline"
    classes: ClassVar[Mapping[str, str]] = {
        "transformer": "HunyuanVideoTransformer3DModel",
        "vae": "AutoencoderKLHunyuanVideo",
        "scheduler": "FlowMatchEulerDiscreteScheduler",
        "text_encoder": "transformers.LlamaModel",
        "tokenizer": "transformers.AutoTokenizer",
        "text_encoder_2": "transformers.CLIPTextModel",
        "tokenizer_2": "transformers.AutoTokenizer",
    }
    embeds_guidance: ClassVar[bool] = True
    predictions: ClassVar[Mapping[str, str | None]] = flow.PREDICTIONS
    original_layers: ClassVar[Layers | None] = {
        "double_blocks.{}.img_attn_qkv": [f"transformer_blocks.{{}}.attn.to_{n}" for n in "qkv"],
        "double_blocks.{}.txt_attn_qkv": [f"transformer_blocks.{{}}.attn.add_{n}_proj" for n in "qkv"],
        "double_blocks.{}.img_attn_proj": ["transformer_blocks.{}.attn.to_out.0"],
        "double_blocks.{}.txt_attn_proj": ["transformer_blocks.{}.attn.to_add_out"],
        "double_blocks.{}.img_mod.linear": ["transformer_blocks.{}.norm1.linear"],
        "double_blocks.{}.txt_mod.linear": ["transformer_blocks.{}.norm1_context.linear"],
        "double_blocks.{}.img_mlp.fc1": ["transformer_blocks.{}.ff.net.0.proj"],
        "double_blocks.{}.img_mlp.fc2": ["transformer_blocks.{}.ff.net.2"],
        "double_blocks.{}.txt_mlp.fc1": ["transformer_blocks.{}.ff_context.net.0.proj"],
        "double_blocks.{}.txt_mlp.fc2": ["transformer_blocks.{}.ff_context.net.2"],
        "single_blocks.{}.linear1": [
            *(f"single_transformer_blocks.{{}}.attn.to_{n}" for n in "qkv"),
            "single_transformer_blocks.{}.proj_mlp",
        ],
        "single_blocks.{}.linear2": ["single_transformer_blocks.{}.proj_out"],
        "single_blocks.{}.modulation.linear": ["single_transformer_blocks.{}.norm.linear"],
    }
    block_lists: ClassVar[Sequence[BlockList]] = (
        BlockList(
            "transformer_blocks",
            "num_layers",
            {"attention": {"attn": partial(Nothing, 2)}, "feed_forward": {"ff": Nothing, "ff_context": Nothing}},
        ),
        BlockList("single_transformer_blocks", "num_single_layers"),
    )
    prediction = FLOW

    def __init__(self, pipeline: Pipeline, spec: VideoSpec) -> None:
        self.transformer, self.vae = pipeline.config("transformer"), pipeline.config("vae")
        self.spec = spec
        self.spatial = self.vae.get("spatial_compression_ratio", 8)
        self.temporal = self.vae.get("temporal_compression_ratio", 4)
        self.cell = math.lcm(self.spatial * self.transformer["patch_size"], 16)  # its pipeline wants sixteens
        self.shift = float(pipeline.config("scheduler").get("shift", 1.0))
        self.schedule = RectifiedFlow(spec.shift or self.shift)

    def states(self) -> dict[str, Any]:
        return {
            "prediction": "flow",
            "shift": self.shift,
            "frames": f"{self.temporal}k + 1",
            "cell": self.cell,
            "scaling": self.vae["scaling_factor"],
            "guidance_embedded": bool(self.transformer.get("guidance_embeds", False)),
            "transformer": self.transformer,
        }

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        check_sizes(frames, height, width, self.temporal, self.cell)
        latent_frames = (frames - 1) // self.temporal + 1
        return (self.transformer["in_channels"], latent_frames, height // self.spatial, width // self.spatial)

    def network(self, transformer: nn.Module) -> nn.Module:
        return HunyuanVideoNetwork(transformer, self.spec.guidance_scale)

    def codec(self, vae: Any, clips: int, chunk_frames: int | None, context: int) -> Codec:
        factor = vae.config.scaling_factor
        if chunk_frames is not None:
            # It normalises over all frames that it sees, so its own overlapping tiles are what its teacher knows.
            vae.tile_sample_min_num_frames = chunk_frames * self.temporal
            vae.tile_sample_stride_num_frames = max(1, 3 * chunk_frames // 4) * self.temporal
        normalisation = Normalisation(lambda z: z * factor, lambda latents: latents / factor)
        tiles = vae.tile_sample_stride_num_frames // self.temporal
        return Codec(vae, normalisation, self.temporal, clips, tiles=tiles)

    def condition(self, pipeline: Any, prompt: str, length: int) -> Condition:
        embeddings, pooled, mask = pipeline.encode_prompt(
            prompt, max_sequence_length=length, device=pipeline.text_encoder.device
        )
        return Condition(embeddings, mask, pooled)

    def noise(
        self, generators: Sequence[torch.Generator], shape: tuple[int, int, int, int], again: bool = False
    ) -> Tensor:
        return flow.noise(generators, shape)

    def grid(self, steps: int) -> Tensor:
        return flow.times(flow.student_scheduler("ddim", shift=self.schedule.shift), steps, _set_steps)

    def even(self, steps: int) -> list[float]:
        return flow.even(steps)

    def student_scheduler(self, timesteps: Sequence[float], between: str) -> Any:
        return flow.student_scheduler(between, shift=self.schedule.shift)

    def few_step(self, timesteps: Sequence[float], between: str) -> FewStep:
        scheduler = self.student_scheduler(timesteps, between)
        return flow.few_step(timesteps, between, self.schedule.shift, scheduler, _set_steps)


def _set_steps(scheduler: Any, steps: int) -> None:
    scheduler.set_timesteps(steps, sigmas=np.linspace(1.0, 0.0, steps + 1)[:-1])
