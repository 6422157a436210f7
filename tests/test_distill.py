"""Algorithm 1's losses: functions of their draws, costing what spec says, each term what it claims to be."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from operator import itemgetter

import pytest
import torch
from conftest import LATENT, Redness, clear, fingerprint, gradients, new_network
from torch import Tensor

from dollar.data.latents import Batch
from dollar.diffusion.draws import Draws
from dollar.diffusion.schedule import diffuse
from dollar.export.student import denoiser_of, few_steps, read_as_x_0
from dollar.losses.consistency import Consistency
from dollar.losses.latent_reward import LatentRewardTerm
from dollar.losses.objective import Objective
from dollar.losses.reward_gradient import DRaFT
from dollar.losses.vsd import VSD
from dollar.methods.dollar import Dollar
from dollar.methods.ingredients import Ingredients, MicroBatch
from dollar.models.denoiser import Condition, Denoiser
from dollar.models.latent_reward_model import LatentRewardModel
from dollar.models.roles import separate
from dollar.models.teacher import Teacher
from dollar.parallel.world import World
from dollar.surrogate.latent_reward import LatentReward
from dollar.surrogate.pixel_reward import PixelReward
from dollar.training.average import Average
from dollar.training.loop import Loop

PROMPTS = [
    "a small red circle moving left on a black background",
    "a large blue cross standing still on a white background",
    "a small green square moving up on a brown background",
]
TIMES = [999, 749, 499, 249]


def objective_of(
    beta_vsd: float = 1.0,
    beta_cd: float = 0.5,
    beta_ft: float = 1.0,
    balance: float | None = None,
    vsd: dict | None = None,
    cd: dict | None = None,
    ft: dict | None = None,
) -> Objective:
    """Eq. 16 with the paper's weights and a short walk."""
    terms = {
        "vsd": VSD(beta_vsd, **(vsd or {})),
        "cd": Consistency(beta_cd, **{"m": 2, "grid": 10, **(cd or {})}),
        "ft": LatentRewardTerm(beta_ft, **(ft or {})),
    }
    return Objective({name: term for name, term in terms.items() if term.beta > 0}, balance)


class Given:
    """Three samples, over and over."""

    captions = tuple(PROMPTS)
    has_latents = True
    x_0 = torch.randn(3, *LATENT, generator=torch.Generator().manual_seed(1))

    def batch(self, samples: Sequence[int], latents: bool = True) -> Batch:
        places = [i % 3 for i in samples]
        keys = [(place, 0) for place in places]
        return Batch([PROMPTS[i] for i in places], self.x_0[places] if latents else None, keys)


def method_of(
    teacher: Teacher,
    steps: tuple[int, ...] = (4, 2, 1),
    warm: bool = True,
    parameterization: str = "homogeneous",
    student_input: str = "simulate",
    fake_loss: str = "native",
    **settings,
) -> Dollar:
    """The method of a run that has been going on for a while: student and fake score have moved from the teacher."""
    samplers = list(few_steps(teacher, TIMES, steps, "renoise").values())
    student, fake = new_network(teacher), new_network(teacher)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for p in [*student.parameters(), *fake.parameters()]:
            p += 0.01 * torch.randn(p.shape, generator=generator)
    state = torch.random.get_rng_state()
    torch.manual_seed(6)
    model = LatentRewardModel(LATENT[0], text_dim=64, width=16, temporal="conv3d", groups=4)
    torch.random.set_rng_state(state)
    surrogate = LatentReward(model, PixelReward(Redness(), teacher.codec), teacher.text)
    surrogate.statistics.update(torch.tensor([0.5, 2.5]))
    roles = {
        "student": separate("student", denoiser_of(teacher, student, samplers[0], parameterization, torch.float32)),
        "fake": separate("fake", teacher.denoiser_of(fake)),
    }
    run = Ingredients(
        teacher=teacher.denoiser,
        roles=roles,
        samplers=samplers,
        objective=objective_of(**settings),
        latent_shape=teacher.latent_shape,
        null=teacher.null,
        text=teacher.text,
        data=Given(),
        world=World(),
        batch=3,
        surrogate=surrogate,
    )
    how = {"student_input": student_input, "fake_loss": fake_loss, "lrm_clips": 3}
    return Dollar(run, lrm_warmup=0 if warm else 1, **how)


DRAWS = Draws(0, 5, range(3))


