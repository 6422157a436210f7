"""The engine of studies, through a small study of other content than the ablation's: rows, commands, runs, document."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import Said
from omegaconf import OmegaConf

from dollar.cli.build.studies import check_commands, settings_of
from dollar.studies import engine
from dollar.studies.compare import together
from dollar.studies.content import Content
from dollar.studies.document import Layout, further_seeds
from dollar.studies.engine import carry_out, is_fresh, machine
from dollar.studies.jobs import Outcome, work
from dollar.studies.plots import BLUE, Plot
from dollar.studies.questions import Asker, Question, Wording, markdown
from dollar.studies.results import Results
from dollar.studies.rows import Row, replaced, seeds_of
from dollar.studies.runs import Runs
from dollar.studies.settings import Settings
from dollar.studies.tables import Column

YAML = """
seeds: null
only: null
again: false
workers: 2
work: ???
out: ???
only_document: false
cycles: 64
further: 32
batch: 4
validations: 8
clips: 256
train: [reward=pickscore, reward.path=here, reward@guard.reward=shapes, guard.action=none]
evaluation: [reward=mixture, reward.weights.shapes=0]
student_evaluation: [teacher_clips=0]
groups:
  whole: {title: Whole students}
  pruned: {title: Pruned students, overrides: [guard.action=warn], pursued: size}
rows:
  - {name: plain, label: Plain, group: whole, overrides: [beta_cd=0]}
  - {name: both, label: Both losses, group: whole, steps: [1, 2]}
  - {name: half, label: Half of the blocks, group: pruned, after: both, steps: [1], overrides: [reward=jpeg]}
"""
WORDING = Wording({"score": "score", "size": "size"}, less=("size",))


def measured(folder: Path) -> dict[str, Any]:
    """A run's result: its file as it is."""
    return json.loads((folder / "figures.json").read_text())


def questions(results: Results, rows: Sequence[Row]) -> list[Question]:
    ask = Asker(results, rows, WORDING)
    better = [ask.better("size", "half", "both"), ask.better("score", "half", "teacher")]
    return [Question("Is half as good?", "", better, [ask.numbers("score", "plain")], None)]


def plots(results: Results) -> dict[str, Plot]:
    def bars(plt: Any) -> Any:
        figure, axes = plt.subplots()
        axes.bar(0, list(results.figure("half", "size").values())[0], color=BLUE)
        return figure

    return {"sizes": Plot(["half"], bars)}


PRUNING = Content(
    name="pruning",
    rewards={"score": "shapes", "size": "jpeg"},
    usual="score",
    measured=measured,
    measured_teacher=measured,
    layout=Layout(
        title="Pruning",
        about="Score: how good; size: how large.\n",
        commands=lambda results: [
            "make pruning",
            *(f"make more {more} {names}" for more, names in further_seeds(results).items()),
        ],
        columns=lambda group, rows: [Column("score ↑", "score", "{:.2f}"), Column("size ↓", "size", "{:.0f}")],
        captions={"pruned": ("sizes", "How large it is.")},
        before=lambda rows, results: f"{len(rows)} here.\n\n",
    ),
    plots=lambda rows, results: plots(results),
    questions=questions,
    steps=1,
)


def settings(folder: Path, rows: Sequence[dict[str, Any]] = (), **changes: Any) -> Settings:
    """The yaml's settings with these rows besides, writing into a folder."""
    config = OmegaConf.create(YAML)
    config.rows = [*config.rows, *rows]
    config.work, config.out = str(folder / "work"), str(folder / "docs")
    config.update(changes)
    return settings_of(config, PRUNING)


def runs_of(folder: Path, **changes: Any) -> Runs:
    return Runs(settings(folder, **changes), PRUNING)


def with_overrides(given: Settings, name: str, *overrides: str) -> Settings:
    """The same with other overrides of a row."""
    return replace(given, rows=[r._replace(overrides=overrides) if r.name == name else r for r in given.rows])


# What is run


