"""Training the embedded teacher from nothing: its video autoencoder, then its text encoder and transformer together."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from dollar.data import shapes
from dollar.data.latents import LatentBatches
from dollar.diffusion.draws import Draws
from dollar.diffusion.schedule import VariancePreserving, diffuse
from dollar.log import Log, progress
from dollar.losses.score_matching import native
from dollar.models.codec import Codec
from dollar.models.ema import Ema
from dollar.parallel.world import World

CROP, SHORT = 32, 9  # pixels and frames of the windows around the object that the autoencoder learns from first
COLOUR_SCALE = 2.0  # the first three latent channels hold a cell's mean colour, times this


@dataclass(frozen=True)
class Stage:
    """One stage of pre-training: `steps` updates of `batch` clips; the rate falls linearly over its last part."""

    steps: int
    batch: int
    lr: float
    decay_from: float = 0.6  # fraction of the steps after which the rate falls
    warmup: int = 20
    clip_gradient: float = 5.0
    save_every: int = 100

    def rate(self, step: int) -> float:
        """The learning rate of a step."""
        start = self.decay_from * self.steps
        falling = 1.0 if step < start else max(0.0, (self.steps - step) / (self.steps - start))
        return self.lr * min(1.0, (step + 1) / self.warmup) * max(falling, 0.02)


def new_autoencoder() -> Any:
    """CogVideoX's autoencoder, small: 4x in time, 4x4 in space, 8 channels."""
    from diffusers import AutoencoderKLCogVideoX

    vae = AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 3,
        up_block_types=("CogVideoXUpBlock3D",) * 3,
        block_out_channels=(8, 16, 32),
        layers_per_block=1,
        latent_channels=8,
        norm_num_groups=1,
        sample_height=shapes.HEIGHT,
        sample_width=shapes.WIDTH,
        temporal_compression_ratio=4,
    )
    let_colour_through(vae)
    return vae


@torch.no_grad()
def let_colour_through(vae: Any) -> None:
    """Start the convolutions outside the residual branches as copies, so that colour reaches the latents at once.

    From the library's own random start the same network needs five times the updates to tell colours apart.
    """
    for name, module in vae.named_modules():
        if not isinstance(module, nn.Conv2d | nn.Conv3d):
            continue
        if "conv2" in name:  # the end of a residual branch
            module.weight.mul_(0.1)
            nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        elif any(part in name for part in ("conv_in", "shortcut", "sampler")):
            _copy_channels(module, 1.0)
            if "conv_in" in name or "shortcut" in name:
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        elif name.startswith("decoder") and "conv_b" in name:
            _copy_channels(module, 0.5)
    vae.encoder.conv_out.conv.bias[vae.config.latent_channels :] = -6.0  # log variance: start almost without noise


