"""The loop: resuming is exact, processes agree, what is not finite is not stepped on, a signal saves."""

from __future__ import annotations

import copy
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from conftest import (
    World,
    fingerprint,
    free_port,
    load_tiny_teacher,
    network_of,
    new_network,
    start_process,
    tiny_run,
)
from pairs import write_pairs
from test_micro_batches import COMMON, ONE_BY_ONE, TOLERANCE, differences, gradients_of
from test_micro_batches import WAYS as MICRO_BATCHED
from torch import Tensor

from dollar.losses.term import Context
from dollar.models.teacher import Teacher
from dollar.parallel import checkpoint
from dollar.training.learner import Gathered
from dollar.training.loop import Loop

Build = Callable[..., Loop]
# Three cycles leave one gathered reward gradient of two behind, so a resumed run starts in the middle of a gathering.
MOMENTUM = ("optim.student.betas=[0.5,0.99]", "optim.fake.betas=[0.5,0.99]")
APART = ("ft.update=separate", "ft.accumulate=2", "cd.target=ema", *MOMENTUM)
JOINT = ("lrm.warmup=1", "balance=0.5")
MONITORED = ("validation.every=2", "validation.clips=0", "keep_best=reward_4", "guard.action=lower")


def stopped_after(loop: Loop, cycles: int) -> Path:
    """Let a signal reach the run after so many cycles; the checkpoint that it leaves."""
    real = loop.run_cycle

    def run_cycle(cycle: int) -> dict[str, float]:
        loop.stop.requested = cycle + 1 == cycles
        return real(cycle)

    loop.timetable.cycles, loop.run_cycle = cycles + 1, run_cycle
    assert loop.train() is False and loop.cycle == cycles
    found = checkpoint.newest(loop.folder / "checkpoints")
    assert found is not None
    return found


def run(loop: Loop, cycles: int) -> checkpoint.State:
    """Train to this cycle, and what a checkpoint then holds."""
    loop.timetable.cycles = cycles
    assert loop.train()
    return checkpoint.load(checkpoint.newest(loop.folder / "checkpoints"))


def plain_of(state: checkpoint.State) -> dict[str, object]:
    """A state's plain values as a file has them, those of its parts as `<part>/<name>` or `surrogate/<name>`."""
    found = json.loads(json.dumps(state.plain))
    for part, values in found.pop("parts").items():
        found |= {f"{part}/{name}": value for name, value in values.items() if name != "surrogate"}
        found |= {f"surrogate/{name}": value for name, value in values.get("surrogate", {}).items()}
    return found


def replaced(state: checkpoint.State, name: str, value: object) -> checkpoint.State:
    """The state with another plain value of this name."""
    plain = copy.deepcopy(state.plain)
    part, _, rest = name.rpartition("/")
    parts = plain["parts"]
    (plain if not part else parts["method"][part] if part == "surrogate" else parts[part])[rest] = value
    return checkpoint.State(state.tensors, plain)


def differing(found: checkpoint.State, expected: checkpoint.State) -> list[str]:
    """Names of entries that one of the two lacks or has otherwise, sorted."""
    one, other = plain_of(found), plain_of(expected)
    plain = [name for name in one.keys() | other.keys() if one.get(name) != other.get(name)]
    names = found.tensors.keys() | expected.tensors.keys()
    shared = found.tensors.keys() & expected.tensors.keys()
    tensors = [n for n in names if n not in shared or not torch.equal(found.tensors[n], expected.tensors[n])]
    return sorted(plain + tensors)


def assert_same(found: checkpoint.State, expected: checkpoint.State) -> None:
    """The same to the last bit."""
    assert not differing(found, expected)


def scalars(loop: Loop) -> list[dict]:
    """What was logged, without the times."""
    return scalars_in(loop.folder)


def is_compared(name: str) -> bool:
    """Whether a scalar compares gradients at the weights."""
    return name.startswith(("grad_norm/", "cosine/")) and "x_hat" not in name


