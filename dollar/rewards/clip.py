"""A CLIP behind the rewards that stand on one: read from transformers' folders or open_clip's files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from cachetools import LRUCache
from torch import Tensor
from torch.nn import functional

from dollar.rewards.frames import FrameReward, Frames, check_frames, check_videos, pick
from dollar.rewards.open_clip import from_open_clip, geometry, is_open_clip
from dollar.rewards.pixels import crop, pad
from dollar.rewards.tokens import LAION, Tokens, load_tokenizer
from dollar.rewards.weights import described, fill, locate, read_json, read_tensors

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # OpenAI's, as nearly everyone's
FILES = ["*.json", "merges.txt", "model*.safetensors"]
UNITS = ("cosine", "scaled")
KEPT_PROMPTS = 4096  # whose features are kept; those of the largest CLIPs take 5 kB each


class Read(NamedTuple):
    """A CLIP's network and how its weights' folder prepares pictures: mean and std [3], the shorter side's pixels."""

    model: Any
    mean: Sequence[float]
    std: Sequence[float]
    shortest: int


class CLIP:
    """A frozen CLIP with the features of the prompts that it read last.

    path: a folder or hub id in transformers' form, or a file of weights in open_clip's; with `file`, a folder or hub id
    that has it, or the file itself, and in open_clip's form alone. tokenizer: where the tokenizer is looked for if not
    in the weights' folder, None for a CLIP that reads no captions. padded: whether frames are padded to squares rather
    than cut. clean: whether prompts are mended as open_clip does. batch: frames seen at once; key: the setting that
    `path` is.
    It is moved to where the videos are by the first call, in half precision on a GPU. ValueError where weights or
    tokenizer are missing, broken or not a CLIP's.
    """

    def __init__(
        self,
        path: str | Path,
        file: str | None = None,
        tokenizer: str | Path | None = LAION,
        padded: bool = False,
        clean: bool = False,
        batch: int = 16,
        key: str = "reward.path",
    ) -> None:
        if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
            raise ValueError(f"reward.batch is {batch}; give how many frames are seen at once, at least 1")
        weights = _weights_at(path, file, key)
        self.model, mean, std, self.shortest = _read(weights, key, only=file)
        self.batch, self.padded = batch, padded
        self.width = int(self.model.config.projection_dim)
        self.size = int(self.model.config.vision_config.image_size)
        self.mean, self.std = (torch.tensor(list(values))[:, None, None] for values in (mean, std))
        self.scale = float(self.model.logit_scale.exp())
        self.tokens: Tokens | None = None
        if tokenizer is not None:
            length = self.model.config.text_config.max_position_embeddings
            found = load_tokenizer(weights[0].parent, tokenizer, local=Path(path).expanduser().exists())
            self.tokens = Tokens(found, length, clean)
            self._check_vocabulary(found)
        self._device = torch.device("cpu")
        self._known: LRUCache[str, Tensor] = LRUCache(KEPT_PROMPTS)

    def see(self, videos: Tensor) -> Tensor:
        """Features of all frames [B, T, D], float32, of unit length, of videos [B, T, 3, H, W] in [0, 1].

        A clip with pixels that are not finite has nan. With a gradient at the videos there is one at the features.
        """
        self._move(videos.device)
        finite = videos.isfinite()
        frames = videos.where(finite, 0.0).clamp(0, 1).flatten(0, 1)
        features = torch.cat([self._see(part) for part in frames.split(self.batch)])
        features = features.unflatten(0, videos.shape[:2])
        return features.masked_fill(~finite.flatten(1).all(1)[:, None, None], float("nan"))

    @torch.no_grad()
    def read(self, prompts: Sequence[str], device: torch.device | str = "cpu") -> Tensor:
        """Features of prompts [B, D], float32, of unit length."""
        self._move(torch.device(device))
        known = {prompt: self._look_up(prompt) for prompt in dict.fromkeys(prompts)}
        return torch.stack([known[prompt] for prompt in prompts])

    def _see(self, frames: Tensor) -> Tensor:
        squares = pad(frames, self.size) if self.padded else crop(frames, self.shortest, self.size)
        pixels = (squares - self.mean) / self.std
        steady = SteadyGradient(self.model.dtype)
        seen = self.model.vision_model(pixel_values=steady.into(pixels))
        features = steady.out_of(self.model.visual_projection(seen.pooler_output))
        return functional.normalize(features, dim=-1)

    def _look_up(self, prompt: str) -> Tensor:
        if (found := self._known.get(prompt)) is None:
            found = self._known[prompt] = self._read(prompt)
        return found

    def _read(self, prompt: str) -> Tensor:
        assert self.tokens is not None, "a CLIP without a tokenizer reads no captions"
        ids = self.tokens(prompt).to(self._device)
        # One by one: without padding, and where the end is can't be mistaken whatever number it has.
        read = self.model.text_model(input_ids=ids[None]).last_hidden_state[0]
        end = int((ids == self.tokens.end).nonzero()[0])
        return functional.normalize(self.model.text_projection(read[end]).float(), dim=-1)

    def _move(self, device: torch.device) -> None:
        if device != self._device:
            self.model.to(device, torch.float16 if device.type == "cuda" else torch.float32)
            self.mean, self.std = self.mean.to(device), self.std.to(device)
            self._device = device
            self._known.clear()

    def _check_vocabulary(self, tokenizer: Any) -> None:
        rows = self.model.config.text_config.vocab_size
        if len(tokenizer) > rows:
            raise ValueError(
                f"the tokenizer has {len(tokenizer)} tokens and the CLIP knows {rows}; name the one that it was "
                "trained with by reward.tokenizer"
            )


