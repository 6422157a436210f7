"""Runs that follow a reward in other ways: baselines, a stored latent reward model, the guard, early stopping."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
from conftest import ROOT, compose, fingerprint, gradients, network_of
from torch import Tensor

from dollar.cli.build.loop import check
from dollar.cli.build.rewards import followed
from dollar.diffusion.schedule import diffuse
from dollar.losses.pull import Pull
from dollar.losses.term import Context
from dollar.methods import surrogate_fit
from dollar.methods.surrogate_fit import scored_clips
from dollar.models.reward_models import new_decoder
from dollar.models.teacher import Teacher
from dollar.parallel import checkpoint
from dollar.parallel.world import World
from dollar.surrogate.pixel_reward import PixelReward
from dollar.training.loop import Loop
from dollar.training.turn import Pullback
from dollar.training.validation import Scores

Build = Callable[..., Loop]
LOOKING = ("validation.every=2", "validation.clips=0")
CLIP = f"reward.path={ROOT / 'dollar' / 'assets' / 'clip'}"
SMOOTH = "reward._target_=test_steering.Smooth"
WAYS = {
    "ddpo": ("loss=ddpo", "student.steps=[4,2]", "beta_ft=0"),
    "clip": (
        "reward=pickscore",
        "reward._target_=dollar.rewards.pickscore.PickScore",
        "reward.frames=1",
        CLIP,
        "lrm.clips=3",
    ),
    "refl": ("loss=refl", SMOOTH, "rg.frames=2", "beta_ft=0"),
    "draft": ("loss=draft", SMOOTH, "rg.last=2", "rg.frames=all", "beta_ft=0"),
    "pull": ("beta_pull=0.5", "pull.steps=2"),
    "teacher": ("lrm.backbone=teacher", "lrm.blocks=1"),
    "frames": ("lrm.temporal=frames", "reward._target_=dollar.rewards.colourfulness.Colourfulness", "lrm.smooth=3"),
    "pairwise": ("lrm.fit=pairwise",),
    "noised": ("lrm.noised=true", "lrm.noise=[0.2,0.8]"),
    "pixels": ("lrm.backbone=pixels", "lrm.smooth=3"),
    "small": ("loss=refl", SMOOTH, "rg.decoder=small", "rg.frames=2", "beta_ft=0", "lrm.warmup=1"),
    "small draft": ("loss=draft", SMOOTH, "rg.decoder=small", "beta_ft=0", "lrm.warmup=1"),
    "smooth": ("lrm.smooth=3", "ft.through=teacher", "ft.unit=vsd"),
    "smooth pairs": ("lrm.smooth=3", "lrm.fit=pairwise", "lrm.backbone=teacher", "ft.through=fake"),
    "relative": ("loss=refl", SMOOTH, "rg.frames=2", "beta_ft=0", "rg.unit=vsd"),
    "relative apart": ("ft.update=separate", "ft.accumulate=1", "ft.unit=vsd", "lrm.warmup=0"),
    "own": ("ft.update=separate", "ft.accumulate=2", "ft.optimizer=own", "lrm.warmup=0"),
    "first": ("lrm.first=true", "lrm.backbone=pixels"),
    "both": ("lrm.backbone=teacher", "lrm.fit=pairwise", "ft.update=separate", "ft.accumulate=2"),
    "tuning": ("experiment=tune_teacher", "student.steps=[10]", "lrm.warmup=1"),
}


class Smooth:
    """A reward with a gradient: the clip's brightness, more of it where the caption says white."""

    differentiable = True

    def score(self, videos: Tensor, prompts: Sequence[str]) -> Tensor:
        return videos.mean((1, 2, 3, 4)) * torch.tensor([2.0 if "white" in p else 1.0 for p in prompts])


class Hundredfold(Smooth):
    """The same in another unit."""

    def score(self, videos: Tensor, prompts: Sequence[str]) -> Tensor:
        return 100 * super().score(videos, prompts)


class Failing:
    """A reward that fails on some clips: raises for blue, has no number for green."""

    def score(self, videos: Tensor, prompts: Sequence[str]) -> Tensor:
        if any("blue" in p for p in prompts):
            raise RuntimeError("blue is not for me")
        return torch.tensor([float("nan") if "green" in p else 1.0 for p in prompts])


class Pretending(Smooth):
    """A reward that says it has a gradient, and has none."""

    def score(self, videos: Tensor, prompts: Sequence[str]) -> Tensor:
        return super().score(videos.detach(), prompts)


class Picky(Smooth):
    """A reward with a gradient that fails on some clips: raises for blue, has no number for green."""

    def score(self, videos: Tensor, prompts: Sequence[str]) -> Tensor:
        if any("blue" in p for p in prompts):
            raise RuntimeError("blue is not for me")
        bad = torch.tensor([float("nan") if "green" in p else 1.0 for p in prompts])
        return super().score(videos, prompts) * bad


