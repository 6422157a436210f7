"""Schedules: their numbers, grids, shifts and ranges."""

from __future__ import annotations

import pytest
import torch
from diffusers import CogVideoXDDIMScheduler

from dollar.diffusion.schedule import RectifiedFlow, VariancePreserving, diffuse, expand_like, mean_flat


def cogvideox(shift: float = 1.0) -> CogVideoXDDIMScheduler:
    return CogVideoXDDIMScheduler(
        rescale_betas_zero_snr=True, snr_shift_scale=shift, prediction_type="v_prediction", timestep_spacing="trailing"
    )


def variance_preserving() -> VariancePreserving:
    return VariancePreserving(cogvideox().alphas_cumprod)


def test_variance_preserving_keeps_variance_and_ends_in_noise_and_in_data():
    schedule = variance_preserving()
    a, b = schedule.coefficients(torch.tensor([999, 500, 0, -1]))
    torch.testing.assert_close(a**2 + b**2, torch.ones_like(a), rtol=0, atol=1e-15)
    assert (a[0], b[0]) == (0, 1)  # zero terminal SNR
    assert (a[3], b[3]) == (1, 0)  # clean
    assert a.diff().min() > 0
    assert a.dtype == torch.float64  # the table's own precision


@pytest.mark.parametrize("shift", [1.0, 5.0])
def test_rectified_flow_is_a_straight_line(shift):
    t = torch.tensor([1.0, 0.3, 0.0], dtype=torch.float64)
    a, b = RectifiedFlow(shift).coefficients(t)
    torch.testing.assert_close(a + b, torch.ones_like(t))
    torch.testing.assert_close(b, t)


@pytest.mark.parametrize("shape", [(4, 4, 3, 2, 5), (4, 2, 4, 3, 5), (4, 2, 3, 4, 5), (4, 2, 3, 5, 4), (4, 2, 3, 5, 6)])
def test_diffuse_uses_each_samples_own_time(shape):
    x_0, eps = torch.randn(shape, dtype=torch.float64), torch.randn(shape, dtype=torch.float64)
    t = torch.tensor([0.1, 0.4, 0.7, 1.0], dtype=torch.float64)
    x_t = diffuse(x_0, eps, t, RectifiedFlow())
    for i in range(4):
        torch.testing.assert_close(x_t[i], (1 - t[i]) * x_0[i] + t[i] * eps[i])


def test_the_papers_grids():
    schedule = variance_preserving()
    assert schedule.grid(50).tolist() == [*range(999, 0, -20), -1]
    assert schedule.grid(4).tolist() == [999, 749, 499, 249, -1]
    assert schedule.grid(2).tolist() == [999, 499, -1]
    assert schedule.grid(1).tolist() == [999, -1]


@pytest.mark.parametrize("steps", [1, 3, 7, 25, 30, 50, 77, 1000])
def test_the_grid_is_the_schedulers(steps):
    scheduler = cogvideox()
    scheduler.set_timesteps(steps)
    assert variance_preserving().grid(steps)[:-1].tolist() == scheduler.timesteps.tolist()


@pytest.mark.parametrize("steps", [0, 1001])
def test_a_grid_that_does_not_exist_is_refused(steps):
    with pytest.raises(ValueError, match="1 to 1000"):
        variance_preserving().grid(steps)


def test_flow_grid_runs_from_noise_to_data_through_the_shift():
    assert RectifiedFlow().grid(4).tolist() == [1, 0.75, 0.5, 0.25, 0]
    # 3 u / (1 + 2 u)
    torch.testing.assert_close(
        RectifiedFlow(3.0).grid(4), torch.tensor([1, 2.25 / 2.5, 1.5 / 2, 0.75 / 1.5, 0], dtype=torch.float64)
    )


def test_shift_has_an_inverse_and_moves_times_towards_noise():
    schedule, u = RectifiedFlow(5.0), torch.linspace(0, 1, 101, dtype=torch.float64)
    torch.testing.assert_close(schedule.unshifted(schedule.shifted(u)), u, rtol=0, atol=1e-15)
    assert (schedule.shifted(u)[1:-1] > u[1:-1]).all()


def test_uniform_covers_its_range_and_no_more():
    u = torch.tensor([0.0, 0.5, 1 - 2**-53], dtype=torch.float64)
    assert variance_preserving().uniform(u).tolist() == [0, 500, 999]
    assert variance_preserving().uniform(u, 0.02, 0.98).tolist() == [20, 500, 979]
    assert variance_preserving().uniform(u, 0.5, 1.0).tolist() == [500, 750, 999]  # 0.5 + 0.5 u rounds to 1
    assert variance_preserving().uniform(u - 1e-12)[1] == 499  # u is not rounded to float32
    torch.testing.assert_close(
        RectifiedFlow().uniform(u, 0.02, 0.98), torch.tensor([0.02, 0.5, 0.98], dtype=torch.float64)
    )
    # A range is given unshifted and passes through the shift.
    shifted = RectifiedFlow(3.0)
    torch.testing.assert_close(
        shifted.unshifted(shifted.uniform(u, 0.02, 0.98)), torch.tensor([0.02, 0.5, 0.98], dtype=torch.float64)
    )


def test_thousandths():
    t = torch.tensor([999, 249, 0])
    assert variance_preserving().thousandths(t).tolist() == [999, 249, 0]
    assert RectifiedFlow().thousandths(torch.tensor([1.0, 0.25])).tolist() == [1000, 250]
    hundred = VariancePreserving(torch.linspace(0.99, 0, 100))
    assert hundred.thousandths(torch.tensor([99, 50, 0])).tolist() == [990, 500, 0]


def test_expand_like_wants_one_value_a_sample():
    x = torch.zeros(3, 2, 5, 1, 4, dtype=torch.float64)
    assert expand_like(torch.arange(3.0), x).shape == (3, 1, 1, 1, 1)
    assert expand_like(torch.arange(3.0), x).dtype == torch.float64
    for wrong in (torch.tensor(1.0), torch.ones(4), torch.ones(3, 1)):
        with pytest.raises(ValueError, match="one value a sample"):
            expand_like(wrong, x)


def test_mean_flat_keeps_the_batch():
    assert mean_flat(torch.arange(12.0).reshape(2, 3, 2)).tolist() == [2.5, 8.5]
