"""Training on a folder of real clips: usable ones are learned from, the others are skipped, counted and named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from conftest import ROOT

from dollar import media
from dollar.parallel import checkpoint
from dollar.training.loop import Loop

SHARED = ROOT.parent / "shared" / "clips"


def moving_square(frames: int, height: int, width: int, colour: tuple[int, int, int]) -> np.ndarray:
    clip = np.full((frames, height, width, 3), 30, np.uint8)
    for t in range(frames):
        clip[t, 10:22, 2 + t : 14 + t] = colour
    return clip


def write_sound(path: Path) -> None:
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=16000)
        for k in range(8):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 16000, 1024 * k
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three clips of other sizes and rates, one picture, and four files that can't be used."""
    where = tmp_path / "clips"
    where.mkdir()
    media.write_mp4(where / "red.mp4", moving_square(30, 48, 64, (220, 30, 30)), 24)
    media.write_mp4(where / "blue.mp4", moving_square(12, 32, 32, (30, 30, 220)), 8)
    media.write_mp4(where / "green.mp4", moving_square(15, 65, 41, (30, 220, 30)), 12)
    media.write_mp4(where / "short.mp4", moving_square(3, 32, 32, (9, 9, 9)), 8)
    media.Image.fromarray(moving_square(1, 40, 40, (200, 200, 30))[0]).save(where / "still.png")
    (where / "corrupt.mp4").write_bytes(b"no film" * 200)
    (where / "empty.mp4").write_bytes(b"")
    write_sound(where / "sound.mp4")
    rows = [{"file": p.name, "caption": f"a {p.stem} clip"} for p in sorted(where.iterdir())]
    (where / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return where


def test_a_folder_of_clips_trains(
    build: Callable[..., Loop], folder: Path, capsys: pytest.CaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    settings = ("student.input=noised_data", "data.clips.max_bad_fraction=0.6", "validation.every=3")
    data = ("data=clips", f"data.path={folder}")
    loop = build(*settings, data=data)
    printed = capsys.readouterr().out
    assert printed.startswith("4 usable, ")
    for cause, name in (("too short", "short"), ("corrupt", "corrupt"), ("empty", "empty"), ("no video", "sound")):
        assert f"1 {cause}" in printed and f"{name}.mp4" in printed
    assert sorted(loop.data.clips.captions) == [f"a {n} clip" for n in ("blue", "green", "red", "still")]
    assert loop.train()
    state = checkpoint.load(checkpoint.newest(loop.folder / "checkpoints"))
    again = build(*settings, data=data)
    again.load(state)  # what was skipped doesn't shift what comes next
    loop.timetable.cycles = again.timetable.cycles = 4
    assert loop.train() and again.train()
    for name, value in loop.state()[0].items():
        assert value.equal(again.state()[0][name]), name
    lines = [json.loads(line) for line in (loop.folder / "metrics.jsonl").read_text().splitlines()]
    assert all(np.isfinite(line["loss/cd"]) for line in lines if "loss/cd" in line)
    assert any("validation/reward_4" in line for line in lines)


def test_a_clip_that_breaks_later_is_replaced_with_its_stand_ins_caption(folder: Path, tmp_path: Path) -> None:
    from dollar.data.clips import ClipFolder
    from dollar.data.latents import LatentBatches

    for name in ("still.png", "corrupt.mp4", "empty.mp4", "sound.mp4", "short.mp4", "captions.jsonl"):
        (folder / name).unlink()
    for name in ("red", "blue", "green"):
        (folder / f"{name}.txt").write_text(f"a {name} clip")
    clips = ClipFolder(folder, frames=5, height=16, width=16, fps=4)
    data = LatentBatches(clips, lambda videos: videos, seed=0)
    (folder / "blue.mp4").write_bytes((folder / "blue.mp4").read_bytes()[:200])  # after it was found usable
    with pytest.warns(UserWarning, match=r"blue\.mp4 can't be decoded.*stands in, with its own caption"):
        batch = data.batch(range(3))
    assert sorted(set(batch.prompts)) == ["a green clip", "a red clip"]
    for prompt, video in zip(batch.prompts, batch.latents, strict=True):
        red, green, blue = video.mean((0, 2, 3))
        assert (red > green and red > blue) if "red" in prompt else (green > red and green > blue)
    assert data.batch(range(3), latents=False).prompts == batch.prompts


def test_too_many_bad_clips_stop_the_run_at_once(build: Callable[..., Loop], folder: Path) -> None:
    with pytest.raises(Exception, match=r"50% of its 8 clips are bad; at most 40%"):
        build("data.clips.max_bad_fraction=0.4", data=("data=clips", f"data.path={folder}"))


@pytest.mark.skipif(not SHARED.is_dir(), reason="the ten real clips are not in this copy")
def test_real_clips_train(build: Callable[..., Loop], recwarn: pytest.WarningsRecorder) -> None:
    """Their captions are not the shapes world's, so its verifier can't judge them: no reward."""
    settings = ("cycles=2", "beta_ft=0", "reward._target_=null", "validation.every=2")
    loop = build(*settings, data=("data=clips", f"data.path={SHARED}"))
    assert len(loop.data.clips) == 10
    assert loop.train()
    keys = loop.data.batch(range(30), latents=False).keys
    assert {clip for clip, _ in keys} == set(range(10))
    assert len(set(keys)) > 20  # an epoch later most clips begin elsewhere