def scalars_in(folder: Path) -> list[dict]:
    """What was logged in a run's folder, without the times."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith(("time/", "memory/"))} for line in lines]


def test_the_method_knows_how_much_of_the_run_is_done(build: Build) -> None:
    loop = build("beta_ft=0", "beta_cd=0")
    loop.timetable.cycles = 8
    for cycle, done in ((0, 0.0), (2, 0.25), (6, 0.75)):
        loop.run_cycle(cycle)
        assert loop.method.student.progress == done


# Resuming


WAYS = {
    "apart": APART,
    "joint": JOINT,
    "lora": ("student.lora=4", "ft.update=separate", "ft.accumulate=2", "lrm.warmup=1", *MONITORED),
    "micro": ("parallel.micro_batch=1", "ft.update=separate", "ft.accumulate=2", *MOMENTUM),
}
"""Ways to train that a resumed run takes up in the middle of: gathered gradients, factors, monitors, micro-batches."""


@pytest.mark.parametrize("settings", WAYS.values(), ids=WAYS)
def test_a_resumed_run_is_the_unbroken_one_to_the_last_bit(build: Build, settings: tuple[str, ...]) -> None:
    unbroken = build(*settings)
    expected = run(unbroken, 4)
    first = build(*settings)
    state = checkpoint.load(stopped_after(first, 3))
    parts = state.plain["parts"]
    if "ft.accumulate=2" in settings:
        assert parts["gathered ft"] == {"count": 1} and "gathered ft/0" in state.tensors
    if settings is WAYS["lora"]:
        assert parts["monitor best"] == first.monitors["best"].best != {}
        assert parts["monitor guard"]["best"].keys() == {"reward"}
        assert all("lora" in name for name in state.tensors if name.startswith(("student/", "ema/")))
    assert len(parts["method"]["surrogate"]["past"]) == 3
    second = build(*settings)
    second.load(state)
    assert_same(checkpoint.State(*second.state()), state)  # nothing is lost by loading
    assert_same(run(second, 4), expected)
    assert scalars(first) + scalars(second) == scalars(unbroken)
    assert second.best == unbroken.best
    assert len({line["loss/vsd"] for line in scalars(unbroken) if "loss/vsd" in line}) == 4


def kinds(state: checkpoint.State) -> dict[str, list[str]]:
    """Entries of a state that are forgotten together: those of one network, one moment, one list."""
    found: dict[str, list[str]] = {}
    for name in state.tensors:
        owner, *middle, last = name.split("/")
        kind = f"{owner}/{last}" if middle[:1] == ["optim"] else f"past/{last}" if "past" in middle else owner
        found.setdefault(kind, []).append(name)
    return found


# The configuration tells a reader what made this; other data is refused, other prompts are noted, and a run that has
# ended goes no further.
# How many updates were skipped in a row is forgotten by the first that is not.
READ = {
    "config",
    "data",
    "format",
    "validation",
    "loop/ended",
    *(f"{name}/in_a_row" for name in ("student", "fake", "lrm")),
}


def test_every_entry_of_a_state_matters(build: Build) -> None:
    """A state in which one entry is as in a new run doesn't go on as the unbroken run does."""
    settings = (*APART, *MONITORED, "ft.unit=vsd")
    unbroken = build(*settings)
    unbroken.validate = None
    unbroken.best = unbroken.monitors["best"].best = {"reward_4": 0.25, "cycle": 1}
    for number, learner in enumerate(unbroken.learners.values(), 1):
        learner.skipped = number
    unbroken.method.run.surrogate.bad = 1
    guard = unbroken.monitors["guard"]
    guard.scale, guard.troubled, guard.best = 0.5, 1, {"reward": (0.5, None)}
    unbroken.method.meter.silent, unbroken.method.meter.unusable = 1, 2
    state = run(unbroken, 3)
    expected = run(unbroken, 4)

    new, again = build(*settings), build(*settings)
    again.validate = None
    again.data._latents = unbroken.data._latents  # encoded and scored once for all

    def loaded(state: checkpoint.State) -> Loop:
        """One loop goes on from every state: what loading left of the one before would differ from the first."""
        for name in ("checkpoints", "best"):
            shutil.rmtree(again.folder / name, ignore_errors=True)
        again.method.run.surrogate.scorer._known = dict(unbroken.method.run.surrogate.scorer._known)
        again.load(state)
        return again

    def goes_on(state: checkpoint.State) -> bool:
        try:
            return not differing(run(loaded(state), 4), expected)
        except (AssertionError, KeyError, ValueError, RuntimeError, IndexError):
            return False

    assert goes_on(state)
    fresh = checkpoint.State(
        {name: value.detach().clone() for name, value in new.state().tensors.items()}, new.state().plain
    )
    now, before = plain_of(state), plain_of(fresh) | {"gathered ft/count": 0, "monitor best/reward_4": 0.0}
    assert {name for name in now if now[name] == before.get(name)} <= READ, "this run can't tell whether these matter"
    for name in now.keys() - READ:
        assert not goes_on(replaced(state, name, before.get(name))), name
    for name in ("student/in_a_row", "fake/in_a_row", "lrm/in_a_row", "loop/ended"):
        value = "enough" if name == "loop/ended" else 7
        assert plain_of(checkpoint.State(*loaded(replaced(state, name, value)).state()))[name] == value
    groups = kinds(state)
    moments = [f"{n}/{m}" for n in ("student", "fake", "lrm") for m in ("exp_avg", "exp_avg_sq", "step")]
    past = [f"past/{what}" for what in ("latents", "reward", "usable")]
    assert set(groups) == {"student", "fake", "lrm", "ema", "gathered ft", *moments, *past}
    for kind, names in groups.items():
        blank = {n: fresh.tensors.get(n, torch.zeros_like(state.tensors[n])) for n in names}
        assert not goes_on(checkpoint.State({**state.tensors, **blank}, state.plain)), kind
        if kind not in moments:  # removed altogether, it is missed at once
            with pytest.raises((KeyError, ValueError)):
                new.load(checkpoint.State({n: t for n, t in state.tensors.items() if n != names[0]}, state.plain))
    assert goes_on(state), "the loop itself still does"


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
    latents = "method/surrogate/past/0/latents"
    assert not torch.equal(first.tensors[latents], third.tensors[latents])
    weight = next(n for n in first.tensors if n.startswith("student/"))
    assert not torch.equal(first.tensors[weight], third.tensors[weight])


