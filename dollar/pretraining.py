"""Training the embedded teacher from nothing: its video autoencoder, then its text encoder and transformer together."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dollar.data import shapes
from dollar.data.latents import LatentBatches
from dollar.diffusion.draws import Draws
from dollar.diffusion.schedule import VariancePreserving, diffuse
from dollar.log import Log, progress
from dollar.losses.score_matching import native
from dollar.models.ema import Ema
from dollar.parallel.world import World

CROP, SHORT = 32, 9  # pixels and frames of the windows around the object that the autoencoder learns from
CELL = (4, 4, 4)  # frames and pixels that become one latent
CHANNELS = 12
EVENNESS = 0.75  # 0 leaves the channels as unequal as the pixels' components, 1 gives all unit variance


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

    def pace(self, step: int) -> float:
        """The share of the learning rate at a step."""
        start = self.decay_from * self.steps
        falling = 1.0 if step < start else max(0.0, (self.steps - step) / (self.steps - start))
        return min(1.0, (step + 1) / self.warmup) * max(falling, 0.02)


class ConvolutionMuon(torch.optim.Muon):
    """Muon for convolutions' weights [out, in, ...], each taken as a matrix [out, in * ...]."""

    def __init__(self, weights: Sequence[nn.Parameter], lr: float) -> None:
        self.weights = list(weights)
        matrices = [nn.Parameter(w.data.view(len(w), -1)) for w in self.weights]  # the same memory, as matrices
        super().__init__(matrices, lr=lr, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")

    def step(self, closure: Any = None) -> Any:
        """One update from the weights' gradients."""
        for matrix, weight in zip(self.param_groups[0]["params"], self.weights, strict=True):
            matrix.grad = None if weight.grad is None else weight.grad.view_as(matrix)
        return super().step(closure)


def convolution_optimizers(network: nn.Module, lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the convolutions and Adam for the rest; with Adam alone the decoder needs twice the updates."""
    named = dict(network.named_parameters())
    inner = {n for n, p in named.items() if p.ndim >= 4 and "conv_out" not in n}
    rest = [p for n, p in named.items() if n not in inner]
    return [
        ConvolutionMuon([named[n] for n in named if n in inner], lr),
        torch.optim.Adam(rest, lr=lr / 5, betas=(0.9, 0.99)),
    ]


class Cells:
    """The latents that the autoencoder is taught: the leading principal components of cells of 4 frames by 4x4 pixels.

    A small CogVideoX autoencoder finds latents of its own only very slowly (docs/log.md). These are known at once, keep
    what matters (12 of 192, read back linearly from 3x3 cells, show all five attributes of 95 % of clips), and let
    encoder, decoder and teacher be trained apart. The first frame is a cell of its own, as if it had stood still.
    """

    def __init__(self, mean: Tensor, basis: Tensor, scale: Tensor) -> None:
        self.mean, self.basis, self.scale = mean, basis, scale  # [192], [12, 192], [12]

    @classmethod
    def fit(cls, seed: int, clips: int = 400) -> Cells:
        """The components of real training clips."""
        cells = cls._cut(whole_clips(range(clips), seed)).flatten(0, 3)
        mean = cells.mean(0)
        covariance = (cells - mean).double().T @ (cells - mean).double() / len(cells)
        variances, directions = torch.linalg.eigh(covariance)  # ascending
        basis = directions.T.flip(0)[:CHANNELS]
        # A fixed sign, so that the same clips give the same latents on every machine.
        basis = basis * basis.sum(1).sign().where(basis.sum(1) != 0, torch.tensor(1.0).double())[:, None]
        scale = variances.flip(0)[:CHANNELS].sqrt() ** -EVENNESS
        return cls(mean, basis.float(), scale.float())

    @staticmethod
    def _cut(pixels: Tensor) -> Tensor:
        first = pixels[:, :, :1].expand(-1, -1, CELL[0], -1, -1)
        together = torch.cat([first, pixels[:, :, 1:]], 2)
        t, y, x = CELL
        return rearrange(together, "b c (f t) (h y) (w x) -> b f h w (c t y x)", t=t, y=y, x=x)

    def encode(self, pixels: Tensor) -> Tensor:
        """Latents [B, 12, F, h, w] of pixels [B, 3, T, H, W] in [-1, 1]."""
        components = (self._cut(pixels) - self.mean) @ (self.basis * self.scale[:, None]).T
        return rearrange(components, "b f h w c -> b c f h w")


def new_autoencoder() -> Any:
    """CogVideoX's autoencoder, small: 4x in time, 4x4 in space, 12 channels."""
    from diffusers import AutoencoderKLCogVideoX

    vae = AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 3,
        up_block_types=("CogVideoXUpBlock3D",) * 3,
        block_out_channels=(8, 16, 32),
        layers_per_block=1,
        latent_channels=CHANNELS,
        norm_num_groups=1,
        sample_height=shapes.HEIGHT,
        sample_width=shapes.WIDTH,
        temporal_compression_ratio=CELL[0],
        scaling_factor=1.0,
    )
    let_colour_through(vae)
    return vae


@torch.no_grad()
def let_colour_through(vae: Any) -> None:
    """Start the convolutions outside the residual branches as copies, so that colour reaches the latents at once.

    From the library's own random start the same network needs four times the updates to tell colours apart.
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


def _copy_channels(convolution: nn.Conv2d | nn.Conv3d, amount: float) -> None:
    weight = convolution.weight
    weight.mul_(0.3)
    centre = tuple(size // 2 for size in weight.shape[2:])
    if weight.ndim == 5 and weight.shape[2] == 3:
        centre = (2, *centre[1:])  # causal in time: the last tap is the present frame
    for out in range(weight.shape[0]):
        weight[(out, out % weight.shape[1], *centre)] += amount


def random_clips(samples: Iterable[int], seed: int) -> list[np.ndarray]:
    """Training clips drawn anew for every global sample index, uint8 [T, H, W, 3]."""
    captions, clips = shapes.captions("train"), []
    for sample in samples:
        rng = np.random.Generator(np.random.PCG64([seed, sample]))
        clips.append(shapes.render(shapes.parse(captions[rng.integers(len(captions))]), int(rng.integers(2**31))))
    return clips


def to_pixels(clips: Sequence[np.ndarray]) -> Tensor:
    """[B, 3, T, H, W] in [-1, 1] of uint8 clips."""
    return torch.from_numpy(np.stack(clips)).permute(0, 4, 1, 2, 3).float() / 127.5 - 1


def whole_clips(samples: Iterable[int], seed: int) -> Tensor:
    """Pixels [B, 3, T, H, W] of whole clips."""
    return to_pixels(random_clips(samples, seed))


def windows(samples: Iterable[int], seed: int) -> Tensor:
    """Pixels [2 B, 3, 9, 32, 32]: two short windows around each clip's (small) object."""
    rng = np.random.Generator(np.random.PCG64([seed, *samples]))
    return to_pixels([_window(clip, rng) for clip in random_clips(samples, seed) for _ in range(2)])


def _window(clip: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    first = rng.integers(0, shapes.FRAMES - SHORT + 1)
    differs = np.abs(clip.astype(int) - clip[:, :1, :1]).sum(-1) > 90
    ys, xs = np.nonzero(differs[rng.integers(first, first + SHORT)])
    pick = rng.integers(len(ys))
    y = int(np.clip(ys[pick] - rng.integers(4, CROP - 4), 0, shapes.HEIGHT - CROP))
    x = int(np.clip(xs[pick] - rng.integers(4, CROP - 4), 0, shapes.WIDTH - CROP))
    return clip[first : first + SHORT, y : y + CROP, x : x + CROP]


def decoder_loss(vae: Any, cells: Cells, pixels: Tensor, noise: float = 0.02) -> dict[str, Tensor]:
    """Error of the pixels decoded from the taught latents (with a little noise), and of their differences."""
    latents = cells.encode(pixels)
    error = vae.decode(latents + noise * torch.randn_like(latents)).sample - pixels
    edges = sum((error.diff(dim=d).abs().mean() for d in (2, 3, 4)), error.new_zeros(()))
    return {"total": error.abs().mean() + 0.5 * edges, "pixels": error.abs().mean(), "edges": edges}


def encoder_loss(vae: Any, cells: Cells, pixels: Tensor) -> dict[str, Tensor]:
    """Distance of the encoder's mean from the taught latents."""
    law = vae.encode(pixels).latent_dist
    error = law.mean - cells.encode(pixels)
    return {"total": error.abs().mean() + error.square().mean(), "latents": error.abs().mean()}


def train_autoencoder(folder: Path, stages: dict[str, Stage], cells: Cells, seed: int, world: World) -> Any:
    """Train the decoder, then the encoder, then the decoder on the encoder's latents; resumes from `folder`."""
    torch.manual_seed(seed)
    vae = new_autoencoder().to(world.device)
    with torch.no_grad():  # the encoder is certain of its latents: no noise worth the name is ever added
        vae.encoder.conv_out.conv.bias[CHANNELS:] = -12.0
        vae.encoder.conv_out.conv.weight[CHANNELS:] = 0.0
    for name in ("decoder", "encoder", "finish"):
        if name not in stages:
            continue
        stage, trained = stages[name], vae.encoder if name == "encoder" else vae.decoder
        optimizers = convolution_optimizers(trained, stage.lr)

        def loss(step: int, name: str = name, stage: Stage = stage) -> dict[str, Tensor]:
            own = world.own(step * stage.batch, stage.batch)
            torch.manual_seed(seed * 1_000_003 + own[0])  # the noise of the latents
            if name == "decoder":
                return decoder_loss(vae, cells, windows(own, seed).to(world.device))
            pixels = whole_clips(own, seed + 1) if step % 4 == 0 else windows(own, seed + 1)
            if name == "encoder":
                return encoder_loss(vae, cells, pixels.to(world.device))
            return finishing_loss(vae, pixels.to(world.device))

        run_stage(folder / f"vae_{name}", stage, trained, optimizers, loss, world)
    return vae


def finishing_loss(vae: Any, pixels: Tensor) -> dict[str, Tensor]:
    """The decoder's error on what the encoder really gives for whole clips."""
    with torch.no_grad():
        latents = vae.encode(pixels).latent_dist.mode()
    error = vae.decode(latents).sample - pixels
    edges = sum((error.diff(dim=d).abs().mean() for d in (2, 3, 4)), error.new_zeros(()))
    return {"total": error.abs().mean() + 0.5 * edges, "pixels": error.abs().mean(), "edges": edges}


def run_stage(
    folder: Path,
    stage: Stage,
    network: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    loss: Callable[[int], dict[str, Tensor]],
    world: World,
    ema: Ema | None = None,
) -> None:
    """The loop of a stage: resumes from `folder`, logs there, and leaves the last weights in the network."""
    first = _resume(folder, network, optimizers, ema)
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    rates = [group["lr"] for group in groups]
    with Log(folder, active=world.is_main, resume_step=first) as log:
        for step in progress(range(first, stage.steps), folder.name, active=world.is_main):
            for group, rate in zip(groups, rates, strict=True):
                group["lr"] = rate * stage.pace(step)
            losses = loss(step)
            network.zero_grad(set_to_none=True)
            losses["total"].backward()
            world.average([p.grad for p in network.parameters()])
            norm = nn.utils.clip_grad_norm_(network.parameters(), stage.clip_gradient)
            if bool(torch.isfinite(norm)):  # the same in every process, since the gradients are
                for optimizer in optimizers:
                    optimizer.step()
                if ema is not None:
                    ema.update()
            if step % 20 == 0:
                log.scalars(step, {f"loss/{k}": v.detach() for k, v in losses.items()} | {"grad_norm": norm})
            if world.is_main and ((step + 1) % stage.save_every == 0 or step + 1 == stage.steps):
                _save(folder, step + 1, network, optimizers, ema)


def _save(
    folder: Path, step: int, network: nn.Module, optimizers: Sequence[torch.optim.Optimizer], ema: Ema | None
) -> None:
    tensors = {f"network/{n}": p.detach() for n, p in network.named_parameters()}
    for number, optimizer in enumerate(optimizers):
        for i, moments in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{number}/{i}/{key}": torch.as_tensor(value) for key, value in moments.items()}
    tensors |= {f"ema/{i}": a for i, a in enumerate(ema.average)} if ema else {}
    plain = {"step": str(step), "ema_updates": str(ema.updates if ema else 0)}
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "state.tmp", metadata=plain)
    os.replace(folder / "state.tmp", folder / "state.safetensors")


@torch.no_grad()
def _resume(folder: Path, network: nn.Module, optimizers: Sequence[torch.optim.Optimizer], ema: Ema | None) -> int:
    path = folder / "state.safetensors"
    if not path.is_file():
        return 0
    from safetensors import safe_open

    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        plain = file.metadata()
    for name, parameter in network.named_parameters():
        parameter.copy_(tensors[f"network/{name}"])
    parameters = [[p for group in o.param_groups for p in group["params"]] for o in optimizers]
    for key, value in tensors.items():
        if key.startswith("optimizer/"):
            _, number, index, what = key.split("/")
            optimizers[int(number)].state[parameters[int(number)][int(index)]][what] = value
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
    """CogVideoX's transformer of 2.4 million parameters: 80 tokens a clip, 4 blocks of 192 channels."""
    from diffusers import CogVideoXTransformer3DModel

    return CogVideoXTransformer3DModel(
        num_attention_heads=6,
        attention_head_dim=32,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        time_embed_dim=64,
        text_embed_dim=64,
        num_layers=4,
        sample_width=shapes.WIDTH // CELL[2],
        sample_height=shapes.HEIGHT // CELL[1],
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
    cells: Cells,
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
    source = shapes.ShapesClips("train", clips, seed)
    data = LatentBatches(source, lambda videos: cells.encode(videos.transpose(1, 2) * 2 - 1), seed, cache=clips)

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

    run_stage(folder / "teacher", stage, network, [optimizer], loss, world, ema)
    with torch.no_grad():
        torch._foreach_copy_([p.detach() for p in ema.parameters], ema.average)
    return network, tokenizer


def save_pipeline(folder: Path, vae: Any, network: TextToLatents, tokenizer: Any) -> None:
    """Write a diffusers folder in half precision."""
    from diffusers import CogVideoXPipeline

    pipeline = CogVideoXPipeline(tokenizer, network.text_encoder, vae, network.transformer, new_scheduler())
    pipeline.to(torch.float16).save_pretrained(folder)
