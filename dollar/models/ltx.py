"""LTX-Video teachers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn

from dollar.diffusion.prediction import FLOW
from dollar.diffusion.schedule import RectifiedFlow
from dollar.diffusion.timesteps import FewStep
from dollar.models import flow
from dollar.models.assemble import TeacherSettings, assemble, configured_by
from dollar.models.codec import Codec
from dollar.models.denoiser import Condition, Wrapped
from dollar.models.original_names import Layers
from dollar.models.pipeline import Pipeline
from dollar.models.sizes import check_sizes
from dollar.models.teacher import Teacher, VideoSpec
from dollar.models.units import BlockList, Nothing


@configured_by(TeacherSettings)
def load(**settings: Any) -> Teacher:
    """An LTX-Video teacher; the settings are those of `assemble`."""
    return assemble(LTX, **settings)


class LTXNetwork(Wrapped):
    """diffusers' transformer, which takes tokens, for x_t and output [B, C, F, H, W] and times t [B] in [0, 1].

    scale: how far apart in time, height and width two latents are, for the rotary positions.
    """

    def __init__(self, transformer: nn.Module, scale: tuple[float, float, float]) -> None:
        super().__init__(transformer)
        self.scale = scale

    def forward(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        _, _, frames, height, width = x_t.shape
        output = self.transformer(
            hidden_states=rearrange(x_t, "b c f h w -> b (f h w) c"),
            encoder_hidden_states=condition.embeddings,
            timestep=(t * 1000).float(),
            encoder_attention_mask=condition.mask,
            num_frames=frames,
            height=height,
            width=width,
            rope_interpolation_scale=self.scale,
            return_dict=False,
        )[0]
        return rearrange(output, "b (f h w) c -> b c f h w", f=frames, h=height).contiguous()


class LTX:
    """The family's adapter."""

    pipeline_class: ClassVar[str] = "LTXPipeline"
    classes: ClassVar[Mapping[str, str]] = {
        "transformer": "LTXVideoTransformer3DModel",
        "vae": "AutoencoderKLLTXVideo",
        "scheduler": "FlowMatchEulerDiscreteScheduler",
        "text_encoder": "transformers.T5EncoderModel",
        "tokenizer": "transformers.AutoTokenizer",
    }
    embeds_guidance: ClassVar[bool] = False
    predictions: ClassVar[Mapping[str, str | None]] = flow.PREDICTIONS
    # diffusers has taken the authors' names over.
    original_layers: ClassVar[Layers | None] = {
        **{
            layer: [layer]
            for attention in ("attn1", "attn2")
            for layer in (f"transformer_blocks.{{}}.{attention}.{n}" for n in ("to_q", "to_k", "to_v", "to_out.0"))
        },
        **{layer: [layer] for layer in ("transformer_blocks.{}.ff.net.0.proj", "transformer_blocks.{}.ff.net.2")},
    }
    block_lists: ClassVar[Sequence[BlockList]] = (
        BlockList(
            "transformer_blocks",
            "num_layers",
            {"attention": {"attn1": Nothing, "attn2": Nothing}, "feed_forward": {"ff": Nothing}},
        ),
    )
    prediction = FLOW

    def __init__(self, pipeline: Pipeline, spec: VideoSpec) -> None:
        self.transformer, self.vae = pipeline.config("transformer"), pipeline.config("vae")
        self.scheduler, self.spec = pipeline.config("scheduler"), spec
        if (self.transformer.get("patch_size", 1), self.transformer.get("patch_size_t", 1)) != (1, 1):
            raise ValueError(f"{pipeline.folder} has a transformer with patches; this adapter takes latents as tokens")
        halvings = sum(self.vae["spatio_temporal_scaling"])
        self.spatial = self.vae.get("spatial_compression_ratio") or self.vae["patch_size"] * 2**halvings
        self.temporal = self.vae.get("temporal_compression_ratio") or self.vae["patch_size_t"] * 2**halvings
        self.cell = math.lcm(self.spatial, 32)  # its pipeline takes no other sizes
        self.schedule = RectifiedFlow(spec.shift or self._shift())

    def _shift(self) -> float:
        """The shift s of its times: constant, or growing with the number of tokens."""
        s = self.scheduler
        if not s.get("use_dynamic_shifting", False):
            return float(s.get("shift", 1.0))
        return math.exp(self._mu())

    def _mu(self) -> float:
        s = self.scheduler
        few, many = s.get("base_image_seq_len", 256), s.get("max_image_seq_len", 4096)
        low, high = s.get("base_shift", 0.5), s.get("max_shift", 1.15)
        slope = (high - low) / (many - few)
        frames, height, width = self.spec[:3]
        tokens = ((frames - 1) // self.temporal + 1) * (height // self.spatial) * (width // self.spatial)
        return tokens * slope + (low - slope * few)

    def states(self) -> dict[str, Any]:
        named = ("base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len", "shift_terminal")
        return {
            "prediction": "flow",
            "shift": {key: self.scheduler.get(key) for key in named}
            if self.scheduler.get("use_dynamic_shifting", False)
            else self._shift(),
            "frames": f"{self.temporal}k + 1",
            "cell": self.cell,
            "scaling": ["mean and sd by channel, with the weights", self.vae["scaling_factor"]],
            "decoder_reads_time": bool(self.vae.get("timestep_conditioning", False)),
            "transformer": self.transformer,
        }

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        check_sizes(frames, height, width, self.temporal, self.cell)
        latent_frames = (frames - 1) // self.temporal + 1
        return (self.transformer["in_channels"], latent_frames, height // self.spatial, width // self.spatial)

    def network(self, transformer: nn.Module) -> nn.Module:
        return LTXNetwork(transformer, (self.temporal / self.spec.fps, self.spatial, self.spatial))

    def codec(self, vae: Any, clips: int, chunk_frames: int | None, context: int) -> Codec:
        def decode(z: Tensor) -> Tensor:
            # Decoders that read a time get 0, as the pipeline's default is.
            timed = vae.config.timestep_conditioning
            return vae.decode(z, z.new_zeros(len(z)) if timed else None).sample

        normalisation = flow.by_channel(vae.latents_mean, vae.latents_std, vae.config.scaling_factor)
        return Codec(vae, normalisation, self.temporal, clips, chunk_frames, context, decode=decode)

    def condition(self, pipeline: Any, prompt: str, length: int) -> Condition:
        embeddings, mask, _, _ = pipeline.encode_prompt(
            prompt, do_classifier_free_guidance=False, max_sequence_length=length, device=pipeline.text_encoder.device
        )
        return Condition(embeddings, mask)

    def noise(
        self, generators: Sequence[torch.Generator], shape: tuple[int, int, int, int], again: bool = False
    ) -> Tensor:
        if not again:
            return flow.noise(generators, shape)
        # The first noise is drawn as a clip; between steps the pipeline holds tokens.
        channels, frames, height, width = shape
        tokens = [torch.randn(frames * height * width, channels, generator=g, device=g.device) for g in generators]
        return rearrange(torch.stack(tokens), "b (f h w) c -> b c f h w", f=frames, h=height)

    def grid(self, steps: int) -> Tensor:
        from diffusers import FlowMatchEulerDiscreteScheduler

        # With a shift that grows with the size unless one is given, and an end that is not the smallest time.
        own = {} if self.spec.shift is None else {"use_dynamic_shifting": False, "shift": self.spec.shift}
        return flow.times(
            FlowMatchEulerDiscreteScheduler.from_config({**self.scheduler, **own}), steps, self._set_steps
        )

    def even(self, steps: int) -> list[float]:
        return flow.even(steps)

    def student_scheduler(self, timesteps: Sequence[float], between: str) -> Any:
        return flow.student_scheduler(between, shift=self.schedule.shift)

    def few_step(self, timesteps: Sequence[float], between: str) -> FewStep:
        scheduler = self.student_scheduler(timesteps, between)
        return flow.few_step(timesteps, between, self.schedule.shift, scheduler, self._set_steps)

    def _set_steps(self, scheduler: Any, steps: int) -> None:
        scheduler.set_timesteps(steps, sigmas=np.linspace(1.0, 1 / steps, steps), mu=self._mu())
