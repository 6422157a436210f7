"""The ablation: what is run and in which order, what is kept of it, and what the document says of given figures."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import compose
from torch import Tensor
from torch.nn import functional

from dollar.cli.commands import ablation
from dollar.data import shapes
from dollar.evaluation.measures.features import RandomFeatures
from dollar.evaluation.yardstick import Yardstick, pairs, scored
from dollar.rewards.mixture import Mixture
from dollar.studies import jobs as ablation_jobs
from dollar.studies import plan as ablation_plan
from dollar.studies import results as figures
from dollar.studies.curves import Rise, line_of, reached, rise_of, sooner
from dollar.studies.document import BEGIN, END, by_hand, table, write_document
from dollar.studies.jobs import Job, Outcome, work
from dollar.studies.plan import Plan, replaced, rows_of, seeds_of
from dollar.studies.plots import apart, write_plots
from dollar.studies.questions import _Asker, markdown, questions
from dollar.studies.results import Comparison, Gaps, Results, Row, Spread, compare, rounded, spread_of, together
from dollar.surrogate.pixel_reward import PixelReward
from dollar.training.log import Log

BETAS = {method: figures.along_beta(rows_of(compose("ablation")), method) for method in figures.METHODS}
TITLES = {name: group.title for name, group in compose("ablation").groups.items()}
ROWS = (
    Row("vsd", "VSD", "distillation", ("beta_cd=0",)),
    Row("vsd_cd", "VSD + CD", "distillation"),
    Row("more", "further", "tradeoff", ("reward=jpeg_compressibility",), after="vsd_cd"),
)


def settings(folder: Path, rows: Sequence[Row] = ROWS, **changes: Any) -> Any:
    """conf/ablation.yaml with these rows, writing into a folder."""
    config = compose("ablation")
    config.rows = [{**row._asdict(), "overrides": list(row.overrides), "steps": list(row.steps)} for row in rows]
    config.work, config.out = str(folder / "work"), str(folder / "docs")
    config.update(changes)
    return config


# What is to be run


def test_a_row_replaces_keys_and_whole_choices() -> None:
    common = ["reward=pickscore", "reward.path=here", "reward@guard.reward=shapes", "batch=4"]
    assert replaced(common, ["reward=jpeg", "batch=2"]) == ["reward@guard.reward=shapes", "reward=jpeg", "batch=2"]


def test_commands_of_a_row_that_starts_from_another(tmp_path: Path) -> None:
    plan = Plan(settings(tmp_path, further=35, validations=5, cycles=20), ROWS)
    train, evaluate = plan.train(ROWS[2], 1), plan.evaluate(ROWS[2], 1)
    assert f"init={tmp_path}/work/seed1/vsd_cd/student" in train and "cycles=35" in train and "seed=1" in train
    assert "validation.every=7" in train
    assert "reward=jpeg_compressibility" in train and not any("reward.path" in word for word in train)
    assert f"checkpoint={tmp_path}/work/seed1/more/student" in evaluate and "steps=[4]" in evaluate
    assert "guard.action=warn" in train and "guard.action=none" not in train
    first = plan.train(ROWS[0], 0)
    assert "reward@guard.reward=shapes" in first and "guard.action=none" in first, "the verifier only looks on"
    assert not any(word.startswith("init=") for word in first)


def test_validations_are_evenly_spaced_and_as_many_as_asked_for(tmp_path: Path) -> None:
    config = compose("ablation")
    plan = Plan(config, rows_of(config))
    for row in plan.rows.values():
        given = dict(o.split("=", 1) for o in plan.overrides(row))
        drawn = not any(o.startswith("validation.every") for o in row.overrides)  # a curve that nobody sees is left out
        assert int(given["validation.every"]) * (config.validations if drawn else 1) == int(given["cycles"])
        assert row.after or int(given["validation.every"]) >= figures.WARM  # those have no peak
        assert int(given["lrm.warmup"]) < 8 * figures.WARM
    with pytest.raises(ValueError, match=r"vsd has 20 cycles, which 8 .* cycles=16, or another"):
        Plan(settings(tmp_path, cycles=20), ROWS).overrides(ROWS[0])
    with pytest.raises(ValueError, match=r"more has 3 cycles, .* further=8"):
        Plan(settings(tmp_path, further=3), ROWS).overrides(ROWS[2])


def test_a_row_is_judged_by_what_its_tables_show_and_the_teacher_by_all() -> None:
    config = compose("ablation")
    plan = Plan(config, rows_of(config))

    def asked(command: Sequence[str]) -> set[str]:
        composed = compose("evaluate", *(word for word in command if word.startswith("reward")))
        assert composed.reward.parts.pickscore.path == "dollar/assets/clip"
        return {name for name, weight in composed.reward.weights.items() if weight}

    every = {path[2] for path in figures.FIGURES.values() if path[0] == "scored"}
    assert asked(plan.evaluate_teacher()) == every
    assert asked(plan.evaluate(plan.rows["vsd"], 0)) == every, "tables of what starts from it repeat it"
    assert asked(plan.evaluate(plan.rows["vsd_cd"], 0)) == {"pickscore"}
    assert asked(plan.evaluate(plan.rows[figures.CONTROL], 0)) == every, "it stands beside what is led to any"
    assert asked(plan.evaluate(plan.rows[BETAS["ddpo"][0]], 0)) == {"pickscore", "colourfulness"}
    assert "teacher_clips=256" in plan.evaluate_teacher() and "lrm_prompts=8" in plan.evaluate(plan.rows["vsd_lrm"], 0)
    assert "lrm_prompts=0" in plan.evaluate(plan.rows["jpeg"], 0)


def test_what_a_row_pursues_is_its_own_or_its_groups() -> None:
    pursued = {row.name: row.pursued for row in rows_of(compose("ablation"))}
    assert (pursued["vsd_lrm"], pursued["jpeg_stop"], pursued["motion"]) == ("clip", "jpeg", "motion")
    config = compose("ablation")
    config.groups.tradeoff.pursued = "motion"
    changed = {row.name: row.pursued for row in rows_of(config)}
    assert {name for name in changed if changed[name] != pursued[name]} == {
        row.name for row in rows_of(config) if row.group == "tradeoff" and row.pursued != figures.ALL
    }


def test_rows_are_trained_for_what_they_pursue(tmp_path: Path) -> None:
    """The column of what a row pursues would otherwise be of something else."""
    config = compose("ablation")
    plan = Plan(config, rows_of(config))
    for row in plan.rows.values():
        given = dict(o.split("=", 1) for o in plan.overrides(row))
        if row.pursued == figures.ALL:
            assert given["beta_ft"] == "0" and given.get("loss") is None, f"{row.name} is led to nothing"
        else:
            assert figures.FIGURES[row.pursued][2] == given["reward"], row.name


def test_rows_whose_names_have_points_have_logs_of_their_own(tmp_path: Path) -> None:
    plan = Plan(settings(tmp_path), rows_of(compose("ablation")))
    which = [plan.job(name, 0) for name in plan.rows]
    assert len({job.log for job in which}) == len(which)


def test_what_a_result_follows_from(tmp_path: Path) -> None:
    def identity(name: str, rows: Sequence[Row] = ROWS, seed: int = 0, **changes: Any) -> str:
        return Plan(settings(tmp_path, rows, **changes), rows).identity(name, seed)

    other = (ROWS[0], ROWS[1]._replace(overrides=("cd.m=1",)), ROWS[2])
    assert identity("more") == identity("more", work=str(tmp_path / "elsewhere"))
    assert identity("more") != identity("more", other), "the row that it starts from changed"
    assert identity("vsd") == identity("vsd", other)
    assert len({identity("vsd"), identity("vsd", seed=1), identity("vsd", cycles=8), identity("vsd", clips=512)}) == 4
    config = settings(tmp_path)
    assert Plan(config, ROWS).made_as(ROWS[0], 0) == Plan(settings(tmp_path, clips=512), ROWS).made_as(ROWS[0], 0)


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"name": "vsd", "label": "twice", "group": "reward"}, "two rows are called vsd"),
        ({"name": "x", "label": "x", "group": "reward", "after": "y"}, "come after y"),
        ({"name": "x", "label": "x", "group": "nowhere"}, "group nowhere"),
        ({"name": "x", "label": "x", "group": "reward", "override": []}, "a row has override"),
        ({"name": "x", "label": "x", "group": "reward", "pursued": "size"}, "pursues size; the figures are clip, col"),
    ],
)
def test_rows_that_cannot_be_are_told(row: dict, told: str) -> None:
    config = compose("ablation")
    config.rows = [*config.rows, row]
    with pytest.raises(ValueError, match=told):
        rows_of(config)


def test_seeds_are_a_count_or_a_list() -> None:
    assert (seeds_of(None), seeds_of(3), seeds_of([0, 2])) == ([0], [0, 1, 2], [0, 2])
    for wrong in (0, [], [1, 1], [-1], "a"):
        with pytest.raises(ValueError, match="seeds is"):
            seeds_of(wrong)


def test_an_unknown_row_is_told_with_the_nearest() -> None:
    config = compose("ablation", "only=[vsd_c]")
    with pytest.raises(ValueError, match="no row vsd_c; the nearest is vsd_cd"):
        ablation_plan.check_numbers(config, [row.name for row in rows_of(config)])


def test_every_question_and_plot_knows_rows_of_the_configuration() -> None:
    """A renamed row would be `not measured` for ever."""
    from dollar.studies import plots as plots

    config = compose("ablation")
    rows = rows_of(config)
    names = {row.name for row in rows}
    asked = set[str]()

    class Spy(Results):
        def of(self, name: str) -> list[dict[str, Any]]:
            asked.add(name)
            return []

    questions(Spy(Path("none.json")), rows)
    assert asked <= names
    assert {*plots.REACHING, *plots.BODIES, *plots.OVERDONE} <= names
    of_lrm: list[str] = []
    for method in figures.METHODS:
        mine = [row.name for row in rows if row.group == "tradeoff" and row.name.startswith(method)]
        betas = [float(name.split("_")[1]) for name in mine if not name.endswith("_stop")]
        if method == "noised":
            assert mine == [name.replace("lrm", method) for name in of_lrm], "the same betas, to be compared"
        of_lrm = mine if method == "lrm" else of_lrm
        assert betas == sorted(betas) and len(betas) >= 2 and len(mine) == len(betas) + 1
    groups = [row.group for row in rows]
    assert list(dict.fromkeys(groups)) == list(config.groups), "tables come in the order of the groups"


# Running


class Fake:
    """A command that ends after some looks at it with a code, or when it is asked to."""

    def __init__(self, code: int, looks: int = 1) -> None:
        self.code, self.looks, self.asked = code, looks, False

    def poll(self) -> int | None:
        self.looks -= 1
        return 3 if self.asked else self.code if self.looks < 0 else None

    def terminate(self) -> None:
        self.asked = True

    def kill(self) -> None:
        raise AssertionError("it ended when it was asked")


class NoProcess(Exception):
    """What no command's end explains."""