class Never:
    """A reward that can't be had."""

    def score(self, videos: Tensor, prompts: Sequence[str]) -> Tensor:
        raise RuntimeError("not today")


def run(loop: Loop, cycles: int) -> checkpoint.State:
    for cycle in range(loop.cycle, cycles):
        loop.run_cycle(cycle)
        loop.cycle = cycle + 1
    tensors, plain = loop.state()
    return checkpoint.State({name: value.detach().clone() for name, value in tensors.items()}, plain)


def parts_of(loop: Loop) -> list[Pullback]:
    """The branches of the student's first update, the terms at the sample one by one."""
    return list(loop.method.student.losses(loop.method.draws(0), apart=True))


@pytest.mark.parametrize("settings", WAYS.values(), ids=WAYS)
def test_every_way_resumes_exactly_and_moves_the_student_its_own_way(build: Build, settings: tuple[str, ...]) -> None:
    expected = run(build(*settings, "log.gradients_every=1"), 3)
    state = run(build(*settings, "log.gradients_every=1"), 2)
    second = build(*settings, "log.gradients_every=1")
    second.load(state)
    found = run(second, 3)
    assert found.tensors.keys() == expected.tensors.keys()
    assert all(torch.equal(value, expected.tensors[name]) for name, value in found.tensors.items())
    plain = run(build("beta_ft=0", SMOOTH), 3).tensors
    student = next(name for name in plain if name.startswith("student/"))
    assert not torch.equal(plain[student], expected.tensors[student])


def test_a_model_that_is_fitted_first_is_fitted_to_the_samples_that_follow_it(build: Build) -> None:
    """Otherwise the student's first update comes before any fit."""
    for first in (False, True):
        loop = build(f"lrm.first={first}", "beta_cd=0")
        assert [turn.name for turn in loop.method.turns(0)][first] == "student"
        assert ("loss/ft" in loop.run_cycle(0)) == first
        scored = loop.method.run.surrogate.past[-1].latents
        made = torch.cat([drawn.sample.x_hat for drawn in loop.method.student.drawn])
        torch.testing.assert_close(scored[2:], made[:2], rtol=1e-4, atol=1e-5)


def test_a_separate_update_may_have_an_optimizer_of_its_own(build: Build) -> None:
    """One momentum for both is stepped twice a cycle; two are stepped once each, on weights that are saved once."""
    steps = {}
    for kind in ("shared", "own"):
        loop = build(SMOOTH, "ft.update=separate", "ft.accumulate=1", f"ft.optimizer={kind}", "lrm.warmup=0")
        run(loop, 2)
        students = {name: learner for name, learner in loop.learners.items() if name.startswith("student")}
        steps[kind] = {
            name: int(next(iter(learner.optimizers[0].state.values()))["step"]) for name, learner in students.items()
        }
        tensors = loop.state().tensors
        assert all("/optim/" in name for name in tensors if name.startswith("student_ft/"))
    assert steps == {"shared": {"student": 4}, "own": {"student": 2, "student_ft": 2}}


def test_terms_show_their_size_at_the_sample_and_at_the_weights(build: Build) -> None:
    measured = build("loss=refl", SMOOTH, "log.gradients_every=1").run_cycle(0)
    for name in ("grad_norm/x_hat/refl", "grad_norm/term/refl", "loss/refl"):
        assert abs(measured[name]) > 0
    assert -1 <= measured["cosine/x_hat/vsd_refl"] <= 1 and "cosine/vsd_refl" in measured
    other = build("loss=ddpo", "student.steps=[4]", "log.gradients_every=1").run_cycle(0)
    assert other["grad_norm/term/ddpo"] > 0 and "reward/true" in other


def test_a_small_step_up_the_latent_rewards_gradient_is_tried_while_training(build: Build) -> None:
    measured = build(SMOOTH, "log.gradients_every=1", "lrm.updates=20").run_cycle(0)
    assert measured["reward/rise_predicted"] > 0 and measured["reward/rise_true"] != 0
    assert -1 <= measured["reward/rise_cosine"] <= 1
    loop = build(SMOOTH, "log.gradients_every=1", "lrm.updates=20", "guard.action=warn", "guard.rise=true", *LOOKING)
    logged = [loop.run_cycle(cycle) for cycle in range(2)]
    rises = torch.tensor([[m[f"reward/rise_{name}"] for name in ("predicted", "true")] for m in logged])
    assert list(loop.method.scores().values()) == pytest.approx(rises.double().mean(0).tolist())
    assert loop.method.scores() == {}, "those since the last look alone"
    with pytest.raises(ValueError, match=r"guard.rise is true, but no step .* log.gradients_every above 0"):
        build(SMOOTH, "log.gradients_every=0", "guard.action=warn", "guard.rise=true", *LOOKING)
    with pytest.raises(ValueError, match=r"log.gradients_every=3 tries .* than validation.every=2 looks at it"):
        build(SMOOTH, "log.gradients_every=3", "guard.action=warn", "guard.rise=true", *LOOKING)
    assert "reward/rise_cosine" not in build("log.gradients_every=1").run_cycle(0), "that reward has no gradient"


