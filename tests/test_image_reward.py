"""ImageReward against its original architecture, written out here, on small random weights by the original's names."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from dollar.rewards.image_reward import ImageReward

WIDTH, TEXT_WIDTH, LAYERS, PATCH, SIZE = 128, 24, 2, 8, 32  # two heads in the picture, three in the text
TEXT = {
    "architectures": ["BertModel"],
    "attention_probs_dropout_prob": 0.1,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": TEXT_WIDTH,
    "initializer_range": 0.02,
    "intermediate_size": 32,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 40,
    "model_type": "bert",
    "num_attention_heads": 3,
    "num_hidden_layers": LAYERS,
    "pad_token_id": 0,
    "type_vocab_size": 2,
    "vocab_size": 12,
    "encoder_width": 768,
    "add_cross_attention": True,
}
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "ball", "blue", "cube"]
PROMPTS = ["a red ball", "Blue CUBE " * 40]


def tensors() -> dict[str, Tensor]:
    """A checkpoint's tensors by the original's names, the unused ones among them."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int, scale: float = 0.2) -> Tensor:
        return scale * torch.randn(*shape, generator=generator)

    def linear(name: str, inputs: int, outputs: int) -> dict[str, Tensor]:
        return {f"{name}.weight": draw(outputs, inputs), f"{name}.bias": draw(outputs)}

    def norm(name: str, width: int) -> dict[str, Tensor]:
        return {f"{name}.weight": 1 + draw(width), f"{name}.bias": draw(width)}

    see, read = "blip.visual_encoder", "blip.text_encoder"
    state = {
        f"{see}.cls_token": draw(1, 1, WIDTH),
        f"{see}.pos_embed": draw(1, (SIZE // PATCH) ** 2 + 1, WIDTH),
        f"{see}.patch_embed.proj.weight": draw(WIDTH, 3, PATCH, PATCH),
        f"{see}.patch_embed.proj.bias": draw(WIDTH),
        **norm(f"{see}.norm", WIDTH),
        f"{read}.embeddings.position_ids": torch.arange(40)[None],
        f"{read}.embeddings.word_embeddings.weight": draw(12, TEXT_WIDTH),
        f"{read}.embeddings.position_embeddings.weight": draw(40, TEXT_WIDTH),
        **norm(f"{read}.embeddings.LayerNorm", TEXT_WIDTH),
        **linear("blip.vision_proj", WIDTH, 8),
        **linear("blip.text_proj", TEXT_WIDTH, 8),
    }
    for i in range(LAYERS):
        block, layer = f"{see}.blocks.{i}", f"{read}.encoder.layer.{i}"
        state |= norm(f"{block}.norm1", WIDTH) | norm(f"{block}.norm2", WIDTH)
        state |= linear(f"{block}.attn.qkv", WIDTH, 3 * WIDTH) | linear(f"{block}.attn.proj", WIDTH, WIDTH)
        state |= linear(f"{block}.mlp.fc1", WIDTH, 2 * WIDTH) | linear(f"{block}.mlp.fc2", 2 * WIDTH, WIDTH)
        for part, source in (("attention", TEXT_WIDTH), ("crossattention", WIDTH)):
            state |= linear(f"{layer}.{part}.self.query", TEXT_WIDTH, TEXT_WIDTH)
            state |= linear(f"{layer}.{part}.self.key", source, TEXT_WIDTH)
            state |= linear(f"{layer}.{part}.self.value", source, TEXT_WIDTH)
            state |= linear(f"{layer}.{part}.output.dense", TEXT_WIDTH, TEXT_WIDTH)
            state |= norm(f"{layer}.{part}.output.LayerNorm", TEXT_WIDTH)
        state |= linear(f"{layer}.intermediate.dense", TEXT_WIDTH, 32) | linear(f"{layer}.output.dense", 32, TEXT_WIDTH)
        state |= norm(f"{layer}.output.LayerNorm", TEXT_WIDTH)
    sizes = {"0": (TEXT_WIDTH, 1024), "2": (1024, 128), "4": (128, 64), "6": (64, 16), "7": (16, 1)}
    for number, (inputs, outputs) in sizes.items():
        state |= linear(f"mlp.layers.{number}", inputs, outputs)
    return state


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("image_reward")
    torch.save(tensors(), folder / "ImageReward.pt")
    (folder / "med_config.json").write_text(json.dumps(TEXT))
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY))
    return folder


@pytest.fixture(scope="module")
def reward(folder: Path) -> ImageReward:
    return ImageReward(folder, frames=3, batch=4)


def videos(count: int = 2, frames: int = 3, height: int = 41, width: int = 64) -> Tensor:
    return torch.rand(count, frames, 3, height, width, generator=torch.Generator().manual_seed(1))


# The original, written out