def whole(method: Dollar, draws: Draws = DRAWS) -> MicroBatch:
    """All samples of these draws at once."""
    (micro,) = method.run.micro_batches(draws, latents=True)
    return micro


def fresh(method: Dollar, draws: Draws = DRAWS) -> Tensor:
    """The student's sample of these draws."""
    return method.student.draw(whole(method, draws)).sample.x_hat


def last(method: Dollar) -> Tensor:
    """The sample of the student's last update."""
    (drawn,) = method.student.drawn
    return drawn.sample.x_hat


def consistency_loss(method: Dollar) -> Tensor:
    return method.run.objective.terms["cd"].loss_of(method.student.context(whole(method)))


def carry_back(method: Dollar, draws: Draws = DRAWS, apart: bool = False) -> dict[str, Tensor]:
    """The student's gradient of each branch."""
    network, found = method.run.student.network, {}
    for part in method.student.losses(draws, apart):
        clear(network)
        torch.autograd.backward(part.tensor, part.gradient, retain_graph=not part.last)
        found[part.name] = gradients(network).clone()
    clear(network)
    return found


def of_depth(method: Dollar, steps: int, k: int) -> Draws:
    """Draws of another cycle, in which the student has `steps` steps and is rolled out to its k-th time."""
    samplers = method.run.samplers
    for cycle in range(500):
        draws = replace(DRAWS, turn=cycle)
        sampler = samplers[draws.shared_integer("step count", len(samplers))]
        if sampler.steps == steps and draws.shared_integer("depth", steps) == k:
            return draws
    raise AssertionError("every depth is drawn within 500 cycles")


# Draws


def test_a_cycle_is_a_function_of_its_draws(teacher: Teacher) -> None:
    method = method_of(teacher)

    def all_of_it(draws: Draws) -> list[Tensor]:
        found = list(carry_back(method, draws).values())
        x_hat = fresh(method, draws)
        return [*found, last(method), x_hat, method.fake.loss(draws, method.student.drawn[0]).detach()]

    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    first = all_of_it(DRAWS)
    assert torch.equal(before, torch.random.get_rng_state())  # nothing is drawn behind the caller's back
    torch.manual_seed(1)
    assert all(torch.equal(a, b) for a, b in zip(first, all_of_it(DRAWS), strict=True))
    for other in (replace(DRAWS, seed=1), replace(DRAWS, turn=6), replace(DRAWS, indices=range(3, 6))):
        assert not any(torch.equal(a, b) for a, b in zip(first, all_of_it(other), strict=True))


def test_the_student_turns_sample_is_the_fresh_sample_of_its_draws(teacher: Teacher) -> None:
    method = method_of(teacher)
    carry_back(method)
    assert torch.equal(last(method), fresh(method))
    assert not last(method).requires_grad


def test_a_sample_does_not_depend_on_the_others_of_its_batch(teacher: Teacher) -> None:
    method = method_of(teacher)
    together = fresh(method)
    for i in range(3):
        alone = fresh(method, replace(DRAWS, indices=[i]))
        torch.testing.assert_close(alone, together[i : i + 1], rtol=1e-4, atol=1e-5)


def test_depth_and_step_count_are_the_same_on_every_process_and_all_are_drawn(teacher: Teacher) -> None:
    samplers, seen = few_steps(teacher, TIMES, (4, 2, 1), "renoise"), Counter()
    for cycle in range(200):
        drawn = []
        for rank in range(2):
            draws = Draws(0, cycle, range(rank, 4, 2))
            sampler = list(samplers.values())[draws.shared_integer("step count", 3)]
            drawn.append((sampler.steps, draws.shared_integer("depth", sampler.steps)))
        assert drawn[0] == drawn[1]
        seen[drawn[0]] += 1
    assert set(seen) == {(4, 0), (4, 1), (4, 2), (4, 3), (2, 0), (2, 1), (1, 0)}
    assert 40 < seen[1, 0] < 95  # each count a third, each depth of a count alike


# What it costs, in forwards of one network on one batch; a forward with its backward counts as three


@contextlib.contextmanager
def counted(loop: Loop) -> Iterator[Counter]:
    """Forwards of each network inside the context."""
    forwards: Counter = Counter()
    run, handles = loop.method.run, []
    networks = {name: role.denoiser.network for name, role in run.roles.items()}
    for name, network in {**networks, "teacher": run.teacher.network}.items():

        def count(module, arguments, name=name):
            forwards[name] += (
                len(arguments[0]) / run.batch * (3 if name != "teacher" and torch.is_grad_enabled() else 1)
            )

        handles.append(network.register_forward_pre_hook(count))
    yield forwards
    for handle in handles:
        handle.remove()


