"""Pairs of a full and a smaller model's clips: prompts, targets, the rules that pair them, and launch/pairs.py."""

from __future__ import annotations

import errno
import json
import math
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from conftest import TINY, Said, compose, fork, free_port

from dollar.data.scored import read_latents, read_scored
from dollar.data.shard_writer import ShardWriter
from dollar.models.teacher import Teacher
from dollar.parallel.world import World
from dollar.rewards.flicker import Flicker
from dollar.rewards.mixture import Mixture
from dollar.rewards.video_score import ASPECTS
from dollar.sampling.samplers import generators, teacher_sampler
from dollar.vip.chat import AtAddress, ByChat, mark_in
from dollar.vip.clips import Maker, named
from dollar.vip.pairing import Choice, Clips, all_pairs, check_some, pair_up
from dollar.vip.prompts import Filter, Judged, by_keywords, check_found, fault, words_of
from dollar.vip.requests import Remembered
from dollar.vip.targets import Fall, falls_of, targets_in

# Prompts


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [
        ("a dog runs on the beach", "short"),  # dog runs on beach
        ("a dog runs on the wet beach", None),
        ("a " + "dog " * 25, None),
        ("a " + "dog " * 26, "long"),
        ("A dog runs on wet sand. It barks.", "sentences"),
        ("A dog runs on wet sand.", None),
        ("Mr. J. Smith walks to his old car", None),
        ("A dog runs at 4.5 metres a second", None),
        ("Paris, France, aerial view of New York city", "places"),  # 4 of 6 words that aren't glue
        ("aerial view of tall towers in Paris, France", None),  # 2 of 6
    ],
)
def test_which_prompts_can_be_used(prompt: str, reason: str | None) -> None:
    assert fault(prompt) == reason
    assert words_of("A dog's well-worn ball") == ["dog's", "well-worn", "ball"], "the article alone is not counted"


@pytest.mark.parametrize(
    ("prompt", "motion", "richness"),
    [
        ("a small red circle moving left on a black background", 3, 3),
        ("a large blue cross standing still on a gray background", 1, 3),
        ("a cyclist racing through a city and dodging traffic", 3, 1),
        ("a person slowly turning the pages of a book", 2, 1),
        ("a mountain with a few clouds in the sky", 1, 2),
    ],
)
def test_keywords(prompt: str, motion: int, richness: int) -> None:
    assert by_keywords(prompt) == (motion, richness)


def test_the_prompts_that_a_target_takes_are_counted() -> None:
    scores = {"b": Judged(3, 1), "c": Judged(3, 3), "d": Judged(2, 3), "e": Judged(0, 3), "f": None}
    prompts = ["one two three four", *(f"one two three four {letter}" for letter in "bdcfe")]
    asked: list[str] = []

    def scorer(prompt: str) -> Judged | None:
        asked.append(prompt[-1])
        return scores[prompt[-1]]

    def letters(least: tuple[int, int], count: int = 9) -> tuple[str, dict[str, int]]:
        found, counts = Filter((5, 25), scorer).suited(prompts, count, least)
        return "".join(prompt[-1] for prompt in found), dict(counts)

    assert letters((3, 0)) == ("bc", {"short": 1, "motion": 2, "unanswered": 1}), "dynamic degree"
    assert letters((0, 3)) == ("dce", {"short": 1, "richness": 1, "unanswered": 1}), "visual quality"
    assert letters((1, 1)) == ("bdc", {"short": 1, "motion": 1, "unanswered": 1}), "text alignment"
    asked.clear()
    assert letters((0, 0)) == ("bdcfe", {"short": 1}) and not asked, "any usable prompt"
    assert letters((3, 0), 1) == ("b", {"short": 1}), "not one more than is wanted"
    with pytest.raises(ValueError, match="no prompt passes for pairs: 2 have too few words, 1 are mostly names"):
        check_found([], {"short": 2, "places": 1}, "pairs")


@pytest.fixture
def server() -> Iterator[tuple[str, list[str], list[str]]]:
    """The address of a chat model, what it answers next, and the bodies that it was sent."""
    answers: list[str] = []
    sent: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def reply(self, body: dict) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def do_GET(self) -> None:
            self.reply({"data": [{"id": "small"}]})

        def do_POST(self) -> None:
            sent.append(self.rfile.read(int(self.headers["Content-Length"])).decode())
            self.reply({"choices": [{"message": {"content": answers.pop(0)}}]})

        def log_message(self, *_: object) -> None:
            pass

    serving = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=serving.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{serving.server_port}/v1", answers, sent
    serving.shutdown()
    thread.join()
    serving.server_close()


