"""A pixel reward of latents: the scores of decoded clips, and what to do where there is none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from dollar.models.codec import Codec

Decode = Callable[[Tensor, int | None], Tensor]  # latents and a number of frames, None for all -> videos


class Reward(Protocol):
    """A pixel reward: any black box, differentiable or not.

    It may have `frames`, how many evenly spaced frames it looks at, so that no others are decoded; `differentiable`,
    True where a gradient at the pixels comes back through `score`; `sees_motion`, True where the order of frames
    counts; `reads_captions`, False where the prompts make no difference; `by_frames`, True where it scores frame by
    frame, so that `score_frames(videos, prompts)` gives [B, n], of which `score` is the mean; `name`, which
    distinguishes it from others of its class; `check(prompts)`, which raises ValueError for a prompt that it can't
    score; `scores(videos, prompts)`, which gives several values [B] by name, and `consistency`, the name of the one
    that says how steady a clip is.
    """

    def score(self, videos: Tensor, prompts: Sequence[str]) -> Tensor:
        """[B] for videos [B, T, C, H, W] in [0, 1] and B prompts."""
        ...


def alike(lowest: float, highest: float) -> bool:
    """Whether rewards in this range differ by no more than their rounding in float32."""
    return highest - lowest <= 1e-6 * max(abs(lowest), abs(highest))


class PixelReward:
    """A reward behind the decoder. A clip that it can't score gets nan, whatever went wrong, and `trouble` says what.

    trouble: the last one, as a sentence's part; empty where there was none.
    """

    def __init__(self, reward: Reward, codec: Codec) -> None:
        self.reward = reward
        self.codec = codec
        self.trouble = ""

    @property
    def name(self) -> str:
        return str(getattr(self.reward, "name", type(self.reward).__name__))

    @property
    def frames(self) -> int | None:
        """How many evenly spaced frames the reward looks at; None for all."""
        return getattr(self.reward, "frames", None)

    @property
    def reads_captions(self) -> bool:
        """Whether prompts make a difference; of a reward that doesn't say they may."""
        return bool(getattr(self.reward, "reads_captions", True))

    @property
    def sees_motion(self) -> bool:
        """Whether the order of frames counts."""
        return bool(getattr(self.reward, "sees_motion", False))

    @property
    def by_frames(self) -> bool:
        """Whether it scores frame by frame, a clip's reward being the mean."""
        return bool(getattr(self.reward, "by_frames", False))

    @property
    def differentiable(self) -> bool:
        return bool(getattr(self.reward, "differentiable", False))

    def score(self, latents: Tensor, prompts: Sequence[str]) -> Tensor:
        """[B], float32 on the CPU, nan where there is no number, for latents [B, C, F, h, w]."""
        return self.score_videos(self.decode(latents), prompts)

    def with_gradient(
        self, latents: Tensor, prompts: Sequence[str], frames: int | None = None, decode: Decode | None = None
    ) -> Tensor:
        """[B], float32, through decoder and reward; frames: how many evenly spaced ones are decoded, None for all.

        decode: what does that in the autoencoder's place. A clip that the reward can't score gets nan, and no gradient
        comes to it or from it.
        """
        decode = decode or self._decode_through
        whole = self._graded(latents, prompts, frames, decode)
        if whole is not None and bool(whole.isfinite().all()):
            return whole
        # A nan would spoil the others' gradients too, so they are scored again without it.
        single = [self._graded(x[None], [p], frames, decode) for x, p in zip(latents.detach(), prompts, strict=True)]
        kept = [i for i, one in enumerate(single) if one is not None and bool(one.isfinite().all())]
        # Nothing comes back from a nan, but a backward pass goes through: other processes take part in it.
        found = float("nan") + 0 * latents.float().flatten(1).sum(1)
        if kept:
            again = self._graded(latents[kept], [prompts[i] for i in kept], frames, decode)
            if again is not None:
                found = found.index_put((torch.tensor(kept, device=latents.device),), again)
        return found

    def _decode_through(self, latents: Tensor, frames: int | None) -> Tensor:
        return self.codec.decode(latents, self._places(latents, frames), gradient=True)

    def _graded(self, latents: Tensor, prompts: Sequence[str], frames: int | None, decode: Decode) -> Tensor | None:
        """[B] with a gradient, None where the reward fails."""
        videos = decode(latents, frames)
        try:
            scored = self.reward.score(videos, list(prompts)).float()
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            self.trouble = f"{self.name} raised {type(error).__name__}: {error}"
            return None
        if tuple(scored.shape) != (len(prompts),):
            self.trouble = f"{self.name} gave a tensor of shape {tuple(scored.shape)} for {len(prompts)} clips"
            return None
        if not bool(scored.isfinite().all()):
            self.trouble = f"{self.name} gave {scored[~scored.isfinite()][0].item()}"
        return scored

    def decode(self, latents: Tensor) -> Tensor:
        """The frames [B, T, C, H, W] that the reward looks at: all, or evenly spaced ones where it has `frames`."""
        return self.codec.decode(latents, self._places(latents, self.frames))

    def decode_with(self, latents: Tensor, further: Sequence[int]) -> tuple[Tensor, Tensor]:
        """What `decode` gives, and the further pixel frames [B, n, C, H, W] of these rising numbers; decoded once."""
        places = self._places(latents, self.frames)
        if places is None:
            videos = self.codec.decode(latents)
            return videos, videos[:, list(further)]
        both = sorted({*places, *further})
        videos = self.codec.decode(latents, both)
        return videos[:, [both.index(i) for i in places]], videos[:, [both.index(i) for i in further]]

    def seen(self, latents: Tensor) -> list[int] | None:
        """The latent frames of [B, C, F, h, w] that hold what the reward looks at; None for all."""
        places = self._places(latents, self.frames)
        return None if places is None else self.codec.held(latents, places)

    def score_videos(self, videos: Tensor, prompts: Sequence[str]) -> Tensor:
        """[B], float32 on the CPU, of videos [B, T, C, H, W]; where it fails, they are scored one by one."""
        return self.rows(videos, prompts).squeeze(1)

    def rows(self, videos: Tensor, prompts: Sequence[str], by_frames: bool = False) -> Tensor:
        """[B, n], whose means are the clips' rewards, as in `score_videos`.

        by_frames: of each of the n frames shown, for a reward that scores frame by frame; otherwise n is 1.
        """
        try:
            return self._scored(videos, list(prompts), by_frames)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # a reward is the user's code, and its failure costs a clip, not the run
            self.trouble = f"{self.name} raised {type(error).__name__}: {error}"
            if len(videos) == 1:
                return torch.full((1, self._count(videos) if by_frames else 1), float("nan"))
        return torch.cat([self.rows(v[None], [p], by_frames) for v, p in zip(videos, prompts, strict=True)])

    def trial(self, videos: Tensor, prompts: Sequence[str], gradient: bool = False) -> None:
        """Raise ValueError unless the reward can score these clips, so that a run fails before it begins.

        gradient: whether one must come back to the pixels, too.
        """
        try:
            self._scored(videos, list(prompts), self.by_frames)
            if gradient:
                leaf = videos.clone().requires_grad_()
                scored = self.reward.score(leaf, list(prompts))
        except ValueError:
            raise
        except Exception as error:
            raise ValueError(
                f"the reward {self.name} failed on a first clip: {type(error).__name__}: {error}"
            ) from error
        if gradient and not scored.requires_grad:
            raise ValueError(
                f"the reward {self.name} is said to be differentiable, but no gradient comes back through it; reach it "
                "through the latent reward model (loss=dollar) or by policy gradient (loss=ddpo)"
            )

    def _scored(self, videos: Tensor, prompts: list[str], by_frames: bool = False) -> Tensor:
        with torch.no_grad():
            reward: Any = self.reward
            scored = reward.score_frames(videos, prompts) if by_frames else reward.score(videos, prompts)
        expected = (len(prompts), self._count(videos)) if by_frames else (len(prompts),)
        if tuple(scored.shape) != expected:
            wanted = f"one number a frame from score_frames, {list(expected)}" if by_frames else "one number a clip"
            raise ValueError(
                f"the reward {self.name} gave a tensor of shape {tuple(scored.shape)} for {len(prompts)} clips; it "
                f"must give {wanted}"
            )
        rows = scored.detach().float().cpu().reshape(len(prompts), -1)
        shown = videos.flatten(1).isfinite().all(1).cpu()  # many a reward takes what is no number for black
        rows = torch.where(shown[:, None], rows, float("nan"))
        if not bool(shown.all()):
            self.trouble = "a clip's pixels are not finite"
        elif not bool(rows.isfinite().all()):
            self.trouble = f"{self.name} gave {rows[~rows.isfinite()][0].item()}"
        return torch.where(rows.isfinite().all(1, keepdim=True), rows, float("nan"))

    def _count(self, videos: Tensor) -> int:
        """How many frames of videos [B, T, C, H, W] are looked at."""
        return videos.shape[1] if self.frames is None else min(self.frames, videos.shape[1])

    def _places(self, latents: Tensor, count: int | None) -> list[int] | None:
        return None if count is None else self.codec.spread(latents, count)
