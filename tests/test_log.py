from __future__ import annotations

import importlib
import io
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dollar import log
from dollar.data import shapes
from dollar.log import progress
from dollar.training.log import Log, read_scalars
from dollar.training.trackers import check_trackers

ROOT = Path(__file__).resolve().parent.parent


def board(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder), size_guidance={"images": 0, "scalars": 0})
    events.Reload()
    return events


def test_scalars_reach_json_at_once_and_tensorboard_in_the_end(tmp_path: Path) -> None:
    with Log(tmp_path / "run") as run:
        run.scalars(0, {"loss/vsd": torch.tensor(0.5, requires_grad=True), "time/cycle": np.float32(2)})
        run.scalars(2, {"loss/vsd": 0.25})
        curves = read_scalars(tmp_path / "run")  # before closing: each line is flushed
    assert set(curves) == {"loss/vsd", "time/cycle"}
    steps, values = curves["loss/vsd"]
    assert steps.tolist() == [0, 2] and values.tolist() == [0.5, 0.25]
    scalars = board(tmp_path / "run").Scalars("loss/vsd")
    assert [(s.step, s.value) for s in scalars] == [(0, 0.5), (2, 0.25)]


def test_non_finite_values_stay_readable_and_the_json_strict(tmp_path: Path) -> None:
    with Log(tmp_path) as run:
        run.scalars(1, {"a": math.nan, "b": -math.inf})

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=refuse)
    curves = read_scalars(tmp_path)
    assert math.isnan(curves["a"].values[0]) and curves["b"].values[0] == -math.inf


def test_resuming_drops_what_will_be_written_again(tmp_path: Path) -> None:
    with Log(tmp_path) as run:
        for step in range(6):
            run.scalars(step, {"loss": float(step)})
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 6, "lo')  # torn by a crash
    time.sleep(1.1)  # TensorBoard reads files in the order of their names, which begin with the second
    with Log(tmp_path, resume_step=4) as run:
        assert read_scalars(tmp_path)["loss"].steps.tolist() == [0, 1, 2, 3]
        run.scalars(4, {"loss": 40.0})
    assert read_scalars(tmp_path)["loss"].values.tolist() == [0, 1, 2, 3, 40]
    assert [s.value for s in board(tmp_path).Scalars("loss")] == [0, 1, 2, 3, 40]


def test_opening_again_without_a_resume_step_appends_even_after_a_torn_line(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 0, "loss": 1.0}\n{"step": 1, "loss": 2.0}\n{"step": 2, "l')
    assert read_scalars(tmp_path)["loss"].values.tolist() == [1, 2]
    with Log(tmp_path) as run:
        run.scalars(2, {"loss": 3.0})
    assert read_scalars(tmp_path)["loss"].values.tolist() == [1, 2, 3]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3


def test_no_file_has_no_curves(tmp_path: Path) -> None:
    assert read_scalars(tmp_path) == {}


def test_clips_move_in_tensorboard_and_have_a_strip(tmp_path: Path) -> None:
    clip = shapes.render(shapes.ALL_ATTRIBUTES[0], 0)
    with Log(tmp_path) as run:
        run.clips(7, "samples/0", clip, 8)
    events = board(tmp_path)
    (moving,), (strip,) = events.Images("samples/0"), events.Images("samples/0/frames")
    assert (moving.step, moving.height, moving.width) == (7, 64, 64)
    gif = Image.open(io.BytesIO(moving.encoded_image_string))
    assert gif.format == "GIF" and gif.n_frames == len(clip)
    picture = np.asarray(Image.open(io.BytesIO(strip.encoded_image_string)))
    assert (strip.height, strip.width) == picture.shape[:2] == (64 * 6, 64)  # every third of 17 frames
    assert (picture[64:128] == clip[3]).all()


def test_an_inactive_log_writes_nothing(tmp_path: Path) -> None:
    with Log(tmp_path / "run", active=False) as run:
        run.scalars(0, {"loss": 1.0})
        run.clips(0, "a", np.zeros((1, 2, 2, 3), np.uint8), 8)
    run.close()
    assert list(tmp_path.iterdir()) == []


def test_progress_off_a_terminal_prints_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "LINE_SECONDS", 0.0)
    stream = io.StringIO()
    assert list(progress(range(3), "cycles", stream=stream)) == [0, 1, 2]
    lines = stream.getvalue().splitlines()
    assert "\r" not in stream.getvalue() and len(lines) >= 4 and lines[-1].startswith("cycles: 100%")
    assert all(line.startswith("cycles: ") for line in lines)


def test_progress_is_sparse_and_can_start_in_the_middle() -> None:
    stream = io.StringIO()
    bar = progress(1000, "cycles", start=400, stream=stream)
    assert list(bar)[0] == 400
    lines = stream.getvalue().splitlines()
    assert 1 <= len(lines) <= 2 and "400/1000" in lines[0] and "1000/1000" in lines[-1]
    manual = io.StringIO()
    with progress(10, "copy", stream=manual) as bar:
        bar.update(10)
    assert "10/10" in manual.getvalue()


def test_an_inactive_bar_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    with progress(5, "x", active=False) as bar:
        assert sum(bar) == 10
        bar.set_postfix_str("loss 1", refresh=False)
    assert capsys.readouterr() == ("", "")


# Trackers

