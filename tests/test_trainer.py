"""The loop: resuming is exact, processes agree, what is not finite is not stepped on, a signal saves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from conftest import ROOT, World, fingerprint, load_tiny_teacher, new_network, tiny_trainer
from torch import Tensor

from dollar.models.teacher import Teacher
from dollar.parallel import checkpoint
from dollar.training.trainer import Trainer

Build = Callable[..., Trainer]
# Three cycles leave one gathered reward gradient of two behind, so a resumed run starts in the middle of a gathering.
MOMENTUM = ("optim.student.betas=[0.5,0.99]", "optim.fake.betas=[0.5,0.99]")
APART = ("ft.update=separate", "ft.accumulate=2", "cd.target=ema", *MOMENTUM)
JOINT = ("lrm.warmup=1", "balance=0.5")


def run(trainer: Trainer, cycles: int) -> checkpoint.State:
    """Train to this cycle, and what a checkpoint then holds."""
    trainer.plan.cycles = cycles
    assert trainer.train()
    return checkpoint.load(checkpoint.newest(trainer.folder / "checkpoints"))


def differing(found: checkpoint.State, expected: checkpoint.State) -> list[str]:
    """Names of entries that one of the two lacks or has otherwise."""
    plain = [k for k in found.plain.keys() | expected.plain.keys() if found.plain.get(k) != expected.plain.get(k)]
    names = found.tensors.keys() | expected.tensors.keys()
    shared = found.tensors.keys() & expected.tensors.keys()
    return plain + [n for n in names if n not in shared or not torch.equal(found.tensors[n], expected.tensors[n])]


def assert_same(found: checkpoint.State, expected: checkpoint.State) -> None:
    """The same to the last bit."""
    assert not differing(found, expected)


def scalars(trainer: Trainer) -> list[dict]:
    """What was logged, without the times."""
    lines = [json.loads(line) for line in (trainer.folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith(("time/", "memory/"))} for line in lines]


def test_the_distiller_knows_how_much_of_the_run_is_done(build: Build) -> None:
    trainer = build("beta_ft=0", "beta_cd=0")
    trainer.plan.cycles = 8
    for cycle, done in ((0, 0.0), (2, 0.25), (6, 0.75)):
        trainer.run_cycle(cycle)
        assert trainer.distiller.progress == done


# Resuming


@pytest.mark.parametrize("settings", [APART, JOINT], ids=["apart", "joint"])
def test_a_resumed_run_is_the_unbroken_one_to_the_last_bit(build: Build, settings: tuple[str, ...]) -> None:
    unbroken = build(*settings)
    expected = run(unbroken, 5)
    first = build(*settings)
    state = run(first, 3)
    if settings is APART:
        assert state.plain["ft_held"] == 1 and "ft/0" in state.tensors
    assert len(state.plain["past"]) == 3
    second = build(*settings)
    second.load(state)
    assert_same(checkpoint.State(*second.state()), state)  # nothing is lost by loading
    assert_same(run(second, 5), expected)
    assert scalars(first) + scalars(second) == scalars(unbroken)
    assert len({line["loss/vsd"] for line in scalars(unbroken)}) == 5


def kinds(state: checkpoint.State) -> dict[str, list[str]]:
    """Entries of a state that are forgotten together: those of one network, one moment, one list."""
    found: dict[str, list[str]] = {}
    for name in state.tensors:
        owner, *_, last = name.split("/")
        found.setdefault(f"{owner}/{last}" if owner.endswith(".optim") or owner == "past" else owner, []).append(name)
    return found


def test_every_entry_of_a_state_matters(build: Build) -> None:
    """A state in which one entry is as in a new run doesn't go on as the unbroken run does."""
    unbroken = build(*APART)
    unbroken.best = {"reward_4": 0.25, "cycle": 1}
    unbroken.learners["fake"].skipped = 2
    unbroken.distiller.latent_reward.bad = 1
    unbroken.guard.troubled = 1
    unbroken.distiller.silent = 1
    state = run(unbroken, 3)
    expected = run(unbroken, 4)

    def goes_on(tensors: dict[str, Tensor], plain: dict) -> bool:
        trainer = build(*APART)
        trainer.data._latents = unbroken.data._latents  # encoded and scored once for all
        trainer.distiller.latent_reward._known = dict(unbroken.distiller.latent_reward._known)
        try:
            trainer.load(checkpoint.State(tensors, plain))
            return not differing(run(trainer, 4), expected)
        except (AssertionError, KeyError, RuntimeError, IndexError):
            return False

    assert goes_on(*state)
    fresh = build(*APART).state()
    # The configuration tells a reader what made this, other data is refused, and a run that has ended goes no further.
    for key in state.plain.keys() - {"config", "data", "ended"}:
        assert state.plain[key] != fresh.plain[key], f"this run can't tell whether {key} matters"
        assert not goes_on(state.tensors, {**state.plain, key: fresh.plain[key]}), key
    groups = kinds(state)
    moments = [f"{n}.optim/{m}" for n in ("student", "fake", "lrm") for m in ("exp_avg", "exp_avg_sq", "step")]
    past = [f"past/{what}" for what in ("latents", "reward", "usable")]
    assert set(groups) == {"student", "fake", "lrm", "ema", "ft", *moments, *past}
    for kind, names in groups.items():
        blank = {n: fresh.tensors.get(n, torch.zeros_like(state.tensors[n])) for n in names}
        assert not goes_on({**state.tensors, **blank}, state.plain), kind
        if ".optim/" not in kind:  # removed altogether, it is missed at once
            with pytest.raises(KeyError):
                build(*APART).load(
                    checkpoint.State({n: t for n, t in state.tensors.items() if n != names[0]}, state.plain)
                )


