"""Saturation, contrast and motion of clips: values of known pictures, and what a teacher's stored figures lack."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dollar.data import shapes
from dollar.evaluation.files import identity
from dollar.evaluation.measures.appearance import MEASURES, appearance
from dollar.evaluation.measures.colour import contrast, saturation
from dollar.evaluation.measures.flow import flow
from dollar.evaluation.report.evaluation import notes
from dollar.evaluation.systems import Evaluation, EvaluationSettings
from dollar.evaluation.yardstick import Figures, pairs

TEXTURE = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))


def plain(*colour: float) -> Tensor:
    """A clip [1, 2, 3, 8, 8] of one colour."""
    return torch.tensor(colour).reshape(1, 1, 3, 1, 1).expand(1, 2, 3, 8, 8)


def test_saturation_and_contrast_of_known_pictures() -> None:
    clips = torch.cat([plain(0.5, 0.5, 0.5), plain(0, 0, 0), plain(0, 0, 0.3), plain(0.8, 0.6, 0.4)])
    assert saturation(clips).tolist() == pytest.approx([0, 0, 1, 0.5])
    assert contrast(clips).tolist() == pytest.approx([0] * 4, abs=1e-6)
    half = torch.zeros(1, 3, 3, 8, 8)
    half[..., 4:] = 1  # a half of each frame white, but for the last, which is black
    half[:, 2] = 0
    assert contrast(half).tolist() == pytest.approx([2 / 3 * 0.5])
    half[:, :, :2] = 0  # blue, of which luma has 0.114
    assert contrast(half).tolist() == pytest.approx([2 / 3 * 0.5 * 0.114])


@pytest.mark.parametrize(("down", "across"), [(0, 0), (1, 0), (0, -4), (3, 4)])
def test_a_shifted_pattern_flows_by_the_shift(down: int, across: int) -> None:
    clip = torch.stack([TEXTURE.roll((i * down, i * across), (1, 2)) for i in range(3)])[None]
    assert float(flow(clip)) == pytest.approx(math.hypot(down, across), abs=1e-6)
    large = clip.repeat_interleave(3, 3).repeat_interleave(3, 4)  # three times as large, so it moves three times as far
    assert float(flow(large)) == pytest.approx(3 * math.hypot(down, across), abs=1e-5)


@pytest.mark.parametrize("shift", [0.25, 0.5, 1.3, 2.7])
def test_a_wave_flows_by_fractions_of_a_pixel(shift: float) -> None:
    down, across = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    frames = [0.5 + 0.2 * ((across - i * shift) / 3).sin() + 0.2 * (down / 2.5).sin() for i in range(3)]
    clip = torch.stack(frames)[None, :, None].expand(1, 3, 3, 64, 64)
    assert float(flow(clip)) == pytest.approx(shift, rel=0.07)


def test_noise_on_a_flat_picture_hardly_flows() -> None:
    noise = torch.randn(1, 9, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    found = [float(flow(0.5 + levels / 255 * noise)) for levels in (0, 2, 4)]
    assert found[0] == 0 and found[1] == pytest.approx(0.03, abs=0.01) and found[2] == pytest.approx(0.1, abs=0.02)


def test_clips_of_the_world_flow_as_they_move() -> None:
    captions = [f"a large red square {motion} on a white background" for motion in ("moving left", "standing still")]
    clips = torch.from_numpy(np.stack([shapes.render(shapes.parse(c), 0) for c in captions])).permute(0, 1, 4, 2, 3)
    moving, still = flow(clips.float() / 255).tolist()
    assert still == 0 and 0.1 < moving < 0.6
    slowed = clips[:1, torch.arange(17) // 2]  # each frame twice
    assert flow(slowed.float() / 255).tolist() == pytest.approx([moving / 2], rel=0.05)
    found, darker = appearance(clips), appearance(clips // 2)
    assert darker["saturation"] == pytest.approx(found["saturation"], rel=0.01)
    assert darker["contrast"] == pytest.approx(found["contrast"] / 2, rel=0.01)
    assert darker["flow"] == pytest.approx(found["flow"], rel=0.15)
    assert list(found) == list(MEASURES) and found["flow"] == pytest.approx(moving / 2)
    assert flow(clips[:, :1].float()).isnan().all(), "a picture has no motion"
    assert flow(torch.rand(1, 3, 3, 6, 20)).isfinite().all(), "nor does a small one lack it"


def test_what_stored_figures_lack_is_of_the_fresh_clips(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Figures that were stored before a measure came to be stay in use."""
    chosen = pairs(shapes.captions("held_out"), 4)
    known = {"clips": 4, "alignment": 0.5}
    new = {"saturation": 0.25, "contrast": 0.125, "flow": 0.75}
    teacher = SimpleNamespace(folder=tmp_path, guidance_scale=2.0)

    def measured(stored: dict[str, Any], fresh_clips: int) -> dict[str, Any]:
        path = tmp_path / "figures.json"
        verdicts = {"right": [True] * 4, "reward": [1.0] * 4}
        path.write_text(json.dumps(identity(teacher) | {"by_clips": {"4": stored}, "pairs": verdicts}))
        fresh = {**known, "clips": fresh_clips, **new}
        figures = Figures(fresh, np.array([True] * fresh_clips), np.ones(fresh_clips))
        yardstick = SimpleNamespace(pairs=chosen, measure=lambda videos: figures)
        how = EvaluationSettings(4, fresh_clips, 50, 0, 0, False, False, [])
        evaluation = Evaluation(teacher, yardstick, how, tmp_path)  # type: ignore[arg-type]
        evaluation.measure_teacher(path)
        return evaluation.metrics

    sampler = SimpleNamespace(steps=50)
    monkeypatch.setattr("dollar.evaluation.systems.teacher_sampler", lambda teacher, steps: sampler)
    monkeypatch.setattr("dollar.evaluation.systems.make_clips", lambda *_: torch.zeros(2))
    lacking = measured(known, 2)
    assert lacking["teacher"] == {"steps": 50, **known, **new, "of_fresh": list(new)}
    assert "lack saturation, contrast, flow, which are of 2 clips made afresh" in capsys.readouterr().out
    assert notes(lacking, 4, 50)[2] == (
        "Its saturation, contrast, flow are of those 2, since its stored figures lack them."
    )
    assert measured(known, 0)["teacher"] == {"steps": 50, **known}
    assert "which are left out; give teacher_clips=64" in capsys.readouterr().out
    complete = measured({**known, "saturation": 0.5, "contrast": 0.5, "flow": 0.5}, 2)
    assert complete["teacher"] == {"steps": 50, **known, "saturation": 0.5, "contrast": 0.5, "flow": 0.5}
    assert "lack" not in capsys.readouterr().out and len(notes(complete, 4, 50)) == 2