def test_prompts_suit_the_papers_targets_by_the_names_that_its_reward_gives() -> None:
    suited = {name: tuple(least) for name, least in compose("pairs").suited.items()}
    assert set(suited) <= set(ASPECTS)
    assert [suited.get(name) for name in ASPECTS] == [(0, 3), None, (3, 0), (1, 1), None]  # appendix F


def test_a_chat_model_is_asked_again_twice(server: tuple[str, list[str], list[str]]) -> None:
    address, answers, sent = server
    answers += ["Mark: 3", "2"]
    chat = ByChat(AtAddress(address))
    assert chat("a dog runs") == (3, 2) and len(sent) == 2
    assert json.loads(sent[0])["model"] == "small", "the server's first, where none is named"
    answers += ["7", "1 or 2", "1.", "0"]
    assert chat("a dog") == (1, 0) and len(sent) == 6
    answers += ["no", "none", "five"]
    assert chat("a cat") is None and len(sent) == 9, "counted out after three"
    assert chat("a cat") is None and len(sent) == 12, "an answer that breaks off is none either"
    assert ByChat(AtAddress("http://127.0.0.1:9/v1#x"))("a cat") is None, "nobody listens there"
    assert [mark_in(said) for said in ("[RESULT] 2", "10", "2 of 3", "", "-1", "1-2", "mark - 3")] == [
        *(2, None, None, None, None, None, 3)
    ]


def test_no_prompt_is_asked_for_twice(tmp_path: Path) -> None:
    asked: list[str] = []

    def scorer(prompt: str) -> Judged | None:
        asked.append(prompt)
        return None if prompt == "mute" else Judged(3, 2)

    first = Remembered(scorer, tmp_path)
    assert [first(prompt) for prompt in ("a", "mute", "a")] == [(3, 2), None, (3, 2)] and asked == ["a", "mute"]
    with (tmp_path / "judged.jsonl").open("a") as opened:
        opened.write('{"prompt": "b", "mot')  # it was killed here
    again = Remembered(scorer, tmp_path)
    assert again("a") == again("b") == (3, 2) and again("mute") is None and asked[2:] == ["b", "mute"]
    assert Remembered(scorer, tmp_path).known == {"a": (3, 2), "b": (3, 2)}
    for broken in ("what is this", "[1]", '{"prompt": "a"}'):
        (tmp_path / "judged.jsonl").write_text(f"{broken}\n")
        with pytest.raises(ValueError, match=r"judged.jsonl can't be read .* remove it, and prompts are asked anew"):
            Remembered(scorer, tmp_path)


# Targets

FULL = {"visual": 2.627, "consistency": 2.602, "dynamic": 2.728, "alignment": 2.491}
STAGES = [(2.609, 2.588, 2.744, 2.487), (2.627, 2.595, 2.725, 2.486)]
OTHER = {"visual": 2.575, "consistency": 2.505, "dynamic": 2.684, "alignment": 2.486}
OTHERS = [(2.561, 2.494, 2.713, 2.488), (2.553, 2.478, 2.718, 2.470), (2.552, 2.469, 2.736, 2.505)]


def test_targets_are_those_of_the_papers_table() -> None:
    def target(full: dict[str, float], pruned: tuple[float, ...]) -> list[str]:
        return targets_in({name: Fall(full[name] - low) for name, low in zip(full, pruned, strict=True)})

    assert [target(FULL, stage) for stage in STAGES] == [["visual"], ["consistency"]]
    assert [target(OTHER, stage) for stage in OTHERS] == [["visual"], ["consistency"], ["consistency"]]


