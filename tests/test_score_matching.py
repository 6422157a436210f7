"""Score matching: the identities between the native loss and L_CV (Eq. 4)."""

from __future__ import annotations

import pytest
import torch

from dollar.diffusion.prediction import PREDICTIONS
from dollar.diffusion.schedule import RectifiedFlow, VariancePreserving, diffuse
from dollar.losses.score_matching import native, score_matching

FLOWING = RectifiedFlow()
PRESERVING = VariancePreserving(torch.linspace(0.999, 0.0, 1000, dtype=torch.float64))
SHAPE = (4, 4, 2, 3, 5)


def losses(name, schedule, fractions=(0.05, 0.3, 0.6, 0.95)):
    """The native loss, L_CV, a and b for some output at four different times."""
    generator = torch.Generator().manual_seed(0)
    x_0, eps, output = torch.randn(3, *SHAPE, generator=generator)
    t = schedule.uniform(torch.tensor(fractions))
    x_t = diffuse(x_0, eps, t, schedule)
    found = [
        score_matching(output, x_0, eps, x_t, t, PREDICTIONS[name], schedule, form=form) for form in ("native", "cv")
    ]
    return *found, *(c.float() for c in schedule.coefficients(t))


@pytest.mark.parametrize(("name", "schedule"), [("flow", FLOWING), ("conjugate_velocity", FLOWING)])
def test_the_two_forms_agree_for_velocities_on_rectified_flow(name, schedule):
    plain, cv, _, _ = losses(name, schedule)
    torch.testing.assert_close(cv, plain, rtol=1e-4, atol=0)


def test_the_two_forms_agree_for_conjugate_velocity_on_any_schedule():
    plain, cv, _, _ = losses("conjugate_velocity", PRESERVING)
    torch.testing.assert_close(cv, plain, rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    ("name", "factor"),
    [
        ("v", lambda a, b: (a + b) ** 2),
        ("epsilon", lambda a, b: ((a + b) / a) ** 2),
        ("sample", lambda a, b: ((a + b) / b) ** 2),
    ],
)
def test_cv_weights_the_native_loss(name, factor):
    plain, cv, a, b = losses(name, PRESERVING)
    torch.testing.assert_close(cv, factor(a, b) * plain, rtol=1e-4, atol=0)


def test_cv_is_finite_for_v_and_refused_for_epsilon_at_zero_terminal_snr():
    plain, cv, _, _ = losses("v", PRESERVING, fractions=(0.9999,) * 4)
    torch.testing.assert_close(cv, plain)  # a + b = 1 there
    with pytest.raises(ValueError, match="epsilon says nothing"):
        losses("epsilon", PRESERVING, fractions=(0.9999,) * 4)


@pytest.mark.parametrize(("name", "schedule"), [("v", PRESERVING), ("flow", FLOWING)])
@pytest.mark.parametrize("form", ["native", "cv"])
def test_a_perfect_output_loses_nothing(name, schedule, form):
    x_0, eps = torch.randn(2, *SHAPE)
    t = schedule.uniform(torch.tensor([0.1, 0.3, 0.6, 0.95]))
    prediction = PREDICTIONS[name]
    output = prediction.target(x_0, eps, t, schedule)
    found = score_matching(output, x_0, eps, diffuse(x_0, eps, t, schedule), t, prediction, schedule, form=form)
    torch.testing.assert_close(found, torch.zeros(4), rtol=0, atol=1e-9)


def test_the_loss_is_float32_whatever_comes_in():
    output, target = torch.ones(2, 3, dtype=torch.bfloat16), torch.full((2, 3), 1.001)
    found = native(output, target)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, torch.full((2,), 1e-6), rtol=1e-2, atol=0)  # bfloat16 would have given 0


def test_another_form_is_refused():
    x, t = torch.zeros(1, 2), torch.tensor([0.5])
    with pytest.raises(ValueError, match="use native or cv"):
        score_matching(x, x, x, x, t, PREDICTIONS["flow"], FLOWING, form="conjugate")
