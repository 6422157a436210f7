"""The ablation: rows, questions and plots that fit together, what is read of a run, what the document says."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT, compose

from dollar.cli.build.studies import settings_of
from dollar.cli.commands import ablation as command
from dollar.studies.ablation import ABLATION, plots
from dollar.studies.ablation.document import LAYOUT, columns_of
from dollar.studies.ablation.figures import CONTROL, FIGURES, METHODS, PURSUED, along_push, measured
from dollar.studies.ablation.questions import WORDING, questions
from dollar.studies.compare import together
from dollar.studies.document import BEGIN, END, by_hand, write_document
from dollar.studies.engine import is_fresh
from dollar.studies.jobs import Outcome
from dollar.studies.questions import Asker, markdown
from dollar.studies.readings import WARM
from dollar.studies.results import Results, rounded
from dollar.studies.rows import ALL
from dollar.studies.runs import Runs
from dollar.studies.tables import table
from dollar.training.log import Log

SETTINGS = settings_of(compose("ablation"), ABLATION)
ROWS, RUNS = SETTINGS.rows, Runs(SETTINGS, ABLATION)
PUSHED = {method: along_push(ROWS, method) for method in METHODS}
COUNTS = {row.name: row.steps[0] for row in ROWS}


# What is run


def test_validations_are_evenly_spaced_and_as_many_as_asked_for() -> None:
    for row in RUNS.rows.values():
        given = dict(o.split("=", 1) for o in RUNS.overrides(row))
        drawn = not any(o.startswith("validation.every") for o in row.overrides)  # a curve that nobody sees is left out
        assert int(given["validation.every"]) * (SETTINGS.validations if drawn else 1) == int(given["cycles"])
        assert row.after or int(given["validation.every"]) >= WARM  # those have no peak
        assert int(given["lrm.warmup"]) < 8 * WARM


def test_a_row_is_judged_by_what_its_tables_show_and_the_teacher_by_all() -> None:

    def measured_by(command: Sequence[str]) -> set[str]:
        composed = compose("evaluate", *(word for word in command if word.startswith("reward")))
        assert composed.reward.parts.pickscore.path == "dollar/assets/clip"
        return {name for name, weight in composed.reward.weights.items() if weight}

    every = {FIGURES[figure][2] for figure in PURSUED}
    whole = every | {"flicker", "frame_consistency"}
    assert measured_by(RUNS.evaluate_teacher()) == every
    assert measured_by(RUNS.evaluate(RUNS.rows["vsd"], 0)) == every, "tables of what starts from it repeat it"
    assert measured_by(RUNS.evaluate(RUNS.rows["vsd_cd"], 0)) == {"pickscore"}
    for name in (CONTROL, PUSHED["ddpo"][0], "jpeg_1", "control_two", "small_one"):
        assert measured_by(RUNS.evaluate(RUNS.rows[name], 0)) == whole, "its panel is of all"
    assert "teacher_clips=256" in RUNS.evaluate_teacher() and "lrm_prompts=8" in RUNS.evaluate(RUNS.rows["vsd_lrm"], 0)
    assert "lrm_prompts=0" in RUNS.evaluate(RUNS.rows["jpeg_1"], 0)
    assert "steps=[1]" in RUNS.evaluate(RUNS.rows["small_one"], 0)


def test_a_latent_rewards_form_is_named_by_its_row() -> None:
    """A default that changed would change what a kept result is of, and the row's hash would not tell."""
    for row in ROWS:
        given = dict(o.split("=", 1) for o in RUNS.overrides(row))
        if given.get("beta_ft") == "0" or given.get("loss") in ("ddpo", "refl"):
            continue
        assert {"lrm.backbone", "lrm.smooth", "ft.unit"} <= given.keys(), row.name
        if row.name.startswith(("paper_", "vsd_")):
            assert (given["lrm.backbone"], given["lrm.text"], given["lrm.smooth"]) == ("cnn", "true", "0"), row.name


