"""Preference distillation: closed forms on Gaussians, gradients, the safeguard, and updates of a pruned student."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import fingerprint, network_of, tiny_run
from pairs import write_pairs
from test_loop import save_pruned
from torch import Tensor, nn

from dollar.losses.objective import Objective
from dollar.losses.pairs import Outputs
from dollar.losses.preference import SATURATED, Departure, Preferred, margin, preference, safeguard_share
from dollar.losses.vsd import VSD
from dollar.models.teacher import Teacher
from dollar.parallel.world import World
from dollar.training.comparison import Branches
from dollar.training.learner import Learner
from dollar.training.loop import Loop

A, B = 0.8, 0.6  # a and b of the one time that the closed forms are at
DRAWS = 200_000


class Gaussian:
    """Data of N(mean, sd^2) in each of 3 dimensions, and the exact prediction of its noise at that time."""

    def __init__(self, mean: float, sd: float) -> None:
        self.mean, self.sd = mean, sd

    def draw(self, generator: torch.Generator) -> Tensor:
        return self.mean + self.sd * torch.randn(DRAWS, 3, generator=generator, dtype=torch.float64)

    def noise_in(self, x_t: Tensor) -> Tensor:
        return B * (x_t - A * self.mean) / (A**2 * self.sd**2 + B**2)


FULL, PRUNED = Gaussian(0.5, 1.0), Gaussian(0.0, 0.7)


def outputs(law: Gaussian, generator: torch.Generator, student: Callable[[Tensor], Tensor]) -> Outputs:
    x_0 = law.draw(generator)
    eps = torch.randn(x_0.shape, generator=generator, dtype=torch.float64)
    x_t = A * x_0 + B * eps
    return Outputs(student(x_t), FULL.noise_in(x_t), eps)


def errors(values: Tensor, expected: float = 0.0) -> float:
    """How many standard errors the mean is from what is expected."""
    return abs(float(values.mean()) - expected) / (float(values.std()) / math.sqrt(len(values)))


def test_the_winners_half_is_sft_and_the_losers_is_minus_it() -> None:
    """Identities 1 and 2: both clips are of their model's own law, and both models are exact for theirs."""
    generator = torch.Generator().manual_seed(0)
    scale, shift = torch.ones((), requires_grad=True), torch.zeros((), requires_grad=True)

    def student(x_t: Tensor) -> Tensor:
        return scale * PRUNED.noise_in(x_t) + shift

    winner, loser = outputs(FULL, generator, student), outputs(PRUNED, generator, student)
    apart = ((winner.student - winner.reference) ** 2).mean(1)
    assert float(apart.mean().detach()) > 0.05 and errors((winner.excess - apart).detach()) < 3
    below = ((loser.student - loser.reference) ** 2).mean(1)
    assert errors((loser.excess + below).detach()) < 3
    # The loser's error has no slope in an exact student: each draw's gradient is noise around 0.
    residual = (loser.student - loser.target).detach()
    with_scale = (2 * residual * (loser.student - shift).detach()).mean(1)
    assert errors(with_scale) < 3 and errors((2 * residual).mean(1)) < 3
    # So a stage begins with margins above 0, a loss above log 2 and more than half of the pairs told apart wrongly.
    found = Preferred(strength=2.0).pair_scalars(winner, loser)
    assert errors(found["margin"].detach(), float((apart + below).mean().detach())) < 3
    assert float(Preferred(strength=2.0).pair_loss(winner, loser).mean().detach()) > math.log(2)
    assert float(found["accuracy"].mean()) < 0.5
    # And of a student that is the reference: exactly log 2.
    same = Outputs(winner.reference, winner.reference, winner.target)
    assert Preferred().pair_loss(same, same).tolist()[:2] == pytest.approx([math.log(2)] * 2)


def test_the_sft_gradient_is_the_winners_in_the_mean() -> None:
    """Identity 1 differentiated: of winners of the reference's law both have the same mean gradient."""
    generator = torch.Generator().manual_seed(1)
    x_0 = FULL.draw(generator)
    eps = torch.randn(x_0.shape, generator=generator, dtype=torch.float64)
    x_t = A * x_0 + B * eps
    student, reference = PRUNED.noise_in(x_t), FULL.noise_in(x_t)
    difference = (2 * (student - eps) - 2 * (student - reference)) * student  # of the scale of its output
    assert errors(difference.mean(1)) < 3


def sides(count: int = 2) -> tuple[Outputs, Outputs]:
    generator = torch.Generator().manual_seed(0)
    found = [torch.randn(3, count, 4, generator=generator) for _ in range(2)]
    return tuple(Outputs(part[0].requires_grad_(), part[1], part[2]) for part in found)  # type: ignore[return-value]