@pytest.mark.parametrize(
    "settings",
    [
        ("beta_vsd=0",),
        ("beta_ft=0",),
        ("beta_cd=0", "student.input=noised_data"),
        ("beta_ft=0", "beta_adversarial=0.5", "adversarial.smooth_every=3", "beta_moments=0.5", "moments.unit=vsd"),
        ("beta_ft=0", "beta_cd=0", "beta_adversarial=0.5", "adversarial.features=own"),
    ],
)
def test_runs_of_other_terms_resume_too(build: Build, settings: tuple[str, ...]) -> None:
    expected = run(build(*settings), 3)
    state = run(build(*settings), 2)
    second = build(*settings)
    second.load(state)
    assert_same(run(second, 3), expected)


def test_rates_fall_over_the_last_cycles_and_resume_where_they_were(build: Build) -> None:
    settings = ("cycles=5", "decay_from=0.2", "optim.student.lr=1e-3", "optim.fake.lr=2e-3", "optim.lrm.lr=3e-3")
    loop, rates = build(*settings), []
    cycle = loop.run_cycle

    def watched(number: int) -> dict[str, float]:
        measured = cycle(number)
        rates.append([learner.optimizers[0].param_groups[0]["lr"] for learner in loop.learners.values()])
        return measured

    loop.run_cycle = watched
    expected = run(loop, 5)
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


@pytest.fixture(scope="module")
def unbroken(teacher: Teacher, tmp_path_factory: pytest.TempPathFactory) -> checkpoint.State:
    """What three cycles that nothing interrupts leave."""
    loop = tiny_run(teacher, tmp_path_factory.mktemp("unbroken"))
    state = run(loop, 3)
    loop.log.close()
    return state


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_finishes_the_cycle_saves_and_ends(build: Build, unbroken: checkpoint.State, number: int) -> None:
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
    assert_same(run(again, 3), unbroken)


# What is not finite


@pytest.mark.parametrize("name", ["student", "fake", "lrm"])
def test_a_gradient_that_is_not_finite_skips_that_update_alone(build: Build, name: str) -> None:
    loop = build()
    loop.run_cycle(0)
    skipped = 0
    for cycle, value in ((1, float("nan")), (3, float("inf"))):
        skipped += skips_one(loop, name, value, cycle)
        loop.run_cycle(cycle + 1)
        assert loop.learners[name].in_a_row == 0 and loop.learners[name].skipped == skipped
        assert fingerprint(network_of(loop, name)).isfinite().all()


def skips_one(loop: Loop, name: str, value: float, cycle: int) -> int:
    """A cycle in which a learner's gradient is this value skips its updates alone; returns how many."""
    skipped = loop.learners[name].skipped
    before = {n: {k: t.clone() for k, t in learner.state().tensors.items()} for n, learner in loop.learners.items()}
    average = averages(loop)
    handle = next(network_of(loop, name).parameters()).register_hook(lambda g: g.fill_(value))
    measured = loop.run_cycle(cycle)
    handle.remove()
    for other, learner in loop.learners.items():
        unchanged = all(torch.equal(t, before[other][k]) for k, t in learner.state().tensors.items())
        assert unchanged == (other == name), other
        assert all(p.grad is None for p in learner.tensors)
    updates = {"student": 1, "fake": 2, "lrm": 2}[name]
    assert measured[f"skipped/{name}"] - skipped == loop.learners[name].in_a_row == updates
    moved = not torch.equal(average, averages(loop))
    assert moved == (name != "student")
    return updates