def jobs(*given: tuple[str, str | None], commands: int = 1) -> list[Job]:
    return [
        Job(name, tuple(("python", f"{i}.py", name) for i in range(commands)), Path(f"{name}.log"), after)
        for name, after in given
    ]


def go(
    which: Sequence[Job],
    codes: dict[str, int] | None = None,
    workers: int = 2,
    finish: Callable[[Job, float], None] = lambda job, seconds: None,
    stop_at: str | None = None,
) -> tuple[Outcome, list[str], int]:
    """The outcome, what began in its order (name:command), and the most that ran at once."""
    began: list[str] = []
    stop, most = ablation_jobs.Stop(), 0

    def begin(command: Sequence[str], log: Path) -> Fake:
        began.append(f"{command[2]}:{command[1][0]}")
        stop.asked = stop.asked or command[2] == stop_at
        return Fake((codes or {}).get(command[2], 0), looks=1000 if command[2] == stop_at else 1)

    def show(outcome: Outcome, running: Sequence[Any]) -> None:
        nonlocal most
        most = max(most, len(running))

    outcome = work(which, workers, finish, stop, show, begin, pause=0)
    return outcome, began, most


def test_jobs_wait_for_what_they_start_from_and_use_all_workers() -> None:
    outcome, began, most = go(jobs(("late", "a"), ("a", None), ("b", None), ("c", None)))
    assert began == ["a:0", "b:0", "late:0", "c:0"] or began == ["a:0", "b:0", "c:0", "late:0"]
    assert set(outcome.done) == {"late", "a", "b", "c"} and most == 2 and not outcome.failed


def test_a_jobs_commands_follow_one_another() -> None:
    _, began, _ = go(jobs(("a", None), ("b", None), commands=2), workers=1)
    assert began == ["a:0", "a:1", "b:0", "b:1"]