def test_gradients_lead_to_winners_and_away_from_losers_by_each_pairs_own_sigmoid() -> None:
    winner, loser = sides()
    beta, margins = 3.0, margin(*(s.error for s in sides()), *(s.reference_error for s in sides())).detach()
    loss = Preferred(strength=beta).pair_loss(winner, loser)
    assert torch.allclose(loss, -torch.nn.functional.logsigmoid(-beta / 2 * margins))
    towards, away = torch.autograd.grad(loss.sum(), (winner.student, loser.student))
    weight = beta / 2 * torch.sigmoid(beta / 2 * margins)[:, None]
    assert torch.allclose(towards, weight * (winner.student - winner.target) / 2)  # 2 / numel of 4
    assert torch.allclose(away, -weight * (loser.student - loser.target) / 2)
    # The mean of the sigmoids, not the sigmoid of the mean: margins that cancel still cost.
    assert float(preference(torch.tensor([4.0, -4.0]), 2.0).mean()) == pytest.approx(2.01815, abs=1e-4)
    assert float(preference(torch.tensor([4.0, -4.0]).mean(), 2.0)) == pytest.approx(math.log(2))
    (held,) = torch.autograd.grad(Departure().pair_loss(sides()[0], None).sum(), sides()[0].student, allow_unused=True)
    assert held is None  # of another draw's leaf
    leaf = sides()[0]
    (held,) = torch.autograd.grad(Departure().pair_loss(leaf, None).sum(), leaf.student)
    assert torch.allclose(held, (leaf.student - leaf.reference) / 2)


def test_what_is_logged_of_a_pair() -> None:
    margins = torch.tensor([-1.0, 0.5, 3.0])
    zeros = torch.zeros(3, 1)
    winner = Outputs(margins.clamp(min=0).sqrt()[:, None], zeros, zeros)
    loser = Outputs((-margins).clamp(min=0).sqrt()[:, None], zeros, zeros)
    found = Preferred(strength=4.0).pair_scalars(winner, loser)
    assert torch.allclose(found["logit"], -2 * margins) and found["accuracy"].tolist() == [1, 0, 0]
    assert found["saturated"].tolist() == [0, 0, 1] and SATURATED == 5


@pytest.mark.parametrize(
    ("winner", "both", "share"), [(4.0, 8.0, 0.5), (4.0, 4.0, 1.0), (4.0, 2.0, 1.0), (4.0, -8.0, 1.0), (0.0, 0.0, 1.0)]
)
def test_the_safeguards_share(winner: float, both: float, share: float) -> None:
    assert safeguard_share(winner, both) == share
    assert math.isnan(safeguard_share(math.nan, both)) and math.isnan(safeguard_share(winner, math.nan))


def test_branches_are_held_apart_and_added_with_their_weights() -> None:
    network = nn.Linear(2, 1, bias=False)
    learner = Learner("x", dict(network.named_parameters()), [])
    branches = Branches(learner)
    for name, x in (("winner", [3.0, 0.0]), ("loser", [-4.0, 1.0]), ("winner", [0.0, 1.0])):
        network(torch.tensor([x])).sum().backward()
        branches.take(name)
    assert not learner.has_gradients
    assert branches.products(World()) == {("winner", "winner"): 10, ("winner", "loser"): -11, ("loser", "loser"): 17}
    branches.put({"winner": 1.0, "loser": safeguard_share(10, 11)})
    (gradient,) = learner.gradients()
    assert torch.allclose(gradient, torch.tensor([[3 - 40 / 11, 1 + 10 / 11]]))
    # Along it the winners' part doesn't change to first order.
    assert float((gradient * torch.tensor([[3.0, 1.0]])).sum()) == pytest.approx(0, abs=1e-6)


def test_terms_on_pairs_are_a_run_of_their_own() -> None:
    both = Objective({"dpo": Preferred(), "sft": Departure(1e4)})
    assert both.clips_of_a_pair == 2 and not both.sample_terms and not both.rollout_terms
    assert Objective({"sft": Departure()}).clips_of_a_pair == 1 and Objective({"vsd": VSD()}).clips_of_a_pair == 0
    with pytest.raises(ValueError, match="dpo look at pairs of clips and vsd at what the student makes"):
        Objective({"dpo": Preferred(), "vsd": VSD()})


# Updates of a pruned tiny teacher


Make = Callable[..., Loop]


@pytest.fixture
def make(teacher: Teacher, tmp_path: Path) -> Make:
    """make("key=value", ..., size=) -> a loop whose student is the pruned teacher, on pairs."""
    made: list[Loop] = []
    save_pruned(teacher, tmp_path / "pruned")

    def build(*overrides: str, size: float = 1.0) -> Loop:
        place = tmp_path / f"pairs-{size}"
        if not place.is_dir():
            write_pairs(place, teacher, size=size)
        keys = (f"init={tmp_path / 'pruned'}", "beta_ft=0", "student.steps=[4]", "log.gradients_every=0", *overrides)
        folder, data = tmp_path / f"run{len(made)}", ("data=pairs", f"data.path={place}")
        made.append(tiny_run(teacher, folder, *keys, data=data))
        return made[-1]

    yield build
    for loop in made:
        loop.log.close()


