"""A chat model of transformers: it answers one message."""

from __future__ import annotations

from pathlib import Path

import torch

from dollar.models.pipeline import find

MOST = 16  # tokens of an answer
FILES = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja"]


class ChatModel:
    """A causal language model with a chat template, read from a folder or hub id.

    ValueError where there is none. Its first answer to a message is the likeliest; further ones are drawn.
    """

    def __init__(self, place: str, device: torch.device | str = "cpu") -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        folder = Path(find(place, "chat model (chat)", FILES, key="chat"))
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            self.model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, dtype="auto")
        except Exception as error:  # each of its files fails in its own way
            reason = str(error).strip().splitlines()[0]
            raise ValueError(f"chat={place} is no chat model of transformers that can be read ({reason})") from None
        if self.tokenizer.chat_template is None:
            raise ValueError(f"chat={place} has no chat template, so it is no chat model; name another")
        self.model = self.model.to(device).eval().requires_grad_(False)

    @torch.no_grad()
    def answer(self, message: str, attempt: int = 0) -> str:
        """What it says; attempt: 0 for the likeliest answer, others are drawn with it as seed."""
        asked = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": message}], add_generation_prompt=True, return_tensors="pt", return_dict=True
        ).to(self.model.device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(attempt)
            said = self.model.generate(**asked, max_new_tokens=MOST, do_sample=attempt > 0)
        return str(self.tokenizer.decode(said[0, asked["input_ids"].shape[1] :], skip_special_tokens=True))