@pytest.mark.parametrize("through", ["teacher", "fake"])
def test_that_step_goes_up_the_gradient_that_the_student_follows(
    build: Build, monkeypatch: pytest.MonkeyPatch, through: str
) -> None:
    """Through the denoiser where the term looks through it, at the same time and noise."""
    loop, ways = build("log.gradients_every=1", f"ft.through={through}", "ft.noise=[0.2,0.3]"), []
    real = surrogate_fit.climb
    monkeypatch.setattr(surrogate_fit, "climb", lambda *args: ways.append(args) or real(*args))
    assert "reward/rise_true" in loop.run_cycle(0)
    ((surrogate, x, prompts, draws, _, _, way),) = ways
    run, condition = loop.method.run, surrogate.encode_text(prompts)
    schedule = run.teacher.schedule
    t = schedule.uniform(0.2 + 0.1 * draws.uniform("through time"))
    x_t = diffuse(x, draws.normal("through noise", x.shape[1:]), t, schedule)
    denoiser = run.teacher if through == "teacher" else run.roles["fake"].denoiser
    torch.testing.assert_close(way(x, condition, draws), denoiser(x_t, t, condition))


def test_a_weight_in_units_of_vsds_gradient_is_its_share_whatever_the_reward(build: Build) -> None:
    """The mean size over the cycles before decides, so the first cycle has none; twice the beta is twice the share."""
    shares = {}
    for reward in ("Smooth", "Hundredfold"):
        for beta in (0.2, 0.4):
            named = f"reward._target_=test_steering.{reward}"
            loop = build("loss=refl", named, "beta_cd=0", f"beta_rg={beta}", "rg.unit=vsd")
            sizes = loop.method.student.sizes
            logged = [loop.run_cycle(cycle) for cycle in range(3)]
            shares[reward, beta] = [m["grad_norm/x_hat/refl"] / m["grad_norm/x_hat/vsd"] for m in logged]
            assert shares[reward, beta][0] == 0
            ratio = sizes.ratio("vsd", "refl")
            assert ratio > 0 and sizes.ratio("vsd", "pull") == sizes.ratio(None, "refl") == 0
    for beta in (0.2, 0.4):
        assert shares["Smooth", beta] == pytest.approx(shares["Hundredfold", beta], rel=1e-3)
        assert beta / 3 < shares["Smooth", beta][2] < 3 * beta
    assert shares["Smooth", 0.4][1] == pytest.approx(2 * shares["Smooth", 0.2][1], rel=1e-3)


