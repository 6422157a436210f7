"""Predictions: every row of the table against its formula, its inverse and diffusers."""

from __future__ import annotations

import pytest
import torch
from diffusers import CogVideoXDDIMScheduler

from dollar.diffusion.prediction import CONJUGATE_VELOCITY, EPSILON, FLOW, PREDICTIONS, V
from dollar.diffusion.schedule import RectifiedFlow, VariancePreserving, diffuse

FLOWING = RectifiedFlow()
PRESERVING = VariancePreserving(torch.linspace(0.999, 0.0, 1000, dtype=torch.float64))
ROWS = [("epsilon", PRESERVING), ("v", PRESERVING), ("sample", PRESERVING), ("conjugate_velocity", PRESERVING)]
ROWS += [("epsilon", FLOWING), ("flow", FLOWING), ("sample", FLOWING), ("conjugate_velocity", FLOWING)]
# The batch of 4 equal to one trailing size and to none: a missing expand is silent in the first four.
SHAPES = [(4, 4, 3, 2, 5), (4, 2, 4, 3, 5), (4, 2, 3, 4, 5), (4, 2, 3, 5, 4), (4, 2, 3, 5, 6)]


def draw(shape, schedule):
    x_0, eps = torch.randn(shape, dtype=torch.float64), torch.randn(shape, dtype=torch.float64)
    t = schedule.uniform(torch.tensor([0.03, 0.31, 0.66, 0.97]))
    return x_0, eps, t, diffuse(x_0, eps, t, schedule)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("name", "schedule"), ROWS)
def test_round_trip(name, schedule, shape):
    x_0, eps, t, x_t = draw(shape, schedule)
    target = PREDICTIONS[name].target(x_0, eps, t, schedule)
    torch.testing.assert_close(PREDICTIONS[name].x_0(x_t, target, t, schedule), x_0, rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("name", "schedule"), ROWS)
def test_each_sample_has_the_tables_target_at_its_own_time(name, schedule, shape):
    x_0, eps, t, _ = draw(shape, schedule)
    target = PREDICTIONS[name].target(x_0, eps, t, schedule)
    for i in range(len(t)):
        a, b = (float(value) for value in schedule.coefficients(t[i : i + 1]))
        table = {"epsilon": eps, "v": a * eps - b * x_0, "sample": x_0, "flow": eps - x_0}
        table["conjugate_velocity"] = x_0 - eps
        torch.testing.assert_close(target[i], table[name][i], rtol=0, atol=1e-14)


def test_conjugate_velocity_is_minus_flow_on_rectified_flow():
    x_0, eps, t, x_t = draw((4, 2, 3, 5, 6), FLOWING)
    output = torch.randn_like(x_t)
    torch.testing.assert_close(CONJUGATE_VELOCITY.target(x_0, eps, t, FLOWING), -FLOW.target(x_0, eps, t, FLOWING))
    torch.testing.assert_close(CONJUGATE_VELOCITY.x_0(x_t, -output, t, FLOWING), FLOW.x_0(x_t, output, t, FLOWING))


def test_epsilon_is_refused_without_signal_and_others_are_not():
    x, t = torch.randn(2, 1, 1, 1, 1, dtype=torch.float64), torch.tensor([500, 999])
    with pytest.raises(ValueError, match=r"epsilon says nothing of x_0"):
        EPSILON.x_0(x, x, t, PRESERVING)
    torch.testing.assert_close(V.x_0(x, x, t, PRESERVING)[1], -x[1])
    torch.testing.assert_close(CONJUGATE_VELOCITY.x_0(x, x, t, PRESERVING)[1], 2 * x[1])


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_v_is_cogvideox_schedulers(shift):
    scheduler = CogVideoXDDIMScheduler(
        rescale_betas_zero_snr=True, snr_shift_scale=shift, prediction_type="v_prediction", timestep_spacing="trailing"
    )
    scheduler.set_timesteps(50)
    schedule = VariancePreserving(scheduler.alphas_cumprod)
    x_t, output = torch.randn(2, 1, 2, 3, 4, 5, dtype=torch.float64)
    for t in (999, 499, 19):
        theirs = scheduler.step(output, t, x_t).pred_original_sample
        torch.testing.assert_close(V.x_0(x_t, output, torch.tensor([t]), schedule), theirs, rtol=0, atol=5e-16)
