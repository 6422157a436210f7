"""VideoScore on a small random Idefics2: what it is shown, where the head is read, what it says of wrong folders."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from dollar.rewards.video_score import ASPECTS, VideoScore

WORDS = ["<unk>", "<s>", "</s>", "the", "text", "is", "a", "red", "ball", "rolls", "frames"]


def build(folder: Path) -> None:
    """A folder in the published form: sharded weights, the older files of a processor, a tokenizer."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import Idefics2Config, Idefics2Model, PreTrainedTokenizerFast

    tokens = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    tokens.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokens, unk_token="<unk>", bos_token="<s>", pad_token="</s>")
    added = ["<fake_token_around_image>", "<image>", "<end_of_utterance>"]
    tokenizer.add_special_tokens({"additional_special_tokens": added})
    tokenizer.save_pretrained(folder)
    pictures = {"size": {"shortest_edge": 16, "longest_edge": 28}, "do_image_splitting": False}
    pictures |= {"image_processor_type": "Idefics2ImageProcessor", "processor_class": "Idefics2Processor"}
    (folder / "preprocessor_config.json").write_text(json.dumps(pictures))
    (folder / "processor_config.json").write_text(
        json.dumps({"image_seq_len": 4, "processor_class": "Idefics2Processor"})
    )
    heads: dict[str, Any] = {"num_attention_heads": 2, "num_hidden_layers": 1, "hidden_size": 32}
    resampler = {"resampler_n_latents": 4, "resampler_depth": 1, "resampler_n_heads": 2, "resampler_head_dim": 16}
    text = {"model_type": "mistral", "intermediate_size": 48, "num_key_value_heads": 2, "pad_token_id": 0}
    config = Idefics2Config(
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        vision_config={**heads, "intermediate_size": 32, "image_size": 28, "patch_size": 4},
        perceiver_config={**resampler, "hidden_size": 32, "num_key_value_heads": 1},
        text_config={**heads, **text, "vocab_size": len(tokenizer)},
        num_labels=5,
        architectures=["Idefics2ForSequenceClassification"],
    )
    config.save_pretrained(folder)
    torch.manual_seed(0)
    model = Idefics2Model(config)
    for parameter in model.parameters():
        parameter.data.normal_(std=0.3)
    state = {f"model.{name}": value for name, value in model.state_dict().items()}
    state |= {"score.weight": torch.randn(5, 32), "score.bias": torch.randn(5)}
    names = sorted(state)
    for i, part in enumerate((names[::2], names[1::2]), 1):
        save_file({n: state[n].contiguous() for n in part}, folder / f"model-0000{i}-of-00002.safetensors")
    where = {n: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, n in enumerate(names)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("video_score")
    build(folder)
    return folder


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("words") / "instructions.txt"
    file.write_text("the text is {text_prompt} frames\n")
    return file


def videos(count: int = 2, frames: int = 3) -> Tensor:
    return torch.rand(count, frames, 3, 16, 20, generator=torch.Generator().manual_seed(3))


def by_hand(folder: Path, clip: Tensor, prompt: str, order: list[int] | None = None) -> Tensor:
    """The marks [5] of one clip: tokens, pixels and network put together step by step, weights read by name."""
    from transformers import Idefics2Config, Idefics2Model, PreTrainedTokenizerFast

    frames = [clip[i] for i in order or range(len(clip))]
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    fake, image = (tokenizer.convert_tokens_to_ids(t) for t in ("<fake_token_around_image>", "<image>"))
    ids = tokenizer(f"the text is {prompt} frames").input_ids
    for _ in frames:  # each picture is four tokens between two others, which stand apart as the pictures do
        ids += [fake, *[image] * 4, fake]
    pixels = torch.stack([(frame * 255).round() / 255 * 2 - 1 for frame in frames])[None]  # 16 x 20 need no scaling
    state = {k: v for i in (1, 2) for k, v in load_file(folder / f"model-0000{i}-of-00002.safetensors").items()}
    model = Idefics2Model(Idefics2Config.from_pretrained(folder)).eval()
    model.load_state_dict({k.removeprefix("model."): v for k, v in state.items() if k.startswith("model.")})
    with torch.no_grad():
        states = model(input_ids=torch.tensor([ids]), pixel_values=pixels).last_hidden_state[0]
    return state["score.weight"] @ states[-1] + state["score.bias"]


def test_marks_are_those_of_the_network_put_together_by_hand(folder: Path, words: Path) -> None:
    reward = VideoScore(folder, instructions=words)
    clips, prompts = videos(), ["a red ball", "a ball rolls rolls rolls"]
    expected = torch.stack([by_hand(folder, clip, p) for clip, p in zip(clips, prompts, strict=True)])
    assert (expected[0] - expected[1]).abs().max() > 1e-2  # else nothing is compared
    found = torch.stack([reward.scores(clips, prompts)[name] for name in ASPECTS], 1)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(reward.score(clips, prompts), expected.mean(1), atol=1e-4, rtol=1e-4)


def test_frames_are_the_evenly_spaced_ones_in_their_order(folder: Path, words: Path) -> None:
    clip = videos(1, 5)
    reward = VideoScore(folder, instructions=words, frames=3)
    found = torch.cat(list(reward.scores(clip, ["a ball"]).values()))
    torch.testing.assert_close(found, by_hand(folder, clip[0], "a ball", [0, 2, 4]), atol=1e-4, rtol=1e-4)
    assert (found - by_hand(folder, clip[0], "a ball", [4, 2, 0])).abs().max() > 1e-3
    assert reward.sees_motion and reward.frames == 3


def test_aspects_are_chosen_and_weighed(folder: Path, words: Path) -> None:
    clips, prompts = videos(), ["a", "red ball"]
    marks = VideoScore(folder, instructions=words).scores(clips, prompts)
    first, fourth = marks["visual_quality"], marks["text_to_video_alignment"]
    for aspects, expected in (
        ("visual_quality", first),
        (["visual_quality", "text_to_video_alignment"], (first + fourth) / 2),
        ({"visual_quality": 3, "text_to_video_alignment": 1.0, "dynamic_degree": 0}, (3 * first + fourth) / 4),
    ):
        found = VideoScore(folder, aspects=aspects, instructions=words).score(clips, prompts)
        torch.testing.assert_close(found, expected)
    for wrong, said in ((["beauty"], "no 'beauty'"), ({"dynamic_degree": -1}, "none below 0"), ([], "at least one")):
        with pytest.raises(ValueError, match=said):
            VideoScore(folder, aspects=wrong)


def test_our_own_words_hold_the_caption_and_a_caption_makes_no_picture(folder: Path) -> None:
    reward, seen = VideoScore(folder), []
    processor = reward.processor

    def spy(text: str, images: list[Image.Image], **options: Any) -> Any:
        seen.append((text, [np.asarray(image) for image in images]))
        return processor(text=text, images=images, **options)

    reward.processor = spy
    clips = videos(1, 2)
    assert reward.score(clips, ["a {ball} of <image> and {text_prompt}"]).isfinite().all()
    (text, images), *_ = seen
    assert '"a {ball} of image and {text_prompt}"' in text and text.endswith("<image> <image> ")
    assert text.count("<image>") == 2 and all(aspect.replace("_", " ") in text.replace("-", " ") for aspect in ASPECTS)
    levels = np.rint(clips[0].permute(0, 2, 3, 1).numpy() * 255)
    np.testing.assert_array_equal(np.stack(images), levels)


def test_broken_pixels_cost_their_own_clip(folder: Path, words: Path) -> None:
    clips = videos(3, 2)
    reward = VideoScore(folder, instructions=words)
    whole = reward.score(clips, ["a", "b", "c"])
    clips[1, 0, 0, 0, 0] = float("nan")
    scored = reward.score(clips, ["a", "b", "c"])
    assert scored.isnan().tolist() == [False, True, False]
    torch.testing.assert_close(scored[[0, 2]], whole[[0, 2]])


def test_nothing_is_read_before_the_first_call(folder: Path, words: Path) -> None:
    reward = VideoScore(folder, instructions=words)
    assert all(p.is_meta for p in reward._model.parameters())
    reward.score(videos(1, 2), ["a"])
    assert not any(p.is_meta or p.requires_grad for p in reward._model.parameters())


def test_wrong_and_missing_folders_are_told_at_once(folder: Path, tmp_path: Path) -> None:
    def copy(name: str) -> Path:
        return Path(shutil.copytree(folder, tmp_path / name))

    start = time.monotonic()
    with pytest.raises(ValueError, match=r"TIGER-Lab/VideoScore.*HF_HUB_OFFLINE"):
        VideoScore()
    (copied := copy("partial")).joinpath("model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ValueError, match=r"lacks VideoScore's model-00002-of-00002\.safetensors"):
        VideoScore(copied)
    (copied := copy("qwen")).joinpath("config.json").write_text(json.dumps({"model_type": "qwen2_vl"}))
    with pytest.raises(ValueError, match="of type qwen2_vl; VideoScore is read in its Idefics2 form"):
        VideoScore(copied)
    for name, change, said in (
        ("headless", {"score.weight": None}, r"score\.weight is missing"),
        ("three", {"score.weight": torch.zeros(3, 32)}, r"score\.weight is \[3, 32\] in place of \[5, 32\]"),
    ):
        copied = copy(name)
        for file in copied.glob("*.safetensors"):
            state: dict[str, Any] = load_file(file)
            state.update({k: v for k, v in change.items() if k in state})
            save_file({k: v for k, v in state.items() if v is not None}, file)
        with pytest.raises(ValueError, match=said):
            VideoScore(copied)
    (copied := copy("mute")).joinpath("tokenizer.json").unlink()
    with pytest.raises(ValueError, match="has no processor that can be read"):
        VideoScore(copied)
    (tmp_path / "words.txt").write_text("no caption here")
    with pytest.raises(ValueError, match=r"words\.txt has no \{text_prompt\}"):
        VideoScore(folder, instructions=tmp_path / "words.txt")
    with pytest.raises(ValueError, match=r"absent\.txt can't be read"):
        VideoScore(folder, instructions=tmp_path / "absent.txt")
    assert time.monotonic() - start < 5
