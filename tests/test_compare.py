"""A study's results: kept, averaged over seeds, compared seed by seed, and their curves."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from dollar.studies.compare import (
    Comparison,
    Gaps,
    Spread,
    compare,
    half_interval,
    rank_error,
    shown,
    spread_of,
    together,
)
from dollar.studies.curves import Rise, line_of, reached, rise_of, sooner
from dollar.studies.plots import apart
from dollar.studies.results import Results, rounded


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

    def compared(better: int, *gaps: float, error: float = 0.0) -> Comparison:
        return compare("reward", ("a", a), ("b", b), better, gaps=Gaps(gaps, error))

    assert compared(1, 0.035, 0.04, 0.045).answer == "yes" and compared(-1, 0.035, 0.04, 0.045).answer == "no"
    assert compared(1, 0.02, 0.04, 0.06).answer == "undecided", "t = 3.46 of three, where 4.30 is needed"
    assert compared(1, 0.0, 0.0, 0.0).answer == "undecided" and compared(1, 0.1, 0.1).answer == "yes"
    assert compared(1, 0.039, 0.04, 0.041, error=0.025).answer == "undecided", "alike by chance"
    text = compared(1, 0.02, 0.04, 0.06).text
    assert text == "reward: a 0.740 ± 0.040, b 0.700 ± 0.040; difference 0.040 [-0.010, 0.090]"


def test_differences_are_of_the_seeds_that_both_have(tmp_path: Path) -> None:
    results = Results(tmp_path / "results.json")
    for name, seed, value in (("a", 0, 3.0), ("a", 1, 5.0), ("a", 2, 9.0), ("b", 2, 2.0), ("b", 0, 1.0)):
        results.put(name, seed, {"figures": {"4": {"clip": value, "clip_se": 0.3, "vendi": value}}})
    values, error = results.gaps("a", "b", "clip")
    assert values == [2.0, 7.0] and error == pytest.approx(0.3)  # the root of 4 * 0.09, over 2
    assert results.gaps("a", "b", "vendi") == Gaps([2.0, 7.0]) and results.gaps("a", "c", "clip") == Gaps([])


def test_chance_is_taken_for_a_difference_once_in_twenty() -> None:
    drawn = np.random.default_rng(0).standard_normal((4000, 3))
    wrong = np.mean([abs(gaps.mean()) > half_interval(Gaps(gaps)) for gaps in drawn])
    assert wrong == pytest.approx(0.05, abs=0.01)


def test_comparisons_together() -> None:
    def answer(*answers: str) -> str:
        return together([Comparison(a, "") for a in answers])

    assert answer("yes", "yes") == "yes" and answer("yes", "no") == "mixed"
    assert answer("yes", "no", "undecided") == "mixed" and answer("no", "unknown", "undecided") == "unknown"
    assert answer("no", "undecided") == "unshown" and answer("yes", "undecided") == "undecided"


def test_the_error_of_a_rank_correlation() -> None:
    """Against correlations of drawn pairs."""
    random = np.random.default_rng(0)
    first, noise = random.standard_normal((2, 4000, 50))
    ranks = [np.argsort(np.argsort(values, 1), 1) for values in (first, first + noise)]
    found = [float(np.corrcoef(a, b)[0, 1]) for a, b in zip(*ranks, strict=True)]
    assert rank_error(float(np.mean(found)), 50) == pytest.approx(np.std(found), rel=0.1)
    assert rank_error(None, 50) is None and rank_error(0.5, 0) is None


def test_nothing_has_no_sign() -> None:
    assert shown(Spread(-4e-8, 0.0, 1), "{:.2f}".format) == "0.00"
    assert shown(Spread(-0.004, 0.02, 3), "{:.2f}".format) == "0.00 ± 0.02"
    assert shown(Spread(0.004, 0.02, 3), "{:+.2f}".format) == "+0.00 ± 0.02"
    assert shown(Spread(-1.405, 0.0, 1)) == "-1.405" and shown(Spread(-0.01, 0.0, 1)) == "-0.010"


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


def test_a_line_over_seeds_has_the_cycles_that_all_have(tmp_path: Path) -> None:
    results = Results(tmp_path / "results.json")
    for seed, (pace, curve) in enumerate(((1.0, [[5, 10, 15], [0.0, 1.0, 2.0]]), (3.0, [[5, 10], [2.0, 3.0]]))):
        results.put("x", seed, {"curves": {"reward_4": curve}, "seconds_per_cycle": pace})
    line = line_of(results, "x", "reward_4", "seconds")
    assert line is not None and line.x.tolist() == [10, 20] and line.mean.tolist() == [1, 2]
    assert line.sd == pytest.approx(math.sqrt(2)) and line_of(results, "y", "reward_4") is None


def test_labels_are_moved_apart_in_their_order() -> None:
    places = [0.5, 0.52, 0.1, 0.51]
    moved = apart(places, 0.1)
    assert moved[2] == 0.1 and np.allclose(sorted(moved)[1:], [0.41, 0.51, 0.61])
    assert moved[0] < moved[3] < moved[1]
