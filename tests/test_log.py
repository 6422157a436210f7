from __future__ import annotations

import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dollar import log
from dollar.data import shapes
from dollar.log import Log, progress, read_scalars


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
    assert (strip.height, strip.width) == picture.shape[:2] == (64, 64 * 6)  # every third of 17 frames
    assert (picture[:, 64:128] == clip[3]).all()


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
