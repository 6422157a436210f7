"""The study of V.I.P.: what its rows run, what is read of them, and its page."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Said, compose

from dollar.cli.build.studies import check_commands, experiments_of, settings_of
from dollar.studies.document import write_document
from dollar.studies.results import Results
from dollar.studies.vip import VIP, Smaller
from dollar.studies.vip.figures import measured
from dollar.studies.vip.plots import columns
from dollar.studies.vip.questions import WEIGHTS


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Smaller:
    place = tmp_path_factory.mktemp("study")
    settings = settings_of(compose("vip_ablation", f"work={place / 'work'}", f"out={place / 'docs'}"), VIP)
    named = [row for row in settings.rows if any(word.startswith("experiment=") for word in row.overrides)]
    return Smaller(settings, VIP, experiments_of(named))


def words(command: tuple[str, ...]) -> dict[str, str]:
    return dict(word.partition("=")[::2] for word in command[2:])


def test_every_row_is_a_command_that_the_user_could_give(runs: Smaller) -> None:
    check_commands([(row.name, command) for row in runs.rows.values() for command in runs.commands(row, 1)])
    for row in runs.rows.values():
        assert "{" not in " ".join(word for command in runs.commands(row, 1) for word in command)
        assert runs.size(row) > 0


def test_stages_of_rows_are_not_refused_hours_later(
    runs: Smaller, command: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each step of the rows that launch/vip.py makes is checked by it before the first of them runs."""
    monkeypatch.setattr("dollar.cli.commands.vip.run", lambda config, root: print("all are checked"))
    monkeypatch.setattr("dollar.evaluation.systems.stored_figures", lambda *of: {})  # as the shipped ones, of 50 steps
    for name in ("redpo", "staged_first", "small"):
        said = command("vip", *runs.commands(runs.rows[name], 0)[0][2:])
        assert said.code == 0 and "all are checked" in said.out, said.err


def test_rows_train_the_same_network_on_the_same_pairs(runs: Smaller) -> None:
    folder = runs.folder("redpo", 1)
    trained = {name: words(runs.commands(row, 1)[0]) for name, row in runs.rows.items() if row.verb == "train"}
    on_pairs = {name: given for name, given in trained.items() if "loss" in given}
    assert {given["init"] for given in on_pairs.values()} == {str(folder / "stage1" / "pruned")}
    places = {name: given["data.path"] for name, given in on_pairs.items()}
    assert places.pop("once_first") == str(runs.folder("staged", 1) / "stage1" / "pairs")
    assert set(places.values()) == {str(folder / "stage1" / "pairs")}
    # ReDPO runs nine forwards a pair and SFT four, and it has as many of them.
    assert int(on_pairs["sft"]["cycles"]) * 4 == int(on_pairs["dpo"]["cycles"]) * 9
    weights = [float(on_pairs[name]["preference.sft"]) for name in WEIGHTS if name != "redpo"]
    assert weights == [1e2, 1e3, 1e5, 1e6, 1e7]
    # Both orders, and the ways of two stages, each have as many updates in all.
    twice = words(runs.commands(runs.rows["staged"], 1)[0])["train"]
    assert f"cycles={int(on_pairs['dpo']['cycles']) // 2}" in twice and "validation.every=" in twice
    assert trained["small_few"]["init"] == str(runs.folder("small", 1) / "stage2" / "train" / "student")
    few_small = words(runs.commands(runs.rows["few_small"], 1)[0])
    assert (
        few_small["checkpoint"] == str(runs.folder("few", 1) / "student") and "teacher_clips=0" in few_small["evaluate"]
    )


def test_what_a_row_reads_decides_whether_it_is_made_again(runs: Smaller) -> None:
    assert [row.name for row in runs.before(runs.rows["once_first"])] == ["redpo", "staged"]
    before = {name: runs.identity(name, 0) for name in runs.rows}
    changed = [
        row._replace(overrides=(*row.overrides, "units=halves")) if row.name == "small" else row
        for row in runs.rows.values()
    ]
    runs.rows = {row.name: row for row in changed}
    assert {name for name in runs.rows if runs.identity(name, 0) != before[name]} == {"small", "small_few"}
    for row in runs.rows.values():  # what is waited for is made before
        known = list(runs.rows)
        assert all(known.index(other.name) < known.index(row.name) for other in runs.before(row))


SYSTEM: dict[str, Any] = {
    "clips": 256,
    "alignment": 0.8,
    "attributes": dict.fromkeys(("colour", "shape", "size", "motion", "background"), 0.9),
    "reward": 0.93,
    "frechet": {"excess": 1.2},
    "vendi": {"mean": 3.1},
    "size": {"parameters": 3_000_000, "flops": 400_000_000, "forwards": 20},
    "seconds": {"text": 0.1, "diffusion": 0.4, "decode": 0.2},
    "scored": {"scores": {"pickscore": 0.21, "dynamic_degree": 0.3, "flicker": 0.9}, "errors": {}},
}


