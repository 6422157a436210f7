"""The study of few steps: what its rows run, what their results follow from, its verdicts' arithmetic, and its page."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY_DATA, TINY_RUN, compose

from dollar.cli.build.studies import check_commands, experiments_of, settings_of
from dollar.studies import engine
from dollar.studies.compare import Gaps, reaches, together
from dollar.studies.engine import carry_out, commands_of
from dollar.studies.few_step import FEW_STEPS, Recipes
from dollar.studies.few_step.figures import ATTRIBUTES, FIGURES, above_teacher, share_of_teacher, system_figures
from dollar.studies.few_step.questions import questions
from dollar.studies.jobs import work
from dollar.studies.results import Results

SETTINGS = settings_of(compose("few_step"), FEW_STEPS)
EXPERIMENTS = experiments_of(SETTINGS.rows)
COUNTS = {"four": 4, "two": 2, "one": 1, "eight": 8, "sixteen": 16}


def test_each_student_starts_from_the_longer_one_by_its_experiment() -> None:
    runs = Recipes(SETTINGS, FEW_STEPS, EXPERIMENTS)
    assert {row.name: row.steps for row in runs.rows.values()} == {name: (k,) for name, k in COUNTS.items()}
    started = {row.name: row.after for row in runs.rows.values()}
    assert started == {"four": None, "two": "four", "one": "two", "eight": "four", "sixteen": "four"}
    for name, count in COUNTS.items():
        train, evaluate = runs.commands(runs.rows[name], 1)
        composed = compose("train", *train[2:])
        assert list(composed.student.steps) == [count] and composed.seed == 1 and composed.parallel.dtype == "float32"
        assert composed.init == (str(runs.folder(started[name], 1) / "student") if started[name] else None)
        assert f"steps=[{count}]" in evaluate and {"clips=1024", "teacher_clips=0"} <= set(evaluate)
    one = compose("train", *runs.train(runs.rows["one"], 0)[2:])
    assert (one.cycles, one.vsd.guidance_scale, one.beta_adversarial) == (900, 1.5, 0.3)
    assert one.adversarial.features == "own"
    assert (one.fake_updates, one.beta_cd, one.optim.student.lr, one.optim.fake.lr) == (1, 0, 4e-4, 6e-4)
    assert compose("train", *runs.train(runs.rows["eight"], 0)[2:]).cycles == SETTINGS.further
    teacher = runs.evaluate_teacher()
    assert teacher.count("teacher_clips=256") == 1 and "teacher_clips=1024" not in teacher
    check_commands(commands_of(runs, [runs.job(name, 0) for name in COUNTS]))
    assert runs.size(runs.rows["one"]) - runs.size(runs.rows["eight"]) == 900 - SETTINGS.further


def test_a_changed_experiment_and_what_follows_it_are_made_again() -> None:
    changed = {**EXPERIMENTS, "two_steps": {**EXPERIMENTS["two_steps"], "cycles": 301}}
    before, after = (Recipes(SETTINGS, FEW_STEPS, given) for given in (EXPERIMENTS, changed))
    assert [name for name in COUNTS if before.identity(name, 0) != after.identity(name, 0)] == ["two", "one"]
    rows = [row._replace(overrides=("experiment=none_such",)) for row in SETTINGS.rows[:1]]
    with pytest.raises(ValueError, match="four has experiment=none_such; there are .*four_steps"):
        experiments_of(rows)


@pytest.mark.parametrize(
    ("values", "error", "bar", "less", "answer", "interval"),
    [
        ([0.95, 0.96, 0.97], 0.0, 0.9, False, "yes", "[0.935, 0.985]"),  # 4.303 * 0.01 / sqrt(3) = 0.0248
        ([0.95, 0.96, 0.97], 0.0, 0.95, False, "met", "[0.935, 0.985]"),
        ([0.95, 0.96, 0.97], 0.0, 0.97, False, "missed", "[0.935, 0.985]"),
        ([0.95, 0.96, 0.97], 0.0, 0.99, False, "no", "[0.935, 0.985]"),
        ([0.95, 0.96, 0.97], 0.0, 0.99, True, "yes", "[0.935, 0.985]"),
        ([0.95, 0.96, 0.97], 0.0, 0.95, True, "missed", "[0.935, 0.985]"),
        ([0.95, 0.96, 0.97], 0.05, 0.9, False, "met", "[0.860, 1.060]"),  # evaluation knows no better
        ([0.96], 0.0, 0.5, False, "met", ""),
        ([0.96], 0.01, 0.5, False, "yes", "[0.940, 0.980]"),
        ([], 0.0, 0.5, False, "unknown", ""),
    ],
)
def test_a_bar_is_reached_by_the_interval_or_by_the_mean(
    values: Sequence[float], error: float, bar: float, less: bool, answer: str, interval: str
) -> None:
    found = reaches("share", Gaps(values, error), bar, less)
    assert (found.answer, found.interval) == (answer, interval)
    assert f"asked is {'at most' if less else 'at least'} {bar:.3f}" in found.text


def test_bars_together() -> None:
    met, yes, missed = (reaches("x", Gaps(v), b) for v, b in (([1.0], 1), ([1, 1, 1], 0), ([0.0], 1)))
    assert [together(found) for found in ([met, yes], [met, missed], [missed])] == ["met", "mixed", "missed"]


def system(**changes: Any) -> dict[str, Any]:
    """One model in metrics.json."""
    known: dict[str, Any] = {"clips": 1024}
    for name, path in FIGURES.items():
        node = known
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = changes.get(name, 0.5)
    known["scored"]["errors"] = {key: 0.01 for key in known["scored"]["scores"]}
    return known


def student(low: float = -0.02, high: float = 0.02, **changes: Any) -> dict[str, Any]:
    interval = {"difference": 0.0, "low": low, "high": high}
    return {**system(**changes), "difference": {"pairs": 1024, "alignment": interval, "reward": interval}}


TEACHER = {"alignment": 0.9, "frechet": 0.2, "vendi": 3.0, "right_motion": 0.96, "speed": 0.05}


def results_with(path: Path, **by_row: Sequence[dict[str, float]]) -> Results:
    """Results of a teacher and of these figures by row and seed."""
    results = Results(path / "few_steps" / "results.json", 4, COUNTS)
    results.put(
        "teacher", None, {"figures": system_figures(system(**TEACHER)), "real": {"vendi": 4.0, "alignment": 1.0}}
    )
    for name, found in by_row.items():
        for seed, figures in enumerate(found):
            kept = {str(COUNTS[name]): system_figures(student(**{**TEACHER, **figures}))}
            made = ["python launch/train.py parallel.dtype=bfloat16 parallel.teacher_dtype=float32"]
            results.put(name, seed, {"figures": kept, "machine": "m", "seconds": 1.0, "commands": made, "curves": {}})
    return results


def test_figures_against_the_teacher_and_their_errors(tmp_path: Path) -> None:
    results = results_with(
        tmp_path, four=[{"alignment": 0.93, "vendi": 2.8}, {"alignment": 0.95, "vendi": 2.6, "right_motion": 0.48}]
    )
    above, shares = above_teacher(results, "four", "alignment"), share_of_teacher(results, "four", "alignment")
    assert above.values == pytest.approx([0.03, 0.05]) and above.error == pytest.approx(0.04 / 2 / 1.96, rel=1e-3)
    assert shares.values == pytest.approx([0.93 / 0.9, 0.95 / 0.9]) and shares.error == pytest.approx(above.error / 0.9)
    assert share_of_teacher(results, "four", "vendi", 1.0).values == pytest.approx([0.9, 0.8])
    motion = above_teacher(results, "four", "right_motion")
    own = (math.sqrt(0.96 * 0.04 / 1024) + math.sqrt(0.48 * 0.52 / 1024)) / 2
    assert motion.error == pytest.approx(math.hypot(own, math.sqrt(0.96 * 0.04 / 1024)), rel=1e-3)
    assert share_of_teacher(results, "one", "speed").values == []
    assert above_teacher(Results(tmp_path / "none.json"), "four", "speed").values == []


def test_the_verdicts_are_those_of_the_figures(tmp_path: Path) -> None:
    results = results_with(
        tmp_path,
        four=[{"alignment": 0.95, "frechet": f} for f in (0.20, 0.21, 0.22)],
        two=[{"alignment": a} for a in (0.87, 0.89, 0.93)],  # 0.003 below the teacher
        one=[{"alignment": 0.80, "vendi": v, "speed": 0.045} for v in (2.8, 2.9, 2.84)],
        eight=[{"alignment": 0.95, "frechet": 0.2}] * 3,
        sixteen=[{"alignment": 0.80, "frechet": 0.2}] * 3,
    )
    found = questions(results, SETTINGS.rows)
    assert [together(q.decides) for q in found] == ["yes", "yes", "met", "no", "yes", "yes", "no", "yes", "mixed"]
    effects = [q.decides[0].effect for q in found]
    assert effects[:7] == ["+0.050", "1.05", "-0.003", "0.889", "0.923", "1.000", "0.900"]
    assert found[0].decides[0].interval == "[0.030, 0.070]", "two standard errors of evaluation, paired"
    level = [q for q in questions(results_with(tmp_path / "b", four=[{"alignment": 0.91}] * 3), SETTINGS.rows)][0]
    assert together(level.decides) == "undecided"


class Ended:
    """A command that has ended well."""

    def poll(self) -> int:
        return 0

    def terminate(self) -> None:
        raise AssertionError("it ended by itself")

    kill = terminate


def test_the_study_in_its_smallest_form(
    command: Callable[..., Any], tiny_teacher_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real trainings of a cycle, each from the student before, in this process; what is measured is made up."""
    config = compose("few_step", f"work={tmp_path / 'work'}", f"out={tmp_path / 'docs'}", "seeds=1", "workers=1")
    own = ("cycles", "fake_updates", "beta_ft", "ft.unit", "vsd.guidance_scale")
    tiny = [word for word in TINY_RUN if word.partition("=")[0] not in own]
    config.train = [*tiny, *TINY_DATA, f"teacher.folder={tiny_teacher_folder}", "cycles=1", "fake_warmup=0"]
    config.rows = config.rows[:3]
    for row in config.rows:
        row.overrides = row.overrides[:1]  # its experiment, without the study's length
    ran = []

    def begin(words: Sequence[str], log: Path) -> Ended:
        given = dict(word.split("=", 1) for word in words[2:])
        ran.append(given.get("run", "evaluate"))
        if "run" in given:
            said = command("train", *words[2:])
            assert said.code == 0, said.err
        elif "checkpoint" in given:
            folder = Path(given["checkpoint"])
            steps = json.loads((folder / "student.json").read_text())["steps"]
            found = {str(k): student(**{**TEACHER, "alignment": 0.95}) for k in steps}
            (folder.parent / "metrics.json").write_text(json.dumps({"student": found}))
        else:
            Path(given["out"]).mkdir(parents=True)
            found = {"teacher": system(**TEACHER), "real": system(alignment=1.0, vendi=4.2)}
            (Path(given["out"]) / "metrics.json").write_text(json.dumps(found))
        return Ended()

    monkeypatch.setattr(engine, "bar", lambda *_: lambda outcome, running: None)
    monkeypatch.setattr(engine, "work", lambda *arguments: work(*arguments, begin=begin, pause=0))

    def carry() -> None:
        settings = settings_of(config, FEW_STEPS)
        outcome = carry_out(Recipes(settings, FEW_STEPS, experiments_of(settings.rows)), lambda commands: None)
        assert not outcome.failed

    carry()
    carry()
    assert ran == ["evaluate", *(word for name in ("four", "two", "one") for word in (name, "evaluate"))], "once each"
    page = (tmp_path / "docs" / "few_steps.md").read_text()
    assert "| |teacher, 50 steps|real clips|4 steps|2 steps|1 step|\n" in page, "figures are lines"
    assert (
        "| alignment ↑ | 0.900 | 1.000 | 0.950 | 0.950 | 0.950 |" in page and "| cycles | — | — | 1 | 1 | 1 |" in page
    )
    assert all(f"\n| {name} right | " in page for name in ATTRIBUTES)
    assert "| Is the alignment of 2 steps at least the teacher's minus 0.01? | **Yes** |" in page
    assert "](few_steps/diversity.svg)" in page and "One seed has no interval" in page
    drawn = (tmp_path / "docs" / "few_steps" / "diversity.svg").read_text()
    assert all(f">{name}<" in drawn for name in ("4 steps", "1 step", "teacher", "real clips"))
    shell = (tmp_path / "docs" / "few_steps" / "commands.md").read_text()
    assert "experiment=two_steps" in shell and f"init={tmp_path}/work/seed0/four/student" in shell


def test_the_page_is_made_anew_in_the_dtypes_of_its_rows(tmp_path: Path) -> None:
    """With others it would call every row one of other settings."""
    *_, page = FEW_STEPS.layout.commands(results_with(tmp_path, four=[{}] * 3, one=[{}]))
    assert "only_document=true dtype=bfloat16 teacher_dtype=float32   #" in page
    *_, page = FEW_STEPS.layout.commands(results_with(tmp_path / "none"))
    assert "only_document=true   #" in page