def test_refl_adds_its_gradient_to_the_samples(build: Build) -> None:
    """With one frame of a tiny decoder the gradient at x_hat is that of finite differences."""
    loop = build("loss=refl", SMOOTH, "beta_vsd=0", "beta_cd=0", "rg.frames=1", "beta_rg=2", "student.steps=[1]")
    pixel, x = loop.method.run.pixel, torch.randn(2, 8, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    prompts = ["a white one", "a red one"]
    x = x.requires_grad_()
    (gradient,) = torch.autograd.grad(pixel.with_gradient(x, prompts, 1).sum(), x)
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ahead, behind = (pixel.with_gradient(x + step * direction, prompts, 1).sum() for step in (1e-2, -1e-2))
    torch.testing.assert_close((gradient * direction).sum(), (ahead - behind) / 2e-2, rtol=2e-2, atol=1e-4)
    (part,) = parts_of(loop)
    (drawn,) = loop.method.student.drawn
    made = drawn.sample.x_hat.clone().requires_grad_()
    (expected,) = torch.autograd.grad(-2 * pixel.with_gradient(made, drawn.context.prompts, 1).mean(), made)
    torch.testing.assert_close(part.gradient, expected)


def test_the_guards_weight_scales_what_leads_to_the_reward_alone(build: Build) -> None:
    free = build("loss=refl", SMOOTH, "beta_cd=0", "beta_pull=0.3", "beta_rg=0.7")
    assert isinstance(free.method.run.objective.terms["pull"], Pull)
    bound = build("loss=refl", SMOOTH, "beta_cd=0", "beta_rg=500", "balance=0.5", "beta_ft=0")
    fake = network_of(bound, "fake")
    fake.load_state_dict({n: v + 0.01 for n, v in fake.state_dict().items()})

    def terms(loop: Loop, scale: float) -> dict[str, Tensor]:
        loop.method.run.reward_scale = lambda: scale
        return {part.name: part.gradient for part in parts_of(loop)}

    whole, half = terms(free, 1.0), terms(free, 0.5)
    assert set(whole) == {"vsd", "pull", "refl"}
    torch.testing.assert_close(half["refl"], 0.5 * whole["refl"])
    assert torch.equal(half["vsd"], whole["vsd"]) and torch.equal(half["pull"], whole["pull"])
    sizes = [float(terms(bound, scale)["refl"].norm()) for scale in (1.0, 0.5)]  # also where the share is capped
    assert sizes[0] > 0 and sizes[1] == pytest.approx(0.5 * sizes[0])


@pytest.mark.parametrize(
    ("term", "settings"),
    [
        ("ft", ("beta_vsd=0", "ft.update=joint", "lrm.warmup=0")),
        ("ft", ("beta_vsd=0", "ft.update=separate", "lrm.warmup=0")),
        ("draft", ("loss=draft", "rg.frames=2")),
    ],
    ids=["joint", "separate", "rollout"],
)
def test_the_guards_weight_scales_every_reward(build: Build, term: str, settings: tuple[str, ...]) -> None:
    loop = build("beta_cd=0", *settings, SMOOTH)
    method, found = loop.method, []
    if term == "ft":
        assert not method.is_warm(), "rewards that are all alike lead nowhere"
        method.run.surrogate.statistics.update(torch.tensor([0.0, 1.0]))
        assert method.is_warm()
    for scale in (1.0, 0.25):
        method.run.reward_scale = lambda scale=scale: scale
        parts = parts_of(loop)
        for name, apart in method.run.objective.apart.items():
            parts += method.student.losses_apart(name, apart, method.draws(0))
        found.append(next(part.gradient for part in parts if part.name == term))
    assert float(found[0].abs().max()) > 0
    torch.testing.assert_close(found[1], 0.25 * found[0])


def test_policy_gradient_without_any_reward_stops_with_its_trouble(build: Build) -> None:
    loop = build("loss=ddpo", "student.steps=[4]", "beta_cd=0", "cycles=9")
    loop.method.run.pixel.reward = Failing()
    loop.method.max_silent = 2
    loop.data.clips.captions = tuple("a small blue circle standing still on a black background" for _ in range(12))
    loop.run_cycle(0)
    with pytest.raises(FloatingPointError, match=r"2 cycles in a row.*Failing raised RuntimeError: blue is not for me"):
        loop.run_cycle(1)


def test_a_clip_on_which_the_reward_fails_is_left_out_and_counted(build: Build) -> None:
    loop = build("beta_cd=0", "lrm.clips=4", "lrm.warmup=0")
    loop.method.run.pixel.reward = Failing()
    measured = loop.run_cycle(0)
    (observed,) = loop.method.run.surrogate.past
    expected = [not ("blue" in p or "green" in p) for p in observed.prompts]
    assert observed.usable.tolist() == expected and 0 < sum(expected) < len(expected)
    assert measured["reward/unusable"] == len(expected) - sum(expected)


def test_a_clip_on_which_the_reward_fails_gives_no_gradient_and_spoils_no_other(build: Build) -> None:
    loop = build("loss=refl", SMOOTH, "beta_ft=0")
    pixel, x = loop.method.run.pixel, torch.randn(4, 8, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    prompts = ["white", "blue", "green", "red"]

    def gradient(which: list[int]) -> Tensor:
        leaf = x.clone().requires_grad_()
        found = pixel.with_gradient(leaf[which], [prompts[i] for i in which], 2)
        torch.where(found.isfinite(), found, 0.0).sum().backward()
        return leaf.grad

    expected = gradient([0, 3])
    pixel.reward = Picky()
    torch.testing.assert_close(gradient([0, 1, 2, 3]), expected)
    assert "blue is not for me" in pixel.trouble or "nan" in pixel.trouble
    measured = loop.run_cycle(0)
    assert measured["reward/unusable"] > 0 and measured["skipped/student"] == 0


@pytest.mark.parametrize("settings", [("loss=refl", "rg.frames=2"), ("loss=draft", "rg.last=2", "rg.frames=all")])
def test_a_gradient_reward_that_fails_on_every_clip_costs_the_turn_and_is_told(
    build: Build, settings: tuple[str, ...]
) -> None:
    loop = build(*settings, SMOOTH, "beta_ft=0")
    loop.method.max_silent = 2
    loop.method.run.pixel.reward = Never()
    measured = loop.run_cycle(0)
    assert measured["reward/unusable"] == loop.method.run.batch and measured["skipped/student"] == 0
    assert measured["grad_norm/student"] > 0  # of the other terms
    with pytest.raises(FloatingPointError, match=r"2 cycles in a row.*Never raised RuntimeError: not today"):
        loop.run_cycle(1)


def test_a_gradient_is_tried_on_the_frames_that_are_decoded(build: Build, capsys: pytest.CaptureFixture) -> None:
    flicker = ("loss=draft", "reward=flicker", "reward._target_=dollar.rewards.flicker.Flicker", "beta_ft=0")
    with pytest.raises(ValueError, match="frames"):
        build(*flicker, "rg.frames=1")
    build(*flicker, "rg.frames=4")
    assert "sees motion, and rg.frames=4 shows it 4 frames of 9" in capsys.readouterr().out
    build(*flicker, "rg.frames=all")
    assert "note" not in capsys.readouterr().out
    build(*flicker, "rg.frames=all", "rg.decoder=small")
    assert "sees motion, and rg.decoder=small shows it 3 frames of 9" in capsys.readouterr().out


def test_what_is_no_number_in_a_sample_spoils_no_other_pair(build: Build) -> None:
    loop = build("beta_cd=0", "lrm.memory=3", "lrm.warmup=0")
    run(loop, 1)
    past = loop.method.run.surrogate.past
    past[0].latents[-1, 0, 0, 0, 0], past[0].usable[-1] = float("nan"), False
    for cycle in (1, 2):
        assert loop.run_cycle(cycle)["skipped/lrm"] == 0


def test_a_guard_that_can_say_nothing_is_told_once(capsys: pytest.CaptureFixture) -> None:
    class Decoded(PixelReward):
        def decode(self, latents: Tensor) -> Tensor:
            return latents

    scores = Scores(Decoded(Smooth(), None), Decoded(Never(), None))  # type: ignore[arg-type]
    for _ in range(2):
        found = scores.means(scores.of(torch.zeros(2, 8, 3, 8, 8), torch.ones(2, 3, 3, 8, 8), ["a", "b"]), broken=0)
    assert found["reward"] == 1.0 and math.isnan(found["guard"])
    told = capsys.readouterr().out
    assert told.count("a validation has no guard score: Never raised RuntimeError: not today") == 1


def test_clips_for_a_latent_reward_model_count_only_where_there_is_one(
    build: Build, capsys: pytest.CaptureFixture
) -> None:
    for without in (("loss=ddpo", "beta_ft=0", "student.steps=[4,2]"), ("beta_ft=0", "reward=none")):
        build("batch=2", "lrm.clips=4", *without)
    assert "lrm.clips" not in capsys.readouterr().out
    loop = build("batch=2", "lrm.clips=4", "lrm.warmup=0")
    loop.run_cycle(0)
    assert len(loop.method.run.surrogate.past[-1].prompts) == 2 * 2  # the batch, and as many real clips
    assert "note: lrm.clips is 4, and 2 are scored a cycle" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("clips", "batch", "processes", "scored"), [(4, 8, 1, 4), (4, 2, 1, 2), (4, 8, 8, 8), (3, 6, 2, 4), (9, 8, 2, 8)]
)
def test_as_many_clips_are_scored_by_each_process(clips: int, batch: int, processes: int, scored: int) -> None:
    assert scored_clips(clips, batch, processes) == scored
    check(compose("train", f"lrm.clips={clips}", f"batch={batch}"), processes)


def test_a_run_that_scored_more_clips_a_cycle_is_not_mixed_up(build: Build) -> None:
    loop, other = build("lrm.clips=4"), build("lrm.clips=2")
    loop.run_cycle(0)
    with pytest.raises(ValueError, match="remembers 8 scored clips a cycle, and on 1 process it would score 4"):
        other.load(loop.state())


@pytest.mark.parametrize(
    ("overrides", "note"),
    [
        (
            ("lrm.warmup=5",),
            "ft follows the latent reward model after 5 updates of it (lrm.warmup), which are 3 cycles",
        ),
        (("lrm.warmup=4",), None),
        (("ft.update=separate", "ft.accumulate=3"), None),
        (("ft.update=separate", "ft.accumulate=3", "lrm.warmup=3"), "ft gathers 3 cycles for an update of its own"),
        (("lrm.warmup=99", "beta_ft=0"), None),
        (("lrm.warmup=5", "lrm.first=true"), None),
        (
            ("lrm.backbone=pixels", "decoder.updates=1", "lrm.warmup=3"),
            "ft follows the latent reward model after 3 updates of it and of its small decoder (lrm.warmup), which",
        ),
        (
            ("loss=refl", SMOOTH, "rg.decoder=small", "decoder.updates=1", "lrm.warmup=3", "beta_ft=0"),
            "refl follows the small decoder after 3 updates of it (lrm.warmup), which are 3 cycles",
        ),
    ],
)
def test_a_reward_that_would_never_move_the_student_is_noted(
    overrides: tuple[str, ...], note: str | None, build: Build, capsys: pytest.CaptureFixture
) -> None:
    loop = build("beta_vsd=0", "beta_cd=1", *overrides)
    said = capsys.readouterr().out
    assert note in said if note else "note:" not in said
    moved = set()
    for cycle in range(loop.timetable.cycles):
        moved |= set(loop.run_cycle(cycle))
    joint = "loss/refl" if "loss=refl" in overrides else "loss/ft"
    updated = "grad_norm/student_ft" if "ft.update=separate" in overrides else joint
    assert (updated in moved) == (note is None and "beta_ft=0" not in overrides)


def test_what_is_logged_of_a_policy_gradient_is_all_its_kernels(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    loop = build("loss=ddpo", "student.steps=[4]", "beta_ft=0")
    term = loop.method.run.objective.terms["ddpo"]
    real, seen = term.losses, []

    def watched(contexts: Sequence[Context]) -> Iterator[Tensor]:
        for loss in real(contexts):
            seen.append(float(loss.detach().mean()))
            yield loss

    monkeypatch.setattr(term, "losses", watched)
    measured = loop.run_cycle(0)
    assert len(seen) > 1 and measured["loss/ddpo"] == pytest.approx(sum(seen))


# A latent reward model that was fitted before


@pytest.mark.parametrize("backbone", ["cnn", "pixels"])
def test_a_stored_model_is_read_and_only_where_asked_fitted_on(
    build: Build, teacher: Teacher, tmp_path: Path, backbone: str
) -> None:
    first = build("lrm.warmup=0", f"lrm.backbone={backbone}")
    run(first, 2)
    surrogate = first.method.run.surrogate
    surrogate.save(tmp_path / "lrm", teacher)
    stored = fingerprint(surrogate.model)
    read = ("lrm.mode=frozen", f"lrm.path={tmp_path / 'lrm'}", f"lrm.backbone={backbone}", "reward._target_=null")
    frozen = build(*read, "beta_vsd=0", "beta_cd=0")
    assert not {"lrm", "decoder"} & set(frozen.learners) and frozen.method.run.pixel is None
    before = fingerprint(network_of(frozen, "student"))
    measured = frozen.run_cycle(0)
    assert measured["loss/ft"] != 0 and not torch.equal(before, fingerprint(network_of(frozen, "student")))
    assert torch.equal(stored, fingerprint(frozen.method.run.surrogate.model))
    assert frozen.method.run.surrogate.statistics == surrogate.statistics
    state = run(frozen, 1)
    other = build(*read, "beta_vsd=0", "beta_cd=0")
    networks = [surrogate.model, *([surrogate.model.decoder] if backbone == "pixels" else [])]
    others = other.method.run.surrogate.model
    for network in (others, *([others.decoder] if backbone == "pixels" else [])):
        for p in network.parameters():
            p.data += 1.0  # the folder was written anew since
    other.load(state)
    for first, second in zip(networks, (others, getattr(others, "decoder", None)), strict=False):
        assert torch.equal(fingerprint(first), fingerprint(second))
    if backbone == "pixels":
        going_on = build("lrm.mode=pretrained", *read[1:3], "lrm.warmup=50")
        decoder = fingerprint(going_on.method.run.decoder.model)
        assert torch.equal(decoder, fingerprint(surrogate.model.decoder)) and "loss/ft" in going_on.run_cycle(0)
        assert not torch.equal(decoder, fingerprint(going_on.method.run.decoder.model))
        return
    with pytest.raises(ValueError, match="follows Redness, and reward is Smooth"):
        build("lrm.mode=pretrained", f"lrm.path={tmp_path / 'lrm'}", SMOOTH)
    sign = ("reward=jpeg_compressibility", "reward._target_=dollar.rewards.jpeg.JpegSize")
    build(*sign, "reward.sign=-1").method.run.surrogate.save(tmp_path / "jpeg", teacher)
    with pytest.raises(ValueError, match="follows jpeg_compressibility, and reward is jpeg_incompressibility"):
        build("lrm.mode=pretrained", f"lrm.path={tmp_path / 'jpeg'}", *sign, "reward.sign=1")
    # It goes on as it was fitted, without captions here, whether there is a reward to say so or none.
    blind = build("lrm.mode=frozen", f"lrm.path={tmp_path / 'jpeg'}", "reward._target_=null").method.run.surrogate
    assert not blind.model.card["text"]
    for chosen, updates in (("cnn", 0), ("pixels", 50)):  # a small decoder beside it is new, one that it has isn't
        config = compose("train", "lrm.mode=pretrained", f"lrm.backbone={chosen}", "lrm.warmup=50")
        assert followed(config, teacher, World(), new_decoder(teacher)).updates == updates
    going_on = build("lrm.mode=pretrained", f"lrm.path={tmp_path / 'lrm'}", "lrm.warmup=50")
    assert torch.equal(stored, fingerprint(going_on.method.run.surrogate.model))
    assert "loss/ft" in going_on.run_cycle(0)  # it is warm from the start
    assert not torch.equal(stored, fingerprint(going_on.method.run.surrogate.model))


def test_a_stored_model_sees_latents_as_noised_as_in_its_fit(build: Build, teacher: Teacher, tmp_path: Path) -> None:
    noised, where = ("lrm.noised=true", "lrm.noise=[0.2,0.8]"), f"lrm.path={tmp_path / 'noised'}"
    for name, how in (("noised", noised), ("clean", ())):
        build(*how).method.run.surrogate.save(tmp_path / name, teacher)
    for mode in ("pretrained", "frozen"):
        again = build(f"lrm.mode={mode}", where, *noised)
        assert again.method.run.surrogate.noised == (0.2, 0.8)
        with pytest.raises(
            ValueError, match=r"noise \[0.2, 0.8\].* see clean ones; set lrm.noised=true and lrm.noise="
        ):
            build(f"lrm.mode={mode}", where)
        with pytest.raises(ValueError, match=r"would see noise \[0.0, 0.5\]; set lrm.noised=true and lrm.noise=\[0.2"):
            build(f"lrm.mode={mode}", where, "lrm.noised=true")
        with pytest.raises(ValueError, match="fitted to clean latents.* set lrm.noised=false"):
            build(f"lrm.mode={mode}", f"lrm.path={tmp_path / 'clean'}", *noised)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (("lrm.mode=frozen",), "lrm.mode is frozen, but lrm.path is null"),
        (("lrm.path=somewhere",), "lrm.mode is online, which reads none"),
        (("lrm.mode=later",), "lrm.mode is 'later'; use online, pretrained or frozen"),
        (("lrm.mode=frozen", "lrm.path=nowhere"), "no latent reward model in nowhere"),
        (
            ("lrm.mode=frozen", "lrm.path=any", "lrm.backbone=pixels", "decoder.path=taew2_1.pth"),
            "decoder.path is taew2_1.pth, but the latent reward model of lrm.mode=frozen looks at the",
        ),
        (("loss=refl", "rg.decoder=small", "beta_ft=1", "lrm.mode=frozen", "lrm.path=any"), "lrm.mode=frozen none is"),
        (("lrm.smooth=-1",), "lrm.smooth is -1"),
        (("decoder.frames=0",), "decoder.frames is 0; it must be at least 1"),
        (("lrm.fit=ranks",), "lrm.fit is 'ranks'; use mse or pairwise"),
        (("lrm.backbone=unet",), "lrm.backbone is 'unet'; use cnn or teacher"),
        (
            ("lrm.backbone=teacher", "parallel.shard_teacher=true"),
            "parallel.shard_teacher spreads the teacher's blocks",
        ),
        (("lrm.backbone=teacher", "lrm.blocks=7"), "lrm.blocks is 7; this teacher has 1 to 2"),
        (("lrm.backbone=teacher", "lrm.noise=[0.6,0.5]"), "lrm.noise is"),
        (("loss=ddpo", "batch=1", "lrm.clips=1"), "batch is 1, but the loss's ddpo compares"),
        (("loss=ddpo", "ddpo.truncate=4"), "ddpo.truncate is 4, but the student has 3 random steps"),
        (("lrm.mode=frozen", "lrm.path=any", "beta_ft=0"), "lrm.mode is frozen, but beta_ft is 0"),
        (("reward._target_=test_steering.Pretending", "loss=refl"), "no gradient comes back through it"),
        (("loss=refl",), "the loss's refl needs the reward's gradient, and Redness has none"),
        (("loss=ddpo", "beta_ft=0", "reward._target_=null"), "the loss's ddpo needs a reward, but reward=none"),
        (("loss=ddpo", "student.steps=[1]"), "a student of one step has none"),
        (("beta_pull=-1",), "beta_pull is -1; a weight is 0"),
        (("beta_vsd=0", "beta_cd=0", "beta_ft=0"), "every beta is 0"),
        (("guard.action=stop",), "validation.every is 0, so it would see nothing"),
        (("guard.action=stop", "validation.every=1", "beta_ft=0"), "no term leads to a reward"),
        (("guard.action=stop", "validation.every=1", "beta_ft=0", "loss=ddpo"), "can't be its own guard"),
        (("patience=2",), "patience is 2 and keep_best None"),
        (("reward._target_=test_steering.Never",), "the reward Never failed on a first clip: RuntimeError: not today"),
    ],
)
def test_what_does_not_go_together_is_told(build: Build, settings: tuple[str, ...], told: str) -> None:
    with pytest.raises(Exception, match=told):
        build(*settings)


# The guard and early stopping


def watched(loop: Loop, *checks: tuple[float, float]) -> list[Tensor]:
    """Let validation give these predicted and true rewards; the student's averages at each."""
    given, seen = iter(checks), []

    def validate(cycle: int) -> dict[str, float]:
        seen.append(fingerprint(network_of(loop, "student")))
        predicted, true = next(given)
        return {"predicted_4": predicted, "reward_4": true}

    loop.validate = validate
    return seen


STOPPING = ("validation.every=1", "cycles=6", "guard.action=stop", "guard.patience=2", "guard.tolerance=0.1")


def test_the_guard_ends_the_run_with_the_last_student_before_it(build: Build) -> None:
    loop = build(*STOPPING)
    seen = watched(loop, (1.0, 0.5), (1.1, 0.6), (1.5, 0.4), (1.6, 0.3), (1.7, 0.2))
    assert loop.train() and loop.cycle == 3  # the first look is before any training
    assert "over-optimisation" in loop.ended and loop.uses_best
    tensors, plain = checkpoint.load(checkpoint.newest(loop.folder / "best"))
    names = [name for name, _ in network_of(loop, "student").named_parameters()]
    assert plain["best"] == {"cycle": 1}
    assert torch.equal(torch.cat([tensors[f"ema/{n}"].flatten() for n in names]), seen[1])
    again = build(*STOPPING)
    again.load(checkpoint.load(checkpoint.newest(loop.folder / "checkpoints")))
    again.run_cycle = lambda cycle: pytest.fail("a run that ended has nothing to do")
    assert again.train() and again.ended == loop.ended


