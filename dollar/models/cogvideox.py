"""CogVideoX teachers from a diffusers folder."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dollar.diffusion.prediction import PREDICTIONS, Prediction
from dollar.diffusion.schedule import VariancePreserving
from dollar.diffusion.timesteps import FewStep, check_timesteps
from dollar.models.codec import Codec
from dollar.models.denoiser import Condition, Denoiser
from dollar.models.teacher import Teacher
from dollar.models.text import TextEncoder

# A pipeline's folders, and the file that says what is in each; the first three have weights too.
COMPONENTS = {
    "transformer": "config.json",
    "vae": "config.json",
    "text_encoder": "config.json",
    "tokenizer": "tokenizer_config.json",
    "scheduler": "scheduler_config.json",
}
_PREDICTION_NAMES = {"v_prediction": "v", "epsilon": "epsilon", "sample": "sample"}


class CogVideoXNetwork(nn.Module):
    """diffusers' transformer behind the package's layout: x_t and output [B, C, F, H, W], whole timesteps [B]."""

    transformer: Any

    def __init__(self, transformer: nn.Module) -> None:
        super().__init__()
        self.transformer = transformer

    def forward(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        # Timesteps stay whole numbers: a mixed-precision policy would turn 999.0 into 1000.0.
        output = self.transformer(
            hidden_states=x_t.transpose(1, 2),
            encoder_hidden_states=condition.embeddings,
            timestep=t.long(),
            return_dict=False,
        )[0]
        return output.transpose(1, 2).contiguous()

    @property
    def blocks(self) -> nn.ModuleList:
        """The repeated blocks, which parallelism shards and activation checkpointing wraps one by one."""
        return self.transformer.transformer_blocks

    def checkpoint_activations(self) -> None:
        """Recompute each block in the backward pass instead of keeping what is inside it."""
        self.transformer.enable_gradient_checkpointing()


def check_folder(folder: Path) -> None:
    """Raise ValueError, naming what is missing, unless the folder holds a whole CogVideoX pipeline."""
    if not folder.is_dir():
        raise ValueError(
            f"no teacher at {folder}: the folder doesn't exist. Name a diffusers folder; the embedded one is "
            "dollar/assets/shapes (teacher=shapes)"
        )
    if not (folder / "model_index.json").is_file():
        raise ValueError(f"{folder} is not a diffusers pipeline: it has no model_index.json")
    absent = [_lack(folder, name, config) for name, config in COMPONENTS.items()]
    if any(absent):
        raise ValueError(
            f"the teacher at {folder} lacks {', '.join(filter(None, absent))}; copy what is missing from where it was "
            "made"
        )
    kind = json.loads((folder / "model_index.json").read_text()).get("_class_name")
    if kind != "CogVideoXPipeline":
        raise ValueError(f"{folder} holds a {kind}; this teacher's adapter reads a CogVideoXPipeline")


def _lack(folder: Path, name: str, config: str) -> str | None:
    """What is missing of one component, or None."""
    if not (folder / name).is_dir():
        return name
    if not (folder / name / config).is_file():
        return f"{name}/{config}"
    weights = name in ("tokenizer", "scheduler") or any((folder / name).glob("*.safetensors"))
    return None if weights else f"{name}'s weights (*.safetensors)"


def load(
    name: str,
    folder: str | Path,
    frames: int,
    height: int,
    width: int,
    fps: float,
    guidance_scale: float,
    text_length: int,
    negative_prompt: str = "",
    compute_dtype: torch.dtype = torch.float32,
    decode_chunk: int = 1,
    device: torch.device | str = "cpu",
) -> Teacher:
    """Read a CogVideoX pipeline from a diffusers folder; ValueError names what is missing or disagrees."""
    folder = Path(folder)
    check_folder(folder)
    for key, value in (("fps", fps), ("text_length", text_length), ("decode_chunk", decode_chunk)):
        if value <= 0:
            raise ValueError(f"teacher.{key} is {value}; it must be positive")
    # Imported here because diffusers and transformers take seconds, and --help should not.
    from diffusers import AutoencoderKLCogVideoX, CogVideoXDDIMScheduler, CogVideoXTransformer3DModel
    from transformers import AutoTokenizer, T5EncoderModel

    def part(kind: Any, which: str) -> Any:
        return kind.from_pretrained(folder, subfolder=which, torch_dtype=torch.float32, local_files_only=True)

    vae = part(AutoencoderKLCogVideoX, "vae").to(device)
    transformer = part(CogVideoXTransformer3DModel, "transformer").to(device).eval().requires_grad_(False)
    text_model = part(T5EncoderModel, "text_encoder").to(device)
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    scheduler = CogVideoXDDIMScheduler.from_pretrained(folder, subfolder="scheduler")

    latent_shape = _latent_shape(transformer.config, vae.config, frames, height, width)
    if transformer.config.use_rotary_positional_embeddings:
        raise ValueError(f"{folder} uses rotary positions (CogVideoX-5B); this adapter reads sin-cos positions (2B)")
    schedule = VariancePreserving(scheduler.alphas_cumprod)
    prediction = PREDICTIONS[_PREDICTION_NAMES[scheduler.config.prediction_type]]
    network = CogVideoXNetwork(transformer)
    if text_length > (most := transformer.config.max_text_seq_length):
        raise ValueError(f"teacher.text_length is {text_length}; this transformer takes at most {most} tokens")

    def new_network() -> nn.Module:
        return copy.deepcopy(network).train().requires_grad_(True)

    def load_network(student: Path) -> nn.Module:
        if lack := _lack(student, "transformer", COMPONENTS["transformer"]):
            raise ValueError(f"no student in {student}: it lacks {lack}; a finished run has one in runs/<run>/student")
        read = CogVideoXTransformer3DModel.from_pretrained(student, subfolder="transformer", torch_dtype=torch.float32)
        return CogVideoXNetwork(read).to(device).eval().requires_grad_(False)

    return Teacher(
        name=name,
        folder=folder,
        denoiser=Denoiser(network, schedule, prediction, compute_dtype),
        codec=Codec(vae, vae.config.scaling_factor, decode_chunk),
        text=TextEncoder(tokenizer, text_model, text_length),
        latent_shape=latent_shape,
        clip_shape=(frames, height, width),
        fps=fps,
        guidance_scale=guidance_scale,
        noise=lambda generators: draw_noise(generators, latent_shape).to(device),
        few_step=lambda times, between: few_step(scheduler, times, between),
        new_network=new_network,
        save_network=lambda net, where, sampler, says: save_network(net, where, sampler, scheduler, says),
        load_network=load_network,
        negative_prompt=negative_prompt,
    )


def _latent_shape(transformer: Any, vae: Any, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
    spatial = 2 ** (len(vae.block_out_channels) - 1)
    temporal = int(vae.temporal_compression_ratio)
    cell = spatial * transformer.patch_size
    # The decoder takes latent frames by twos and the odd one with the first two; from an even number it would make
    # too many frames.
    step = 2 * temporal
    if frames < 1 or (frames - 1) % step:
        nearest = max(frames - 1, 0) // step * step + 1
        raise ValueError(f"clips of {frames} frames don't fit this VAE: use {step}k + 1, for example {nearest}")
    if height % cell or width % cell:
        raise ValueError(
            f"clips of {height}x{width} pixels don't fit this VAE and its patches: use multiples of {cell}, for "
            f"example {max(cell, height // cell * cell)}x{max(cell, width // cell * cell)}"
        )
    return (transformer.in_channels, (frames - 1) // temporal + 1, height // spatial, width // spatial)


def draw_noise(generators: Sequence[torch.Generator], latent_shape: tuple[int, int, int, int]) -> Tensor:
    """Standard normal [B, C, F, h, w], drawn as [F, C, h, w] a clip because diffusers' CogVideoX does."""
    channels, frames, height, width = latent_shape
    drawn = [torch.randn(frames, channels, height, width, generator=g, device=g.device) for g in generators]
    return torch.stack(drawn).transpose(1, 2)


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
    """The teacher's own scheduler, which a student that steps by DDIM is saved with."""
    return type(scheduler).from_config(scheduler.config)


