"""The pixel reward of a turn's clips: decoded once, clips of the data scored once, a small decoder shown some."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dollar.surrogate.fitted_decoder import FittedDecoder
from dollar.surrogate.memory import Observation
from dollar.surrogate.pixel_reward import PixelReward

Key = tuple[int, int]  # of a clip of the data


class Scorer:
    """Scores clips by a pixel reward and remembers the scores of those that will come again.

    by_frames: whether each frame's own reward is kept, too; decoder: a small one, which is shown frames of the
    generated clips that are decoded here.
    """

    def __init__(self, pixel: PixelReward, by_frames: bool = False, decoder: FittedDecoder | None = None) -> None:
        self.pixel, self.by_frames, self.decoder = pixel, by_frames, decoder
        self._known: dict[tuple[Key, str], Tensor] = {}  # [n] each

    def observe(
        self, turn: int, latents: Tensor, prompts: list[str], keys: Sequence[Key | None] | None = None
    ) -> Observation:
        """Score latents [B, C, F, h, w]; clips of the data (those with a key) are scored once for each caption."""
        keys = keys or [None] * len(prompts)
        rows = [None if key is None else self._known.get((key, p)) for key, p in zip(keys, prompts, strict=True)]
        missing = [i for i, row in enumerate(rows) if row is None]
        if missing:
            # A clip that stands under two captions is decoded once.
            first = {keys[i] or (-1, i): i for i in reversed(missing)}
            places = {key: place for place, key in enumerate(first)}
            decoded = self._decode(latents[list(first.values())], [places[-1, i] for i in missing if keys[i] is None])
            # Clips of the data are scored one by one: their neighbours in a batch would depend on what was scored
            # before, which a resumed run doesn't know, and a reward's last bits may depend on its batch.
            single = [[i] for i in missing if keys[i] is not None]
            fresh = [i for i in missing if keys[i] is None]
            for part in [*single, *([fresh] if fresh else [])]:
                shown = decoded[[places[keys[i] or (-1, i)] for i in part]]
                for i, row in zip(
                    part, self.pixel.rows(shown, [prompts[i] for i in part], self.by_frames), strict=True
                ):
                    rows[i] = row
                    if (key := keys[i]) is not None and bool(row.isfinite().all()):
                        self._known[(key, prompts[i])] = row
        frames = torch.stack([row for row in rows if row is not None]).to(latents.device)
        reward = frames.mean(1)
        kept = frames if self.by_frames else None
        return Observation(turn, list(prompts), latents.detach(), reward, reward.isfinite(), kept)

    def _decode(self, latents: Tensor, generated: Sequence[int]) -> Tensor:
        """What the pixel reward looks at; a small decoder is shown frames of the generated ones."""
        if self.decoder is None or not generated:
            return self.pixel.decode(latents)
        held = self.decoder.wanted(latents, self.pixel.seen(latents))
        videos, ends = self.pixel.decode_with(latents, self.decoder.codec.ends(latents, held))
        self.decoder.remember(latents[list(generated)], ends[list(generated)], held)
        return videos