class Original:
    """BLIP's vision transformer, its text encoder with cross-attention and ImageReward's MLP: a picture, a text."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        self.state = state

    def linear(self, name: str, x: Tensor) -> Tensor:
        return x @ self.state[f"{name}.weight"].T + self.state[f"{name}.bias"]

    def norm(self, name: str, x: Tensor, eps: float) -> Tensor:
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + eps).sqrt()
        return x * self.state[f"{name}.weight"] + self.state[f"{name}.bias"]

    @staticmethod
    def attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
        out = []
        for q_h, k_h, v_h in zip(q.chunk(heads, -1), k.chunk(heads, -1), v.chunk(heads, -1), strict=True):
            out.append((q_h @ k_h.T / q_h.shape[-1] ** 0.5).softmax(-1) @ v_h)
        return torch.cat(out, -1)

    def see(self, pixels: Tensor) -> Tensor:
        """[tokens, WIDTH] of normalised pixels [3, SIZE, SIZE]."""
        name = "blip.visual_encoder"
        kernel, bias = self.state[f"{name}.patch_embed.proj.weight"], self.state[f"{name}.patch_embed.proj.bias"]
        rows = [
            (kernel * pixels[:, y : y + PATCH, x : x + PATCH]).sum((1, 2, 3)) + bias
            for y in range(0, SIZE, PATCH)
            for x in range(0, SIZE, PATCH)
        ]
        x = torch.stack([self.state[f"{name}.cls_token"][0, 0], *rows]) + self.state[f"{name}.pos_embed"][0]
        for i in range(LAYERS):
            block = f"{name}.blocks.{i}"
            q, k, v = self.linear(f"{block}.attn.qkv", self.norm(f"{block}.norm1", x, 1e-6)).chunk(3, -1)
            x = x + self.linear(f"{block}.attn.proj", self.attend(q, k, v, 2))
            hidden = functional.gelu(self.linear(f"{block}.mlp.fc1", self.norm(f"{block}.norm2", x, 1e-6)))
            x = x + self.linear(f"{block}.mlp.fc2", hidden)
        return self.norm(f"{name}.norm", x, 1e-6)

    def score(self, pixels: Tensor, tokens: list[int]) -> float:
        """The raw score; tokens without padding, which is masked and changes nothing."""
        picture, name = self.see(pixels), "blip.text_encoder"
        words = self.state[f"{name}.embeddings.word_embeddings.weight"][tokens]
        x = words + self.state[f"{name}.embeddings.position_embeddings.weight"][: len(tokens)]
        x = self.norm(f"{name}.embeddings.LayerNorm", x, 1e-12)
        for i in range(LAYERS):
            layer = f"{name}.encoder.layer.{i}"
            for part in ("attention", "crossattention"):
                source = x if part == "attention" else picture
                q, k, v = (
                    self.linear(f"{layer}.{part}.self.{n}", s)
                    for n, s in (("query", x), ("key", source), ("value", source))
                )
                out = self.linear(f"{layer}.{part}.output.dense", self.attend(q, k, v, 3))
                x = self.norm(f"{layer}.{part}.output.LayerNorm", out + x, 1e-12)
            hidden = functional.gelu(self.linear(f"{layer}.intermediate.dense", x))
            x = self.norm(f"{layer}.output.LayerNorm", self.linear(f"{layer}.output.dense", hidden) + x, 1e-12)
        x = x[0]
        for number in ("0", "2", "4", "6", "7"):
            x = self.linear(f"mlp.layers.{number}", x)
        return float(x)


def prepared(frame: Tensor) -> Tensor:
    """The published preprocessing of one frame [3, H, W]: 8 bits, shorter side by a bicubic, middle, CLIP's numbers."""
    picture = Image.fromarray(np.rint(frame.numpy() * 255).astype(np.uint8).transpose(1, 2, 0))
    width, height = picture.size
    new = (SIZE, int(SIZE * height / width)) if width < height else (int(SIZE * width / height), SIZE)
    picture = picture.resize(new, Image.Resampling.BICUBIC)
    left, top = round((new[0] - SIZE) / 2.0), round((new[1] - SIZE) / 2.0)
    levels = np.asarray(picture.crop((left, top, left + SIZE, top + SIZE)), dtype=np.float32) / 255
    mean, deviation = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    return torch.from_numpy(((levels - np.float32(mean)) / np.float32(deviation)).transpose(2, 0, 1))


def ids(prompt: str) -> list[int]:
    words = [VOCABULARY.index(word) for word in prompt.lower().split()]
    return [2, *words[:33], 3]  # 35 tokens with [CLS] and [SEP]


def test_scores_are_the_originals(reward: ImageReward) -> None:
    clips, original = videos(), Original(tensors())
    expected = [
        np.mean([original.score(prepared(frame), ids(prompt)) for frame in clip])
        for clip, prompt in zip(clips, PROMPTS, strict=True)
    ]
    found = reward.scores(clips, PROMPTS)
    assert abs(expected[0] - expected[1]) > 0.01  # else nothing is compared
    np.testing.assert_allclose(found["raw"].numpy(), expected, atol=1e-5, rtol=1e-5)
    standardised = (np.array(expected) - 0.16717362830052426) / 1.0333394966054072
    np.testing.assert_allclose(reward.score(clips, PROMPTS).numpy(), standardised, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [(64, 41), (35, 32), (32, 39), (32, 32), (20, 47)])