def test_too_many_in_a_row_stop_the_run_with_a_sentence(build: Build) -> None:
    loop = build("cycles=9")
    loop.timetable.max_skipped = 3
    next(network_of(loop, "student").parameters()).register_hook(lambda g: g * float("nan"))
    with pytest.raises(FloatingPointError, match=r"3 updates of the student in a row.*optim.student.lr"):
        loop.train()
    assert loop.cycle == 2


class Speechless:
    """A reward that has no answer."""

    def score(self, videos: Tensor, prompts: Sequence[str]) -> Tensor:
        return torch.full((len(prompts),), float("nan"))


def test_a_reward_without_answers_teaches_nothing_and_steers_nothing(build: Build) -> None:
    loop = build("cycles=9", "lrm.warmup=2")
    surrogate, lrm = loop.method.run.surrogate, loop.learners["lrm"]
    real, before = surrogate.pixel.reward, fingerprint(surrogate.model)
    surrogate.pixel.reward = Speechless()
    loop.timetable.max_skipped = 3
    for cycle in range(2):
        measured = loop.run_cycle(cycle)
        assert "loss/ft" not in measured and "loss/lrm" not in measured
        assert measured["skipped/lrm"] == cycle + 1 and measured["reward/unusable"] > 0
    assert torch.equal(fingerprint(surrogate.model), before) and surrogate.updates == 0
    with pytest.raises(
        FloatingPointError,
        match=r"3 cycles in a row gave no reward that is a number \(the last time, Speechless gave nan",
    ):
        loop.run_cycle(2)
    surrogate.pixel.reward = real  # what was not answered is asked again
    lrm.in_a_row = 0
    assert loop.run_cycle(3)["loss/lrm"] > 0 and surrogate.updates == loop.method.fit.updates
    assert len(surrogate.scorer._known) == loop.method.fit.clips


def test_the_separate_update_shows_its_gradient(build: Build) -> None:
    loop = build("ft.update=separate", "ft.accumulate=2", "log.gradients_every=1", "lrm.warmup=0")
    first, second = loop.run_cycle(0), loop.run_cycle(1)
    assert first["grad_norm/term/ft"] > 0 and first["grad_norm/student"] > 0
    assert "grad_norm/student_ft" not in first and second["grad_norm/student_ft"] > 0


# Validation and the best checkpoint


def averages(loop: Loop) -> Tensor:
    """The student's averaged weights in one row, copied."""
    return torch.cat([a.flatten() for a in loop.average.average.values()])


def test_the_best_average_is_kept(build: Build) -> None:
    loop = build("validation.every=1", "keep_best=reward_4", "cycles=4")
    seen, scores = [], iter([0.25, 0.75, 0.5, 0.75])
    network = network_of(loop, "student")

    def validate(cycle: int) -> dict[str, float]:
        seen.append(fingerprint(network))
        return {"reward_4": next(scores), "alignment_4": float(cycle)}

    loop.validate = validate
    assert loop.train()
    assert torch.equal(seen[3], averages(loop))
    assert not torch.equal(seen[3], fingerprint(network))  # the average is looked at, then put away
    assert loop.best == {"reward_4": 0.75, "cycle": 2}
    (kept,) = (loop.folder / "best").iterdir()
    tensors, plain = checkpoint.load(kept)
    assert plain["best"]["cycle"] == 2
    found = torch.cat([tensors[f"ema/{n}"].flatten() for n, _ in network.named_parameters()])
    assert torch.equal(found, seen[1])
    assert scalars(loop)[-1]["validation/reward_4"] == 0.75


def test_a_best_score_that_is_not_measured_is_named_before_the_first_cycle(build: Build) -> None:
    with pytest.raises(ValueError, match=r"keep_best is 'beauty'; validation measures reward_4, reward_2, reward_1"):
        build("validation.every=1", "keep_best=beauty")
    with pytest.raises(ValueError, match=r"keep_best is 'reward_4'.*validation.every"):
        build("validation.every=0", "keep_best=reward_4")


def test_validation_scores_every_step_count_and_shows_clips(build: Build) -> None:
    loop = build("validation.every=2", "validation.prompts=3", "cycles=2")
    assert loop.train()
    (scores,) = [line for line in scalars(loop) if "validation/reward_4" in line]
    measured = {f"validation/{what}_{n}" for what in ("reward", "predicted") for n in (4, 2, 1)}
    rises = {"validation/rise_predicted", "validation/rise_true"}  # of small steps tried in training since the last one
    assert {k for k in scores if k.startswith("validation/")} == measured | rises
    assert scores["step"] == 2
    assert loop.validate(2) == loop.validate(2)  # fixed prompts and seeds


# Networks


