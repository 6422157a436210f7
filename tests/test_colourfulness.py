"""The colourfulness reward: its closed form, and what it says of clips that are none."""

from __future__ import annotations

import pytest
import torch

from dollar.rewards.colourfulness import Colourfulness


def test_half_red_half_green_has_the_measures_closed_form() -> None:
    video = torch.zeros(1, 3, 3, 4, 4)
    video[:, :, 0, :2] = 1
    video[:, :, 1, 2:] = 1
    # red - green is 255 or -255, and (red + green) / 2 - blue is 127.5 everywhere.
    assert Colourfulness().score(video, ["any"]).tolist() == pytest.approx([(255 + 0.3 * 127.5) / 100])


def test_gray_has_none_and_a_paler_clip_has_less() -> None:
    generator = torch.Generator().manual_seed(0)
    vivid = torch.rand(2, 3, 3, 8, 8, generator=generator)
    gray = vivid.mean(2, keepdim=True).expand_as(vivid)
    pale = (vivid + gray) / 2
    score = Colourfulness().score
    assert score(gray, ["a", "b"]).abs().max() < 1e-6
    torch.testing.assert_close(score(pale, ["a", "b"]), score(vivid, ["a", "b"]) / 2)


def test_broken_pixels_give_no_number_and_a_wrong_shape_a_sentence() -> None:
    videos = torch.rand(3, 2, 3, 4, 4)
    videos[0, 0, 0, 0, 0], videos[1, 1, 2, 3, 3] = float("nan"), float("inf")
    assert Colourfulness().score(videos, list("abc")).isnan().tolist() == [True, True, False]
    with pytest.raises(ValueError, match=r"needs \[B, T, 3, H, W\]"):
        Colourfulness().score(torch.rand(2, 3, 3, 8), ["a", "b"])


def test_its_gradient_is_that_of_differences_and_gray_has_one() -> None:
    generator = torch.Generator().manual_seed(0)
    video = 0.3 + 0.4 * torch.rand(1, 2, 3, 4, 4, generator=generator)
    direction = torch.randn(video.shape, generator=generator)
    score = Colourfulness().score
    leaf = video.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(score(leaf, ["any"]).sum(), leaf)
    ahead, behind = (score(video + step * direction, ["any"]).sum() for step in (1e-2, -1e-2))
    torch.testing.assert_close(float((gradient * direction).sum()), float(ahead - behind) / 2e-2, rtol=0.05, atol=1e-3)
    gray = torch.full((1, 2, 3, 4, 4), 0.5, requires_grad=True)
    score(gray, ["any"]).sum().backward()
    assert bool(gray.grad.isfinite().all())
