"""What each unit is worth: the rule that chooses on tables made by hand, the measures, and launch/rank.py."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import TINY, Said, fork, free_port, load_tiny_teacher
from omegaconf import OmegaConf

from dollar.cli.build.ranking import prompts_of
from dollar.models.units import Unit, without
from dollar.parallel.world import World
from dollar.sampling.samplers import teacher_sampler
from dollar.vip.measuring import Ranker
from dollar.vip.ranking import Table, Worth, spearman
from dollar.vip.scoring import Requests, Scores

# Of a whole network and five units: two properties, of which the second is the consistency.
#            total: c 0.85, a 0.8, b 0.75, d 0.6, e 0.2          consistency: b 0.9, d 0.8, a 0.75, c 0.7, e 0.1
SCORES = {"a": (0.85, 0.75), "b": (0.6, 0.9), "c": (1.0, 0.7), "d": (0.4, 0.8), "e": (0.3, 0.1)}


@pytest.fixture
def table() -> Table:
    rows = {u: Worth({"look": look, "steady": steady}, 0, 1 - look, steady) for u, (look, steady) in SCORES.items()}
    return Table(list("abcde"), ["look", "steady"], "steady", Worth({"look": 0.9, "steady": 0.9}), rows)


def test_the_rule_on_a_table_by_hand(table: Table) -> None:
    assert table.order("total") == ["c", "a", "b", "d", "e"] and table.order("steady") == ["b", "d", "a", "c", "e"]
    # One is wanted: the best one of both lists differ, the best two ({c, a} and {b, d}) too; of the best three a and b
    # are in both, and a has the higher total.
    assert table.chosen(1) == ["a"] and table.chosen(2) == ["a", "b"]
    assert table.chosen(3) == ["c", "a", "b"], "of the best four all but e are in both"
    assert table.chosen(1, rule="total") == ["c"] and table.chosen(2, rule="total") == ["c", "a"]
    assert table.chosen(2, by="prediction") == ["c", "a"] and table.chosen(2, by="influence") == ["e", "c"]


def test_units_that_are_alike_in_consistency_go_by_the_total(table: Table) -> None:
    for unit, worth in table.rows.items():
        assert worth.scores is not None
        table.rows[unit] = Worth({**worth.scores, "steady": 0.5}, prediction=worth.prediction)
    # Consistency says nothing, so that both lists are c, a, b, d, e; the network's order would choose a.
    assert table.chosen(1) == ["c"] and table.chosen(2) == ["c", "a"] and table.chosen(4) == ["c", "a", "b", "d"]


def test_what_can_not_be_chosen_is_told(table: Table) -> None:
    with pytest.raises(ValueError, match="k is 6; of 5 units 5 are ranked"):
        table.chosen(6)
    del table.rows["b"]
    assert table.chosen(1) == ["a"] and "b" not in table.order("total"), "a unit that is off the shortlist"
    table.rows = {unit: Worth({"look": 0.5, "steady": 0.5}) for unit in "abcde"}
    with pytest.raises(ValueError, match="all 5 units are worth the same by reward"):
        table.chosen(1)


def test_rank_correlation() -> None:
    assert spearman([1, 2, 3, 4], [10, 20, 40, 30]) == pytest.approx(0.8)  # 1 - 6 * 2 / (4 * 15)
    assert math.isnan(spearman([1, 1, 1], [1, 2, 3]))


class Bright:
    """Two values: the brightness, and of clips of odd numbers no number."""

    consistency = "odd"

    def scores(self, videos: torch.Tensor, prompts: list[str]) -> dict[str, torch.Tensor]:
        mean = videos.flatten(1).mean(1)
        return {"mean": mean, "odd": torch.where(torch.tensor(["red" in p for p in prompts]), math.nan, 1 - mean)}


def test_measures_are_what_they_say(tiny_teacher_folder: Path) -> None:
    teacher = load_tiny_teacher(tiny_teacher_folder)
    prompts = [
        "a small red circle moving left on a black background",
        "a small blue circle moving up on a gray background",
    ]
    sampler = teacher_sampler(teacher, 2)
    ranker = Ranker(
        teacher, teacher.denoiser, sampler, Bright(), Requests(prompts * 2, [0, 1, 2, 3], 3), World(), looks=2
    )
    worth = ranker.scored(Unit("transformer_blocks", 1))
    assert worth.unscored == 2 and worth.scores is not None
    assert worth.scores["mean"] == pytest.approx(1 - worth.scores["odd"]), "over the clips that have both"
    assert worth.scores != ranker.scored().scores
    # The change of the output, and the cosine of a block's input and output, from what the network itself gives.
    x_t, t, condition = ranker._looks()
    network = teacher.denoiser.network
    unit, lists = Unit("transformer_blocks", 1), teacher.family.block_lists
    with torch.no_grad():
        (before, after), whole = network.hidden(x_t, t, condition, [0, 1]), network(x_t, t, condition)
        with without(network.transformer, [unit], lists):
            change = network(x_t, t, condition) - whole
    assert ranker.prediction(unit) == pytest.approx(float(change.square().mean()), rel=1e-5)
    cosine = torch.nn.functional.cosine_similarity(before, after, dim=-1).mean()
    found = ranker.influence([unit, unit._replace(half="attention"), unit._replace(half="feed_forward")])
    assert found[str(unit)] == pytest.approx(1 - float(cosine), abs=1e-6)
    assert len(found) == 3 and all(value > 0 for value in found.values())
    assert found[f"{unit}.attention"] != found[f"{unit}.feed_forward"]


@pytest.fixture
def keys(tiny_teacher_folder: Path, tmp_path: Path) -> list[str]:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("".join(f"a red circle, number {i}\n" for i in range(6)))
    numbers = [f"teacher.{key}={value}" for key, value in TINY.items()]
    reward = ["reward=mixture", "reward.weights.colourfulness=1", "reward.weights.flicker=1", "consistency=flicker"]
    teacher = ["teacher.name=tiny", f"teacher.folder={tiny_teacher_folder}", *numbers, "parallel.device=cpu"]
    return [*teacher, *reward, f"prompts={prompts}", "clips=5", "steps=2", "batch=2", "looks=2", "units=halves"]


def sentence(said: Said, part: str) -> None:
    assert said.code == 2 and part in said.err and "Traceback" not in said.err, said.err


def test_ranking_goes_on_and_is_the_same_in_two_processes(
    command: Callable[..., Said], keys: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = command("rank", *keys, f"out={tmp_path / 'whole'}")
    assert said.code == 0, said.err
    whole = (tmp_path / "whole" / "ranking.json").read_bytes()
    assert said.out.count("   goes") == 1 and "<svg" in (tmp_path / "whole" / "ranking.svg").read_text()
    table = json.loads(whole)
    assert table["units"] == [
        f"transformer_blocks.{i}.{half}" for i in (0, 1) for half in ("attention", "feed_forward")
    ]
    # Killed between units: none is made twice.
    made: list[str] = []
    scored = Ranker.scored

    def count(self: Ranker, unit: Unit | None = None) -> Worth:
        if len(made) == 3:
            made.append("killed")
            raise KeyboardInterrupt
        made.append(str(unit))
        return scored(self, unit)

    monkeypatch.setattr(Ranker, "scored", count)
    assert command("rank", *keys, f"out={tmp_path / 'killed'}").code == 130
    assert command("rank", *keys, f"out={tmp_path / 'killed'}").code == 0
    monkeypatch.undo()
    assert made == ["None", *table["units"][:2], "killed", *table["units"][2:]]
    assert (tmp_path / "killed" / "ranking.json").read_bytes() == whole
    # What is only chosen from may be said anew; what was measured may not.
    assert command("rank", *keys, f"out={tmp_path / 'killed'}", "k=2", "rule=total").out.count("   goes") == 2
    sentence(command("rank", *keys, f"out={tmp_path / 'killed'}", "seed=1"), "seed was 0, now 1")
    port = str(free_port())
    (tmp_path / "out").mkdir()
    given = [*keys, f"out={tmp_path / 'two'}", "parallel.timeout_minutes=1"]
    both = [fork(tmp_path / "out", "rank", *given, rank=rank, size=2, port=int(port)) for rank in (0, 1)]
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0], (tmp_path / "out" / "0.out").read_text()
    assert (tmp_path / "two" / "ranking.json").read_bytes() == whole


def test_mistakes_are_sentences(command: Callable[..., Said], keys: list[str], tmp_path: Path) -> None:
    keys = [*keys, f"out={tmp_path / 'no'}"]
    sentence(command("rank", *keys, "k=4"), "k is 4, which leaves nothing of 4 halves; give at most 3")
    alone = [key for key in keys if "weights" not in key and "reward" not in key]
    said = command("rank", *alone, "reward=flicker")
    sentence(said, "ranking needs a reward with named values (`scores`), and reward is Flicker")
    sentence(
        command("rank", *keys, "consistency=beauty"), "looks at one of the reward's values, colourfulness, flicker"
    )
    sentence(command("rank", *keys, "properties=[beauty]"), "properties has beauty; the reward gives colourfulness")
    sentence(command("rank", *keys, "properties=[flicker,flicker]"), "each once, or give null for all")
    sentence(command("rank", *keys, "properties=[]"), "properties is []; name some of colourfulness, flicker")
    sentence(command("rank", *keys, "reward.weights.flicker=-1"), "reward.weights.flicker is below 0")
    sentence(command("rank", *keys, "shortlist=1", "k=2"), "shortlist is 1, but k=2 units are to be chosen")
    sentence(command("rank", *keys, "prompts=null"), "tiny is no teacher of the shapes world; give prompts=FILE")
    assert not (tmp_path / "no" / "ranking.json").exists()
    said = command("rank", *keys, "by=prediction", "k=2")
    assert said.code == 0 and said.out.count("   goes") == 2 and "whole network" not in said.out


def test_prompts_come_more_than_once_where_there_are_fewer_than_clips(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("a\nb\nc\n")
    for clips, expected in ((2, "ac"), (3, "abc"), (5, "aabcc")):
        config = OmegaConf.create({"prompts": str(file), "clips": clips})
        found = "".join(prompts_of(config))
        assert len(found) == clips and {*found} == {*expected} and found == "".join(sorted(found))


def test_networks_are_scored_once_each(command: Callable[..., Said], keys: list[str], tmp_path: Path) -> None:
    keys = [key for key in keys if not key.startswith(("consistency", "looks", "units"))]
    teacher = [key for key in keys if key.startswith(("teacher", "parallel"))]
    pruned = str(tmp_path / "pruned")
    prune = ("prune", *teacher, "remove=[transformer_blocks.1]", f"out={pruned}", "steps=[2]", "repeats=0")
    assert command(*prune).code == 0
    score = ("score", *keys, f"checkpoints=[{pruned}]", f"out={tmp_path / 'scores'}")
    said = command(*score)
    assert said.code == 0, said.err
    path = tmp_path / "scores" / "scores.json"
    found = Scores.read(path)
    assert list(found.values) == ["full", pruned] and "minus full, 95 %" in said.out
    # The mean of the two values clip by clip, and the difference between the networks.
    by_hand = [(a + b) / 2 for a, b in zip(*found.values[pruned].values(), strict=True)]
    assert found.total(pruned).tolist() == pytest.approx(by_hand) and len(by_hand) == 5
    difference = found.difference(pruned, "full", [str(i) for i in range(5)])
    assert difference.difference == pytest.approx(found.mean(pruned) - found.mean("full"))
    assert difference.low <= difference.difference <= difference.high
    before = path.stat().st_mtime_ns
    assert command(*score).out == said.out and path.stat().st_mtime_ns == before, "nothing is scored twice"
    sentence(command("score", *keys, "full=false", f"out={tmp_path / 'none'}"), "there is nothing to score")
    sentence(command(*score[:-1], "out="), "out is empty")
    said = command("score", *keys, f"out={tmp_path / 'alone'}")
    assert said.code == 0 and "full" in said.out, "the teacher by itself"
    # What is no number is counted, and where there is nothing else it is said.
    scores = Scores({}, {})
    scores.add("a", "", {"x": torch.tensor([0.5, math.nan, 0.1]), "y": torch.tensor([0.5, 0.2, 0.1])})
    assert "1 of 3 clips got no score and are left out" in scores.table("a", ["p", "q", "r"])
    assert scores.mean("a") == pytest.approx(0.3)
    with pytest.raises(ValueError, match="no clip got a score that is a number"):
        scores.add("b", "", {"x": torch.tensor([math.nan, 1.0]), "y": torch.tensor([1.0, math.nan])})
    sentence(command(*score[:-2], score[-1], f"checkpoints=[{pruned},{pruned}/]"), "name each folder once")
    said = command(*[word for word in score[:-1] if word != "steps=2"], "steps=3", f"out={tmp_path / 'none'}")
    sentence(said, "was trained for 2; use one of these")
    assert "force" not in said.err, "which this command hasn't"
    config = tmp_path / "pruned" / "transformer" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"num_layers": 2}))
    sentence(
        command(*score[:-1], f"out={tmp_path / 'none'}"), "counts 2 transformer_blocks, and pruning.json beside it 1"
    )
    assert not (tmp_path / "none" / "scores.json").exists(), "before the teacher is scored"
    twice = ("score", *keys, f"checkpoints=[{pruned},{pruned}]", f"out={tmp_path / 'none'}")
    sentence(command(*twice), "name each folder once")