def test_what_else_fell_beyond_its_error() -> None:
    full = {"look": [1.0, 2.0, 3.0], "steady": [5.0, 5.0, 5.0], "bright": [1.0, 1.0, 1.0]}
    pruned = {"look": [0.0, 2.0, 1.0], "steady": [4.0, 5.0, 5.0], "bright": [2.0, 1.0, 1.0]}
    falls = falls_of(full, pruned)  # differences 1, 0, 2 | 1, 0, 0 | -1, 0, 0
    assert falls["look"] == pytest.approx((1, 1 / math.sqrt(3)))
    assert falls["steady"] == pytest.approx((1 / 3, 1 / 3)), "which is not beyond its error"
    assert targets_in(falls) == ["look"]
    assert targets_in(falls | {"steady": Fall(0.5, 0.4)}) == ["look", "steady"]
    assert targets_in(falls | {"steady": Fall(0.5, 0.4)}, 1) == ["look"]
    assert targets_in({"look": Fall(0.0, 0.1), "steady": Fall(-0.2, 0.1)}) == [], "nothing fell"
    in_sd = falls_of(full, pruned, "sd")  # the deviation of 5, 5, 5, 4, 5, 5 is sqrt(5) / 6
    assert in_sd["steady"].mean == pytest.approx(2 / math.sqrt(5))
    with pytest.raises(ValueError, match="all scores of the 6 clips are equal"):
        falls_of({"look": [1.0] * 3}, {"look": [1.0] * 3})
    with pytest.raises(ValueError, match="no pair of clips has scores that are numbers"):
        falls_of({}, {})


# Pairs, by two properties; the target is the first of them.
#        full          smaller
TABLE = {
    "A": ((0.9, 0.8), (0.5, 0.7)),  # gaps 0.4 and 0.1
    "B": ((0.5, 0.9), (0.6, 0.2)),  # not better
    "C": ((0.9, 0.9), (0.1, 0.5)),  # the smaller model's below 0.46 - 0.3 * 0.1855 = 0.4044
    "D": ((0.8, 0.9), (0.6, 0.5)),  # gaps 0.2 and 0.4
    "E": ((0.75, 0.5), (0.5, 0.25)),  # gaps 0.25 and 0.25
    "F": ((0.9, math.nan), (0.5, 0.5)),
}
CLIPS = [Clips(letter, i, letter) for i, letter in enumerate(TABLE)]
WINNERS, LOSERS = (
    {letter: dict(zip(("look", "steady"), row[side], strict=True)) for letter, row in TABLE.items()} for side in (0, 1)
)


def test_the_rules_on_a_table_by_hand() -> None:
    def kept(targets: list[str], **how: object) -> tuple[str, list[int]]:
        found = pair_up(CLIPS, WINNERS, LOSERS, Choice(targets, **how))  # type: ignore[arg-type]
        return "".join(pair.prompt for pair in found.pairs), list(found.counts.values())

    found = pair_up(CLIPS, WINNERS, LOSERS, Choice(["look"]))
    assert found.counts == {"unscored": 1, "not better": 1, "below the floor": 1, "not widest": 2}
    assert found.least == pytest.approx(0.46 - 0.3 * math.sqrt(0.0344))
    assert found.pairs[0] == ("A", 0, "A", "A", "look", pytest.approx(0.4)) and len(found.pairs) == 1
    assert kept(["look"], widest=False) == ("ADE", [1, 1, 1, 0])
    assert kept(["look"], floor=None) == ("AC", [1, 1, 0, 2]), "C's gaps are 0.8 and 0.4"
    assert kept(["look"], floor=2.0) == ("AC", [1, 1, 0, 2]), "0.46 - 2 * 0.1855 = 0.089"
    assert kept(["steady"], floor=None) == ("BD", [1, 0, 0, 3])
    assert kept(["steady", "look"], floor=None) == ("D", [1, 1, 0, 3]), "better on every target"
    # Of the ten scored clips look has the deviation 0.228 and steady 0.251: D's gaps are 0.88 and 1.59, E's 1.10 and 1.
    assert kept(["look"], unit="sd") == ("AE", [1, 1, 1, 1])
    ten = [{id: {**s, "look": 10 * s["look"]} for id, s in side.items()} for side in (WINNERS, LOSERS)]
    assert [pair.prompt for pair in pair_up(CLIPS, *ten, Choice(["look"])).pairs] == ["A", "D", "E"]
    assert [pair.prompt for pair in pair_up(CLIPS, *ten, Choice(["look"], unit="sd")).pairs] == ["A", "E"]


def test_no_pair_and_no_target_are_told() -> None:
    found = pair_up(CLIPS[1:4], WINNERS, LOSERS, Choice(["look"]))
    with pytest.raises(ValueError, match="no pair passes: of 3 pairs of clips 1 have a clip of the full model that is"):
        check_some(found, 3)
    with pytest.raises(ValueError, match=r"give fewer targets.*a larger floor.*give another target, or widest=false"):
        check_some(found, 3)
    same = {id: {"look": 1.0, "steady": s["steady"]} for id, s in WINNERS.items()}
    with pytest.raises(ValueError, match="all 6 clips have the look 1, so none is better there"):
        pair_up(CLIPS[:3], same, same, Choice(["look"]))
    every = all_pairs(CLIPS, WINNERS, LOSERS)
    assert [pair.prompt for pair in every.pairs] == list("ABCDE") and every.counts["unscored"] == 1
    assert {pair.target for pair in every.pairs} == {""}


