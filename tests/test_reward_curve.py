"""The study of how many scored clips a latent reward model needs: its rows, what is read of a fit, and its page."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY, TINY_DATA, compose

from dollar.cli.build.studies import check_commands, settings_of
from dollar.studies import engine
from dollar.studies.engine import carry_out, commands_of
from dollar.studies.jobs import work
from dollar.studies.results import Results
from dollar.studies.reward_curve import REWARD_CURVE, Fits
from dollar.studies.reward_curve.content import measured


def test_rows_are_forms_by_counts_on_clips_that_one_row_has_scored() -> None:
    config = compose("reward_curve")
    runs = Fits(settings_of(config, REWARD_CURVE), REWARD_CURVE)
    counts, rewards, forms = config.counts, list(config.groups), list(config.forms)
    assert len(runs.rows) == len(rewards) * (2 + len(forms) * len(counts)) and counts[0] == 64 and counts[-1] == 4096
    (fit,) = runs.commands(runs.rows["jpeg_pixels_256"], 2)
    scored = runs.folder("jpeg_scored", 2)
    assert f"observations={scored}" in fit and "fit_on=256" in fit and "seed=2" in fit
    assert {"reward=jpeg_compressibility", "lrm.backbone=pixels", "lrm.smooth=30"} <= set(fit)
    (scoring,) = runs.commands(runs.rows["jpeg_scored"], 2)
    assert f"out={scored}" in scoring and not any(word.startswith("fit_on") for word in scoring)
    clips = {"clips", "made", "made_clips", "seed", "reward", "mismatched"}
    assert len({tuple(w for w in c if w.split("=")[0] in clips) for c in (fit, scoring)}) == 1, (
        "they read the same file"
    )
    # As many clips as are fitted on are left when a fifth is held out; of real ones there are those of the data.
    real = compose("train").data.clips.size
    for row in runs.rows.values():
        given = dict(word.split("=", 1) for word in runs.train(row, 0)[2:])
        there = min(int(given["clips"]), real) + 2 * int(given["made_clips"])
        assert int(given.get("fit_on", 0)) <= there - round(0.2 * there), row.name
    (more,) = runs.commands(runs.rows["jpeg_scored_4096"], 2)
    assert f"observations={scored}" in more and runs.rows["jpeg_paper_4096"].after == "jpeg_scored_4096"
    assert f"observations={scored}" in runs.commands(runs.rows["jpeg_paper_4096"], 2)[0]
    check_commands(commands_of(runs, [runs.job(name, 0) for name in ("jpeg_scored", "colourfulness_smooth_64")]))
    for wrong in ([64, 32], [], [2, 8]):
        with pytest.raises(ValueError, match="counts is"):
            settings_of(compose("reward_curve", f"counts={wrong}".replace(" ", "")), REWARD_CURVE)


def test_a_fit_is_read_in_deviations_of_the_held_out_clips(tmp_path: Path) -> None:
    climbs = [
        {"share": share, "predicted": 9.0, "true": true, "true_se": 0.01, "clips": 4, "cosine": 0.3}
        for share, true in ((0.01, 0.02), (0.03, 0.05), (0.1, -0.1))
    ]
    through = [{**climb, "true": 2 * climb["true"], "cosine": None} for climb in climbs]
    held = {"all": {"r2": 0.75, "error": 0.1}}  # so the clips' deviation is 0.2
    figures = {"held_out": held, "seconds": 7.0, "clips": 54, "watched": 10, "climb": climbs, "climb_through": through}
    (tmp_path / "lrm.json").write_text(json.dumps({"figures": figures}))
    found = measured(tmp_path)
    assert (found["r2"], found["scored"], found["cosine"], found["fitting"]) == (0.75, 64, 0.3, 7.0)
    rises = [found[name] for name in ("rise_1", "rise_3", "rise_10", "rise_1_se", "rise_10_through")]
    assert rises == pytest.approx([0.1, 0.25, -0.5, 0.05, -1.0]) and found["cosine_through"] is None


GROUPS = {"colourfulness": {"title": "Colours", "overrides": ["reward=colourfulness"]}}
SMOOTH = ["lrm.backbone=cnn", "lrm.smooth=3", "climb_noise=[0.05,0.15]"]
FIT = ("clips=10", "made=[1]", "made_clips=4", "mismatched=false", "climb=2", "steps=20", "every=10")
SIZES = ("lrm.width=16", "lrm.groups=4", "held_out=0.3", "watched=0.3", "data.clips.size=24", "parallel.device=cpu")


def test_the_study_in_its_smallest_form(
    command: Callable[..., Any], tiny_teacher_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real fits, in this process: clips are scored once, a row is fitted on some, the page shows its figures."""
    tiny = [
        "teacher.name=tiny",
        *(f"teacher.{k}={v}" for k, v in TINY.items()),
        f"teacher.folder={tiny_teacher_folder}",
    ]
    config = compose("reward_curve", f"work={tmp_path / 'work'}", f"out={tmp_path / 'docs'}")
    config.seeds, config.workers, config.counts, config.groups = 1, 1, [8], GROUPS
    config.forms = {"smooth": {"label": "smooth CNN", "overrides": SMOOTH}}
    config.train = [*tiny, TINY_DATA[0], *FIT, *SIZES]
    ran = []

    class Ended:
        def __init__(self, code: int) -> None:
            self.code = code

        def poll(self) -> int:
            return self.code

        def terminate(self) -> None:
            raise AssertionError("it ended by itself")

        kill = terminate

    def begin(words: Sequence[str], log: Path) -> Ended:
        ran.append(words)
        said = command(Path(words[1]).stem, *words[2:])
        assert said.code == 0, said.err
        return Ended(said.code)

    monkeypatch.setattr(engine, "bar", lambda *_: lambda outcome, running: None)
    monkeypatch.setattr(engine, "work", lambda *arguments: work(*arguments, begin=begin, pause=0))

    def carry() -> None:
        outcome = carry_out(Fits(settings_of(config, REWARD_CURVE), REWARD_CURVE), lambda commands: None)
        assert not outcome.failed

    carry()
    carry()
    assert len(ran) == 2, "what is known is not run again"
    stored = Results(tmp_path / "docs" / "reward_curve" / "results.json").stored["rows"]
    fitted = stored["colourfulness_smooth_8/0"]
    assert fitted["scored"] == 8 and stored["colourfulness_scored/0"]["scored"] > 8 and -1 <= fitted["cosine"] <= 1
    assert {"rise_1", "rise_3", "rise_10", "r2", "rise_3_through", "cosine_through"} <= fitted.keys()
    page = (tmp_path / "docs" / "reward_curve.md").read_text()
    assert f"| smooth CNN, 8 clips | {fitted['cosine']:.2f} | {fitted['rise_1']:+.3f} |" in page
    assert "](reward_curve/curve.svg)" in page and "real clips |" not in page and "## Verdicts" not in page
    assert "smooth CNN, through the teacher" in (tmp_path / "docs" / "reward_curve" / "curve.svg").read_text()
    commands = (tmp_path / "docs" / "reward_curve" / "commands.md").read_text()
    assert "launch/fit_reward.py" in commands and "fit_on=8" in commands
