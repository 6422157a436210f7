"""Algorithm 1's losses: functions of their draws, costing what spec says, each term what it claims to be."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from operator import itemgetter

import pytest
import torch
from conftest import LATENT, Redness, clear, fingerprint, gradients, new_network
from torch import Tensor

from dollar.diffusion.draws import Draws
from dollar.diffusion.schedule import diffuse
from dollar.export.student import denoiser_of, few_steps
from dollar.losses.objective import Objective
from dollar.methods.distill import Distiller
from dollar.models.denoiser import Condition, Denoiser
from dollar.models.latent_reward_model import LatentRewardModel
from dollar.models.teacher import Teacher
from dollar.surrogate.latent_reward import LatentReward
from dollar.surrogate.pixel_reward import PixelReward
from dollar.training.average import Ema
from dollar.training.trainer import Trainer

PROMPTS = [
    "a small red circle moving left on a black background",
    "a large blue cross standing still on a white background",
    "a small green square moving up on a brown background",
]
TIMES = [999, 749, 499, 249]


def distiller_of(teacher: Teacher, steps: tuple[int, ...] = (4, 2, 1), reward: bool = True, **settings) -> Distiller:
    """The networks of a run that has been going on for a while: student and fake score have moved from the teacher."""
    objective = Objective(**{"cd_m": 2, "cd_grid": 10, **settings})
    samplers = list(few_steps(teacher, TIMES, steps, "renoise").values())
    student, fake = new_network(teacher), new_network(teacher)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for p in [*student.parameters(), *fake.parameters()]:
            p += 0.01 * torch.randn(p.shape, generator=generator)
    surrogate = None
    if reward:
        state = torch.random.get_rng_state()
        torch.manual_seed(6)
        model = LatentRewardModel(LATENT[0], text_dim=64, width=16, temporal="conv3d", groups=4)
        torch.random.set_rng_state(state)
        surrogate = LatentReward(model, PixelReward(Redness(), teacher.codec), teacher.text)
        surrogate.statistics.update(torch.tensor([0.5, 2.5]))
    denoiser = denoiser_of(teacher, student, samplers[0], objective.student_parameterization, torch.float32)
    fake_denoiser = teacher.denoiser_of(fake)
    return Distiller(
        teacher.denoiser, denoiser, fake_denoiser, samplers, objective, teacher.latent_shape, teacher.null, surrogate
    )


def batch(teacher: Teacher) -> tuple:
    """Draws, condition and latents of three samples."""
    x_0 = torch.randn(3, *LATENT, generator=torch.Generator().manual_seed(1))
    return Draws(0, 5, range(3)), teacher.text(PROMPTS), x_0


def carry_back(distiller: Distiller, draws: Draws, condition, x_0, warm: bool = True, **how) -> dict[str, Tensor]:
    """The student's gradient of each term."""
    network, found = distiller.student.network, {}
    for term in distiller.student_terms(draws, PROMPTS[: len(draws.indices)], condition, x_0, warm, **how):
        clear(network)
        torch.autograd.backward(term.tensor, term.gradient, retain_graph=not term.last)
        found[term.name] = gradients(network).clone()
    clear(network)
    return found


def of_depth(distiller: Distiller, draws: Draws, steps: int, k: int) -> Draws:
    """Draws of another cycle, in which the student has `steps` steps and is rolled out to its k-th time."""
    for cycle in range(500):
        draws = replace(draws, turn=cycle)
        sampler = distiller.samplers[draws.shared_integer("step count", len(distiller.samplers))]
        if sampler.steps == steps and draws.shared_integer("depth", steps) == k:
            return draws
    raise AssertionError("every depth is drawn within 500 cycles")


# Draws


def test_a_cycle_is_a_function_of_its_draws(teacher: Teacher) -> None:
    distiller = distiller_of(teacher)
    draws, condition, x_0 = batch(teacher)

    def all_of_it(draws: Draws) -> list[Tensor]:
        found = list(carry_back(distiller, draws, condition, x_0).values())
        sample = distiller.fresh_sample(draws, condition, x_0)
        return [*found, distiller.last.x_hat, sample.x_hat, distiller.fake_loss(draws, sample).detach()]

    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    first = all_of_it(draws)
    assert torch.equal(before, torch.random.get_rng_state())  # nothing is drawn behind the caller's back
    torch.manual_seed(1)
    assert all(torch.equal(a, b) for a, b in zip(first, all_of_it(draws), strict=True))
    for other in (replace(draws, seed=1), replace(draws, turn=6), replace(draws, indices=range(3, 6))):
        assert not any(torch.equal(a, b) for a, b in zip(first, all_of_it(other), strict=True))