def _copy_channels(convolution: nn.Conv2d | nn.Conv3d, amount: float) -> None:
    weight = convolution.weight
    weight.mul_(0.3)
    centre = tuple(size // 2 for size in weight.shape[2:])
    if weight.ndim == 5 and weight.shape[2] == 3:
        centre = (2, *centre[1:])  # causal in time: the last tap is the present frame
    for out in range(weight.shape[0]):
        weight[(out, out % weight.shape[1], *centre)] += amount


def autoencoder_batch(samples: Iterable[int], whole: bool, seed: int) -> Tensor:
    """Videos [B, 3, T, H, W] in [-1, 1]: whole clips, or two short windows around each clip's (small) object."""
    captions, clips = shapes.captions("train"), []
    for sample in samples:
        rng = np.random.Generator(np.random.PCG64([seed, sample]))
        clip = shapes.render(shapes.parse(captions[rng.integers(len(captions))]), int(rng.integers(2**31)))
        clips += [clip] if whole else [_window(clip, rng) for _ in range(2)]
    return torch.from_numpy(np.stack(clips)).permute(0, 4, 1, 2, 3).float() / 127.5 - 1


def _window(clip: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    first = rng.integers(0, shapes.FRAMES - SHORT + 1)
    differs = np.abs(clip.astype(int) - clip[:, :1, :1]).sum(-1) > 90
    ys, xs = np.nonzero(differs[rng.integers(first, first + SHORT)])
    pick = rng.integers(len(ys))
    y = int(np.clip(ys[pick] - rng.integers(4, CROP - 4), 0, shapes.HEIGHT - CROP))
    x = int(np.clip(xs[pick] - rng.integers(4, CROP - 4), 0, shapes.WIDTH - CROP))
    return clip[first : first + SHORT, y : y + CROP, x : x + CROP]


def autoencoder_loss(vae: Any, pixels: Tensor) -> dict[str, Tensor]:
    """Error of pixels and of their differences, a little KL, and the colour that the first channels hold."""
    law = vae.encode(pixels).latent_dist
    decoded = vae.decode(law.sample()).sample
    first, rest = F.avg_pool3d(pixels[:, :, :1], (1, 4, 4)), F.avg_pool3d(pixels[:, :, 1:], 4)
    colour = (law.mean[:, :3] - COLOUR_SCALE * torch.cat([first, rest], 2)).abs().mean()
    error = decoded - pixels
    edges = sum((error.diff(dim=d).abs().mean() for d in (2, 3, 4)), error.new_zeros(()))
    kl = 0.5 * (law.mean**2 + law.var - 1 - law.logvar).mean()
    total = error.abs().mean() + 0.5 * edges + 3e-4 * kl + 0.5 * colour
    return {"total": total, "pixels": error.abs().mean(), "edges": edges, "kl": kl, "colour": colour}


def train_autoencoder(folder: Path, windows: Stage, whole: Stage, seed: int, world: World) -> Any:
    """Train on windows, then on whole clips; goes on from what `folder` holds. Returns the autoencoder, whitened."""
    torch.manual_seed(seed)
    vae = new_autoencoder().to(world.device)
    for name, stage in (("windows", windows), ("whole", whole)):
        optimizer = torch.optim.Adam(vae.parameters(), lr=stage.lr, betas=(0.9, 0.99))

        def loss(step: int, on_whole: bool = name == "whole", stage: Stage = stage) -> dict[str, Tensor]:
            own = world.own((step + 100_000 * on_whole) * stage.batch, stage.batch)
            torch.manual_seed(seed * 1_000_003 + own[0])  # the noise of the latents
            return autoencoder_loss(vae, autoencoder_batch(own, on_whole, seed).to(world.device))

        run_stage(folder / f"vae_{name}", stage, vae, optimizer, loss, world)
    whiten(vae, seed)
    return vae


@torch.no_grad()
def whiten(vae: Any, seed: int, clips: int = 64) -> None:
    """Give every latent channel unit variance on real clips without changing a reconstruction.

    The detail of shapes lives in channels of small variance, which diffusion noise would bury first. Latents enter the
    decoder through linear maps only, so a channel's scale can be taken out of the encoder and put into those.
    """
    source = shapes.ShapesClips("train", clips, seed + 1)
    videos = torch.from_numpy(np.stack([source.clip(i)[0] for i in range(clips)])).permute(0, 1, 4, 2, 3).float() / 255
    scale = 1 / Codec(vae, 1.0).encode(videos).std((0, 2, 3, 4))
    out = vae.encoder.conv_out.conv
    channels = vae.config.latent_channels
    out.weight[:channels] *= scale.reshape(-1, 1, 1, 1, 1)
    out.bias[:channels] *= scale
    out.bias[channels:] += 2 * scale.log()  # the noise scales along
    for name, module in vae.decoder.named_modules():
        if isinstance(module, nn.Conv3d) and ("conv_y" in name or "conv_b" in name or name == "conv_in.conv"):
            module.weight /= scale.reshape(1, -1, 1, 1, 1)
    vae.register_to_config(scaling_factor=1.0)


def run_stage(
    folder: Path,
    stage: Stage,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss: Callable[[int], dict[str, Tensor]],
    world: World,
    ema: Ema | None = None,
) -> None:
    """The loop of a stage: resumes from `folder`, logs there, and leaves the last weights in the network."""
    first = _resume(folder, network, optimizer, ema)
    with Log(folder, active=world.is_main, resume_step=first) as log:
        for step in progress(range(first, stage.steps), folder.name, active=world.is_main):
            for group in optimizer.param_groups:
                group["lr"] = stage.rate(step)
            losses = loss(step)
            optimizer.zero_grad(set_to_none=True)
            losses["total"].backward()
            world.average([p.grad for p in network.parameters()])
            norm = nn.utils.clip_grad_norm_(network.parameters(), stage.clip_gradient)
            if bool(torch.isfinite(norm)):  # the same in every process, since the gradients are
                optimizer.step()
                if ema is not None:
                    ema.update()
            if step % 20 == 0:
                log.scalars(step, {f"loss/{k}": v.detach() for k, v in losses.items()} | {"grad_norm": norm})
            if world.is_main and ((step + 1) % stage.save_every == 0 or step + 1 == stage.steps):
                _save(folder, step + 1, network, optimizer, ema)


def _save(folder: Path, step: int, network: nn.Module, optimizer: torch.optim.Optimizer, ema: Ema | None) -> None:
    tensors = {f"network/{n}": p.detach() for n, p in network.named_parameters()}
    for i, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{i}/{key}": torch.as_tensor(value) for key, value in moments.items()}
    tensors |= {f"ema/{i}": a for i, a in enumerate(ema.average)} if ema else {}
    plain = {"step": str(step), "ema_updates": str(ema.updates if ema else 0)}
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "state.tmp", metadata=plain)
    os.replace(folder / "state.tmp", folder / "state.safetensors")


@torch.no_grad()
def _resume(folder: Path, network: nn.Module, optimizer: torch.optim.Optimizer, ema: Ema | None) -> int:
    path = folder / "state.safetensors"
    if not path.is_file():
        return 0
    from safetensors import safe_open

    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        plain = file.metadata()
    for name, parameter in network.named_parameters():
        parameter.copy_(tensors[f"network/{name}"])
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for key, value in tensors.items():
        if key.startswith("optimizer/"):
            _, index, what = key.split("/")
            optimizer.state[parameters[int(index)]][what] = value
    if ema is not None:
        for i, average in enumerate(ema.average):
            average.copy_(tensors[f"ema/{i}"])
        ema.updates = int(plain["ema_updates"])
    return int(plain["step"])


def new_tokenizer() -> Any:
    """A T5 tokenizer that knows the shapes world's words."""
    from transformers import T5TokenizerFast

    words = sorted({word for caption in shapes.captions("all") for word in caption.split()})
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -10.0), *((f"▁{word}", -1.0) for word in words)]
    return T5TokenizerFast(vocab=vocabulary, extra_ids=0)


