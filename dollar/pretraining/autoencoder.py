"""The embedded video autoencoder, from nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from safetensors.torch import load_file
from torch import Tensor, nn

from dollar.data import shapes
from dollar.parallel.world import World
from dollar.pretraining.critic import Critic, adversarial_losses, share_of
from dollar.pretraining.stages import START, Stage, optimizers_of, run_stage, take_weights

CROP, SHORT = 32, 9  # pixels and frames of the windows around the object that the autoencoder learns from
CELL = (4, 4, 4)  # frames and pixels that become one latent
CHANNELS = 8
EVENNESS = 0.75  # 0 leaves the channels as unequal as the pixels' components, 1 gives all unit variance


class Cells:
    """The latents that the autoencoder is taught: the leading principal components of cells of 4 frames by 4x4 pixels.

    A small CogVideoX autoencoder finds latents of its own only very slowly (docs/log.md). These are known at once and
    keep what matters (8 of 192), so encoder and decoder learn them first and find better ones from there. The first
    frame is a cell of its own, as if it had stood still.
    """

    def __init__(self, mean: Tensor, basis: Tensor, scale: Tensor) -> None:
        self.mean, self.basis, self.scale = mean, basis, scale  # [192], [C, 192], [C]

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
        """Latents [B, C, F, h, w] of pixels [B, 3, T, H, W] in [-1, 1]."""
        components = (self._cut(pixels) - self.mean) @ (self.basis * self.scale[:, None]).T
        return rearrange(components, "b f h w c -> b c f h w")


def new_autoencoder() -> Any:
    """CogVideoX's autoencoder, small: 4x in time, 4x4 in space, 8 channels."""
    from diffusers import AutoencoderKLCogVideoX

    vae = AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 3,
        up_block_types=("CogVideoXUpBlock3D",) * 3,
        block_out_channels=(8, 16, 48),
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

    From the library's own random start the same network needs four times the updates to distinguish colours.
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


def random_clips(samples: Iterable[int], seed: int, hard: float = 0.0) -> list[np.ndarray]:
    """Training clips drawn anew for every global sample index, uint8 [T, H, W, 3]; hard: the fraction of `is_hard`."""
    every, clips = shapes.captions("train"), []
    hardest = [caption for caption in every if is_hard(shapes.parse(caption))]
    for sample in samples:
        rng = np.random.Generator(np.random.PCG64([seed, sample]))
        captions = hardest if hard > 0 and rng.random() < hard else every
        clips.append(shapes.render(shapes.parse(captions[rng.integers(len(captions))]), int(rng.integers(2**31))))
    return clips


def is_hard(attributes: shapes.Attributes) -> bool:
    """What a small decoder gets wrong first: paths that bend within a cell, and the corners of small shapes."""
    return attributes.motion == "circling around" or (
        attributes.size == "small" and attributes.shape in ("triangle", "cross")
    )


def to_pixels(clips: Sequence[np.ndarray]) -> Tensor:
    """[B, 3, T, H, W] in [-1, 1] of uint8 clips."""
    return torch.from_numpy(np.stack(clips)).permute(0, 4, 1, 2, 3).float() / 127.5 - 1


def whole_clips(samples: Iterable[int], seed: int, hard: float = 0.0) -> Tensor:
    """Pixels [B, 3, T, H, W] of whole clips."""
    return to_pixels(random_clips(samples, seed, hard))


def windows(samples: Iterable[int], seed: int, hard: float = 0.0) -> Tensor:
    """Pixels [2 B, 3, 9, 32, 32]: two short windows around each clip's (small) object."""
    rng = np.random.Generator(np.random.PCG64([seed, *samples]))
    return to_pixels([_window(clip, rng) for clip in random_clips(samples, seed, hard) for _ in range(2)])