def cost(loop: Loop, monkeypatch: pytest.MonkeyPatch, steps: int) -> float:
    """Forwards of a cycle, averaged over the depths of a rollout."""
    total = 0.0
    for k in range(steps):
        monkeypatch.setattr(Draws, "shared_integer", lambda self, purpose, high, k=k: k if purpose == "depth" else 0)
        with counted(loop) as forwards:
            loop.run_cycle(k)
        total += forwards.total() / steps
    return total


@pytest.mark.parametrize(
    ("steps", "student_input", "expected"),
    [(4, "simulate", 46.5), (4, "noised_data", 39), (2, "simulate", 41.5), (1, "simulate", 39)],
)
def test_a_cycle_costs_what_the_arithmetic_says(build, monkeypatch, steps, student_input, expected) -> None:
    settings = ("beta_ft=0", "fake_updates=5", "cd.m=5", "cd.grid=50", "batch=2", "log.gradients_every=0")
    loop = build(*settings, f"student.steps=[{steps}]", f"student.input={student_input}")
    assert cost(loop, monkeypatch, steps) == expected


def test_fine_tuning_apart_costs_one_more_forward_and_backward(build, monkeypatch) -> None:
    common = ("student.steps=[1]", "batch=2", "log.gradients_every=0", "lrm.warmup=0")
    joint = cost(build(*common), monkeypatch, 1)
    without = cost(build(*common, "beta_ft=0"), monkeypatch, 1)
    apart = cost(build(*common, "ft.update=separate"), monkeypatch, 1)
    assert joint == without and apart == without + 3


def forbid(*_: object, **__: object) -> None:
    raise AssertionError("this term is off and must not run")


def test_without_vsd_no_fake_score_is_trained_and_the_teacher_is_not_run(build) -> None:
    loop = build("beta_vsd=0", "beta_cd=0", "student.steps=[1]", "lrm.warmup=0")
    assert set(loop.learners) == {"student", "lrm"}
    loop.run_cycle(0)  # in which rewards are seen for the first time
    with counted(loop) as forwards:
        loop.run_cycle(1)
    assert forwards["teacher"] == 0 and forwards["fake"] == 0 and forwards["student"] == 3


def test_without_the_reward_nothing_is_decoded_or_scored(build, monkeypatch) -> None:
    monkeypatch.setattr(Redness, "score", forbid)
    loop = build("beta_ft=0")
    monkeypatch.setattr("dollar.models.codec.Codec.decode", forbid)
    assert "lrm" not in loop.learners and loop.method.run.surrogate is None
    loop.run_cycle(0)


def test_consistency_alone_samples_nothing(build, monkeypatch) -> None:
    loop = build("beta_vsd=0", "beta_ft=0", "batch=2", "cd.m=2")
    monkeypatch.setattr(loop.method.student, "start", forbid)
    with counted(loop) as forwards:
        loop.run_cycle(0)
    assert forwards == {"teacher": 4, "student": 4}  # a guided walk of 2, one target, and one prediction with backward


def test_without_consistency_no_clip_is_encoded(build, monkeypatch) -> None:
    monkeypatch.setattr("dollar.models.codec.Codec.encode", forbid)
    build("beta_cd=0", "beta_ft=0").run_cycle(0)


# The terms


def test_vsd_and_reward_gradients_add_at_x_hat(teacher: Teacher) -> None:
    method = method_of(teacher, beta_ft=0.3)
    together, apart = carry_back(method), carry_back(method, apart=True)
    assert list(together) == ["vsd+ft", "cd"] and list(apart) == ["vsd", "ft", "cd"]
    assert torch.equal(together["cd"], apart["cd"])
    assert apart["vsd"].norm() > 0 and apart["ft"].norm() > 0
    torch.testing.assert_close(together["vsd+ft"], apart["vsd"] + apart["ft"], rtol=1e-4, atol=1e-7)
    # ... and each is what a run of that term alone would give, times its beta.
    only = {"beta_vsd": 0.0, "beta_cd": 0.0, "beta_ft": 0.0}
    for name in ("vsd", "cd", "ft"):
        method.run.objective = objective_of(**{**only, f"beta_{name}": 2.0})
        alone = carry_back(method)
        assert list(alone) == [name]
        beta = {"vsd": 1.0, "cd": 0.5, "ft": 0.3}[name]
        torch.testing.assert_close(alone[name] * beta / 2, apart[name], rtol=1e-4, atol=1e-7)


