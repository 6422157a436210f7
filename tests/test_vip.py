"""The stages of V.I.P. as commands, and what runs them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import Said
from omegaconf import OmegaConf

from dollar.cli.build.vip import student_of
from dollar.evaluation.measures.size import Size, flops_of
from dollar.parallel.signals import Stop
from dollar.vip.jobs import Failed, Steps
from dollar.vip.loop import carry_out
from dollar.vip.report import shares
from dollar.vip.scoring import Scores
from dollar.vip.stages import Recovery, Stages, Step


def test_the_commands_of_two_stages() -> None:
    given = {"rank": ("clips=8",), "train": ("cycles=5", "loss=sft")}
    stages = Stages(Path("o"), [2, 1], ["teacher=t"], ["reward=r"], ["student.steps=[10]"], steps=10, given=given)
    first, second = stages.steps_of(1, ["blocks.1", "blocks.4"]), stages.steps_of(2, ["blocks.0"])
    assert [step.name for step in first] == [f"stage1/{verb}" for verb in ("rank", "prune", "pairs", "train", "score")]
    assert " ".join(first[0].arguments) == (
        "teacher=t reward=r steps=10 units=blocks k=2 seed=0 out=o/stage1/rank clips=8"
    )
    assert " ".join(first[1].arguments) == (
        "teacher=t steps=[10] remove=[blocks.1,blocks.4] out=o/stage1/pruned overwrite=true"
    )
    assert " ".join(second[1].arguments) == (
        "teacher=t checkpoint=o/stage1/train/student remove=[blocks.0] out=o/stage2/pruned overwrite=true"
    )
    assert " ".join(second[2].arguments) == (
        "teacher=t reward=r steps=10 checkpoint=o/stage2/pruned winners=o/winners out=o/stage2/pairs seed=0"
    )
    assert " ".join(second[3].arguments) == (
        "loss=redpo teacher=t reward=r student.steps=[10] init=o/stage2/pruned data=pairs data.path=o/stage2/pairs "
        "runs=o/stage2 run=train seed=0 cycles=5 loss=sft"
    )
    kept = Stages(Path("o"), [2, 1], fresh=False)
    assert [step.verb for step in kept.steps_of(2, [])] == ["rank", "prune", "train", "score"]
    assert "data.path=o/stage1/pairs" in kept.steps_of(2, [])[2].arguments
    # A few-step student in the teacher's place: its own times, and itself as the reference.
    few = Stages(Path("o"), [1], checkpoint="s").steps_of(1, ["blocks.1"])
    assert "reference=s" in few[2].arguments and "checkpoint=s" in few[0].arguments
    assert "preference.reference=s" in few[3].arguments
    assert {"full=false", "checkpoints=[s,o/stage1/pruned,o/stage1/train/student]"} <= set(few[4].arguments)
    with pytest.raises(ValueError, match="it has a number of units for each stage"):
        Stages(Path("o"), [1, 0])


def test_what_a_stage_won_back() -> None:
    assert Recovery(0.9, 0.5, 0.8).share == pytest.approx(0.75)
    assert Recovery(0.9, 0.95, 0.8).share == 1, "nothing was lost"
    assert "75% of the loss won back" in Recovery(0.9, 0.5, 0.8).text(1)
    assert Recovery(0.9, 0.95, 0.8).text(1).endswith("0.8000 trained; nothing was lost")


@pytest.mark.parametrize("masked", [False, True])
def test_attention_counts_on_a_cpu_too(masked: bool) -> None:
    q, k = torch.randn(2, 3, 5, 8), torch.randn(2, 3, 7, 8)  # [B, heads, tokens, width]
    mask = torch.zeros(5, 7) if masked else None
    both = flops_of(lambda: torch.nn.functional.scaled_dot_product_attention(q, k, k, attn_mask=mask))
    assert both == 2 * (2 * 2 * 3 * 5 * 7 * 8)  # queries with keys, and their weights with values
    assert flops_of(lambda: torch.randn(4, 5) @ torch.randn(5, 6)) == 2 * 4 * 5 * 6


def test_the_sizes_told_are_those_of_the_student() -> None:
    found = {"full": Size(100, 200, 4.0), "stage 1": Size(80, 150, 3.0), "stage 2": Size(50, 100, 2.0)}
    assert shares(found, "stage 1") == "20.0% fewer parameters, 25.0% fewer operations, 25.0% less time for a forward"


PLAY = """
import json, sys
from pathlib import Path
given = dict(word.partition("=")[::2] for word in sys.argv[1:])
with Path("calls").open("a") as calls:
    calls.write(f"{Path(sys.argv[0]).stem} {given.get('out', given.get('init'))}\\n")
