"""Validations: one's own prompts, shares of several processes, labelled columns, and clips at full size."""

from __future__ import annotations

import errno
import io
import json
import math
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import World, compose, free_port, load_tiny_teacher, start_process, tiny_run
from PIL import Image, ImageFont
from test_log import board
from test_media import read_mp4

from dollar import media
from dollar.cli.build.notes import notes_of
from dollar.cli.build.objective import objective_of
from dollar.cli.build.validation import check_scored
from dollar.evaluation.measures.appearance import appearance
from dollar.models.teacher import Teacher
from dollar.parallel.world import finish
from dollar.rewards.shapes import ShapesVerifier
from dollar.surrogate.pixel_reward import PixelReward
from dollar.training.clip_files import ClipFiles
from dollar.training.columns import GAP, INK, LINE, TEXT, columns, wrapped
from dollar.training.loop import Loop

Build = Callable[..., Loop]
OWN = ["a small red circle moving left on a black background", "a large blue square moving up on a white background"]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "my prompts.txt"
    path.write_text("\n\n".join(["﻿" + OWN[0], OWN[1], OWN[0]]), encoding="utf-8")
    return path


# Prompts


DATA = {
    "clips": (),
    "prompts": ("data=prompts", "beta_cd=0", "data.path={prompts}"),
}


@pytest.mark.parametrize("data", DATA)
def test_ones_own_prompts_are_sampled_whatever_the_data(build: Build, prompts: Path, data: str) -> None:
    given = [part.format(prompts=prompts) for part in DATA[data]]
    how = {} if data == "clips" else {"data": ()}
    loop = build("validation.every=1", f"validation.prompts_file={prompts}", "validation.prompts=24", *given, **how)
    assert loop.validate.prompts == [OWN[0], OWN[1], OWN[0]] and len(set(loop.validate.seeds)) == 3


