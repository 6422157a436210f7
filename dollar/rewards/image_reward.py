"""ImageReward: a BLIP that was fitted to which of two pictures people prefer for a text."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dollar.rewards import clip
from dollar.rewards.clip import SteadyGradient
from dollar.rewards.frames import FrameReward, Frames, check_frames, check_videos, pick
from dollar.rewards.pixels import crop
from dollar.rewards.weights import described, fill, locate, read_json, read_tensors, transformers_class

FILES = ("ImageReward.pt", "med_config.json")
VOCABULARIES = ("vocab.txt", "tokenizer.json", "tokenizer_config.json")
UNITS = ("standardised", "raw")
MEAN, DEVIATION = 0.16717362830052426, 1.0333394966054072  # of the raw score over the publishers' validation pictures
LENGTH = 35  # tokens a prompt is padded or cut to
HEAD_WIDTH = 64  # of attention in BLIP's vision transformers, whatever their size
# BLIP's names for the vision transformer's tensors, and transformers' own; those of the text encoder are the same.
VISION = {
    "cls_token": "embeddings.class_embedding",
    "pos_embed": "embeddings.position_embedding",
    "patch_embed.proj.": "embeddings.patch_embedding.",
    "blocks.": "encoder.layers.",
    ".attn.qkv.": ".self_attn.qkv.",
    ".attn.proj.": ".self_attn.projection.",
    ".norm1.": ".layer_norm1.",
    ".norm2.": ".layer_norm2.",
}


class ImageReward(FrameReward):
    """How much people would like the frames as pictures of the caption, averaged over the frames.

    From Xu et al., ImageReward: learning and evaluating human preferences for text-to-image generation, 2023: BLIP's
    text encoder looks at the frame by cross-attention, and an MLP reads the first token.
    path: a folder or hub id with ImageReward.pt and med_config.json. tokenizer: a folder or hub id with BERT's; the one
    in `path` goes before it. unit: "standardised", as published, about 0 with deviation 1, or "raw". frames: how many
    evenly spaced frames of a clip are looked at (and decoded); "all" or None is all. batch: frames at once.
    ValueError where weights or tokenizer are missing, or the weights are of something else.
    """

    differentiable = True

    def __init__(
        self,
        path: str | Path = "THUDM/ImageReward",
        tokenizer: str | Path = "google-bert/bert-base-uncased",
        unit: str = "standardised",
        frames: Frames = 8,
        batch: int = 16,
    ) -> None:
        if unit not in UNITS:
            raise ValueError(f"reward.unit is {unit!r}; ImageReward has {' and '.join(UNITS)}")
        if batch < 1:
            raise ValueError(f"reward.batch is {batch}; give at least 1")
        self.unit = unit
        self.frames = check_frames(frames)
        self.batch = batch
        folder = locate(path, "reward.path", (*FILES, *VOCABULARIES), f"a folder with {' and '.join(FILES)}")
        if absent := [name for name in FILES if not (folder / name).is_file()]:
            raise ValueError(f"{folder} lacks {' and '.join(absent)}; the hub's THUDM/ImageReward has them")
        self.tokenizer = _tokenizer(folder, tokenizer)
        state = read_tensors(folder / FILES[0])
        self.blip = Blip(state, read_json(folder / FILES[1]), folder / FILES[0])

    def scores(self, videos: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        """[B] in both units, by their names; videos as in `score`."""
        raw = self._raw(videos, prompts).mean(1)
        return {unit: self._in(raw, unit) for unit in UNITS}

    def score_frames(self, videos: Tensor, prompts: Sequence[str]) -> Tensor:
        """[B, n], float32, in `unit`; videos [B, T, 3, H, W] in [0, 1]. A clip that isn't finite has nan in all."""
        return self._in(self._raw(videos, prompts), self.unit)

    def _in(self, raw: Tensor, unit: str) -> Tensor:
        return (raw - MEAN) / DEVIATION if unit == "standardised" else raw

    def _raw(self, videos: Tensor, prompts: Sequence[str]) -> Tensor:
        """[B, n], the frames' raw scores."""
        check_videos(videos, "ImageReward")
        seen = pick(videos, self.frames)
        whole = seen.flatten(1).isfinite().all(1)
        seen = seen.clamp(0, 1)
        raw = torch.full(seen.shape[:2], float("nan"), device=videos.device)
        if bool(whole.any()):
            good = whole.nonzero().flatten().tolist()
            texts = [prompts[i] for i in good for _ in range(seen.shape[1])]
            found = torch.cat(list(self._raw_scores(seen[whole].flatten(0, 1), texts)))
            raw[whole] = found.reshape(len(good), -1)
        return raw

    def _raw_scores(self, frames: Tensor, texts: list[str]) -> Iterator[Tensor]:
        """The raw scores of frames [N, 3, H, W] with a text each, a batch at a time."""
        self.blip.move(frames.device)
        for start in range(0, len(frames), self.batch):
            tokens = self._tokens(texts[start : start + self.batch])
            pixels = square(frames[start : start + self.batch], self.blip.size)
            yield self.blip(pixels, tokens.input_ids.to(frames.device), tokens.attention_mask.to(frames.device))

    def _tokens(self, texts: list[str]) -> Any:
        return self.tokenizer(texts, padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt")


class Blip(nn.Module):
    """ImageReward's network: a vision transformer, a text encoder that looks at it, and an MLP on the first token.

    state: the published checkpoint's tensors by its names; text: what med_config.json says. The vision transformer's
    sizes are those of its tensors. path: where they are from, for the sentences about wrong ones.
    """

    def __init__(self, state: Mapping[str, Tensor], text: Mapping[str, Any], path: Path) -> None:
        super().__init__()
        parts = split(state)
        if absent := [name for name, part in parts.items() if not part]:
            raise ValueError(f"{path} is no checkpoint of ImageReward: it has no {' and no '.join(absent)}")
        vision = _vision_config(parts["blip.visual_encoder"], path)
        self.size = vision.image_size
        self.vision: Any = _fill(transformers_class("BlipVisionModel"), vision, parts["blip.visual_encoder"], path)
        with described("med_config.json", "BLIP"):
            config = transformers_class("BlipTextConfig")(
                **{k: v for k, v in text.items() if k not in ("architectures", "model_type", "encoder_width")}
                | {"encoder_hidden_size": vision.hidden_size, "is_decoder": True}  # a decoder has the cross-attention
            )
        self.text: Any = _fill(_text_model(), config, parts["blip.text_encoder"], path)
        widths = [config.hidden_size, 1024, 128, 64, 16, 1]
        names = ("0", "2", "4", "6", "7")  # dropout, which does nothing here, has the numbers between
        self.head = nn.ModuleDict(
            {n: nn.Linear(*sizes) for n, sizes in zip(names, itertools.pairwise(widths), strict=True)}
        )
        fill(self.head, parts["mlp.layers"], path, "ImageReward")

    def move(self, device: torch.device) -> None:
        """To the device of the frames; BLIP in half precision where that is a GPU, the MLP never."""
        if next(self.head.parameters()).device != device:
            self.to(device)
            dtype = torch.float16 if device.type == "cuda" else torch.float32
            self.vision.to(dtype)
            self.text.to(dtype)

    def forward(self, pixels: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        """[N] raw scores, float32, of normalised pixels [N, 3, size, size] and tokens [N, LENGTH] with their mask."""
        steady = SteadyGradient(self.vision.dtype)
        picture = self.vision(pixel_values=steady.into(pixels)).last_hidden_state
        seen = self.text(
            input_ids=tokens,
            attention_mask=mask,
            encoder_hidden_states=picture,
            encoder_attention_mask=torch.ones(picture.shape[:2], dtype=torch.long, device=picture.device),
        )
        x = steady.out_of(seen.last_hidden_state[:, 0])
        for layer in self.head.values():
            x = layer(x)
        return x.squeeze(1)


def split(state: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """A checkpoint's tensors in transformers' names, by the part that they belong to; the rest is left out.

    BLIP's own two projections are among the rest: they serve its contrastive loss.
    """
    parts: dict[str, dict[str, Tensor]] = {"blip.visual_encoder": {}, "blip.text_encoder": {}, "mlp.layers": {}}
    for name, value in state.items():
        for part, tensors in parts.items():
            inner = name.removeprefix(part + ".")
            if inner == name or inner.endswith("position_ids"):  # a buffer that older versions stored
                continue
            if part == "blip.visual_encoder":
                for theirs, ours in VISION.items():
                    inner = inner.replace(theirs, ours)
                inner = inner.replace("norm.", "post_layernorm.") if inner.startswith("norm.") else inner
            tensors[inner] = value
    return parts


def square(frames: Tensor, size: int) -> Tensor:
    """[N, 3, size, size], float32, normalised: the shorter side scaled to `size`, then the middle cut out.

    frames: [N, 3, H, W] in [0, 1]. In 8 bits by PIL as published, or in float32 where a gradient must come back.
    """
    middle = crop(frames, size, size, nearest=True)  # torchvision's middle
    mean, std = (middle.new_tensor(values)[:, None, None] for values in (clip.MEAN, clip.STD))
    return (middle - mean) / std


def _vision_config(state: Mapping[str, Tensor], path: Path) -> Any:
    """BlipVisionConfig of the sizes that these tensors have."""
    try:
        width, _, patch, _ = state["embeddings.patch_embedding.weight"].shape
        inner = len(state["encoder.layers.0.mlp.fc1.weight"])
        cells = state["embeddings.position_embedding"].shape[1] - 1
    except (KeyError, ValueError, IndexError) as error:
        raise ValueError(
            f"{path} has no vision transformer of BLIP's: {error} is missing or of another shape"
        ) from None
    return transformers_class("BlipVisionConfig")(
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=len({name.split(".")[2] for name in state if name.startswith("encoder.layers.")}),
        num_attention_heads=max(1, width // HEAD_WIDTH),
        image_size=round(cells**0.5) * patch,
        patch_size=patch,
        layer_norm_eps=1e-6,  # as BLIP's, where transformers has 1e-5
    )


def _text_model() -> Any:
    from transformers.models.blip.modeling_blip_text import BlipTextModel

    return lambda config: BlipTextModel(config, add_pooling_layer=False)


def _fill(kind: Any, config: Any, state: Mapping[str, Tensor], path: Path) -> Any:
    """A network of transformers with these weights, built without drawing others first."""
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        network = kind(config)
    return fill(network, state, path, "ImageReward")


def _tokenizer(folder: Path, place: str | Path) -> Any:
    """BERT's tokenizer with BLIP's two tokens of its own."""
    found = (
        folder if _has_vocabulary(folder) else locate(place, "reward.tokenizer", VOCABULARIES, "a folder with BERT's")
    )
    if not _has_vocabulary(found):
        raise ValueError(f"{found} has no vocab.txt or tokenizer.json; set reward.tokenizer to a folder with BERT's")
    tokenizer = transformers_class("BertTokenizer").from_pretrained(found, local_files_only=True)
    tokenizer.add_special_tokens({"bos_token": "[DEC]", "additional_special_tokens": ["[ENC]"]})
    return tokenizer


def _has_vocabulary(folder: Path) -> bool:
    return any((folder / name).is_file() for name in VOCABULARIES[:2])