def new_text_encoder(vocabulary: int) -> nn.Module:
    """A T5 encoder of two layers and 64 channels."""
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(
        T5Config(
            vocab_size=vocabulary,
            d_model=64,
            d_kv=16,
            d_ff=128,
            num_layers=2,
            num_heads=4,
            dropout_rate=0.0,
            feed_forward_proj="gated-gelu",
            pad_token_id=0,
            eos_token_id=1,
        )
    )


def new_transformer(text_length: int) -> nn.Module:
    """CogVideoX's transformer of 1.9 million parameters: 80 tokens a clip, 6 blocks of 128 channels."""
    from diffusers import CogVideoXTransformer3DModel

    return CogVideoXTransformer3DModel(
        num_attention_heads=4,
        attention_head_dim=32,
        in_channels=8,
        out_channels=8,
        time_embed_dim=64,
        text_embed_dim=64,
        num_layers=6,
        sample_width=shapes.WIDTH // 4,
        sample_height=shapes.HEIGHT // 4,
        sample_frames=shapes.FRAMES,
        patch_size=4,
        temporal_compression_ratio=4,
        max_text_seq_length=text_length,
    )


def new_scheduler() -> Any:
    """CogVideoX's released settings, without SNR shift: these latents have little redundancy to hide noise in."""
    from diffusers import CogVideoXDDIMScheduler

    return CogVideoXDDIMScheduler(
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        snr_shift_scale=1.0,
    )


