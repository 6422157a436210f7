"""The rewards that stand on a CLIP: published recipes read independently, formats, gradients and what is refused."""

from __future__ import annotations

import gzip
import json
import pickle
import re
import shutil
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import compose
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

from dollar.rewards.aesthetic import NAMES, Aesthetic, Predictor
from dollar.rewards.clip import MEAN, STD, CaptionReward
from dollar.rewards.clip_score import ClipScore
from dollar.rewards.frame_consistency import FrameConsistency
from dollar.rewards.frames import check_frames, pick
from dollar.rewards.hpsv2 import HPSv2
from dollar.rewards.open_clip import from_open_clip, geometry, to_open_clip
from dollar.rewards.pickscore import PickScore
from dollar.rewards.pixels import crop, pad

SIZE, PATCH, LENGTH, HEADS, LAYERS = 32, 8, 10, (4, 2), (2, 2)
WORDS = ("<unk>", "a", "small", "large", "red", "blue", "circle", "square", "moving", "left", "<s>", "</s>")
PROMPTS = ("a small red circle", "a large blue square moving left", "a circle")
HPS = "HPS_v2.1_compressed.pt"
OPEN_CLIP = {"model_cfg": {"embed_dim": 24, "vision_cfg": {"head_width": 12}, "text_cfg": {"heads": HEADS[1]}}}


