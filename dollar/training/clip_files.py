"""The clips of a run's validations as files of full size."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np

from dollar import media
from dollar.log import logger
from dollar.storage import why

CLIPS = "clips"
OF_CYCLE = re.compile(r"cycle-(\d{8,})-")


class ClipFiles:
    """mp4s in <run>/clips, named by cycle, prompt, seed, maker and steps; the teacher's have no cycle.

    keep: of how many validations, the newest; 0 writes none at all. resume_step: the first cycle that will be run
    again, of which and after which there may be clips of before. A file that can't be written costs a note, not a run.
    """

    def __init__(self, run: Path, keep: int, resume_step: int | None = None) -> None:
        self.folder, self.keep = run / CLIPS, keep
        self._noted = False
        first = math.inf if resume_step is None else resume_step
        self._drop([cycle for cycle in self.cycles() if cycle >= first])

    def write(self, clip: np.ndarray, fps: float, prompt: str, seed: int, steps: int, by: str, cycle: int = -1) -> None:
        """Write one clip, uint8 [T, H, W, 3]; cycle: of the student, below 0 for one that doesn't change."""
        if self.keep == 0:
            return
        name = media.safe_name(prompt, seed, steps, by)
        path = self.folder / (f"{name}.mp4" if cycle < 0 else f"cycle-{cycle:08d}-{name}.mp4")
        try:
            media.write_mp4(path, clip, fps)
        except media.UNWRITTEN as error:
            if not self._noted:
                logger.warning(f"note: {path} could not be written: {why(error, self.folder)}; the run goes on")
            self._noted = True

    def prune(self) -> None:
        """Drop all but the newest."""
        self._drop(self.cycles()[: -self.keep] if self.keep else [])

    def cycles(self) -> list[int]:
        """The cycles of which there are clips."""
        found = (OF_CYCLE.match(path.name) for path in self.folder.glob("cycle-*.mp4"))
        return sorted({int(match[1]) for match in found if match})

    def _drop(self, cycles: list[int]) -> None:
        for cycle in cycles:
            for path in self.folder.glob(f"cycle-{cycle:08d}-*.mp4"):
                path.unlink(missing_ok=True)
