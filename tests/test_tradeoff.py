"""The ablation's trade-off at equal true reward, and the panel of rewards that were not optimised."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pytest

from dollar.studies.ablation.figures import CONTROL, METHODS
from dollar.studies.ablation.panel import holding, panel
from dollar.studies.ablation.questions import WORDING, questions
from dollar.studies.ablation.reward_questions import at_equal_reward
from dollar.studies.ablation.tradeoff import Tradeoff
from dollar.studies.compare import together
from dollar.studies.questions import Asker, markdown
from dollar.studies.results import Results
from dollar.studies.rows import ALL, Row

POINTS = {  # colourfulness above control, alignment, Fréchet, Vendi
    CONTROL: (0.0, 0.90, 2.0, 2.6),
    "ours_0.3": (0.02, 0.89, 2.1, 2.6),
    "ours_0.5": (0.06, 0.87, 2.4, 2.4),
    "paper_1": (0.10, 0.80, 3.0, 2.2),
    "direct_0.25": (0.05, 0.89, 2.2, 2.5),
    "small_0.25": (0.04, 0.90, 2.1, 2.6),
}
ROWS = [
    Row(CONTROL, "control", "tradeoff", pursued=ALL),
    *(Row(name, name, "tradeoff", (), "vsd", (4,), "colourfulness", CONTROL) for name in POINTS if name != CONTROL),
]


def traded(folder: Path, shift: Sequence[float] = (0.0,), **changed: Sequence[float]) -> Results:
    """Results of the points; shift: by how much each seed's alignment is higher than the first's, of ours_0.5 alone."""
    results = Results(folder / "results.json")
    for seed, extra in enumerate(shift):
        for name, (rise, alignment, frechet, vendi) in {**POINTS, **changed}.items():
            figures = {
                "colourfulness": 0.7 + 0.01 * seed + rise,  # seeds begin elsewhere
                "alignment": alignment + extra * (name == "ours_0.5"),
                "frechet": frechet,
                "vendi": vendi,
            }
            results.put(name, seed, {"figures": {"4": figures}})
    return results


def test_losses_at_equal_reward_are_between_the_points_of_each_seed(tmp_path: Path) -> None:
    at = Tradeoff(traded(tmp_path, (0.0, 0.04)), ROWS, "colourfulness")
    assert at.students("ours")[0] == pytest.approx({"ours_0.3": 0.25, "ours_0.5": 0.75})
    assert at.students("paper")[1] == pytest.approx({CONTROL: 0.5, "paper_1": 0.5}), "the control is no push at all"
    # Three quarters of the way from 0.89 to 0.87, and to 0.91.
    assert at.lost("ours", "alignment").values == pytest.approx([0.025, -0.005], abs=2e-4)
    assert at.lost("ours", "frechet").values == pytest.approx([0.325, 0.325], abs=1e-3)
    assert at.lost("ours", "vendi").values == pytest.approx([0.15, 0.15], abs=1e-3)
    assert at.lost("paper", "alignment").values == pytest.approx([0.05, 0.05], abs=2e-4)
    assert at.beyond("ours", "paper", "alignment", 0.5).values == pytest.approx([0.0, -0.03], abs=2e-4)
    assert at.beyond("ours", "paper", "frechet", 0.5).values == pytest.approx([0.075, 0.075], abs=1e-3)
    assert at.beyond("ours", "direct", "alignment").values == pytest.approx([0.015, -0.015], abs=2e-4)
    reach = at.reaches("small")[0]
    assert reach.student is None and reach.most == pytest.approx(0.04, abs=1e-4), "it doesn't get there"


def test_the_error_of_a_loss_is_of_the_rows_that_it_is_made_of(tmp_path: Path) -> None:
    results = traded(tmp_path)
    for name in (CONTROL, "ours_0.3", "ours_0.5"):
        results.stored["rows"][f"{name}/0"]["figures"]["4"]["alignment_se"] = 0.02
    lost = Tradeoff(results, ROWS, "colourfulness").lost("ours", "alignment")
    assert lost.error == pytest.approx(0.02 * math.sqrt(1 + 0.25**2 + 0.75**2))


def test_the_page_tells_losses_with_intervals_and_who_does_not_get_there(tmp_path: Path) -> None:
    results = traded(tmp_path, (0.0, 0.004, 0.008))
    text = at_equal_reward(Asker(results, ROWS, WORDING))
    first, second = (
        {line.split("|")[1].strip(): line.split("|")[2:-1] for line in part.splitlines() if line.startswith("|")}
        for part in text.split("At equal true reward")[1:]  # at +0.05 and at +0.03
    )
    ours = [cell.strip() for cell in first[METHODS["ours"]]]
    # Losses of 0.025, 0.022 and 0.019: a mean of 0.022, and 4.303 * 0.003 / sqrt(3) on either side.
    assert ours == ["3 of 3", "+0.022 [0.015, 0.029]", "+0.32 [0.32, 0.32]", "+0.15 [0.15, 0.15]"]
    assert first[METHODS["small"]][0].strip() == "0 of 3; else +0.040 to +0.040 at most"
    assert second[METHODS["small"]][0].strip() == "3 of 3"
    asked = {q.text.partition(" at a true")[0]: q for q in reversed(questions(results, ROWS))}
    half = asked["Does ours lose at most half as much alignment as the paper's latent reward"]
    assert together(half.decides) == "undecided" and half.decides[0].interval == "[-0.010, 0.004]"
    assert half.decides[0].effect == "-0.003"
    frechet = asked["Does ours lose at most half as much Fréchet above floor as the paper's latent reward"]
    assert together(frechet.decides) == "no" and "gets there in 0 of 3 seeds (+0.040" in markdown(frechet, 3)
    curve = asked["Is ours on or above the direct gradient's curve"]
    assert [c.answer for c in curve.decides] == ["no", "no"], "0.012 and 0.125 beyond the direct gradient's"
    wide = traded(tmp_path / "wide", (0.0, 0.02, 0.04))
    (alignment, _) = next(q for q in questions(wide, ROWS) if q.text.startswith("Is ours on or above")).decides
    assert (alignment.answer, alignment.effect) == ("undecided", "+0.000"), "what may be chance isn't said to hold"
    better = traded(tmp_path / "b", (0.0, 0.0, 0.0), **{"ours_0.5": (0.06, 0.895, 2.1, 2.6)})
    asked = {q.text.partition(" at a true")[0]: q for q in reversed(questions(better, ROWS))}
    found = asked["Does ours lose at most half as much alignment as the paper's latent reward"]
    assert together(found.decides) == "yes" and found.decides[0].effect == "-0.019"
    assert together(asked["Is ours on or above the direct gradient's curve"].decides) == "yes"


# The panel


def test_the_panel_shows_what_was_not_pursued_and_what_falls(tmp_path: Path) -> None:
    results = Results(tmp_path / "results.json")
    for seed in range(3):
        for name, contrast in ((CONTROL, 0.5), ("ours_0.3", 0.4), ("ours_0.5", 0.52)):
            figures = {"colourfulness": 0.7, "contrast": contrast + 0.001 * seed * (name != CONTROL), "flow": 3.0}
            results.put(name, seed, {"figures": {"4": figures}})
    mine = [row for row in ROWS if row.name.startswith("ours_0")]
    lines = [line.split("|")[1:-1] for line in panel(mine, results, WORDING).splitlines() if line.startswith("|")]
    assert [[cell.strip() for cell in line] for line in (lines[0], *lines[2:])] == [
        ["", "colourfulness", "contrast", "flow"],
        [mine[0].label, "*pursued*", "**-0.099 [-0.101, -0.097]**", "0.000 [0.000, 0.000]"],
        [mine[1].label, "*pursued*", "+0.021 [0.019, 0.023]", "0.000 [0.000, 0.000]"],
    ]
    (first, second) = holding(mine[:2], results, "colourfulness").decides
    assert (first.answer, first.effect) == ("no", "1 of 2 fall: contrast")
    assert (second.answer, second.effect) == ("yes", "0 of 2 fall")
    paper = [row for row in ROWS if row.name == "paper_1"]
    assert holding(paper, results, "colourfulness").decides[0].answer == "unknown"
