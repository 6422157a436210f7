"""Published small decoders: their names, what they make, and files that are no such thing."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor
from torch.nn.functional import conv2d, interpolate, pixel_shuffle, relu

from dollar.cli.build.rewards import started_decoder
from dollar.models.tiny_decoder import TinyDecoder, published

MEMORIES, GROWTHS, CONVOLUTIONS = (3, 4, 5, 9, 10, 11, 15, 16, 17), (7, 13, 19), (8, 14, 20)


def published_state(channels: int, patch: int, first_growth: int) -> dict[str, Tensor]:
    """Random tensors of the names and shapes that such files have."""
    generator, widths, state = torch.Generator().manual_seed(0), (256, 128, 64, 64), {}

    def put(name: str, *shape: int) -> None:
        state[name] = torch.randn(shape, generator=generator) / (shape[1] * shape[-1] ** 2 if shape[1:] else 10) ** 0.5

    put("encoder.0.weight", 64, 3, 3, 3)
    put("decoder.1.weight", 256, channels, 3, 3)
    put("decoder.1.bias", 256)
    for place, layer in enumerate(MEMORIES):
        width = widths[place // 3]
        for inner, incoming in ((0, 2 * width), (2, width), (4, width)):
            put(f"decoder.{layer}.conv.{inner}.weight", width, incoming, 3, 3)
            put(f"decoder.{layer}.conv.{inner}.bias", width)
    for layer, width, times in zip(GROWTHS, widths[:3], (first_growth, 2, 2), strict=True):
        put(f"decoder.{layer}.conv.weight", times * width, width, 1, 1)
    for layer, width, following in zip(CONVOLUTIONS, widths[:3], widths[1:], strict=True):
        put(f"decoder.{layer}.weight", following, width, 3, 3)
    put("decoder.22.weight", 3 * patch**2, 64, 3, 3)
    put("decoder.22.bias", 3 * patch**2)
    return state


def frame_by_frame(state: dict[str, Tensor], z: Tensor, patch: int) -> Tensor:
    """All frames [F', 3, H, W] of one clip z [C, F, h, w], one after another, each layer with a memory of its own."""
    past: dict[int, Tensor] = {}

    def through(x: Tensor, layer: int) -> list[Tensor]:
        if layer == 23:
            return [pixel_shuffle(x, patch)]
        weight, bias = state.get(f"decoder.{layer}.weight"), state.get(f"decoder.{layer}.bias")
        if layer == 0:
            made = [torch.tanh(x / 3) * 3]
        elif layer in MEMORIES:
            y = torch.cat([x, past.get(layer, torch.zeros_like(x))], 1)
            past[layer] = x
            for i in (0, 2, 4):
                y = conv2d(y, state[f"decoder.{layer}.conv.{i}.weight"], state[f"decoder.{layer}.conv.{i}.bias"], 1, 1)
                y = relu(y) if i < 4 else y
            made = [relu(y + x)]
        elif layer in GROWTHS:
            grown = state[f"decoder.{layer}.conv.weight"]
            grown = grown[-x.shape[1] :] if layer == 7 else grown
            made = list(conv2d(x, grown).chunk(len(grown) // x.shape[1], 1))
        elif weight is not None:
            made = [conv2d(x, weight, bias, 1, 1)]
        else:
            made = [relu(x)] if layer in (2, 21) else [interpolate(x, scale_factor=2)]
        return [frame for y in made for frame in through(y, layer + 1)]

    return torch.cat([frame for f in range(z.shape[1]) for frame in through(z[None, :, f], 0)])


@pytest.mark.parametrize(("channels", "patch", "first_growth"), [(16, 1, 1), (48, 2, 2)], ids=["taew2_1", "taew2_2"])
def test_it_makes_the_last_frame_of_each_latent_one_as_published(channels: int, patch: int, first_growth: int) -> None:
    state = published_state(channels, patch, first_growth)
    decoder = TinyDecoder(channels, 8 * patch, 4)
    decoder.load_state_dict(published(state, 4))
    x = torch.randn(2, channels, 3, 2, 3, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = torch.stack([frame_by_frame(state, z, patch)[3:] for z in x])  # the first three are none
        assert expected.shape == (2, 9, 3, 16 * patch, 24 * patch)
        torch.testing.assert_close(decoder(x), expected[:, [0, 4, 8]], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(decoder(x, [0, 2]), decoder(x)[:, [0, 2]])
    leaf = x.clone().requires_grad_()
    decoder.frozen(leaf, [1]).sum().backward()
    assert leaf.grad[:, :, :2].abs().min() > 0 and not leaf.grad[:, :, 2].any()
    assert all(p.grad is None for p in decoder.parameters())


def test_a_file_that_is_missing_or_of_other_latents_is_a_sentence(tmp_path: Path) -> None:
    def started(path: Path, height: int = 32) -> TinyDecoder:
        shapes = {"latent_shape": (16, 3, 4, 4), "clip_shape": (9, height, 32), "codec": SimpleNamespace(ratio=4)}
        teacher: Any = SimpleNamespace(**shapes, device="cpu", name="T")
        return started_decoder(OmegaConf.create({"decoder": {"path": str(path)}}), teacher)  # type: ignore[return-value]

    path = tmp_path / "taew2_1.pth"
    with pytest.raises(ValueError, match="decoder.path is .*there is no such file"):
        started(path)
    torch.save(published_state(16, 1, 1), path)
    assert torch.equal(started(path).decoder[1].weight, published_state(16, 1, 1)["decoder.1.weight"])
    with pytest.raises(ValueError, match=r"4x4 pixels and 4 frames.*set decoder.path=null"):
        started(path, height=16)
    torch.save(published_state(12, 1, 1), path)
    with pytest.raises(ValueError, match="the weights of a small decoder of T's latents: decoder.1.weight"):
        started(path)
    torch.save({"x": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match="decoder.1.weight is missing"):
        started(path)