def test_the_teacher_stays_as_it_was(build: Build, teacher: Teacher) -> None:
    parts = [teacher.denoiser.network, teacher.codec.vae, *teacher.text.models]
    before = [fingerprint(part) for part in parts]
    loop = build()
    student = fingerprint(network_of(loop, "student"))
    assert torch.equal(student, before[0]) and torch.equal(fingerprint(network_of(loop, "fake")), before[0])
    run(loop, 2)
    assert all(torch.equal(b, fingerprint(part)) for b, part in zip(before, parts, strict=True))
    assert not torch.equal(student, fingerprint(network_of(loop, "student")))


def test_a_run_starts_from_a_finished_student(build: Build, teacher: Teacher, tmp_path: Path) -> None:
    from dollar.export.student import few_steps, load_student, save_student

    network = new_network(teacher)
    with torch.no_grad():
        for p in network.parameters():
            p += 0.01
    samplers = few_steps(teacher, [999, 749, 499, 249], [4, 2, 1], "renoise")
    save_student(tmp_path / "student", teacher, network, samplers, {})
    loop = build(f"init={tmp_path / 'student'}", "beta_ft=0")
    assert torch.equal(fingerprint(network_of(loop, "student")), fingerprint(network))
    assert torch.equal(averages(loop), fingerprint(network))
    assert torch.equal(fingerprint(network_of(loop, "fake")), fingerprint(loop.method.run.teacher.network))
    run(loop, 1)
    assert not torch.equal(fingerprint(network_of(loop, "student")), fingerprint(network))
    loaded = load_student(tmp_path / "student", teacher)
    assert torch.equal(fingerprint(loaded.denoiser.network), fingerprint(network))
    with pytest.raises(ValueError, match=r"no student in .*nowhere"):
        build(f"init={tmp_path / 'nowhere'}")


def test_warming_up_the_fake_score_leaves_the_student_alone(build: Build) -> None:
    loop = build("fake_warmup=2", "lrm.warmup=0", *APART[:1], "ft.accumulate=1")
    before = fingerprint(network_of(loop, "student"))
    fake = fingerprint(network_of(loop, "fake"))
    for cycle in range(2):
        loop.run_cycle(cycle)
    assert torch.equal(before, fingerprint(network_of(loop, "student")))
    assert not torch.equal(fake, fingerprint(network_of(loop, "fake")))
    loop.run_cycle(2)
    assert not torch.equal(before, fingerprint(network_of(loop, "student")))


def test_comparing_the_terms_changes_the_update_by_rounding_alone(build: Build) -> None:
    states = [run(build(f"log.gradients_every={every}", "lrm.warmup=0"), 2) for every in (0, 1)]
    for name, value in states[0].tensors.items():
        if name.startswith("student/"):
            torch.testing.assert_close(states[1].tensors[name], value, rtol=0, atol=1e-5)
    loop = build("log.gradients_every=1", "lrm.warmup=0")
    loop.run_cycle(0)  # in which rewards are seen for the first time
    logged = loop.run_cycle(1)
    assert {"grad_norm/term/vsd", "grad_norm/term/ft", "grad_norm/term/cd", "cosine/vsd_ft"} <= logged.keys()
    assert -1 <= logged["cosine/vsd_cd"] <= 1


def test_gathered_reward_gradients_are_averaged(build: Build) -> None:
    """Two cycles gathered move the student by the mean of their gradients, in one clipped step."""
    loop = build("ft.update=separate", "ft.accumulate=2", "lrm.warmup=0", "clip_gradient=1e9")
    seen: list[Tensor] = []
    student = loop.learners["student"]
    step = student.step

    def watched(world: World) -> object:
        seen.append(torch.cat([p.grad.flatten() for p in student.tensors]))
        return step(world)

    student.step = watched
    for cycle in range(2):
        loop.run_cycle(cycle)
    assert len(seen) == 3 and loop.gathered["ft"].held == []  # distillation twice, the reward once
    longer = build("ft.update=separate", "ft.accumulate=3", "lrm.warmup=0", "clip_gradient=1e9")

    def held(gathered: Gathered) -> Tensor:
        return torch.cat([g.flatten() for g in gathered.held])

    longer.run_cycle(0)
    first = held(longer.gathered["ft"]).clone()
    longer.run_cycle(1)
    both = held(longer.gathered["ft"])
    assert first.norm() > 0 and not torch.allclose(both, 2 * first, rtol=1e-2)
    torch.testing.assert_close(seen[2], both / 2)


# Checkpoints of the first format


