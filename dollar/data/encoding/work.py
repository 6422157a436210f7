"""From clips to shards: one process's share of what is left to encode."""

from __future__ import annotations

import secrets
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch

from dollar.data.buckets import Bucket, Prepared, finished, prepare, read_ahead
from dollar.data.encoding.edits import SEEN, Seen, SeenLog, seen_now
from dollar.data.encoding.report import SKIPPED, check_bad
from dollar.data.listed import NOT_BAD, PASSING, Entry, Skipped, Source, plain
from dollar.data.shard_format import StoredClip
from dollar.data.shard_writer import ShardWriter
from dollar.data.shards import done_ids
from dollar.data.skips import SkipLog, read_skips
from dollar.log import ANY_RANK, logger, progress
from dollar.models.denoiser import Condition
from dollar.models.teacher import Teacher
from dollar.storage import free_bytes, is_full


class StopRequest(Protocol):
    """Whether a stop of the command was requested; `busy` holds its end back until what was encoded is written."""

    requested: bool

    def busy(self) -> AbstractContextManager[None]:
        """The context in which clips are encoded."""
        ...


class NoStop:
    """Never stops."""

    requested = False

    def busy(self) -> AbstractContextManager[None]:
        """Holds nothing back."""
        return nullcontext()


class EncodingSettings(NamedTuple):
    """The keys of conf/preprocess.yaml that say how clips are read and stored."""

    windows: int
    stills: str
    batch: int
    latents_dtype: str
    text_dtype: str
    rows_per_shard: int
    readers: int
    ahead: int
    max_bad_fraction: float
    retry_skipped: bool
    enlarge: bool


class Waiting(NamedTuple):
    """A window, uint8 [T, H, W, 3], that is to be encoded into the row `id`."""

    id: str
    entry: Entry
    window: np.ndarray


