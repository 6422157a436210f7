"""CogVideoX teachers: 2B (sin-cos positions), 5B (rotary positions) and 1.5-5B (patches in time)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dollar.diffusion.prediction import PREDICTIONS
from dollar.diffusion.schedule import VariancePreserving
from dollar.diffusion.timesteps import FewStep, check_timesteps
from dollar.models.assemble import TeacherSettings, assemble, configured_by
from dollar.models.codec import Codec, Normalisation
from dollar.models.denoiser import Condition, Wrapped
from dollar.models.original_names import Layers
from dollar.models.pipeline import Pipeline
from dollar.models.sizes import check_sizes
from dollar.models.teacher import Teacher, VideoSpec
from dollar.models.units import BlockList, Nothing, Unmodulated

_NAMES = {"v": "v_prediction", "epsilon": "epsilon", "sample": "sample"}


@configured_by(TeacherSettings)
def load(**settings: Any) -> Teacher:
    """A CogVideoX teacher; the settings are those of `assemble`."""
    return assemble(CogVideoX, **settings)


class CogVideoXNetwork(Wrapped):
    """diffusers' transformer behind the package's layout: x_t and output [B, C, F, H, W], whole timesteps [B].

    rotary: (cos, sin) of the positions, for the sizes that have them.
    """

    def __init__(self, transformer: nn.Module, rotary: tuple[Tensor, Tensor] | None = None) -> None:
        super().__init__(transformer)
        cos, sin = rotary if rotary is not None else (None, None)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        # Timesteps stay whole numbers: a mixed-precision policy would turn 999.0 into 1000.0.
        output = self.transformer(
            hidden_states=x_t.transpose(1, 2),
            encoder_hidden_states=condition.embeddings,
            timestep=t.long(),
            image_rotary_emb=None if self.cos is None else (self.cos, self.sin),
            return_dict=False,
        )[0]
        return output.transpose(1, 2).contiguous()


class CogVideoX:
    """The family's adapter."""

    pipeline_class: ClassVar[str] = "CogVideoXPipeline"
    classes: ClassVar[Mapping[str, str]] = {
        "transformer": "CogVideoXTransformer3DModel",
        "vae": "AutoencoderKLCogVideoX",
        "scheduler": "CogVideoXDDIMScheduler",
        "text_encoder": "transformers.T5EncoderModel",
        "tokenizer": "transformers.AutoTokenizer",
    }
    embeds_guidance: ClassVar[bool] = False
    predictions: ClassVar[Mapping[str, str | None]] = _NAMES
    original_layers: ClassVar[Layers | None] = None  # its LoRAs go by diffusers' names everywhere
    block_lists: ClassVar[Sequence[BlockList]] = (
        BlockList(
            "transformer_blocks",
            "num_layers",
            {
                "attention": {"norm1": Unmodulated, "attn1": partial(Nothing, 2)},
                "feed_forward": {"norm2": Unmodulated, "ff": Nothing},
            },
        ),
    )

    def __init__(self, pipeline: Pipeline, spec: VideoSpec) -> None:
        self.transformer, self.vae = pipeline.config("transformer"), pipeline.config("vae")
        self.spec = spec
        if spec.shift is not None:
            raise ValueError(
                f"teacher.shift is {spec.shift}, but this teacher's noise schedule is its scheduler's own table; leave "
                "it at null"
            )
        self.spatial = 2 ** (len(self.vae["block_out_channels"]) - 1)
        self.temporal = int(self.vae.get("temporal_compression_ratio", 4))
        from diffusers import CogVideoXDDIMScheduler

        self.scheduler = CogVideoXDDIMScheduler.from_pretrained(pipeline.place("scheduler"))
        self.schedule = VariancePreserving(self.scheduler.alphas_cumprod)
        ours = {theirs: name for name, theirs in _NAMES.items()}
        self.prediction = PREDICTIONS[ours[self.scheduler.config.prediction_type]]

    def states(self) -> dict[str, Any]:
        return {
            "prediction": self.prediction.name,
            "shift": self.scheduler.config.snr_shift_scale,
            "zero_terminal_snr": self.scheduler.config.rescale_betas_zero_snr,
            "frames": f"{2 * self.temporal}k + 1",
            "cell": self.spatial * self.transformer["patch_size"],
            "scaling": self.vae["scaling_factor"],
            "rotary": bool(self.transformer.get("use_rotary_positional_embeddings", False)),
            "transformer": self.transformer,
        }

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        # The decoder takes latent frames by twos and the odd one with the first two; from an even number it would
        # make too many frames.
        check_sizes(frames, height, width, 2 * self.temporal, self.spatial * self.transformer["patch_size"])
        most = [self.transformer.get(f"sample_{side}", 0) * self.spatial for side in ("height", "width")]
        if self.transformer.get("patch_size_t") and (height > most[0] or width > most[1]):
            raise ValueError(
                f"clips of {height}x{width} pixels don't fit this transformer: its positions reach {most[0]}x{most[1]}"
            )
        latent_frames = (frames - 1) // self.temporal + 1
        return (
            self.transformer["in_channels"],
            latent_frames + self._padding(latent_frames),
            height // self.spatial,
            width // self.spatial,
        )

    def _padding(self, frames: int) -> int:
        """Latent frames that fill the first patch in time (1.5 has patches of two)."""
        return -frames % (self.transformer.get("patch_size_t") or 1)

    def network(self, transformer: nn.Module) -> nn.Module:
        return CogVideoXNetwork(transformer, self._rotary() if self.states()["rotary"] else None)

    def _rotary(self) -> tuple[Tensor, Tensor]:
        from diffusers.models.embeddings import get_3d_rotary_pos_embed
        from diffusers.pipelines.cogvideo.pipeline_cogvideox import get_resize_crop_region_for_grid

        config, patch = self.transformer, self.transformer["patch_size"]
        _, frames, height, width = self.latent_shape(*self.spec[:3])
        grid, base = (
            (height // patch, width // patch),
            (config["sample_width"] // patch, config["sample_height"] // patch),
        )
        across = config.get("patch_size_t")
        if across is None:
            crop = get_resize_crop_region_for_grid(grid, *base)
            return get_3d_rotary_pos_embed(config["attention_head_dim"], crop, grid, frames)
        return get_3d_rotary_pos_embed(
            config["attention_head_dim"], None, grid, frames // across, grid_type="slice", max_size=base[::-1]
        )

    def codec(self, vae: Any, clips: int, chunk_frames: int | None, context: int) -> Codec:
        factor = vae.config.scaling_factor

        def normalise(z: Tensor) -> Tensor:
            # Its authors fill the first patch in time with copies of the first frame.
            first = z[:, :, :1].expand(-1, -1, self._padding(z.shape[2]), -1, -1)
            return torch.cat([first, z], 2) * factor

        def denormalise(latents: Tensor) -> Tensor:
            padding = latents.shape[2] - ((self.spec.frames - 1) // self.temporal + 1)
            return 1 / factor * latents[:, :, padding:]

        return Codec(vae, Normalisation(normalise, denormalise), self.temporal, clips, streams=True, odd=True)

    def condition(self, pipeline: Any, prompt: str, length: int) -> Condition:
        # The text model sees the padding, as the transformer was trained on that.
        embeddings, _ = pipeline.encode_prompt(
            prompt, do_classifier_free_guidance=False, max_sequence_length=length, device=pipeline.text_encoder.device
        )
        tokens = pipeline.tokenizer(
            prompt, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        )
        return Condition(embeddings, tokens.attention_mask)

    def noise(
        self, generators: Sequence[torch.Generator], shape: tuple[int, int, int, int], again: bool = False
    ) -> Tensor:
        # diffusers draws [F, C, h, w] for a clip of this family.
        channels, frames, height, width = shape
        drawn = [torch.randn(frames, channels, height, width, generator=g, device=g.device) for g in generators]
        return torch.stack(drawn).transpose(1, 2)

    def grid(self, steps: int) -> Tensor:
        return self.schedule.grid(steps)

    def even(self, steps: int) -> list[float]:
        # From the noisiest one on, as LCM's scheduler takes them from all timesteps: three are [999, 666, 333]. Every
        # divisor's own are among them.
        total = len(self.scheduler.alphas_cumprod)
        return [float(total - 1 - i * total // steps) for i in range(steps)]

    def student_scheduler(self, timesteps: Sequence[float], between: str) -> Any:
        return student_scheduler(self.scheduler, [int(t) for t in timesteps], between)

    def few_step(self, timesteps: Sequence[float], between: str) -> FewStep:
        return few_step(self.scheduler, timesteps, between)


def lcm_scheduler(scheduler: Any, steps: int) -> Any:
    """The LCMScheduler on the teacher's noise schedule whose full grid is `steps` evenly spaced times."""
    from diffusers import LCMScheduler

    # LCMScheduler knows no SNR shift, so it gets the betas themselves.
    alpha_bar = torch.cat([scheduler.alphas_cumprod.new_ones(1), scheduler.alphas_cumprod])
    return LCMScheduler(
        num_train_timesteps=scheduler.config.num_train_timesteps,
        trained_betas=(1 - alpha_bar[1:] / alpha_bar[:-1]).tolist(),
        prediction_type=scheduler.config.prediction_type,
        original_inference_steps=steps,
        clip_sample=False,
    )


def ddim_scheduler(scheduler: Any) -> Any:
    """The teacher's own scheduler, which a student that steps by DDIM is saved with.

    Its times are spaced from the last one on ('trailing'), as all times are here, whatever its folder says: other
    spacings leave the noisiest time out or end on one without noise.
    """
    return type(scheduler).from_config(scheduler.config, timestep_spacing="trailing")


def few_step(scheduler: Any, timesteps: Sequence[float], between: str) -> FewStep:
    """The sampler of a student with these timesteps, in the numbers of the scheduler that it is saved with.

    ValueError where no diffusers scheduler gives these timesteps: such a student couldn't be sampled by a pipeline.
    """
    check_timesteps(timesteps)
    wanted, total = [int(t) for t in timesteps], len(scheduler.alphas_cumprod)
    if wanted != list(timesteps):
        raise ValueError(f"student.timesteps is {list(timesteps)}; this teacher's times are whole numbers, as {wanted}")
    if wanted[0] >= total:
        raise ValueError(f"student.timesteps starts at {wanted[0]}; this teacher's noisiest timestep is {total - 1}")
    saved = student_scheduler(scheduler, wanted, between)
    schedule = VariancePreserving(saved.alphas_cumprod)
    return FewStep(schedule, torch.tensor(wanted), between, boundary=between == "renoise", configured=tuple(wanted))


def student_scheduler(scheduler: Any, timesteps: list[int], between: str) -> Any:
    """The diffusers scheduler that gives exactly these timesteps when it is set to len(timesteps) steps."""
    steps, total = len(timesteps), len(scheduler.alphas_cumprod)
    if between == "ddim":
        candidates = [ddim_scheduler(scheduler)]
    else:
        # A subset of an evenly spaced grid: 4 steps of 4 give 999, 749, 499, 249; 2 of the same 4 give 999, 499.
        candidates = [lcm_scheduler(scheduler, n) for n in _grids_with(timesteps, total)]
    for candidate in candidates:
        candidate.set_timesteps(steps)
        if candidate.timesteps.tolist() == timesteps and (between == "renoise" or _even(timesteps, total)):
            return candidate
    if between == "ddim":  # the nearest count that divides the times, for diffusers steps by whole thousandths
        steps = next(n for n in range(steps, 0, -1) if total % n == 0)
    even = ddim_scheduler(scheduler) if between == "ddim" else lcm_scheduler(scheduler, steps)
    even.set_timesteps(steps)
    raise ValueError(
        f"student.timesteps {timesteps} can't be given to a diffusers pipeline as {len(timesteps)} steps with "
        f"student.between={between}; the evenly spaced {even.timesteps.tolist()} can"
    )


def _even(timesteps: Sequence[int], total: int) -> bool:
    """Whether the times are as far apart as diffusers' DDIM steps, which don't look at the next time of the grid."""
    apart = total // len(timesteps)
    return all(early - late == apart for early, late in pairwise(timesteps)) and timesteps[-1] - apart < 0


def _grids_with(timesteps: list[int], total: int) -> list[int]:
    """Sizes of LCM's evenly spaced grids (t = k i - 1, k = total // size) that contain all these timesteps."""
    return [
        n
        for n in range(len(timesteps), total + 1)
        if all((t + 1) % (total // n) == 0 and (t + 1) // (total // n) <= n for t in timesteps)
    ]