def test_the_student_turns_sample_is_the_fresh_sample_of_its_draws(teacher: Teacher) -> None:
    distiller = distiller_of(teacher)
    draws, condition, x_0 = batch(teacher)
    carry_back(distiller, draws, condition, x_0)
    assert torch.equal(distiller.last.x_hat, distiller.fresh_sample(draws, condition, x_0).x_hat)
    assert not distiller.last.x_hat.requires_grad


def test_a_sample_does_not_depend_on_the_others_of_its_batch(teacher: Teacher) -> None:
    distiller = distiller_of(teacher)
    draws, condition, x_0 = batch(teacher)
    whole = distiller.fresh_sample(draws, condition, x_0)
    for i in range(3):
        own = condition.map(itemgetter(slice(i, i + 1)))
        alone = distiller.fresh_sample(replace(draws, indices=[i]), own, x_0[i : i + 1])
        torch.testing.assert_close(alone.x_hat, whole.x_hat[i : i + 1], rtol=1e-4, atol=1e-5)


def test_depth_and_step_count_are_the_same_on_every_process_and_all_are_drawn(teacher: Teacher) -> None:
    distiller, seen = distiller_of(teacher), Counter()
    for cycle in range(200):
        drawn = []
        for rank in range(2):
            draws = Draws(0, cycle, range(rank, 4, 2))
            sampler = distiller.samplers[draws.shared_integer("step count", 3)]
            drawn.append((sampler.steps, draws.shared_integer("depth", sampler.steps)))
        assert drawn[0] == drawn[1]
        seen[drawn[0]] += 1
    assert set(seen) == {(4, 0), (4, 1), (4, 2), (4, 3), (2, 0), (2, 1), (1, 0)}
    assert 40 < seen[1, 0] < 95  # each count a third, each depth of a count alike


# What it costs, in forwards of one network on one batch; a forward with its backward counts as three


@contextlib.contextmanager
def counted(trainer: Trainer) -> Iterator[Counter]:
    """Forwards of each network inside the context."""
    forwards: Counter = Counter()
    batch = trainer.plan.batch
    networks = {n: trainer.learners[n].network for n in ("student", "fake") if n in trainer.learners}
    handles = []
    for name, network in {**networks, "teacher": trainer.distiller.teacher.network}.items():

        def count(module, arguments, name=name):
            forwards[name] += len(arguments[0]) / batch * (3 if name != "teacher" and torch.is_grad_enabled() else 1)

        handles.append(network.register_forward_pre_hook(count))
    yield forwards
    for handle in handles:
        handle.remove()


def cost(trainer: Trainer, monkeypatch: pytest.MonkeyPatch, steps: int) -> float:
    """Forwards of a cycle, averaged over the depths of a rollout."""
    total = 0.0
    for k in range(steps):
        monkeypatch.setattr(Draws, "shared_integer", lambda self, purpose, high, k=k: k if purpose == "depth" else 0)
        with counted(trainer) as forwards:
            trainer.run_cycle(k)
        total += forwards.total() / steps
    return total


@pytest.mark.parametrize(
    ("steps", "student_input", "expected"),
    [(4, "simulate", 46.5), (4, "noised_data", 39), (2, "simulate", 41.5), (1, "simulate", 39)],
)
def test_a_cycle_costs_what_the_arithmetic_says(build, monkeypatch, steps, student_input, expected) -> None:
    settings = ("beta_ft=0", "fake_updates=5", "cd.m=5", "cd.grid=50", "batch=2", "log.gradients_every=0")
    trainer = build(*settings, f"student.steps=[{steps}]", f"student.input={student_input}")
    assert cost(trainer, monkeypatch, steps) == expected


def test_fine_tuning_apart_costs_one_more_forward_and_backward(build, monkeypatch) -> None:
    common = ("student.steps=[1]", "batch=2", "log.gradients_every=0", "lrm.warmup=0")
    joint = cost(build(*common), monkeypatch, 1)
    without = cost(build(*common, "beta_ft=0"), monkeypatch, 1)
    apart = cost(build(*common, "ft.update=separate"), monkeypatch, 1)
    assert joint == without and apart == without + 3


