"""Pictures that a small CLIP learns from: frames of clips, frames that get worse by degrees, and spoilt ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.ndimage import gaussian_filter

from dollar.data import shapes
from dollar.log import progress
from dollar.models.codec import Codec

KEPT = 4  # frames of each clip
MOST_BLUR, MOST_NOISE = 5.0, 100.0  # deviation in pixels, and in levels of 255, of a picture of level 1
APART = 60.0  # levels of 255 by which an object differs from its background


class Visible(NamedTuple):
    """What a single frame can show of a caption."""

    size: str
    colour: str
    shape: str
    background: str


def visible(attributes: shapes.Attributes) -> Visible:
    """All attributes but the motion."""
    return Visible(attributes.size, attributes.colour, attributes.shape, attributes.background)


@dataclass(frozen=True)
class Pool:
    """Frames of clips: uint8 [N, KEPT, H, W, 3], and the attributes of each clip."""

    frames: np.ndarray
    attributes: list[shapes.Attributes]

    @cached_property
    def alike(self) -> dict[tuple[str, ...], list[int]]:
        """The clips of each size, colour and background."""
        found: dict[tuple[str, ...], list[int]] = {}
        for i, attributes in enumerate(self.attributes):
            found.setdefault(all_but_shape(attributes), []).append(i)
        return found

    def like(self, attributes: shapes.Attributes, rng: np.random.Generator) -> int:
        """A random clip of the same size, colour and background; of any, where there is none."""
        among = self.alike.get(all_but_shape(attributes)) or range(len(self.attributes))
        return int(among[rng.integers(len(among))])


def all_but_shape(attributes: shapes.Attributes) -> tuple[str, ...]:
    """What is easily seen of a frame; square and circle are the hardest to distinguish."""
    return attributes.size, attributes.colour, attributes.background


def rendered(clips: int, seed: int) -> Pool:
    """Frames at random times of training clips."""
    source = shapes.ShapesClips("train", clips, seed)
    return Pool(np.stack([_some(source.clip(i)[0], seed, i) for i in range(clips)]), _attributes(source))


def decoded(clips: int, seed: int, codec: Codec, noise: float = 0.0, active: bool = True) -> Pool:
    """The same of other training clips, after the autoencoder.

    noise: deviation of what is added to the scaled latents, whose own is 1; active: whether progress is shown.
    """
    source, found = shapes.ShapesClips("train", clips, seed + 1), []
    for start in progress(range(0, clips, 16), "decoding clips", active=active):
        own = range(start, min(start + 16, clips))
        pixels = torch.from_numpy(np.stack([source.clip(i)[0] for i in own])).permute(0, 1, 4, 2, 3).float() / 255
        latents = codec.encode(pixels)
        drawn = torch.randn(latents.shape, generator=torch.Generator().manual_seed(seed + start)).to(latents)
        again = codec.decode(latents + noise * drawn).permute(0, 1, 3, 4, 2)  # [B, T, H, W, 3]
        found += [_some(clip, seed, i) for clip, i in zip(to_levels(again), own, strict=True)]
    return Pool(np.stack(found), _attributes(source))


def to_levels(pixels: torch.Tensor) -> np.ndarray:
    """uint8 of pixels in [0, 1]."""
    return (pixels.clamp(0, 1) * 255).round().byte().cpu().numpy()


def _some(clip: np.ndarray, seed: int, index: int) -> np.ndarray:
    chosen = np.random.Generator(np.random.PCG64([seed, index, 5])).choice(len(clip), KEPT, replace=False)
    return clip[chosen]


def _attributes(source: Any) -> list[shapes.Attributes]:
    return [shapes.parse(caption) for caption in source.captions]


def worse(picture: np.ndarray, level: float, rng: np.random.Generator) -> np.ndarray:
    """The picture [H, W, 3] in levels, float32, spoilt by `level` of 1: blurred, noisy, faded or doubled."""
    kind = rng.integers(4)
    if kind == 0:
        return blurred(picture, MOST_BLUR * level)
    if kind == 1:
        return noisy(picture, MOST_NOISE * level, rng)
    if kind == 2:
        return picture + 0.9 * level * (_plain(picture) - picture)
    return picture + 0.5 * level * (_moved(picture, rng) - picture)  # at level 1 two halves of an object


def blurred(picture: np.ndarray, deviation: float) -> np.ndarray:
    """The picture [H, W, 3] after a Gaussian of so many pixels."""
    return gaussian_filter(picture.astype(np.float32), (deviation, deviation, 0), mode="nearest")


def noisy(picture: np.ndarray, deviation: float, rng: np.random.Generator) -> np.ndarray:
    """The picture [H, W, 3] with normal noise of so many levels."""
    drawn = deviation * rng.standard_normal(picture.shape, dtype=np.float32)
    return np.clip(picture + drawn, 0, 255)


def spoilt(picture: np.ndarray, other: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A picture [H, W, 3] that no caption fits, float32 in levels: two objects, none, a half, or blotches."""
    kind = rng.integers(5)
    if kind == 0:
        return _with_object_of(picture, other)
    if kind == 1:
        return _with_object_of(picture, _moved(picture, rng))
    if kind == 2:
        return _plain(picture) + 0.1 * (picture - _plain(picture))
    if kind == 3:
        return _halved(picture, rng)
    blotches = gaussian_filter(rng.standard_normal(picture.shape), (*2 * [rng.uniform(0, 8)], 0), mode="nearest")
    return np.clip(picture.mean((0, 1)) + 60 * blotches / blotches.std(), 0, 255).astype(np.float32)


def _plain(picture: np.ndarray) -> np.ndarray:
    """The background's colour everywhere: the median, since an object covers less than half of a picture."""
    return np.broadcast_to(np.median(picture, (0, 1)), picture.shape).astype(np.float32)


def _object(picture: np.ndarray) -> np.ndarray:
    return np.abs(picture.astype(np.float32) - _plain(picture)).sum(-1) > APART  # [H, W]


def _moved(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The object elsewhere, at least a quarter of the picture away in one direction."""
    far = shapes.WIDTH // 4
    shift = rng.permutation([int(rng.integers(far, shapes.WIDTH - far + 1)), int(rng.integers(shapes.WIDTH))])
    return np.roll(picture, tuple(shift), (0, 1)).astype(np.float32)


def _with_object_of(picture: np.ndarray, other: np.ndarray) -> np.ndarray:
    return np.where(_object(other)[..., None], other, picture).astype(np.float32)


def _halved(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One side of the object is gone, cut through its middle in any direction."""
    y, x = np.nonzero(_object(picture))
    if len(y) == 0:
        return picture.astype(np.float32)
    angle = rng.uniform(0, 2 * np.pi)
    rows, columns = np.mgrid[: picture.shape[0], : picture.shape[1]]
    gone = (rows - y.mean()) * np.sin(angle) + (columns - x.mean()) * np.cos(angle) > 0
    return np.where(gone[..., None], _plain(picture), picture).astype(np.float32)


def stack(pictures: Sequence[np.ndarray]) -> torch.Tensor:
    """[B, 3, H, W] in [0, 1], float32, of pictures [H, W, 3] in levels."""
    levels = np.stack([np.asarray(p, np.float32) for p in pictures])
    return torch.from_numpy(levels).permute(0, 3, 1, 2) / 255