WANDB = """
calls = []


class config:
    update = staticmethod(lambda values, allow_val_change: calls.append(("config", values)))


class Run:
    def log(self, values, step):
        calls.append(("log", step, values))

    def finish(self):
        calls.append(("finish",))


def init(**arguments):
    calls.append(("init", arguments))
    return Run()


class Image:
    def __init__(self, data):
        self.data = data


class Video:
    def __init__(self, data, format):
        self.data, self.format = data, format
"""
MINE = """
from accelerate.tracking import GeneralTracker

calls = []


class Mine(GeneralTracker):
    name, requires_logging_directory, tracker = "mine", True, None

    def __init__(self, run, folder):
        calls.append((run, folder))

    def start(self):
        calls.append("start")

    def store_init_configuration(self, values):
        calls.append(values)

    def log(self, values, step=None, **_):
        calls.append((step, values))

    def log_images(self, values, step=None, **_):
        calls.append((step, {name: [image.shape for image in images] for name, images in values.items()}))

    def finish(self):
        calls.append("finish")


class Other:
    pass
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], Any]]:
    """package(name, code) is a module that can be imported until the test's end."""
    made: list[str] = []

    def make(name: str, code: str) -> Any:
        (tmp_path / "site").mkdir(exist_ok=True)
        (tmp_path / "site" / f"{name}.py").write_text(code)
        made.append(name)
        return importlib.import_module(name)

    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    yield make
    for name in made:
        del sys.modules[name]


def test_a_tracker_of_ones_own_gets_settings_scalars_and_strips(
    tmp_path: Path, package: Callable[[str, str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = package("my_module", MINE)
    for key, value in (("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "2"), ("MASTER_PORT", "1")):
        monkeypatch.setenv(key, value)  # as under torchrun: accelerate must not join the processes
    settings = {"vsd": {"beta": 1.0, "range": [0.1, 0.9]}, "init": None, "run": "demo"}
    with Log(tmp_path / "demo", trackers=["tensorboard", "my_module.Mine"], settings=settings) as run:
        run.scalars(3, {"loss": torch.tensor(0.5), "bad": math.nan})
        run.clips(3, "clip", np.zeros((4, 6, 8, 3), np.uint8), 8)
    assert not torch.distributed.is_initialized()
    (named, start, config, (step, values), pictures, finish) = mine.calls
    assert named == ("demo", str(tmp_path / "demo")) and (start, finish) == ("start", "finish")
    assert config == {"vsd.beta": 1.0, "vsd.range": "[0.1, 0.9]", "init": None, "run": "demo"}
    assert step == 3 and values["loss"] == 0.5 and math.isnan(values["bad"])
    assert pictures == (3, {"clip/frames": [(24, 8, 3)]})
    assert board(tmp_path / "demo").Scalars("loss")[0].value == 0.5


def test_wandb_gets_moving_clips(tmp_path: Path, package: Callable[[str, str], Any]) -> None:
    wandb = package("wandb", WANDB)
    with Log(tmp_path / "demo", trackers=["wandb"], settings={"seed": 0}) as run:
        run.scalars(1, {"loss": 0.5})
        run.clips(2, "clip", np.zeros((4, 6, 8, 3), np.uint8), 8)
    init, config, scalars, (_, step, shown), finish = wandb.calls
    assert init == ("init", {"project": "dollar", "name": "demo"}) and config == ("config", {"seed": 0})
    assert scalars == ("log", 1, {"loss": 0.5}) and finish == ("finish",)
    assert step == 2 and shown["clip"].format == "gif" and Image.open(shown["clip"].data).format == "GIF"
    assert shown["clip/frames"].data.shape == (24, 8, 3)
    assert [p.name for p in (tmp_path / "demo").iterdir()] == ["metrics.jsonl"]


def test_without_trackers_the_json_lines_stay(tmp_path: Path) -> None:
    with Log(tmp_path, trackers=[]) as run:
        run.scalars(0, {"loss": 1.0})
        run.clips(0, "clip", np.zeros((1, 2, 2, 3), np.uint8), 8)
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["tensorbord"], r"log.trackers names 'tensorbord'; use aim, .*wandb, or the dotted path of a class"),
        (["comet_ml"], r"names comet_ml, which is not installed; run `pip install comet-ml`, or .*tensorboard, "),
        (["no_module.Mine"], r"names no_module.Mine, which can't be imported: No module named 'no_module'"),
        (["my_module.Yours"], r"can't be imported: module 'my_module' has no attribute 'Yours'"),
        (["my_module.Other"], r"give a class that inherits accelerate.tracking.GeneralTracker"),
        ("tensorboard", r"log.trackers is 'tensorboard'; give a list of names"),
        ([1], r"log.trackers is \[1\]; give a list of names"),
    ],
)
def test_a_tracker_that_cannot_be_had_is_refused(
    names: Any, told: str, package: Callable[[str, str], Any], tmp_path: Path
) -> None:
    package("my_module", MINE)
    for refuse in (check_trackers, lambda names: Log(tmp_path / "run", trackers=names)):
        with pytest.raises(ValueError, match=told):
            refuse(names)
    assert not (tmp_path / "run").exists()


def test_wandbs_own_folder_is_not_taken_for_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wandb").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ValueError, match="wandb, which is not installed"):
        check_trackers(["wandb"])


# The logger


def test_messages_are_printed_plainly_by_the_first_process(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    log.speak()  # once more than conftest.py: each message is still printed once
    log.logger.info("50% of %s are fine")
    log.logger.debug("too much")
    log.logger.warning("note: a trouble", extra=log.ANY_RANK)
    assert capsys.readouterr() == ("50% of %s are fine\nnote: a trouble\n", "")
    monkeypatch.setenv("RANK", "1")
    log.logger.warning("note: everyone's")
    log.logger.warning("note: a trouble", extra=log.ANY_RANK)
    assert capsys.readouterr() == ("process 1: note: a trouble\n", "")


def test_a_librarys_user_hears_nothing_unless_he_asks(tmp_path: Path) -> None:
    code = "from dollar.log import logger, speak; logger.warning('a'); speak(); logger.warning('b')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert (done.stdout, done.stderr) == ("b\n", "")
