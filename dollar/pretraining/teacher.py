"""The embedded teacher's text encoder and transformer, trained together on the autoencoder's latents."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from dollar.data import shapes
from dollar.diffusion.draws import Draws
from dollar.diffusion.schedule import Schedule, VariancePreserving, diffuse, expand_like
from dollar.log import progress
from dollar.losses.score_matching import native
from dollar.models.codec import Codec, Normalisation
from dollar.models.roles import trainable
from dollar.parallel.world import World
from dollar.pretraining.autoencoder import CELL, CHANNELS
from dollar.pretraining.stages import START, Stage, optimizers_of, run_stage, take_weights
from dollar.training.average import Average


def weight(attributes: shapes.Attributes) -> float:
    """How many times as often as others a clip is taken: more where the teacher's samples are wrong longest."""
    orbit = 6.0 if attributes.motion == "circling around" else 1.0
    cross = {"small": 3.0, "large": 1.5}[attributes.size] if attributes.shape == "cross" else 1.0
    return orbit * cross


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


def new_transformer(text_length: int, blocks: int = 3, heads: int = 8) -> nn.Module:
    """CogVideoX's transformer of 3.1 million parameters: 80 tokens a clip, 3 blocks of 256 channels.

    A token has 128 numbers. The width, of 32 a head, is twice that, since v-prediction must carry all of their noise
    through.
    """
    from diffusers import CogVideoXTransformer3DModel

    return CogVideoXTransformer3DModel(
        num_attention_heads=heads,
        attention_head_dim=32,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        time_embed_dim=64,
        text_embed_dim=64,
        num_layers=blocks,
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

    def load_pretrained(self, folder: Path) -> None:
        """Take the weights of a diffusers folder; ValueError when it is of another architecture."""
        for network, path in (
            (self.text_encoder, folder / "text_encoder" / "model.safetensors"),
            (self.transformer, folder / "transformer" / "diffusion_pytorch_model.safetensors"),
        ):
            take_weights(network, load_file(path), path, START)

    def forward(self, x_t: Tensor, t: Tensor, ids: Tensor) -> Tensor:
        """x_t [B, C, F, h, w], t [B], ids [B, L] -> v [B, C, F, h, w]."""
        embeddings = self.text_encoder(ids)[0]
        output = self.transformer(x_t.transpose(1, 2), embeddings, t, return_dict=False)[0]
        return output.transpose(1, 2).float()


def evened(a: Tensor, b: Tensor) -> Tensor:
    """Weights [B] that make the error of v more even over the times; a, b [B]: coefficients of data and noise.

    Unweighted, half of what the network follows is the error at almost no and almost nothing but noise, where v can't
    be known; what an object looks like is settled between. The reciprocal follows the measured error's course in time,
    but less at much noise, where the motion is settled.
    """
    return 5 / (1 / b + 1 / (a + 0.4))


LOSSES = ("evened", "native", "cv")


def weights_of(loss: str, a: Tensor, b: Tensor) -> Tensor:
    """Weights [B] of the squared error of v; a, b [B]: coefficients of data and noise.

    evened: as above; native: 1; cv: (a + b)^2, with which it is L_CV, the error of the conjugate velocity (Eq. 4).
    """
    return {"evened": evened(a, b), "native": torch.ones_like(a), "cv": (a + b) ** 2}[loss]


class Batch(NamedTuple):
    """Noised clips: x_t, x_0 and eps [B, C, F, h, w], t [B], and B captions, the empty one where one was dropped."""

    x_t: Tensor
    x_0: Tensor
    eps: Tensor
    t: Tensor
    prompts: list[str]


class NoisedClips:
    """Batches of training clips' latents under noise, a function of seed and step alone.

    They are encoded at the first batch, since a finished stage needs none. drop_caption: fraction of captions replaced
    by the empty one.
    """

    def __init__(
        self, vae: Any, schedule: Schedule, clips: int, batch: int, seed: int, drop_caption: float, world: World
    ) -> None:
        self.schedule, self.size, self.seed, self.drop_caption, self.world = schedule, batch, seed, drop_caption, world
        self._encode = partial(encode_clips, vae, clips, seed, world)

    @cached_property
    def _clips(self) -> tuple[Sequence[str], Tensor, Tensor]:
        captions, latents = self._encode()
        weights = torch.tensor([weight(shapes.parse(caption)) for caption in captions], dtype=torch.double)
        return captions, latents, weights.cumsum(0)

    def batch(self, step: int) -> Batch:
        """This process's share of a step's batch."""
        captions, latents, shares = self._clips
        draws = Draws(self.seed, step, self.world.own(step * self.size, self.size), self.world.device)
        chosen = torch.searchsorted(shares, draws.uniform("clip").cpu().double() * shares[-1], right=True)
        dropped = draws.uniform("caption").cpu() < self.drop_caption
        prompts = ["" if gone else captions[i] for i, gone in zip(chosen.tolist(), dropped.tolist(), strict=True)]
        x_0 = latents[chosen].to(self.world.device)
        t, eps = self.schedule.uniform(draws.uniform("time")), draws.normal("noise", x_0.shape[1:])
        return Batch(diffuse(x_0, eps, t, self.schedule), x_0, eps, t, prompts)


def train_teacher(
    folder: Path,
    vae: Any,
    stage: Stage,
    seed: int,
    clips: int,
    text_length: int,
    drop_caption: float = 0.1,
    decay: float = 0.999,
    world: World = World(),  # noqa: B008
    precision: torch.dtype = torch.float32,
    init: Path | None = None,
    loss_form: str = "evened",
) -> tuple[TextToLatents, Any]:
    """Train text encoder and transformer on v-prediction; returns them with averaged weights, and the tokenizer.

    drop_caption: fraction of captions replaced by the empty one, for guidance; decay: of the averaged weights; init: a
    diffusers folder whose networks are the start, instead of random weights; loss_form: one of LOSSES.
    """
    tokenizer = new_tokenizer()
    torch.manual_seed(seed)
    network = TextToLatents(new_text_encoder(len(tokenizer)), new_transformer(text_length)).to(world.device)
    if init is not None:
        network.load_pretrained(init)
    optimizers = optimizers_of(
        network, stage.lr, stage.lr / 2, outer=("patch_embed", "proj_out", "shared", "relative"), precision=precision
    )
    average = Average(trainable(network), decay)
    device = world.device
    schedule = VariancePreserving(new_scheduler().alphas_cumprod)
    noised = NoisedClips(vae, schedule, clips, stage.batch, seed, drop_caption, world)

    def loss(step: int) -> dict[str, Tensor]:
        x_t, x_0, eps, t, prompts = noised.batch(step)
        ids = tokenizer(prompts, padding="max_length", max_length=text_length, return_tensors="pt").input_ids
        a, b = (c.float().to(device) for c in schedule.coefficients(t))
        with torch.autocast(device.type, precision, enabled=precision != torch.float32):
            v = network(x_t, t, ids.to(device))
        error = native(v, expand_like(a, eps) * eps - expand_like(b, x_0) * x_0)
        return {"total": (weights_of(loss_form, a, b) * error).mean(), "v": error.mean()}

    run_stage(folder / "teacher", stage, network, optimizers, loss, world, average)
    average.keep()
    return network, tokenizer


def shapes_codec(vae: Any) -> Codec:
    """The autoencoder's codec, two clips at a time."""
    factor = vae.config.scaling_factor
    scaling = Normalisation(lambda z: z * factor, lambda latents: latents / factor)
    return Codec(vae, scaling, vae.config.temporal_compression_ratio, clips=2, streams=True, odd=True)


def encode_clips(vae: Any, clips: int, seed: int, world: World) -> tuple[Sequence[str], Tensor]:
    """Captions and scaled latents [N, C, F, h, w] of `clips` training clips; the processes share the work."""
    source, codec = shapes.ShapesClips("train", clips, seed), shapes_codec(vae)
    padded = -(-clips // world.size) * world.size  # an equal share for each process, as `gather` needs
    own, found = list(world.own(0, padded)), []
    for start in progress(range(0, len(own), 16), "encoding clips", active=world.is_main):
        pixels = np.stack([source.clip(i % clips)[0] for i in own[start : start + 16]])  # [16, T, H, W, 3]
        found.append(codec.encode(torch.from_numpy(pixels).permute(0, 1, 4, 2, 3).float() / 255))
    return source.captions, world.gather(torch.cat(found))[:clips].cpu()


def save_pipeline(folder: Path, vae: Any, network: TextToLatents, tokenizer: Any) -> None:
    """Write a diffusers folder in half precision."""
    from diffusers import CogVideoXPipeline

    pipeline = CogVideoXPipeline(tokenizer, network.text_encoder, vae, network.transformer, new_scheduler())
    pipeline.to(torch.float16).save_pretrained(folder)
    # diffusers reads all parts in float32 unless another dtype is given, but transformers in what the config names.
    path = folder / "text_encoder" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"dtype": "float32"}, indent=2) + "\n")