def forbid(*_: object, **__: object) -> None:
    raise AssertionError("this term is off and must not run")


def test_without_vsd_no_fake_score_is_trained_and_no_teacher_asked(build) -> None:
    trainer = build("beta_vsd=0", "beta_cd=0", "student.steps=[1]", "lrm.warmup=0")
    assert set(trainer.learners) == {"student", "lrm"}
    with counted(trainer) as forwards:
        trainer.run_cycle(0)
    assert forwards["teacher"] == 0 and forwards["fake"] == 0 and forwards["student"] == 3


def test_without_the_reward_nothing_is_decoded_or_scored(build, monkeypatch) -> None:
    monkeypatch.setattr(Redness, "score", forbid)
    trainer = build("beta_ft=0")
    monkeypatch.setattr("dollar.models.codec.Codec.decode", forbid)
    assert "lrm" not in trainer.learners and trainer.distiller.latent_reward is None
    trainer.run_cycle(0)


def test_consistency_alone_samples_nothing(build, monkeypatch) -> None:
    trainer = build("beta_vsd=0", "beta_ft=0", "batch=2", "cd.m=2")
    monkeypatch.setattr(trainer.distiller, "_generator_input", forbid)
    with counted(trainer) as forwards:
        trainer.run_cycle(0)
    assert forwards == {"teacher": 4, "student": 4}  # a guided walk of 2, one target, and one prediction with backward


def test_without_consistency_no_clip_is_encoded(build, monkeypatch) -> None:
    monkeypatch.setattr("dollar.models.codec.Codec.encode", forbid)
    build("beta_cd=0", "beta_ft=0").run_cycle(0)


# The terms


def test_vsd_and_reward_gradients_add_at_x_hat(teacher: Teacher) -> None:
    draws, condition, x_0 = batch(teacher)
    distiller = distiller_of(teacher, balance=None, beta_ft=0.3)
    together = carry_back(distiller, draws, condition, x_0)
    apart = carry_back(distiller, draws, condition, x_0, apart=True)
    assert list(together) == ["vsd+ft", "cd"] and list(apart) == ["vsd", "ft", "cd"]
    assert torch.equal(together["cd"], apart["cd"])
    assert apart["vsd"].norm() > 0 and apart["ft"].norm() > 0
    torch.testing.assert_close(together["vsd+ft"], apart["vsd"] + apart["ft"], rtol=1e-4, atol=1e-7)
    # ... and each is what a run of that term alone would give, times its beta.
    only = {"beta_vsd": 0.0, "beta_cd": 0.0, "beta_ft": 0.0}
    for name in ("vsd", "cd", "ft"):
        distiller.objective = replace(distiller.objective, **{**only, f"beta_{name}": 2.0})
        alone = carry_back(distiller, draws, condition, x_0)
        assert list(alone) == [name]
        beta = {"vsd": 1.0, "cd": 0.5, "ft": 0.3}[name]
        torch.testing.assert_close(alone[name] * beta / 2, apart[name], rtol=1e-4, atol=1e-7)


def test_the_rewards_term_is_the_gradient_of_the_predicted_reward(teacher: Teacher) -> None:
    """By hand: the reward's term is the gradient of -mean R of the same sample."""
    draws, condition, x_0 = batch(teacher)
    distiller = distiller_of(teacher, beta_vsd=0, beta_cd=0, beta_ft=1.0)
    found = carry_back(distiller, draws, condition, x_0)["ft"]
    sampler, k, x = distiller._generator_input(draws, x_0, condition)
    x_hat = sampler.generate(distiller.student.given(condition), x, k)
    (-distiller.latent_reward.predict(x_hat, condition).mean()).backward()
    torch.testing.assert_close(found, gradients(distiller.student.network), rtol=1e-4, atol=1e-7)


def test_the_unit_of_the_reward_scales_its_term(teacher: Teacher) -> None:
    draws, condition, x_0 = batch(teacher)
    found = {}
    for unit in ("reward", "sd"):
        distiller = distiller_of(teacher, beta_vsd=0, beta_cd=0, ft_unit=unit)
        distiller.latent_reward.statistics.update(torch.tensor([-30.0, 40.0]))
        found[unit] = carry_back(distiller, draws, condition, x_0)["ft"]
    sd = distiller.latent_reward.statistics.sd
    assert sd > 20
    torch.testing.assert_close(found["reward"], sd * found["sd"], rtol=1e-4, atol=1e-6)


