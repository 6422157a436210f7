"""Clips as files: which are made, what they are called, and writing them as they are sampled."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dollar import media
from dollar.log import logger, progress
from dollar.models.teacher import Teacher
from dollar.sampling.samplers import Sampler, make_clips


class Request(NamedTuple):
    """One clip to make, and the name of its files without ending."""

    prompt: str
    seed: int
    name: str


def requests(prompts: Sequence[str], seed: int, clips: int, steps: int, by: str) -> list[Request]:
    """`clips` of each prompt, with seeds from `seed` on; a prompt that is given twice is made twice, by two names.

    by: what names the sampler in the files' names.
    """
    seen: Counter[str] = Counter()
    found = []
    for prompt in prompts:
        for i in range(clips):
            name = media.safe_name(prompt, seed + i, steps, by)
            seen[name] += 1
            found.append(Request(prompt, seed + i, f"{name}-{seen[name]}" if seen[name] > 1 else name))
    return found


def write_clips(
    wanted: Sequence[Request], sampler: Sampler, teacher: Teacher, out: Path, batch: int, gif: bool, show: bool
) -> dict[str, dict[str, Any]]:
    """Sample and write the clips, a batch at a time, so that what is written stays; returns the manifest's rows."""
    rows = {}
    frames, height, width = teacher.clip_shape
    size = {"frames": frames, "height": height, "width": width, "fps": teacher.fps}
    for first in progress(range(0, len(wanted), batch), f"{sampler.name}, {sampler.steps} steps", show):
        part = wanted[first : first + batch]
        videos = make_clips(sampler, teacher, [r.prompt for r in part], [r.seed for r in part], batch, show=False)
        for (prompt, seed, name), video in zip(part, videos, strict=True):
            clip = media.to_uint8(video.float() / 255)
            media.write_mp4(out / f"{name}.mp4", clip, teacher.fps)
            if gif:
                media.write_gif(out / f"{name}.gif", clip, teacher.fps)
            rows[f"{name}.mp4"] = {"prompt": prompt, "seed": seed, "steps": sampler.steps, "by": sampler.name, **size}
            logger.info(str(out / f"{name}.mp4"))
    return rows


def print_unknown_words(teacher: Teacher, prompts: Sequence[str]) -> None:
    """Print a note for each prompt with words that the teacher's text encoder has no token for."""
    for prompt in dict.fromkeys(prompts):
        if unknown := teacher.text.unknown(prompt):
            logger.warning(f"note: the teacher doesn't know {', '.join(unknown)} in {prompt!r}")
