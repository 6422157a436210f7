"""The student's few steps: bit for bit what the exported LCMScheduler does, and the consistency boundary."""

from __future__ import annotations

import pytest
import torch
from diffusers import CogVideoXDDIMScheduler, LCMScheduler

from dollar.diffusion.denoise import sample
from dollar.diffusion.prediction import PREDICTIONS, V
from dollar.diffusion.schedule import RectifiedFlow, VariancePreserving, diffuse
from dollar.diffusion.timesteps import FewStep, boundary, check_timesteps, consistency_function

SHAPE = (2, 3, 2, 4, 5)
GRIDS = {4: [999, 749, 499, 249], 2: [999, 499], 1: [999]}


def exported(prediction_type: str = "v_prediction") -> LCMScheduler:
    """LCMScheduler with CogVideoX's own betas, as a student is exported."""
    alpha_bar = CogVideoXDDIMScheduler(rescale_betas_zero_snr=True, snr_shift_scale=3.0).alphas_cumprod
    alphas = torch.cat([alpha_bar[:1], alpha_bar[1:] / alpha_bar[:-1]])
    return LCMScheduler(
        trained_betas=(1 - alphas).tolist(), original_inference_steps=4, prediction_type=prediction_type
    )


def network(x_t, t):
    """Some output that depends on every input."""
    return torch.tanh(1.3 * x_t - 0.2 * x_t.roll(1, -1)) + (t / 1000).reshape(-1, 1, 1, 1, 1).float()


def noise_from(seed):
    generator = torch.Generator().manual_seed(seed)
    return lambda k: torch.randn(SHAPE, generator=generator)


@pytest.mark.parametrize("steps", [1, 2, 4])
@pytest.mark.parametrize(("diffusers_name", "name"), [("v_prediction", "v"), ("sample", "sample")])
def test_sampling_is_lcm_schedulers_bit_for_bit(steps, diffusers_name, name):
    scheduler = exported(diffusers_name)
    scheduler.set_timesteps(steps)
    assert scheduler.timesteps.tolist() == GRIDS[steps]

    generator = torch.Generator().manual_seed(5)
    x = torch.randn(SHAPE, generator=generator)
    for t in scheduler.timesteps:
        output = network(x, t.expand(2))
        x, denoised = scheduler.step(output, t, x, generator=generator, return_dict=False)

    schedule = VariancePreserving(scheduler.alphas_cumprod)
    student = FewStep(schedule, scheduler.timesteps, boundary=True)
    ours = student.sample(lambda x_t, t: PREDICTIONS[name].x_0(x_t, network(x_t, t), t, schedule), noise_from(5))
    assert torch.equal(ours, denoised)


def test_other_original_steps_would_be_another_grid():
    scheduler = LCMScheduler(original_inference_steps=50)
    scheduler.set_timesteps(4)
    assert scheduler.timesteps.tolist() == [999, 759, 499, 259]


def test_boundary_is_the_identity_at_zero_and_nothing_far_from_it():
    c_skip, c_out = boundary(torch.tensor([0, -1, 19, 999]))
    assert c_skip[:2].tolist() == [1, 1]
    assert c_out[:2].tolist() == [0, 0]
    torch.testing.assert_close(c_skip[2], torch.tensor(0.25 / (190**2 + 0.25)))
    torch.testing.assert_close(c_out[2], torch.tensor(190 / (190**2 + 0.25) ** 0.5))
    assert c_skip[3] < 1e-8
    x_t, x_0 = torch.randn(2, *SHAPE)
    assert torch.equal(consistency_function(x_t, x_0, torch.tensor([0, -1])), x_t)


@pytest.mark.parametrize("schedule", [VariancePreserving(exported().alphas_cumprod), RectifiedFlow(3.0)])
def test_rollout_is_the_start_of_sample(schedule):
    times = schedule.grid(4)[:-1]
    student = FewStep(schedule, times)
    seen = []

    def predict(x_t, t):
        seen.append((x_t, t))
        return 0.5 * x_t

    student.sample(predict, noise_from(1))
    inputs, times_seen = zip(*seen, strict=True)
    assert [t[0].item() for t in times_seen] == times.tolist()
    for k in range(4):
        assert torch.equal(student.rollout(lambda x_t, t: 0.5 * x_t, noise_from(1), k), inputs[k])


def test_renoise_is_fresh_noise_on_the_students_x_0():
    schedule = RectifiedFlow()
    student = FewStep(schedule, torch.tensor([1.0, 0.5]))
    noise = torch.randn(2, *SHAPE)
    found = student.rollout(lambda x_t, t: torch.full_like(x_t, 0.25), lambda k: noise[k], 1)
    x_0 = torch.full(SHAPE, 0.25)
    assert torch.equal(found, diffuse(x_0, noise[1], torch.tensor([0.5, 0.5]), schedule))


def test_between_ddim_is_the_teachers_sampler():
    schedule = VariancePreserving(exported().alphas_cumprod.double())
    grid = schedule.grid(4)
    student = FewStep(schedule, grid[:-1], between="ddim")
    noise = torch.randn(SHAPE, dtype=torch.float64)

    def predict(x_t, t):
        return V.x_0(x_t, network(x_t, t), t, schedule)

    expected = sample(predict, noise, grid, schedule)
    torch.testing.assert_close(student.sample(predict, lambda k: noise), expected, rtol=0, atol=1e-12)


def test_only_the_last_step_carries_a_gradient():
    scale = torch.tensor(0.5, requires_grad=True)
    student = FewStep(RectifiedFlow(), torch.tensor([1.0, 0.5]))
    x_0 = student.sample(lambda x_t, t: scale * x_t, noise_from(3))
    x = student.rollout(lambda x_t, t: scale * x_t, noise_from(3), 1)
    assert not x.requires_grad
    (gradient,) = torch.autograd.grad(x_0.sum(), scale)
    torch.testing.assert_close(gradient, x.sum(), rtol=1e-5, atol=1e-5)


def test_times_that_are_no_grid_are_refused():
    check_timesteps([999, 499])
    check_timesteps([999])
    for times, message in (
        ([], "positive times"),
        ([999, 0], "positive times"),
        ([249, 999], r"use \[999, 249\]"),
        ([999, 999], r"use \[999\]"),
    ):
        with pytest.raises(ValueError, match=message):
            check_timesteps(times)
    with pytest.raises(ValueError, match="use renoise or ddim"):
        FewStep(RectifiedFlow(), torch.tensor([1.0]), between="renoize")