def write_row(folder: Path) -> None:
    """What launch/vip.py leaves of one stage."""
    stage = folder / "stage1"
    for part in ("rank", "pairs", "train", "../evaluation"):
        (stage / part).mkdir(parents=True)
    (folder / "evaluation" / "metrics.json").write_text(json.dumps({"teacher": SYSTEM, "student": {"10": SYSTEM}}))
    whole = {"student": "x", "stages": [{"before": 0.95, "pruned": 0.85, "trained": 0.94, "share": 0.9}]}
    (folder / "result.json").write_text(json.dumps(whole))
    units = ["b.0", "b.1", "b.2", "b.3"]
    worth = [
        {"scores": {"shape": s, "motion": s}, "prediction": p, "influence": i}
        for s, p, i in ((0.1, 0.9, 0.5), (0.8, 0.2, 0.6), (0.9, 0.1, 0.1), (0.85, 0.15, 0.05))
    ]
    full = {"scores": {"shape": 1.0, "motion": 0.9}}
    table = {"units": units, "properties": ["shape", "motion"], "consistency": "motion", "full": full}
    ranking = table | {"chosen": ["b.2"], "rows": dict(zip(units, worth, strict=True))}
    (stage / "rank" / "ranking.json").write_text(json.dumps(ranking))
    told = {"targets": ["shape"], "falls": {}, "counts": {"pairs": {"kept": 2}}}
    (stage / "pairs" / "pairs.json").write_text(json.dumps(told))
    (stage / "pairs" / "pairs.jsonl").write_text('{"gap": 0.2}\n{"gap": 0.1}\n')
    lines = [
        {
            "step": i,
            "time/cycle": 0.5,
            "pairs/winner_error": 1 / i,
            "pairs/loser_error": 2 / i,
            "cosine/winner_loser": 0.3,
        }
        for i in range(1, 25)
    ]
    lines += [{"step": i, "validation/reward_10": i / 100} for i in (12, 24)]
    (stage / "train" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["teacher_dtype=bfloat16"], "dtype is float32 and teacher_dtype bfloat16"),
        (["rows=[{name: a, group: few}]"], "the row a lacks label"),
        (["rows=[{label: a, group: few}]"], "the row None lacks name"),
        (["rows=[{name: a, group: few, verb: dance}]"], "the row a has verb dance; use one of train, vip, evaluate"),
        (["rows=[{name: a, group: few, overrides: ['init={b}/x']}]"], "the row a reads {b}, but no row before it"),
    ],
)
def test_mistakes_are_sentences(command: Callable[..., Said], tmp_path: Path, given: list[str], said: str) -> None:
    found = command("vip_ablation", f"work={tmp_path / 'work'}", f"out={tmp_path / 'docs'}", *given)
    assert found.code == 2 and said in found.err and "Traceback" not in found.err, found.err
    assert not (tmp_path / "work").exists()


def test_the_teacher_can_be_another(tmp_path: Path) -> None:
    settings = settings_of(compose("vip_ablation", "smaller=shapes", f"work={tmp_path}", f"out={tmp_path}"), VIP)
    assert "teacher=shapes" in settings.rows[0].overrides and "teacher=shapes" in settings.teacher_evaluation


def test_what_is_read_of_a_row(tmp_path: Path) -> None:
    write_row(tmp_path)
    found = measured(tmp_path)
    figures = found["figures"]["10"]
    assert (figures["parameters"], figures["flops"], figures["forwards"]) == pytest.approx((3.0, 0.4, 20))
    assert (figures["alignment"], figures["seconds"], figures["motion"]) == (0.8, 0.4, 0.3)
    assert (found["cycles"], found["trained_for"]) == (24, 12.0)
    assert found["winner_error"] == pytest.approx((1 / 23 + 1 / 24) / 2), "the last twelfth"
    assert found["curves"]["reward_10"] == [[12, 24], [0.12, 0.24]] and len(found["curves"]["loser_error"][0]) == 12
    assert found["stages"][0]["share"] == 0.9 and found["pairs"][0]["gaps"] == [0.2, 0.1]
    assert "picture" not in found["pairs"][0], "none but of the row whose pairs are shown"
    write_row(tmp_path / "redpo")
    (tmp_path / "redpo" / "stage1" / "pairs" / "pairs.png").write_bytes(b"a picture")
    assert measured(tmp_path / "redpo")["pairs"][0]["picture"] == "YSBwaWN0dXJl"
    ranking = found["rankings"][0]
    assert ranking["total"] == pytest.approx([0.1, 0.8, 0.9, 0.85]) and ranking["whole"] == pytest.approx(0.95)
    (tmp_path / "only").mkdir()
    (tmp_path / "only" / "metrics.json").write_text(json.dumps({"student": {"10": SYSTEM}}))
    assert measured(tmp_path / "only")["curves"] == {}, "a row that is measured alone"


