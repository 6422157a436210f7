"""Pairs of clips for tests: a folder as launch/pairs.py writes it, of latents that are drawn."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch

from dollar.data.shard_format import StoredClip
from dollar.data.shard_writer import ShardWriter
from dollar.models.teacher import Teacher

PROMPTS = (
    "a small red circle moving left on a black background",
    "a large blue square moving up on a white background",
    "a small green triangle moving right on a black background",
)


def id_of(prompt: str, seed: int) -> str:
    return f"{hashlib.sha256(prompt.encode()).hexdigest()[:16]}-{seed}"


def write_clips(folder: Path, teacher: Teacher, count: int, first: int, size: float = 1.0) -> list[str]:
    """`count` clips in shards of three rows, whose latents of this size follow from their seed; their ids."""
    ids = []
    with ShardWriter(folder, "part", rows_per_shard=3) as writer:
        for seed in range(count):
            prompt = PROMPTS[seed % len(PROMPTS)]
            latents = size * torch.randn(*teacher.latent_shape, generator=torch.Generator().manual_seed(first + seed))
            text = teacher.text([prompt])
            ids.append(id_of(prompt, seed))
            clip = StoredClip(
                ids[-1], "", prompt, latents, text.embeddings[0], text.mask[0], None, 32, 32, 9, float(teacher.fps)
            )
            writer.add(clip)
    return ids


def write_pairs(folder: Path, teacher: Teacher, count: int = 6, size: float = 1.0) -> Path:
    """A folder of `count` pairs, its winners and losers in shards below it; size: of the losers' latents."""
    winners = write_clips(folder / "winners", teacher, count, 0)
    losers = write_clips(folder / "losers", teacher, count, 1000, size)
    (folder / "pairs.json").write_text(
        json.dumps({"winners": "winners", "losers": str(folder / "losers"), "targets": ["visual"], "counts": {}})
    )
    rows = [
        {"prompt": PROMPTS[n % 3], "seed": n, "winner": w, "loser": b, "target": "visual", "gap": 0.5}
        for n, (w, b) in enumerate(zip(winners, losers, strict=True))
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder
