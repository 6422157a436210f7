"""The toy of V.I.P.'s appendix E: exact mixtures, the rule of what is outside, training on pairs, and its command."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import Said, compose, fingerprint
from test_launch import sentence

from dollar.cli.build.toy import setting_of
from dollar.losses.preference import margin
from dollar.studies.results import Results
from dollar.studies.toy import study
from dollar.studies.toy.modes import WITHIN, Modes
from dollar.studies.toy.network import SCHEDULE, denoiser_of, native_of, new_perceptron, samples_of
from dollar.studies.toy.reasons import order
from dollar.studies.toy.rows import LABELS, OBJECTIVES, REDPO, SFT
from dollar.studies.toy.seeds import generator_of
from dollar.studies.toy.training import Course, Material, Pairs, distil, errors_of, excess, find_pairs

MODES = Modes([3, 1], [[-2, 0.5], [2, 0]], [0.4, 0.2])


def within_three_errors(counts: list[int], shares: list[float]) -> None:
    """Counts of independent samples against their probabilities."""
    total = sum(counts)
    for count, share in zip(counts, shares, strict=True):
        assert abs(count - total * share) <= 3 * math.sqrt(total * share * (1 - share)), (counts, shares)


def test_exact_samples_are_in_the_modes_by_their_weights() -> None:
    assert pytest.approx(0.988891, abs=1e-6) == WITHIN
    shares = [1 - WITHIN, 0.75 * WITHIN, 0.25 * WITHIN]
    within_three_errors(MODES.counts(MODES.draw(40_000, generator_of(0, "draw"))), shares)
    # ... and so are those that the exact denoiser makes of noise, by the sampler that all networks have.
    within_three_errors(
        MODES.counts(samples_of(MODES.denoiser(SCHEDULE), 8000, 200, generator_of(0, "sample"))), shares
    )


def test_the_exact_denoiser_is_the_mean_of_the_data_given_the_noised() -> None:
    """Against draws of the mixture weighed by how likely they lead to x_t."""
    x_0 = MODES.draw(400_000, generator_of(1, "draw"))
    x_t = torch.tensor([[-0.8, 0.3], [0.1, -0.2], [1.0, 0.1]])
    for time in (0.4, 0.7, 0.95):
        found = MODES.denoiser(SCHEDULE)(x_t, torch.full((3,), time))
        away = (x_t[:, None] - (1 - time) * x_0).square().sum(-1)
        wanted = torch.softmax(-away / (2 * time**2), 1) @ x_0
        assert torch.allclose(found, wanted, atol=0.02), (time, found, wanted)


def test_what_is_outside() -> None:
    modes = Modes([1, 1], [[0, 0], [10, 0]], [1, 2])
    points = [[0, 0], [2.99, 0], [3.01, 0], [0, -2.99], [2.2, 2.2], [3.99, 0], [4.01, 0], [10, 5.99], [10, 6.01]]
    places = [1, 1, 0, 1, 0, 0, 2, 2, 0]
    assert modes.of(torch.tensor([*points, [math.nan, 0], [math.inf, 0]])).tolist() == [*places, 0, 0]
    assert modes.counts(torch.tensor(points)) == [4, 3, 2]


def test_an_error_beyond_the_exact_one() -> None:
    class Off(torch.nn.Module):
        def forward(self, x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return native_of(MODES.denoiser(SCHEDULE), x_t, t) + torch.tensor([0.3, -0.1])

    assert excess(Off(), MODES, 500, generator_of(0, "excess")) == pytest.approx((0.09 + 0.01) / 2, rel=1e-4)


def test_winner_and_loser_share_time_and_noise() -> None:
    """A pair of one point twice has no margin, so beside SFT its preference adds no gradient; other pairs add one."""
    teacher, base = new_perceptron(4, 64, 1), new_perceptron(2, 32, 2)
    points = MODES.draw(64, generator_of(0, "draw"))
    same, other = Pairs(points, points), Pairs(points, points.flip(0))
    errors = errors_of(base, teacher, same, generator_of(0, "errors"))
    assert torch.equal(errors.winner, errors.loser) and torch.equal(errors.winner_ref, errors.loser_ref)
    assert not margin(*errors[:4]).any() and (errors.winner - errors.winner_ref).abs().min() > 0

    def moved(pairs: Pairs, name: str) -> torch.Tensor:
        material = Material(teacher, base, pairs, points)
        draws = generator_of(0, "distil"), generator_of(0, "apart")
        made = distil(material, OBJECTIVES[name], Course(5, 16, 1e-3), 5000.0, 1e4, *draws)
        return fingerprint(made) - fingerprint(base)

    assert torch.allclose(moved(same, SFT), moved(same, REDPO), atol=1e-5)
    assert torch.equal(moved(same, SFT), moved(other, SFT)), "SFT never reads the loser"
    assert not torch.allclose(moved(other, SFT), moved(other, REDPO), atol=1e-4)


def test_pairs_are_the_teachers_in_the_mode_and_the_students_outside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    networks = [new_perceptron(1, 8, seed) for seed in (0, 1)]
    made = samples_of(denoiser_of(networks[0]), 4000, 4, generator_of(0, "look"))
    wide = Modes([1, 1], [made.mean(0).tolist(), [50, 0]], [made.std().item(), 1.0])  # nearly all are in the first
    pairs = find_pairs(*networks, wide, 1, 100, 4, generator_of(0, "pairs"))
    assert len(pairs.winners) == len(pairs.losers) == 100
    assert (wide.of(pairs.winners) == 1).all() and (wide.of(pairs.losers) != 1).all()
    monkeypatch.setattr("dollar.studies.toy.training.TRIES", 1)
    with pytest.raises(ValueError, match="10,000 samples of the teacher 0 are in mode 2, and pairs is 100"):
        find_pairs(*networks, wide, 2, 100, 4, generator_of(0, "pairs"))


TINY = (
    *("samples=200", "steps=4", "pairs=16", "sds=[0.3,0.3]", "distillation.batch=8", "distillation.updates=2"),
    *(f"{name}.{key}" for name in ("teacher", "base") for key in ("updates=40", "batch=64", "width=16")),
)


def test_the_toy_in_its_smallest_form(
    command: Callable[..., Said], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ended within its second seed it goes on there, and no seed is made twice; what it makes is the same."""
    made: list[int] = []
    once = study.one_seed

    def counted(setting, seed, done):
        if seed == 1 and made == [0]:
            made.append(-1)
            raise KeyboardInterrupt
        made.append(seed)
        return once(setting, seed, done)

    monkeypatch.setattr(study, "one_seed", counted)
    given = ("seeds=2", *TINY)
    with monkeypatch.context() as undrawn:
        undrawn.setattr(study, "write_page", lambda *given: None)  # a page is looked at below
        assert command("toy", f"out={tmp_path / 'ended'}", *given).code == 130 and made == [0, -1]
        said = command("toy", f"out={tmp_path / 'ended'}", *given)
    assert (said.code, made) == (0, [0, -1, 1]) and "1 of 2 seeds are known" in said.out
    assert command("toy", f"out={tmp_path / 'whole'}", *given).code == 0 and made[3:] == [0, 1]

    def rows(name: str) -> dict[str, dict]:
        found = json.loads((tmp_path / name / "toy" / "results.json").read_text())["rows"]
        return {key: {k: v for k, v in row.items() if k != "seconds"} for key, row in found.items()}

    assert rows("ended") == rows("whole") and set(rows("whole")) == {f"{n}/{seed}" for n in LABELS for seed in (0, 1)}
    for row in rows("whole").values():
        assert row["outside"] + row["mode_1"] + row["mode_2"] == 200
    page = (tmp_path / "whole" / "toy.md").read_text()
    assert "seeds 0, 1" in page and "](toy/samples.svg)" in page and "](toy/counts.svg)" in page
    base = Results(tmp_path / "whole" / "toy" / "results.json").spread("base", "mode_1")
    assert f"| base student | {base.mean:.0f} ± {base.sd:.0f} |" in page
    drawn = (tmp_path / "whole" / "toy" / "samples.svg").read_text()
    assert all(label in drawn for label in LABELS.values())
    sentence(
        command("toy", f"out={tmp_path / 'whole'}", *given, "beta=10", "teacher.lr=0.01"),
        *("results of another setting", "teacher.lr was 0.002 and is 0.01", "beta was 5000 and is 10"),
    )
    assert rows("ended") == rows("whole"), "a refused command changes nothing"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("weights=[1]", ("1 weights, 2 centres and 2 sds",)),
        ("weights=[1,-1]", ("weights is", "positive")),
        ("centres=[[0,0],[1]]", ("centres is", "x and y")),
        ("sds=[0.3,0.5]", ("modes 1 and 2 are 2 apart", "are 2.4")),
        ("preferred=3", ("preferred is 3", "1 to 2")),
        ("base.layers=0", ("base.layers is 0",)),
        ("distillation.lr=1", ("distillation.lr is 1",)),
        ("steps=0", ("steps is 0",)),
        ("sft_weight=0", ("sft_weight is 0", "positive")),
        ("seeds=0", ("seeds is 0",)),
    ],
)
def test_what_cant_be_is_said_before_anything(
    command: Callable[..., Said], tmp_path: Path, given: str, words: tuple[str, ...]
) -> None:
    sentence(command("toy", f"out={tmp_path / 'out'}", given), *words)
    assert not (tmp_path / "out").exists()


def test_whether_the_order_is_had_is_said_of_the_means(tmp_path: Path) -> None:
    """Of counts by hand: SFT on winners is above the base student and SFT on all modes isn't, and so on."""
    outside = {"exact": 1, "full": 2, "base": 20, "sft": 30, "dpo": 25, "redpo": 10, "sft_all": 15, "redpo_all": 16}
    results = Results(tmp_path / "results.json")
    for name, count in outside.items():
        for seed, by in ((0, -5), (1, 5)):
            modes = {"mode_1": 60 if name == "dpo" else 70, "mode_2": 30}
            results.put(name, seed, {"figures": {}, "outside": count + by, **modes})
    keys = setting_of(compose("toy")).plain()
    assert keys["sds"] == [0.3, 0.05] and keys["base"]["width"] == 32 and keys.keys() <= compose("toy").keys()
    lines = order(setting_of(compose("toy")), results)
    assert [line.split("**")[1] for line in lines] == ["had", "had", "not had", "not had", "had"]
    assert lines[1].endswith("In order: DPO + SFT on winners 10, base student 20, DPO 25, SFT on winners 30.")
    assert lines[4].endswith("Of the base student's 70 samples there 60 are left.")
