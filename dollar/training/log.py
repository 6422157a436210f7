"""What a run writes about itself: `metrics.jsonl`, and the trackers that `log.trackers` names."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dollar import media
from dollar.log import logger
from dollar.storage import why
from dollar.training.trackers import DEFAULT, Tracker, check_trackers, flat, show, start_tracker

METRICS = "metrics.jsonl"
STRIP_FRAMES = 8  # pictures in the strip that is logged with an animated clip


class Curve(NamedTuple):
    """One scalar over a run: `steps` [N] int64, `values` [N] float64, in the order they were written."""

    steps: np.ndarray
    values: np.ndarray


class Log:
    """Writes a run's scalars and clips into its folder; an inactive one (ranks other than 0) writes nothing.

    resume_step: the first step that will be written again. What an interrupted run logged at or after it is dropped
    from `metrics.jsonl` and hidden in TensorBoard. None appends to whatever is there.
    trackers: who else gets the scalars and clips, by the names that `check_trackers` knows. settings: the run's
    configuration, which the trackers store.
    """

    def __init__(
        self,
        folder: str | Path,
        active: bool = True,
        resume_step: int | None = None,
        trackers: Sequence[str] = DEFAULT,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.active = active
        self.trackers: list[Tracker] = []
        self.folder, self._noted = Path(folder), set[str]()
        if not active:
            return
        check_trackers(trackers)
        folder = self.folder
        folder.mkdir(parents=True, exist_ok=True)
        _keep_before(folder / METRICS, math.inf if resume_step is None else resume_step)
        self._lines = (folder / METRICS).open("a", encoding="utf-8")
        for name in dict.fromkeys(trackers):
            self.trackers.append(start_tracker(name, folder, resume_step))
            if settings is not None:
                self.trackers[-1].store_init_configuration(flat(settings))

    def scalars(self, step: int, values: Mapping[str, Any]) -> None:
        """Write {name: number or one-element tensor} for this step: one JSON line, and a scalar each in trackers."""
        if not self.active:
            return
        numbers = {name: float(v.item() if hasattr(v, "item") else v) for name, v in values.items()}
        assert "step" not in numbers, "a scalar can't be called `step`: it is the JSON line's own key"
        # JSON has no NaN or infinity; as text they stay readable by any parser, and by float().
        line = {name: x if math.isfinite(x) else str(x) for name, x in numbers.items()}
        with self._noting(METRICS):
            self._lines.write(json.dumps({"step": step, **line}) + "\n")
            self._lines.flush()  # what can't be written stays in the buffer, and goes out with a later line
        for tracker in self.trackers:
            with self._noting(tracker.name):
                tracker.log(numbers, step=step)

    def clips(self, step: int, name: str, clip: np.ndarray, fps: float) -> None:
        """Show a clip, uint8 [T, H, W, 3], as an animated image `name`, and some of its frames below one another as
        `name/frames`."""
        if not self.active or not self.trackers:
            return
        gif, strip = media.gif_bytes(clip, fps), media.strip(clip, every=math.ceil(len(clip) / STRIP_FRAMES))
        for tracker in self.trackers:
            with self._noting(tracker.name):
                show(tracker, step, name, gif, strip)

    def note(self, step: int, text: str) -> None:
        """Show a sentence for the user in the trackers that have a place for it."""
        for tracker in self.trackers if self.active else ():
            if hasattr(tracker, "log_note"):
                with self._noting(tracker.name):
                    tracker.log_note(step, text)

    def close(self) -> None:
        """Flush and close the files; a second call does nothing."""
        if self.active:
            self.active = False
            with self._noting(METRICS):
                self._lines.close()
            for tracker in self.trackers:
                with self._noting(tracker.name):
                    tracker.finish()

    @contextmanager
    def _noting(self, what: str) -> Iterator[None]:
        """Within this, what the system doesn't let be written costs a note, once, and not the run."""
        try:
            yield
        except OSError as error:
            if what not in self._noted:
                logger.warning(f"note: {what} could not be written to {self.folder}: {why(error, self.folder)}")
            self._noted.add(what)

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_scalars(folder: str | Path) -> dict[str, Curve]:
    """The curves of a run's `metrics.jsonl`, by name; a line torn by a crash is passed over; no file gives {}."""
    curves: dict[str, tuple[list[int], list[float]]] = {}
    for row in _rows(Path(folder) / METRICS):
        for name, value in row.items():
            if name != "step":
                steps, values = curves.setdefault(name, ([], []))
                steps.append(row["step"])
                values.append(float(value))
    return {name: Curve(np.array(s, dtype=np.int64), np.array(v, dtype=np.float64)) for name, (s, v) in curves.items()}


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    """The whole JSON lines of a metrics file."""
    if not path.is_file():
        return
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            yield row


def _keep_before(path: Path, step: float) -> None:
    """Rewrite a metrics file with its whole lines of steps under `step`, so that appending to it is safe."""
    if path.is_file():
        with media.atomically(path) as temporary:
            temporary.write_text("".join(json.dumps(r) + "\n" for r in _rows(path) if r["step"] < step), "utf-8")