def test_the_reward_model_is_only_looked_through(teacher: Teacher) -> None:
    distiller = distiller_of(teacher)
    carry_back(distiller, *batch(teacher))
    assert all(p.grad is None for p in distiller.latent_reward.model.parameters())
    assert all(p.grad is None for p in distiller.fake.network.parameters())
    assert all(p.grad is None for p in distiller.teacher.network.parameters())


def test_a_cold_reward_model_is_not_followed(teacher: Teacher) -> None:
    assert list(carry_back(distiller_of(teacher), *batch(teacher), warm=False)) == ["vsd", "cd"]
    assert list(carry_back(distiller_of(teacher, ft_update="separate"), *batch(teacher))) == ["vsd", "cd"]


def test_fine_tuning_apart_is_the_same_gradient(teacher: Teacher) -> None:
    draws, condition, x_0 = batch(teacher)
    joint = carry_back(distiller_of(teacher, beta_vsd=0, beta_cd=0, beta_ft=0.7), draws, condition, x_0)["ft"]
    distiller = distiller_of(teacher, beta_ft=0.7, ft_update="separate")
    (term,) = distiller.fine_tune_terms(draws, condition, x_0)
    torch.autograd.backward(term.tensor, term.gradient)
    torch.testing.assert_close(gradients(distiller.student.network), joint, rtol=1e-4, atol=1e-7)


def test_balance_caps_the_rewards_share_of_each_sample(teacher: Teacher) -> None:
    draws, condition, x_0 = batch(teacher)

    def at_x_hat(**settings: float | None) -> dict[str, Tensor]:
        terms = distiller_of(teacher, beta_cd=0, **settings).student_terms(
            draws, PROMPTS, condition, x_0, True, apart=True
        )
        return {t.name: t.gradient for t in terms}

    free = at_x_hat(balance=None, beta_ft=100.0)
    held = at_x_hat(balance=0.5, beta_ft=100.0)
    sizes = {name: g.flatten(1).norm(dim=1) for name, g in held.items()}
    assert torch.equal(free["vsd"], held["vsd"])
    assert (free["ft"].flatten(1).norm(dim=1) > sizes["vsd"]).all()
    torch.testing.assert_close(sizes["ft"], 0.5 * sizes["vsd"])
    similarity = torch.cosine_similarity(free["ft"].flatten(1), held["ft"].flatten(1))
    torch.testing.assert_close(similarity, torch.ones(3))
    small = at_x_hat(balance=1e6, beta_ft=100.0)
    assert torch.equal(small["ft"], free["ft"])  # a cap that isn't reached changes nothing


def test_the_vsd_gradient_is_dmds(teacher: Teacher) -> None:
    """(x0_fake - x0_real) / mean |x_hat - x0_real|, over the batch's elements (Eq. 13 with DMD's weight)."""
    draws, condition, x_0 = batch(teacher)
    distiller = distiller_of(teacher, beta_cd=0, beta_ft=0, beta_vsd=2.0)
    (term,) = distiller.student_terms(draws, PROMPTS, condition, x_0, False)
    x_hat, schedule = distiller.last.x_hat, teacher.denoiser.schedule
    t = (20 + 960 * draws.uniform("vsd time")).long()
    x_t = diffuse(x_hat, draws.normal("vsd noise", LATENT), t, schedule)
    with torch.no_grad():
        conditional, null = (teacher.denoiser(x_t, t, c) for c in (condition, teacher.null(3)))
        real = null + 4.5 * (conditional - null)
        fake = distiller.fake(x_t, t, condition)
    weight = 2 / (x_hat - real).abs().mean((1, 2, 3, 4), keepdim=True)
    torch.testing.assert_close(term.gradient, weight * (fake - real) / x_hat.numel(), rtol=1e-3, atol=1e-8)