# launch/pairs.py


@pytest.fixture
def keys(tiny_teacher_folder: Path, tmp_path: Path, command: Callable[..., Said]) -> list[str]:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("too short\n" + "".join(f"a red circle moving left, number {i}\n" for i in range(6)))
    numbers = [f"teacher.{key}={value}" for key, value in TINY.items()]
    teacher = ["teacher.name=tiny", f"teacher.folder={tiny_teacher_folder}", *numbers, "parallel.device=cpu"]
    pruned = ["remove=[transformer_blocks.1]", f"out={tmp_path / 'pruned'}", "steps=[2]", "repeats=0"]
    assert command("prune", *teacher, *pruned).code == 0
    reward = ["reward=mixture", "reward.weights.colourfulness=1", "reward.weights.flicker=1"]
    how = [f"checkpoint={tmp_path / 'pruned'}", f"prompts={prompts}", "steps=2", "clips=7", "probe=4", "batch=2"]
    return [*teacher, *reward, *how, "floor=null", "widest=false", "shown=2"]


def sentence(said: Said, part: str) -> None:
    assert said.code == 2 and part in said.err and "Traceback" not in said.err, said.err


def test_pairs_go_on_and_are_the_same_in_two_processes(
    command: Callable[..., Said], keys: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    write, most = Maker._write, 99

    def count(self: Maker, writer: object, clips: list[Clips]) -> None:
        if len(made) == most:
            raise KeyboardInterrupt
        made.append(self.folder.name + " " + " ".join(clip.id for clip in clips))
        write(self, writer, clips)  # type: ignore[arg-type]

    monkeypatch.setattr(Maker, "_write", count)
    whole = tmp_path / "whole"
    said = command("pairs", *keys, f"out={whole}")
    assert said.code == 0, said.err
    assert "6 prompts suit; of others 1 have too few words." in said.out and "The target is " in said.out
    # Two batches of two for the targets, then what else there is of seven: in both models.
    assert [len(batch.split()) - 1 for batch in made] == [2, 2, 2, 2, 2, 1, 2, 1]
    listed = (whole / "pairs.jsonl").read_bytes()
    rows, said_of = [json.loads(line) for line in listed.splitlines()], json.loads((whole / "pairs.json").read_text())
    winners, losers = read_scored(whole / said_of["winners"]), read_scored(whole / said_of["losers"])
    target = said_of["targets"][0]
    assert len(winners) == 7 and winners.keys() == losers.keys() and rows
    assert len(rows) + sum(said_of["counts"]["pairs"].values()) - said_of["counts"]["pairs"]["kept"] == 7
    for row in rows:
        assert row["winner"] == row["loser"] == named(row["prompt"], row["seed"]).id and row["target"] == target
        gap = winners[row["winner"]].scores[target] - losers[row["loser"]].scores[target]
        assert row["gap"] == gap > 0
    page = (whole / "pairs.html").read_text()
    assert page.count("data:image/gif") == 2 * min(2, len(rows)) and "have too few words" in page
    # Killed after three batches, it makes none twice.
    before, parts = list(made), ("winners", "losers")
    made.clear()
    most = 3
    killed = tmp_path / "killed"
    assert command("pairs", *keys, f"out={killed}").code == 130
    most = 99
    assert command("pairs", *keys, f"out={killed}").code == 0 and made == before
    assert (killed / "pairs.jsonl").read_bytes() == listed
    for part in parts:
        latents = [read_latents(folder / part, winners) for folder in (whole, killed)]
        assert all(torch.equal(latents[0][id], latents[1][id]) for id in winners)
    # Another stage takes the full model's clips as they are; and what is only chosen by may be said anew.
    made.clear()
    other = [f"winners={killed / 'winners'}", f"out={tmp_path / 'next'}", f"target={target}"]
    assert command("pairs", *keys, *other).code == 0
    assert {batch.split()[0] for batch in made} == {"losers"}
    made.clear()
    assert command("pairs", *keys, f"out={killed}", f"target={target}", "floor=9").code == 0 and not made
    sentence(command("pairs", *keys, f"out={killed}", "seed=1"), "seed was 0, now 1")
    away = [f"winners={killed / 'winners'}", f"out={tmp_path / 'away'}", "steps=1", "smaller_steps=2"]
    sentence(command("pairs", *keys, *away), "steps was 2, now 1). Name another folder with winners=FOLDER")
    monkeypatch.undo()
    (tmp_path / "out").mkdir()
    given, port = [*keys, f"out={tmp_path / 'two'}", "parallel.timeout_minutes=1"], free_port()
    both = [fork(tmp_path / "out", "pairs", *given, rank=rank, size=2, port=port) for rank in (0, 1)]
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0], (tmp_path / "out" / "0.out").read_text()
    assert (tmp_path / "two" / "pairs.jsonl").read_bytes() == listed