def of_the_first_format(state: checkpoint.State) -> checkpoint.State:
    """The state as it was written before checkpoints were made of parts."""
    parts, plain = state.plain["parts"], {k: state.plain[k] for k in ("cycle", "config", "data")}
    surrogate, learners = parts["method"]["surrogate"], ("student", "fake", "lrm")
    plain |= {
        "lrm_count": surrogate["updates"],
        "best": parts["loop"]["best"],
        "guard": parts["monitor guard"],
        "ended": parts["loop"]["ended"],
        "silent": [parts["method"]["silent"], parts["method"]["unusable"]],
        "ft_held": parts.get("gathered ft", {"count": 0})["count"],
        "ema_updates": parts["ema"]["updates"],
        "skipped": {name: [parts[name]["skipped"], parts[name]["in_a_row"]] for name in learners},
        "statistics": surrogate["statistics"],
        "bad": surrogate["bad"],
        "past": surrogate["past"],
    }

    def name_of(name: str) -> str:
        for now, then in (("gathered ft/", "ft/"), ("method/surrogate/past/", "past/")):
            name = name.replace(now, then)
        owner, *rest = name.split("/", 2)
        return f"{owner}.optim/{rest[1]}" if rest[0] == "optim" else name

    return checkpoint.State({name_of(name): tensor for name, tensor in state.tensors.items()}, plain)


def test_a_checkpoint_of_the_first_format_goes_on_as_one_of_today(build: Build) -> None:
    settings = (*APART, *MONITORED)
    first = build(*settings)
    state = checkpoint.load(stopped_after(first, 3))
    old = of_the_first_format(state)
    assert {"past/0/latents", "ft/0"} < old.tensors.keys() and old.plain["ft_held"] == 1
    assert any(name.startswith("student.optim/") and name.endswith("/exp_avg") for name in old.tensors)
    second, third = build(*settings), build(*settings)
    second.load(old)
    assert differing(checkpoint.State(*second.state()), state) == ["method/spread", "surrogate/rises"]  # came later
    third.load(state)
    assert differing(run(second, 4), run(third, 4)) == ["method/spread"]
    without = {name: value for name, value in old.plain.items() if name not in ("guard", "ended", "silent")}
    fourth = build(*settings)
    fourth.load(checkpoint.State(old.tensors, without))  # what came later within the first format
    assert fourth.ended == "" and fourth.method.meter.silent == 0 and fourth.monitors["guard"].troubled == 0


def test_a_model_that_is_only_read_is_in_checkpoints_of_both_formats(
    build: Build, teacher: Teacher, tmp_path: Path
) -> None:
    build().method.run.surrogate.save(tmp_path / "lrm", teacher)
    frozen = ("lrm.mode=frozen", f"lrm.path={tmp_path / 'lrm'}", "reward._target_=null", "beta_vsd=0", "beta_cd=0")
    model = fingerprint(build(*frozen).method.run.surrogate.model)
    state = build(*frozen).state()
    names = [name for name in state.tensors if name.startswith("method/surrogate/model/")]
    assert len(names) > 0
    old = {name.replace("method/surrogate/model/", "lrm/"): value for name, value in state.tensors.items()}
    plain = {key: state.plain[key] for key in ("cycle", "config", "data")}
    surrogate = state.plain["parts"]["method"]["surrogate"]
    plain |= {"lrm_count": 0, "best": {}, "ft_held": 0, "ema_updates": 0, "skipped": {"student": [0, 0]}}
    plain |= {"statistics": surrogate["statistics"], "bad": 0, "past": []}
    for found in (state, checkpoint.State(old, plain)):
        loop = build(*frozen)
        for p in loop.method.run.surrogate.model.parameters():
            p += 1.0  # the folder was written anew since
        loop.load(found)
        assert torch.equal(fingerprint(loop.method.run.surrogate.model), model)


# Two processes


# Added to all keys alike, so that no softmax depends on it: its gradient is rounding, which Adam makes as large as any.
CANCELS = "norm_k.bias"


def close(found: Tensor, expected: Tensor, name: str) -> None:
    atol = 1e-3 if CANCELS in name else 1e-5
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=atol, msg=lambda text: f"{name}: {text}")