def test_the_guard_lowers_the_rewards_weight(build: Build) -> None:
    loop = build(*STOPPING[:2], "guard.action=lower", "guard.patience=1", "guard.factor=0.25")
    watched(loop, (0.9, 0.5), (1.0, 0.5), (1.5, 0.3), (1.4, 0.3), (1.6, 0.1), (1.7, 0.1), (1.7, 0.1))
    assert loop.train() and loop.cycle == 6 and not loop.ended
    assert loop.monitors["guard"].scale == loop.method.run.reward_scale() == 0.0625


def test_a_run_ends_when_its_best_score_stays_behind(build: Build) -> None:
    loop = build("validation.every=1", "cycles=9", "keep_best=reward_4", "patience=2")
    watched(loop, *[(0.0, true) for true in (0.1, 0.5, 0.4, 0.5, 0.9)])
    assert loop.train() and loop.cycle == 4
    assert "no better reward_4 than 0.5 of cycle 2" in loop.ended and loop.uses_best
    silent = build("validation.every=1", "cycles=9", "keep_best=reward_4", "patience=2")
    watched(silent, *[(0.0, math.nan)] * 4)
    assert silent.train() and silent.cycle == 2 and silent.ended == "reward_4 was never a number"


def test_the_guards_sentence_stands_where_patience_ends_with_it(build: Build) -> None:
    loop = build(*STOPPING, "keep_best=reward_4", "patience=2")
    watched(loop, (1.0, 0.5), (1.5, 0.3), (1.6, 0.2))
    assert loop.train() and loop.cycle == 2 and loop.best == {"reward_4": 0.5, "cycle": 0}
    assert loop.ended.startswith("over-optimisation") and loop.ended.endswith("with the student of the best reward_4")