def test_a_failed_job_ends_only_what_needs_it() -> None:
    outcome, began, _ = go(jobs(("a", None), ("needs", "a"), ("too", "needs"), ("b", None), commands=2), {"a": 1})
    assert set(outcome.done) == {"b"} and "a:1" not in began
    assert outcome.failed["a"] == "0.py ended with code 1; see a.log"
    assert "since a failed" in outcome.failed["needs"] and "since needs failed" in outcome.failed["too"]


@pytest.mark.parametrize("error", [KeyError("student"), NoProcess("of any kind"), TypeError("None")])
def test_results_that_cannot_be_read_fail_the_job(error: Exception) -> None:
    def finish(job: Job, seconds: float) -> None:
        if job.name == "a":
            raise error

    outcome, _, _ = go(jobs(("a", None), ("b", None)), finish=finish)
    assert "can't be read" in outcome.failed["a"] and set(outcome.done) == {"b"}


@pytest.mark.parametrize("error", [NoProcess, KeyboardInterrupt])
def test_no_process_is_left_when_something_else_goes_wrong(error: type[BaseException]) -> None:
    began: list[Fake] = []

    def begin(command: Sequence[str], log: Path) -> Fake:
        if command[2] == "c":
            raise error
        began.append(Fake(0, looks=1 if command[2] == "a" else 1000))
        return began[-1]

    with pytest.raises(error):
        work(
            jobs(("a", None), ("b", None), ("c", "a")),
            2,
            lambda job, s: None,
            ablation_jobs.Stop(),
            begin=begin,
            pause=0,
        )
    assert len(began) == 2 and began[1].asked and began[1].poll() == 3


def test_a_stop_ends_what_runs_and_begins_nothing() -> None:
    outcome, began, _ = go(jobs(("a", None), ("b", None), ("c", None)), stop_at="b")
    assert outcome.stopped and began == ["a:0", "b:0"] and not outcome.failed


def test_only_what_lacks_a_result_is_wanted_and_what_it_starts_from() -> None:
    chain = jobs(("a", None), ("b", "a"), ("c", "b"), ("d", None))

    def names(fresh: set[str], there: set[str]) -> list[str]:
        return [job.name for job in ablation_jobs.wanted(chain, fresh, lambda job: job.name in there)]

    assert names({"a", "b", "d"}, {"b"}) == ["c"]
    assert names({"a", "b", "d"}, set()) == ["a", "b", "c"], "the students that c needs are gone"
    assert names({"a", "b", "d"}, {"a"}) == ["b", "c"]
    assert names({"a", "b", "c", "d"}, set()) == []


def test_a_process_runs_on_one_thread_and_writes_its_log(tmp_path: Path) -> None:
    import sys

    process = ablation_jobs.start(
        (sys.executable, "-c", "import os; print(os.environ['OMP_NUM_THREADS'])"), tmp_path / "x"
    )
    until = time.monotonic() + 30
    while process.poll() is None and time.monotonic() < until:
        time.sleep(0.01)
    assert (tmp_path / "x").read_text() == "1\n"


def test_minutes_left_follow_the_jobs_done() -> None:
    which = [Job(name, ((),), Path(), size=size) for name, size in (("a", 1.0), ("b", 2.0), ("c", 3.0))]
    assert ablation_jobs.minutes_left(which, Outcome(), [], 1) is None
    outcome = Outcome(done={"a": 60.0})
    assert ablation_jobs.minutes_left(which, outcome, [], 1) == pytest.approx(5)
    assert ablation_jobs.minutes_left(which, outcome, [], 2) == pytest.approx(3), "no sooner than the longest job"


# The whole, with runs that are made up


def made_up_run(folder: Path, cycles: int = 20, alignment: float = 0.9, every: int = 5, first: bool = False) -> None:
    """What launch/train.py and launch/evaluate.py leave."""
    with Log(folder) as log:
        if first:
            log.scalars(0, {"validation/reward_4": 0.05, "validation/predicted_4": 7.0})
        for cycle in range(1, cycles + 1):
            log.scalars(cycle, {"time/cycle": 2.0 + 8.0 * (cycle == 1), "memory/peak_gib": 1.0 + cycle / 100})
            if cycle % every == 0:
                log.scalars(cycle, {"validation/reward_4": cycle / 10, "validation/alignment_4": math.nan})
                log.scalars(cycle, {"validation/predicted_4": cycle / 5})
                log.scalars(cycle, {"reward/rank_correlation": cycle / 20, "grad_norm/x_hat/vsd": 0.5})
                log.scalars(cycle, {"grad_norm/x_hat/ft": cycle / 100, "cosine/x_hat/vsd_ft": -0.25})
    (folder / "student").mkdir(exist_ok=True)
    (folder / "student" / "student.json").write_text(json.dumps({"cycle": cycles, "trained": cycles, "ended": None}))
    system = {
        "clips": 225,
        "alignment": alignment,
        "reward": 0.8,
        "frechet": {"excess": 0.4},
        "vendi": {"mean": 3.0},
        "sharpness": 0.7,
    }
    told = {"mean": 1.5, "scores": {"pickscore": 0.21, "dynamic_degree": 0.14}, "errors": {"pickscore": 0.003}}
    lrm = {"rank_correlation": 0.6, "clips": 48, "climb_predicted": 0.3, "climb_true": 0.1, "climb_true_se": 0.02}
    (folder / "metrics.json").write_text(json.dumps({"student": {"4": {**system, "scored": told}}, "lrm": lrm}))