def test_what_a_row_pursues_is_its_own_or_its_groups() -> None:
    pursued = {row.name: row.pursued for row in ROWS}
    assert (pursued["vsd_lrm"], pursued["jpeg_1"], pursued["motion_2"]) == ("clip", "jpeg", "motion")
    config = compose("ablation")
    config.groups.tradeoff.pursued = "motion"
    changed = {row.name: row.pursued for row in settings_of(config, ABLATION).rows}
    assert {name for name in changed if changed[name] != pursued[name]} == {
        row.name for row in ROWS if row.group == "tradeoff" and row.pursued != ALL
    }


def test_rows_are_trained_for_what_they_pursue() -> None:
    """The column of what a row pursues would otherwise be of something else."""
    for row in RUNS.rows.values():
        given = dict(o.split("=", 1) for o in RUNS.overrides(row))
        if row.pursued == ALL:
            assert given["beta_ft"] == "0" and given.get("loss") is None, f"{row.name} is led to nothing"
        elif row.name.startswith("control_"):
            assert given["beta_ft"] == "0" and given["student.steps"] == f"[{row.steps[0]}]", row.name
        else:
            assert FIGURES[row.pursued][2] == given["reward"], row.name


def test_every_question_and_plot_knows_rows_of_the_configuration() -> None:
    """A renamed row would be `not measured` for ever."""
    names = {row.name for row in ROWS}
    asked = set[str]()

    class Spy(Results):
        def of(self, name: str) -> list[dict[str, Any]]:
            asked.add(name)
            return []

    questions(Spy(Path("none.json")), ROWS)
    assert asked <= names
    assert {*plots.REACHING, *plots.BODIES} <= names
    for method in METHODS:
        shares = [float(name.split("_")[1]) for name in PUSHED[method]]
        assert shares == sorted(shares) and shares, "in order of push"
    judged = {row.control for row in ROWS if row.control}
    assert judged >= {CONTROL, "control_two", "control_one"}
    assert {f"{m}_{n}" for m in ("small", "control", "vsd") for n in ("two", "one")} <= names
    groups = [row.group for row in ROWS]
    assert list(dict.fromkeys(groups)) == list(SETTINGS.groups), "tables come in the order of the groups"


# What is kept


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
    lrm = {"rank_correlation": 0.6, "clips": 48, "climb_3_predicted": 0.3, "climb_3_true": 0.1, "climb_3_true_se": 0.02}
    (folder / "metrics.json").write_text(json.dumps({"student": {"4": {**system, "scored": told}}, "lrm": lrm}))


def test_a_run_is_read(tmp_path: Path) -> None:
    made_up_run(tmp_path)
    found = measured(tmp_path)
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
    found = measured(tmp_path)
    assert found["peak_gib"] is None and found["curves"]["reward_4"][0] == [0, 5, 10, 15, 20]
    assert found["curves"]["predicted_4"] == [[5, 10, 15, 20], [1.0, 2.0, 3.0, 4.0]]
    made_up_run(tmp_path / "early", every=4)
    assert measured(tmp_path / "early")["peak_gib"] is None, "the latent reward model is hardly in use"


# What the document says of given figures


def results_with(folder: Path, seeds: int, value: Callable[[str, str], float]) -> Results:
    """Results with figures value(row, figure), alike for all seeds but for a little."""
    results, random = Results(folder / "ablation" / "results.json", counts=COUNTS), np.random.default_rng(0)
    names = FIGURES
    for row in ROWS:
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
                "kept": 40 if row.group == "overoptimisation" else 60,
                "ended": "over-optimisation" if row.group == "overoptimisation" else None,
                "hash": "",
                "seconds": 300.0,
                "machine": "2 cores of a kind",
                "commands": [f"python launch/train.py run={row.name} 'student.steps=[4]'"],
            }
            results.stored["rows"][f"{row.name}/{seed}"] = rounded(result) | {"seed": seed}
    teacher = {n: value("teacher", n) for n in names}
    results.stored["teacher"] = rounded(
        {"figures": teacher, "real": teacher, "hash": "", "seconds": 600.0, "commands": []}
    )
    return results