def _window(clip: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    first = rng.integers(0, shapes.FRAMES - SHORT + 1)
    differs = np.abs(clip.astype(int) - clip[:, :1, :1]).sum(-1) > 90
    ys, xs = np.nonzero(differs[rng.integers(first, first + SHORT)])
    pick = rng.integers(len(ys))
    y = int(np.clip(ys[pick] - rng.integers(4, CROP - 4), 0, shapes.HEIGHT - CROP))
    x = int(np.clip(xs[pick] - rng.integers(4, CROP - 4), 0, shapes.WIDTH - CROP))
    return clip[first : first + SHORT, y : y + CROP, x : x + CROP]


Losses = dict[str, Tensor]  # `total` is what is descended; the rest are logged


def decoder_loss(vae: Any, cells: Cells, pixels: Tensor) -> Losses:
    """Error of the pixels decoded from the taught latents."""
    return _pixel_loss(vae, cells.encode(pixels), pixels, noise=0.02)


def encoder_loss(vae: Any, cells: Cells, pixels: Tensor) -> Losses:
    """Distance of the encoder's mean from the taught latents."""
    error = vae.encode(pixels).latent_dist.mean - cells.encode(pixels)
    return {"total": error.abs().mean() + error.square().mean(), "latents": error.abs().mean()}


def joint_loss(vae: Any, cells: Cells, pixels: Tensor, anchor: float = 0.01) -> Losses:
    """Error of clips that passed encoder and decoder; the latents may leave the taught ones where it pays.

    anchor: the price of leaving, which also keeps the latents' scale; without it they would outgrow the noise.
    """
    latents = vae.encode(pixels).latent_dist.mean
    drift = (latents - cells.encode(pixels)).abs().mean()
    losses = _pixel_loss(vae, latents, pixels, noise=0.05)
    return losses | {"total": losses["total"] + anchor * drift, "drift": drift}


def finishing_loss(vae: Any, pixels: Tensor) -> Losses:
    """The decoder's error on the finished encoder's latents, with edges of the clips' own energy."""
    return _pixel_loss(vae, _encoded(vae, pixels), pixels, noise=0.05, sharpen=2.0)


def sharpening_loss(vae: Any, critic: Critic, pixels: Tensor, share: float = 2.0) -> Losses:
    """The same, while a critic is learning to distinguish the decoded clips from their originals.

    share: the size of the critic's gradient at the decoded pixels relative to that of all other terms.
    """
    decoded = _decoded(vae, _encoded(vae, pixels), noise=0.05)
    losses = _errors(decoded, pixels, sharpen=2.0)
    deceive, tell_apart = adversarial_losses(critic, decoded, pixels)
    factor = share_of(deceive, losses["total"], decoded, share)
    total = losses["total"] + factor * deceive + tell_apart
    return losses | {"total": total, "deceive": deceive, "tell_apart": tell_apart}


@torch.no_grad()
def _encoded(vae: Any, pixels: Tensor) -> Tensor:
    return vae.encode(pixels).latent_dist.mean


def _decoded(vae: Any, latents: Tensor, noise: float) -> Tensor:
    """noise: deviation of what is added to the latents, for a decoder that bears the small errors of a denoiser."""
    return vae.decode(latents + noise * torch.randn_like(latents)).sample


def _pixel_loss(vae: Any, latents: Tensor, pixels: Tensor, noise: float, sharpen: float = 0.0) -> Losses:
    return _errors(_decoded(vae, latents, noise), pixels, sharpen)


def _errors(decoded: Tensor, pixels: Tensor, sharpen: float) -> Losses:
    """Mean error of decoded pixels and of their differences, since edges make the shape and changes the motion.

    A decoder that doubles frames tends to show each twice; differences in time count more, so that it doesn't. Absolute
    errors grow in proportion to an edge's displacement, and don't care which of two frames bears it; the squared error
    of blurred pixels grows faster and shares it.
    sharpen: weight of the energy of edges. Where an edge may lie a little to either side, a mean error is least for one
    that is soft; its energy in the neighbourhood (squared differences over 5x5 pixels) is right only if it is sharp.
    """
    error = decoded - pixels
    changes, rows, columns = (error.diff(dim=d).abs().mean() for d in (2, 3, 4))
    displaced = nn.functional.avg_pool3d(error, (1, 5, 5), (1, 2, 2)).square().mean()
    total = error.abs().mean() + 0.5 * (rows + columns) + 1.5 * changes + 20 * displaced
    parts = {"edges": rows + columns, "changes": changes, "displaced": displaced}
    if sharpen > 0:
        parts["softness"] = (edge_energy(decoded) - edge_energy(pixels)).abs().mean()
        total = total + sharpen * parts["softness"]
    return {"total": total, "pixels": error.abs().mean(), **parts}


def edge_energy(pixels: Tensor) -> Tensor:
    """Mean squared difference of neighbouring pixels, across and down, around each pixel; both [B, 3, T, H, W]."""
    down, across = (nn.functional.pad(pixels.diff(dim=d).square(), pad) for d, pad in ((3, (0, 0, 0, 1)), (4, (0, 1))))
    return nn.functional.avg_pool3d(down + across, (1, 5, 5), 1, (0, 2, 2))


STAGES = ("decoder", "encoder", "joint", "finish", "sharpen")


def train_autoencoder(
    folder: Path,
    stages: dict[str, Stage],
    seed: int,
    world: World,
    precision: torch.dtype = torch.float32,
    init: Path | None = None,
) -> Any:
    """Teach the decoder, then the encoder, train both together, finish and sharpen the decoder; resumes from `folder`.

    stages: one for each of STAGES. init: a diffusers folder whose autoencoder is the start, instead of random weights.
    """
    torch.manual_seed(seed)
    vae = new_autoencoder().to(world.device)
    if init is not None:
        path = init / "vae" / "diffusion_pytorch_model.safetensors"
        take_weights(vae, load_file(path), path, START)
    with torch.no_grad():  # the encoder is certain of its latents: no noise worth the name is ever added
        vae.encoder.conv_out.conv.bias[CHANNELS:] = -12.0
        vae.encoder.conv_out.conv.weight[CHANNELS:] = 0.0
    cells = cache(partial(Cells.fit, seed))  # at the first update that follows them; a finished stage needs none
    critic = Critic().to(world.device)
    decoder_and_critic = nn.ModuleDict({"decoder": vae.decoder, "critic": critic})
    losses: dict[str, tuple[nn.Module, Callable[[Tensor], Losses]]] = {
        "decoder": (vae.decoder, lambda pixels: decoder_loss(vae, cells(), pixels)),
        "encoder": (vae.encoder, lambda pixels: encoder_loss(vae, cells(), pixels)),
        "joint": (vae, lambda pixels: joint_loss(vae, cells(), pixels)),
        "finish": (vae.decoder, partial(finishing_loss, vae)),
        "sharpen": (decoder_and_critic, partial(sharpening_loss, vae, critic)),
    }
    for name in STAGES:
        stage, (trained, loss_of) = stages[name], losses[name]

        def loss(step: int, name: str = name, stage: Stage = stage, loss_of: Any = loss_of) -> Losses:
            own = world.own(step * stage.batch, stage.batch)
            torch.manual_seed(seed * 1_000_003 + own[0])  # the noise of the latents
            # A window costs an eighth of a clip, but only whole clips have the statistics that the norms will see.
            whole = name != "decoder" and step % 3 == 0
            own, cut = (own[: -(-len(own) // 2)], whole_clips) if whole else (own, windows)
            pixels = cut(own, seed, hard=0.75)
            with torch.autocast(world.device.type, precision, enabled=precision != torch.float32):
                return loss_of(pixels.to(world.device))

        if name == "sharpen":
            optimizers = optimizers_of(vae.decoder, stage.lr, stage.lr / 5, outer=("conv_out",), precision=precision)
            optimizers.append(torch.optim.Adam(critic.parameters(), lr=stage.lr, betas=(0.5, 0.99)))
        else:
            optimizers = optimizers_of(trained, stage.lr, stage.lr / 5, outer=("conv_out",), precision=precision)
        run_stage(folder / f"vae_{name}", stage, trained, optimizers, loss, world)
    _settle_scale(vae, whole_clips(range(64), seed))
    return vae


@torch.no_grad()
def _settle_scale(vae: Any, pixels: Tensor) -> None:
    """Give the pipeline the factor that makes the latents' deviation 1."""
    latents = torch.cat([vae.encode(part.to(vae.device)).latent_dist.mode() for part in pixels.split(2)])
    vae.register_to_config(scaling_factor=round(1 / float(latents.std()), 4))