def test_a_guards_reward_is_measured_beside_the_runs_own(build: Build) -> None:
    loop = build("validation.every=1", "guard.action=warn", "guard.reward._target_=test_steering.Smooth", "cycles=1")
    scores = loop.validate(1)
    assert {name.partition("_")[0] for name in scores} == {"reward", "guard", "predicted"}
    assert all(0 < scores[f"guard_{steps}"] < 2 for steps in (4, 2, 1))
    assert all(math.isnan(scores[f"predicted_{steps}"]) for steps in (4, 2, 1)), "never fitted, it predicts nothing"
    run(loop, 1)
    assert all(math.isfinite(loop.validate(1)[f"predicted_{steps}"]) for steps in (4, 2, 1))


def test_tuning_the_teacher_follows_its_own_times_and_stays_near_it(build: Build) -> None:
    """With the pull alone, a network that is the teacher has nothing to learn; moved away, it is led back."""
    loop = build("experiment=tune_teacher", "student.steps=[10]", "beta_ft=0", "reward._target_=null")
    student = network_of(loop, "student")

    def pulled() -> Tensor:
        (part,) = parts_of(loop)
        torch.autograd.backward(part.tensor, part.gradient)
        found = gradients(student).clone()
        student.zero_grad()
        return found

    assert float(pulled().abs().max()) < 1e-6
    with torch.no_grad():
        for p in student.parameters():
            p += 0.01
    assert float(pulled().abs().max()) > 1e-4