class TextToLatents(nn.Module):
    """Text encoder and transformer, trained together: the native output for noisy latents and token ids."""

    def __init__(self, text_encoder: nn.Module, transformer: nn.Module) -> None:
        super().__init__()
        self.text_encoder = text_encoder
        self.transformer = transformer

    def forward(self, x_t: Tensor, t: Tensor, ids: Tensor) -> Tensor:
        """x_t [B, C, F, h, w], t [B], ids [B, L] -> v [B, C, F, h, w]."""
        embeddings = self.text_encoder(ids)[0]
        output = self.transformer(x_t.transpose(1, 2), embeddings, t, return_dict=False)[0]
        return output.transpose(1, 2).float()


def train_teacher(
    folder: Path,
    codec: Codec,
    stage: Stage,
    seed: int,
    clips: int,
    text_length: int,
    drop_caption: float = 0.1,
    decay: float = 0.999,
    world: World = World(),  # noqa: B008
    precision: torch.dtype = torch.float32,
) -> tuple[TextToLatents, Any]:
    """Train text encoder and transformer on v-prediction; returns them with averaged weights, and the tokenizer.

    drop_caption: fraction of captions replaced by the empty one, for guidance; decay: of the averaged weights.
    """
    tokenizer = new_tokenizer()
    torch.manual_seed(seed)
    network = TextToLatents(new_text_encoder(len(tokenizer)), new_transformer(text_length)).to(world.device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=stage.lr, betas=(0.9, 0.99), weight_decay=0.01)
    ema = Ema(network, decay)
    device = world.device
    schedule = VariancePreserving(new_scheduler().alphas_cumprod)
    data = LatentBatches(shapes.ShapesClips("train", clips, seed), codec.encode, seed, cache=clips)

    def loss(step: int) -> dict[str, Tensor]:
        samples = world.own(step * stage.batch, stage.batch)
        draws = Draws(seed, step, samples, device)
        batch = data.batch(samples)
        dropped = (draws.uniform("caption") < drop_caption).tolist()
        prompts = ["" if gone else prompt for gone, prompt in zip(dropped, batch.prompts, strict=True)]
        ids = tokenizer(prompts, padding="max_length", max_length=text_length, return_tensors="pt").input_ids
        x_0 = batch.latents.to(device)  # type: ignore[union-attr]
        t, eps = schedule.uniform(draws.uniform("time")), draws.normal("noise", x_0.shape[1:])
        a, b = (c.float().to(device).reshape(-1, 1, 1, 1, 1) for c in schedule.coefficients(t))
        with torch.autocast(device.type, precision, enabled=precision != torch.float32):
            v = network(diffuse(x_0, eps, t, schedule), t, ids.to(device))
        return {"total": native(v, a * eps - b * x_0).mean()}

    run_stage(folder / "teacher", stage, network, optimizer, loss, world, ema)
    with torch.no_grad():
        torch._foreach_copy_([p.detach() for p in ema.parameters], ema.average)
    return network, tokenizer


def save_pipeline(folder: Path, vae: Any, network: TextToLatents, tokenizer: Any) -> None:
    """Write a diffusers folder in half precision."""
    from diffusers import CogVideoXPipeline

    pipeline = CogVideoXPipeline(tokenizer, network.text_encoder, vae, network.transformer, new_scheduler())
    pipeline.to(torch.float16).save_pretrained(folder)
