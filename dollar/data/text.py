"""Text as people save it: UTF-8, or UTF-16 and UTF-32 with the mark at their beginning that says so."""

from __future__ import annotations

import codecs
import json
from pathlib import Path

from dollar.data.listed import CAPTIONS, caption_of, first_of
from dollar.data.places import instead, packed_with

HEAD = 32  # bytes that tell what a file is

# The mark of UTF-32 begins with that of UTF-16.
MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def read_text(path: Path) -> str:
    """The text of a file; ValueError for one that can't be read or is no text."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path} can't be read: {error.strerror or error}") from None
    return decode(data, path)


def decode(data: bytes, name: str | Path) -> str:
    """The text of these bytes without its mark (BOM).

    Raises ValueError that names the first bad byte, its offset and line, or says what stands in the text's place. Other
    encodings are refused, for nobody can tell them apart: what was guessed wrongly would be trained on.
    """
    if fact := instead(data[:HEAD]):
        raise ValueError(f"{name} is not the text that was meant: {fact}")
    encoding = next((encoding for mark, encoding in MARKS if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        if fact := packed_with(data[:HEAD]):
            raise ValueError(f"{name} is no text: {fact}") from None
        byte, line = data[error.start], data.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{name} is not valid {encoding.upper()}: byte 0x{byte:02x} at byte offset {error.start} (line {line}); "
            "save it as UTF-8"
        ) from None
    if (at := text.find("\0")) >= 0:
        raise ValueError(
            f"{name} holds the character 0 (line {text.count(chr(10), 0, at) + 1}), so it is no text, or UTF-16 "
            "without its mark; save it as UTF-8"
        )
    return text


def caption_from(data: bytes, ending: str, name: str | Path) -> str:
    """The caption in a file next to a clip: all of its text, or one of the usual keys of a json object.

    ValueError for one that is missing, empty or no text.
    """
    text = decode(data, name)
    if ending != ".json":
        return caption_of(text)
    try:
        row = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError("it is not valid json") from None
    return caption_of(row if isinstance(row, str) else first_of(row, CAPTIONS))