def test_a_finished_run_does_no_step(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = run(build("cycles=2"), 2)
    again = build("cycles=2")
    again.load(expected)
    monkeypatch.setattr(again, "run_cycle", lambda cycle: pytest.fail("a finished run has nothing to do"))
    assert again.train()
    assert_same(checkpoint.State(*again.state()), expected)


def test_the_same_seed_is_the_same_run_and_another_is_not(build: Build) -> None:
    first, second, third = (run(build(f"seed={seed}"), 2) for seed in (0, 0, 1))
    first.plain.pop("config"), second.plain.pop("config")
    assert_same(first, second)
    assert not torch.equal(first.tensors["past/0/latents"], third.tensors["past/0/latents"])
    weight = next(n for n in first.tensors if n.startswith("student/"))
    assert not torch.equal(first.tensors[weight], third.tensors[weight])


@pytest.mark.parametrize("settings", [("beta_vsd=0",), ("beta_ft=0",), ("beta_cd=0", "student.input=noised_data")])
def test_runs_of_fewer_terms_resume_too(build: Build, settings: tuple[str, ...]) -> None:
    expected = run(build(*settings), 3)
    state = run(build(*settings), 2)
    second = build(*settings)
    second.load(state)
    assert_same(run(second, 3), expected)


def test_rates_fall_over_the_last_cycles_and_resume_where_they_were(build: Build) -> None:
    settings = ("cycles=5", "decay_from=0.2", "optim.student.lr=1e-3", "optim.fake.lr=2e-3", "optim.lrm.lr=3e-3")
    trainer, rates = build(*settings), []
    cycle = trainer.run_cycle

    def watched(number: int) -> dict[str, float]:
        measured = cycle(number)
        rates.append([learner.optimizer.param_groups[0]["lr"] for learner in trainer.learners.values()])
        return measured

    trainer.run_cycle = watched
    expected = run(trainer, 5)
    shares = torch.tensor([1, 1, 0.75, 0.5, 0.25])
    student, fake, lrm = torch.tensor(rates).T
    torch.testing.assert_close(student, 1e-3 * shares)
    torch.testing.assert_close(fake, 2e-3 * shares)
    torch.testing.assert_close(lrm, torch.full((5,), 3e-3))
    unfinished = build(*settings)
    for number in range(3):
        unfinished.run_cycle(number)
        unfinished.cycle += 1
    again = build(*settings)
    again.load(checkpoint.State(*unfinished.state()))
    assert_same(run(again, 5), expected)


# Signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_finishes_the_cycle_saves_and_ends(build: Build, number: int) -> None:
    expected = run(build(), 3)
    stopped = build("cycles=3", "save_every=100")
    cycle = stopped.run_cycle

    def interrupted(number_of_cycle: int) -> dict[str, float]:
        if number_of_cycle == 1:
            os.kill(os.getpid(), number)
        return cycle(number_of_cycle)

    stopped.run_cycle = interrupted
    handler = signal.getsignal(number)
    assert stopped.train() is False and stopped.cycle == 2
    assert signal.getsignal(number) == handler
    state = checkpoint.load(checkpoint.newest(stopped.folder / "checkpoints"))
    assert state.plain["cycle"] == 2
    again = build()
    again.load(state)
    assert_same(run(again, 3), expected)


# What is not finite


@pytest.mark.parametrize("name", ["student", "fake", "lrm"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_skips_that_update_alone(build: Build, name: str, value: float) -> None:
    trainer = build()
    trainer.run_cycle(0)
    before = {n: {k: t.clone() for k, t in learner.state().items()} for n, learner in trainer.learners.items()}
    average = [a.clone() for a in trainer.ema.average]
    handle = next(trainer.learners[name].network.parameters()).register_hook(lambda g: g.fill_(value))
    measured = trainer.run_cycle(1)
    handle.remove()
    for other, learner in trainer.learners.items():
        unchanged = all(torch.equal(t, before[other][k]) for k, t in learner.state().items())
        assert unchanged == (other == name), other
        assert all(p.grad is None for p in learner.parameters)
    updates = {"student": 1, "fake": 2, "lrm": 2}[name]
    assert measured[f"skipped/{name}"] == trainer.learners[name].in_a_row == updates
    moved = not all(torch.equal(a, b) for a, b in zip(average, trainer.ema.average, strict=True))
    assert moved == (name != "student")
    trainer.run_cycle(2)
    assert trainer.learners[name].in_a_row == 0 and trainer.learners[name].skipped == updates
    assert fingerprint(trainer.learners[name].network).isfinite().all()


def test_too_many_in_a_row_stop_the_run_with_a_sentence(build: Build) -> None:
    trainer = build("cycles=9")
    trainer.plan.max_skipped = 3
    next(trainer.learners["student"].network.parameters()).register_hook(lambda g: g * float("nan"))
    with pytest.raises(FloatingPointError, match=r"3 updates of the student in a row.*optim.student.lr"):
        trainer.train()
    assert trainer.cycle == 2


class Speechless:
    """A reward that has no answer."""

    def score(self, videos: Tensor, prompts: Sequence[str]) -> Tensor:
        return torch.full((len(prompts),), float("nan"))


def test_a_reward_without_answers_teaches_nothing_and_steers_nothing(build: Build) -> None:
    trainer = build("cycles=9", "lrm.warmup=2")
    surrogate, lrm = trainer.distiller.latent_reward, trainer.learners["lrm"]
    real, before = surrogate.pixel.reward, fingerprint(lrm.network)
    surrogate.pixel.reward = Speechless()
    trainer.plan.max_skipped = 3
    for cycle in range(2):
        measured = trainer.run_cycle(cycle)
        assert "loss/ft" not in measured and "loss/lrm" not in measured
        assert measured["skipped/lrm"] == cycle + 1 and measured["reward/unusable"] > 0
    assert torch.equal(fingerprint(lrm.network), before) and trainer.lrm_count == 0
    with pytest.raises(
        FloatingPointError,
        match=r"3 cycles in a row gave no reward that is a number \(the last time, Speechless gave nan",
    ):
        trainer.run_cycle(2)
    surrogate.pixel.reward = real  # what was not answered is asked again
    lrm.in_a_row = 0
    assert trainer.run_cycle(3)["loss/lrm"] > 0 and trainer.lrm_count == trainer.plan.lrm_updates
    assert len(surrogate._known) == trainer.plan.lrm_clips


def test_the_separate_update_shows_its_gradient(build: Build) -> None:
    trainer = build("ft.update=separate", "ft.accumulate=2", "log.gradients_every=1", "lrm.warmup=0")
    first, second = trainer.run_cycle(0), trainer.run_cycle(1)
    assert first["grad_norm/term/ft"] > 0 and first["grad_norm/student"] > 0
    assert "grad_norm/student_ft" not in first and second["grad_norm/student_ft"] > 0


# Validation and the best checkpoint


def test_the_best_average_is_kept(build: Build) -> None:
    trainer = build("validation.every=1", "keep_best=reward_4", "cycles=4")
    averages, scores = [], iter([0.25, 0.75, 0.5, 0.75])
    network = trainer.learners["student"].network

    def validate(cycle: int) -> dict[str, float]:
        averages.append(fingerprint(network))
        return {"reward_4": next(scores), "alignment_4": float(cycle)}

    trainer.validate = validate
    assert trainer.train()
    assert torch.equal(averages[3], torch.cat([a.flatten() for a in trainer.ema.average]))
    assert not torch.equal(averages[3], fingerprint(network))  # the average is looked at, then put away
    assert trainer.best == {"reward_4": 0.75, "cycle": 2}
    (kept,) = (trainer.folder / "best").iterdir()
    tensors, plain = checkpoint.load(kept)
    assert plain["best"]["cycle"] == 2
    found = torch.cat([tensors[f"ema/{n}"].flatten() for n, _ in network.named_parameters()])
    assert torch.equal(found, averages[1])
    assert scalars(trainer)[-1]["validation/reward_4"] == 0.75


def test_a_best_score_that_is_not_measured_is_named_before_the_first_cycle(build: Build) -> None:
    with pytest.raises(ValueError, match=r"keep_best is 'beauty'; validation measures reward_4, reward_2, reward_1"):
        build("validation.every=1", "keep_best=beauty")
    with pytest.raises(ValueError, match=r"keep_best is 'reward_4'.*validation.every"):
        build("validation.every=0", "keep_best=reward_4")


def test_validation_scores_every_step_count_and_shows_clips(build: Build) -> None:
    trainer = build("validation.every=2", "validation.prompts=3", "cycles=2")
    assert trainer.train()
    (scores,) = [line for line in scalars(trainer) if "validation/reward_4" in line]
    measured = {f"validation/{what}_{n}" for what in ("reward", "predicted") for n in (4, 2, 1)}
    assert {k for k in scores if k.startswith("validation/")} == measured
    assert scores["step"] == 2
    assert trainer.validate(2) == trainer.validate(2)  # fixed prompts and seeds


# Networks


def test_the_teacher_stays_as_it_was(build: Build, teacher: Teacher) -> None:
    parts = [teacher.denoiser.network, teacher.codec.vae, *teacher.text.models]
    before = [fingerprint(part) for part in parts]
    trainer = build()
    student = fingerprint(trainer.learners["student"].network)
    assert torch.equal(student, before[0]) and torch.equal(fingerprint(trainer.learners["fake"].network), before[0])
    run(trainer, 2)
    assert all(torch.equal(b, fingerprint(part)) for b, part in zip(before, parts, strict=True))
    assert not torch.equal(student, fingerprint(trainer.learners["student"].network))


def test_a_run_starts_from_a_finished_student(build: Build, teacher: Teacher, tmp_path: Path) -> None:
    from dollar.export.student import few_steps, load_student, save_student

    network = new_network(teacher)
    with torch.no_grad():
        for p in network.parameters():
            p += 0.01
    samplers = few_steps(teacher, [999, 749, 499, 249], [4, 2, 1], "renoise")
    save_student(tmp_path / "student", teacher, network, samplers, {})
    trainer = build(f"init={tmp_path / 'student'}", "beta_ft=0")
    assert torch.equal(fingerprint(trainer.learners["student"].network), fingerprint(network))
    assert torch.equal(torch.cat([a.flatten() for a in trainer.ema.average]), fingerprint(network))
    assert torch.equal(fingerprint(trainer.learners["fake"].network), fingerprint(trainer.distiller.teacher.network))
    run(trainer, 1)
    assert not torch.equal(fingerprint(trainer.learners["student"].network), fingerprint(network))
    loaded = load_student(tmp_path / "student", teacher)
    assert torch.equal(fingerprint(loaded.denoiser.network), fingerprint(network))
    with pytest.raises(ValueError, match=r"no student in .*nowhere"):
        build(f"init={tmp_path / 'nowhere'}")


def test_warming_up_the_fake_score_leaves_the_student_alone(build: Build) -> None:
    trainer = build("fake_warmup=2", "lrm.warmup=0", *APART[:1], "ft.accumulate=1")
    before = fingerprint(trainer.learners["student"].network)
    fake = fingerprint(trainer.learners["fake"].network)
    for cycle in range(2):
        trainer.run_cycle(cycle)
    assert torch.equal(before, fingerprint(trainer.learners["student"].network))
    assert not torch.equal(fake, fingerprint(trainer.learners["fake"].network))
    trainer.run_cycle(2)
    assert not torch.equal(before, fingerprint(trainer.learners["student"].network))


def test_comparing_the_terms_changes_the_update_by_rounding_alone(build: Build) -> None:
    states = [run(build(f"log.gradients_every={every}", "lrm.warmup=0"), 2) for every in (0, 1)]
    for name, value in states[0].tensors.items():
        if name.startswith("student/"):
            torch.testing.assert_close(states[1].tensors[name], value, rtol=0, atol=1e-5)
    trainer = build("log.gradients_every=1", "lrm.warmup=0")
    logged = trainer.run_cycle(0)
    assert {"grad_norm/term/vsd", "grad_norm/term/ft", "grad_norm/term/cd", "cosine/vsd_ft"} <= logged.keys()
    assert -1 <= logged["cosine/vsd_cd"] <= 1


def test_gathered_reward_gradients_are_averaged(build: Build) -> None:
    """Two cycles gathered move the student by the mean of their gradients, in one clipped step."""
    trainer = build("ft.update=separate", "ft.accumulate=2", "lrm.warmup=0", "clip_gradient=1e9")
    seen: list[Tensor] = []
    step = trainer._step

    def watched(learner, *name: str) -> bool:
        if learner.name == "student":
            seen.append(torch.cat([p.grad.flatten() for p in learner.parameters]))
        return step(learner, *name)

    trainer._step = watched
    for cycle in range(2):
        trainer.run_cycle(cycle)
    assert len(seen) == 3 and trainer._ft_gradients == []  # distillation twice, the reward once
    longer = build("ft.update=separate", "ft.accumulate=3", "lrm.warmup=0", "clip_gradient=1e9")
    longer.run_cycle(0)
    first = torch.cat([g.flatten() for g in longer._ft_gradients]).clone()
    longer.run_cycle(1)
    both = torch.cat([g.flatten() for g in longer._ft_gradients])
    assert first.norm() > 0 and not torch.allclose(both, 2 * first, rtol=1e-2)
    torch.testing.assert_close(seen[2], both / 2)


# Two processes


# Added to all keys alike, so that no softmax depends on it: its gradient is rounding, which Adam makes as large as any.
CANCELS = "norm_k.bias"


def close(found: Tensor, expected: Tensor, name: str) -> None:
    atol = 1e-3 if CANCELS in name else 1e-5
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=atol, msg=lambda text: f"{name}: {text}")


def test_two_processes_agree_with_one(tmp_path: Path, tiny_teacher_folder: Path) -> None:
    """One launch for all that takes a launch; see `work`."""
    work(tmp_path / "one", tiny_teacher_folder, World())
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    paths = [str(ROOT), str(ROOT / "tests")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, __file__, str(tmp_path / "two"), str(tiny_teacher_folder)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]

    def saved(who: str, which: str) -> checkpoint.State:
        return checkpoint.load(checkpoint.newest(tmp_path / who / which / "checkpoints"))

    for which in ("apart", "joint", "resumed", "lora", *STEERED):
        one, two = saved("one", which), saved("two", which)
        assert one.tensors.keys() == two.tensors.keys()
        assert one.plain.get("past") == two.plain.get("past") and one.plain["ft_held"] == two.plain["ft_held"]
        for name, value in one.tensors.items():
            assert value.shape == two.tensors[name].shape, name
            close(two.tensors[name], value, name)
        for key, value in one.plain.get("statistics", {}).items():
            assert two.plain["statistics"][key] == pytest.approx(value, rel=1e-5)
    # Two processes went on from what one had saved, and now one goes on from what two had.
    assert saved("two", "resumed").plain["cycle"] == 4
    crossed = tiny_trainer(load_tiny_teacher(tiny_teacher_folder), tmp_path / "crossed", *APART)
    crossed.load(checkpoint.load(tmp_path / "two" / "apart" / "checkpoints" / "step-00000003"))
    found, expected = run(crossed, 4), saved("one", "resumed")
    crossed.log.close()
    for name, value in expected.tensors.items():
        close(found.tensors[name], value, name)
    # One process's gradient that is not finite skips the update of both.
    report = json.loads((tmp_path / "two" / "report.json").read_text())
    assert report == {"skipped": [1.0, 1.0], "unchanged": True, "stopped": True, "gathered": [0, 1, 2, 3]}


def spread_wan(folder: Path, world: World) -> None:
    """A teacher with parameters of a single row, of which the other processes hold none: weights and copy are whole."""
    from families import FAMILIES, build

    from dollar.parallel.shard import fill_from, fill_teacher, trainable_copy, whole

    if world.is_main:
        build("wan_2_1", folder / "wan")
    world.barrier()
    alone = FAMILIES["wan_2_1"].load(folder / "wan")
    spread = FAMILIES["wan_2_1"].load(folder / "wan", weights=False)
    fill_teacher(spread, world, spread=True)
    started = trainable_copy(alone, world)
    fill_from(started, alone.pipeline.weights("transformer"))
    wanted = dict(alone.denoiser.network.named_parameters())
    assert any(p.shape[0] == 1 for p in wanted.values())
    for network in (spread.denoiser.network, trainable_copy(spread, world), started):
        for name, p in network.named_parameters():
            assert torch.equal(whole(p.detach()), wanted[name]), name


STEERED = {
    "ddpo": ("loss=ddpo", "beta_ft=0", "student.steps=[4,2]", "ddpo.truncate=2"),
    "draft": ("loss=draft", "beta_ft=0", "rg.last=2", "rg.frames=2", "reward._target_=test_steering.Smooth"),
    "blocks": ("lrm.backbone=teacher", "lrm.fit=pairwise", "ft.update=separate", "ft.accumulate=2", "lrm.warmup=1"),
}
"""Other ways to a reward: a policy gradient, several forwards before one backward, pairs on the teacher's blocks."""


def work(folder: Path, teacher_folder: Path, world: World) -> None:
    """What the test compares: two kinds of run, a resumed one, and (on two processes) what only one of them knows."""
    from dollar.parallel.shard import fill_teacher, own

    teacher = load_tiny_teacher(teacher_folder)
    spread = load_tiny_teacher(teacher_folder, weights=world.size == 1)
    if world.size > 1:
        whole_size = sum(p.numel() for p in spread.denoiser.network.parameters())
        assert all(p.is_meta for p in spread.denoiser.network.parameters())
        fill_teacher(spread, world, spread=True)
        assert 0.4 < sum(own(p).numel() for p in spread.denoiser.network.parameters()) / whole_size < 0.6

    if world.size > 1:
        spread_wan(folder, world)

    def trainer_of(name: str, *settings: str) -> Trainer:
        # One of the runs has its teacher spread over the processes.
        return tiny_trainer(spread if name == "joint" else teacher, folder / name, *settings, world=world)

    for name, settings in (
        ("apart", APART),
        ("joint", (*JOINT, "log.gradients_every=1", "validation.every=3")),
        ("lora", (*JOINT, "student.lora=4")),
        *STEERED.items(),
    ):
        trainer = trainer_of(name, *settings)
        assert trainer.train()
        trainer.log.close()
    resumed = trainer_of("resumed", *APART, "cycles=4")
    resumed.load(checkpoint.load(checkpoint.newest(folder.parent / "one" / "apart" / "checkpoints")))
    assert resumed.train()
    resumed.log.close()
    if world.size == 1:
        return
    from dollar.parallel.shard import whole

    trainer = trainer_of("hurt", "beta_ft=0", "fake_updates=1", "cycles=9")
    network = trainer.learners["student"].network
    before = [whole(p.detach()).clone() for p in network.parameters()]
    real = trainer.distiller._consistency_loss

    def hurt(*arguments):
        return real(*arguments) * (float("nan") if world.rank == 1 else 1.0)

    trainer.distiller._consistency_loss = hurt
    trainer.run_cycle(0)
    skipped = world.gather(torch.tensor([float(trainer.learners["student"].skipped)])).tolist()
    after = [whole(p.detach()) for p in network.parameters()]
    unchanged = all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    gathered = world.gather(torch.tensor(list(world.own(0, 4)))).tolist()
    trainer.stopping = world.rank == 1  # a signal that reached one process stops both
    stopped = trainer.train() is False
    if world.is_main:
        report = {"skipped": skipped, "unchanged": unchanged, "stopped": stopped, "gathered": gathered}
        (folder / "report.json").write_text(json.dumps(report))
    world.barrier()


if __name__ == "__main__":
    from dollar.parallel.world import finish, start

    torch.set_num_threads(1)
    joined = start("cpu", timeout_minutes=2)
    work(Path(sys.argv[1]), Path(sys.argv[2]), joined)
    finish(joined)