def test_two_processes_agree_with_one(tmp_path: Path, tiny_teacher_folder: Path) -> None:
    """One launch for all that takes a launch; see `work`."""
    work(tmp_path / "one", tiny_teacher_folder, World())
    port = free_port()
    both = [start_process(joined, tmp_path / "two", tiny_teacher_folder, rank, port) for rank in (0, 1)]
    for rank, started in enumerate(both):
        started.join(240)
        assert started.exitcode == 0, (tmp_path / f"two-{rank}.out").read_text()[-3000:]

    def saved(who: str, which: str) -> checkpoint.State:
        return checkpoint.load(checkpoint.newest(tmp_path / who / which / "checkpoints"))

    for which in ("apart", "joint", "resumed", "lora", "pruned", *PAIRED, *STEERED):
        one, two = saved("one", which), saved("two", which)
        assert one.tensors.keys() == two.tensors.keys()
        here, there = plain_of(one), plain_of(two)
        for key in ("surrogate/past", "surrogate/updates", "gathered ft/count"):
            assert here.get(key) == there.get(key)
        for name, value in one.tensors.items():
            assert value.shape == two.tensors[name].shape, name
            close(two.tensors[name], value, name)
        assert there.get("surrogate/statistics", {}) == pytest.approx(here.get("surrogate/statistics", {}), rel=1e-5)
    # Spread and whole, the terms' gradients are compared by their means over the processes.
    for which in ("apart", "joint"):
        lines = [scalars_in(tmp_path / who / which) for who in ("one", "two")]
        seen = [{f"{line['step']} {k}": v for line in of for k, v in line.items() if is_compared(k)} for of in lines]
        assert len(seen[0]) > 5 and seen[1] == pytest.approx(seen[0], rel=1e-3, abs=1e-5)
    # Two processes went on from what one had saved, and now one goes on from what two had.
    assert saved("two", "resumed").plain["cycle"] == 4
    crossed = tiny_run(load_tiny_teacher(tiny_teacher_folder), tmp_path / "crossed", *APART)
    crossed.load(checkpoint.load(tmp_path / "two" / "apart" / "checkpoints" / "step-00000003"))
    found, expected = run(crossed, 4), saved("one", "resumed")
    crossed.log.close()
    for name, value in expected.tensors.items():
        close(found.tensors[name], value, name)
    # One process's gradient that is not finite skips the update of both.
    report = json.loads((tmp_path / "two" / "report.json").read_text())
    assert max(report.pop("micro_batches")) < TOLERANCE
    assert report == {"skipped": [1.0, 1.0], "unchanged": True, "stopped": True, "gathered": [0, 1, 2, 3]}


def spread_wan(folder: Path, world: World) -> None:
    """A teacher with parameters of a single row, of which the other processes hold none: weights and copy are whole."""
    from families import FAMILIES, build

    from dollar.parallel.shard import fill_teacher, trainable_copy, whole

    if world.is_main:
        build("wan_2_1", folder / "wan")
    world.barrier()
    alone = FAMILIES["wan_2_1"].load(folder / "wan")
    spread = FAMILIES["wan_2_1"].load(folder / "wan", weights=False)
    fill_teacher(spread, world, spread=True)
    started = trainable_copy(alone, world, student=folder / "wan")
    wanted = dict(alone.denoiser.network.named_parameters())
    assert any(p.shape[0] == 1 for p in wanted.values())
    for network in (spread.denoiser.network, trainable_copy(spread, world), started):
        for name, p in network.named_parameters():
            assert torch.equal(whole(p.detach()), wanted[name]), name


SPREAD = "parallel.shard=true"  # some runs have their networks spread over the processes, others hold them whole
PAIRED = {
    "paired": ("loss=redpo", "preference.sft=100"),
    "spread": ("loss=dpo", SPREAD),
}
"""Winners and losers, whose gradients are weighed by products over all processes."""
STEERED = {
    "ddpo": ("cycles=2", "loss=ddpo", "beta_ft=0", "student.steps=[4,2]", "ddpo.truncate=2", SPREAD),
    "draft": (
        "cycles=2",
        "loss=draft",
        "beta_ft=0",
        "rg.last=2",
        "rg.frames=2",
        "reward._target_=test_steering.Smooth",
    ),
    "judged": (
        "cycles=2",
        "beta_adversarial=0.5",
        "adversarial.unit=loss",
        "beta_ft=0",
        "optim.adversarial.lr=1e-4",
        "beta_moments=0.5",
        "parallel.activation_checkpointing=true",
        SPREAD,
    ),
    "judge": (
        "cycles=2",
        "beta_adversarial=0.5",
        "adversarial.features=own",
        "adversarial.unit=loss",
        "beta_ft=0",
        "optim.adversarial.lr=1e-4",
        SPREAD,
    ),
    "blocks": (
        "lrm.backbone=teacher",
        "lrm.fit=pairwise",
        "ft.update=separate",
        "ft.accumulate=2",
        "lrm.warmup=1",
        SPREAD,
    ),
    "through": (
        "cycles=2",
        "ft.through=fake",
        "ft.update=separate",
        "ft.accumulate=1",
        "ft.optimizer=own",
        "lrm.warmup=1",
        "parallel.activation_checkpointing=true",
        SPREAD,
    ),
}
"""Other terms: a policy gradient, several forwards before one backward, discriminators, the teacher's blocks."""