if Path("broken").exists() and Path(sys.argv[0]).stem == "pairs":
    sys.exit("pairs.py: no pair passes")
out = Path(given.get("out", "elsewhere"))
if "prune" in sys.argv[0]:
    if out.exists() and given.get("overwrite") != "true":
        sys.exit("prune.py: out is not empty")
    out.mkdir(parents=True, exist_ok=True)
if "rank" in sys.argv[0]:
    out.mkdir(parents=True, exist_ok=True)
    (out / "ranking.json").write_text(json.dumps({"chosen": ["blocks.1"]}))
"""


@pytest.fixture
def play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in whose launch/ are commands that only write down that they ran."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "launch").mkdir()
    for verb in ("rank", "prune", "pairs", "train", "score"):
        (tmp_path / "launch" / f"{verb}.py").write_text(PLAY)
    return tmp_path


def scores(stages: Stages, totals: dict[str, float]) -> None:
    stages.scores.mkdir(parents=True, exist_ok=True)
    found = Scores({}, {})
    for label, total in totals.items():
        found.add(label, "w", {"a": torch.tensor([total, total])})
    found.write(stages.scores / "scores.json")


def test_no_step_is_run_twice_and_a_failed_one_is_told(play: Path) -> None:
    stages = Stages(Path("out"), [1, 1])
    won = {"full": 0.9, "out/stage1/pruned": 0.3, "out/stage1/train/student": 0.8}
    scores(stages, {**won, "out/stage2/pruned": 0.4, "out/stage2/train/student": 0.5})
    (play / "broken").touch()
    with pytest.raises(Failed, match=r"stage1/pairs failed: no pair passes \(its log is out/logs/stage1-pairs.log\)"):
        carry_out(stages, Steps(Path("out"), play), Stop(), 0.5, "full")
    (play / "broken").unlink()
    result = carry_out(stages, Steps(Path("out"), play), Stop(), 0.5, "full")
    calls = [line.split()[0] for line in (play / "calls").read_text().splitlines()]
    assert calls == ["rank", "prune", "pairs", "pairs", "train", "score", "rank", "prune", "pairs", "train", "score"]
    # The second stage won back 0.1 of 0.4, less than half: the student is that of the first.
    assert result is not None and result.student == "out/stage1/train/student"
    assert [stage.share for stage in result.stages] == pytest.approx([5 / 6, 0.25])
    assert result.ended.startswith("stage 2 won back 25% of what it lost, and give_up is 0.5")
    kept = json.loads((play / "out" / "steps.json").read_text())
    assert (
        kept["stage1/prune"]["command"]
        == "python launch/prune.py 'steps=[50]' 'remove=[blocks.1]' out=out/stage1/pruned overwrite=true"
    )
    assert carry_out(stages, Steps(Path("out"), play), Stop(), 0.2, "full").ended == ""  # type: ignore[union-attr]
    assert len((play / "calls").read_text().splitlines()) == 11, "nothing was run again"


def test_a_step_that_ended_and_was_not_noted_is_made_again(play: Path) -> None:
    stages = Stages(Path("out"), [1])
    scores(stages, {"full": 0.9, "out/stage1/pruned": 0.3, "out/stage1/train/student": 0.1})
    result = carry_out(stages, Steps(Path("out"), play), Stop(), 0, "full")
    assert result is not None and result.ended == "", "give_up=0 is never, even where more was lost"
    notes = play / "out" / "steps.json"
    kept = json.loads(notes.read_text())
    for name in kept:  # killed between the step's end and its note
        notes.write_text(json.dumps({other: step for other, step in kept.items() if other != name}))
        assert carry_out(stages, Steps(Path("out"), play), Stop(), 0, "full") == result, name


def test_a_stage_in_which_nothing_fell(play: Path) -> None:
    stages = Stages(Path("out"), [1, 1], unfallen="skip")
    (play / "out" / "stage1" / "pairs").mkdir(parents=True)
    (play / "out" / "stage1" / "pairs" / "pairs.json").write_text('{"targets": []}')
    scores(stages, {"full": 0.9, "out/stage1/pruned": 0.9, "out/stage2/pruned": 0.8, "out/stage2/train/student": 0.9})
    result = carry_out(stages, Steps(Path("out"), play), Stop(), 0.5, "full")
    calls = [line.split()[0] for line in (play / "calls").read_text().splitlines()]
    assert calls == ["rank", "prune", "pairs", "score", "rank", "prune", "pairs", "train", "score"]
    assert stages.before(2) == "out/stage1/pruned" and result is not None and len(result.stages) == 2
    trained = Stages(Path("out"), [1, 1]).steps_of(1, ["blocks.1"])[3]
    assert trained.verb == "train" and trained.arguments[0] == "loss=sft"


def test_a_stop_ends_the_command_and_a_killed_ones_child_is_waited_for(play: Path) -> None:
    stop = Stop()
    stop.requested = True
    assert carry_out(Stages(Path("out"), [1]), Steps(Path("out"), play), stop, 0.5, "full") is None
    assert not (play / "out" / "steps.json").exists()
    import subprocess

    slow = play / "launch" / "slow.py"
    slow.write_text("import time\ntime.sleep(1.5)\n")
    child = subprocess.Popen([sys.executable, str(slow)])
    (play / "out").mkdir(exist_ok=True)
    (play / "out" / "running.json").write_text(json.dumps({"process": child.pid}))
    steps = Steps(Path("out"), play)
    import threading

    threading.Thread(target=child.wait).start()  # a zombie still has its number
    assert steps.run(Step("stage1/rank", "rank", ("out=out/r",)), Stop())
    assert child.poll() == 0, "it had ended before the command began"


def test_what_a_later_step_would_refuse_is_told_at_once(command: Callable[..., Said], tmp_path: Path) -> None:
    out = tmp_path / "vip"
    card = {"teacher_name": "shapes_deep", "timesteps": [999], "steps": [1], "between": "ddim"}
    (tmp_path / "student.json").write_text(json.dumps(card))
    refused = {
        (f"checkpoint={tmp_path}",): "is one of the teacher shapes_deep, and teacher is shapes",
        (
            "parallel.dtype=float32",
            "parallel.teacher_dtype=bfloat16",
        ): "stage1/train, launch/train.py: parallel.dtype",
        ("score=[clips=1]",): "stage1/score, launch/score.py: clips is 1; it must be at least 2",
        ("steps=10", "evaluate=[teacher_clips=0]"): "evaluate, launch/evaluate.py: teacher_clips is 0, but",
        ("reward=flicker",): "named values (`scores`), and reward is dollar.rewards.flicker.Flicker; use reward=shapes",
        ("reward=none",): "named values (`scores`), and reward is none; use reward=shapes",
        ("steps=5000",): "stage1/rank, launch/rank.py: steps is 5000, which this teacher's scheduler can't take",
        ("rank=[prompts=/nowhere]",): "the prompt file /nowhere does not exist",
        ("rank=[k=2]",): "rank has k=2, but each stage gives k itself; leave it out",
        ("train=[run=mine]",): "train has run=mine, but each stage gives run itself; leave it out",
        ("stages=[2,1]",): "stages is [2, 1], 3 units in all, and there are 3 blocks; leave at least one",
    }
    for given, sentence in refused.items():
        said = command("vip", "teacher=shapes", "stages=[1]", f"out={out}", *given)
        assert said.code == 2 and sentence in said.err, said.err
    assert not out.exists()


@pytest.mark.parametrize(("guided", "times"), [(True, "uniform"), (False, "student")])
def test_a_student_is_trained_at_the_times_that_it_is_sampled_at(tmp_path: Path, guided: bool, times: str) -> None:
    card = {"teacher_name": "shapes", "timesteps": [999, 499], "steps": [2], "between": "ddim", "guided": guided}
    (tmp_path / "student.json").write_text(json.dumps(card))
    assert student_of(OmegaConf.create({"checkpoint": str(tmp_path), "steps": 10})) == [
        "student.timesteps=[999,499]",
        "student.steps=[2]",
        "student.between=ddim",
        f"student.guided={str(guided).lower()}",
        f"preference.times={times}",
    ]
