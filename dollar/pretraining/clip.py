"""The embedded CLIP: pictures and captions of the shapes world in one space, trained from nothing."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dollar.data import shapes
from dollar.models.roles import trainable
from dollar.parallel.world import World
from dollar.pretraining.pictures import Pool, Visible, decoded, rendered, spoilt, stack, visible, worse
from dollar.pretraining.stages import Stage, optimizers_of, run_stage
from dollar.pretraining.teacher import shapes_codec
from dollar.rewards.clip import MEAN, STD
from dollar.rewards.open_clip import to_open_clip
from dollar.training.average import Average

SIZE = shapes.HEIGHT
LENGTH = 16  # tokens a caption is padded to; one of the world's has 12 with its start and end
HEAD = 32  # width of an attention head, in both towers
MOST_SCALE = 100.0  # of the cosines, as in CLIP
GAP = 4.0  # how much smaller a logit ought to be for each attribute that is wrong
FALL = 6.0  # and when the picture is spoilt by level 1
GROUP = 4  # neighbouring samples that differ in nothing but shape and motion, or not at all
NO_MOTION = 0.25  # fraction of captions without their motion, for prompts that leave it out
NOISE = 0.1  # deviation of what is added to half of the latents before they are decoded; their own is 1


@dataclass(frozen=True)
class Pictures:
    """How many training clips the frames come from: rendered ones, and others that passed the autoencoder."""

    rendered: int = 4096
    decoded: int = 512

    def __post_init__(self) -> None:
        for name in ("rendered", "decoded"):
            if getattr(self, name) < 2:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 2")


def new_tokenizer() -> Any:
    """One token a word of the shapes world; the end has the largest id, by which open_clip finds it."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = sorted({word for caption in shapes.captions("all") for word in caption.split()})
    vocabulary = {word: i for i, word in enumerate(("<pad>", "<unk>", *words, "<start>", "<end>"))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [(token, vocabulary[token]) for token in ("<start>", "<end>")]
    tokenizer.post_processor = processors.TemplateProcessing(single="<start> $A <end>", special_tokens=ends)
    special = {"bos_token": "<start>", "eos_token": "<end>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=LENGTH, **special)


def new_clip(tokenizer: Any, width: int = 96, text_width: int = 64, layers: int = 4, text_layers: int = 3) -> nn.Module:
    """A CLIP of 0.64 million parameters: 64 patches of 8x8 pixels in 4 layers, 16 tokens in 3."""
    from transformers import CLIPConfig, CLIPModel

    def tower(width: int, layers: int) -> dict[str, Any]:
        return {
            "hidden_size": width,
            "intermediate_size": 4 * width,
            "num_hidden_layers": layers,
            "num_attention_heads": width // HEAD,
            "hidden_act": "gelu",
            "projection_dim": text_width,
        }

    text = tower(text_width, text_layers) | {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": LENGTH,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    vision = tower(width, layers) | {"image_size": SIZE, "patch_size": SIZE // 8}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=text_width))


def embed_pictures(network: Any, pictures: Tensor) -> Tensor:
    """[B, D] of length 1, float32, of pictures [B, 3, H, W] in [0, 1]."""
    mean, std = (torch.tensor(c, device=pictures.device)[:, None, None] for c in (MEAN, STD))
    pooled = network.vision_model((pictures - mean) / std).pooler_output
    return F.normalize(network.visual_projection(pooled).float(), dim=1)


def embed_texts(network: Any, tokenizer: Any, texts: Sequence[str]) -> Tensor:
    """[B, D] of length 1, float32."""
    ids = tokenizer(list(texts), padding="max_length", truncation=True, return_tensors="pt").input_ids
    pooled = network.text_model(ids.to(network.logit_scale.device)).pooler_output
    return F.normalize(network.text_projection(pooled).float(), dim=1)


def contrastive(pictures: Tensor, texts: Tensor, odds: Tensor, scale: Tensor) -> Tensor:
    """CLIP's symmetric loss where a text may have several pictures and a picture several texts; a scalar.

    pictures: [N, D] and texts: [B, D] of length 1; odds: [N, B], how well a picture shows a text, 1 where it does. A
    text is shared out over all pictures in proportion to its odds, and a picture over the texts likewise, so that
    logits learn to differ by the odds' logarithms; a picture without any odds is a picture of no text.
    """
    logits = scale * pictures @ texts.T
    of_texts = -(odds / odds.sum(0) * logits.log_softmax(0)).sum(0)
    shown = odds.sum(1) > 0
    own = odds[shown]
    of_pictures = -(own / own.sum(1, keepdim=True) * logits[shown].log_softmax(1)).sum(1)
    return (of_texts.mean() + of_pictures.mean()) / 2


class ContrastiveBatch(NamedTuple):
    """pictures: [N, 3, H, W] in [0, 1]; texts: B captions; odds: [N, B] as in `contrastive`."""

    pictures: Tensor
    texts: list[str]
    odds: Tensor


def batch_of(pools: Sequence[Pool], samples: Sequence[int], seed: int) -> ContrastiveBatch:
    """For every sample a text, a picture and a worse one of the same clip, and for every third a spoilt one."""
    good, bad, none, texts, seen, levels = [], [], [], [], [], []
    for i, sample in enumerate(samples):
        rng = np.random.Generator(np.random.PCG64([seed, sample, 6]))
        pool = pools[int(rng.integers(len(pools)))]
        clip, stranger = pool.like(_leader(pools[0], sample // GROUP, seed), rng), int(rng.integers(len(pool.frames)))
        first, second, third, fourth = _frames(pool, clip, stranger, rng)
        levels.append(rng.random())
        good.append(first)
        bad.append(worse(second, levels[-1], rng))
        if i % 3 == 0:
            none.append(spoilt(third, fourth, rng))
        texts.append(text_of(pool.attributes[clip], rng.random() >= NO_MOTION))
        seen.append(visible(pool.attributes[clip]))
    right = odds_of(seen)
    lower = right * torch.tensor(levels, dtype=torch.float32)[:, None].mul(-FALL).exp()
    return ContrastiveBatch(
        stack([*good, *bad, *none]), texts, torch.cat([right, lower, torch.zeros(len(none), len(seen))])
    )


def odds_of(seen: Sequence[Visible]) -> Tensor:
    """[B, B]: 1 where two look the same, and exp(-GAP) for each attribute in which they don't."""
    wrong = [[sum(x != y for x, y in zip(a, b, strict=True)) for b in seen] for a in seen]
    return torch.tensor(wrong, dtype=torch.float32).mul(-GAP).exp()


def _leader(pool: Pool, group: int, seed: int) -> shapes.Attributes:
    """What a group of samples looks like, but for the shape."""
    rng = np.random.Generator(np.random.PCG64([seed, group, 7]))
    return pool.attributes[rng.integers(len(pool.attributes))]


def _frames(pool: Pool, clip: int, stranger: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Three frames of a clip and one of another, as they are or mirrored."""
    found = [pool.frames[c][rng.integers(pool.frames.shape[1])] for c in (clip, clip, clip, stranger)]
    return [frame[:, ::-1] if rng.random() < 0.5 else frame for frame in found]


def text_of(attributes: shapes.Attributes, motion: bool = True) -> str:
    """The caption, or the same without its motion."""
    caption = shapes.caption(attributes)
    return caption if motion else caption.replace(f" {attributes.motion}", "")


def train_clip(
    folder: Path,
    vae: Any,
    stage: Stage,
    pictures: Pictures,
    seed: int,
    decay: float = 0.998,
    world: World = World(),  # noqa: B008
    precision: torch.dtype = torch.float32,
    new: Callable[[Any], nn.Module] = new_clip,
) -> tuple[nn.Module, Any]:
    """Train on training captions; returns the network with averaged weights, and the tokenizer.

    vae: the autoencoder that some of the pictures pass. decay: of the averaged weights. Several processes contrast
    only the samples of their own share of a batch.
    """
    tokenizer = new_tokenizer()
    torch.manual_seed(seed)
    network: Any = new(tokenizer).to(world.device)
    optimizers = optimizers_of(network, stage.lr, stage.lr / 4, outer=("embedding", "projection"), precision=precision)
    average = Average(trainable(network), decay)

    @cache  # at the first update; a finished stage needs none
    def pools() -> list[Pool]:
        codec, half = shapes_codec(vae), pictures.decoded // 2
        kept = decoded(half, seed, codec, active=world.is_main)
        shaken = decoded(pictures.decoded - half, seed + 2, codec, NOISE, world.is_main)
        return [rendered(pictures.rendered, seed), _together(kept, shaken)]

    def loss(step: int) -> dict[str, Tensor]:
        limit_scale(network)
        batch = batch_of(pools(), world.own(step * stage.batch, stage.batch), seed)
        with torch.autocast(world.device.type, precision, enabled=precision != torch.float32):
            shown = embed_pictures(network, batch.pictures.to(world.device))
            captions = embed_texts(network, tokenizer, batch.texts)
        scale = network.logit_scale.exp()
        total = contrastive(shown, captions, batch.odds.to(world.device), scale)
        return {"total": total, "scale": scale}

    run_stage(folder / "clip", stage, network, optimizers, loss, world, average)
    average.keep()
    limit_scale(network)
    return network.eval(), tokenizer


def _together(*pools: Pool) -> Pool:
    return Pool(np.concatenate([p.frames for p in pools]), [a for p in pools for a in p.attributes])


@torch.no_grad()
def limit_scale(network: Any) -> None:
    """Hold the factor of the cosines at 100 or below."""
    network.logit_scale.clamp_(max=math.log(MOST_SCALE))


def save_clip(folder: Path, network: Any, tokenizer: Any) -> None:
    """Write the folder in half precision, as transformers reads it and in the form of HPSv2's checkpoint."""
    from transformers import CLIPImageProcessorPil

    half = copy.deepcopy(network).half()
    half.save_pretrained(folder)
    tokenizer.backend_tokenizer.no_padding()  # its last padding would be written too
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.save_pretrained(folder)
    sides = {"height": SIZE, "width": SIZE}
    CLIPImageProcessorPil(
        size={"shortest_edge": SIZE}, crop_size=sides, image_mean=MEAN, image_std=STD
    ).save_pretrained(folder)
    # transformers would read the network in what the config names.
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"dtype": "float32"}, indent=2) + "\n")
    torch.save({"state_dict": to_open_clip(half.state_dict())}, folder / "HPS_v2.1_compressed.pt")
    (folder / "open_clip_config.json").write_text(json.dumps(open_clip_config(network.config), indent=2) + "\n")


def open_clip_config(config: Any) -> dict[str, Any]:
    """The same architecture in open_clip's config."""
    vision, text = config.vision_config, config.text_config
    return {
        "model_cfg": {
            "embed_dim": config.projection_dim,
            "vision_cfg": {
                "image_size": vision.image_size,
                "layers": vision.num_hidden_layers,
                "width": vision.hidden_size,
                "head_width": vision.hidden_size // vision.num_attention_heads,
                "patch_size": vision.patch_size,
            },
            "text_cfg": {
                "context_length": text.max_position_embeddings,
                "vocab_size": text.vocab_size,
                "width": text.hidden_size,
                "heads": text.num_attention_heads,
                "layers": text.num_hidden_layers,
            },
        },
        "preprocess_cfg": {"mean": list(MEAN), "std": list(STD)},
    }


@torch.no_grad()
def cosines(network: Any, tokenizer: Any, pictures: Tensor, texts: Sequence[str]) -> Tensor:
    """[N, B] on the CPU of pictures [N, 3, H, W] in [0, 1] with B texts."""
    device = network.logit_scale.device
    shown = torch.cat([embed_pictures(network, part.to(device)) for part in pictures.split(64)])
    captions = torch.cat([embed_texts(network, tokenizer, texts[i : i + 256]) for i in range(0, len(texts), 256)])
    return (shown @ captions.T).cpu()
