"""launch/fit_reward.py: what is scored, what is held out, and what is written."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from conftest import PROMPT, ROOT, TINY, TINY_DATA
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from dollar.diffusion.draws import Draws
from dollar.models.teacher import Teacher
from dollar.parallel import checkpoint
from dollar.surrogate.climb import Climb
from dollar.surrogate.fit import climb_text, figures_of, some, split, table
from dollar.surrogate.latent_reward import LatentReward
from dollar.surrogate.observations import Observations, ScoredClip
from dollar.training.monitors.best import Best
from dollar.training.monitors.least_steep import LeastSteep

ASKED: list[str] = []


class Redness:
    """How much more red than blue there is, of the brightness; one point more where the caption says red."""

    def score(self, videos: Tensor, prompts: Sequence[str]) -> Tensor:
        ASKED.extend(prompts)
        red = (videos[:, :, 0] - videos[:, :, 2]).mean((1, 2, 3))
        return red + torch.tensor([float("red" in p) for p in prompts])


class Broken(Redness):
    """It has no number for anything until it is mended, and then fails on what is green."""

    mended = False

    def score(self, videos: Tensor, prompts: Sequence[str]) -> Tensor:
        scores = super().score(videos, prompts)
        if not self.mended:
            return torch.full_like(scores, float("nan"))
        if any("green" in p for p in prompts):
            raise RuntimeError("green")
        return scores


class Constant(Redness):
    """All is one to it, but for how numbers are rounded."""

    def score(self, videos: Tensor, prompts: Sequence[str]) -> Tensor:
        return 0.7 + 1e-9 * super().score(videos, prompts)


class Moody(Redness):
    """It has no number for green things."""

    def score(self, videos: Tensor, prompts: Sequence[str]) -> Tensor:
        return super().score(videos, prompts).where(torch.tensor(["green" not in p for p in prompts]), float("nan"))


SETTINGS = (
    "teacher.name=tiny",
    *(f"teacher.{key}={value}" for key, value in TINY.items()),
    *TINY_DATA[:1],
    "data.clips.size=24",
    "reward._target_=test_fit_reward.Redness",
    "clips=20",
    "made=[1,2]",
    "made_clips=6",
    "climb=0",
    "lrm.width=16",
    "lrm.backbone=cnn",
    "lrm.smooth=0",
    "lrm.groups=4",
    "lrm.blocks=1",
    "steps=60",
    "every=20",
    "parallel.device=cpu",
)


@pytest.fixture
def fit(command: Callable, tiny_teacher_folder: Path, tmp_path: Path) -> Callable:
    """fit("key=value", ...) runs the command into tmp_path/lrm."""

    def run(*overrides: str):
        out = [] if any(o.startswith("out=") for o in overrides) else [f"out={tmp_path / 'lrm'}"]
        ASKED.clear()
        return command("fit_reward", *SETTINGS, f"teacher.folder={tiny_teacher_folder}", *out, *overrides)

    return run


def card_of(folder: Path) -> dict:
    return json.loads((folder / "lrm.json").read_text())


def test_a_fit_writes_a_model_that_follows_the_reward_and_says_how_well(
    fit: Callable, teacher: Teacher, tmp_path: Path
) -> None:
    # One caption in six is of something red, and clips of a random decoder are gray: the caption is all there is.
    said = fit("steps=300", "optim.lrm.lr=3e-3", "mismatched=false")
    assert said.code == 0, said.err
    lines = [line.split() for line in said.out.splitlines()]
    kinds = ("all", "real", "made in 1", "made in 2")
    assert all(any(line[: len(k.split())] == k.split() for line in lines) for k in kinds)
    figures = card_of(tmp_path / "lrm")["figures"]["held_out"]
    assert list(figures) == list(kinds)
    assert figures["all"]["clips"] == sum(figures[k]["clips"] for k in kinds[1:])
    surrogate = LatentReward.from_folder(tmp_path / "lrm", teacher)
    # The written figures are those of the written model on what was held out.
    with safe_open(tmp_path / "lrm" / "observations.safetensors", "pt") as opened:
        told = json.loads(opened.metadata()["observations"])
        latents, reward, clip = (opened.get_tensor(n) for n in ("latents", "reward", "clip"))
        place = opened.get_tensor("place")
    held = sorted({int(c) for c in clip})
    order = torch.randperm(len(held), generator=torch.Generator().manual_seed(0)).tolist()
    held = {held[i] for i in order[: round(0.2 * len(held))]}
    rows = [i for i, c in enumerate(clip.tolist()) if c in held]
    assert len(rows) == figures["all"]["clips"]
    with torch.no_grad():
        predicted = surrogate.predict(latents[place[rows]], teacher.text([told["prompts"][i] for i in rows]))
    true = reward[rows]
    r2 = 1 - float(((true - predicted) ** 2).sum() / ((true - true.mean()) ** 2).sum())
    assert figures["all"]["r2"] == pytest.approx(r2, abs=1e-4)
    # Of the others some only chose the best update: what was fitted on is the rest.
    rest = sorted({int(c) for c in clip} - held)
    order = torch.randperm(len(rest), generator=torch.Generator().manual_seed(0)).tolist()
    watched = {rest[i] for i in order[: round(0.15 * len(rest))]}
    seen = torch.stack([r for r, c in zip(reward, clip.tolist(), strict=True) if c not in held | watched])
    assert surrogate.statistics.count == len(seen) < len(reward) - len(rows)
    assert surrogate.statistics.mean == pytest.approx(float(seen.mean()), rel=1e-5)


def test_a_step_up_its_gradient_is_tried_and_told(fit: Callable, tmp_path: Path) -> None:
    """What the clips were scored before is known, so only the moved ones are asked about; they were made, not real."""
    before = fit("lrm.noised=true")
    assert before.code == 0 and "a step of" not in before.out
    assert "climb" not in card_of(tmp_path / "lrm")["figures"] and card_of(tmp_path / "lrm")["noise"] == [0.0, 0.5]
    said = fit("lrm.noised=true", "climb=2")
    assert said.code == 0, said.err
    with safe_open(tmp_path / "lrm" / "observations.safetensors", "pt") as opened:
        told = json.loads(opened.metadata()["observations"])
    made = {prompt for prompt, (kind, _) in zip(told["prompts"], told["keys"], strict=True) if kind.startswith("made")}
    climbs = card_of(tmp_path / "lrm")["figures"]["climb"]
    assert [climb["share"] for climb in climbs] == [0.01, 0.03, 0.1]
    assert len(ASKED) == 3 * climbs[0]["clips"] == 6 and set(ASKED) <= made and climbs[2]["predicted"] > 0
    assert climbs[0]["cosine"] is None, "this reward has no gradient"
    told = "; ".join(f"of {c['share']:.0%}: {c['predicted']:.3g} predicted, {c['true']:.3g} ±" for c in climbs[:1])
    assert f"on 2 held-out clips: {told}" in said.out


def test_fewer_clips_are_fitted_on_and_the_same_are_held_out(fit: Callable, tmp_path: Path) -> None:
    """All of the clips of fewer are among those of more, and clips scored once serve any count."""
    assert fit("steps=20", "mismatched=false").code == 0
    whole, asked = card_of(tmp_path / "lrm"), len(ASKED)
    shared = f"observations={tmp_path / 'lrm'}"
    said = fit(
        "steps=20",
        "mismatched=false",
        shared,
        f"out={tmp_path / 'few'}",
        "fit_on=10",
        "climb=2",
        "climb_noise=[0.05,0.15]",
    )
    assert said.code == 0, said.err
    few = card_of(tmp_path / "few")["figures"]
    assert asked > 0 and len(ASKED) == 2 * 2 * 3, "nothing but the moved clips is scored"
    assert few["clips"] + few["watched"] == 10 < whole["figures"]["clips"]
    assert few["held_out"]["all"]["clips"] == whole["figures"]["held_out"]["all"]["clips"]
    assert [c["share"] for c in few["climb_through"]] == [0.01, 0.03, 0.1]
    assert few["climb_through"][2]["true"] != few["climb"][2]["true"]
    rows = [("real", ScoredClip(i, i, "", 0.0)) for i in range(8)]
    three, five = (some(rows, count, 1, Path("file")) for count in (3, 5))
    assert three == five[:3] and len(five) == len(set(five)) == 5 and some(rows, None, 1, Path("file")) == rows
    said = fit("steps=20", "mismatched=false", shared, f"out={tmp_path / 'few'}", "fit_on=4000")
    assert said.code == 2 and "fit_on is 4000, but of" in said.err and "raise made_clips" in said.err


def test_a_model_on_the_pixels_of_a_small_decoder_is_fitted_and_read(fit: Callable, tmp_path: Path) -> None:
    said = fit("lrm.backbone=pixels", "lrm.smooth=1", "decoder.steps=60", "decoder.clips=8")
    assert said.code == 0, said.err
    assert "grey levels off" in said.out + said.err
    assert card_of(tmp_path / "lrm")["model"]["backbone"] == "pixels"
    assert (tmp_path / "lrm" / "decoder.safetensors").is_file()


def test_frames_own_rewards_are_stored_and_fitted_and_missed_in_a_file_without_them(
    fit: Callable, tmp_path: Path
) -> None:
    few = ("clips=16", "made=[1]", "steps=20", "every=10", "mismatched=false", "lrm.targets=auto")
    few += ("reward._target_=dollar.rewards.colourfulness.Colourfulness",)
    said = fit(*few)
    assert said.code == 0, said.err
    path, card = tmp_path / "lrm" / "observations.safetensors", tmp_path / "lrm"
    assert card_of(card)["targets"] == "clip"  # conv3d has no frames
    with safe_open(path, "pt") as opened:
        told = opened.metadata()
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    torch.testing.assert_close(tensors["frames"].mean(1), tensors["reward"])
    assert tensors["frames"].shape[1] == 9
    # What another kind of model has scored is enough, and its frames are known.
    before = path.stat().st_mtime_ns
    assert fit(*few, "lrm.temporal=frames").code == 0
    assert card_of(card)["targets"] == "frames" and path.stat().st_mtime_ns == before
    # A file of before has none, and is scored again where they are wanted alone.
    frames = tensors.pop("frames")
    save_file(tensors, path, told)
    assert fit(*few).code == 0 and not Observations.at(path, {}).rows[("real", 0)].frames
    with safe_open(path, "pt") as opened:
        assert "frames" not in opened.keys()  # noqa: SIM118
    assert fit(*few, "lrm.temporal=frames").code == 0
    with safe_open(path, "pt") as opened:
        torch.testing.assert_close(opened.get_tensor("frames"), frames)


def test_advice_where_little_of_a_step_is_true() -> None:
    clean, noised, pixels = (False, "cnn", 0.0), (True, "cnn", 30.0), (False, "pixels", 30.0)
    little = "little of what it promises is true"

    def climbs(predicted: float, true: float, cosine: float = math.nan, clips: int = 8) -> list[Climb]:
        return [Climb(0.01, predicted, true, 0.01, clips, cosine), Climb(0.1, 9.0, -9.0, 0.01, clips, cosine)]

    assert little not in climb_text(climbs(0.5, 0.2), *clean), "the short step decides"
    ways = "lrm.backbone=pixels or lrm.smooth=30 or lrm.noised=true"
    assert climb_text(climbs(0.5, 0.01), *clean).endswith(f"{little}, try {ways}")
    assert climb_text(climbs(0.5, -0.3), *noised).endswith(f"{little}, try lrm.backbone=pixels")
    assert climb_text(climbs(-0.1, -0.3, 0.25), *pixels).endswith(little)
    assert "own gradient is 0.25" in climb_text(climbs(-0.1, -0.3, 0.25), *pixels)
    assert "isn't known" in climb_text(climbs(math.nan, math.nan, clips=0), *clean)
    one = climb_text([Climb(0.01, 0.5, 0.2, math.nan, 1, math.nan)], *clean)
    assert one.endswith("on 1 held-out clip: of 1%: 0.5 predicted, 0.2 true"), "one clip has no standard error"


def test_the_same_command_and_another_fit_score_nothing_again(fit: Callable, tmp_path: Path) -> None:
    assert fit().code == 0
    asked = 20 + 20 + 2 * 6 + min(20, 8)  # real, mismatched, made twice, and the first few for trial
    assert len(ASKED) == asked
    first = (tmp_path / "lrm" / "model.safetensors").read_bytes()
    assert fit().code == 0
    assert ASKED == [] and (tmp_path / "lrm" / "model.safetensors").read_bytes() == first
    said = fit(f"out={tmp_path / 'other'}", f"observations={tmp_path / 'lrm'}", "lrm.backbone=teacher")
    assert said.code == 0, said.err
    assert ASKED == [] and card_of(tmp_path / "other")["model"] == {"backbone": "teacher", "blocks": 1, "width": 16}
    assert card_of(tmp_path / "other")["noise"] == [0.0, 0.5]
    # More clips cost what is new alone.
    assert fit("made_clips=8", "made=[1,2,3]").code == 0
    assert len(ASKED) == 2 * 8 + 8 + 8  # a chunk that lacks some is made whole again
    for change in (
        "seed=1",
        "teacher.guidance_scale=2.0",
        "data.clips.size=23",
        "reward._target_=test_fit_reward.Moody",
    ):
        said = fit(change)
        assert said.code == 2 and "holds scores of another" in said.err, (change, said.err)


def test_scores_are_of_what_a_reward_and_a_teacher_hold_and_not_of_their_places(
    fit: Callable, tmp_path: Path, tiny_teacher_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    module = tmp_path / "mine_for_fits.py"
    module.write_text("from test_fit_reward import Redness\nclass Mine(Redness):\n    pass\n")
    few = ("clips=16", "made=[]", "steps=20", "every=10", "save_every=5", "reward._target_=mine_for_fits.Mine")
    assert fit(*few).code == 0
    (tmp_path / "link").symlink_to(tiny_teacher_folder, target_is_directory=True)
    said = fit(*few, f"teacher.folder={tmp_path / 'link'}")
    assert said.code == 0 and ASKED == [] and "begins anew" not in said.out, said.err
    module.write_text(module.read_text() + "    scale = 2\n")
    said = fit(*few)
    assert said.code == 2 and "holds scores of another reward" in said.err
    # A file of before what rewards hold was looked at is taken by its settings.
    path = tmp_path / "lrm" / "observations.safetensors"
    with safe_open(path, "pt") as opened:
        plain = json.loads(opened.metadata()["observations"])
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    del plain["identity"]["reward"]["code"]
    save_file(tensors, path, {"observations": json.dumps(plain)})
    assert fit(*few).code == 0 and ASKED == []


def test_clips_without_a_reward_are_left_out_and_the_trouble_is_told(fit: Callable, tmp_path: Path) -> None:
    said = fit("reward._target_=test_fit_reward.Moody", "made_clips=0", "clips=24", "steps=20")
    assert said.code == 0, said.err
    assert "clips that got no reward are left out; the last trouble: Moody gave nan" in said.out
    figures = card_of(tmp_path / "lrm")["figures"]
    asked = ASKED[8:]  # after the trial
    others = [p for p in asked if "green" not in p]
    assert len(others) < len(asked) == 48
    assert figures["clips"] + figures["watched"] + figures["held_out"]["all"]["clips"] == len(others)


def test_what_got_no_number_is_asked_about_again(
    fit: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ("reward._target_=test_fit_reward.Broken", "made=[1]", "clips=0", "made_clips=24", "steps=20")
    said = fit(*settings)
    assert said.code == 2 and "0 clips have a reward that is a number" in said.err, said.err
    assert f"{tmp_path / 'lrm' / 'observations.safetensors'} keeps what it gave" in said.err
    monkeypatch.setattr(Broken, "mended", True)
    said = fit(*settings)
    assert said.code == 0, said.err
    figures = card_of(tmp_path / "lrm")["figures"]
    known = figures["clips"] + figures["watched"] + figures["held_out"]["all"]["clips"]
    with safe_open(tmp_path / "lrm" / "observations.safetensors", "pt") as opened:
        prompts, reward = json.loads(opened.metadata()["observations"])["prompts"], opened.get_tensor("reward")
    assert reward.isnan().tolist() == ["green" in p for p in prompts] and 0 < int(reward.isnan().sum()) == 24 - known
    # What it can't judge is asked about at every turn, ends none, and changes nothing.
    first = (tmp_path / "lrm" / "model.safetensors").read_bytes()
    said = fit(*settings)
    assert said.code == 0 and (tmp_path / "lrm" / "model.safetensors").read_bytes() == first
    assert any("green" in p for p in ASKED)


def test_a_reward_that_does_not_differ_is_refused_before_fitting(fit: Callable, tmp_path: Path) -> None:
    said = fit("reward._target_=test_fit_reward.Constant", "steps=100000000")
    assert said.code == 2 and "rewards to fit on are 0.7, so there is nothing to learn" in said.err, said.err
    assert "observations.safetensors" in said.err and not (tmp_path / "lrm" / "model.safetensors").is_file()


def test_a_fit_that_gets_no_better_ends_with_the_model_that_was_best(fit: Callable, tmp_path: Path) -> None:
    settings = ("lrm.fit=pairwise", "every=10", "optim.lrm.lr=1e-2", "decay_from=1", "tolerance=0")
    said = fit(*settings, "patience=1", "steps=400")
    assert said.code == 0, said.err
    card = card_of(tmp_path / "lrm")
    best = card["figures"]["step"]
    assert card["fit"] == "pairwise" and best < 400
    assert f"best after {best} of 400 updates" in said.out
    assert fit(*settings, f"steps={best}", f"observations={tmp_path / 'lrm'}", f"out={tmp_path / 'short'}").code == 0
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("lrm", "short")]
    assert weights[0] == weights[1]


def test_of_models_that_predict_alike_the_least_steep_is_kept(fit: Callable, tmp_path: Path) -> None:
    """R^2 alone would take a later one, whose gradient is larger."""
    settings = ("every=10", "optim.lrm.lr=1e-2", "decay_from=1", "save_every=100", "steps=100")
    found, out = {}, tmp_path / "lrm"
    for tolerance in (0.0, 5.0):
        assert fit(*settings, f"tolerance={tolerance}").code == 0
        lines = [json.loads(line) for line in (out / "fit" / "metrics.jsonl").read_text().splitlines()]
        looks = {n["step"]: n for n in lines if "validation/r2" in n}
        best = max(look["validation/r2"] for look in looks.values())
        near = [step for step, look in looks.items() if look["validation/r2"] >= best - tolerance]
        found[tolerance] = min(near, key=lambda step: looks[step]["validation/steepness"])
        assert card_of(out)["figures"]["step"] == found[tolerance]
        kept = checkpoint.load(out / "fit" / "best" / f"step-{found[tolerance]:08d}").tensors
        with safe_open(out / "model.safetensors", "pt") as opened:
            assert all(torch.equal(kept[f"lrm/{name}"], opened.get_tensor(name)) for name in opened.keys())  # noqa: SIM118
    assert looks[found[5.0]]["validation/steepness"] < looks[found[0.0]]["validation/steepness"]


def test_the_choice_among_looks() -> None:
    monitor = LeastSteep(Best("r2", 1, 3), tolerance=0.02)
    looks = [(0.80, 1.0), (0.895, 3.0), (0.905, 2.0), (math.nan, 0.1), (0.91, 9.0), (0.89, 0.1)]
    kept = [monitor.look(i, {"r2": r2, "steepness": s}).keep is not None for i, (r2, s) in enumerate(looks, 1)]
    assert kept == [True, True, True, False, True, True] and monitor.chosen == (6, 0.89, 0.1)
    again = LeastSteep(Best("r2", 1, 3), tolerance=0.0)
    again.load_state_dict(json.loads(json.dumps(monitor.state_dict())))
    assert again.chosen == (5, 0.91, 9.0), "R^2 alone picks the steepest"
    again.tolerance = 0.015
    assert again.chosen == (3, 0.905, 2.0)
    assert LeastSteep(Best("r2", 1)).chosen is None


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Callable:
    """seen(act) -> the list of steps that fits take from now on; `act` is called with each before it is taken."""

    def watch(act: Callable[[int], object] = lambda step: None) -> list[int]:
        taken: list[int] = []

        def loss(self: LatentReward, draws: Draws, *given: object, **how: object) -> Tensor:
            act(draws.turn)
            taken.append(draws.turn)
            return whole(self, draws, *given, **how)

        monkeypatch.setattr(LatentReward, "loss", loss)
        return taken

    whole = LatentReward.loss
    return watch


def asked_to_stop(step: int) -> Callable[[int], None]:
    return lambda now: os.kill(os.getpid(), signal.SIGTERM) if now == step else None


RESUMED = ("lrm.fit=pairwise", "lrm.noised=true", "steps=40", "every=10", "save_every=15", "climb=2")


def weights_of(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def test_a_fit_that_is_stopped_or_killed_goes_on_to_the_same_model(
    fit: Callable, seen: Callable, tmp_path: Path
) -> None:
    """After a signal from the very step, after a kill from what was saved last; finished, it takes no step."""
    steps = seen()
    assert fit(*RESUMED).code == 0 and steps == list(range(40))
    whole, card = weights_of(tmp_path / "lrm"), card_of(tmp_path / "lrm")
    again = (f"observations={tmp_path / 'lrm'}", *RESUMED)

    steps = seen(asked_to_stop(22))
    said = fit(f"out={tmp_path / 'stopped'}", *again)
    assert said.code == 3 and said.out.endswith(
        "stopped after update 23 and saved; the same command goes on from there\n"
    ), said.err
    assert steps == list(range(23)) and not (tmp_path / "stopped" / "model.safetensors").exists()
    steps = seen()
    assert fit(f"out={tmp_path / 'stopped'}", *again).code == 0 and steps == list(range(23, 40))
    assert weights_of(tmp_path / "stopped") == whole

    def die(step: int) -> None:
        if step == 22:
            raise SystemExit("killed")

    seen(die)
    assert fit(f"out={tmp_path / 'killed'}", *again).code == 1
    steps = seen()
    assert fit(f"out={tmp_path / 'killed'}", *again).code == 0 and steps == list(range(15, 40))
    assert weights_of(tmp_path / "killed") == whole

    steps = seen()
    said = fit(*RESUMED)
    assert said.code == 0 and steps == [] and weights_of(tmp_path / "lrm") == whole
    for key in ("step", "steps", "held_out", "climb"):
        assert all(card_of(tmp_path / n)["figures"][key] == card["figures"][key] for n in ("lrm", "stopped", "killed"))


def test_another_configuration_begins_anew_on_the_same_scored_clips(
    fit: Callable, seen: Callable, tmp_path: Path
) -> None:
    settings = ("steps=20", "every=10", "save_every=5")
    assert fit(*settings).code == 0
    other = (*settings, "optim.lrm.lr=3e-3")
    seen(asked_to_stop(12))
    assert fit(*other).code == 3 and ASKED == []
    steps = seen()
    assert fit(*settings).code == 0 and ASKED == [] and steps == list(range(20))  # the stopped one's state is put aside
    first = weights_of(tmp_path / "lrm")
    steps = seen()
    assert fit(*other).code == 0 and ASKED == [] and steps == list(range(20))
    assert weights_of(tmp_path / "lrm") != first
    assert fit(*other, f"observations={tmp_path / 'lrm'}", f"out={tmp_path / 'fresh'}").code == 0
    assert weights_of(tmp_path / "fresh") == weights_of(tmp_path / "lrm")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["reward._target_=null"], ["reward=none", "name a reward"]),
        (["held_out=1.0"], ["held_out is 1.0", "between 0 and 1"]),
        (["made=[0]"], ["made is [0]"]),
        (["made=[4,4]"], ["each step count once"]),
        (["clips=0", "made_clips=0"], ["no clips to fit on"]),
        (["steps=0"], ["steps is 0"]),
        (["save_every=0"], ["save_every is 0"]),
        (["lrm.widht=3"], ["no key 'lrm.widht'", "'lrm.width'"]),
        (["lrm.backbone=vgg"], ["lrm.backbone is 'vgg'", "cnn or teacher"]),
        (["lrm.fit=rank"], ["lrm.fit is 'rank'"]),
        (["lrm.backbone=teacher", "lrm.blocks=9"], ["lrm.blocks is 9", "1 to 2"]),
        (["lrm.backbone=teacher", "lrm.noise=[0.5,0.5]"], ["lrm.noise is [0.5, 0.5]", "rising"]),
        (["lrm.noise=[0.8,0.2]"], ["lrm.noise is [0.8, 0.2]", "rising"]),
        (["observations=nowhere"], ["there is no nowhere/observations.safetensors"]),
    ],
)
def test_a_mistake_is_a_sentence_before_anything_is_scored(
    fit: Callable, tmp_path: Path, overrides: list[str], words: list[str]
) -> None:
    said = fit(*overrides)
    assert said.code == 2 and said.err.startswith("fit_reward.py: "), said.err
    assert all(word in said.err for word in words), said.err
    assert ASKED == [] and list(tmp_path.iterdir()) == []


def test_a_clip_is_held_out_under_all_of_its_captions() -> None:
    rows = [
        (kind, ScoredClip(0, clip, PROMPT, 0.5)) for kind in ("real", "mismatched", "made in 1") for clip in range(10)
    ]
    fitted_on, held_out = split(rows, 0.3, 0, Path("kept"))
    clips = [{row.clip for _, row in part} for part in (fitted_on, held_out)]
    assert not clips[0] & clips[1] and len(clips[1]) == 3 and len(held_out) == 9
    assert split(rows, 0.3, 1, Path("kept"))[1] != held_out and split(rows, 0.3, 0, Path("kept"))[1] == held_out
    with pytest.raises(ValueError, match="at least 2.*kept keeps what it gave"):
        split(rows[:2], 0.3, 0, Path("kept"))


def test_figures_by_hand(teacher: Teacher) -> None:
    """Rewards 1, 2, 3, 4 of which 1, 2, 4, 3 is predicted: R^2 = 1 - 2/5, and the pairs two apart are all told."""

    class Says(torch.nn.Module):
        card: dict = {}

        def __init__(self) -> None:
            super().__init__()
            self.out = torch.nn.Linear(1, 1)

        def forward(self, x: Tensor, condition: object = None, t: object = None) -> Tensor:
            return x.flatten(1)[:, 0]

    surrogate = LatentReward(Says(), None, teacher.text)
    latents = [torch.full((1, 1, 1, 1), value) for value in (1.0, 2.0, 4.0, 3.0)]
    rows = [("real", ScoredClip(i, i, PROMPT, i + 1.0)) for i in range(4)]
    surrogate.statistics.load_state_dict({"count": 2, "mean": 0.0, "variance": 9.0})  # pairs above 1.5 count
    surrogate.predict = lambda x, condition: surrogate.model(x)  # as if in the reward's unit
    figures = figures_of(surrogate, latents, rows, batch=3)
    assert figures["all"] == figures["real"]
    assert figures["all"]["r2"] == pytest.approx(0.6) and figures["all"]["error"] == pytest.approx(0.5**0.5)
    assert figures["all"]["correlation"] == pytest.approx(0.8) and figures["all"]["pairwise"] == 1
    assert figures["all"]["pairs"] == 3
    assert [line.split()[:3] for line in table(figures).splitlines()[1:]] == [["all", "4", "0.6"], ["real", "4", "0.6"]]


def test_observations_come_back_from_their_file(tmp_path: Path) -> None:
    path, identity = tmp_path / "observations.safetensors", {"reward": {"a": 1}, "clip size": (9, 32)}
    seen = Observations(identity, list(torch.randn(4, 2, 3)), seconds=2.5)
    seen.rows = {
        ("real", 5): ScoredClip(1, 8, "a \u00fc", 0.5),
        ("mismatched", 5): ScoredClip(1, 8, "b", float("nan")),
        ("made in 4", 0): ScoredClip(3, 2, "c", -1.0),
    }
    seen.save(path)
    again = Observations.at(path, identity)
    assert list(again.rows) == list(seen.rows) and again.seconds == 2.5
    for key, row in again.rows.items():
        assert row[1:3] == seen.rows[key][1:3]
        assert torch.equal(again.latents[row.place], seen.latents[seen.rows[key].place])
    assert len(again.latents) == 2  # what nothing refers to isn't kept
    rewards = [row.reward for row in again.rows.values()]
    assert rewards[::2] == [0.5, -1.0] and rewards[1] != rewards[1]
    with pytest.raises(ValueError, match="scores of another reward"):
        Observations.at(path, {**identity, "reward": {"a": 2}})
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(ValueError, match="can't be read"):
        Observations.at(path, identity)


def test_help_is_quick_and_names_the_keys() -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "tests")}
    said = subprocess.run(
        [sys.executable, "launch/fit_reward.py", "--help"], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert said.returncode == 0 and "lrm.backbone=pixels" in said.stdout and "  held_out=0.2" in said.stdout
