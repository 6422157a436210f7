"""Rewards that tell no clips apart, and rewards that are no numbers: what a run says of them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from conftest import TINY_DATA, TINY_RUN, Said
from test_log import board
from torch import Tensor

from dollar.methods import reward_spread
from dollar.methods.reward_spread import CYCLES, RewardSpread
from dollar.surrogate.fit import check_measured
from dollar.surrogate.observations import ScoredClip
from dollar.training.loop import Loop


class Constant:
    """A reward that gives every clip the same, up to float32's rounding."""

    def score(self, videos: Tensor, prompts: Sequence[str]) -> Tensor:
        return torch.full((len(videos),), 0.3) * (1 + 1e-7 * (videos[:, 0, 0, 0, 0].cpu() > 0.5))


class Never(Constant):
    """A reward that is never a number."""

    def score(self, videos: Tensor, prompts: Sequence[str]) -> Tensor:
        return torch.full((len(videos),), math.inf)


def test_a_reward_is_noise_where_no_two_clips_differ_by_more_than_rounding() -> None:
    spread = RewardSpread()
    for cycle in range(CYCLES):
        assert spread.trouble() == ""
        spread.see(cycle, torch.tensor([1000.0, 1000.0005, math.nan]))
        spread.see(cycle, torch.tensor([1000.0]))  # another term's look, in the same cycle
    assert (spread.cycles, spread.clips) == (CYCLES, 3 * CYCLES)
    assert f"the reward is 1000 for all {3 * CYCLES} clips of {CYCLES} cycles, so what is learned" in spread.trouble()
    spread.see(CYCLES, torch.tensor([1000.002]))  # 2e-6 of it: more than rounding
    assert spread.width == pytest.approx(0.002, rel=0.1)
    again = RewardSpread()
    again.load(json.loads(json.dumps(spread.state())))
    assert again.state() == spread.state()
    assert RewardSpread().state()["lowest"] == "inf" and math.isnan(RewardSpread().width)


def test_a_reward_that_differs_between_batches_alone_is_named_too() -> None:
    spread = RewardSpread()
    for cycle in range(CYCLES):
        assert spread.trouble() == ""
        spread.see(cycle, torch.full((4,), float(cycle)))
    assert f"in each of the last {CYCLES} cycles all clips got one and the same reward" in spread.trouble()
    spread.see(CYCLES, torch.tensor([0.0, 1.0]))
    assert spread.trouble() == "" and spread.flat == 0
    for cycle in range(100, 100 + 2 * CYCLES):
        spread.see(cycle, torch.tensor([float(cycle)]))  # one clip a batch says nothing
    assert spread.trouble() == ""


@pytest.mark.parametrize("loss", [(), ("loss=ddpo", "beta_ft=0", "student.steps=[4]")])
def test_a_run_says_so_in_its_log_its_curves_and_at_its_end(
    command: Callable[..., Said],
    tiny_teacher_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    loss: tuple[str, ...],
) -> None:
    monkeypatch.setattr(reward_spread, "CYCLES", 2)
    given = (*TINY_RUN, *TINY_DATA, f"runs={tmp_path}", f"teacher.folder={tiny_teacher_folder}", "run=same", *loss)
    said = command("train", *given, "reward._target_=test_reward_spread.Constant")
    assert said.code == 0, said.err
    first, last = [line for line in said.out.splitlines() if "the reward is 0.3 for all" in line]
    assert first.startswith("note: cycle 2: ") and "of 2 cycles" in first
    assert last.startswith("note: the reward") and "of 3 cycles" in last
    assert said.out.index(last) > said.out.index("the student of cycle 3 is in")
    (text,) = board(tmp_path / "same").Tensors("notes/text_summary")
    assert text.step == 2 and b"the reward is 0.3 for all" in text.tensor_proto.string_val[0]
    rows = [json.loads(line) for line in (tmp_path / "same" / "metrics.jsonl").read_text().splitlines()]
    assert all(0 <= row["reward/spread"] <= 1e-7 for row in rows)
    if not loss:  # without the term that follows it, nothing is said
        said = command("train", *given, "run=without", "reward._target_=test_reward_spread.Constant", "beta_ft=0")
        assert said.code == 0 and "note:" not in said.out


def test_what_got_no_reward_is_counted_at_the_end(build: Callable[..., Loop]) -> None:
    loop = build("reward._target_=test_reward_spread.Never", "cycles=2")
    assert loop.train()
    troubled, uncounted = loop.remarks()  # of two real and two generated clips in each of two cycles
    assert troubled.startswith(
        "at the end 2 cycles in a row gave no reward that is a number (the last time, Never gave inf"
    )
    assert uncounted == "none of 8 clips got a reward that is a number, so no reward was followed"


def test_figures_that_are_not_defined_are_explained(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [("real", ScoredClip(i, i, "a", 0.5)) for i in range(3)]
    varied = [*rows, ("real", ScoredClip(3, 3, "a", 0.75))]
    check_measured({"watched": rows, "held-out": varied})
    said = capsys.readouterr().out
    assert said.count("note:") == 1 and "all 3 rewards of the watched clips are 0.5, so R^2" in said