def as_the_paper(row: str, figure: str) -> float:
    """Figures by which every question is answered as the paper does."""
    if row.startswith(("jpeg_", "motion_")) and figure in ("jpeg", "motion"):
        return 0.9 if row.startswith(figure) else 0.7
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
        ("small_two", "clip"): 0.4,
        ("small_one", "clip"): 0.4,
        ("small_two", "alignment"): 0.91,
        ("small_one", "alignment"): 0.91,
        (PUSHED["paper"][-1], "colourfulness"): 0.9,
        ("vsd_direct", "peak_gib"): 4.0,
    }
    usual = {"alignment": 0.9, "clip": 0.3, "frechet": 1.0, "vendi": 2.1, "peak_gib": 1.0, "verifier": 0.9}
    return known.get((row, figure), usual.get(figure, 0.7))


def test_verdicts_follow_the_figures(tmp_path: Path) -> None:
    asked = questions(results_with(tmp_path, 3, as_the_paper), ROWS)
    papers = [q for q in asked if q.expected]
    assert len(papers) >= 8 and all(together(q.decides) == "yes" for q in papers)
    led = [q for q in asked if " raise " in q.text and q.expected is None]
    assert len(led) == 4 and all(together(q.decides) == "yes" for q in led)
    assert not any("contradicts" in markdown(q, 3) for q in asked)

    def turned(row: str, figure: str) -> float:
        return {"vsd_cd": 1.5, "vsd": 1.9}.get(row, 2.3) if figure == "vendi" else as_the_paper(row, figure)

    for seeds in (1, 3):
        found = questions(results_with(tmp_path / f"{seeds}", seeds, turned), ROWS)
        text = markdown(next(q for q in found if q.text.startswith("Does CD restore")), seeds)
        assert "**No**" in text and "contradicts the paper" in text and "VSD + CD, m = 5 1." in text
        assert ("one seed" in text) == (seeds == 1)


def test_a_row_that_the_guard_ends_at_its_start_raises_nothing(tmp_path: Path) -> None:
    """The start's student is above a control whose reward falls while it goes on."""

    def kept(row: str, figure: str) -> float:
        return 0.9 if (row, figure) == ("vsd", "jpeg") else as_the_paper(row, figure)

    results = results_with(tmp_path, 3, kept)
    for seed in range(3):
        results.stored["rows"][f"jpeg_1/{seed}"]["figures"] = results.stored["rows"][f"vsd/{seed}"]["figures"]
    asked = next(q for q in questions(results, ROWS) if "raise JPEG" in q.text)
    assert [c.what for c in asked.decides] == [f"JPEG compressibility above the {n}'s" for n in ("control", "start")]
    assert [c.answer for c in asked.decides] == ["yes", "undecided"] and asked.decides[1].effect == "0.000"
    assert together(asked.decides) == "undecided"


def test_questions_of_a_steps_variant_exist_where_its_row_does(tmp_path: Path) -> None:
    results = results_with(tmp_path, 3, as_the_paper)
    for seed in range(3):
        row = results.stored["rows"][f"two_steps_anchor/{seed}"]
        row["figures"]["2"].update({"alignment": 0.95, "vendi": 2.0 + 0.01 * seed})
    (asked,) = [q for q in questions(results, ROWS) if "anchor" in q.text]
    assert asked.text == "Does a diversity anchor on the first step help (2 alone, anchor on the first step)?"
    assert [c.answer for c in asked.decides] == ["yes", "no"], "better aligned, less diverse"
    rest = [row for row in ROWS if row.name != "two_steps_anchor"]
    assert not [q for q in questions(results, rest) if "anchor" in q.text]


