"""The folder that encoded clips are written to: what its content depends on, and how it begins."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dollar.data.buckets import Bucket
from dollar.data.encoding.report import SKIPPED
from dollar.data.fingerprint import FINGERPRINT
from dollar.data.listed import PASSING
from dollar.data.nulls import write_nulls
from dollar.media import atomically
from dollar.models.teacher import Teacher


def check_apart(out: Path, places: Sequence[str]) -> None:
    """Raise ValueError if the shards would lie among the clips, where a later reading would take them for clips."""
    for place in places:
        folder = Path(place.partition("**")[0])  # what a pattern looks through at any depth
        if (folder.is_dir() and ("**" in place or folder == Path(place))) and out.resolve().is_relative_to(
            folder.resolve()
        ):
            raise ValueError(f"out={out} lies in the folder of the clips, data={place}; name a folder outside it")


def check_buckets(buckets: Sequence[Bucket], teacher: Teacher) -> None:
    """Raise ValueError for a size that the teacher can't make."""
    for bucket in buckets:
        try:
            teacher.latent_shape_of(*bucket)
        except ValueError as error:
            raise ValueError(f"the bucket {list(bucket)} doesn't suit this teacher: {error}") from None


def fingerprint_of(
    teacher: Teacher, places: Sequence[str], buckets: Sequence[Bucket], settings: dict[str, Any]
) -> dict[str, Any]:
    """What the folder's content depends on: the teacher's own, and below `preprocess` how clips are read.

    settings: further keys of how clips are read and stored.
    """
    read: dict[str, Any] = {
        "data": [str(Path(place).resolve()) for place in places],
        "buckets": [list(bucket) for bucket in buckets],
        "fps": float(teacher.fps),
        **settings,
    }
    return teacher.fingerprint() | {"preprocess": read}


def begin(out: Path, made_by: dict[str, Any], teacher: Teacher, retry_skipped: bool = False) -> None:
    """Write the folder's fingerprint and the empty and negative prompts' embeddings; no other process may write then.

    retry_skipped: forget which clips were skipped before. What is found anew by every run is forgotten anyway.
    """
    for file in (out / SKIPPED).glob("*.jsonl"):
        lines = [f"{line}\n" for line in file.read_text(encoding="utf-8").split("\n") if line]
        kept = [] if retry_skipped else [line for line in lines if json.loads(line)["cause"] not in PASSING]
        if not kept:
            file.unlink()
        elif len(kept) < len(lines):
            with atomically(file) as temporary:
                temporary.write_text("".join(kept), encoding="utf-8")
    for left in out.rglob(".*.tmp"):  # by processes that were killed
        left.unlink()
    with atomically(out / FINGERPRINT) as temporary:
        temporary.write_text(json.dumps(made_by, indent=1) + "\n", encoding="utf-8")
    nulls = {}
    for prompt in dict.fromkeys(["", teacher.negative_prompt]):
        embeddings, mask, pooled = teacher.text.encode([prompt])
        nulls[prompt] = embeddings[0], mask[0], None if pooled is None else pooled[0]
    write_nulls(out, nulls)
