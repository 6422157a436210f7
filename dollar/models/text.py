"""Prompts to embeddings."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dollar.models.denoiser import Condition


class TextEncoder:
    """A tokenizer and a text model, with every prompt encoded once and kept on the CPU.

    length: tokens a prompt is padded or cut to; a longer prompt is cut with a warning.
    """

    def __init__(self, tokenizer, model: nn.Module, length: int) -> None:
        self.tokenizer = tokenizer
        self.model = model.eval().requires_grad_(False)
        self.length = length
        self._known: dict[str, tuple[Tensor, Tensor]] = {}

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def __call__(self, prompts: Sequence[str]) -> Condition:
        """Embeddings [B, L, D] float32 and mask [B, L] of B prompts, on the model's device."""
        missing = [p for p in dict.fromkeys(prompts) if p not in self._known]
        if missing:
            for prompt in missing:
                # One by one: in a batch, rounding would depend on the neighbours, and a resumed run on its past.
                embeddings, masks = self.encode([prompt])
                self._known[prompt] = (embeddings[0], masks[0])
        known = [self._known[p] for p in prompts]
        return Condition(
            torch.stack([embedding for embedding, _ in known]).to(self.device),
            torch.stack([mask for _, mask in known]).to(self.device),
        )

    def unknown(self, prompt: str) -> list[str]:
        """The words of a prompt that the tokenizer has no token for; most tokenizers have one for everything."""
        token = self.tokenizer.unk_token_id
        return [w for w in prompt.split() if token is not None and token in self.tokenizer(w).input_ids]

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Embeddings [B, L, D] and mask [B, L] on the CPU, computed anew."""
        prompts = list(prompts)
        for prompt, ids in zip(prompts, self.tokenizer(prompts).input_ids, strict=True):
            if len(ids) > self.length:
                warnings.warn(
                    f"the prompt {prompt[:60]!r}... has {len(ids)} tokens and was cut to the {self.length} that this "
                    "teacher reads; shorten it to be sure of what is drawn",
                    stacklevel=3,
                )
        tokens = self.tokenizer(
            prompts, padding="max_length", max_length=self.length, truncation=True, return_tensors="pt"
        )
        # The text model sees the padding, as in diffusers' pipelines: the transformer was trained on that.
        embeddings = self.model(tokens.input_ids.to(self.device))[0]
        return embeddings.float().cpu(), tokens.attention_mask
