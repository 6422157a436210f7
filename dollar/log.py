"""What a run writes about itself: TensorBoard, `metrics.jsonl`, and a progress bar."""

from __future__ import annotations

import io
import json
import math
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np
from PIL import Image
from tqdm import tqdm

from dollar import media

METRICS = "metrics.jsonl"
STRIP_FRAMES = 8  # pictures in the strip that goes beside an animated clip
LINE_SECONDS = 10.0  # between two progress lines when the output is not a terminal


class Curve(NamedTuple):
    """One scalar over a run: `steps` [N] int64, `values` [N] float64, in the order they were written."""

    steps: np.ndarray
    values: np.ndarray


class Log:
    """Writes a run's scalars and clips into its folder; an inactive one (ranks other than 0) writes nothing.

    resume_step: the first step that will be written again. What an interrupted run logged at or after it is dropped
    from `metrics.jsonl` and hidden in TensorBoard. None appends to whatever is there.
    """

    def __init__(self, folder: str | Path, active: bool = True, resume_step: int | None = None) -> None:
        self.active = active
        if not active:
            return
        from torch.utils.tensorboard import SummaryWriter  # a second of import, which only rank 0 pays

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        _keep_before(folder / METRICS, math.inf if resume_step is None else resume_step)
        self._lines = (folder / METRICS).open("a", encoding="utf-8")
        self._board = SummaryWriter(str(folder), purge_step=resume_step, flush_secs=20)

    def scalars(self, step: int, values: Mapping[str, Any]) -> None:
        """Write {name: number or one-element tensor} for this step: one JSON line, and a TensorBoard scalar each."""
        if not self.active:
            return
        numbers = {name: float(v.item() if hasattr(v, "item") else v) for name, v in values.items()}
        assert "step" not in numbers, "a scalar can't be called `step`: it is the JSON line's own key"
        # JSON has no NaN or infinity; as text they stay readable by any parser, and by float().
        line = {name: x if math.isfinite(x) else str(x) for name, x in numbers.items()}
        self._lines.write(json.dumps({"step": step, **line}) + "\n")
        self._lines.flush()
        for name, x in numbers.items():
            self._board.add_scalar(name, x, step)

    def clips(self, step: int, name: str, clip: np.ndarray, fps: float) -> None:
        """Show a clip, uint8 [T, H, W, 3], as an animated image `name` and a strip of its frames `name/frames`."""
        if not self.active:
            return
        # add_video writes nothing, without a word, when its movie library is missing or new; a GIF is just an image.
        self._image(step, name, media.gif_bytes(clip, fps), *clip.shape[1:3])
        picture = media.strip(clip, every=math.ceil(len(clip) / STRIP_FRAMES))
        png = io.BytesIO()
        Image.fromarray(picture).save(png, "PNG")
        self._image(step, f"{name}/frames", png.getvalue(), *picture.shape[:2])

    def _image(self, step: int, name: str, encoded: bytes, height: int, width: int) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        image = Summary.Image(encoded_image_string=encoded, height=height, width=width, colorspace=3)
        self._board._get_file_writer().add_summary(Summary(value=[Summary.Value(tag=name, image=image)]), step)

    def close(self) -> None:
        """Flush and close the files; a second call does nothing."""
        if self.active:
            self._lines.close()
            self._board.close()
        self.active = False

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


def progress(
    items: Iterable[Any] | int, description: str = "", active: bool = True, start: int = 0, stream: TextIO | None = None
) -> tqdm:
    """A bar with the time left, over an iterable or over range(start, total); `update()` it, or iterate over it.

    Off a terminal it prints a line every ten seconds or so; inactive, nothing. Numbers beside the bar:
    `set_postfix_str(text, refresh=False)`, so that they don't cost a line each.
    """
    stream = sys.stderr if stream is None else stream
    total, initial = None, 0
    if isinstance(items, int):
        items, total, initial = range(start, items), items, start
    common = {"desc": description, "total": total, "initial": initial, "disable": not active}
    if stream.isatty():
        return tqdm(items, file=stream, dynamic_ncols=True, **common)
    return tqdm(items, file=_Lines(stream), mininterval=LINE_SECONDS, miniters=1, ncols=100, ascii=True, **common)


class _Lines:
    """A text stream for tqdm that ends each picture of the bar with a newline, where tqdm would overwrite it."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> None:
        if text.strip():
            self.stream.write(text.strip() + "\n")

    def flush(self) -> None:
        self.stream.flush()


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
