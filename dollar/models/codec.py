"""Latents to pixels and back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

Change = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Normalisation:
    """From an autoencoder's own latents z [B, C, F', h, w] to the network's [B, C, F, h, w], and back.

    F and F' differ only where a family pads its latents to whole patches in time.
    """

    normalise: Change
    denormalise: Change


class Window(NamedTuple):
    """Latent frames [first, stop) go through the autoencoder; of these [start, end) are wanted."""

    first: int
    stop: int
    start: int
    end: int


class Codec:
    """A video autoencoder behind a few methods; no gradient passes through unless one is requested.

    ratio: pixel frames for each latent frame after the first, which holds one. clips: how many clips go through at
    once, which bounds memory; it is always this many (the last is repeated where clips are too few), so that a clip's
    numbers don't depend on its batch to the last bit and a resumed run is the same whatever was cached. On a CPU two
    are three times as fast as one: torch has a slow convolution for one.
    chunk_frames: how many latent frames go through at once, null for all; for autoencoders that don't go through time
    by themselves. Each chunk sees `context` more on both sides, at least 1, which are thrown away again: what lies
    farther away is not seen.
    tiles: how many latent frames apart the autoencoder's own tiles in time begin, where it has some: what surrounds
    wanted frames then begins with a tile.
    streams: the autoencoder goes through time by itself, keeping what it needs of the past: its memory is bounded
    already, and a beginning of a clip can be decoded alone, exactly. odd: it takes odd numbers of latent frames only.
    """

    def __init__(
        self,
        vae: Any,
        normalisation: Normalisation,
        ratio: int,
        clips: int = 1,
        chunk_frames: int | None = None,
        context: int = 8,
        tiles: int | None = None,
        streams: bool = False,
        odd: bool = False,
        decode: Change | None = None,
    ) -> None:
        self.vae = vae.eval().requires_grad_(False)
        self.normalisation = normalisation
        self.ratio = ratio
        self.chunk = clips
        self.chunk_frames = None if streams else chunk_frames
        self.context = max(1, context)  # a chunk's first latent frame stands for one pixel frame, unlike others
        self.tiles = tiles
        self.streams = streams
        self.odd = odd
        self._decode = decode or (lambda z: self.vae.decode(z).sample)

    @property
    def device(self) -> torch.device:
        return next(self.vae.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.vae.parameters()).dtype

    def normalise(self, z: Tensor) -> Tensor:
        """Latents [B, C, F, h, w] of the autoencoder's own z."""
        return self.normalisation.normalise(z)

    def encode(self, videos: Tensor) -> Tensor:
        """Latents [B, C, F, h, w], float32, of videos [B, T, C, H, W] in [0, 1]."""
        return self.normalise(self.moments(videos))

    @torch.no_grad()
    def moments(self, videos: Tensor) -> Tensor:
        """The mode of the autoencoder's own distribution, before any scaling: z [B, C, F', h, w], float32."""
        return self._by_clips(self._encode_clips, videos.transpose(1, 2) * 2 - 1).float()

    def decode(self, latents: Tensor, frames: Sequence[int] | None = None, gradient: bool = False) -> Tensor:
        """Videos [B, T, C, H, W] in [0, 1], float32, of latents [B, C, F, h, w].

        frames: the pixel frames that are wanted, rising; only the latent frames that they need are decoded.
        gradient: whether it passes through.
        """
        with nullcontext() if gradient else torch.no_grad():
            z = self.normalisation.denormalise(latents)
            pixels = self._by_clips(lambda part: self._decode_clips(part, frames), z)
            return (pixels.float() * 0.5 + 0.5).clamp(0, 1).transpose(1, 2)

    def spread(self, latents: Tensor, count: int | None) -> list[int]:
        """At most `count` pixel frames, evenly spaced over clips of latents [B, C, F, h, w], both ends among them.

        None is all of them.
        """
        last = (self.normalisation.denormalise(latents[:1]).shape[2] - 1) * self.ratio
        if count is None:
            return list(range(last + 1))
        return sorted({round(i * last / max(1, count - 1)) for i in range(count)})

    def held(self, latents: Tensor, frames: Sequence[int]) -> list[int]:
        """The latent frames of latents [B, C, F, h, w] that hold these pixel frames, rising."""
        return sorted(set(self.holders(latents, frames)))

    def holders(self, latents: Tensor, frames: Sequence[int]) -> list[int]:
        """For each of these pixel frames the latent frame of [B, C, F, h, w] that holds it."""
        padding = self.padding(latents)
        return [padding - (-f // self.ratio) for f in frames]

    def padding(self, latents: Tensor) -> int:
        """How many of the first latent frames of [B, C, F, h, w] hold no pixel frame."""
        return latents.shape[2] - self.normalisation.denormalise(latents[:1]).shape[2]

    def ends(self, latents: Tensor, held: Sequence[int]) -> list[int]:
        """The last pixel frame that each of these latent frames of [B, C, F, h, w] holds."""
        padding = self.padding(latents)
        return [(i - padding) * self.ratio for i in held]

    def _by_clips(self, function: Change, clips: Tensor) -> Tensor:
        clips = clips.to(self.device, self.dtype)
        missing = -len(clips) % self.chunk
        full = torch.cat([clips, clips[-1:].expand(missing, *clips.shape[1:])]) if missing else clips
        return torch.cat([function(part) for part in full.split(self.chunk)])[: len(clips)]

    def _encode_clips(self, pixels: Tensor) -> Tensor:
        """z of pixels [B, C, T, H, W] in [-1, 1]."""

        def encode(part: Tensor) -> Tensor:
            return self.vae.encode(part).latent_dist.mode()

        total = (pixels.shape[2] - 1) // self.ratio + 1
        if self.chunk_frames is None or total <= self.chunk_frames:
            return encode(pixels)
        parts = []
        for window in self._chunks(total):
            # A window's first pixel frame is the last one that its first latent frame holds.
            seen = pixels[:, :, window.first * self.ratio : (window.stop - 1) * self.ratio + 1]
            parts.append(encode(seen)[:, :, window.start - window.first : window.end - window.first])
        return torch.cat(parts, 2)

    def _decode_clips(self, z: Tensor, frames: Sequence[int] | None) -> Tensor:
        """Pixels [B, C, T, H, W] in [-1, 1] of the autoencoder's own z."""
        total = z.shape[2]
        if frames is None and (self.chunk_frames is None or total <= self.chunk_frames):
            return self._decode(z)
        wanted = range((total - 1) * self.ratio + 1) if frames is None else frames
        windows = list(self._chunks(total) if frames is None else self._around(frames, total))
        parts = []
        for window in windows:
            pixels = self._decode(z[:, :, window.first : window.stop])
            inside = [f for f in wanted if window.start <= -(-f // self.ratio) < window.end]
            parts.append(pixels[:, :, [f - window.first * self.ratio for f in inside]])
        return torch.cat(parts, 2)

    def _chunks(self, total: int) -> Iterator[Window]:
        """All latent frames, chunk_frames at a time."""
        assert self.chunk_frames is not None
        for start in range(0, total, self.chunk_frames):
            end = min(start + self.chunk_frames, total)
            yield self._window(start, end, total)

    def _around(self, frames: Sequence[int], total: int) -> Iterator[Window]:
        """The latent frames that hold these pixel frames, neighbours together."""
        most = (total - 1) * self.ratio
        if not frames or min(frames) < 0 or max(frames) > most or sorted(set(frames)) != list(frames):
            raise ValueError(f"frames {list(frames)} were requested; give rising ones, from 0 to {most}")
        held = sorted({-(-f // self.ratio) for f in frames})
        if self.streams:
            yield Window(0, self._odd(held[-1] + 1, total), 0, held[-1] + 1)
            return
        start = held[0]
        for here, following in zip(held, [*held[1:], None], strict=True):
            if following is None or following - here > 2 * max(self.context, 3 * (self.tiles or 0)):
                yield self._window(start, here + 1, total)
                start = following or 0

    def _window(self, start: int, end: int, total: int) -> Window:
        if self.tiles is None:
            return Window(max(0, start - self.context), min(total, end + self.context), start, end)
        # Tiles are blended with the one before, and each but the first gives up its first frame.
        first = max(0, (start // self.tiles - 2) * self.tiles)
        return Window(first, min(total, (end // self.tiles + 3) * self.tiles + 1), start, end)

    def _odd(self, count: int, total: int) -> int:
        return min(total, count + 1 - count % 2) if self.odd else count
