"""Clips folders of V.I.P.: shards of a model's clips, each with what a reward gives it, made once."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dollar.data.fingerprint import FINGERPRINT
from dollar.data.latents import hash_of
from dollar.data.nulls import write_nulls
from dollar.data.scored import read_scored
from dollar.data.shard_format import StoredClip
from dollar.data.shard_writer import ShardWriter
from dollar.log import progress
from dollar.media import atomically
from dollar.models.teacher import Teacher
from dollar.parallel.world import World
from dollar.sampling.samplers import Sampler, decode, finite, make_latents
from dollar.storage import explained
from dollar.vip.pairing import Clips


def named(prompt: str, seed: int) -> Clips:
    """A prompt and a seed with the id of their clips."""
    digest = hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    return Clips(prompt, seed, f"{digest}-{seed}")


@dataclass
class Maker:
    """Makes a model's clips, scores them, and writes them into a folder.

    sampler: of the model; reward: has `scores`; what: called so in sentences and bars; batch: clips at once, which is
    also what a shard holds.
    """

    folder: Path
    what: str
    sampler: Sampler
    teacher: Teacher
    reward: Any
    batch: int

    def begin(self) -> None:
        """Write whose latents these are, and the empty and the negative prompt; by one process."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for left in self.folder.glob(".*.tmp"):  # by processes that were killed
            left.unlink()
        made_by = self.teacher.fingerprint() | {"preprocess": {"fps": float(self.teacher.fps)}}
        with explained(self.what, self.folder), atomically(self.folder / FINGERPRINT) as temporary:
            temporary.write_text(json.dumps(made_by, indent=1) + "\n", encoding="utf-8")
        nulls = {}
        for prompt in dict.fromkeys(["", self.teacher.negative_prompt]):
            embeddings, mask, pooled = self.teacher.text([prompt])
            nulls[prompt] = embeddings[0], mask[0], None if pooled is None else pooled[0]
        with explained(self.what, self.folder):
            write_nulls(self.folder, nulls)

    def make(self, wanted: Sequence[Clips], world: World, stopped: Callable[[], bool]) -> bool:
        """Make those of the clips that the folder lacks; False where a stop was requested before the end.

        The processes share the batches. These are cut from what the folder lacked when the first of them was made,
        so that a call that goes on after another makes the same clips to the bit: shards of this list of clips are
        named by its hash. stopped: the same in every process. A full disk is an OSError that says so.
        """
        part = hash_of([*(clip.id for clip in wanted), str(self.batch)])[:8]
        there = read_scored(self.folder)
        own = {id for id, clip in there.items() if clip.shard.name.startswith(f"{part}-")}
        lacking = [clip for clip in wanted if clip.id not in there or clip.id in own]
        cut = [lacking[first : first + self.batch] for first in range(0, len(lacking), self.batch)]
        missing = [clips for clips in cut if not all(clip.id in own for clip in clips)]
        world.barrier()  # all have seen the same folder
        if not missing:
            return True
        bar = progress(len(missing), f"{self.what}, {self.sampler.steps} steps", world.is_main)
        with bar, ShardWriter(self.folder, f"{part}-{world.rank:03d}", self.batch) as writer:
            for first in range(0, len(missing), world.size):
                if stopped():
                    return False
                if first + world.rank < len(missing):
                    self._write(writer, missing[first + world.rank])
                bar.update(min(world.size, len(missing) - first))
        world.barrier()  # all that was made can be read
        return True

    def _write(self, writer: ShardWriter, clips: Sequence[Clips]) -> None:
        """Make some clips and write them as one shard, which appears whole."""
        prompts, seeds = [clip.prompt for clip in clips], [clip.seed for clip in clips]
        latents = make_latents(self.sampler, self.teacher, prompts, seeds, len(clips), show=False).float()
        videos = decode(self.teacher, latents, show=False).float().to(self.teacher.device) / 255
        scores = {name: value.double().tolist() for name, value in self.reward.scores(videos, prompts).items()}
        sound = finite(latents).tolist()
        stored = self.teacher.codec.normalisation.denormalise(latents).float()
        text = self.teacher.text(prompts)
        frames, height, width = self.teacher.clip_shape
        with explained(self.what, self.folder, after="The same command goes on from there once there is room"):
            for i, clip in enumerate(clips):
                values = {name: float(value[i]) if sound[i] else math.nan for name, value in scores.items()}
                pooled = None if text.pooled is None else text.pooled[i]
                condition = text.embeddings[i], text.mask[i], pooled
                size = width, height, frames
                row = StoredClip(clip.id, "", clip.prompt, stored[i], *condition, *size, self.teacher.fps, values)
                writer.add(row)
            writer.close()


def pictures(teacher: Teacher, latents: Sequence[torch.Tensor]) -> torch.Tensor:
    """Videos uint8 [N, T, C, H, W] of stored latents."""
    return decode(teacher, teacher.codec.normalise(torch.stack(list(latents)).to(teacher.device)), show=False)