def test_times_come_to_fall_where_they_are_wanted() -> None:
    u = torch.arange(1000) / 1000
    assert torch.equal(Objective().place(u, 0.02, 0.98, 0.9), 0.02 + 0.96 * u.double())
    preferring = Objective(vsd_lower_half=0.9, vsd_lower_half_over=(0.25, 0.75))
    for progress, share in ((0.0, 0.5), (0.25, 0.5), (0.5, 0.7), (0.75, 0.9), (1.0, 0.9)):
        placed = preferring.place(u, 0.02, 0.98, progress)
        assert float((placed < 0.5).double().mean()) == pytest.approx(share, abs=2e-3)
        assert bool((placed.diff() > 0).all()) and placed[0] == 0.02 and placed[-1] < 0.98
        # Evenly within each half.
        for low, half in ((0.02, placed[placed < 0.5]), (0.5, placed[placed >= 0.5])):
            assert float(half.mean()) == pytest.approx(low + 0.24, abs=5e-3)
            assert float(half.std()) == pytest.approx(0.48 / 12**0.5, rel=0.03)
    for share, low in ((1.0, 0.0), (0.0, 0.5)):
        placed = Objective(vsd_lower_half=share).place(u, 0.0, 1.0, 1.0)
        torch.testing.assert_close(placed, low + u.double() / 2)


def test_the_fake_score_learns_where_vsd_comes_to_ask() -> None:
    u = torch.arange(1000) / 1000
    lopsided = Objective(vsd_range=(0.5, 0.98), vsd_lower_half=1.0)
    assert bool((lopsided.place(u, 0.5, 0.98, 1.0) < 0.74).all())
    fake = lopsided.place(u, 0.0, 1.0, 1.0)
    assert bool((fake < 0.74).all()) and float((fake > 0.5).double().mean()) == pytest.approx(0.24 / 0.74, abs=2e-3)
    torch.testing.assert_close(lopsided.place(u, 0.0, 1.0, 0.0), u.double())  # all of [0, T) before


def test_vsd_and_fake_score_draw_their_times_where_they_are_wanted(teacher: Teacher) -> None:
    draws, condition, x_0 = batch(teacher)
    distiller = distiller_of(teacher, beta_cd=0, beta_ft=0, vsd_lower_half=1.0, vsd_lower_half_over=(0.0, 0.5))
    asked: dict[str, torch.Tensor] = {}
    for name in ("teacher", "fake"):
        getattr(distiller, name).network.register_forward_pre_hook(
            lambda _, inputs, name=name: asked.update({name: inputs[1]})
        )
    vsd_u, fake_u = draws.uniform("vsd time"), draws.uniform("fake time")
    for progress, half in ((0.0, 1.0), (0.75, 0.5)):
        distiller.progress = progress
        list(distiller.student_terms(draws, PROMPTS, condition, x_0, False))
        expected = (20 + 960 * half * vsd_u).long()
        assert torch.equal(asked["teacher"][-3:], expected) and torch.equal(asked["fake"], expected)
        distiller.fake_loss(draws, distiller.last)
        assert torch.equal(asked["fake"], (1000 * half * fake_u).long())


def test_the_fake_loss_is_denoising_of_the_students_sample(teacher: Teacher) -> None:
    draws, condition, x_0 = batch(teacher)
    for kind in ("native", "cv"):
        distiller = distiller_of(teacher, fake_loss=kind)
        sample = distiller.fresh_sample(draws, condition, x_0)
        loss = distiller.fake_loss(draws, sample)
        schedule, t = teacher.denoiser.schedule, (1000 * draws.uniform("fake time")).long()
        x_t = diffuse(sample.x_hat, draws.normal("fake noise", LATENT), t, schedule)
        error = (distiller.fake(x_t, t, condition) - sample.x_hat).square().mean((1, 2, 3, 4))
        a, b = (c.float() for c in schedule.coefficients(t))
        factor = 1 / b**2 if kind == "native" else ((a + b) / b) ** 2  # |v - v_hat|^2 = |x_0 - x_0hat|^2 / b^2
        torch.testing.assert_close(loss, factor * error, rtol=2e-3, atol=1e-5)