def test_a_row_replaces_keys_and_whole_choices() -> None:
    common = ["reward=pickscore", "reward.path=here", "reward@guard.reward=shapes", "batch=4"]
    assert replaced(common, ["reward=jpeg", "batch=2"]) == ["reward@guard.reward=shapes", "reward=jpeg", "batch=2"]


def test_commands_of_a_row_that_starts_from_another(tmp_path: Path) -> None:
    runs = runs_of(tmp_path, further=35, validations=5, cycles=20)
    train, evaluate = runs.train(runs.rows["half"], 1), runs.evaluate(runs.rows["half"], 1)
    assert f"init={tmp_path}/work/seed1/both/student" in train and "cycles=35" in train and "seed=1" in train
    assert "validation.every=7" in train
    assert "reward=jpeg" in train and not any("reward.path" in word for word in train)
    assert f"checkpoint={tmp_path}/work/seed1/half/student" in evaluate and "steps=[1]" in evaluate
    assert "guard.action=warn" in train and "guard.action=none" not in train
    first = runs.train(runs.rows["plain"], 0)
    assert "reward@guard.reward=shapes" in first and "guard.action=none" in first
    assert not any(word.startswith("init=") for word in first)
    assert [w for w in evaluate if "weights" in w][1:] == [
        "reward.weights.shapes=1",
        "reward.weights.jpeg=1",
    ]
    assert "reward.weights.jpeg=1" not in runs.evaluate(runs.rows["plain"], 0)


def test_validations_divide_the_cycles_of_every_row(tmp_path: Path) -> None:
    for changes, message in (
        ({"cycles": 20}, r"plain has 20 cycles, which 8 .* cycles=16, or another"),
        ({"further": 3}, r"half has 3 cycles, .* further=8"),
    ):
        with pytest.raises(ValueError, match=message):
            carry_out(runs_of(tmp_path, **changes), lambda commands: None)


def test_rows_whose_names_have_points_have_logs_of_their_own(tmp_path: Path) -> None:
    more = [{"name": f"beta_0.{k}", "label": "", "group": "whole"} for k in (1, 3)]
    runs = Runs(settings(tmp_path, more), PRUNING)
    assert len({runs.job(name, 0).log for name in runs.rows}) == len(runs.rows) == 5


def test_what_a_result_follows_from(tmp_path: Path) -> None:
    def identity(name: str, seed: int = 0, both: Sequence[str] = (), **changes: Any) -> str:
        return Runs(with_overrides(settings(tmp_path, **changes), "both", *both), PRUNING).identity(name, seed)

    assert identity("half") == identity("half", work=str(tmp_path / "elsewhere"))
    assert identity("half") != identity("half", both=["cd.m=1"]), "the row that it starts from changed"
    assert identity("plain") == identity("plain", both=["cd.m=1"])
    changed = identity("plain", seed=1), identity("plain", cycles=8), identity("plain", clips=512)
    assert len({identity("plain"), *changed}) == 4
    made = [runs.made_as(runs.rows["plain"], 0) for runs in (runs_of(tmp_path), runs_of(tmp_path, clips=512))]
    assert made[0] == made[1]


