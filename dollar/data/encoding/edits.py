"""Clips that were edited after they had been encoded or passed over: noticed, and done anew."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dollar.contents import contents_of
from dollar.data.encoding.report import SKIPPED
from dollar.data.listed import Entry, File, Origin, Skipped, Source
from dollar.data.shard_format import open_shard, sentences_about
from dollar.data.skips import LineLog, Skip, forget, read_skips
from dollar.log import logger, progress
from dollar.media import atomically

SEEN = "seen"  # the folder of what clips were when they were read
CAME = ("unreadable caption", "missing file")  # causes that are over once the source lists a clip that is there
NAMED = 5  # clips that a note names


class Seen(NamedTuple):
    """What a clip's file was: size and time of each file that it is read from, and a hash of what it held."""

    times: list[list[int]]
    digest: str


class SeenLog(LineLog):
    """Remembers what clips were when they were read."""

    def add(self, id: str, seen: Seen | None) -> None:
        """Remember one, if anything is known of it."""
        if seen is not None:
            self.write({"id": id, **seen._asdict()})


def seen_now(file: File) -> Seen | None:
    """What a clip's file is, before it is read; None for what can't be read."""
    try:
        return Seen(_times(file), _digest(file))
    except (OSError, ValueError):
        return None


def forget_edited(out: Path, source: Source, windows: int) -> None:
    """Take clips out of the folder whose file or caption is another than when they were encoded.

    They are left to be encoded then; of those that were passed over and have changed, a note says so. No other process
    may read the folder meanwhile. A clip of which nothing was remembered, by an earlier version, is judged by its
    caption alone; the rows of one that is no longer listed stay, which is said, and if it was passed over it is
    forgotten.
    """
    captions, skips, seen = _captions(out, windows), read_skips(out / SKIPPED), _seen(out / SEEN)
    edited, mended = [], []
    gone, passed = set(captions), set(skips)  # of these the listed ones are taken out
    for index in progress(len(source), "looking for edits", delay=1.0):
        id = source.id(index)
        gone.discard(id)
        passed.discard(id)
        if id not in captions and id not in skips:
            continue
        clip = source[index]
        if id in captions:  # what was made of a clip that can't be read now is all there is of it
            if isinstance(clip, Entry) and (captions[id] != clip.caption or _differs(clip, seen.get(id))):
                edited.append(id)
        elif skips[id].cause != clip.cause if isinstance(clip, Skipped) else _came(clip, skips[id], seen):
            mended.append(id)
    if passed:
        forget(out / SKIPPED, passed)
    if gone:
        logger.warning(
            f"note: {_named(sorted(gone))} are no longer among the clips, and what was made of them stays; for a "
            "folder without them give another out=FOLDER"
        )
    if mended:
        logger.info(f"{_named(mended)} changed after they had been skipped; retry_skipped=true looks at them again")
    if edited:
        logger.info(f"{_named(edited)} changed after they had been encoded, and are encoded anew")
        for path in _shards(out):
            _drop(path, set(edited), windows)
        forget(out / SEEN, edited)


def _named(ids: Sequence[str]) -> str:
    more = f" and {len(ids) - NAMED} more" if len(ids) > NAMED else ""
    return f"{len(ids)} clips ({', '.join(ids[:NAMED])}{more})"


def _came(clip: Entry, skip: Skip, seen: Mapping[str, Seen]) -> bool:
    """Whether a clip that was passed over may be usable now."""
    return (skip.cause in CAME and _is_there(clip)) or _differs(clip, seen.get(clip.id))


def _is_there(clip: Entry) -> bool:
    return not isinstance(clip.file, Path) or clip.file.is_file()


def _differs(clip: Entry, seen: Seen | None) -> bool:
    """Whether a clip's file holds something else than it did; what only has another date, a copy's, doesn't."""
    if seen is None:
        return False
    try:
        return _times(clip.file) != seen.times and _digest(clip.file) != seen.digest
    except (OSError, ValueError):  # it can't be read now: what was made of it is all there is
        return False


def _times(file: File) -> list[list[int]]:
    origin = Origin((file,), "") if isinstance(file, Path) else getattr(file, "origin", Origin((), ""))
    return [[stat.st_size, stat.st_mtime_ns] for stat in (path.stat() for path in origin.files)]


def _digest(file: File) -> str:
    return contents_of(file).digest if isinstance(file, Path) else hashlib.sha256(file.read_bytes()).hexdigest()[:16]


def _seen(folder: Path) -> dict[str, Seen]:
    """What is remembered by id, the latest of each."""
    found: dict[str, Seen] = {}
    for path in sorted(folder.glob("*.jsonl"), key=lambda p: (p.stat().st_mtime_ns, p.name)):
        try:
            rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
            found.update({row["id"]: Seen(row["times"], row["digest"]) for row in rows})
        except (OSError, ValueError, KeyError, TypeError):
            logger.warning(f"note: {path} can't be read, so edits of the clips in it are not noticed; remove it")
    return found


def _shards(out: Path) -> Iterator[Path]:
    yield from sorted(path for path in out.rglob("*.parquet") if not path.name.startswith("."))


def _captions(out: Path, windows: int) -> dict[str, str]:
    """The stored captions by clip."""
    found: dict[str, str] = {}
    for path in _shards(out):
        with sentences_about(path), open_shard(path) as shard:
            table = shard.read(columns=["id", "caption"])
        ids = table["id"].to_pylist()
        found.update(zip((_clip(id, windows) for id in ids), table["caption"].to_pylist(), strict=True))
    return found


def _clip(row: str, windows: int) -> str:
    """The clip of a row's id."""
    return row if windows == 1 else row.rpartition("#")[0]


def _drop(path: Path, clips: Collection[str], windows: int) -> None:
    """Write a shard anew without the rows of these clips; remove it where none is left."""
    with sentences_about(path), open_shard(path) as shard:
        ids = shard.read(columns=["id"])["id"].to_pylist()
        keep = [_clip(id, windows) not in clips for id in ids]
        if all(keep):
            return
        if any(keep):
            settings = {"compression": "none", "use_dictionary": False, "write_statistics": False}
            with (
                atomically(path) as temporary,
                pq.ParquetWriter(temporary, shard.schema_arrow, write_page_checksum=True, **settings) as writer,
            ):
                first = 0
                for number in range(shard.num_row_groups):
                    group = shard.read_row_group(number)
                    chosen = pa.array(keep[first : first + len(group)])
                    first += len(group)
                    if pc.any(chosen).as_py():
                        writer.write_table(group.filter(chosen))
            return
    path.unlink()