def moved(loop: Loop, cycles: int = 20) -> Tensor:
    """How its student moves in so many updates, in one row."""
    before = fingerprint(network_of(loop, "student"))
    for cycle in range(cycles):
        loop.run_cycle(cycle)
    return fingerprint(network_of(loop, "student")) - before


def test_the_ends_of_the_sft_weight(make: Make) -> None:
    alone = moved(make("loss=sft"))
    heavy = moved(make("loss=redpo", "preference.sft=1e7"))
    assert float(torch.nn.functional.cosine_similarity(heavy, alone, dim=0)) >= 0.99
    # Without DPO its size is nothing to AdamW, and the same size is the same run to the bit.
    other = moved(make("loss=sft", "preference.sft=1e7"))
    assert float((other - alone).norm() / alone.norm()) < 1e-3
    assert torch.equal(moved(make("loss=redpo", "preference.dpo=0"), 3), moved(make("loss=sft"), 3))
    # Without SFT it is DPO.
    assert torch.equal(moved(make("loss=redpo", "preference.sft=0"), 3), moved(make("loss=dpo"), 3))


def test_under_the_safeguard_the_winners_error_does_not_rise(make: Make) -> None:
    """50 small steps down the gradient on the same pairs, from where DPO begins to give the winners up."""
    # A small beta leaves all pairs their weight, so that the error which the safeguard holds is the mean of all.
    loop = make("loss=dpo", "preference.beta=0.01", "preference.dpo=1e4", "preference.drop_caption=0")
    learner, run, term = loop.learners["student"], loop.method.run, loop.method.run.objective.terms["dpo"]
    first = run.draws(0)
    run.draws = lambda turn: first

    def descend(cycles: int, rate: float) -> list[dict[str, float]]:
        learner.optimizers, learner._rates = [torch.optim.SGD(learner.tensors, lr=rate)], [rate]
        return [loop.run_cycle(cycle) for cycle in range(cycles)]

    descend(40, 0.03)
    state = learner.state()
    start = {name: p.detach().clone() for name, p in learner.parameters.items()}
    without = descend(51, 0.003)
    learner.load(state._replace(tensors=start))
    term.safeguard = True
    held = descend(51, 0.003)
    assert without[0]["pairs/winner_error"] == held[0]["pairs/winner_error"] and without[0]["safeguard/share"] < 1
    rises = [found[-1]["pairs/winner_error"] - found[0]["pairs/winner_error"] for found in (without, held)]
    assert rises[0] > 0.005 and rises[1] < 1e-3 * rises[0]
    # The share is the formula's.
    cosine, norms = held[0]["cosine/winner_loser"], [held[0][f"grad_norm/{side}"] for side in ("winner", "loser")]
    assert held[0]["safeguard/share"] == pytest.approx(norms[0] / (cosine * norms[1]))


def test_an_update_of_some_pairs_at_a_time(make: Make) -> None:
    from test_micro_batches import differences, gradients_of

    settings = ("loss=redpo", "preference.sft=1e3", "preference.beta=10", "preference.noise=own")
    expected = gradients_of(make(*settings))
    assert max(differences(gradients_of(make(*settings, "parallel.micro_batch=1")), expected)) < 1e-5
    # Where the terms are looked at one by one, their sum is the same.
    assert max(differences(gradients_of(make(*settings, "log.gradients_every=1")), expected)) < 1e-5


def test_one_time_one_noise_and_captions_dropped_for_both(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Tensor, Tensor, Tensor]] = []

    def looked(*overrides: str) -> list[tuple[Tensor, Tensor, Tensor]]:
        loop = make("loss=redpo", *overrides)
        student = loop.method.run.student
        real = type(student).output
        seen.clear()

        def output(self: object, x_t: Tensor, t: Tensor, condition: object) -> Tensor:
            if self is student:
                seen.append((x_t, t, condition.embeddings))
            return real(self, x_t, t, condition)

        monkeypatch.setattr(type(student), "output", output)
        loop.run_cycle(0)
        monkeypatch.setattr(type(student), "output", real)
        assert len(seen) == 3 and torch.equal(seen[0][0], seen[2][0])  # loser, winner, loser with its gradient
        assert torch.equal(seen[0][1], seen[1][1]) and torch.equal(seen[0][2], seen[1][2])
        return list(seen)

    null = make("loss=sft").method.run.null(1).embeddings[0]
    _, winner, _ = looked("preference.drop_caption=1", "student.guided=false", "preference.times=student")
    assert all(torch.equal(row, null) for row in winner[2])
    assert set(winner[1].tolist()) <= {999, 749, 499, 249}
    _, winner, _ = looked("preference.drop_caption=0")
    assert not any(torch.equal(row, null) for row in winner[2])
    assert not set(winner[1].tolist()) <= {999, 749, 499, 249}