def micro_batched(loop_of: Callable[..., Loop]) -> list[float]:
    """How far gradients of one clip at a time are from those of all at once, whole networks and spread ones."""
    found = []
    for name in ("joint", "separate"):
        for spread in ("true", "false"):
            settings, ways = (*COMMON, *MICRO_BATCHED[name], f"parallel.shard={spread}"), ((), (ONE_BY_ONE,))
            loops = [loop_of(f"{name}-{spread}-{len(more)}", *settings, *more) for more in ways]
            found += differences(*[gradients_of(loop) for loop in loops])
            for loop in loops:
                loop.log.close()
    return found


def save_pruned(teacher: Teacher, folder: Path) -> None:
    """The tiny teacher without a block, and without half of the other, as a student's folder."""
    from dollar.export.student import few_steps, save_student
    from dollar.models.units import parse, take_out

    lists, pruning, network = teacher.family.block_lists, teacher.pruning(), teacher.empty_network()
    network.load_state_dict(teacher.denoiser.network.state_dict(), assign=True)
    units = parse(["transformer_blocks.0", "transformer_blocks.1.feed_forward"], lists, pruning.counts)
    take_out(network.transformer, units, lists)
    save_student(folder, teacher, network, few_steps(teacher, None, [1], "ddim"), {}, pruning=pruning.further(units))


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

    def loop_of(name: str, *settings: str) -> Loop:
        # One of the runs has its teacher spread over the processes.
        return tiny_run(spread if name == "joint" else teacher, folder / name, *settings, world=world)

    if world.is_main:
        save_pruned(teacher, folder / "pruned_from")
    world.barrier()
    pruned = (
        f"init={folder / 'pruned_from'}",
        "cycles=2",
        "beta_ft=0",
        "parallel.activation_checkpointing=true",
        SPREAD,
    )
    for name, settings in (
        ("pruned", pruned),
        ("apart", (*APART, SPREAD)),
        ("joint", (*JOINT, "log.gradients_every=1", "validation.every=3")),
        ("lora", (*JOINT, "student.lora=4", "cycles=2")),
        *STEERED.items(),
    ):
        loop = loop_of(name, *settings)
        assert loop.train()
        loop.log.close()
    if world.is_main:
        write_pairs(folder / "pairs", teacher)
    world.barrier()
    for name, settings in PAIRED.items():
        # Where gradients aren't clipped their moments are large enough to be compared; small steps, as signs may turn.
        keys = ("beta_ft=0", "student.steps=[4]", "cycles=2", "clip_gradient=100", "optim.student.lr=1e-5", *settings)
        keys = (f"init={folder / 'pruned_from'}", "preference.beta=10", "preference.safeguard=true", *keys)
        data = ("data=pairs", f"data.path={folder / 'pairs'}")
        loop = tiny_run(teacher, folder / name, *keys, data=data, world=world)
        assert loop.train()
        loop.log.close()
    resumed = loop_of("resumed", *APART, SPREAD, "cycles=4")
    resumed.load(checkpoint.load(checkpoint.newest(folder.parent / "one" / "apart" / "checkpoints")))
    assert resumed.train()
    resumed.log.close()
    if world.size == 1:
        return
    from dollar.parallel.shard import whole

    loop = loop_of("hurt", "beta_ft=0", "fake_updates=1", "cycles=9")
    network, consistency = network_of(loop, "student"), loop.method.run.objective.terms["cd"]
    before = [whole(p.detach()).clone() for p in network.parameters()]
    real = consistency.loss_of

    def hurt(context: Context) -> Tensor:
        return real(context) * (float("nan") if world.rank == 1 else 1.0)

    consistency.loss_of = hurt
    loop.run_cycle(0)
    skipped = world.gather(torch.tensor([float(loop.learners["student"].skipped)])).tolist()
    after = [whole(p.detach()) for p in network.parameters()]
    unchanged = all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    gathered = world.gather(torch.tensor(list(world.own(0, 4)))).tolist()
    loop.stop.requested = world.rank == 1  # a signal that reached one process stops both
    stopped = loop.train() is False
    apart = micro_batched(loop_of)
    if world.is_main:
        report = {"skipped": skipped, "unchanged": unchanged, "stopped": stopped, "gathered": gathered}
        report["micro_batches"] = apart
        (folder / "report.json").write_text(json.dumps(report))
    world.barrier()


def joined(folder: Path, teacher_folder: Path, rank: int, port: int) -> None:
    """The share in `work` of one of two processes; what it prints is next to the folder."""
    from dollar.parallel.world import finish, start

    sys.stdout = sys.stderr = open(f"{folder}-{rank}.out", "w", buffering=1)  # noqa: SIM115
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    world = start("cpu", timeout_minutes=2)
    work(folder, teacher_folder, world)
    finish(world)