def test_the_rewards_term_is_the_gradient_of_the_predicted_reward(teacher: Teacher) -> None:
    """By hand: the reward's term is the gradient of -mean R of the same sample."""
    method = method_of(teacher, beta_vsd=0, beta_cd=0)
    found, micro = carry_back(method)["ft"], whole(method)
    sampler, k, x = method.student.start(micro)
    x_hat = sampler.generate(method.run.student.given(micro.condition), x, k)
    (-method.run.surrogate.predict(x_hat, micro.condition).mean()).backward()
    torch.testing.assert_close(found, gradients(method.run.student.network), rtol=1e-4, atol=1e-7)


def test_the_unit_of_the_reward_scales_its_term(teacher: Teacher) -> None:
    found = {}
    for unit in ("reward", "sd"):
        method = method_of(teacher, beta_vsd=0, beta_cd=0, ft={"unit": unit})
        method.run.surrogate.statistics.update(torch.tensor([-30.0, 40.0]))
        found[unit] = carry_back(method)["ft"]
    sd = method.run.surrogate.statistics.sd
    assert sd > 20
    torch.testing.assert_close(found["reward"], sd * found["sd"], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("update", ["joint", "separate"])
def test_the_reward_model_is_only_looked_through(teacher: Teacher, update: str) -> None:
    method = method_of(teacher, ft={"update": update})
    carry_back(method)
    for name, term in method.run.objective.apart.items():
        for part in method.student.losses_apart(name, term, DRAWS):
            torch.autograd.backward(part.tensor, part.gradient)
    untouched = [method.run.surrogate.model, method.run.roles["fake"].denoiser.network, method.run.teacher.network]
    assert all(p.grad is None for network in untouched for p in network.parameters())


def test_a_cold_reward_model_is_not_followed(teacher: Teacher) -> None:
    assert list(carry_back(method_of(teacher, warm=False))) == ["vsd", "cd"]
    assert list(carry_back(method_of(teacher, ft={"update": "separate"}))) == ["vsd", "cd"]


def test_fine_tuning_apart_is_the_same_gradient(teacher: Teacher) -> None:
    joint = carry_back(method_of(teacher, beta_vsd=0, beta_cd=0, beta_ft=0.7))["ft"]
    method = method_of(teacher, beta_ft=0.7, ft={"update": "separate"})
    (part,) = method.student.losses_apart("ft", method.run.objective.terms["ft"], DRAWS)
    torch.autograd.backward(part.tensor, part.gradient)
    torch.testing.assert_close(gradients(method.run.student.network), joint, rtol=1e-4, atol=1e-7)


def test_balance_caps_the_rewards_share_of_each_sample(teacher: Teacher) -> None:
    def at_x_hat(balance: float | None) -> dict[str, Tensor]:
        parts = method_of(teacher, beta_cd=0, beta_ft=100.0, balance=balance).student.losses(DRAWS, apart=True)
        return {part.name: part.gradient for part in parts}

    free, held = at_x_hat(None), at_x_hat(0.5)
    sizes = {name: g.flatten(1).norm(dim=1) for name, g in held.items()}
    assert torch.equal(free["vsd"], held["vsd"])
    assert (free["ft"].flatten(1).norm(dim=1) > sizes["vsd"]).all()
    torch.testing.assert_close(sizes["ft"], 0.5 * sizes["vsd"])
    similarity = torch.cosine_similarity(free["ft"].flatten(1), held["ft"].flatten(1))
    torch.testing.assert_close(similarity, torch.ones(3))
    assert torch.equal(at_x_hat(1e6)["ft"], free["ft"])  # a cap that isn't reached changes nothing


def test_the_vsd_gradient_is_dmds(teacher: Teacher) -> None:
    """(x0_fake - x0_real) / mean |x_hat - x0_real|, over the batch's elements (Eq. 13 with DMD's weight)."""
    method = method_of(teacher, beta_cd=0, beta_ft=0, beta_vsd=2.0)
    (part,) = method.student.losses(DRAWS, apart=False)
    x_hat, schedule, condition = last(method), teacher.denoiser.schedule, whole(method).condition
    t = (20 + 960 * DRAWS.uniform("vsd time")).long()
    x_t = diffuse(x_hat, DRAWS.normal("vsd noise", LATENT), t, schedule)
    with torch.no_grad():
        conditional, null = (teacher.denoiser(x_t, t, c) for c in (condition, teacher.null(3)))
        real = null + 4.5 * (conditional - null)
        fake = method.run.roles["fake"].denoiser(x_t, t, condition)
    weight = 2 / (x_hat - real).abs().mean((1, 2, 3, 4), keepdim=True)
    torch.testing.assert_close(part.gradient, weight * (fake - real) / x_hat.numel(), rtol=1e-3, atol=1e-8)


def test_times_come_to_fall_where_they_are_wanted() -> None:
    u = torch.arange(1000) / 1000
    assert torch.equal(VSD().place(u, 0.02, 0.98, 0.9), 0.02 + 0.96 * u.double())
    preferring = VSD(lower_half=0.9, lower_half_over=(0.25, 0.75))
    for progress, share in ((0.0, 0.5), (0.25, 0.5), (0.5, 0.7), (0.75, 0.9), (1.0, 0.9)):
        placed = preferring.place(u, 0.02, 0.98, progress)
        assert float((placed < 0.5).double().mean()) == pytest.approx(share, abs=2e-3)
        assert bool((placed.diff() > 0).all()) and placed[0] == 0.02 and placed[-1] < 0.98
        # Evenly within each half.
        for low, half in ((0.02, placed[placed < 0.5]), (0.5, placed[placed >= 0.5])):
            assert float(half.mean()) == pytest.approx(low + 0.24, abs=5e-3)
            assert float(half.std()) == pytest.approx(0.48 / 12**0.5, rel=0.03)
    for share, low in ((1.0, 0.0), (0.0, 0.5)):
        placed = VSD(lower_half=share).place(u, 0.0, 1.0, 1.0)
        torch.testing.assert_close(placed, low + u.double() / 2)


def test_the_fake_score_learns_where_vsd_reads_it() -> None:
    u = torch.arange(1000) / 1000
    lopsided = VSD(range=(0.5, 0.98), lower_half=1.0)
    assert bool((lopsided.place(u, 0.5, 0.98, 1.0) < 0.74).all())
    fake = lopsided.fake_times(u, 1.0)
    assert bool((fake < 0.74).all()) and float((fake > 0.5).double().mean()) == pytest.approx(0.24 / 0.74, abs=2e-3)
    torch.testing.assert_close(lopsided.fake_times(u, 0.0), u.double())  # all of [0, T) before


def test_vsd_and_fake_score_draw_their_times_where_they_are_wanted(teacher: Teacher) -> None:
    method = method_of(teacher, beta_cd=0, beta_ft=0, vsd={"lower_half": 1.0, "lower_half_over": (0.0, 0.5)})
    seen: dict[str, Tensor] = {}
    for name, denoiser in (("teacher", method.run.teacher), ("fake", method.run.roles["fake"].denoiser)):
        handle = denoiser.network.register_forward_pre_hook(lambda _, inputs, name=name: seen.update({name: inputs[1]}))
        if name == "teacher":
            at_teacher = handle
    vsd_u, fake_u = DRAWS.uniform("vsd time"), DRAWS.uniform("fake time")
    for progress, half in ((0.0, 1.0), (0.75, 0.5)):
        method.student.progress = progress
        list(method.student.losses(DRAWS, apart=False))
        expected = (20 + 960 * half * vsd_u).long()
        assert torch.equal(seen["teacher"][-3:], expected) and torch.equal(seen["fake"], expected)
        method.fake.loss(DRAWS, method.student.drawn[0])
        assert torch.equal(seen["fake"], (1000 * half * fake_u).long())
    at_teacher.remove()


def test_the_fake_loss_is_denoising_of_the_students_sample(teacher: Teacher) -> None:
    for kind in ("native", "cv"):
        method = method_of(teacher, fake_loss=kind)
        drawn = method.student.draw(whole(method))
        x_hat, condition = drawn.sample.x_hat, drawn.condition
        loss = method.fake.loss(DRAWS, drawn)
        schedule, t = teacher.denoiser.schedule, (1000 * DRAWS.uniform("fake time")).long()
        x_t = diffuse(x_hat, DRAWS.normal("fake noise", LATENT), t, schedule)
        error = (method.run.roles["fake"].denoiser(x_t, t, condition) - x_hat).square().mean((1, 2, 3, 4))
        a, b = (c.float() for c in schedule.coefficients(t))
        factor = 1 / b**2 if kind == "native" else ((a + b) / b) ** 2  # |v - v_hat|^2 = |x_0 - x_0hat|^2 / b^2
        torch.testing.assert_close(loss, factor * error, rtol=2e-3, atol=1e-5)


@pytest.mark.parametrize("m", [1, 4])
def test_every_consistency_target_is_its_own(teacher: Teacher, m: int) -> None:
    def loss(target: str, moved: bool) -> Tensor:
        method = method_of(teacher, cd={"target": target, "m": m})
        network = method.run.student.network
        with torch.no_grad():
            for p, q in zip(network.parameters(), teacher.denoiser.network.parameters(), strict=True):
                p.copy_(q)
        method.run.averaged = Average(dict(network.named_parameters()), 0.99).swapped
        if moved:
            with torch.no_grad():
                for p in network.parameters():
                    p += 0.05 * torch.sin(torch.arange(p.numel()).view_as(p))
        before = fingerprint(network)
        found = consistency_loss(method)
        assert torch.equal(before, fingerprint(network))
        found.mean().backward()
        assert gradients(network).abs().sum() > 0
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
    method = method_of(teacher, cd={"guidance_scale": 6.0}, vsd={"guidance_scale": 3.0})
    draws = next(d for d in (replace(DRAWS, turn=c) for c in range(50)) if 9 in d.integers("cd time", 10))
    micro = whole(method, draws)
    condition, x_0 = micro.condition, micro.x_0
    alphas = teacher.denoiser.schedule.alphas_cumprod.double()
    grid = [999, 899, 799, 699, 599, 499, 399, 299, 199, 99, -1]

    def x_0_of(denoiser: Denoiser, x: Tensor, t: int, who: Condition) -> Tensor:
        return denoiser(x.float(), torch.tensor([t]), who).detach().double()

    def f(x: Tensor, t: int, who: Condition) -> Tensor:
        scaled = 10.0 * t
        c_skip, c_out = 0.25 / (scaled**2 + 0.25), scaled / math.sqrt(scaled**2 + 0.25)
        return c_skip * x + c_out * x_0_of(method.run.student, x, t, who)

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
    found = method.run.objective.terms["cd"].loss_of(method.student.context(micro))
    torch.testing.assert_close(found.double(), torch.stack(expected), rtol=1e-3, atol=1e-5)


def test_a_walk_to_the_end_of_the_grid_meets_the_teachers_sample(teacher: Teacher) -> None:
    """With m as long as the grid every walk ends on x_0, which is the target whoever's f it is."""
    losses = [
        consistency_loss(method_of(teacher, cd={"target": target, "m": 10})).detach()
        for target in ("student", "teacher")
    ]
    assert torch.equal(*losses)


# Where the student starts


def test_noised_data_starts_from_a_noised_clip(teacher: Teacher) -> None:
    method = method_of(teacher, steps=(4,), student_input="noised_data")
    for k, t in enumerate(TIMES):
        draws = of_depth(method, 4, k)
        seen = []
        handle = method.run.student.network.register_forward_pre_hook(lambda m, a, seen=seen: seen.append(a[:2]))
        fresh(method, draws)
        handle.remove()
        ((x, time),) = seen  # one prediction, whatever the depth
        noise = draws.normal(f"noise {k}", LATENT)
        schedule = method.run.samplers[0].schedule
        expected = noise if k == 0 else diffuse(Given.x_0, noise, torch.full((3,), t), schedule)
        assert time.tolist() == [t] * 3 and torch.equal(x, expected)
    with pytest.raises(ValueError, match=r"noised_data needs clips; use student.input=simulate"):
        method.student.draw(whole(method, draws)._replace(x_0=None))


def test_simulate_starts_from_the_students_own_steps(teacher: Teacher) -> None:
    method = method_of(teacher)
    for steps, k in ((4, 3), (2, 1), (1, 0)):
        draws = of_depth(method, steps, k)
        micro = whole(method, draws)
        sampler = next(s for s in method.run.samplers if s.steps == steps)
        noise = lambda i, draws=draws: draws.normal(f"noise {i}", LATENT)  # noqa: E731
        with torch.no_grad():
            expected = sampler.sample(method.run.student.given(micro.condition), noise)
        found = method.student.draw(micro._replace(x_0=None))  # clips aren't needed
        assert torch.equal(found.sample.x_hat, expected)


def test_consistency_needs_clips(teacher: Teacher) -> None:
    method = method_of(teacher)
    context = method.student.context(whole(method)._replace(x_0=None))
    with pytest.raises(ValueError, match=r"beta_cd > 0 needs clips.*set beta_cd=0"):
        next(method.run.objective.terms["cd"].losses([context]))


def test_a_heterogeneous_student_gives_x_0_itself(teacher: Teacher) -> None:
    method = method_of(teacher, parameterization="heterogeneous")
    x, t, condition = DRAWS.normal("x", LATENT), torch.tensor([999, 499, 249]), whole(method).condition
    with torch.no_grad():
        assert torch.equal(method.run.student(x, t, condition), method.run.student.network(x, t, condition))
        like_its_teacher = method_of(teacher).run.student(x, t, condition)
        assert not torch.equal(method.run.student(x, t, condition), like_its_teacher)
        # A run's begins with its sign turned, for without signal minus v is x_0.
        own = new_network(teacher)
        read_as_x_0(own, teacher.denoiser.prediction)
        found = denoiser_of(teacher, own, method.run.samplers[0], "heterogeneous", torch.float32)(x, t, condition)
        expected = teacher.denoiser(x, t, condition)
    a = teacher.denoiser.schedule.coefficients(t).a
    assert a[0] == 0 and (a[1:] > 0).all()
    torch.testing.assert_close(found[0], expected[0])
    assert not torch.allclose(found[1:], expected[1:], atol=1e-2)
    assert set(carry_back(method)) == {"vsd+ft", "cd"}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Consistency(target="fake"), "cd.target is 'fake'; use student or ema or teacher"),
        (lambda: LatentRewardTerm(-1.0), "beta_ft is -1.0; a weight is 0"),
        (lambda: objective_of(beta_vsd=0, beta_cd=0, beta_ft=0), "nothing to learn from"),
        (lambda: objective_of(balance=0.0), "balance is 0.0; use null"),
        (lambda: objective_of(balance=0.5, beta_vsd=0), "needs ft.update=joint and beta_vsd above 0"),
        (lambda: objective_of(balance=0.5, ft={"update": "separate"}), "needs ft.update=joint and beta_vsd above 0"),
        (lambda: objective_of(balance=0.5, beta_ft=0), "beta_ft is 0, so there is nothing to hold back"),
        (lambda: Objective({"vsd": VSD(), "draft": DRaFT()}, 0.5), "the gradient of draft comes back through whole"),
        (lambda: Objective({"vsd": VSD(beta=0)}), "the weight of the term vsd is 0; it must be positive"),
        (lambda: Consistency(m=11, grid=10), "cd.m is 11; a walk has 1 to cd.grid = 10 steps"),
        (lambda: Consistency(guidance_scale=-1.0), "cd.guidance_scale is -1.0, which leads away from the prompt"),
        (lambda: VSD(weighting="dmd2"), "vsd.weighting is 'dmd2'"),
        (lambda: VSD(lower_half=1.5), "vsd.lower_half is 1.5; it is a share"),
        (lambda: VSD(lower_half_over=(0.7, 0.3)), r"vsd.lower_half_over is \[0.7, 0.3\]; give two rising fractions"),
        (lambda: VSD(range=(0.9, 0.1)), r"vsd.range is \[0.9, 0.1\]; give two rising fractions of T"),
    ],
)
def test_settings_that_mean_nothing_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_gradient_sizes_at_x_hat_do_not_depend_on_the_batch(teacher: Teacher) -> None:
    """Logged in the unit of one sample's gradient: the same sample twice has the size of it once."""
    logged: list[dict[str, float]] = []
    for indices in ([1], [1, 1]):
        method = method_of(teacher, beta_cd=0)
        carry_back(method, replace(DRAWS, indices=indices))
        logged.append(method.logged)
    for name in ("grad_norm/x_hat/vsd", "grad_norm/x_hat/ft", "cosine/x_hat/vsd_ft"):
        assert logged[0][name] == pytest.approx(logged[1][name], rel=1e-3)
