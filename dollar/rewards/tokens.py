"""Prompts to a CLIP's tokens: by the tokenizer of its weights' folder, a named one, or open_clip's own vocabulary."""

from __future__ import annotations

import gzip
import html
import importlib.util
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dollar.rewards.weights import locate

LAION = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"  # the tokenizer of all published CLIPs, in the smallest of places
FILES = ["tokenizer*", "vocab.json", "merges.txt", "special_tokens_map.json", "config.json"]
MERGES = 49152 - 256 - 2  # of the vocabulary file's lines, those that CLIP's vocabulary of 49,408 takes


class Tokens:
    """A CLIP's tokenizer: prompts to at most `length` token ids that begin and end as the tokenizer says.

    clean: mend broken characters, HTML entities and spaces first, as open_clip does.
    """

    def __init__(self, tokenizer: Any, length: int, clean: bool) -> None:
        self.tokenizer = tokenizer
        self.length = length
        self.clean = clean
        self.end = tokenizer.eos_token_id
        if self.end is None or self("a")[-1] != self.end:
            raise ValueError(
                "the tokenizer doesn't end a prompt with an end token, where a CLIP gathers what it read; name a "
                f"CLIP's own by reward.tokenizer, such as {LAION}"
            )

    def __call__(self, prompt: str) -> Tensor:
        """[L] long, on the CPU; a longer prompt is cut with a warning."""
        ids = self.tokenizer(_cleaned(prompt) if self.clean else prompt, verbose=False).input_ids
        if len(ids) > self.length:
            warnings.warn(
                f"the prompt {prompt[:60]!r}... has {len(ids)} tokens and was cut to the {self.length} that the "
                "reward's CLIP reads",
                stacklevel=2,
            )
            ids = [*ids[: self.length - 1], self.end]
        return torch.tensor(ids)


def load_tokenizer(folder: Path, named: str | Path, local: bool) -> Any:
    """The tokenizer in a folder, else the named one, else CLIP's from open_clip's package; ValueError where none is.

    local: nothing is fetched, because the weights are the user's own.
    """
    if any((folder / file).is_file() for file in ("tokenizer.json", "vocab.json")):
        return _read(folder)
    try:
        return _read(locate(named, "reward.tokenizer", FILES, "a folder with a tokenizer", fetch=not local))
    except ValueError as error:
        vocabulary = _vocabulary_file()
        if named != LAION:
            raise
        if vocabulary is None:
            raise ValueError(
                f"{folder} has no tokenizer and {error}. The package open_clip_torch has its vocabulary as well: "
                "pip install open_clip_torch --no-deps"
            ) from None
    return _of_vocabulary(vocabulary)


def _read(folder: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # tokenizers fail in many ways
        raise ValueError(f"the tokenizer in {folder} can't be read ({error}); copy it again") from None


def _vocabulary_file() -> Path | None:
    """CLIP's list of merges in the installed open_clip, which is not imported: it needs torchvision."""
    found = importlib.util.find_spec("open_clip")
    places = found.submodule_search_locations if found else None
    file = Path(next(iter(places))) / "bpe_simple_vocab_16e6.txt.gz" if places else None
    return file if file is not None and file.is_file() else None


def _of_vocabulary(file: Path) -> Any:
    from transformers import CLIPTokenizer

    with gzip.open(file, "rt", encoding="utf-8") as lines:
        merges = [tuple(line.split()) for line in lines.read().split("\n")[1 : MERGES + 1]]
    letters = _byte_letters()
    pieces = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(pair) for pair in merges)]
    pieces += ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, merges=merges)


def _byte_letters() -> list[str]:
    """A letter for each of 256 bytes in the vocabulary's order: printable ones as they are, then the others."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return [chr(b) for b in printable] + [chr(256 + i) for i in range(256 - len(printable))]


def _cleaned(prompt: str) -> str:
    import ftfy

    return " ".join(html.unescape(html.unescape(ftfy.fix_text(prompt))).split())