@pytest.mark.parametrize("m", [1, 4])
def test_every_consistency_target_is_its_own(teacher: Teacher, m: int) -> None:
    draws, condition, x_0 = batch(teacher)

    def loss(target: str, moved: bool) -> Tensor:
        distiller = distiller_of(teacher, cd_target=target, cd_m=m)
        with torch.no_grad():
            for p, q in zip(distiller.student.network.parameters(), teacher.denoiser.network.parameters(), strict=True):
                p.copy_(q)
        ema = Ema(distiller.student.network, 0.99)
        distiller.averaged = ema.swapped
        if moved:
            with torch.no_grad():
                for p in distiller.student.network.parameters():
                    p += 0.05 * torch.sin(torch.arange(p.numel()).view_as(p))
        before = fingerprint(distiller.student.network)
        found = distiller._consistency_loss(draws, condition, x_0)
        assert torch.equal(before, fingerprint(distiller.student.network))
        found.mean().backward()
        assert gradients(distiller.student.network).abs().sum() > 0
        return found.detach()

    start = {target: loss(target, moved=False) for target in ("student", "ema", "teacher")}
    later = {target: loss(target, moved=True) for target in ("student", "ema", "teacher")}
    # A student that is still the teacher has one target by three names, but for the rounding of its scheduler.
    assert torch.equal(start["student"], start["ema"])
    torch.testing.assert_close(start["student"], start["teacher"], rtol=1e-3, atol=1e-5)
    # Later, the average and the teacher are where they were and the student is not.
    torch.testing.assert_close(later["ema"], later["teacher"], rtol=1e-3, atol=1e-5)
    assert ((later["student"] - later["teacher"]).abs() > 1e-2 * later["teacher"]).any()  # not where a walk ended
    assert ((later["teacher"] - start["teacher"]).abs() > 1e-3 * start["teacher"]).all()


def test_the_consistency_loss_is_lines_9_and_10(teacher: Teacher) -> None:
    """By hand: noise a clip to a time of the grid, two guided DDIM steps of the teacher, compare the predictions."""
    distiller = distiller_of(teacher, cd_m=2, cd_grid=10, cd_guidance_scale=6.0, vsd_guidance_scale=3.0)
    draws, condition, x_0 = batch(teacher)
    draws = next(d for d in (replace(draws, turn=c) for c in range(50)) if 9 in d.integers("cd time", 10))
    alphas = teacher.denoiser.schedule.alphas_cumprod.double()
    grid = [999, 899, 799, 699, 599, 499, 399, 299, 199, 99, -1]

    def x_0_of(denoiser: Denoiser, x: Tensor, t: int, who: Condition) -> Tensor:
        return denoiser(x.float(), torch.tensor([t]), who).detach().double()

    def f(x: Tensor, t: int, who: Condition) -> Tensor:
        scaled = 10.0 * t
        c_skip, c_out = 0.25 / (scaled**2 + 0.25), scaled / math.sqrt(scaled**2 + 0.25)
        return c_skip * x + c_out * x_0_of(distiller.student, x, t, who)

    expected = []
    for i, start in enumerate(draws.integers("cd time", 10).tolist()):
        own = condition.map(itemgetter(slice(i, i + 1)))
        alpha = alphas[grid[start]]
        noise = draws.normal("cd noise", LATENT)[i : i + 1].double()
        first = x = alpha.sqrt() * x_0[i : i + 1].double() + (1 - alpha).sqrt() * noise
        for t, following in list(itertools.pairwise(grid))[start : start + 2]:
            guided, blind = (x_0_of(teacher.denoiser, x, t, who) for who in (own, teacher.null(1)))
            guess = blind + 6.0 * (guided - blind)
            eps = (x - alphas[t].sqrt() * guess) / (1 - alphas[t]).sqrt()
            beta = torch.tensor(1.0).double() if following == -1 else alphas[following]
            x = beta.sqrt() * guess + (1 - beta).sqrt() * eps
        end = grid[min(start + 2, 10)]
        difference = f(first, grid[start], own) - (x if end == -1 else f(x, end, own))
        expected.append(((difference**2 + 1e-6).sqrt() - 1e-3).mean())
    found = distiller._consistency_loss(draws, condition, x_0)
    torch.testing.assert_close(found.double(), torch.stack(expected), rtol=1e-3, atol=1e-5)


def test_a_walk_to_the_end_of_the_grid_meets_the_teachers_sample(teacher: Teacher) -> None:
    """With m as long as the grid every walk ends on x_0, which is the target whoever's f it is."""
    draws, condition, x_0 = batch(teacher)
    losses = []
    for target in ("student", "teacher"):
        distiller = distiller_of(teacher, cd_target=target, cd_m=10, cd_grid=10)
        losses.append(distiller._consistency_loss(draws, condition, x_0).detach())
    assert torch.equal(*losses)


# Where the student starts