def test_a_file_of_prompts_that_is_none_is_refused_first(build: Build, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n")
    for name, words in (("none.txt", "does not exist"), ("empty.txt", "has no prompts")):
        with pytest.raises(ValueError, match=f"validation.prompts_file: .*{name} {words}"):
            build(f"validation.prompts_file={tmp_path / name}")


def test_prompts_that_a_reward_cant_score_are_told_by_their_file(teacher: Teacher) -> None:
    pixel, mine = PixelReward(ShapesVerifier(), teacher.codec), ["a dog, running"]
    given, every = "validation.prompts_file=mine.txt", "validation.every={}".format
    with pytest.raises(ValueError, match=r"^validation.prompts_file=mine.txt: the reward ShapesVerifier can't"):
        check_scored(compose("train", given, every(1)), mine, None, pixel)
    with pytest.raises(ValueError, match="^the reward ShapesVerifier can't"):  # the data's own
        check_scored(compose("train", every(1)), mine, pixel)
    check_scored(compose("train", given, every(0)), mine, pixel)  # nothing samples them
    check_scored(compose("train", given, every(1)), OWN, pixel)


def test_prompts_that_nothing_samples_are_noted() -> None:
    given = ("validation.prompts_file=mine.txt", "reward=none", "beta_ft=0")
    found = {every: compose("train", *given, f"validation.every={every}") for every in (0, 300)}
    notes = {every: notes_of(config, objective_of(config), 1) for every, config in found.items()}
    assert notes[300] == [] and len(notes[0]) == 1 and "validation.every=0" in notes[0][0]


# Shares


def validated(loop: Loop) -> tuple[dict[str, float], list[np.ndarray]]:
    """Scores, and what a validation shows."""
    shown: list[np.ndarray] = []
    loop.log.clips = lambda step, name, clip, fps: shown.append(clip)  # type: ignore[method-assign]
    return loop.validate(1), shown


SHARED = ("validation.every=1", "validation.prompts=5", "validation.clips=3", "student.steps=[4,2]")


def work(folder: Path, teacher_folder: Path, rank: int, size: int, port: int) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    from dollar.parallel.world import start

    world, made = start("cpu"), []
    teacher = load_tiny_teacher(teacher_folder)
    for shard in ("false", "true"):
        loop = tiny_run(teacher, folder / shard, *SHARED, f"parallel.shard={shard}", world=world)
        real = loop.validate._made
        loop.validate._made = lambda sampler, places: made.append(len(places)) or real(sampler, places)  # noqa: B023
        scores, shown = validated(loop)
        torch.save((scores, [torch.from_numpy(c.copy()) for c in shown], made[:]), folder / f"{shard}-{rank}.pt")
        made.clear()
        loop.log.close()
    finish(world)


def test_prompts_are_shared_out_and_the_result_is_the_same(
    build: Build, tiny_teacher_folder: Path, tmp_path: Path
) -> None:
    expected, pictures = validated(build(*SHARED))
    port = free_port()
    both = [start_process(work, tmp_path, tiny_teacher_folder, rank, 2, port) for rank in (0, 1)]
    for started in both:
        started.join(300)
        assert started.exitcode == 0
    for shard in ("false", "true"):
        for rank in (0, 1):
            scores, shown, made = torch.load(tmp_path / f"{shard}-{rank}.pt")
            assert scores == pytest.approx(expected, abs=1e-5, nan_ok=True)
            assert made == [2, 3, 3]  # two of three clips of the teacher, three of five of the student, for each count
            assert len(shown) == (3 if rank == 0 else 0)
            for clip, picture in zip(shown, pictures, strict=False):
                assert np.abs(clip.numpy().astype(int) - picture).max() <= 1


def test_fewer_prompts_than_processes(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    loop = build("validation.every=1", "validation.prompts=2", "validation.clips=2")
    from dollar.training.validation import Scores, Shown, Validation

    for rank, own in ((0, [0]), (1, [1]), (2, [1]), (3, [1])):
        v = loop.validate
        world = World(rank=rank, size=4)
        made = Validation(v.teacher, loop.method.run.student, {}, OWN, Scores(), loop.log, world, 2, Shown(2))
        assert made.own == own and made._share_shown == 1


# What is shown


def test_columns_have_their_label_above_and_are_no_wider_than_is_said() -> None:
    clips = [np.full((3, 480, 832, 3), 50 * i, np.uint8) for i in range(4)]
    labels = ["teacher 50\N{NO-BREAK SPACE}steps", *(f"student {n}\N{NO-BREAK SPACE}steps" for n in (4, 2, 1))]
    shown = columns(clips, labels)
    each = (512 - 3 * GAP) // 4
    np.testing.assert_array_equal(shown, columns(clips, [label.replace("\N{NO-BREAK SPACE}", " ") for label in labels]))
    assert shown.shape == (3, LINE + round(480 * each / 832), 512, 3)
    for i in range(4):
        left = i * (each + GAP)
        assert (shown[:, LINE:, left : left + each] == 50 * i).all()
        assert (shown[:, :LINE, left : left + each].min(axis=(1, 2, 3)) < 60).all()  # dark letters, whole in the column
        edges = shown[:, :LINE, [left, left + each - 1]]
        assert (edges == media.WHITE).all()


@pytest.mark.parametrize(("count", "factor", "lines"), [(1, 4, 1), (2, 3, 1), (3, 2, 1), (4, 1, 2)])
def test_small_clips_are_enlarged_by_whole_factors_and_never_shrunk(count: int, factor: int, lines: int) -> None:
    clip = np.random.default_rng(0).integers(0, 255, (2, 64, 64, 3), dtype=np.uint8)
    shown = columns([clip] * count, ["teacher 50\N{NO-BREAK SPACE}steps"] * count)
    size = 64 * factor
    assert shown.shape == (2, lines * LINE + size, count * size + (count - 1) * GAP, 3)
    assert (shown[:, lines * LINE :: factor, :size:factor] == clip).all()


def test_labels_of_narrow_columns_stay_whole() -> None:
    clips = [np.zeros((1, 32, 8, 3), np.uint8)] * 12
    shown = columns(clips, ["student 4\N{NO-BREAK SPACE}steps"] * 12)
    font = ImageFont.load_default(TEXT)
    width = math.ceil(max(font.getlength("student"), font.getlength("4 steps"))) + 2
    fitting = (512 + GAP) // (width + GAP)
    assert fitting < 12 and shown.shape[2] == fitting * (width + GAP) - GAP <= 512
    assert wrapped("student 4\N{NO-BREAK SPACE}steps", width, font) == ["student", "4 steps"]
    assert INK == (0, 0, 0)


def test_clips_of_a_validation_are_shown_and_kept_at_full_size(build: Build) -> None:
    loop = build(
        "validation.every=1", "validation.clips=1", "validation.mp4s=2", "student.steps=[4,2]", "cycles=3", "beta_ft=0"
    )
    show, shown = loop.validate._show, []
    loop.validate._show = lambda cycle, rows: shown.extend(rows) or show(cycle, rows)  # type: ignore[method-assign]
    assert loop.train()
    loop.log.close()
    names = sorted(path.name for path in (loop.folder / "clips").iterdir())
    prompt = loop.validate.prompts[0]
    words = media.safe_name(prompt, 10_000_000, 4, "student")
    assert names == sorted(
        [f"cycle-{c:08d}-{words[:-1]}{n}.mp4" for c in (2, 3) for n in (4, 2)]
        + [media.safe_name(prompt, 10_000_000, 2, "teacher") + ".mp4"]
    )
    assert read_mp4(loop.folder / "clips" / names[0])[0].shape == (9, 32, 32, 3)
    lines = [json.loads(line) for line in (loop.folder / "metrics.jsonl").read_text().splitlines()]
    seen = [line for line in lines if any(name.startswith("appearance/") for name in line)]
    assert [line["step"] for line in seen] == [1, 2, 3]
    assert set(seen[0]) - {"step"} == {
        f"appearance/{measure}_{by}" for measure in ("saturation", "contrast", "flow") for by in ("teacher", "4", "2")
    }
    flows = [line["appearance/flow_teacher"] for line in seen]
    assert flows[0] > 0 and flows == [flows[0]] * 3, "of the same clips"
    for clip, by in zip(shown[-1], ("teacher", "4", "2"), strict=True):
        for measure, value in appearance(torch.from_numpy(clip).permute(0, 3, 1, 2)[None]).items():
            assert seen[-1][f"appearance/{measure}_{by}"] == value
    (moving, *_) = board(loop.folder).Images(f"teacher and student/0: {prompt}")
    gif = Image.open(io.BytesIO(moving.encoded_image_string))
    assert (gif.n_frames, gif.size) == (9, (3 * 160 + 2 * GAP, 160 + LINE))
    ClipFiles(loop.folder, 2, resume_step=3)  # the run goes on from cycle 2
    assert ClipFiles(loop.folder, 2).cycles() == [2]


def test_a_full_disk_costs_clips_and_lines_and_not_the_run(
    build: Build, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    loop = build("validation.every=1", "validation.clips=1", "student.steps=[4]", "cycles=2", "beta_ft=0")

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(media, "write_mp4", full)
    real, refused = loop.log._lines.flush, []
    monkeypatch.setattr(loop.log.trackers[0], "log", full)

    class Lines:
        """A file whose disk is full at first."""

        def write(self, text: str) -> None:
            loop_lines.write(text)

        def flush(self) -> None:
            refused.append(1)
            full() if len(refused) == 1 else real()

        def close(self) -> None:
            loop_lines.close()

    loop_lines, loop.log._lines = loop.log._lines, Lines()
    assert loop.train()
    loop.log.close()
    said = capsys.readouterr().out
    assert said.count("metrics.jsonl could not be written") == said.count("tensorboard could not be written") == 1
    assert said.count(".mp4 could not be written: no space is left (No space left on device); the run goes on") == 1
    steps = [json.loads(line)["step"] for line in (loop.folder / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1] * 3 + [2] * 3  # of the cycles, the clips' appearance and validations, the first of them late


def test_every_longer_than_the_run_validates_at_its_end(build: Build) -> None:
    loop = build("validation.every=50", "validation.clips=0", "cycles=2", "beta_ft=0")
    assert loop.train()
    lines = [json.loads(line) for line in (loop.folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if any(k.startswith("validation/") for k in line)] == [2]


def test_other_prompts_begin_the_comparison_anew(
    build: Build, prompts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ("validation.every=1", "validation.clips=0", "keep_best=reward_4", "patience=3", "guard.action=lower")
    first, same, other = build(*given), build(*given), build(*given, f"validation.prompts_file={prompts}")
    first.monitors["best"].best = {"reward_4": 0.9, "cycle": 1}
    first.monitors["guard"].scale, first.monitors["guard"].best = 0.5, {"reward": (0.9, None)}
    first.cycle = 2
    same.load(first.state())
    assert same.monitors["best"].best == {"reward_4": 0.9, "cycle": 1} and "note:" not in capsys.readouterr().out
    other.load(first.state())
    assert "note: validations look at other prompts than before cycle 2" in capsys.readouterr().out
    best, guard = other.monitors["best"], other.monitors["guard"]
    assert best.best == {"cycle": 2} and (guard.scale, guard.best) == (0.5, {})
    assert best.look(4, {"reward_4": math.nan}).ended == ""
    assert best.look(5, {"reward_4": math.nan}).ended == "reward_4 was no number since cycle 2"
    assert best.look(5, {"reward_4": 0.1}).keep == {"reward_4": 0.1, "cycle": 5}
