"""A small reward model on latents: image, text-image, video and text-video (Tables 11-13)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from dollar.models.denoiser import Condition


class TextAttention(nn.Module):
    """Every position of the features attends to all tokens of the caption; one head.

    Table 13, read literally, averages the caption to one vector first. A softmax over one key is 1, so its reward would
    not depend on the latent; here the tokens stay apart.
    """

    def __init__(self, text_dim: int, width: int) -> None:
        super().__init__()
        self.text = nn.Linear(text_dim, width)
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)

    def forward(self, features: Tensor, text: Tensor, mask: Tensor | None) -> Tensor:
        """features [B, N, width], text [B, L, D], mask [B, L] (non-zero for tokens) -> [B, N, width]."""
        tokens = self.text(text)
        attended = None if mask is None else mask.bool()[:, None]  # [B, 1, L], the same for all positions
        return scaled_dot_product_attention(
            self.query(features), self.key(tokens), self.value(tokens), attn_mask=attended
        )


class LatentRewardModel(nn.Module):
    """R(x) or R(x, c) of latents [B, C, F, H, W], in standardised units.

    channels: C of the latents. text_dim: width of the caption's embedding; None for a reward that has no caption.
    card: the arguments that build another like it.
    temporal: `frames` averages the image model's reward over the latent frames (the paper's choice; an image is one
    frame) and can't see their order; `conv3d` sees motion.
    """

    twice_differentiable = True

    def __init__(
        self,
        channels: int,
        text_dim: int | None = None,
        width: int = 128,
        temporal: str = "frames",
        groups: int = 8,
    ) -> None:
        super().__init__()
        if temporal not in ("frames", "conv3d"):
            raise ValueError(f"lrm.temporal is {temporal!r}; use frames or conv3d")
        if groups < 1 or width < 1 or width % groups:
            raise ValueError(
                f"lrm.width is {width}; it must be a positive multiple of the {groups} groups of its normalisation"
            )
        self.temporal = temporal
        self.card: dict[str, Any] = {
            "backbone": "cnn",
            "temporal": temporal,
            "text": text_dim is not None,
            "width": width,
            "groups": groups,
            "channels": channels,
            "text_dim": text_dim,
        }
        first: nn.Module
        second: nn.Module
        if temporal == "frames":
            first = nn.Conv2d(channels, width, 4, stride=4, padding=1)
            second = nn.Conv2d(width, width, 3, stride=2, padding=1)
        else:
            # In time, 3 frames are seen at once and only the second halves them: clips may have as few as 5.
            first = nn.Conv3d(channels, width, (3, 4, 4), stride=(1, 4, 4), padding=1)
            second = nn.Conv3d(width, width, 3, stride=2, padding=1)
        norm = partial(nn.GroupNorm, groups, width)
        self.backbone = nn.Sequential(first, norm(), nn.SiLU(), second, norm(), nn.SiLU())
        self.attention = None if text_dim is None else TextAttention(text_dim, width)
        self.mix = nn.Linear(width, width)  # the tables' 1x1 conv, after the pooling
        self.out = nn.Linear(width, 1)

    def features(self, x: Tensor) -> Tensor:
        """[B, C, F, H, W] -> [B, N, width], N positions in space and time."""
        if self.temporal == "conv3d":
            return rearrange(self.backbone(x), "b c f h w -> b (f h w) c")
        frames = len(x[0, 0])
        x = self.backbone(rearrange(x, "b c f h w -> (b f) c h w"))
        return rearrange(x, "(b f) c h w -> b (f h w) c", f=frames)

    def forward(
        self,
        x: Tensor,
        condition: Condition | None = None,
        t: Tensor | None = None,
        held: Sequence[int] | None = None,
    ) -> Tensor:
        """The reward [B], float32, in standardised units.

        x: [B, C, F, H, W]; condition: of the captions, whose mask is non-zero for tokens; a model without `text_dim`
        ignores it, and every one ignores t; held: the latent frames that count, None for all. ValueError when the
        caption is needed and missing.
        """
        # Pooling over frames too is the mean of the frames' rewards, because what follows is affine.
        return self.out(self.mix(self._attended(x, condition, held).mean(1))).squeeze(1).float()

    def by_frame(self, x: Tensor, condition: Condition | None = None, held: Sequence[int] | None = None) -> Tensor:
        """The reward of each latent frame by itself [B, F], as `forward` averages it; of temporal=frames alone."""
        frames = x.shape[2] if held is None else len(held)
        features = self._attended(x, condition, held).unflatten(1, (frames, -1))
        return self.out(self.mix(features.mean(2))).squeeze(2).float()

    def _attended(self, x: Tensor, condition: Condition | None, held: Sequence[int] | None) -> Tensor:
        """Features [B, N, width] of the latent frames that count, which have seen the caption."""
        dtype = self.out.weight.dtype
        features = self.features((x if held is None else x[:, :, list(held)]).to(dtype))
        if self.attention is None:
            return features
        if condition is None:
            raise ValueError("this latent reward model reads captions (text_dim is set), but no text was given")
        return features + self.attention(features, condition.embeddings.to(dtype), condition.mask)