def test_a_row_of_one_seed_may_be_worse(tmp_path: Path) -> None:
    """It counts beyond two errors of its evaluation, and where these aren't known beyond 5 %."""
    results = Results(tmp_path / "results.json")
    ask = Asker(results, ROWS, WORDING)
    for alignment, error, answer in ((0.5, {}, "no"), (0.89, {}, "yes"), (0.8, {"alignment_se": 0.08}, "yes")):
        for name, value in (("vsd", 0.9), ("cd", alignment)):
            results.put(name, 0, {"figures": {"4": {"alignment": value, **error}}})
        assert ask.no_worse("alignment", "cd", "vsd").answer == answer
        assert ask.no_worse("alignment", "vsd", "cd").answer == "yes"
    assert ask.no_worse("alignment", "cd", "vsd_cd").answer == "unknown"


def test_who_alone_rises_above_the_start_is_sooner(tmp_path: Path) -> None:
    results = results_with(tmp_path, 2, as_the_paper)
    ask = Asker(results, ROWS, WORDING)

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
    results = results_with(tmp_path, 1, as_the_paper)

    def heading(group: str) -> list[str]:
        mine = [row for row in ROWS if row.group == group]
        return [
            cell.strip() for cell in table(columns_of(group, mine), [], mine, results, "").splitlines()[0].split("|")
        ]

    assert "colourfulness ↑" not in heading("reward") and "CLIP reward ↑" in heading("reward")
    assert "colourfulness ↑" in heading("tradeoff") and "dynamic degree ↑" not in heading("tradeoff")
    mine = [row for row in ROWS if row.name == "motion_2"]
    text = table(columns_of("overoptimisation", mine), [], mine, results, "")
    assert text.splitlines()[0].split("|")[4].strip() == "dynamic degree ↑" and "colour" not in text
    cells = text.splitlines()[-1].split("|")
    assert cells[4].strip() == "0.900" and cells[-2].strip() == "40", "the student that the guard kept"


def write(results: Results, stale: Sequence[str] = (), drawn: Sequence[str] = ()) -> None:
    """The document of these results, next to their folder, with all plots or those that are named."""
    made = {name: plot for name, plot in plots.plots(ROWS, results).items() if name in drawn or not drawn}
    path, titles = results.path.parent.with_suffix(".md"), {n: group.title for n, group in SETTINGS.groups.items()}
    write_document(path, LAYOUT, ROWS, titles, results, made, questions(results, ROWS), stale)