def word_tokenizer(words: tuple[str, ...] = WORDS) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    numbers = {word: i for i, word in enumerate(words)}
    plain = Tokenizer(models.WordLevel(numbers, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [(token, numbers[token]) for token in ("<s>", "</s>")]
    plain.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=plain, **named)


def tiny_clip(folder: Path, words: tuple[str, ...] = WORDS) -> Any:
    """A CLIPModel of random weights, written in both formats."""
    from transformers import CLIPConfig, CLIPModel

    ends = {"bos_token_id": words.index("<s>"), "eos_token_id": words.index("</s>"), "pad_token_id": 0}
    text = {"vocab_size": len(words), "max_position_embeddings": LENGTH, "hidden_size": 32, "num_attention_heads": 2}
    vision = {"image_size": SIZE, "patch_size": PATCH, "hidden_size": 48, "num_attention_heads": 4}
    common = {"intermediate_size": 64, "num_hidden_layers": 2, "hidden_act": "gelu"}
    torch.manual_seed(0)
    model = CLIPModel(
        CLIPConfig(text_config=text | common | ends, vision_config=vision | common, projection_dim=24)
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # as drawn, all pictures are nearly alike
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    word_tokenizer(words).save_pretrained(folder)
    torch.save({"state_dict": to_open_clip(model.state_dict())}, folder / HPS)
    (folder / "open_clip_config.json").write_text(json.dumps(OPEN_CLIP))
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("clip")
    tiny_clip(made)
    return made


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    """The tiny CLIP in a folder that may be spoiled."""
    return Path(shutil.copytree(folder, tmp_path / "clip"))


def new_videos(clips: int = 3, frames: int = 4, height: int = 40, width: int = 56) -> Tensor:
    """[B, T, 3, H, W] in whole levels of 255."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(clips * frames, 3, 5, 5, generator=generator)
    noise = 0.3 * torch.rand(clips * frames, 3, height, width, generator=generator)
    smooth = functional.interpolate(coarse, (height, width), mode="bilinear")
    return ((smooth + noise).clamp(0, 1) * 255).round().div(255).unflatten(0, (clips, frames))


# The published recipes, read once more


def open_clip_features(state: dict[str, Tensor], pixels: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Unit features of pictures and token ids as open_clip computes them, by its own names: [N, D] and [M, D]."""

    def norm(x: Tensor, name: str) -> Tensor:
        return functional.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"])

    def attend(x: Tensor, name: str, heads: int, causal: bool) -> Tensor:
        q, k, v = (x @ state[f"{name}.in_proj_weight"].T + state[f"{name}.in_proj_bias"]).chunk(3, -1)
        q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (q, k, v))
        weight = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
        if causal:
            weight = weight + torch.full_like(weight[0, 0], float("-inf")).triu(1)
        x = (weight.softmax(-1) @ v).transpose(1, 2).flatten(2)
        return x @ state[f"{name}.out_proj.weight"].T + state[f"{name}.out_proj.bias"]

    def blocks(x: Tensor, prefix: str, heads: int, causal: bool) -> Tensor:
        for i in range(2):
            name = f"{prefix}transformer.resblocks.{i}"
            x = x + attend(norm(x, f"{name}.ln_1"), f"{name}.attn", heads, causal)
            inner = norm(x, f"{name}.ln_2") @ state[f"{name}.mlp.c_fc.weight"].T + state[f"{name}.mlp.c_fc.bias"]
            inner = inner * (1 + torch.erf(inner / 2**0.5)) / 2
            x = x + inner @ state[f"{name}.mlp.c_proj.weight"].T + state[f"{name}.mlp.c_proj.bias"]
        return x

    seen = functional.conv2d(pixels, state["visual.conv1.weight"], stride=PATCH).flatten(2).transpose(1, 2)
    seen = torch.cat([state["visual.class_embedding"].expand(len(seen), 1, -1), seen], 1)
    seen = norm(seen + state["visual.positional_embedding"], "visual.ln_pre")
    seen = norm(blocks(seen, "visual.", HEADS[0], False)[:, 0], "visual.ln_post") @ state["visual.proj"]
    read = state["token_embedding.weight"][ids] + state["positional_embedding"]
    read = norm(blocks(read, "", HEADS[1], True), "ln_final")
    read = read[torch.arange(len(ids)), ids.argmax(-1)] @ state["text_projection"]
    return functional.normalize(seen, dim=-1), functional.normalize(read, dim=-1)


def bicubic_matrix(before: int, after: int) -> np.ndarray:
    """[after, before]: scaling a row by Keys' cubic of -1/2, widened where it shrinks."""
    widen = max(1.0, before / after)
    centres = (np.arange(after) + 0.5) * before / after
    x = np.abs(np.arange(before) + 0.5 - centres[:, None]) / widen
    near, far = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    weight = np.where(x < 1, near, np.where(x < 2, far, 0))
    return weight / weight.sum(1, keepdims=True)


def hpsv2_pixels(frame: Tensor) -> Tensor:
    """[3, SIZE, SIZE] of a frame [3, H, W]: longer side to SIZE, black around the middle, then normalised."""
    height, width = frame.shape[1:]
    new = [round(side * SIZE / max(height, width)) for side in (height, width)]
    rows, columns = bicubic_matrix(height, new[0]), bicubic_matrix(width, new[1])
    square = np.zeros((3, SIZE, SIZE))
    top, left = (SIZE - new[0]) // 2, (SIZE - new[1]) // 2
    square[:, top : top + new[0], left : left + new[1]] = rows @ frame.double().numpy() @ columns.T
    normal = (square - np.array(MEAN)[:, None, None]) / np.array(STD)[:, None, None]
    return torch.from_numpy(normal).float()


@pytest.mark.parametrize(("height", "width"), [(40, 56), (61, 24), (32, 32), (16, 20)])
def test_hpsv2_is_open_clip_on_padded_squares(folder: Path, height: int, width: int) -> None:
    videos = new_videos(height=height, width=width)
    state = torch.load(folder / HPS, weights_only=True)["state_dict"]
    ids = word_tokenizer()(list(PROMPTS), padding="max_length", max_length=LENGTH, return_tensors="pt").input_ids
    pixels = torch.stack([hpsv2_pixels(frame) for frame in videos.flatten(0, 1)])
    seen, read = open_clip_features(state, pixels, ids)
    expected = (seen.unflatten(0, (3, 4)) * read[:, None]).sum(-1).mean(1)
    scores = HPSv2(str(folder), frames="all").scores(videos, PROMPTS)
    torch.testing.assert_close(scores["cosine"], expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(scores["scaled"], expected * state["logit_scale"].exp(), atol=2e-4, rtol=0)
    assert expected.std() > 0.01


@pytest.mark.parametrize(("height", "width"), [(45, 60), (32, 35), (37, 32)])
@torch.no_grad()
def test_pickscore_is_its_model_cards_recipe(folder: Path, height: int, width: int) -> None:
    from transformers import AutoTokenizer, CLIPModel
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    model, tokenizer = CLIPModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    sizes = {"size": {"shortest_edge": SIZE}, "crop_size": {"height": SIZE, "width": SIZE}}
    processor, videos, expected = CLIPImageProcessorPil(**sizes), new_videos(height=height, width=width), []
    for video, prompt in zip(videos, PROMPTS, strict=True):
        pictures = [Image.fromarray((255 * f).round().byte().permute(1, 2, 0).numpy()) for f in video]
        image = model.get_image_features(**processor(images=pictures, return_tensors="pt")).pooler_output
        words = tokenizer([prompt], padding=True, truncation=True, max_length=LENGTH, return_tensors="pt")
        text = model.get_text_features(**words).pooler_output
        image, text = (part / torch.norm(part, dim=-1, keepdim=True) for part in (image, text))
        expected.append((model.logit_scale.exp() * (text @ image.T)[0]).mean())
    reward = PickScore(str(folder), frames=None, unit="scaled")
    torch.testing.assert_close(reward.score(videos, PROMPTS), torch.stack(expected), atol=1e-5, rtol=0)
    cosine = PickScore(str(folder), frames=None).score(videos, PROMPTS)
    torch.testing.assert_close(cosine * model.logit_scale.exp(), torch.stack(expected), atol=1e-5, rtol=0)


def test_aesthetic_is_one_straight_line_of_unit_features(folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    state = Predictor(24).state_dict()
    assert [name for name in state if name.endswith("weight")] == [f"layers.{i}.weight" for i in (0, 2, 4, 6, 7)]
    torch.save(state, tmp_path / NAMES[0])
    videos, reward = new_videos(), Aesthetic(str(tmp_path), str(folder), frames=None)
    line, shift = torch.eye(24), torch.zeros(24)
    for i in (0, 2, 4, 6, 7):
        line = line @ state[f"layers.{i}.weight"].T
        shift = shift @ state[f"layers.{i}.weight"].T + state[f"layers.{i}.bias"]
    expected = (reward.clip.see(videos) @ line + shift)[..., 0].mean(1)
    torch.testing.assert_close(reward.score(videos, PROMPTS), expected)
    with pytest.raises(ValueError, match=r"a CLIP of 24 features: layers.0.weight is \[1024, 768\]"):
        torch.save(Predictor(768).state_dict(), tmp_path / NAMES[0])
        Aesthetic(str(tmp_path / NAMES[0]), str(folder))


def test_frame_consistency_compares_with_the_frame_before_and_with_the_first(folder: Path) -> None:
    videos = new_videos()
    reward = FrameConsistency(str(folder))
    seen = reward.clip.see(videos)
    before = torch.stack([functional.cosine_similarity(seen[:, i], seen[:, i - 1]) for i in (1, 2, 3)])
    first = torch.stack([functional.cosine_similarity(seen[:, i], seen[:, 0]) for i in (1, 2, 3)])
    torch.testing.assert_close(reward.score(videos, PROMPTS), before.mean(0))
    both = FrameConsistency(str(folder), to="previous and first").score(videos, PROMPTS)
    torch.testing.assert_close(both, (before.clamp(min=0) + first.clamp(min=0)).mean(0) / 2)
    still = videos[:, :1].expand_as(videos)
    torch.testing.assert_close(reward.score(still, PROMPTS), torch.ones(3))
    assert (reward.score(videos, PROMPTS) < 0.999).all()
    with pytest.raises(ValueError, match="needs at least 2"):
        reward.score(videos[:, :1], PROMPTS)
    with pytest.raises(ValueError, match="reward.frames is 1"):
        FrameConsistency(str(folder), frames=1)


# Formats


def test_the_two_formats_names_are_each_others_inverse(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    renamed = to_open_clip(state)
    assert {"visual.proj", "transformer.resblocks.1.attn.in_proj_bias", "text_projection"} <= renamed.keys()
    for one, other in ((from_open_clip(renamed), state), (to_open_clip(from_open_clip(renamed)), renamed)):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in other)


def test_a_clip_is_the_same_in_both_formats_and_as_half_precision_on_disk(copied: Path) -> None:
    videos = new_videos()
    expected = ClipScore(str(copied)).score(videos, PROMPTS)
    torch.testing.assert_close(ClipScore(str(copied / HPS)).score(videos, PROMPTS), expected, atol=1e-6, rtol=0)
    named = {f"module.{k}": v for k, v in torch.load(copied / HPS, weights_only=True)["state_dict"].items()}
    torch.save(named, copied / "bare.bin")
    torch.testing.assert_close(ClipScore(str(copied / "bare.bin")).score(videos, PROMPTS), expected, atol=1e-6, rtol=0)
    state = load_file(copied / "model.safetensors")
    save_file({name: value.half() for name, value in state.items()}, copied / "model.safetensors")
    halved = ClipScore(str(copied))
    assert halved.clip.model.dtype == torch.float32
    torch.testing.assert_close(halved.score(videos, PROMPTS), expected, atol=2e-3, rtol=0)


def test_sizes_come_from_shapes_and_heads_from_vit_h_14_where_no_config_is() -> None:
    def zeros(*shape: int) -> Tensor:
        return torch.zeros(shape, device="meta")

    state = {name: zeros(1) for name in ("visual.class_embedding", "visual.ln_pre.weight", "visual.ln_pre.bias")}
    state |= {name: zeros(1) for name in ("visual.ln_post.weight", "visual.ln_post.bias", "logit_scale")}
    state |= {name: zeros(1) for name in ("ln_final.weight", "ln_final.bias")}
    state |= {"visual.positional_embedding": zeros(257, 1280), "visual.conv1.weight": zeros(1280, 3, 14, 14)}
    state |= {"token_embedding.weight": zeros(49408, 1024), "positional_embedding": zeros(77, 1024)}
    state |= {"visual.proj": zeros(1280, 1024), "text_projection": zeros(1024, 1024)}
    state |= {f"visual.transformer.resblocks.{i}.mlp.c_fc.weight": zeros(5120, 1280) for i in range(32)}
    state |= {f"transformer.resblocks.{i}.mlp.c_fc.weight": zeros(4096, 1024) for i in range(24)}
    made = geometry(state, {})
    vision, text = made["vision_config"], made["text_config"]
    assert (vision["image_size"], vision["num_attention_heads"], vision["num_hidden_layers"]) == (224, 16, 32)
    assert (text["num_attention_heads"], text["num_hidden_layers"], text["intermediate_size"]) == (16, 24, 4096)
    assert (text["max_position_embeddings"], made["projection_dim"], text["hidden_act"]) == (77, 1024, "gelu")
    # open_clip's own words for what its config leaves out: vision heads of 64, 8 heads for text.
    said = geometry(state, {"model_cfg": {"quick_gelu": True, "vision_cfg": {}, "text_cfg": {}}})
    assert said["vision_config"]["num_attention_heads"] == 20 and said["text_config"]["num_attention_heads"] == 8
    assert said["text_config"]["hidden_act"] == "quick_gelu"


def test_the_end_may_have_any_number_and_texts_are_gathered_there(tmp_path: Path) -> None:
    words = ("<unk>", "<s>", "</s>", *(word for word in WORDS if word[0] != "<"))  # 2 is where transformers looks aside
    model = tiny_clip(tmp_path, words)
    clip = ClipScore(str(tmp_path)).clip
    ids = word_tokenizer(words)(PROMPTS[0], return_tensors="pt").input_ids
    last = model.text_model(input_ids=ids).last_hidden_state[:, -1]
    expected = functional.normalize(model.text_projection(last), dim=-1)
    torch.testing.assert_close(clip.read(PROMPTS[:1]), expected, atol=1e-6, rtol=0)


def test_open_clips_vocabulary_serves_where_there_is_no_tokenizer(
    copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dollar.rewards.tokens import LAION, load_tokenizer

    for file in ("tokenizer.json", "tokenizer_config.json"):
        (copied / file).unlink()
    with pytest.raises(ValueError, match=r"no tokenizer and reward.tokenizer is laion.*pip install open_clip_torch"):
        PickScore(str(copied))
    package = tmp_path / "packages" / "open_clip"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('torchvision is broken')")
    merges = "# a first line of its own\nl o\nlo w</w>"
    (package / "bpe_simple_vocab_16e6.txt.gz").write_bytes(gzip.compress(merges.encode()))
    monkeypatch.syspath_prepend(str(package.parent))
    tokenizer = load_tokenizer(copied, LAION, local=True)
    # 256 bytes, 256 at a word's end, 2 merges, then the start and the end.
    start, end = len(tokenizer) - 2, len(tokenizer) - 1
    letters = [ord(c) - ord("!") for c in "lo"]
    assert tokenizer("Low  lol").input_ids == [start, 513, 512, 256 + letters[0], end]
    assert tokenizer(" l").input_ids == [start, 256 + letters[0], end]
    with pytest.raises(ValueError, match=r"the tokenizer has \d+ tokens and the CLIP knows 12"):
        PickScore(str(copied))
    with pytest.raises(ValueError, match="reward.tokenizer is elsewhere, and there is no such"):
        PickScore(str(copied), tokenizer="elsewhere")


def test_a_folders_own_picture_numbers_are_used(copied: Path) -> None:
    videos = new_videos()
    plain = ClipScore(str(copied)).score(videos, PROMPTS)
    numbers = {"image_mean": [0.0] * 3, "image_std": [1.0] * 3, "size": {"shortest_edge": SIZE + 4}}
    (copied / "preprocessor_config.json").write_text(json.dumps(numbers))
    reward = ClipScore(str(copied))
    middle = reward.clip
    assert reward.clip.shortest == SIZE + 4 and not torch.allclose(reward.score(videos, PROMPTS), plain, atol=1e-3)
    # What the network got: pixels from 0 to 1, cut out of a larger picture.
    got: list[Tensor] = []
    middle.model.vision_model.register_forward_pre_hook(
        lambda module, args, kwargs: got.append(kwargs["pixel_values"]), with_kwargs=True
    )
    middle.see(videos[:, :1])
    scaled = Image.fromarray((255 * videos[0, 0]).byte().permute(1, 2, 0).numpy())
    scaled = scaled.resize((int(36 * 56 / 40), 36), Image.Resampling.BICUBIC).crop((9, 2, 41, 34))
    torch.testing.assert_close(got[0][0], torch.from_numpy(np.array(scaled)).permute(2, 0, 1) / 255)


# What is looked at


def test_a_subset_of_frames_scores_as_those_frames(folder: Path) -> None:
    videos = new_videos(frames=7)
    every = HPSv2(str(folder), frames="all", batch=5)
    for frames, places in ((1, [0]), (2, [0, 6]), (3, [0, 3, 6]), (4, [0, 2, 4, 6]), (9, list(range(7)))):
        reward = HPSv2(str(folder), frames=frames)
        assert reward.frames == frames
        expected = every.score(videos[:, places], PROMPTS)
        torch.testing.assert_close(reward.score(videos, PROMPTS), expected, atol=1e-6, rtol=0)
        assert torch.equal(pick(videos, frames), videos[:, places])
    single = torch.stack([every.score(videos[:, [i]], PROMPTS) for i in range(7)])
    torch.testing.assert_close(every.score(videos, PROMPTS), single.mean(0), atol=1e-6, rtol=0)
    assert check_frames("all") is None and check_frames(None) is None
    for wrong in (0, -1, 2.5, "few", True):
        with pytest.raises(ValueError, match=f"reward.frames is {wrong}"):
            check_frames(wrong)  # type: ignore[arg-type]


def test_pixels_that_are_no_numbers_cost_their_own_clip(folder: Path) -> None:
    videos = new_videos()
    reward = PickScore(str(folder), frames=None)
    expected = reward.score(videos, PROMPTS)
    videos[0, 2, 1, 3, 4], videos[2, 0, 0, 0, 0] = float("nan"), float("-inf")
    scores = reward.score(videos, PROMPTS)
    assert scores.isnan().tolist() == [True, False, True]
    torch.testing.assert_close(scores[1], expected[1], atol=1e-6, rtol=0)
    videos.requires_grad_()
    reward.score(videos, PROMPTS)[1].backward()
    assert videos.grad is not None and bool(videos.grad.isfinite().all())
    with pytest.raises(ValueError, match=r"PickScore needs \[B, T, 3, H, W\]"):
        reward.score(videos[:, :, :1], PROMPTS)
    with pytest.raises(ValueError, match="3 clips and 1 prompts"):
        reward.score(videos, PROMPTS[:1])


def test_frames_are_pictures_of_8_bits_unless_a_gradient_is_asked_for() -> None:
    edges = ((torch.arange(60) // 7) % 2).float().expand(2, 3, 45, 60)
    # A cubic overshoots at edges: PIL cuts that off, and so must what stands in for it.
    soft = crop(edges.clone().requires_grad_(), 32, 32)
    assert soft.requires_grad and (soft - crop(edges, 32, 32)).abs().max() < 1.5 / 255
    between = 0.201 + 0.401 * edges
    rounded = (255 * between).round() / 255
    asked = between.clone().requires_grad_()
    for squared in (lambda frames: crop(frames, 32, 32), lambda frames: pad(frames, 32)):
        assert torch.equal(squared(between), squared(rounded))
        assert (squared(asked) - squared(rounded)).abs().max() > 1e-3
        with torch.no_grad():
            assert torch.equal(squared(asked), squared(rounded))


def test_a_long_prompt_is_cut_where_the_clip_ends(folder: Path) -> None:
    videos, reward = new_videos(1), ClipScore(str(folder))
    kept = " ".join(["a", "red"] * 4)  # LENGTH less its two ends
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        expected = reward.score(videos, [kept])
    with pytest.warns(UserWarning, match="has 13 tokens and was cut to the 10"):
        torch.testing.assert_close(reward.score(videos, [f"{kept} a blue circle"]), expected)
    assert not torch.allclose(reward.score(videos, ["a red"]), expected, atol=1e-3)


def test_a_prompt_is_read_once(folder: Path) -> None:
    reward, read = ClipScore(str(folder)), []
    reward.clip.model.text_model.register_forward_hook(lambda *_: read.append(1))
    first = reward.score(new_videos(), [PROMPTS[0], PROMPTS[1], PROMPTS[0]])
    torch.testing.assert_close(reward.score(new_videos(), [PROMPTS[0], PROMPTS[1], PROMPTS[0]]), first)
    assert len(read) == 2


def test_hpsv2_mends_prompts_as_open_clip_does(folder: Path) -> None:
    clip = HPSv2(str(folder)).clip
    mended = clip.read(["a  red\n circle &amp;lt; "])
    torch.testing.assert_close(mended, clip.read(["a red circle <"]))
    plain = PickScore(str(folder)).clip
    assert plain.tokens is not None and len(plain.tokens("a &lt;")) > len(plain.tokens("a <"))


# The gradient


def rewards(folder: Path, tmp_path: Path) -> list[Any]:
    torch.manual_seed(0)
    torch.save(Predictor(24).state_dict(), tmp_path / "aesthetic-model.pth")
    aesthetic = Aesthetic(str(tmp_path), str(folder), frames=2)
    consistency = FrameConsistency(str(folder), frames=3)
    return [HPSv2(str(folder), frames=2), PickScore(str(folder), frames=2), aesthetic, consistency]


def test_the_gradient_is_the_scores_change_per_pixel(folder: Path, tmp_path: Path) -> None:
    videos = 0.25 + 0.5 * new_videos()
    torch.manual_seed(0)
    direction = functional.interpolate(torch.randn(12, 3, 6, 6), (40, 56), mode="bicubic").unflatten(0, (3, 4))
    for reward in rewards(folder, tmp_path):
        assert reward.differentiable
        pixels = videos.clone().requires_grad_()
        score = reward.score(pixels, PROMPTS)
        torch.testing.assert_close(score.detach(), reward.score(videos, PROMPTS), atol=5e-3, rtol=0)
        (gradient,) = torch.autograd.grad(score.sum(), pixels)
        looked_at = gradient.abs().sum((0, 2, 3, 4)) > 0
        assert looked_at.tolist() == [True, False, reward.frames == 3, True]
        step = 2e-3
        ahead, behind = ((videos + s * direction).requires_grad_() for s in (step, -step))
        slope = (reward.score(ahead, PROMPTS) - reward.score(behind, PROMPTS)).detach() / (2 * step)
        along = (gradient * direction).sum((1, 2, 3, 4))
        torch.testing.assert_close(along, slope, rtol=0.02, atol=0.02 * float(slope.abs().max()))


def test_half_precision_keeps_small_gradients(folder: Path) -> None:
    """As on a GPU: the loss is a millionth of the score, so that half precision alone would round its gradient away."""
    videos = new_videos().requires_grad_()

    def gradient(reward: CaptionReward) -> Tensor:
        return torch.autograd.grad(1e-6 * reward.score(videos, PROMPTS).sum(), videos)[0]

    reward = PickScore(str(folder), frames=2)
    expected = gradient(reward)
    assert float(expected.abs().max()) < float(torch.finfo(torch.float16).tiny)
    reward.clip.model.half()
    made = gradient(reward)
    assert made.dtype == torch.float32
    torch.testing.assert_close(made, expected, rtol=0, atol=0.03 * float(expected.abs().max()))


# What is refused


def test_missing_weights_are_a_sentence_at_once(folder: Path, copied: Path, tmp_path: Path) -> None:
    started = time.monotonic()
    cases = {
        r"reward.path is xswu/HPSv2.*HF_HUB_OFFLINE is set.*download xswu/HPSv2 HPS_v2.1_compressed.pt`": lambda: (
            HPSv2()
        ),
        "reward.path is yuvalkirstain/PickScore_v1: .*hf download": lambda: PickScore(),
        "reward.path is openai/clip-vit-large-patch14: .*hf download": lambda: ClipScore(),
        "reward.path is trl-lib/ddpo-aesthetic-predictor: ": lambda: Aesthetic(),
        "reward.path is ./nowhere, and there is no such file": lambda: PickScore("./nowhere"),
        "reward.path is weights/hps.pt, and there is no such file": lambda: HPSv2("weights/hps.pt"),
        "has no HPS_v2_compressed.pt; it has HPS_v2.1_compressed.pt": lambda: HPSv2(str(folder), "v2.0"),
        "has no model.safetensors; it has nothing": lambda: PickScore(str(tmp_path / "empty")),
    }
    (tmp_path / "empty").mkdir()
    for sentence, make in cases.items():
        with pytest.raises(ValueError, match=sentence):
            make()
    assert time.monotonic() - started < 5
    torch.save(Predictor(24).state_dict(), tmp_path / NAMES[0])
    with pytest.raises(ValueError, match="reward.clip is openai/clip-vit-large-patch14: "):
        Aesthetic(str(tmp_path))
    with pytest.raises(ValueError, match="neither sac"):
        Aesthetic(str(copied))


class Hostile:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("this was run",))


def test_a_wrong_checkpoint_is_a_sentence_with_the_first_names(
    copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    def refused(sentence: str, state: Any, file: str = HPS) -> None:
        if isinstance(state, bytes):
            (copied / file).write_bytes(state)
        elif file.endswith(".safetensors"):
            save_file(state, copied / file)
        else:
            torch.save(state, copied / file)
        with pytest.raises(ValueError, match=sentence):
            HPSv2(str(copied)) if file == HPS else PickScore(str(copied))

    good = torch.load(copied / HPS, weights_only=True)["state_dict"]
    bias = "transformer.resblocks.1.ln_1.bias"
    refused(rf"{HPS}.*layers.1.layer_norm1.bias is missing", {k: v for k, v in good.items() if k != bias})
    refused("no tensor of an open_clip ViT", good | {"visual.attn_pool.query": torch.zeros(2)})
    refused(r"positional_embedding.* missing among", {k: v for k, v in good.items() if k != "positional_embedding"})
    refused(r"layer_norm1.bias is \[3\] in place of \[32\]", good | {bias: torch.zeros(3)})
    refused("holds no named tensors", {"epoch": 3})
    refused("can't be read as tensors and nothing else", b"not a checkpoint")
    refused("A file that needs code to be read is refused", pickle.dumps({"state_dict": Hostile()}))
    refused("A file that needs code to be read is refused", {"state_dict": Hostile()})
    for broken in (b"not a checkpoint", pickle.dumps({"state_dict": Hostile()})):
        (copied / HPS).write_bytes(broken)
        with pytest.raises(ValueError, match="or name another with reward.path") as told:
            HPSv2(str(copied))
        assert str(copied / HPS) in str(told.value)
        assert not re.search("weights_only|pickle|arbitrary|torch|GLOBAL", str(told.value).replace(str(copied), ""))
    with pytest.raises(ValueError, match="or name another with reward.clip"):
        torch.save(Predictor(24).state_dict(), tmp_path / NAMES[0])
        Aesthetic(str(tmp_path / NAMES[0]), str(copied / HPS))
    assert "this was run" not in capsys.readouterr().out
    ours = load_file(copied / "model.safetensors")
    fewer = {k: v for k, v in ours.items() if "projection" not in k}
    refused("text_projection.weight is missing", fewer, "model.safetensors")
    refused("head.weight is unknown", ours | {"head.weight": torch.zeros(2)}, "model.safetensors")
    refused("can't be read", b"\0" * 20, "model.safetensors")
    save_file(ours, copied / "model.safetensors")
    (copied / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="neither its names are open_clip's"):
        PickScore(str(copied))
    torch.save({"state_dict": good}, copied / HPS)
    (copied / "open_clip_config.json").unlink()
    with pytest.raises(ValueError, match=r"heads of width 80.*open_clip_config.json"):
        HPSv2(str(copied))


def test_hpsv2_takes_its_own_versions_file_alone(copied: Path) -> None:
    with pytest.raises(ValueError, match=rf"model.safetensors doesn't hold what {HPS} does.*give {HPS} by reward.path"):
        HPSv2(str(copied / "model.safetensors"))
    assert HPSv2(str(copied / HPS)).clip.width == 24
    (copied / HPS).rename(copied / "HPS_v2_compressed.pt")
    older = str(copied / "HPS_v2_compressed.pt")
    with pytest.raises(ValueError, match=r"the file of v2.0, and reward.version is v2.1; set reward.version=v2.0"):
        HPSv2(older)
    assert HPSv2(older, "v2.0").clip.width == 24
    (copied / "HPS_v2_compressed.pt").rename(copied / "mine.pt")  # of another name, whoever gives it knows
    assert HPSv2(str(copied / "mine.pt")).clip.width == 24


def test_wrong_settings_are_named(folder: Path) -> None:
    with pytest.raises(ValueError, match="reward.unit is percent; it is one of cosine and scaled"):
        PickScore(str(folder), unit="percent")
    with pytest.raises(ValueError, match="reward.version is v3; HPSv2 has v2.0 and v2.1"):
        HPSv2(str(folder), version="v3")
    with pytest.raises(ValueError, match="reward.batch is 0"):
        ClipScore(str(folder), batch=0)
    with pytest.raises(ValueError, match="reward.to is last"):
        FrameConsistency(str(folder), to="last")


@pytest.mark.parametrize("name", ["hpsv2", "pickscore", "clip_score", "frame_consistency"])
def test_the_configuration_makes_the_reward(folder: Path, name: str) -> None:
    from hydra.utils import instantiate

    reward = instantiate(compose("train", f"reward={name}", f"reward.path={folder}").reward)
    assert type(reward).__module__ == f"dollar.rewards.{name}"
    assert reward.frames == (None if name == "frame_consistency" else 8)
    assert reward.score(new_videos(), PROMPTS).shape == (3,)
