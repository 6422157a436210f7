"""Prompt files: UTF-8 text, one prompt a line."""

from __future__ import annotations

import codecs
from pathlib import Path


def read_prompts(path: str | Path) -> list[str]:
    """The file's prompts in their order, duplicates kept, blank lines skipped; BOM, LF, CRLF and CR are accepted.

    Raises ValueError when the file is missing, is not UTF-8 or has no prompt.
    """
    path = Path(path)
    if not path.is_file():
        found = "is a folder" if path.is_dir() else "does not exist"
        raise ValueError(f"the prompt file {path} {found}; give a UTF-8 text file with one prompt a line")
    # Not str.splitlines: it also cuts at characters (U+2028, form feed) that a pasted prompt may hold.
    text = decode_utf8(path.read_bytes(), path).replace("\r\n", "\n").replace("\r", "\n")
    prompts = [line.strip() for line in text.split("\n") if line.strip()]
    if not prompts:
        raise ValueError(f"the prompt file {path} has no prompts in it; write one prompt a line")
    return prompts


def decode_utf8(data: bytes, name: str | Path) -> str:
    """The text of these bytes without its BOM; raises ValueError that names the first bad byte, its offset and line."""
    try:
        return data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        byte, line = data[error.start], data.count(b"\n", 0, error.start) + 1
        advice = "save it as UTF-8"
        if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            advice = "it looks like UTF-16; " + advice
        raise ValueError(
            f"{name} is not valid UTF-8: byte 0x{byte:02x} at byte offset {error.start} (line {line}); {advice}"
        ) from None