def test_a_network_that_was_edited_is_trained_with_and_measured_anew(tmp_path: Path) -> None:
    (tmp_path / "teacher").mkdir()
    weights = tmp_path / "teacher" / "weights.bin"
    weights.write_bytes(b"first")

    def now() -> Runs:
        return Runs(with_overrides(settings(tmp_path), "both", f"teacher.folder={weights.parent}"), PRUNING)

    runs, results = now(), Results(tmp_path / "results.json", 1)
    for name in ("plain", "both", "half"):
        runs.prepare(runs.rows[name], 0)
        card = runs.folder(name, 0) / "student" / "student.json"
        card.parent.mkdir(parents=True)
        card.write_text("{}")
        results.put(name, 0, {"hash": runs.identity(name, 0), "inputs": runs.inputs(name)})

    def fresh() -> list[str]:
        return [n for n in runs.rows if is_fresh(now(), results, f"{n}/0") and now().trained(runs.rows[n], 0)]

    assert fresh() == ["plain", "both", "half"]
    weights.write_bytes(b"other")
    assert fresh() == ["plain"]  # the third starts from the second
    runs.prepare(runs.rows["plain"], 0)
    assert (runs.folder("plain", 0) / "student").is_dir()
    now().prepare(runs.rows["both"], 0)
    assert not runs.folder("both", 0).is_dir()
    # What an earlier version kept is judged by its settings.
    results.put("both", 0, {"hash": runs.identity("both", 0)})
    assert is_fresh(now(), results, "both/0")
    marker = runs.folder("half", 0).with_name("half.made_as.json")
    marker.write_text(json.dumps(runs.made_as(runs.rows["half"], 0)))
    assert now().trained(runs.rows["half"], 0)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"name": "plain", "label": "twice", "group": "whole"}, "two rows are called plain"),
        ({"name": "x", "label": "x", "group": "whole", "after": "y"}, "come after y"),
        ({"name": "x", "label": "x", "group": "nowhere"}, "group nowhere"),
        ({"name": "x", "label": "x", "group": "whole", "override": []}, "a row has override"),
        ("nosuch", "a row is .nosuch."),
        ({"name": "x", "label": "x", "group": "whole", "pursued": "speed"}, "pursues speed; the figures are score, si"),
    ],
)
def test_rows_that_cannot_be_are_refused(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        settings(tmp_path, [row])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"only": ["bot"]}, "no row bot; the nearest is both"),
        ({"only": "both"}, r"only is both; write only=\[both\]"),
        ({"workers": 0}, "workers is 0; it must be at least 1"),
        ({"again": True}, "name them"),
        ({"groups": {"whole": {"titel": "x"}}}, "the group whole has titel; it may have title, overrides, evaluation"),
        ({"out": __file__}, "out=.* is a file; name a folder"),
    ],
)
def test_settings_that_cannot_be_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        settings(tmp_path, **changes)


def test_what_a_row_pursues_is_its_own_its_groups_or_the_usual(tmp_path: Path) -> None:
    more = [{"name": "led", "label": "", "group": "pruned", "pursued": "score"}]
    pursued = {row.name: row.pursued for row in settings(tmp_path, more).rows}
    assert pursued == {"plain": "score", "both": "score", "half": "size", "led": "score"}


def test_seeds_are_a_count_or_a_list() -> None:
    assert (seeds_of(None), seeds_of(3), seeds_of([0, 2])) == ([0], [0, 1, 2], [0, 2])
    for wrong in (0, [], [1, 1], [-1], "a"):
        with pytest.raises(ValueError, match="seeds is"):
            seeds_of(wrong)


def test_a_row_with_an_unknown_key_is_refused_before_any_runs(tmp_path: Path) -> None:
    given = with_overrides(settings(tmp_path, train=[], evaluation=[]), "plain", "beta_vds=1")
    runs = Runs(given, PRUNING)
    with pytest.raises(ValueError, match=r"the row plain, train.py: there is no key 'beta_vds'.*'beta_vsd'"):
        check_commands(engine.commands_of(runs, [runs.job("plain", 0)]))


# The whole, with runs that are made up


class Ended:
    """A command that has ended with a code."""

    def __init__(self, code: int) -> None:
        self.code = code

    def poll(self) -> int:
        return self.code

    def terminate(self) -> None:
        raise AssertionError("it ended by itself")

    kill = terminate