class CaptionReward(FrameReward):
    """How well frames fit their captions, by a CLIP: the mean over a clip's frames.

    frames: how many evenly spaced frames are looked at, "all" or None for all; unit: which number `score` gives, cosine
    or scaled (the cosine times the CLIP's own factor, near 100).
    """

    differentiable = True

    def __init__(self, clip: CLIP, frames: Frames, unit: str) -> None:
        if unit not in UNITS:
            raise ValueError(f"reward.unit is {unit}; it is one of {' and '.join(UNITS)}")
        self.clip = clip
        self.frames = check_frames(frames)
        self.unit = unit

    def score_frames(self, videos: Tensor, prompts: Sequence[str]) -> Tensor:
        """[B, n], float32, in `unit`; videos [B, T, 3, H, W] in [0, 1]. A clip that isn't finite has nan in all."""
        return self._in(self._cosines(videos, prompts), self.unit)

    def scores(self, videos: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Both numbers, [B] each: cosine, and scaled."""
        cosine = self._cosines(videos, prompts).mean(1)
        return {unit: self._in(cosine, unit) for unit in UNITS}

    def _in(self, cosine: Tensor, unit: str) -> Tensor:
        return self.clip.scale * cosine if unit == "scaled" else cosine

    def _cosines(self, videos: Tensor, prompts: Sequence[str]) -> Tensor:
        """[B, n], of each frame with its clip's caption."""
        check_videos(videos, type(self).__name__)
        if len(videos) != len(prompts):
            raise ValueError(f"got {len(videos)} clips and {len(prompts)} prompts; give one prompt a clip")
        seen, wanted = self.clip.see(pick(videos, self.frames)), self.clip.read(prompts, videos.device)
        return torch.einsum("btd,bd->bt", seen, wanted)


class SteadyGradient:
    """Keeps a gradient in half precision's range: brought to 1 where it enters the network, and back where it leaves.

    A pixel's part in a cosine is near 1e-6, which half precision rounds to few levels or to nothing.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.largest = torch.ones(())

    def into(self, pixels: Tensor) -> Tensor:
        if pixels.requires_grad:
            pixels = pixels.clone()
            pixels.register_hook(lambda gradient: gradient * self.largest)
        return pixels.to(self.dtype)

    def out_of(self, features: Tensor) -> Tensor:
        features = features.float().clone()
        if features.requires_grad:
            features.register_hook(self._enter)
        return features

    def _enter(self, gradient: Tensor) -> Tensor:
        self.largest = gradient.abs().amax().clamp(min=torch.finfo(torch.float32).tiny)
        return gradient / self.largest


def _weights_at(path: str | Path, file: str | None, key: str) -> list[Path]:
    """The files of weights at a place, at least one."""
    holds = f"a folder with {file}" if file else "a folder of a transformers CLIPModel (config.json, model.safetensors)"
    patterns = [file, "open_clip_config.json"] if file else FILES
    place = locate(path, key, patterns, f"{holds} or a file of open_clip weights", file=file)
    if place.is_file():
        return [place]
    found = [place / file] if file is not None else sorted(place.glob("model*.safetensors"))
    if file is None and not found:
        found = sorted(place.glob("pytorch_model*.bin"))
    if not found or not found[0].is_file():
        raise ValueError(
            f"{key}: the folder {place} has no {file or 'model.safetensors'}; it has "
            f"{', '.join(sorted(p.name for p in place.iterdir())[:8]) or 'nothing'}"
        )
    return found


def _read(files: Sequence[Path], key: str, only: str | None) -> Read:
    """Network and sizes from files of weights; the configs in their folder say how they are to be read.

    only: the name under which such a file is published in open_clip's form, where no other form will do.
    """
    state: dict[str, Tensor] = {}
    for file in files:
        state |= read_tensors(file, key)
    folder = files[0].parent
    if only is not None and not is_open_clip(state):
        first = ", ".join(list(state)[:2])
        raise ValueError(
            f"{files[0]} doesn't hold what {only} does: its tensors have other names than open_clip's ({first}); give "
            f"{only} by {key}"
        )
    try:
        if is_open_clip(state):
            settings = read_json(folder / "open_clip_config.json")
            config, pictures = geometry(state, settings), settings.get("preprocess_cfg", {})
            mean, std, shortest = pictures.get("mean", MEAN), pictures.get("std", STD), None
            state = from_open_clip(state)
        else:
            config = _transformers_config(folder)
            settings = read_json(folder / "processor_config.json").get("image_processor", {})
            pictures = read_json(folder / "preprocessor_config.json") or settings
            mean, std = pictures.get("image_mean", MEAN), pictures.get("image_std", STD)
            size = pictures.get("size")
            shortest = size.get("shortest_edge", size.get("height")) if isinstance(size, dict) else size
            state = {name: value for name, value in state.items() if not name.endswith("position_ids")}
    except ValueError as error:
        raise ValueError(f"{files[0]} doesn't hold the weights of a CLIP: {error}") from None
    model: Any = fill(_empty(config), state, files[0], "this CLIP")
    size = int(model.config.vision_config.image_size)
    return Read(model, mean, std, max(size, int(shortest or size)))


def _transformers_config(folder: Path) -> dict[str, Any]:
    config = read_json(folder / "config.json")
    if config.get("model_type") != "clip":
        raise ValueError(
            "neither its names are open_clip's, nor has its folder a config.json of a transformers CLIPModel"
        )
    return config


def _empty(config: dict[str, Any]) -> Any:
    """The network without weights; its buffers, which no file holds, are real."""
    from accelerate import init_empty_weights
    from transformers import CLIPConfig, CLIPModel

    with described("its config.json", "CLIP"), init_empty_weights(include_buffers=False):
        return CLIPModel(CLIPConfig.from_dict(config))
