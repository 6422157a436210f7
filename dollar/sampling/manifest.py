"""manifest.jsonl: a line for each clip of a folder, with its prompt, seed, size and who made it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dollar.media import atomically
from dollar.parallel.world import World

MANIFEST = "manifest.jsonl"


def list_clips(out: Path, rows: Mapping[str, Mapping[str, Any]], world: World) -> None:
    """List in a folder's manifest the clips that all processes made; rows: this process's, by file."""
    shares = [out / f".{MANIFEST}.{rank}" for rank in range(world.size)]
    shares[world.rank].write_text(json.dumps(rows), "utf-8")
    world.barrier()
    if world.is_main:
        everything = [json.loads(share.read_text("utf-8")) for share in shares]
        write_manifest(out / MANIFEST, {file: row for share in everything for file, row in share.items()})
        for share in shares:
            share.unlink()


def write_manifest(path: Path, rows: Mapping[str, Mapping[str, Any]]) -> None:
    """A line for each clip of the folder; clips that were made before stay listed, those made again are listed once."""
    before = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    listed = {row["file"]: row for row in map(json.loads, before)}
    listed |= {file: {"file": file, **row} for file, row in rows.items()}
    with atomically(path) as temporary:
        temporary.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in listed.values()), "utf-8")
