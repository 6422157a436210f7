"""What a reward's gradient costs at the paper's shapes: by the latent reward model, and through decoder and CLIP."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from statistics import median
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from dollar.benchmarks.memory import FREED_AT_ONCE, Workload, rise, seconds
from dollar.models.codec import Codec, Normalisation
from dollar.models.denoiser import Condition
from dollar.models.latent_reward_model import LatentRewardModel
from dollar.models.pipeline import diffusers_class, empty
from dollar.models.pixel_reward_model import PixelRewardModel
from dollar.models.small_decoder import SmallDecoder
from dollar.rewards.clip import MEAN, STD
from dollar.rewards.pixels import pad

LATENTS = (12, 40, 24, 40)  # channels, latent frames, height and width of a clip of 128 frames
PIXELS = (128, 192, 320)  # frames, height, width
PROMPT = (256, 4096)  # tokens, width of their embeddings
SIDE = 224  # of the square that CLIP looks at
# ViT-H/14, which HPSv2 and PickScore are.
VIT_H: dict[str, Any] = {
    "projection_dim": 1024,
    "vision_config": {
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_hidden_layers": 32,
        "num_attention_heads": 16,
        "patch_size": 14,
        "image_size": SIDE,
        "projection_dim": 1024,
        "hidden_act": "gelu",
    },
    "text_config": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "max_position_embeddings": 77,
        "vocab_size": 49408,
        "projection_dim": 1024,
        "hidden_act": "gelu",
    },
}
SCALE = PIXELS[1] // LATENTS[2]  # pixels on each side of a latent


class LRM(NamedTuple):
    """A latent reward model: whether it reads captions, how it goes through time, whether it looks at pixels."""

    text: bool
    temporal: str
    pixels: bool = False


LRMS = {
    "image LRM": LRM(False, "frames"),
    "text-image LRM": LRM(True, "frames"),
    "image LRM, conv3d": LRM(False, "conv3d"),
    "text-image LRM, conv3d": LRM(True, "conv3d"),
    "image LRM on a small decoder's pixels": LRM(False, "frames", True),
    "text-image LRM on a small decoder's pixels": LRM(True, "frames", True),
}
CLIP, DIRECT, SPREAD = "CLIP", "decoder and CLIP", "decoder and CLIP, frames evenly spaced"
SMALL = "small decoder and CLIP"


@dataclass(frozen=True)
class Variant:
    """What a workload's weights are kept in and on which device; frozen: whether they want no gradient; fused: whether
    attention keeps no table of all pairs; checkpointing: whether CLIP's and the decoder's blocks are recomputed.
    """

    dtype: torch.dtype = torch.float16
    device: str = "meta"
    frozen: bool = True
    fused: bool = True
    checkpointing: bool = False


class Measured(NamedTuple):
    """Of a workload that was really run: median seconds of the reward and of the reward with its gradient, how often
    each was timed, and the bytes by which memory rose; nan where memory was too little or can't be known.
    """

    forward_seconds: float
    gradient_seconds: float
    repeats: int
    forward_rise: float
    gradient_rise: float


def new_workload(kind: str, frames: int, variant: Variant) -> Workload:
    """A reward of one clip, with random weights.

    kind: one of LRMS, on that many latent frames of LATENTS; CLIP, on that many frames of PIXELS; DIRECT, the same on
    that many frames that a decoder makes first, the leading ones of a clip; SPREAD, evenly spaced ones; SMALL, as many
    that a small decoder makes, which has one for each latent frame, so that there are no more than those.
    """
    if kind in LRMS:
        return _latent_reward(frames, LRMS[kind], variant)
    clip = new_clip(variant)
    tokens = torch.ones(1, 77, dtype=torch.long, device=variant.device)
    if kind == CLIP:
        pixels = _random((1, frames, 3, *PIXELS[1:]), variant, torch.float32).requires_grad_()
        return Workload([clip], [pixels, tokens], lambda: score(clip, pixels, tokens))
    latents = _random((1, *LATENTS), variant, torch.float32).requires_grad_()
    if kind == SMALL:
        decoder = new_small_decoder(variant)
        most = min(frames, LATENTS[1])
        held = sorted({round(i * (LATENTS[1] - 1) / max(1, most - 1)) for i in range(most)})
        return Workload(
            [clip, decoder], [latents, tokens], lambda: score(clip, decoder.frozen(latents, held).clamp(0, 1), tokens)
        )
    vae = new_decoder(variant)
    # Only what is before the last wanted frame is decoded: the decoder goes through time.
    codec = Codec(vae, Normalisation(lambda x: x, lambda z: z), ratio=4, streams=True, odd=True)
    vae.train(variant.checkpointing)
    last = PIXELS[0] - 1
    places = range(frames) if kind == DIRECT else sorted({round(i * last / max(1, frames - 1)) for i in range(frames)})

    def reward() -> Tensor:
        return score(clip, codec.decode(latents, places, gradient=torch.is_grad_enabled()), tokens)

    return Workload([clip, vae], [latents, tokens], reward)


def new_small_decoder(variant: Variant) -> Any:
    """A small decoder of LATENTS."""
    with torch.device("meta"):
        decoder = SmallDecoder(LATENTS[0], SCALE)
    return filled(decoder, variant)


def _latent_reward(frames: int, kind: LRM, variant: Variant) -> Workload:
    text_dim, networks = PROMPT[1] if kind.text else None, []
    if kind.pixels:
        decoder = new_small_decoder(variant)
        networks.append(decoder)
    with torch.device("meta"):
        if kind.pixels:
            empty_model: Any = PixelRewardModel(decoder, text_dim, 128, kind.temporal)
        else:
            empty_model = LatentRewardModel(LATENTS[0], text_dim, temporal=kind.temporal)
    model = filled(empty_model, variant)
    networks.insert(0, model)
    x = _random((1, LATENTS[0], frames, *LATENTS[2:]), variant, variant.dtype).requires_grad_()
    if not kind.text:
        return Workload(networks, [x], lambda: model(x))
    prompt = Condition(
        _random((1, *PROMPT), variant, variant.dtype), torch.ones(1, PROMPT[0], dtype=torch.long, device=variant.device)
    )
    return Workload(networks, [x, prompt.embeddings, prompt.mask], lambda: model(x, prompt))


def score(clip: Any, videos: Tensor, tokens: Tensor) -> Tensor:
    """The mean cosine of frames and prompt, [B], of videos [B, T, 3, H, W] in [0, 1] and tokens [B, L]."""
    with torch.no_grad():
        text = clip.text_projection(clip.text_model(input_ids=tokens).pooler_output)
    image = clip.visual_projection(clip.vision_model(pixel_values=_prepared(videos).to(clip.dtype)).pooler_output)
    image = image.unflatten(0, videos.shape[:2])
    return cosine_similarity(image.float(), text[:, None].float(), dim=-1).mean(1)


def _prepared(videos: Tensor) -> Tensor:
    """Frames [B T, 3, SIDE, SIDE] as HPSv2 has them."""
    frames = pad(videos.flatten(0, 1), SIDE)
    mean, deviation = (torch.tensor(values, device=frames.device).view(3, 1, 1) for values in (MEAN, STD))
    return (frames - mean) / deviation


def new_clip(variant: Variant) -> Any:
    """transformers' CLIPModel of the size of ViT-H/14, both towers."""
    from accelerate import init_empty_weights

    kind = diffusers_class("transformers.CLIPModel")
    with init_empty_weights(include_buffers=False):
        clip = kind(kind.config_class(**VIT_H))
    clip.set_attn_implementation("sdpa" if variant.fused else "eager")
    if variant.checkpointing:
        clip.train()
        with warnings.catch_warnings():  # transformers has renamed it, and keeps the old name
            warnings.simplefilter("ignore", FutureWarning)
            clip.gradient_checkpointing_enable({"use_reentrant": False})
    else:
        clip.eval()
    return filled(clip, variant)