def test_noised_data_starts_from_a_noised_clip(teacher: Teacher) -> None:
    draws, condition, x_0 = batch(teacher)
    distiller = distiller_of(teacher, steps=(4,), student_input="noised_data")
    for k, t in enumerate(TIMES):
        draws = of_depth(distiller, draws, 4, k)
        seen = []
        handle = distiller.student.network.register_forward_pre_hook(lambda m, a, seen=seen: seen.append(a[:2]))
        distiller.fresh_sample(draws, condition, x_0)
        handle.remove()
        ((x, time),) = seen  # one prediction, whatever the depth
        noise = draws.normal(f"noise {k}", LATENT)
        schedule = distiller.samplers[0].schedule
        expected = noise if k == 0 else diffuse(x_0, noise, torch.full((3,), t), schedule)
        assert time.tolist() == [t] * 3 and torch.equal(x, expected)
    with pytest.raises(ValueError, match=r"noised_data needs clips; use student.input=simulate"):
        distiller.fresh_sample(draws, condition, None)


def test_simulate_starts_from_the_students_own_steps(teacher: Teacher) -> None:
    draws, condition, _ = batch(teacher)
    distiller = distiller_of(teacher)
    for steps, k in ((4, 3), (2, 1), (1, 0)):
        draws = of_depth(distiller, draws, steps, k)
        sampler = next(s for s in distiller.samplers if s.steps == steps)
        noise = lambda i, draws=draws: draws.normal(f"noise {i}", LATENT)  # noqa: E731
        with torch.no_grad():
            expected = sampler.sample(distiller.student.given(condition), noise)
        assert torch.equal(distiller.fresh_sample(draws, condition, None).x_hat, expected)  # clips aren't needed


def test_consistency_needs_clips(teacher: Teacher) -> None:
    draws, condition, _ = batch(teacher)
    with pytest.raises(ValueError, match=r"beta_cd > 0 needs clips.*set beta_cd=0"):
        carry_back(distiller_of(teacher), draws, condition, None)


def test_a_heterogeneous_student_gives_x_0_itself(teacher: Teacher) -> None:
    draws, condition, x_0 = batch(teacher)
    distiller = distiller_of(teacher, student_parameterization="heterogeneous")
    x, t = draws.normal("x", LATENT), torch.tensor([999, 499, 249])
    with torch.no_grad():
        assert torch.equal(distiller.student(x, t, condition), distiller.student.network(x, t, condition))
        like_its_teacher = distiller_of(teacher).student(x, t, condition)
        assert not torch.equal(distiller.student(x, t, condition), like_its_teacher)
    assert set(carry_back(distiller, draws, condition, x_0)) == {"vsd+ft", "cd"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cd_target": "fake"}, "cd.target is 'fake'; use student or ema or teacher"),
        ({"beta_ft": -1.0}, "beta_ft is -1.0; a weight is 0"),
        ({"beta_vsd": 0, "beta_cd": 0, "beta_ft": 0}, "nothing to learn from"),
        ({"balance": 0.0}, "balance is 0.0; use null"),
        ({"cd_m": 11}, "cd.m is 11; a walk has 1 to cd.grid = 10 steps"),
        ({"vsd_weighting": "dmd2"}, "vsd.weighting is 'dmd2'"),
        ({"vsd_lower_half": 1.5}, "vsd.lower_half is 1.5; it is a share"),
        ({"vsd_lower_half_over": (0.7, 0.3)}, r"vsd.lower_half_over is \[0.7, 0.3\]; give two rising fractions"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Objective(**{"cd_grid": 10, "cd_m": 2, **settings})


def test_gradient_sizes_at_x_hat_do_not_depend_on_the_batch(teacher: Teacher) -> None:
    """Logged in the unit of one sample's gradient: the same sample twice has the size of it once."""
    draws, condition, x_0 = batch(teacher)
    logged: list[dict[str, float]] = []
    for indices in ([1], [1, 1]):
        distiller = distiller_of(teacher, beta_cd=0)
        pick: Callable = lambda x, indices=indices: torch.stack([x[i] for i in indices])  # noqa: E731
        same = condition.map(pick)
        carry_back(distiller, replace(draws, indices=indices), same, pick(x_0))
        logged.append(distiller.logged)
    for name in ("grad_norm/x_hat/vsd", "grad_norm/x_hat/ft", "cosine/x_hat/vsd_ft"):
        assert logged[0][name] == pytest.approx(logged[1][name], rel=1e-3)
