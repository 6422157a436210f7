"""Prompt files, text with one prompt a line, tables or json, and training on prompts alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dollar.data.latents import Batch, Fit, Shuffled, hash_of
from dollar.data.listed import CAPTIONS, caption_of
from dollar.data.places import reachable
from dollar.data.rows import JSON, TABLES, NoColumns, is_json, lines_of, read_rows
from dollar.data.text import read_text

PROMPTS = tuple(dict.fromkeys(("prompt", *CAPTIONS, "prompt_en")))  # what tables and json call it, the likeliest first


# Files that hold prompts otherwise than one a line, and aren't read: markup, data, and what offices and tables write.
OTHERS = {
    *(".yaml", ".yml", ".toml", ".xml", ".html", ".htm", ".rtf", ".pdf", ".doc", ".docx", ".odt", ".xls", ".xlsx"),
    *(".ods", ".parquet", ".arrow", ".feather", ".npy", ".pkl"),
}
FORMS = "text with one prompt a line, or a csv, tsv, jsonl or json with a column or key `prompt`"


class PromptData:
    """Prompts without clips, of a file or a list, with the interface of LatentBatches: a new order each epoch."""

    has_latents = False

    def __init__(self, prompts: str | Path | Sequence[str], seed: int) -> None:
        self.captions: Sequence[str] = read_prompts(prompts) if isinstance(prompts, (str, Path)) else list(prompts)
        if not self.captions:
            raise ValueError("there is not one prompt to train on; give data.path=FILE with one prompt a line")
        self._place = Shuffled(len(self.captions), seed)

    @classmethod
    def fitted(cls, fit: Fit, path: str | Path) -> PromptData:
        """The prompts of a file for a run."""
        return cls(path, fit.seed)

    def __len__(self) -> int:
        return len(self.captions)

    @property
    def report(self) -> str:
        """How many there are."""
        return f"{len(self)} prompts, no clips"

    def batch(self, samples: Sequence[int], latents: bool = True) -> Batch:
        """The prompts of these global sample indices; raises ValueError where latents are requested."""
        if latents:
            raise ValueError(
                "this data has prompts alone, and latents of clips are needed; set beta_cd=0 and "
                "student.input=simulate, or give clips with data=clips or data=latents"
            )
        places = [self._place(i) for i in samples]
        return Batch([self.captions[place] for place in places], None, [(place, 0) for place in places])

    def ahead(self, samples: Sequence[int]) -> None:
        """Does nothing: prompts are at hand."""

    def identity(self) -> dict[str, Any]:
        """How many prompts there are, and their hash."""
        return {"prompts": len(self), "hash": hash_of(self.captions)}


def read_prompts(path: str | Path) -> list[str]:
    """The file's prompts in their order, duplicates kept: one a line, or those of a table or of json by its ending.

    Of text, blank lines are skipped, and BOM, LF, CRLF and CR are accepted. A csv or tsv has a column `prompt` (or one
    of the other names in PROMPTS), jsonl a key, and json is a list of texts or objects. Raises ValueError when the file
    is missing, is no text or has no prompt, and where one of a table's can't be read.
    """
    path = reachable(path)
    if not path.is_file():
        found = "is a folder" if path.is_dir() else "is no file" if path.exists() else "does not exist"
        raise ValueError(f"the prompt file {path} {found}; give a UTF-8 text file with one prompt a line")
    if (ending := path.suffix.lower()) in OTHERS:
        raise ValueError(f"the prompt file {path} is of a kind that isn't read ({ending}); give {FORMS}")
    prompts = _of_rows(path) if ending in TABLES | JSON else _of_lines(path)
    if not prompts:
        raise ValueError(f"the prompt file {path} has no prompts in it; write one prompt a line")
    return prompts


def _of_lines(path: Path) -> list[str]:
    """The prompts of text, blank lines left out; ValueError for json by another name."""
    prompts = [line.strip() for line in lines_of(read_text(path)) if line.strip()]
    if prompts and is_json(prompts[0]):
        raise ValueError(
            f"the prompt file {path} holds json, and its lines would be taken for prompts: {prompts[0][:60]!r}; give "
            "it the ending .jsonl (an object a line) or .json"
        )
    return prompts


def _of_rows(path: Path) -> list[str]:
    """The prompts of a table or of json; ValueError for a row without one, for none may be lost."""
    prompts = []
    try:
        for row in read_rows(path, (PROMPTS,)):
            if row.cause:
                raise ValueError(row.problem)
            try:
                prompts.append(caption_of(row.values[0]))
            except ValueError as error:
                raise ValueError(f"{row.where} of {path} has no prompt that can be used: {error}") from None
    except NoColumns as error:
        raise ValueError(f"{error}. A file with the ending txt has one prompt a line, and no header") from None
    return prompts
