"""The guard against over-optimisation: when it is troubled, when it acts, and what it remembers."""

from __future__ import annotations

import math

import pytest

from dollar.training.monitors.guard import Guard


def told(guard: Guard, *checks: tuple[float, float]) -> list[str]:
    return [guard.compare(pursued, {"guard": held}) for pursued, held in checks]


def test_it_acts_after_so_many_troubled_checks_in_a_row() -> None:
    guard = Guard("stop", patience=2, tolerance=0.1)
    said = told(guard, (1.0, 0.8), (1.2, 0.9), (1.4, 0.7), (1.5, 0.85), (1.6, 0.7), (1.7, 0.6))
    assert said[:5] == [""] * 5 and not Guard("stop").stops
    assert "rose from 1.2 to 1.7" in said[5] and "fell from 0.9 to 0.6" in said[5]
    assert guard.stops


def test_a_fall_within_the_tolerance_or_of_both_is_no_over_optimisation() -> None:
    guard = Guard("stop", patience=1, tolerance=0.1)
    assert told(guard, (1.0, 1.0), (2.0, 0.91)) == ["", ""]
    assert told(guard, (0.9, 0.2)) == [""]  # a worse student, but not for the reward's sake
    assert not guard.stops


def test_the_tolerance_is_a_share_of_scores_below_zero_too() -> None:
    guard = Guard("stop", patience=1, tolerance=0.1)
    assert told(guard, (1.0, -10.0), (2.0, -10.9)) == ["", ""]
    assert "over-optimisation" in guard.compare(2.0, {"guard": -11.2})


def test_a_gradient_that_leads_nowhere_troubles_it_where_it_minds_that() -> None:
    looks = [(0.2, 0.1), (0.2, -0.1), (0.3, 0.0), (-0.1, -0.2), (0.1, -0.1), (math.nan, -0.1), (0.1, -0.3)]
    scores = [{"rise_predicted": p, "rise_true": t} for p, t in looks]
    minding = Guard("warn", patience=2, rise=True)
    notes = [minding.look(i, s).note for i, s in enumerate(scores)]
    assert [bool(note) for note in notes] == [False, False, True, False, False, False, True]
    assert "predicted to raise the reward by 0.3 and changes it by 0; this is validation 2 in a row" in notes[2]
    assert not any(Guard("warn", patience=2).look(i, s).note for i, s in enumerate(scores))
    both = Guard("lower", patience=1, rise=True)
    good = {"predicted_4": 1.0, "reward_4": 1.0, "rise_predicted": 0.1, "rise_true": 0.1}
    assert not both.look(0, good).note and both.scale == 1
    assert "should hold, fell" in both.look(1, good | {"predicted_4": 2.0, "reward_4": 0.5}).note and both.scale == 0.5
    assert "changes it by -0.1" in both.look(2, good | {"rise_true": -0.1}).note and both.scale == 0.25


def test_lowering_halves_the_weight_and_looks_again_from_there() -> None:
    guard = Guard("lower", patience=1, tolerance=0.0, factor=0.5)
    assert "weight is now 0.5" in told(guard, (1.0, 1.0), (1.5, 0.5))[1]
    assert told(guard, (1.6, 0.5)) == [""]  # held since
    assert "weight is now 0.25" in guard.compare(1.8, {"guard": 0.4})
    assert guard.scale == 0.25 and not guard.stops


def test_warning_says_so_every_time_and_none_says_nothing() -> None:
    checks = ((1.0, 1.0), (1.5, 0.5), (1.6, 0.4))
    assert [bool(s) for s in told(Guard("warn", patience=1), *checks)] == [False, True, True]
    assert told(Guard("none", patience=1), *checks) == ["", "", ""]


def test_it_goes_on_where_its_state_was_left() -> None:
    checks = ((1.0, 1.0), (1.5, 0.5), (1.6, 0.4), (1.7, 0.3))
    unbroken = Guard("lower", patience=2)
    expected = told(unbroken, *checks)
    first, second = Guard("lower", patience=2), Guard("lower", patience=2)
    said = told(first, *checks[:2])
    second.load_state_dict(first.state_dict())
    assert said + told(second, *checks[2:]) == expected and any(expected)
    assert second.state_dict() == unbroken.state_dict()


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"action": "halt"}, "guard.action is 'halt'; use none, warn, lower or stop"),
        ({"patience": 0}, "guard.patience is 0"),
        ({"tolerance": -0.1}, "guard.tolerance is -0.1"),
        ({"factor": 1.0}, "guard.factor is 1.0"),
    ],
)
def test_settings_that_cannot_be_are_told(wrong: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Guard(**wrong)


def test_what_was_not_measured_says_nothing_and_spoils_nothing() -> None:
    nan = float("nan")
    guard = Guard("stop", patience=1)
    assert told(guard, (nan, nan), (1.0, nan), (1.0, 1.0), (nan, 0.1)) == [""] * 4
    assert "fell from 1 to 0.5" in guard.compare(2.0, {"guard": 0.5})


def test_a_best_at_which_nothing_was_predicted_yet_is_held_to() -> None:
    """The look before the first cycle comes before the first fit, and is what the others are compared with."""
    guard = Guard("stop", patience=2, tolerance=0.02)
    said = told(guard, (float("nan"), 0.95), (-1.5, 0.94), (-1.4, 0.90), (-1.6, 0.89))
    assert said[:3] == [""] * 3
    assert "guard, which should hold, fell from 0.95 to 0.89 while what is pursued came to -1.6" in said[3]
    again = Guard("stop", patience=2)
    again.load_state_dict(guard.state_dict())
    assert again.best == {"guard": (0.95, None)}


def test_a_look_at_which_the_pursued_reward_failed_is_none_to_compare_with() -> None:
    guard = Guard("stop", patience=1)
    assert told(guard, (1.0, 0.90), (float("nan"), 0.99), (0.9, 0.80)) == [""] * 3
    assert "fell from 0.9 to 0.8" in guard.compare(1.1, {"guard": 0.80})


def test_each_score_that_should_hold_is_watched_by_itself() -> None:
    """What is predicted rises while the true reward falls, though a second one is as good as ever."""
    guard = Guard("stop", patience=2)
    assert guard.compare(1.0, {"reward": 0.5, "guard": 0.9}) == ""
    assert guard.compare(1.2, {"reward": 0.4, "guard": 0.9}) == ""
    assert "reward, which should hold, fell from 0.5 to 0.3 while" in guard.compare(1.3, {"reward": 0.3, "guard": 0.95})
