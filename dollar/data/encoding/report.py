"""What a folder of encoded clips holds, and what of its source couldn't be used."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow.parquet as pq

from dollar.data.buckets import Bucket, finished
from dollar.data.listed import NOT_BAD
from dollar.data.shard_format import sentences_about
from dollar.data.skips import read_skips
from dollar.log import logger
from dollar.media import atomically

REPORT = "report.json"
SKIPPED = "skipped"  # the folder of what was skipped
SENTENCES = 20  # skipped clips that the report names


def check_bad(bad: int, seen: int, most: float, out: Path) -> None:
    """Raise ValueError when more than this fraction of the clips are bad."""
    if bad > most * seen:
        raise ValueError(
            f"{bad} of the {seen} clips can't be used ({bad / seen:.0%}; max_bad_fraction={most:g}); "
            f"{out / SKIPPED} says why. Mend the clips and give retry_skipped=true, or raise max_bad_fraction"
        )


class StoredRows(NamedTuple):
    """What a folder holds: ids by bucket, how many rows are there twice, and the shards with those that came later."""

    rows: dict[str, set[str]]
    again: int
    shards: list[Path]


def read_stored(out: Path, buckets: Sequence[Bucket]) -> StoredRows:
    """The rows of all shards of these buckets; ValueError for a damaged shard."""
    rows: dict[str, set[str]] = {str(bucket): set() for bucket in buckets}
    seen: set[str] = set()
    again, shards = 0, []
    for name, ids in rows.items():
        for path in sorted((out / name).glob("*.parquet"), key=lambda p: (p.stat().st_mtime_ns, p.name)):
            with sentences_about(path):
                found = pq.ParquetFile(path).read(columns=["id"])["id"].to_pylist()
            if repeated := len(found) - len(set(found) - seen):
                again += repeated
                shards.append(path)
            ids.update(found)
            seen.update(found)
    return StoredRows(rows, again, shards)


def report_on(out: Path, buckets: Sequence[Bucket], windows: int, max_bad_fraction: float) -> None:
    """Write and print what the folder holds; ValueError when too much of the source couldn't be used."""
    stored = read_stored(out, buckets)
    written = {name: len(ids) for name, ids in stored.rows.items()}
    skips = read_skips(out / SKIPPED)
    causes = Counter(skip.cause for skip in skips.values())
    sentences = [skip.sentence for skip in list(skips.values())[:SENTENCES]]
    found = {
        "written": written,
        "twice": stored.again,
        "skipped": dict(causes.most_common()),
        "sentences": sentences,
    }
    with atomically(out / REPORT) as temporary:
        temporary.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    counts = [f"{n} of {name}" for name, n in written.items()] + [f"{n} {cause}" for cause, n in causes.most_common()]
    more = [f"and {len(skips) - SENTENCES} more in {out / SKIPPED}."] if len(skips) > SENTENCES else []
    logger.info("\n  ".join([f"{out} holds {', '.join(counts)}", *sentences, *more]))
    if stored.again:
        shards = ", ".join(map(str, stored.shards[:SENTENCES])) + " and others" * (len(stored.shards) > SENTENCES)
        logger.info(
            f"{stored.again} rows are there twice; remove {shards}, and run the same command for what else they held"
        )
    clips = sum(len(finished(ids, windows)) for ids in stored.rows.values())
    bad = sum(n for cause, n in causes.items() if cause not in NOT_BAD)
    check_bad(bad, bad + clips, max_bad_fraction, out)
    if clips == 0:
        raise ValueError(f"not one clip could be used; {out / REPORT} says why")