def test_mistakes_are_sentences(command: Callable[..., Said], keys: list[str], tmp_path: Path) -> None:
    keys = [*keys, f"out={tmp_path / 'no'}"]
    alone = [key for key in keys if "weights" not in key and "reward" not in key]
    sentence(command("pairs", *alone, "reward=flicker"), "pairing needs a reward with named values (`scores`)")
    sentence(command("pairs", *keys, "target=beauty"), "target has beauty; the reward gives colourfulness, flicker")
    sentence(command("pairs", *keys, "target=[flicker,flicker]"), "give one property or several, each once")
    sentence(command("pairs", *keys, "smaller_steps=3"), "is sampled in 2 steps, and its clips are to be made in 3")
    sentence(command("pairs", *keys, "words=[9,25]"), "no prompt passes for finding the targets: 7 have too few words")
    sentence(command("pairs", *keys, "suited.visual_quality=[4,0]"), "suited.visual_quality is [4, 0]")
    chat = f"chat=http://127.0.0.1:{free_port()}/v1#x"
    with patch("dollar.cli.build.teacher.build_teacher", side_effect=AssertionError):  # before the teacher is loaded
        sentence(
            command("pairs", *keys, chat), "can't be reached (<urlopen error [Errno 111] Connection refused>); start"
        )
    sentence(command("pairs", *keys, "checkpoint=null"), "checkpoint is not given")
    elsewhere = [*keys, f"out={tmp_path / 'elsewhere'}"]
    sentence(command("pairs", *elsewhere, f"reference={tmp_path / 'pruned'}"), "isn't pruned from it: they are one")
    pruning = json.loads((tmp_path / "pruned" / "pruning.json").read_text())
    shutil.copytree(tmp_path / "pruned", tmp_path / "other")
    (tmp_path / "other" / "pruning.json").write_text(json.dumps(pruning | {"left": {"transformer_blocks": [1]}}))
    said = command("pairs", *elsewhere, f"reference={tmp_path / 'other'}")
    sentence(said, "it lacks 1 of 2 transformer_blocks, without 0")
    sentence(command("pairs", *keys, "winners="), "winners is empty; name a folder")
    assert not list((tmp_path / "no").rglob("*.parquet"))


def test_a_full_disk_and_a_clip_without_numbers(
    teacher: Teacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clip that is not finite has no scores, and one that finds no room leaves nothing half-written."""
    sampler = teacher_sampler(teacher, 1)
    clips = [named(f"a red circle, number {i}", i) for i in range(2)]
    broken = torch.tensor([1.0, math.nan]).reshape(2, 1, 1, 1, 1)
    half = replace(sampler, diffusion=lambda *given: sampler.diffusion(*given) * broken)
    maker = Maker(tmp_path / "clips", "clips", half, teacher, Mixture({"flicker": Flicker()}, {"flicker": 1.0}), 2)
    maker.begin()
    add = ShardWriter.add

    def no_room(self: ShardWriter, row: object) -> None:
        add(self, row)  # type: ignore[arg-type]
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(ShardWriter, "add", no_room)
    with pytest.raises(OSError, match=r"clips could not be written to .*no space is left.*The same command goes on"):
        maker.make(clips, World(), lambda: False)
    assert not list(maker.folder.glob(".*")) and not read_scored(maker.folder)
    monkeypatch.undo()
    assert maker.make(clips, World(), lambda: False)
    first, second = (clip.scores["flicker"] for clip in read_scored(maker.folder).values())
    assert math.isfinite(first) and math.isnan(second)
    # What is stored are the autoencoder's own latents, with what a training reads of a clip.
    latents = sampler.diffusion(generators([0]), teacher.text([clips[0].prompt]))
    stored = read_latents(maker.folder, [clips[0].id])[clips[0].id]
    torch.testing.assert_close(teacher.codec.normalise(stored[None]), latents)