def new_decoder(variant: Variant) -> Any:
    """The decoder of CogVideoX-2B's autoencoder, with latents of as many channels as the paper's has."""
    vae = cast(Any, empty("AutoencoderKLCogVideoX", {"latent_channels": LATENTS[0]}))
    del vae.encoder
    if variant.checkpointing:
        vae.enable_gradient_checkpointing()
    return filled(vae, variant)


def filled(network: nn.Module, variant: Variant) -> nn.Module:
    """A network of parameters on the meta device with random ones where they should be."""
    for module in network.modules():
        for name, p in module.named_parameters(recurse=False):
            if p.ndim > 1:
                value = _random(tuple(p.shape), variant, variant.dtype).mul_(p[0].numel() ** -0.5)
            else:
                value = torch.full_like(p, float(name == "weight"), device=variant.device, dtype=variant.dtype)
            setattr(module, name, nn.Parameter(value, requires_grad=not variant.frozen))
    return nn.Module.to(network, variant.device)  # the buffers; diffusers' own `to` does more than move


def _random(shape: tuple[int, ...], variant: Variant, dtype: torch.dtype) -> Tensor:
    """Numbers of spread 1; time doesn't depend on which, as long as they are neither all zero nor too small."""
    return torch.empty(shape, dtype=dtype, device=variant.device).uniform_(-(3**0.5), 3**0.5)


def measure(kind: str, frames: int, variant: Variant, threads: int, repeats: int, patience: float) -> Measured | str:
    """Run a workload, timed in one process and weighed in another, each its own; a sentence where one was killed."""
    try:
        forward, gradient = _alone({}, _time, kind, frames, variant, threads, repeats, patience)
        rises = _alone(FREED_AT_ONCE, _weigh, kind, frames, variant, threads)
    except BrokenProcessPool:
        return "its process was killed, most likely for want of memory"
    except torch.OutOfMemoryError:
        return "out of memory"
    return Measured(median(forward), median(gradient), len(gradient), *rises)


def _alone(environment: Mapping[str, str], function: Any, *args: Any) -> Any:
    """What a function returns in a fresh process."""
    with _environment(environment), ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(function, *args).result()


@contextmanager
def _environment(changes: Mapping[str, str]) -> Iterator[None]:
    """These variables for processes that are started within, and none else that governs how memory is kept."""
    before = dict(os.environ)
    for name in [name for name in before if name.startswith("MALLOC_")]:
        del os.environ[name]
    os.environ.update(changes)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _started(kind: str, frames: int, variant: Variant, threads: int) -> Workload:
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    return new_workload(kind, frames, variant)


def _time(
    kind: str, frames: int, variant: Variant, threads: int, repeats: int, patience: float
) -> tuple[list[float], ...]:
    work, device = _started(kind, frames, variant, threads), torch.device(variant.device)
    work.gradient()  # what is slow the first time
    return tuple(seconds(function, repeats, patience, device) for function in (work.forward, work.gradient))


def _weigh(kind: str, frames: int, variant: Variant, threads: int) -> tuple[float, float]:
    work, device = _started(kind, frames, variant, threads), torch.device(variant.device)
    work.forward()  # what is made once and kept: threads, libraries
    found = []
    for function in (work.forward, work.gradient):
        with rise(device) as rose:
            function()
        found.append(rose.bytes)
    return found[0], found[1]