def commands_of_a_machine(ran: list[str], fail: str | None = None) -> Callable[[Sequence[str], Path], Ended]:
    """Commands that leave at once what the real ones would."""

    def begin(command: Sequence[str], log: Path) -> Ended:
        given = dict(word.split("=", 1) for word in command[2:])
        if "run" in given:
            ran.append(f"train {given['run']} {given['seed']}")
            if given["run"] == fail:
                return Ended(1)
            assert "init" not in given or (Path(given["init"]) / "student.json").is_file()
            folder = Path(given["runs"]) / given["run"]
            for part in ("checkpoints", "student"):
                (folder / part).mkdir(parents=True)
            (folder / "student" / "student.json").touch()
        elif "checkpoint" in given:
            folder = Path(given["checkpoint"]).parent
            ran.append(f"evaluate {folder.name}")
            figures = {"score": 0.9, "size": 5.0 if folder.name == "half" else 10.0}
            (folder / "figures.json").write_text(json.dumps({"figures": {"1": figures, "2": figures}}))
        else:
            ran.append("teacher")
            Path(given["out"]).mkdir(parents=True, exist_ok=True)
            teacher = {"figures": {"score": 0.8, "size": 20.0}, "real": {"score": 1.0}}
            (Path(given["out"]) / "figures.json").write_text(json.dumps(teacher))
        return Ended(0)

    return begin


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Carries a study out; gives what it ran."""
    monkeypatch.setattr(engine, "bar", lambda *_: lambda outcome, running: None)

    def carry(given: Settings, fail: str | None = None) -> list[str]:
        ran: list[str] = []
        begin = commands_of_a_machine(ran, fail)
        monkeypatch.setattr(engine, "work", lambda *arguments: work(*arguments, begin=begin, pause=0))
        outcome = carry_out(Runs(given, PRUNING), lambda commands: None)
        assert set(outcome.failed) == ({f"{fail}/0", "half/0"} if fail else set())
        return ran

    return carry


Study = Callable[..., list[str]]


def test_another_study_has_a_document_of_its_own(tmp_path: Path, study: Study) -> None:
    assert len(study(settings(tmp_path, seeds=2))) == 1 + 2 * 6
    text = (tmp_path / "docs" / "pruning.md").read_text()
    assert text.startswith("# Pruning\n\n3 of 3 rows, seeds 0, 1; made on") and "Score: how good" in text
    page = (tmp_path / "docs" / "pruning" / "commands.md").read_text()
    assert "```sh\nmake pruning\n```" in page and "[All commands](pruning/commands.md)" in text
    assert "## Pruned students\n\n```sh\n# Half of the blocks, from the student of both\npython launch/train" in page
    assert "| Is half as good? | **Yes** | size: -5.000<br>score: +0.100 | [-5.000, -5.000]<br>— |" in text
    whole, pruned = text.partition("## Pruned students")[::2]
    assert "## Whole students\n\n2 here." in whole and "| Plain | 0.90 ± 0.00 | 10 ± 0 |" in whole
    assert "| Both losses, 1 step | 0.90 ± 0.00 | 10 ± 0 |\n| Both losses, 2 steps |" in whole
    assert "| teacher | 0.80 | 20 |\n| real clips | 1.00 | — |\n| *Both losses, 1 step* |" in pruned
    assert "\n| Half of the blocks | 0.90 ± 0.00 | 5 ± 0 |\n" in pruned, "of the study's usual step count"
    assert "![How large it is.](pruning/sizes.svg)" in pruned
    assert "<text" in (tmp_path / "docs" / "pruning" / "sizes.svg").read_text()
    assert "### Is half as good?\n\n**Yes**.\n\n- size: Half of the blocks 5.000 ± 0.000, Both" in pruned
    results = Results(tmp_path / "docs" / "pruning" / "results.json", steps=1)
    asked = questions(results, settings(tmp_path).rows)[0]
    assert together(asked.decides) == "yes" and "score: Plain 0.900" in markdown(asked, 2)


def test_further_seeds_of_some_rows_are_told(tmp_path: Path, study: Study) -> None:
    study(settings(tmp_path))
    study(settings(tmp_path, seeds=[1, 2], only=["plain"]))
    text = (tmp_path / "docs" / "pruning.md").read_text()
    assert "3 of 3 rows, seed 0, and 1, 2 of “Plain”; made on" in text
    page = (tmp_path / "docs" / "pruning" / "commands.md").read_text()
    assert "make pruning\nmake more (1, 2) ['plain']\n" in page
    study(settings(tmp_path, seeds=[1, 2], only=["both"]))
    text = (tmp_path / "docs" / "pruning.md").read_text()
    assert "3 of 3 rows, seeds 0, 1, 2, without 1, 2 of “Half of the blocks”; made on" in text


def test_the_same_command_goes_on_where_it_ended(tmp_path: Path, study: Study) -> None:
    study(settings(tmp_path), fail="both")
    assert "0.90" in (tmp_path / "docs" / "pruning.md").read_text()
    assert study(settings(tmp_path)) == ["train both 0", "evaluate both", "train half 0", "evaluate half"]
    assert study(settings(tmp_path)) == []
    assert not (tmp_path / "work" / "seed0" / "plain" / "checkpoints").exists()


def test_a_changed_row_and_what_starts_from_it_are_made_again(tmp_path: Path, study: Study) -> None:
    study(settings(tmp_path))
    changed = with_overrides(settings(tmp_path), "both", "cd.m=1")
    assert [r for r in study(changed) if r.startswith("train")] == ["train both 0", "train half 0"]
    ran = study(replace(changed, clips=512))
    assert "teacher" in ran and not [r for r in ran if r.startswith("train")], "more clips train nothing"


def test_only_some_rows_and_again(tmp_path: Path, study: Study) -> None:
    ran = study(settings(tmp_path, only=["half"]))
    assert [r for r in ran if r.startswith("train")] == ["train both 0", "train half 0"]
    assert study(settings(tmp_path, only=["half"], again=True)) == ["train half 0", "evaluate half"]


def test_what_starts_from_a_row_made_again_is_made_again_too(
    tmp_path: Path, study: Study, capsys: pytest.CaptureFixture[str]
) -> None:
    study(settings(tmp_path, seeds=2))
    ran = study(settings(tmp_path, only=["both"], again=True))
    assert ran == ["train both 0", "evaluate both"] and "it is made too: half" in capsys.readouterr().out
    stored = Results(tmp_path / "docs" / "pruning" / "results.json").stored["rows"]
    assert set(stored) == {"plain/0", "plain/1", "both/0", "both/1", "half/1"}, "the other seed's student is as it was"
    assert study(settings(tmp_path, seeds=2)) == ["train half 0", "evaluate half"]


def test_a_run_of_something_else_is_left_alone(tmp_path: Path, study: Study) -> None:
    mine = tmp_path / "work" / "seed0" / "plain" / "precious"
    mine.mkdir(parents=True)
    with pytest.raises(ValueError, match="not made by this command"):
        study(settings(tmp_path))
    assert mine.is_dir()


def test_two_commands_at_once_are_refused(tmp_path: Path, study: Study) -> None:
    from dollar.parallel.lock import Lock

    for folder, key in ((tmp_path / "work", "work"), (tmp_path / "docs" / "pruning", "out")):
        lock = Lock(folder)
        (tmp_path / "docs" / "pruning" / "results.json").unlink(missing_ok=True)
        with pytest.raises(ValueError, match=f"another pruning runs in {key}="):
            study(settings(tmp_path))
        lock.close()
    assert study(settings(tmp_path, only=["plain"])) == ["train plain 0", "evaluate plain"]


def test_a_stop_writes_the_document_too(tmp_path: Path, study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    study(settings(tmp_path))
    (tmp_path / "docs" / "pruning.md").unlink()
    monkeypatch.setattr(engine, "run", lambda *_: Outcome(stopped=True))
    assert carry_out(runs_of(tmp_path), lambda commands: None).stopped
    assert (tmp_path / "docs" / "pruning.md").is_file()


def test_the_machine_is_named_without_its_host() -> None:
    assert socket.gethostname() not in machine() and "cores" in machine()


@pytest.mark.parametrize("name", ["ablation", "few_step", "vip_ablation"])
def test_clips_that_the_teacher_has_no_figures_of_are_told_before_a_job(
    command: Callable[..., Said], name: str, tmp_path: Path
) -> None:
    said = command(name, "clips=300", f"work={tmp_path / 'work'}", f"out={tmp_path}")
    assert said.code == 2 and "clips is 300" in said.err and "256, 512, 1024 clips" in said.err, said.err
    assert not (tmp_path / "work").exists()
