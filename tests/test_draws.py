"""Draws depend on seed, cycle, purpose and global sample index, and on nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dollar.diffusion.draws import Draws

KINDS = {
    "normal": lambda draws, purpose: draws.normal(purpose, (2, 3)),
    "uniform": lambda draws, purpose: draws.uniform(purpose),
    "integers": lambda draws, purpose: draws.integers(purpose, 10**9),
}


@pytest.mark.parametrize("draw", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("world", [1, 2, 4])
def test_any_number_of_processes_draws_the_same_samples(draw, world):
    whole = draw(Draws(0, 7, range(8)), "t")
    parts = [draw(Draws(0, 7, range(rank, 8, world)), "t") for rank in range(world)]
    assert torch.equal(torch.stack(parts, 1).flatten(0, 1), whole)


@pytest.mark.parametrize("draw", KINDS.values(), ids=KINDS)
def test_seed_cycle_purpose_and_index_all_matter(draw):
    first = draw(Draws(0, 0, [0]), "t")
    others = [draw(Draws(1, 0, [0]), "t"), draw(Draws(0, 1, [0]), "t"), draw(Draws(0, 0, [1]), "t")]
    others += [draw(Draws(0, 0, [0]), "noise")]
    assert torch.equal(draw(Draws(0, 0, [0]), "t"), first)
    assert not any(torch.equal(other, first) for other in others)


def test_all_processes_agree_on_a_shared_integer():
    drawn = [Draws(3, cycle, [0]).shared_integer("depth", 4) for cycle in range(200)]
    assert drawn == [Draws(3, cycle, [5, 6]).shared_integer("depth", 4) for cycle in range(200)]
    assert set(drawn) == {0, 1, 2, 3}


def test_the_kind_of_an_index_does_not_matter():
    plain = Draws(0, 1, [3, 4]).normal("noise", (5,))
    assert torch.equal(Draws(np.int64(0), np.int64(1), np.array([3, 4])).normal("noise", (5,)), plain)
    assert torch.equal(Draws(0, 1, torch.tensor([3, 4])).normal("noise", (5,)), plain)


def test_drawing_leaves_the_global_generator_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    Draws(0, 0, [0, 1]).normal("noise", (4,))
    assert torch.equal(torch.rand(3), expected)


def test_distributions():
    draws = Draws(0, 0, range(2000))
    normal, uniform, integers = draws.normal("a", (4,)), draws.uniform("b"), draws.integers("c", 5)
    # Five standard errors of each mean.
    assert abs(normal.mean()) < 5 / 8000**0.5
    assert abs(normal.var() - 1) < 5 * (2 / 8000) ** 0.5
    assert abs(uniform.mean() - 0.5) < 5 * (1 / 12 / 2000) ** 0.5
    assert uniform.min() >= 0
    assert uniform.max() < 1
    assert uniform.dtype == torch.float64
    assert integers.unique().tolist() == [0, 1, 2, 3, 4]
    assert abs(integers.double().mean() - 2) < 5 * (2 / 2000) ** 0.5
    # Neighbouring indices are unrelated.
    assert abs(torch.corrcoef(torch.stack([uniform[:-1], uniform[1:]]))[0, 1]) < 5 / 2000**0.5
