"""Where a run's curves and clips can be followed: TensorBoard in the run's folder, and accelerate's trackers."""

from __future__ import annotations

import importlib
import io
import threading
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
from PIL import Image

from dollar.lazy import dotted

TENSORBOARD = "tensorboard"
DEFAULT = (TENSORBOARD,)
PROJECT = "dollar"  # what services that group runs by project file them under
# By which argument a tracker of accelerate's takes the run's name; its first argument is the project then.
RUN_NAMED_BY = {
    "wandb": "name",
    "trackio": "name",
    "mlflow": "run_name",
    "clearml": "task_name",
    "swanlab": "experiment_name",
}
SINGLE = ("aim", "clearml")  # whose log_images takes one picture a name; the others' takes a list


class Tracker(Protocol):
    """What a run's log needs of a tracker, as accelerate's `GeneralTracker` has it.

    One that has `log_clip(step, name, gif, strip)` shows clips in its own way; one that has `log_images` gets strips;
    one that has `log_note(step, text)` gets sentences for the user.
    """

    name: str

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        """Keep the run's settings: name -> text, number, switch or None."""

    def log(self, values: dict[str, Any], step: int | None = None) -> None:
        """Take one number for each name."""

    def finish(self) -> None:
        """Write what is left, and close."""


class Board:
    """TensorBoard's files in a folder, without the folder for settings that accelerate's own tracker adds to it.

    purge_step: steps from here on that are there already are hidden.
    """

    name = TENSORBOARD

    def __init__(self, folder: Path, purge_step: int | None = None) -> None:
        from torch.utils.tensorboard import SummaryWriter  # a second of import, which only rank 0 pays

        _hush()
        self.writer = SummaryWriter(str(folder), purge_step=purge_step, flush_secs=20)

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        """Nothing: the run's folder has its config.yaml."""

    def log(self, values: dict[str, Any], step: int | None = None) -> None:
        """One scalar for each name."""
        for name, x in values.items():
            self.writer.add_scalar(name, x, step)

    def log_clip(self, step: int, name: str, gif: bytes, strip: np.ndarray) -> None:
        """The clip as an animated image, for add_video silently writes nothing when its library is missing."""
        with Image.open(io.BytesIO(gif)) as moving:
            self._image(step, name, gif, moving.height, moving.width)
        png = io.BytesIO()
        Image.fromarray(strip).save(png, "PNG")
        self._image(step, f"{name}/frames", png.getvalue(), *strip.shape[:2])

    def log_note(self, step: int, text: str) -> None:
        """A sentence, among the texts."""
        self.writer.add_text("notes", text, step)

    def finish(self) -> None:
        """Flush and close the files."""
        self.writer.close()

    def _image(self, step: int, name: str, encoded: bytes, height: int, width: int) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        image = Summary.Image(encoded_image_string=encoded, height=height, width=width, colorspace=3)
        self.writer._get_file_writer().add_summary(Summary(value=[Summary.Value(tag=name, image=image)]), step)


@cache
def _hush() -> None:
    """Print no traceback of what TensorBoard's own thread could not write: the next call raises it, and is noted."""
    before = threading.excepthook

    def hook(found: threading.ExceptHookArgs) -> None:
        if not (isinstance(found.exc_value, OSError) and type(found.thread).__module__.startswith("tensorboard.")):
            before(found)

    threading.excepthook = hook


def check_trackers(names: Any) -> None:
    """Raise ValueError unless `log.trackers` is a list of trackers that can be used here; nothing is started."""
    if isinstance(names, str) or not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"log.trackers is {names!r}; give a list of names, as [tensorboard], or [] for none")
    for name in names:
        if name != TENSORBOARD:
            class_of(name)


def start_tracker(name: str, folder: Path, resume_step: int | None = None) -> Tracker:
    """The tracker of a name, started for the run in this folder; services call the run by the folder's name."""
    if name == TENSORBOARD:
        return Board(folder, resume_step)
    kind = class_of(name)
    from accelerate.state import PartialState
    from accelerate.utils import clear_environment

    # accelerate wants to know who it is among the processes, and would join them, or set threads and devices, by
    # torchrun's variables. Only the first process has a tracker, so as far as accelerate is concerned it is alone.
    with clear_environment():
        PartialState(cpu=True)
    tracker: Any
    if name in RUN_NAMED_BY:
        tracker = kind(PROJECT, **{RUN_NAMED_BY[name]: folder.name})
    else:
        tracker = kind(folder.name, *[str(folder)] * bool(kind.requires_logging_directory))
    tracker.start()
    return cast(Tracker, tracker)


def class_of(name: str) -> Any:
    """The class of a tracker by accelerate's name for it, or by a dotted path; ValueError where it can't be had."""
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS as known
    from accelerate.tracking import GeneralTracker

    if name in known:
        found = find_spec(name)
        if found is None or found.origin is None:  # without an origin it is a mere folder, such as wandb's own ./wandb
            raise ValueError(
                f"log.trackers names {name}, which is not installed; run `pip install {name.replace('_', '-')}`, or "
                f"name others of {', '.join(sorted(map(str, known)))}"
            )
        return known[name]
    if (meant := dotted(name)) is not None:
        raise ValueError(f"log.trackers names {name!r}; write it with dots, as {meant}")
    module, _, attribute = name.rpartition(".")
    if not module:
        raise ValueError(
            f"log.trackers names {name!r}; use {', '.join(sorted(map(str, known)))}, or the dotted path of a class, as "
            "my_module.MyTracker"
        )
    try:
        kind = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"log.trackers names {name}, which can't be imported: {error}") from None
    if not (isinstance(kind, type) and issubclass(kind, GeneralTracker)):
        raise ValueError(f"log.trackers names {name}; give a class that inherits accelerate.tracking.GeneralTracker")
    return kind


def show(tracker: Any, step: int, name: str, gif: bytes, strip: np.ndarray) -> None:
    """Give a clip to a tracker in the best form it takes: an animation, else a strip of frames uint8 [H, W, 3]."""
    if hasattr(tracker, "log_clip"):
        tracker.log_clip(step, name, gif, strip)
    elif tracker.name == "wandb":
        wandb = importlib.import_module("wandb")
        moving = wandb.Video(io.BytesIO(gif), format="gif")
        tracker.log({name: moving, f"{name}/frames": wandb.Image(strip)}, step=step)
    elif hasattr(tracker, "log_images"):
        tracker.log_images({f"{name}/frames": strip if tracker.name in SINGLE else [strip]}, step=step)


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as {dotted name: text, number, switch or None}; what is nothing of these becomes its text."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value if isinstance(value, (str, int, float)) or value is None else str(value)
    return found
