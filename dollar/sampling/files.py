"""Clips as files: which are made, what they are called, which are there, and writing them as they are sampled."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dollar import media
from dollar.contents import sha256_of
from dollar.log import logger, progress
from dollar.models.teacher import Teacher
from dollar.sampling.manifest import Manifest
from dollar.sampling.samplers import Sampler, make_clips

UNFINISHED = re.compile(r"\..+\.\d+(-[0-9a-f]+)?\.tmp")  # what media.atomically leaves when it is killed
SAYS_NOTHING = {"checkpoint"}  # of a row: what made the clip is known by its weights


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


class ClipFolder:
    """The clips that one call wants in a folder, those of them that are there, and the folder's manifest.

    how: what a row of the manifest says of every clip beside its prompt, seed, file and hash. A clip is kept where its
    row says what is wanted, its mp4 is the one that was listed, and a GIF lies beside it if one is wanted.
    """

    def __init__(
        self, folder: Path, wanted: Sequence[Request], how: Mapping[str, Any], gif: bool, rank: int = 0
    ) -> None:
        self.folder, self.wanted, self.how, self.gif = folder, list(wanted), dict(how), gif
        self.manifest = Manifest(folder, [f"{request.name}.mp4" for request in wanted], rank)

    def take_stock(self) -> Counter[str]:
        """Take what can't be kept off the manifest, and what a killed call left out of the folder.

        By one process before all others look. Returns how many of the wanted clips must be made again, by cause.
        """
        for path in self.folder.iterdir():
            if UNFINISHED.fullmatch(path.name) and path.is_file():
                path.unlink()
        rows = {file: row for file, row in self.manifest.rows().items() if (self.folder / file).is_file()}
        causes: Counter[str] = Counter()
        for request in self.wanted:
            row = rows.get(f"{request.name}.mp4")
            if row is not None and (cause := self._fault(request, row)):
                causes[cause] += 1
                del rows[row["file"]]
        self.manifest.tidy(rows)
        return causes

    def missing(self) -> list[Request]:
        """The wanted clips that aren't there, once `take_stock` has looked."""
        rows = self.manifest.rows()
        return [request for request in self.wanted if f"{request.name}.mp4" not in rows]

    def add(self, request: Request, clip: Any, fps: float) -> None:
        """Write a clip uint8 [T, H, W, 3] and list it; its row comes last, so that half a clip is none."""
        mp4 = self.folder / f"{request.name}.mp4"
        if self.gif:
            media.write_gif(mp4.with_suffix(".gif"), clip, fps)
        media.write_mp4(mp4, clip, fps)
        self.manifest.add({"file": mp4.name, **self._row(request), "sha256": sha256_of(mp4)})

    def close(self) -> None:
        """Leave the manifest alone; by one process, once all have made theirs."""
        self.manifest.tidy(self.manifest.rows())

    def _row(self, request: Request) -> dict[str, Any]:
        return {"prompt": request.prompt, "seed": request.seed, **self.how}

    def _fault(self, request: Request, row: Mapping[str, Any]) -> str | None:
        """Why a listed clip isn't the wanted one, None where it is."""
        wanted = self._row(request)
        differing = [key for key in wanted if key not in SAYS_NOTHING and row.get(key) != wanted[key]]
        if differing:
            return f"made with other {', '.join(differing)}"
        mp4 = self.folder / row["file"]
        if sha256_of(mp4) != row.get("sha256"):
            return "damaged or changed since"
        return "without a GIF" if self.gif and not mp4.with_suffix(".gif").is_file() else None


def batches(wanted: Sequence[Request], missing: Sequence[Request], size: int) -> list[list[Request]]:
    """The batches of all wanted clips that hold a missing one, in order.

    Whole ones, cut as if nothing were there, since what a clip is to the last bit depends on what is sampled with it.
    """
    lacking = {request.name for request in missing}
    cut = [list(wanted[first : first + size]) for first in range(0, len(wanted), size)]
    return [part for part in cut if any(request.name in lacking for request in part)]


def write_clips(
    parts: Sequence[Sequence[Request]],
    missing: Sequence[Request],
    folder: ClipFolder,
    sampler: Sampler,
    teacher: Teacher,
    show: bool,
) -> None:
    """Sample these batches and write those of their clips that are missing, each as soon as it is there."""
    lacking = {request.name for request in missing}
    count = sum(request.name in lacking for part in parts for request in part)
    bar = progress(count, f"{sampler.name}, {sampler.steps} steps", show)
    for part in parts:
        videos = make_clips(sampler, teacher, [r.prompt for r in part], [r.seed for r in part], len(part), show=False)
        for request, video in zip(part, videos, strict=True):
            if request.name in lacking:
                folder.add(request, media.to_uint8(video.float() / 255), teacher.fps)
                logger.info(str(folder.folder / f"{request.name}.mp4"))
                bar.update()
    bar.close()


def print_unknown_words(teacher: Teacher, prompts: Sequence[str]) -> None:
    """Print a note for each prompt with words that the teacher's text encoder has no token for."""
    for prompt in dict.fromkeys(prompts):
        if unknown := teacher.text.unknown(prompt):
            logger.warning(f"note: the teacher doesn't know {', '.join(unknown)} in {prompt!r}")
