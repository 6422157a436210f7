"""dollar/training/muon.py: PyTorch's Muon, and in float32 where bfloat16 is slow."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from dollar.training.muon import Muon, orthogonal


def weights_of(*shapes: tuple[int, ...]) -> list[nn.Parameter]:
    draws = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(*shape, generator=draws)) for shape in shapes]


def gradients_for(weights: list[nn.Parameter], update: int) -> list[Tensor]:
    draws = torch.Generator().manual_seed(update)
    return [torch.randn(*weight.shape, generator=draws) for weight in weights]


def stepped(optimizer: torch.optim.Optimizer, weights: list[nn.Parameter], updates: int = 4) -> list[Tensor]:
    for update in range(updates):
        for weight, gradient in zip(weights, gradients_for(weights, update), strict=True):
            weight.grad = gradient
        optimizer.step()
    return [weight.detach().clone() for weight in weights]


def test_in_bfloat16_it_is_pytorchs_to_the_bit() -> None:
    shapes = ((24, 16), (16, 24), (12, 12))
    ours, theirs = weights_of(*shapes), weights_of(*shapes)
    moved = stepped(Muon(ours, 0.02, weight_decay=0.1, dtype=torch.bfloat16), ours)
    library = torch.optim.Muon(theirs, 0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    expected = stepped(library, theirs)
    assert all(torch.equal(a, b) for a, b in zip(moved, expected, strict=True))


def test_in_float32_it_is_the_same_rule_more_exactly() -> None:
    exact, narrow = weights_of((24, 16)), weights_of((24, 16))
    start = exact[0].detach().clone()
    a = stepped(Muon(exact, 0.02), exact)[0] - start
    b = stepped(Muon(narrow, 0.02, dtype=torch.bfloat16), narrow)[0] - start
    assert not torch.equal(a, b) and float((a - b).norm() / a.norm()) < 0.02


@pytest.mark.parametrize("shape", [(24, 16), (16, 24)])
def test_the_factor_has_the_singular_vectors_and_even_values(shape: tuple[int, int]) -> None:
    matrix = torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    within = u.T @ orthogonal(matrix, torch.float64) @ v.T
    assert float((within - within.diag().diag()).abs().max()) < 1e-9, "it turns no vector"
    assert float(within.diag().min()) > 0.65 and float(within.diag().max()) < 1.25


def test_a_convolution_is_taken_as_a_matrix_and_a_weight_without_gradient_stays() -> None:
    kernel, idle = weights_of((8, 4, 3, 3), (4, 4))
    matrix = nn.Parameter(kernel.detach().flatten(1).clone())
    before = idle.detach().clone()
    kernel.grad = gradients_for([kernel], 0)[0]
    matrix.grad = kernel.grad.flatten(1).clone()
    Muon([kernel, idle], 0.1).step()
    Muon([matrix], 0.1).step()
    assert torch.equal(kernel.flatten(1), matrix) and torch.equal(idle, before)


def test_a_vector_is_refused() -> None:
    with pytest.raises(ValueError, match=r"two dimensions and more; one is \[4\]"):
        Muon(weights_of((4,)), 0.1)