class Encoding:
    """What is left of a source for this process: clips without rows in the folder that weren't skipped before.

    rank, size: which of how many processes this is. Which clips are left is read from the folder when this is made;
    every process must have done so before one runs.
    """

    def __init__(
        self,
        out: Path,
        source: Source,
        teacher: Teacher,
        buckets: Sequence[Bucket],
        settings: EncodingSettings,
        rank: int = 0,
        size: int = 1,
    ) -> None:
        self.out, self.source, self.teacher, self.buckets = out, source, teacher, buckets
        self.settings, self.rank, self.size, self.stopped = settings, rank, size, False
        self.stored = done_ids(out)
        known = {} if settings.retry_skipped else read_skips(out / SKIPPED)
        known = {id: skip for id, skip in known.items() if skip.cause not in PASSING}
        clips = finished(self.stored, settings.windows)
        ids = [source.id(i) for i in range(len(source))]
        left = [i for i, id in enumerate(ids) if id not in clips and id not in known]
        # Neighbours stay together, for they are read from the same file.
        self.own = left[len(left) * rank // size : len(left) * (rank + 1) // size]
        self.bad = sum(id in known and known[id].cause not in NOT_BAD for id in ids)
        self.cut = 0  # captions longer than the teacher reads
        self._done = self._rows = self._bytes = 0
        self._text: tuple[str, Condition] | None = None

    def run(self, stop: StopRequest | None = None) -> None:
        """Encode and write; ValueError when too many clips can't be used, or no space is left.

        When a stop is requested, what was read so far is written and `stopped` is set.
        """
        stop = stop or NoStop()
        try:
            with stop.busy():
                self._run(stop)
        except OSError as error:
            if not is_full(error):
                raise
            raise ValueError(
                f"{self.out} is full: {free_bytes(self.out):,} bytes are free, and {self._needed()}. Make "
                "room, or begin anew with out=FOLDER on another disk; the same command goes on from here"
            ) from error
        check_bad(self.bad, len(self.source), self.settings.max_bad_fraction, self.out)

    def _hopeless(self) -> bool:
        """Whether too many clips are bad, however good the rest is."""
        return self.bad > self.settings.max_bad_fraction * len(self.source)

    def _needed(self) -> str:
        """What the clips that are left take, by those that were stored."""
        if not self._rows:
            return "more bytes are needed for the first row"
        rows = (len(self.own) - self._done) * self.settings.windows + self.settings.rows_per_shard
        return f"about {rows * self._bytes // self._rows:,} bytes are needed for what is left of this process's clips"

    def _run(self, stop: StopRequest) -> None:
        # No other process, and no other run, may have a file of the same name.
        how, part = self.settings, f"{self.rank:03d}-{secrets.token_hex(4)}"
        shard = part, how.rows_per_shard, how.latents_dtype, how.text_dtype
        waiting: dict[Bucket, list[Waiting]] = {bucket: [] for bucket in self.buckets}
        with ExitStack() as stack:
            skips = SkipLog(self.out / SKIPPED, part)
            seen = SeenLog(self.out / SEEN, part)
            for log in (skips, seen):
                stack.callback(log.close)
            writers = {b: stack.enter_context(ShardWriter(self.out / str(b), *shard)) for b in self.buckets}
            name = "clips" if self.size == 1 else "clips of the first process"
            bar = stack.enter_context(progress(len(self.own), name, self.rank == 0 and bool(self.own)))
            for was, found in read_ahead(self.own, self._prepare, how.readers, how.ahead):
                self._done += 1
                bar.update()
                if isinstance(found, Skipped):
                    self._passed_over(found, was, skips, seen)
                    if self._hopeless():
                        break
                    continue
                seen.add(found.entry.id, was)
                group = waiting[found.bucket]
                group += [Waiting(id, found.entry, window) for id, window in found.windows]
                while len(group) >= how.batch:
                    self._write(writers[found.bucket], found.bucket, group[: how.batch])
                    del group[: how.batch]
                if stop.requested and self._done < len(self.own):
                    self.stopped = True
                    break
            for bucket, rest in waiting.items():
                if rest:
                    self._write(writers[bucket], bucket, rest)
        if self.cut:
            logger.warning(
                f"note: {self.cut} captions are longer than the {self.teacher.text_length} tokens that are read",
                extra=ANY_RANK,
            )

    def _passed_over(self, clip: Skipped, was: Seen | None, skips: SkipLog, seen: SeenLog) -> None:
        """Count a clip that can't be used, and remember it unless the next run may find it better."""
        self.bad += clip.cause not in NOT_BAD
        if clip.lasting:
            seen.add(clip.id, was)
            skips.add(clip)
        else:
            logger.warning(f"note: {clip.sentence[:-1]}; the same command tries it again", extra=ANY_RANK)

    def _prepare(self, index: int) -> tuple[Seen | None, Prepared | Skipped]:
        """What a clip's file was, and what it gives."""
        entry, how = self.source[index], self.settings
        if isinstance(entry, Skipped):
            return None, entry
        was = seen_now(entry.file)
        given = self.buckets, self.teacher.fps, how.windows, how.stills, self.stored, how.enlarge
        return was, prepare(entry, *given)

    def _write(self, writer: ShardWriter, bucket: Bucket, group: Sequence[Waiting]) -> None:
        """Encode some windows together and write their rows."""
        videos = torch.from_numpy(np.stack([w.window for w in group])).to(self.teacher.device)
        latents = self.teacher.codec.moments(videos.permute(0, 1, 4, 2, 3).float() / 255).cpu()  # [B, T, C, H, W] there
        size = bucket.width, bucket.height, bucket.frames
        for (id, entry, _), z in zip(group, latents, strict=True):
            if not z.isfinite().all():
                raise ValueError(
                    f"the autoencoder's latents of {entry.file} are not finite; with 16 bits it may overflow, so try "
                    "teacher.frozen_dtype=float32"
                )
            text = self._encode_text(entry.caption)
            pooled = None if text.pooled is None else text.pooled[0]
            caption = text.embeddings[0], text.mask[0], pooled
            self._rows, self._bytes = self._rows + 1, self._bytes + z.nbytes + text.embeddings[0].nbytes
            writer.add(StoredClip(id, plain(entry.file.name), entry.caption, z, *caption, *size, self.teacher.fps))

    def _encode_text(self, caption: str) -> Condition:
        """A caption's condition; the last one is kept, for the windows of a clip follow each other."""
        if self._text is None or self._text[0] != caption:
            with warnings.catch_warnings(record=True) as caught:  # counted; there may be millions
                warnings.simplefilter("always")
                self._text = caption, self.teacher.text.encode([caption])
            self.cut += bool(caught)
        return self._text[1]
