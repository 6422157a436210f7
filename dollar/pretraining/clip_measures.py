"""Measures of a small CLIP of the shapes world: retrieval, order by right attributes, fall with quality."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise, product
from typing import Any

import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor

from dollar.data import shapes
from dollar.pretraining.clip import cosines
from dollar.pretraining.pictures import Visible, blurred, noisy, stack, visible
from dollar.rewards.shapes import CLASSES

BLURS, NOISES = (0.0, 1.0, 2.0, 3.0, 4.0), (0.0, 20.0, 40.0, 60.0, 80.0)  # pixels; levels of 255


def held_out_clips(seed: int, each: int = 1) -> tuple[list[np.ndarray], list[shapes.Attributes]]:
    """`each` clips, uint8 [T, H, W, 3], of every held-out caption, and their attributes."""
    wanted = [shapes.parse(caption) for caption in shapes.captions("held_out") for _ in range(each)]
    return [shapes.render(a, 10**6 * (seed + 1) + i) for i, a in enumerate(wanted)], wanted


def frames_of(clips: Sequence[np.ndarray], seed: int) -> list[np.ndarray]:
    """A frame of each clip at a random time."""
    rng = np.random.Generator(np.random.PCG64([seed, 8]))
    return [clip[rng.integers(len(clip))] for clip in clips]


def retrieval(network: Any, tokenizer: Any, frames: Sequence[np.ndarray], wanted: Sequence[Any]) -> dict[str, float]:
    """Fractions right at the first place, for frames [H, W, 3] in levels and the attributes of their captions.

    text: of the frames, whose nearest of all 1,152 captions looks the same (there are 192 looks). picture: of the
    frames' captions, whose nearest frame looks the same.
    """
    looks = [visible(a) for a in wanted]
    captions = [shapes.caption(a) for a in shapes.ALL_ATTRIBUTES]
    found = cosines(network, tokenizer, stack(frames), captions)  # [N, 1152]
    texts = [visible(shapes.ALL_ATTRIBUTES[i]) == look for i, look in zip(found.argmax(1).tolist(), looks, strict=True)]
    own = found[:, [shapes.ALL_ATTRIBUTES.index(a) for a in wanted]]
    pictures = [looks[i] == look for i, look in zip(own.argmax(0).tolist(), looks, strict=True)]
    return {"text": float(np.mean(texts)), "picture": float(np.mean(pictures))}


def with_right(attributes: shapes.Attributes, right: int, rng: np.random.Generator) -> shapes.Attributes:
    """The attributes with `right` of the four visible ones kept and the others swapped for another of their kind."""
    swapped = rng.permutation(Visible._fields)[right:]
    others = {name: [c for c in CLASSES[name] if c != getattr(attributes, name)] for name in swapped}
    return attributes._replace(**{str(name): other[rng.integers(len(other))] for name, other in others.items()})


def order(network: Any, tokenizer: Any, frames: Sequence[np.ndarray], wanted: Sequence[Any], seed: int) -> Tensor:
    """Cosines [N, 5, 4] of each frame with four captions of which 0 to 4 visible attributes are right."""
    rng = np.random.Generator(np.random.PCG64([seed, 9]))
    texts = [shapes.caption(with_right(a, right, rng)) for a, right, _ in product(wanted, range(5), range(4))]
    found = cosines(network, tokenizer, stack(frames), texts)
    return torch.stack([found[i, 20 * i : 20 * i + 20] for i in range(len(frames))]).view(-1, 5, 4)


def rank_correlation(found: Tensor) -> float:
    """Spearman's between cosine and number of right attributes, the mean over frames; found: [N, 5, 4] of `order`."""
    counts = rankdata(np.repeat(np.arange(5), 4))
    ranks = [rankdata(own.flatten().numpy()) for own in found]
    return float(np.mean([np.corrcoef(counts, own)[0, 1] for own in ranks]))


def fall(
    network: Any,
    tokenizer: Any,
    frames: Sequence[np.ndarray],
    wanted: Sequence[Any],
    spoil: Callable[..., Any],
    amounts: Any,
) -> Tensor:
    """Cosines [N, len(amounts)] of each frame with its caption when it is spoilt by each of the amounts."""
    captions = [shapes.caption(a) for a in wanted]
    spoilt = [
        [frame.astype(np.float32) if amount == 0 else spoil(frame, amount) for frame in frames] for amount in amounts
    ]
    return torch.stack([cosines(network, tokenizer, stack(f), captions).diagonal() for f in spoilt], 1)


def measure(network: Any, tokenizer: Any, codec: Any, seed: int) -> dict[str, Any]:
    """All of it for one clip of every held-out caption, on real frames and on the same that passed the autoencoder."""
    clips, wanted = held_out_clips(seed)
    pixels = torch.from_numpy(np.stack(clips)).permute(0, 1, 4, 2, 3).float() / 255
    again = (codec.decode(codec.encode(pixels)) * 255).round().byte().permute(0, 1, 3, 4, 2).cpu().numpy()
    figures: dict[str, Any] = {"frames": len(clips), "looks": len({visible(a) for a in wanted})}
    for name, own in (("real", clips), ("decoded", list(again))):
        frames = frames_of(own, seed)
        ordered = order(network, tokenizer, frames, wanted, seed)
        rng = np.random.Generator(np.random.PCG64([seed, 10]))
        blur = fall(network, tokenizer, frames, wanted, blurred, BLURS)
        noise = fall(network, tokenizer, frames, wanted, lambda f, a, rng=rng: noisy(f, a, rng), NOISES)
        figures[name] = {
            "retrieval": retrieval(network, tokenizer, frames, wanted),
            "rank_correlation": rank_correlation(ordered),
            "cosine_by_right": ordered.mean((0, 2)).tolist(),
            "cosine_by_blur": dict(zip(map(str, BLURS), blur.mean(0).tolist(), strict=True)),
            "cosine_by_noise": dict(zip(map(str, NOISES), noise.mean(0).tolist(), strict=True)),
            "falls_with_blur": falls(blur),
            "falls_with_noise": falls(noise),
        }
    return figures


def falls(found: Tensor) -> float:
    """Fraction of neighbouring amounts at which a frame's cosine is lower than at the amount before; [N, amounts]."""
    return float(np.mean([(found[:, b] < found[:, a]).float().mean() for a, b in pairwise(range(found.shape[1]))]))