def test_the_middle_is_the_published_one(reward: ImageReward, size: tuple[int, int]) -> None:
    from dollar.rewards.image_reward import square

    frames = videos(1, 2, *size)[0]
    expected = torch.stack([prepared(frame) for frame in frames])
    torch.testing.assert_close(square(frames, SIZE), expected, atol=1e-6, rtol=1e-6)
    with_gradient = square(frames.clone().requires_grad_(), SIZE).detach()
    assert (with_gradient - expected).abs().mean() < 1 / 255 / 0.26  # PIL rounds to a level, and cuts, twice


def test_raw_unit_subset_of_frames_and_batches(folder: Path, reward: ImageReward) -> None:
    clips = videos(2, 7)
    raw = ImageReward(folder, unit="raw", frames=3, batch=5).score(clips, PROMPTS)
    torch.testing.assert_close(raw, reward.scores(clips[:, [0, 3, 6]], PROMPTS)["raw"], atol=1e-6, rtol=1e-6)
    assert (raw - ImageReward(folder, unit="raw", frames="all").score(clips, PROMPTS)).abs().max() > 1e-5


def test_the_gradient_is_that_of_finite_differences(reward: ImageReward) -> None:
    clips = videos(1, 1, 40, 40).requires_grad_()
    reward.score(clips, PROMPTS[:1]).sum().backward()
    assert clips.grad is not None
    direction = clips.grad / clips.grad.norm()
    ends = [
        reward.score((clips.detach() + step * direction).requires_grad_(), PROMPTS[:1]).item() for step in (-0.02, 0.02)
    ]
    assert (ends[1] - ends[0]) / 0.04 == pytest.approx(float(clips.grad.norm()), rel=0.05)


def test_broken_pixels_cost_their_own_clip(reward: ImageReward) -> None:
    clips = videos(3)
    whole = reward.score(clips, ["a ball"] * 3)
    clips[0, 0, 0, 0, 0], clips[2, 2, 1, 5, 5] = float("nan"), float("inf")
    scored = reward.score(clips, ["a ball"] * 3)
    assert scored.isnan().tolist() == [True, False, True]
    torch.testing.assert_close(scored[1], whole[1])
    assert reward.score(clips[:1], ["a ball"]).isnan().all()


def changed(folder: Path, place: Path, **changes: Any) -> Path:
    """A copy of the folder whose checkpoint has other tensors; None takes one away."""
    state = {**tensors(), **{name.replace("__", "."): value for name, value in changes.items()}}
    place.mkdir()
    torch.save({name: value for name, value in state.items() if value is not None}, place / "ImageReward.pt")
    for name in ("med_config.json", "vocab.txt"):
        (place / name).write_text((folder / name).read_text())
    return place


def test_wrong_and_missing_weights_are_told_at_once(folder: Path, tmp_path: Path) -> None:
    start = time.monotonic()
    with pytest.raises(ValueError, match=r"THUDM/ImageReward.*HF_HUB_OFFLINE"):
        ImageReward()
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"lacks ImageReward\.pt and med_config\.json"):
        ImageReward(tmp_path / "empty")
    lacking = changed(folder, tmp_path / "lacking", **{"blip.text_encoder.encoder.layer.1.output.dense.bias": None})
    with pytest.raises(ValueError, match=r"encoder\.layer\.1\.output\.dense\.bias is missing"):
        ImageReward(lacking)
    wide = changed(folder, tmp_path / "wide", **{"mlp.layers.7.weight": torch.zeros(2, 16)})
    with pytest.raises(ValueError, match=r"7\.weight is \[2, 16\] in place of \[1, 16\]"):
        ImageReward(wide)
    (tmp_path / "other").mkdir()
    torch.save({"layers.0.weight": torch.zeros(2, 2)}, tmp_path / "other" / "ImageReward.pt")
    (tmp_path / "other" / "med_config.json").write_text(json.dumps(TEXT))
    (tmp_path / "other" / "vocab.txt").write_text("\n".join(VOCABULARY))
    with pytest.raises(ValueError, match="no checkpoint of ImageReward: it has no blip.visual_encoder"):
        ImageReward(tmp_path / "other")
    (wide / "vocab.txt").unlink()
    with pytest.raises(ValueError, match=r"reward\.tokenizer is google-bert/bert-base-uncased"):
        ImageReward(wide)
    assert time.monotonic() - start < 5
    for wrong in ({"unit": "percent"}, {"batch": 0}, {"frames": -1}):
        with pytest.raises(ValueError, match=f"reward.{next(iter(wrong))}"):
            ImageReward(folder, **wrong)
