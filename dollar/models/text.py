"""Prompts to embeddings."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from cachetools import LRUCache

from dollar.models.denoiser import Condition

KEPT_BYTES = 2 * 2**30  # of encoded prompts on the CPU; the largest texts take 4 MB each


class TextEncoder:
    """A family's text models behind one call, with the prompts that were encoded last kept on the CPU.

    encode: a prompt's condition of one sample, computed anew; length: tokens a prompt is padded or cut to; a longer
    prompt is cut with a warning; models: what computes, for those who look after weights.
    """

    def __init__(
        self,
        tokenizer: Any,
        encode: Callable[[str], Condition],
        length: int,
        models: Sequence[torch.nn.Module],
        device: torch.device | str,
        kept_bytes: int = KEPT_BYTES,
    ) -> None:
        self.tokenizer = tokenizer
        self.length = length
        self.models = [m.eval().requires_grad_(False) for m in models]
        self.device = torch.device(device)
        self._encode = encode
        most = max(1, kept_bytes)
        # A prompt larger than what may be kept counts as all of it, so that it stays, alone.
        self._known: LRUCache[str, Condition] = LRUCache(most, getsizeof=lambda c: min(c.embeddings.nbytes, most))

    def __call__(self, prompts: Sequence[str]) -> Condition:
        """Embeddings [B, L, D] float32, mask [B, L] and what else the family has of B prompts, on the device."""
        known = {prompt: self._look_up(prompt) for prompt in dict.fromkeys(prompts)}
        return Condition.joined([known[p] for p in prompts]).map(lambda part: part.to(self.device))

    def unknown(self, prompt: str) -> list[str]:
        """The words of a prompt that the tokenizer has no token for; most tokenizers have one for everything."""
        token = self.tokenizer.unk_token_id
        return [w for w in prompt.split() if token is not None and token in self.tokenizer(w).input_ids]

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Condition:
        """The condition of B prompts on the CPU, float32, computed anew."""
        # One by one: in a batch, rounding would depend on the neighbours, and a resumed run on its past.
        return Condition.joined([self._encode_one(prompt) for prompt in prompts])

    def _look_up(self, prompt: str) -> Condition:
        if (found := self._known.get(prompt)) is None:
            found = self._known[prompt] = self.encode([prompt])
        return found

    def _encode_one(self, prompt: str) -> Condition:
        if (count := len(self.tokenizer(prompt).input_ids)) > self.length:
            warnings.warn(
                f"the prompt {prompt[:60]!r}... has {count} tokens and was cut to the {self.length} that this "
                "teacher reads; shorten it to be sure of what is drawn",
                stacklevel=4,
            )
        embeddings, mask, pooled = self._encode(prompt)
        pooled = None if pooled is None else pooled.float().cpu()
        return Condition(embeddings.float().cpu(), mask.long().cpu(), pooled)