def commands_of_a_machine(ran: list[str], fail: str | None = None) -> Callable[[Sequence[str], Path], Fake]:
    """Commands that leave at once what the real ones would."""

    def begin(command: Sequence[str], log: Path) -> Fake:
        given = dict(word.split("=", 1) for word in command[2:])
        if "checkpoint" not in given and "run" not in given:
            folder = Path(given["out"])
            made_up_run(folder)
            real = {"alignment": 1.0, "frechet": {"excess": 0.0}}
            (folder / "metrics.json").write_text(
                json.dumps({"teacher": {"alignment": 0.9, "clips": 256}, "real": real})
            )
            ran.append("teacher")
        elif "run" in given:
            ran.append(f"train {given['run']} {given['seed']}")
            if given["run"] == fail:
                return Fake(1, 0)
            assert "init" not in given or (Path(given["init"]) / "student.json").is_file()
            made_up_run(Path(given["runs"]) / given["run"])
            (Path(given["runs"]) / given["run"] / "checkpoints").mkdir()
        else:
            ran.append(f"evaluate {Path(given['checkpoint']).parent.name}")
        return Fake(0, 0)

    return begin


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Runs the command with a configuration; gives what it ran."""
    monkeypatch.setattr(ablation, "check_jobs", lambda plan, which: None)
    monkeypatch.setattr(ablation, "bar", lambda which, workers: lambda outcome, running: None)
    monkeypatch.setattr("dollar.studies.document.write_plots", lambda *_: [])

    def run(config: Any, fail: str | None = None) -> list[str]:
        ran: list[str] = []
        begin = commands_of_a_machine(ran, fail)
        monkeypatch.setattr(ablation, "work", lambda *given: work(*given, begin=begin, pause=0))
        ablation.main(config)
        return ran

    return run


def test_the_same_command_goes_on_where_it_ended(tmp_path: Path, machine: Callable[..., list[str]]) -> None:
    with pytest.raises(SystemExit, match="2"):
        machine(settings(tmp_path), fail="vsd_cd")
    assert "0.900" in (tmp_path / "docs" / "ablation.md").read_text()
    assert machine(settings(tmp_path)) == ["train vsd_cd 0", "evaluate vsd_cd", "train more 0", "evaluate more"]
    assert machine(settings(tmp_path)) == []
    assert not (tmp_path / "work" / "seed0" / "vsd" / "checkpoints").exists()


def test_a_changed_row_and_what_starts_from_it_are_made_again(
    tmp_path: Path, machine: Callable[..., list[str]]
) -> None:
    machine(settings(tmp_path))
    rows = (ROWS[0], ROWS[1]._replace(overrides=("cd.m=1",)), ROWS[2])
    assert [r for r in machine(settings(tmp_path, rows)) if r.startswith("train")] == ["train vsd_cd 0", "train more 0"]
    ran = machine(settings(tmp_path, rows, clips=512))
    assert "teacher" in ran and not [r for r in ran if r.startswith("train")], "more clips train nothing"


def test_only_some_rows_and_again(tmp_path: Path, machine: Callable[..., list[str]]) -> None:
    ran = machine(settings(tmp_path, only=["more"]))
    assert [r for r in ran if r.startswith("train")] == ["train vsd_cd 0", "train more 0"]
    assert machine(settings(tmp_path, only=["more"], again=True)) == ["train more 0", "evaluate more"]
    with pytest.raises(ValueError, match="name them"):
        machine(settings(tmp_path, again=True))


def test_what_starts_from_a_row_made_again_is_made_again_too(
    tmp_path: Path, machine: Callable[..., list[str]], capsys: pytest.CaptureFixture
) -> None:
    machine(settings(tmp_path, seeds=2))
    ran = machine(settings(tmp_path, only=["vsd_cd"], again=True))
    assert ran == ["train vsd_cd 0", "evaluate vsd_cd"] and "it is made too: more" in capsys.readouterr().out
    stored = Results(tmp_path / "docs" / "ablation" / "results.json").stored["rows"]
    assert set(stored) == {"vsd/0", "vsd/1", "vsd_cd/0", "vsd_cd/1", "more/1"}, "the other seed's student is as it was"
    assert machine(settings(tmp_path, seeds=2)) == ["train more 0", "evaluate more"]


def test_a_stop_says_how_to_go_on(
    tmp_path: Path, machine: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    machine(settings(tmp_path))
    monkeypatch.setattr(ablation, "run", lambda *_: Outcome(stopped=True))
    for again, told in ((False, "the same command goes on"), (True, "the same command without again=true goes on")):
        with pytest.raises(SystemExit, match="3"):
            ablation.main(settings(tmp_path, only=["vsd"], again=again))
        assert told in capsys.readouterr().out


def test_a_strangers_run_is_left_alone(tmp_path: Path, machine: Callable[..., list[str]]) -> None:
    mine = tmp_path / "work" / "seed0" / "vsd" / "precious"
    mine.mkdir(parents=True)
    with pytest.raises(ValueError, match="not made by this command"):
        machine(settings(tmp_path))
    assert mine.is_dir()


def test_two_commands_at_once_are_refused(tmp_path: Path, machine: Callable[..., list[str]]) -> None:
    from dollar.parallel.lock import Lock

    for folder, key in ((tmp_path / "work", "work"), (tmp_path / "docs" / "ablation", "out")):
        lock = Lock(folder, alone=True)
        (tmp_path / "docs" / "ablation" / "results.json").unlink(missing_ok=True)
        with pytest.raises(ValueError, match=f"another ablation runs in {key}="):
            machine(settings(tmp_path))
        lock.close()
    assert machine(settings(tmp_path, only=["vsd"])) == ["train vsd 0", "evaluate vsd"]


def test_a_row_with_an_unknown_key_is_told_before_any_runs(tmp_path: Path) -> None:
    rows = (Row("vsd", "VSD", "distillation", ("beta_vds=1",)),)
    plan = Plan(settings(tmp_path, rows, train=[], evaluation=[]), rows)
    with pytest.raises(ValueError, match=r"the row vsd, train.py: there is no key 'beta_vds'.*'beta_vsd'"):
        ablation.check_jobs(plan, [plan.job("vsd", 0)])


# What its evaluations share


def test_what_real_clips_gave_is_kept_for_the_same_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        RandomFeatures, "forward", lambda self, x: functional.adaptive_avg_pool3d(x, (3, 6, 6)).flatten(1)
    )
    prompts, training = shapes.captions("held_out"), shapes.ShapesClips("train", 70, seed=1)
    trained = list(zip(training.captions, training.seeds, strict=True))
    drawn: list[int] = []

    def render(prompt: str, seed: int) -> np.ndarray:
        drawn.append(seed)
        return shapes.render(shapes.parse(prompt), seed)

    def yardstick(count: int, cache: Path | None = tmp_path, which: Sequence[tuple[str, int]] = trained) -> Yardstick:
        drawn.clear()
        return Yardstick(pairs(prompts, count), render, which, show=False, cache=cache)

    made = yardstick(16, cache=None).others.roll(1, 0)
    first, alone = yardstick(16).measure(made), yardstick(16, cache=None).measure(made)
    known = yardstick(16)
    assert drawn == [], "nothing is drawn before it is asked for"
    again = known.measure(made)
    assert first.metrics == again.metrics == alone.metrics and sorted(drawn) == [1_000_000 + i for i in range(16)]
    assert known.real_figures().metrics["frechet"]["excess"] == pytest.approx(0, abs=1e-9)
    for count, which in ((17, trained), (16, trained[1:])):
        yardstick(count, which=which)
        assert len(drawn) == len(which) + 2 * count, "other pairs or other clips"
    assert len(list(tmp_path.iterdir())) == 3


def test_each_reward_of_a_mixture_has_its_standard_error() -> None:
    class Reward:
        def scores(self, videos: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
            return {"red": videos[:, 0, 0, 0, 0]}

        def score(self, videos: Tensor, prompts: Sequence[str]) -> Tensor:
            return self.scores(videos, prompts)["red"]

    videos = torch.zeros(20, 1, 3, 2, 2, dtype=torch.uint8)
    videos[:5] = 255
    found = scored(PixelReward(Reward(), None), videos, ["a"] * 20)  # type: ignore[arg-type]
    assert found["errors"]["red"] == pytest.approx(math.sqrt(0.25 * 0.75 / 20))


def test_clips_that_a_part_of_a_mixture_fails_on_are_left_out() -> None:
    class Picky:
        def score(self, videos: Tensor, prompts: Sequence[str]) -> Tensor:
            if any(p == "bad" for p in prompts):
                raise RuntimeError("bad is not for me")
            return videos[:, 0, 0, 0, 0]

    pixel = PixelReward(Mixture({"picky": Picky()}, {"picky": 2.0}), None)  # type: ignore[arg-type]
    videos = torch.full((20, 1, 3, 2, 2), 255, dtype=torch.uint8)
    found = scored(pixel, videos, ["bad", *["a"] * 18, "bad"])
    assert found["clips"] == 18 and found["mean"] == pytest.approx(2.0) and found["scores"] == {"picky": 1.0}
    assert found["name"] == "2 picky" and "bad is not for me" in pixel.trouble
    assert scored(pixel, videos, ["bad"] * 20)["clips"] == 0


# What is kept


def test_a_run_is_read(tmp_path: Path) -> None:
    made_up_run(tmp_path)
    found = figures.measured(tmp_path)
    assert found["figures"]["4"]["frechet"] == 0.4 and found["figures"]["4"]["verifier"] == 0.8
    assert found["figures"]["4"]["clip"] == 0.21 and found["figures"]["4"]["motion"] == 0.14
    assert (found["seconds_per_cycle"], found["cycles"]) == (2.0, 20)
    assert found["peak_gib"] == 1.05, "after the first validation the most is validation's"
    assert found["rank_correlation"] == pytest.approx((0.75 + 1.0) / 2) and found["held_rank"] == 0.6
    assert (found["climb_predicted"], found["climb_true"], found["climb_true_se"]) == (0.3, 0.1, 0.02)
    assert (found["norm_vsd"], found["norm_reward"], found["cosine"]) == (0.5, pytest.approx(0.125), -0.25)
    cycles, values = found["curves"]["reward_4"]
    assert (cycles, values) == ([5, 10, 15, 20], [0.5, 1.0, 1.5, 2.0])
    errors = found["figures"]["4"]["alignment_se"], found["figures"]["4"]["clip_se"], found["held_rank_se"]
    assert errors == pytest.approx((math.sqrt(0.9 * 0.1 / 225), 0.003, 0.64 * math.sqrt(1.18 / 45)))


def test_a_run_with_a_validation_before_it_has_no_peak_and_no_prediction_then(tmp_path: Path) -> None:
    made_up_run(tmp_path, first=True)
    found = figures.measured(tmp_path)
    assert found["peak_gib"] is None and found["curves"]["reward_4"][0] == [0, 5, 10, 15, 20]
    assert found["curves"]["predicted_4"] == [[5, 10, 15, 20], [1.0, 2.0, 3.0, 4.0]]
    made_up_run(tmp_path / "early", every=4)
    assert figures.measured(tmp_path / "early")["peak_gib"] is None, "the latent reward model is hardly in use"


def test_the_error_of_a_rank_correlation() -> None:
    """Against correlations of drawn pairs."""
    random = np.random.default_rng(0)
    first, noise = random.standard_normal((2, 4000, 50))
    ranks = [np.argsort(np.argsort(values, 1), 1) for values in (first, first + noise)]
    found = [float(np.corrcoef(a, b)[0, 1]) for a, b in zip(*ranks, strict=True)]
    assert figures.rank_error(float(np.mean(found)), 50) == pytest.approx(np.std(found), rel=0.1)
    assert figures.rank_error(None, 50) is None and figures.rank_error(0.5, 0) is None


def test_results_are_read_back_small_and_without_nan(tmp_path: Path) -> None:
    results = Results(tmp_path / "a" / "results.json")
    results.put("vsd", 1, {"figures": {"4": {"alignment": 0.912345678}}, "curves": {"x": [[1], [math.nan]]}})
    results.put("vsd", 0, {"figures": {"4": {}}, "alignment": 0.5, "curves": {}})
    read = Results(results.path)
    assert read.figure("vsd", "alignment") == {0: 0.5, 1: 0.9123}
    assert read.of("vsd")[1]["curves"]["x"] == [[1], [None]]
    assert len(results.path.read_text().splitlines()) == 5
    results.path.write_text("{")
    with pytest.raises(ValueError, match="can't be read"):
        Results(results.path)


def test_numbers_are_rounded_to_digits_not_to_places() -> None:
    assert rounded({"a": [1.23456e-7, 123456.0, 3, True]}) == {"a": [1.235e-7, 123500.0, 3, True]}


# What is said


def test_mean_and_deviation_over_seeds() -> None:
    assert spread_of([1.0, 2.0, 3.0, None], 9.0) == Spread(2.0, 1.0, 3, 1.0)
    assert spread_of([math.nan, 5.0], 0.1) == Spread(5.0, 0.0, 1, 0.1) and spread_of([None]) is None


@pytest.mark.parametrize(
    ("a", "b", "better", "answer"),
    [
        (Spread(0.9, 0.0, 1), Spread(0.8, 0.0, 1), 1, "yes"),
        (Spread(0.9, 0.0, 1), Spread(0.87, 0.0, 1), 1, "undecided"),  # less than 5 %
        (Spread(-1.0, 0.0, 1), Spread(-1.1, 0.0, 1), -1, "no"),
        (Spread(0.90, 0.0, 1, 0.03), Spread(0.79, 0.0, 1, 0.04), 1, "yes"),
        (Spread(0.90, 0.0, 1, 0.03), Spread(0.81, 0.0, 1, 0.04), 1, "undecided"),
        (Spread(0.90, 0.0, 1, 0.001), Spread(0.89, 0.0, 1, 0.001), 1, "yes"),
        (Spread(0.90, 0.03, 3, 0.03), Spread(0.79, 0.0, 1, 0.04), 1, "yes"),  # the teacher
        (Spread(0.90, 0.03, 3, 0.03), Spread(0.81, 0.0, 1, 0.04), 1, "undecided"),
        (Spread(2.5, 0.25, 3, 0.25), Spread(2.7, 0.0, 1), 1, "undecided"),
        (Spread(2.5, 0.1, 3, 0.1), Spread(2.7, 0.0, 1), 1, "no"),
        (Spread(0.9, 0.0, 1), None, 1, "unknown"),
    ],
)
def test_a_comparison_is_decided_where_the_gap_is_more_than_chance(
    a: Spread, b: Spread | None, better: int, answer: str
) -> None:
    assert compare("alignment", ("a", a), ("b", b), better).answer == answer


def test_seeds_that_both_have_decide_by_their_differences() -> None:
    """Seeds that differ among themselves by more than the rows do, which both rows feel alike."""
    a, b = Spread(0.74, 0.04, 3, 0.04), Spread(0.70, 0.04, 3, 0.04)

    def asked(better: int, *gaps: float, error: float = 0.0) -> Comparison:
        return compare("reward", ("a", a), ("b", b), better, gaps=Gaps(gaps, error))

    assert asked(1, 0.035, 0.04, 0.045).answer == "yes" and asked(-1, 0.035, 0.04, 0.045).answer == "no"
    assert asked(1, 0.02, 0.04, 0.06).answer == "undecided", "t = 3.46 of three, where 4.30 is asked"
    assert asked(1, 0.0, 0.0, 0.0).answer == "undecided" and asked(1, 0.1, 0.1).answer == "yes"
    assert asked(1, 0.039, 0.04, 0.041, error=0.025).answer == "undecided", "alike by chance"
    text = asked(1, 0.02, 0.04, 0.06).text
    assert text == "reward: a 0.740 ± 0.040, b 0.700 ± 0.040; difference 0.040 [-0.010, 0.090]"


def test_differences_are_of_the_seeds_that_both_have(tmp_path: Path) -> None:
    results = Results(tmp_path / "results.json")
    for name, seed, value in (("a", 0, 3.0), ("a", 1, 5.0), ("a", 2, 9.0), ("b", 2, 2.0), ("b", 0, 1.0)):
        results.put(name, seed, {"figures": {"4": {"clip": value, "clip_se": 0.3, "vendi": value}}})
    values, error = results.gaps("a", "b", "clip")
    assert values == [2.0, 7.0] and error == pytest.approx(0.3)  # the root of 4 * 0.09, over 2
    assert results.gaps("a", "b", "vendi") == Gaps([2.0, 7.0]) and results.gaps("a", "c", "clip") == Gaps([])


def test_differences_by_chance_are_told_from_others_in_nineteen_of_twenty() -> None:
    drawn = np.random.default_rng(0).standard_normal((4000, 3))
    wrong = np.mean([abs(gaps.mean()) > figures.half_interval(Gaps(gaps)) for gaps in drawn])
    assert wrong == pytest.approx(0.05, abs=0.01)


def test_comparisons_together() -> None:
    def answer(*answers: str) -> str:
        return together([Comparison(a, "") for a in answers])

    assert answer("yes", "yes") == "yes" and answer("yes", "no") == "mixed"
    assert answer("yes", "no", "undecided") == "mixed" and answer("no", "unknown", "undecided") == "unknown"
    assert answer("no", "undecided") == "unshown" and answer("yes", "undecided") == "undecided"


def test_seconds_to_a_level_lie_between_two_points() -> None:
    assert reached([10, 20, 30], [0.0, 1.0, 3.0], 2.0) == 25 and reached([10, 20], [1.0, 2.0], 0.5) == 10
    assert sooner(Rise([10, 20], [0.0, 4.0]), Rise([30, 50], [0.0, 2.0])) == (15, 50), "the highest both reach is 2"


def test_what_both_have_at_the_start_is_reached_at_once() -> None:
    risen, fallen = Rise([0, 10, 20], [1.0, 2.0, 3.0]), Rise([0, 30, 60], [1.0, 0.5, 2.0])
    assert sooner(risen, fallen) == (10, 60), "the highest both reach is 2"
    assert sooner(risen, Rise([0, 30], [1.0, 0.5])) == (0, 0)
    assert reached([0, 10, 20], [1.0, 2.0, 3.0], 1.5) == 5


def test_a_rise_without_the_verifiers_margin_does_not_count() -> None:
    curves = {
        "reward_4": [[0, 5, 10, 15, 20], [0.0, 0.1, None, 0.6, 0.9]],
        "guard_4": [[0, 5, 15, 20], [0.8, 0.9, 0.79, 0.7]],
    }
    result = {"curves": curves, "seconds_per_cycle": 2.0}
    assert rise_of(result) == Rise([0.0, 10.0, 30.0, 40.0], [0.0, 0.1, 0.6, 0.9])
    assert rise_of(result, held=0.98) == Rise([0.0, 10.0, 30.0], [0.0, 0.1, 0.6])
    assert rise_of(result, held=0.99) == Rise([0.0, 10.0], [0.0, 0.1])
    curves["guard_4"] = [[5, 15], [0.9, 0.9]]
    assert rise_of(result, held=0.98) is None, "the start's is not known"
    assert rise_of({"curves": {}, "seconds_per_cycle": 2.0}) is None


def results_with(folder: Path, rows: Sequence[Row], seeds: int, value: Callable[[str, str], float]) -> Results:
    """results.json with figures value(row, figure), alike for all seeds but for a little."""
    results, random = Results(folder / "ablation" / "results.json"), np.random.default_rng(0)
    names = figures.FIGURES
    for row in rows:
        for seed in range(seeds):
            noise = 1 + 0.002 * random.standard_normal() * (seeds > 1)
            cycles = [10 * i for i in range(7)]
            rise = value(row.name, row.pursued) * (1 - 0.5 ** np.arange(7)) * noise
            curves = {
                "reward_4": rise,
                "predicted_4": 1.2 * rise,
                "alignment_4": value(row.name, "alignment") - 0.1 * rise,
                "guard_4": 0.9 + (value(row.name, "verifier") - 0.9) * np.arange(7) / 6,
            }
            own = (
                "rank_correlation",
                "pairwise",
                "held_rank",
                "held_pairwise",
                "climb_predicted",
                "climb_true",
                "seconds_per_cycle",
                "peak_gib",
                "norm_vsd",
                "norm_reward",
                "cosine",
            )
            led = not {"beta_ft=0", "loss=ddpo"} & set(row.overrides)
            known = [name for name in own if led or name not in ("norm_reward", "cosine")]
            result = {
                "figures": {str(k): {n: value(row.name, n) * noise for n in names} for k in row.steps},
                **{n: value(row.name, n) * noise for n in known},
                "curves": {n: [cycles, list(v)] for n, v in curves.items()},
                "scale": 0.25,
                "cycles": 60,
                "kept": 40 if row.name.endswith("_stop") else 60,
                "ended": "over-optimisation" if row.name.endswith("_stop") else None,
                "hash": "",
                "seconds": 300.0,
                "machine": "2 cores of a kind",
                "commands": [f"python launch/train.py run={row.name} 'student.steps=[4]'"],
            }
            results.put(row.name, seed, result)
    teacher = {n: value("teacher", n) for n in names}
    results.put("teacher", None, {"figures": teacher, "real": teacher, "hash": "", "seconds": 600.0, "commands": []})
    return results


def as_the_paper(row: str, figure: str) -> float:
    """Figures by which every question is answered as the paper does."""
    known = {
        ("vsd", "vendi"): 1.9,
        ("teacher", "vendi"): 2.3,
        ("vsd_cd_m1", "alignment"): 0.8,
        ("vsd_cd_m1", "frechet"): 2.0,
        ("heterogeneous", "alignment"): 0.85,
        ("heterogeneous", "frechet"): 1.5,
        ("vsd_cd_lrm", "alignment"): 0.95,
        ("vsd_cd_lrm", "clip"): 0.5,
        ("vsd_lrm", "clip"): 0.5,
        ("vsd_ddpo", "clip"): 0.4,
        (BETAS["lrm"][-2], "colourfulness"): 0.8,
        (BETAS["lrm"][-1], "colourfulness"): 2.0,
        (BETAS["lrm"][-1], "verifier"): 0.8,  # at the cost of the alignment
        ("jpeg", "jpeg"): 0.9,
        ("motion", "motion"): 0.9,
        (BETAS["noised"][-2], "colourfulness"): 0.9,
        ("vsd_direct", "peak_gib"): 4.0,
        ("jpeg", "alignment"): 0.2,
        ("motion", "alignment"): 0.3,
        ("jpeg", "frechet"): 9.0,
        ("motion", "frechet"): 8.0,
    }
    usual = {"alignment": 0.9, "clip": 0.3, "frechet": 1.0, "vendi": 2.1, "peak_gib": 1.0, "verifier": 0.9}
    return known.get((row, figure), usual.get(figure, 0.7))


def test_verdicts_follow_the_figures(tmp_path: Path) -> None:
    rows = rows_of(compose("ablation"))
    asked = questions(results_with(tmp_path, rows, 3, as_the_paper), rows)
    papers = [q for q in asked if q.expected]
    assert len(papers) >= 9 and all(together(q.decides) == "yes" for q in papers)
    assert together(next(q for q in asked if "noised latents raise" in q.text).decides) == "yes"
    assert not any(c.answer == "unknown" for q in asked for c in q.decides), "nothing that is asked is left unmeasured"
    assert not any("contradicts" in markdown(q, 3) for q in asked)

    def turned(row: str, figure: str) -> float:
        return {"vsd_cd": 1.5, "vsd": 1.9}.get(row, 2.3) if figure == "vendi" else as_the_paper(row, figure)

    for seeds in (1, 3):
        text = markdown(questions(results_with(tmp_path / f"{seeds}", rows, seeds, turned), rows)[0], seeds)
        assert "**No**" in text and "contradicts the paper" in text and "VSD + CD, m = 5 1." in text
        assert ("one seed" in text) == (seeds == 1)


def test_the_tradeoff_counts_what_aligned_students_reach(tmp_path: Path) -> None:
    rows = rows_of(compose("ablation"))

    def asked(folder: str, value: Callable[[str, str], float], seeds: int = 1) -> Any:
        found = questions(results_with(tmp_path / folder, rows, seeds, value), rows)
        return next(q for q in found if q.text.startswith("Does the LRM raise colourfulness further"))

    def lost(row: str, figure: str) -> float:
        return 0.6 if row.startswith("ddpo_") and figure == "verifier" else as_the_paper(row, figure)

    text, labels = markdown(asked("a", as_the_paper), 1), {row.name: row.label for row in rows}
    assert f"{labels[BETAS['lrm'][-2]]} 0.80" in text and f"{labels[BETAS['lrm'][-1]]} " not in text
    question = asked("b", lost)
    assert together(question.decides) == "yes" and "DDPO none at any beta" in markdown(question, 1)
    results = results_with(tmp_path / "c", rows, 1, as_the_paper)
    for name in [row.name for row in rows if row.name.startswith("ddpo_")]:
        del results.stored["rows"][f"{name}/0"]
    assert together(next(q for q in questions(results, rows) if "raise colourful" in q.text).decides) == "unknown"


def test_who_alone_rises_above_the_start_is_sooner(tmp_path: Path) -> None:
    rows = rows_of(compose("ablation"))
    results = results_with(tmp_path, rows, 2, as_the_paper)
    ask = _Asker(results, rows)

    def rise(row: str, *values: Sequence[float]) -> None:
        for seed, found in enumerate(values):
            results.stored["rows"][f"{row}/{seed}"]["curves"]["reward_4"] = [[0, 10, 20], list(found)]

    rise("vsd_lrm", (1.0, 1.01, 1.02), (1.0, 0.9, 1.03))
    rise("vsd_ddpo", (1.0, 0.9, 1.0), (1.0, 0.8, 0.9))
    assert ask.sooner("vsd_lrm", "vsd_ddpo").answer == "undecided", "of several looks one is above the start by chance"
    rise("vsd_lrm", (1.0, 1.2, 1.1), (1.0, 0.9, 1.3))
    rise("vsd_ddpo", (1.0, 0.9, 1.0), (1.0, 0.8, 0.9))
    found = ask.sooner("vsd_lrm", "vsd_ddpo")
    assert found.answer == "yes" and "VSD + LRM rises 5% above it in 2 of 2 seeds, VSD + DDPO rises" in found.text
    assert ask.sooner("vsd_ddpo", "vsd_lrm").answer == "no"
    rise("vsd_lrm", (1.0, 1.2, 1.1), (1.0, 0.9, 0.9))
    assert ask.sooner("vsd_lrm", "vsd_ddpo").answer == "undecided"


def test_a_table_has_columns_of_what_its_rows_pursue(tmp_path: Path) -> None:
    rows = rows_of(compose("ablation"))
    results = results_with(tmp_path, rows, 1, as_the_paper)

    def heading(group: str) -> list[str]:
        mine = [row for row in rows if row.group == group]
        return [cell.strip() for cell in table(group, [], mine, results).splitlines()[0].split("|")]

    assert "colourfulness ↑" not in heading("reward") and "CLIP reward ↑" in heading("reward")
    assert "colourfulness ↑" in heading("tradeoff") and "dynamic degree ↑" not in heading("tradeoff")
    text = table("overoptimisation", [], [row for row in rows if row.name == "motion_stop"], results)
    assert text.splitlines()[0].split("|")[4].strip() == "dynamic degree ↑" and "colour" not in text
    cells = text.splitlines()[-1].split("|")
    assert cells[4].strip() == "0.700" and cells[-2].strip() == "40", "the student that the guard kept"


def test_the_document_has_tables_commands_plots_and_keeps_what_was_written(tmp_path: Path) -> None:
    config = compose("ablation")
    rows, path = rows_of(config), tmp_path / "ablation.md"
    results = results_with(tmp_path, rows, 3, as_the_paper)
    write_document(path, rows, TITLES, results)
    text = path.read_text()
    lines = text.partition("## Distillation")[2].partition("<details>")[0].splitlines()
    assert lines[4].startswith("| teacher, 50 steps | 0.900 | 0.3000 |"), "the teacher comes first"
    assert lines[5].startswith("| real clips | 0.900 |")
    widths = {line.count("|") for line in lines if line.startswith("|")}
    assert len(widths) == 1, "every line of a table has as many cells"
    assert "colourfulness, for which the teacher was not trained" in text and "0.300 of the start against 0.300" in text
    assert text.count("Gradients at x_hat") == 4, "but for distillation and steps"
    sizes = text.partition("## Rewards")[2].partition("Gradients at x_hat")[2].partition("<details>")[0].splitlines()
    assert [line.split("|")[1].strip() for line in sizes[4:-1]] == [
        "VSD + LRM",
        "VSD + direct gradient",
        "VSD + CD + LRM",
    ]
    assert [cell.strip()[:4] for cell in sizes[4].split("|")[2:5]] == ["0.70", "0.70", "0.70"]
    assert "peak GiB" in text.partition("## Rewards")[2].partition("\n")[2].partition("## ")[0]
    assert "peak GiB" not in text.partition("## Over-optimisation")[2].partition("## ")[0]
    assert "0.900 ± 0.00" in text and "trained for 2 alone, 2 steps" in text
    assert "python launch/train.py run=cd 'student.steps=[4]'" in text and "make ablation seeds=3" in text
    for name in ("reward", "tradeoff", "overoptimisation", "bodies"):
        picture = (tmp_path / "ablation" / f"{name}.svg").read_text()
        assert f"ablation/{name}.svg" in text and "<text" in picture and len(picture) < 150_000
    path.write_text(text.replace(BEGIN, f"{BEGIN}\n## Findings\n\nMine.\n"))
    write_document(path, rows, TITLES, results, stale=["vsd/0"])
    again = path.read_text()
    assert "## Findings\n\nMine." in again and "other settings than those of now: vsd/0" in again
    path.write_text(again.replace(END, ""))
    with pytest.raises(ValueError, match="lacks the line"):
        by_hand(path)


def test_a_document_of_nothing_says_so(tmp_path: Path) -> None:
    config = compose("ablation")
    rows = rows_of(config)
    write_document(tmp_path / "ablation.md", rows, config.groups, Results(tmp_path / "ablation" / "results.json"))
    text = (tmp_path / "ablation.md").read_text()
    assert "0 of" in text and "**Not measured yet.**" in text and ".svg" not in text


def test_plots_are_the_same_when_drawn_again(tmp_path: Path) -> None:
    rows = rows_of(compose("ablation"))
    results = results_with(tmp_path, rows, 2, as_the_paper)
    write_plots(tmp_path / "a", rows, results)
    write_plots(tmp_path / "b", rows, results)
    assert (tmp_path / "a" / "reward.svg").read_bytes() == (tmp_path / "b" / "reward.svg").read_bytes()


def test_a_line_over_seeds_has_the_cycles_that_all_have(tmp_path: Path) -> None:
    results = Results(tmp_path / "results.json")
    for seed, (pace, curve) in enumerate(((1.0, [[5, 10, 15], [0.0, 1.0, 2.0]]), (3.0, [[5, 10], [2.0, 3.0]]))):
        results.put("x", seed, {"curves": {"reward_4": curve}, "seconds_per_cycle": pace})
    line = line_of(results, "x", "reward_4", "seconds")
    assert line is not None and line.x.tolist() == [10, 20] and line.mean.tolist() == [1, 2]
    assert line.sd == pytest.approx(math.sqrt(2)) and line_of(results, "y", "reward_4") is None


def test_nothing_has_no_sign() -> None:
    assert figures.shown(Spread(-4e-8, 0.0, 1), "{:.2f}".format) == "0.00"
    assert figures.shown(Spread(-0.004, 0.02, 3), "{:.2f}".format) == "0.00 ± 0.02"
    assert figures.shown(Spread(0.004, 0.02, 3), "{:+.2f}".format) == "+0.00 ± 0.02"
    assert figures.shown(Spread(-1.405, 0.0, 1)) == "-1.405" and figures.shown(Spread(-0.01, 0.0, 1)) == "-0.010"


def test_labels_are_moved_apart_in_their_order() -> None:
    places = [0.5, 0.52, 0.1, 0.51]
    moved = apart(places, 0.1)
    assert moved[2] == 0.1 and np.allclose(sorted(moved)[1:], [0.41, 0.51, 0.61])
    assert moved[0] < moved[3] < moved[1]


def test_namespace_of_the_machine_names_no_host() -> None:
    import socket

    assert socket.gethostname() not in ablation.machine() and "cores" in ablation.machine()