def test_the_document_has_tables_commands_plots_and_keeps_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "ablation.md"
    results = results_with(tmp_path, 3, as_the_paper)
    write(results)
    text = path.read_text()
    verdicts, details = text.partition("<!-- written")[::2]
    assert "| question | answer | effect | 95 % interval |" in verdicts and "](ablation/tradeoff.svg)" in verdicts
    line = next(line for line in verdicts.splitlines() if "Does CD restore" in line)
    assert line.startswith("| Does CD restore diversity that VSD loses? | **Yes** | Vendi: +0.20 | [0.")
    assert "What this can decide" in verdicts and "95 % interval is typically alignment ±0.0" in verdicts
    places = [details.index(f"## {title}") for title in ("Distillation", "What the figures mean", "Questions in full")]
    assert places == sorted(places)
    lines = text.partition("## Distillation")[2].partition("## Rewards")[0].splitlines()
    assert lines[4].startswith("| teacher, 50 steps | 0.900 | 0.3000 |"), "the teacher comes first"
    assert lines[5].startswith("| real clips | 0.900 |")
    widths = {line.count("|") for line in lines if line.startswith("|")}
    assert len(widths) == 1, "every line of a table has as many cells"
    assert "colourfulness, for which the teacher was not trained" in text and "0.300 of the start against 0.300" in text
    assert text.count("Gradients at x_hat") == 5, "but for distillation and steps"
    assert text.count("Rewards that were not optimised, against") == 4
    steps = text.partition("## Steps\n")[2].partition("\n## ")[0]
    assert "Rewards that were not optimised" in steps and "*pursued*" not in steps, "they are trained for none"
    sizes = text.partition("## Rewards")[2].partition("Gradients at x_hat")[2].partition("![")[0].splitlines()
    assert [line.split("|")[1].strip() for line in sizes[4:7]] == [
        "VSD + LRM",
        "VSD + direct gradient",
        "VSD + CD + LRM",
    ]
    assert [cell.strip()[:4] for cell in sizes[4].split("|")[2:5]] == ["0.70", "0.70", "0.70"]
    assert "peak GiB" in text.partition("## Rewards\n")[2].partition("\n")[2].partition("## ")[0]
    assert "peak GiB" not in text.partition("## Rewards without")[2].partition("## ")[0]
    assert "0.900 ± 0.00" in text and "trained for 2 alone, 2 steps" in text
    assert "| VSD, 2 steps | " in text, "a label that tells the step count isn't told it again"
    page = (tmp_path / "ablation" / "commands.md").read_text()
    assert "python launch/train.py run=cd 'student.steps=[4]'" in page and "make ablation seeds=3" in page
    assert "launch/" not in text and "(ablation/commands.md)" in text, "commands are on a page of their own"
    for name in ("reward", "tradeoff", "overoptimisation", "bodies"):
        picture = (tmp_path / "ablation" / f"{name}.svg").read_text()
        assert f"ablation/{name}.svg" in text and "<text" in picture and len(picture) < 150_000
    assert "step's true rise" in picture
    for result in results.stored["rows"].values():
        result["climb_true"] = None
    write(results, (), ["bodies"])
    assert "step's true rise" not in (tmp_path / "ablation" / "bodies.svg").read_text(), "no panel is empty"
    first = (tmp_path / "ablation" / "reward.svg").read_bytes()
    path.write_text(text.replace(BEGIN, f"{BEGIN}\n## Findings\n\nMine.\n"))
    write(results, ["vsd/0"], ["reward"])
    again = path.read_text()
    assert (tmp_path / "ablation" / "reward.svg").read_bytes() == first, "plots are the same when drawn again"
    assert "## Findings\n\nMine." in again and "other settings than those of now: vsd/0" in again
    path.write_text(again.replace(END, ""))
    with pytest.raises(ValueError, match="lacks the line"):
        by_hand(path)


def test_a_document_of_nothing_says_so(tmp_path: Path) -> None:
    write(Results(tmp_path / "ablation" / "results.json"))
    text = (tmp_path / "ablation.md").read_text()
    assert "0 of" in text and "**Not measured yet**" in text and ".svg" not in text


def test_results_of_before_are_those_of_the_configuration() -> None:
    """A hash that changed without the settings would have every row trained again."""
    results = Results(ROOT / "docs" / "ablation" / "results.json")
    keys = ["teacher", *results.stored["rows"]]
    stale = {key.partition("/")[0] for key in keys if not is_fresh(RUNS, results, key)}
    assert len(keys) > len(ROWS) and stale <= {CONTROL, "ddpo_20", "ddpo_60"}, "whose panel is not measured yet"


@pytest.mark.parametrize(("outcome", "code"), [(Outcome(stopped=True), 3), (Outcome(failed={"vsd/0": "why"}), 2)])
@pytest.mark.parametrize("again", [False, True])
def test_the_command_reports_how_it_ended(
    outcome: Outcome, code: int, again: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "carry_out", lambda runs, check: outcome)
    with pytest.raises(SystemExit, match=str(code)):
        command.main(compose("ablation", "only=[vsd]", f"again={again}"))
    said = capsys.readouterr()
    assert ("failed: vsd/0: why" in said.err) == (code == 2)
    goes_on = f"the same command{' without again=true' if again else ''} goes on"
    assert (goes_on in said.out) == (code == 3)
