"""The alarm: what a look is, when it acts, and what it remembers."""

from __future__ import annotations

import math

import pytest

from dollar.training.monitors.alarm import Alarm
from dollar.training.monitors.monitor import Verdict


def watched(alarm: Alarm, *values: float, first: int = 1) -> list[Verdict]:
    return [alarm.watch(cycle, {"error": value}) for cycle, value in enumerate(values, first)]


def test_a_look_is_a_mean_over_so_many_cycles() -> None:
    alarm = Alarm("error", every=2, patience=2, tolerance=0.1, action="stop")
    said = watched(alarm, 0.8, 1.2, 1.0, 1.18, 3.0, 2.0, 1.0, 1.0, 1.4, 1.4, 1.0, 1.3)
    assert [verdict.scalars for verdict in said[::2]] == [{}] * 6
    looks = [(verdict.scalars["alarm/look"], verdict.scalars["alarm/troubled"]) for verdict in said[1::2]]
    assert looks == [pytest.approx(look) for look in ((1, 0), (1.09, 0), (2.5, 1), (1, 0), (1.4, 1), (1.15, 2))]
    # The student of each look without trouble is kept, and the run ends at the second one in a row with it.
    assert [verdict.keep for verdict in said[1::2]] == [{"cycle": 2}, {"cycle": 4}, None, {"cycle": 8}, None, None]
    assert [bool(verdict.ended) for verdict in said] == [False] * 11 + [True] and alarm.prefers_kept
    assert "error, which should not rise, is 1.15 in the mean of 2 cycles and was 1 at the start" in said[-1].ended


def test_a_warning_comes_once_until_it_is_well_again() -> None:
    alarm = Alarm("error", every=1, patience=2, tolerance=0.0)
    said = watched(alarm, 1.0, 2.0, 2.0, 2.0, 1.0, 2.0, 2.0)
    assert [bool(verdict.note) for verdict in said] == [False, False, True, False, False, False, True]
    assert not any(verdict.ended or verdict.keep for verdict in said) and not alarm.prefers_kept


def test_a_start_below_zero_and_what_is_no_number() -> None:
    alarm = Alarm("error", every=1, patience=1, tolerance=0.5, action="stop", keeps=False)
    said = watched(alarm, -2.0, math.nan, -1.0, -0.5)
    assert [bool(verdict.ended) for verdict in said] == [False, False, False, True]
    assert all(verdict.keep is None for verdict in said) and "the student of the best score" in said[-1].ended
    assert alarm.watch(9, {"other": 1.0}) == Verdict() == alarm.look(9, {"error": 9.0})
    assert watched(Alarm("error", every=1, action="none"), 1.0, 9.0, 9.0, 9.0) == [Verdict()] * 4


def test_it_goes_on_within_a_look() -> None:
    values = (1.0, 1.0, 1.0, 2.0, 2.0, 2.0, 3.0, 3.0, 3.0)
    whole, before, after = (Alarm("error", every=3, patience=2, action="stop") for _ in range(3))
    expected = watched(whole, *values)
    assert watched(before, *values[:7]) == expected[:7]
    after.load_state_dict(before.state_dict())
    assert watched(after, *values[7:], first=8) == expected[7:] and expected[-1].ended


@pytest.mark.parametrize(
    ("given", "said"),
    [({"action": "lower"}, "action is 'lower'"), ({"every": 0}, "every is 0"), ({"tolerance": -1}, "tolerance is -1")],
)
def test_mistakes(given: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Alarm("error", **given)