def few_step(scheduler: Any, timesteps: Sequence[int], between: str) -> FewStep:
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
    return FewStep(VariancePreserving(saved.alphas_cumprod), torch.tensor(wanted), between)


def student_scheduler(scheduler: Any, timesteps: list[int], between: str) -> Any:
    """The diffusers scheduler that gives exactly these timesteps when asked for len(timesteps) steps."""
    steps, total = len(timesteps), len(scheduler.alphas_cumprod)
    if between == "ddim":
        candidates = [ddim_scheduler(scheduler)]
    else:
        # A subset of an evenly spaced grid: 4 steps of 4 give 999, 749, 499, 249; 2 of the same 4 give 999, 499.
        candidates = [lcm_scheduler(scheduler, n) for n in _grids_with(timesteps, total)]
    for candidate in candidates:
        candidate.set_timesteps(steps)
        if candidate.timesteps.tolist() == timesteps:
            return candidate
    even = ddim_scheduler(scheduler) if between == "ddim" else lcm_scheduler(scheduler, steps)
    even.set_timesteps(steps)
    raise ValueError(
        f"student.timesteps {timesteps} can't be given to a diffusers pipeline as {steps} steps with "
        f"student.between={between}; the evenly spaced {even.timesteps.tolist()} can"
    )


def _grids_with(timesteps: list[int], total: int) -> list[int]:
    """Sizes of LCM's evenly spaced grids (t = k i - 1, k = total // size) that contain all these timesteps."""
    return [
        n
        for n in range(len(timesteps), total + 1)
        if all((t + 1) % (total // n) == 0 and (t + 1) // (total // n) <= n for t in timesteps)
    ]


def save_network(network: nn.Module, folder: Path, sampler: FewStep, scheduler: Any, prediction: Prediction) -> None:
    """Write transformer/ and scheduler/ as diffusers does, in float32; the scheduler says what the network predicts."""
    network.transformer.save_pretrained(folder / "transformer")  # type: ignore[operator, union-attr]
    saved = student_scheduler(scheduler, sampler.times.tolist(), sampler.between)
    names = {ours: theirs for theirs, ours in _PREDICTION_NAMES.items()}
    saved.register_to_config(prediction_type=names[prediction.name])
    saved.save_pretrained(folder / "scheduler")