def test_names_of_about_one_cost_stand_in_a_column() -> None:
    places = [(12.0, 0.7, "a"), (19.0, 0.9, "b"), (37.0, 0.8, "c"), (75.0, 0.1, "d")]
    assert [[name for *_, name in column] for column in columns(places)] == [["a", "b", "c"], ["d"]]


def test_the_page_answers_from_the_figures(runs: Smaller, tmp_path: Path) -> None:
    write_row(tmp_path / "row")
    results = Results(
        tmp_path / "docs" / "vip" / "results.json", VIP.steps, {row.name: row.steps[0] for row in runs.rows.values()}
    )
    assert VIP.measured_teacher is not None
    (tmp_path / "metrics.json").write_text(json.dumps({"teacher": SYSTEM, "real": SYSTEM}))
    common = {"commands": ["python launch/vip.py"], "machine": "m", "seconds": 1.0}
    results.put("teacher", None, common | VIP.measured_teacher(tmp_path))
    for seed in range(3):
        for row in runs.rows.values():
            found = measured(tmp_path / "row")
            one = found["figures"]["10"] | {"right_shape": 0.9 - 0.1 * (row.name == "redpo") + 0.001 * seed}
            one["verifier"] += {"sft_1e2": 0.05, "sft": 0.06, "redpo": -0.01}.get(row.name, 0.0)
            one["alignment"] += {"small_few": 0.1, "demo": 0.11}.get(row.name, 0.0)
            results.put(row.name, seed, common | found | {"figures": {str(row.steps[0]): one}})
    rows, titles = list(runs.rows.values()), {name: group.title for name, group in runs.settings.groups.items()}
    plots, questions = VIP.plots(rows, results), VIP.questions(results, rows)
    write_document(tmp_path / "docs" / "vip.md", VIP.layout, rows, titles, results, plots, questions)
    page = (tmp_path / "docs" / "vip.md").read_text()
    # SFT has the better share of shapes, by which the pairs were chosen; prediction ranks as the reward does and
    # influence almost.
    beats = "| Does ReDPO beat SFT on what the pairs were chosen by? | **No** | shape right: -0.100<br>"
    assert f"{beats}reward (the verifier's margin): -0.070 |" in page
    # The best weight has less than SFT of as many forwards, and more than SFT of as many updates.
    forwards, updates = (
        f"reward (the verifier's margin), weight 1e2 minus SFT, as many {n}" for n in ("forwards", "updates")
    )
    assert f"SFT alone? | **Partly** | {forwards}: -0.010<br>{updates}: +0.050 |" in page
    # Stages with fresh pairs have 0.01 more than ReDPO's single one, and with the first stage's pairs as much.
    two = ("2 and 1, fresh pairs minus ReDPO", "2 and 1, the first stage's pairs minus 3 at once, the pairs of 2")
    margins = [
        f"reward (the verifier's margin), {pair}: {gap}<br>" for pair, gap in zip(two, ("+0.010", "0.000"), strict=True)
    ]
    assert all(margin in page for margin in margins)
    assert "| Does the safeguard make ReDPO better? | **No**" in page and "It never acted" in page, "errors are equal"
    assert "| Do the weights' ends meet SFT and DPO? | **Partly**" in page, "one end is better than what it should meet"
    # Without b.0 a tenth of the margin is left; of the other three influence has the best two the wrong way round, so
    # that it is 1 - 6 * 2 / (3 * 8), and of all four, where b.0 and b.1 are so as well, 1 - 6 * 4 / (4 * 15).
    assert "rank correlation of prediction with the reward's loss, of blocks that may go: 1.00" in page
    assert "rank correlation of influence with the reward's loss, of blocks that may go: 0.50" in page
    chosen = "prediction 1.0, its correlation over all blocks 1.00; influence 0.0, its correlation over all blocks 0.60"
    assert chosen in page
    assert "| Is one of them within 0.05 of the alignment of the demo's four steps? | **Yes" in page
    assert "| ReDPO, seed 0 | 1 | 0.9500 | 0.8500 | 0.9400 | 90% |" in page and "3 seeds can decide" in page
    for name in ("ranking", "recovered", "errors", "size", "pairs"):
        assert f"](vip/{name}.svg)" in page and (tmp_path / "docs" / "vip" / f"{name}.svg").is_file()
    assert "| million parameters ↓ | 3.00 |" in page and "Measured with other settings" not in page
