"""The embedded CLIP: its loss, its pictures, a training that resumes, and what the shipped folder can tell."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import compose
from torch.nn import functional as F

from dollar.data import shapes
from dollar.parallel import checkpoint
from dollar.parallel.world import World
from dollar.pretraining import clip
from dollar.pretraining.autoencoder import new_autoencoder
from dollar.pretraining.clip import (
    LENGTH,
    Pictures,
    batch_of,
    contrastive,
    cosines,
    embed_pictures,
    embed_texts,
    limit_scale,
    new_clip,
    new_tokenizer,
    open_clip_config,
    save_clip,
    text_of,
    train_clip,
)
from dollar.pretraining.clip_measures import (
    falls,
    frames_of,
    held_out_clips,
    order,
    rank_correlation,
    retrieval,
    with_right,
)
from dollar.pretraining.pictures import KEPT, blurred, noisy, rendered, spoilt, stack, visible, worse
from dollar.pretraining.stages import Stage
from dollar.rewards.open_clip import from_open_clip, geometry

SHIPPED = Path(__file__).resolve().parent.parent / "dollar" / "assets" / "clip"
tiny = partial(new_clip, width=32, text_width=32, layers=1, text_layers=1)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


# The loss


def test_the_loss_of_three_samples_two_of_which_look_the_same() -> None:
    """Texts 0 and 1 are alike, so both pictures of theirs are right for both."""
    pictures = F.normalize(torch.tensor([[1.0, 0.0], [3.0, 4.0], [0.0, 1.0]]), dim=1)
    texts = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    odds = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    # Cosines: rows 1 1 0; 0.6 0.6 0.8; 0 0 1. The scale is 2.
    e = math.exp
    of_pictures = [
        math.log(2 * e(2) + 1) - 2,  # half of it for each of two equal logits
        math.log(2 * e(1.2) + e(1.6)) - 1.2,
        math.log(2 + e(2)) - 2,
    ]
    column = math.log(e(2) + e(1.2) + 1) - (2 + 1.2) / 2
    of_texts = [column, column, math.log(1 + e(1.6) + e(2)) - 2]
    expected = (sum(of_pictures) / 3 + sum(of_texts) / 3) / 2
    assert contrastive(pictures, texts, odds, torch.tensor(2.0)).item() == pytest.approx(expected, abs=1e-6)


def test_a_picture_of_nothing_is_pushed_from_every_text_and_asks_for_none() -> None:
    pictures = F.normalize(torch.randn(3, 4, generator=torch.Generator().manual_seed(0)), dim=1)
    texts, scale = F.normalize(torch.randn(2, 4, generator=torch.Generator().manual_seed(1)), dim=1), torch.tensor(5.0)
    odds = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    logits = scale * pictures @ texts.T
    of_texts = F.cross_entropy(logits.T, torch.tensor([0, 1]))  # over all three pictures
    of_pictures = F.cross_entropy(logits[:2], torch.tensor([0, 1]))
    torch.testing.assert_close(contrastive(pictures, texts, odds, scale), (of_texts + of_pictures) / 2)
    free = pictures.clone().requires_grad_()
    contrastive(free, texts, odds, scale).backward()
    assert (texts @ -free.grad[2] < 0).any()  # type: ignore[index]


def test_the_loss_is_least_where_logits_differ_by_the_odds() -> None:
    """A picture with e^-2 of another's odds ends 2 below it, however large the scale."""
    shift = torch.zeros(2, requires_grad=True)
    texts, odds = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0], [math.exp(-2)]])
    optimizer = torch.optim.SGD([shift], lr=0.5)
    for _ in range(200):
        optimizer.zero_grad()
        contrastive(torch.stack([shift, shift * 0], 1), texts, odds, torch.tensor(3.0)).backward()
        optimizer.step()
    assert 3 * (shift[0] - shift[1]).item() == pytest.approx(2.0, abs=1e-3)


def test_the_scale_is_held_at_100() -> None:
    network: Any = tiny(new_tokenizer())
    before = network.logit_scale.item()
    limit_scale(network)
    assert network.logit_scale.item() == before
    network.logit_scale.data.fill_(9.0)
    limit_scale(network)
    assert network.logit_scale.exp().item() == pytest.approx(100, rel=1e-5)


# Pictures and texts


def test_every_caption_is_made_of_known_words_and_ends_with_the_largest_id() -> None:
    tokenizer = new_tokenizer()
    ids = torch.tensor(tokenizer(shapes.captions("all"), padding="max_length").input_ids)
    assert ids.shape == (1152, LENGTH) and not (ids == tokenizer.unk_token_id).any()
    assert (ids.argmax(1) == 11).all()  # after the start and ten words
    assert ids.max() == tokenizer.eos_token_id == len(tokenizer) - 1
    assert (ids[:, 12:] == tokenizer.pad_token_id).all()
    long = tokenizer("a mauve circle " * 20, truncation=True).input_ids
    assert len(long) == LENGTH and long[-1] == tokenizer.eos_token_id and tokenizer.unk_token_id in long


def test_what_a_frame_shows_is_all_but_the_motion() -> None:
    assert len({visible(a) for a in shapes.ALL_ATTRIBUTES}) == 192
    asked = shapes.ALL_ATTRIBUTES[0]
    assert text_of(asked) == shapes.caption(asked)
    assert text_of(asked, motion=False) == "a small red circle on a black background"


def test_pictures_get_worse_by_degrees_and_return_at_level_nothing() -> None:
    frame = rendered(1, 0).frames[0, 0]
    for seed in range(12):  # all kinds
        assert np.allclose(worse(frame, 0.0, rng(seed)), frame)
        errors = [np.abs(worse(frame, level, rng(seed)) - frame).mean() for level in (0.2, 0.6, 1.0)]
        assert errors[0] < errors[1] < errors[2]
        nothing = spoilt(frame, frame[::-1], rng(seed))
        assert (
            nothing.shape == frame.shape and np.isfinite(nothing).all() and 0 <= nothing.min() <= nothing.max() <= 255
        )
        assert np.abs(nothing - frame).mean() > 0.5
    assert np.allclose(blurred(frame, 0.0), frame) and np.allclose(noisy(frame, 0.0, rng()), frame)


def test_the_odds_of_a_batch_fall_with_every_wrong_attribute_and_with_the_level() -> None:
    pool = rendered(40, 0)
    assert pool.frames.shape == (40, KEPT, 64, 64, 3)
    batch = batch_of([pool], range(32), 0)
    assert batch.pictures.shape == (75, 3, 64, 64) and len(batch.texts) == 32 and batch.odds.shape == (75, 32)
    good, bad, none = batch.odds.split([32, 32, 11])
    groups = (shapes.COLOURS, shapes.SHAPES, shapes.SIZES)
    known = [[next(w for w in text.split() if w in group) for group in groups] for text in batch.texts]
    looks = [[*own, text.split(" on a ")[1]] for own, text in zip(known, batch.texts, strict=True)]
    wrong = torch.tensor([[sum(x != y for x, y in zip(a, b, strict=True)) for b in looks] for a in looks])
    torch.testing.assert_close(good, torch.exp(-clip.GAP * wrong))
    assert {0, 1, 2, 3, 4} >= set(wrong.flatten().tolist()) > {0, 1, 2}
    mates = wrong.view(8, 4, 8, 4).diagonal(dim1=0, dim2=2)  # of a group: they differ in shape at most
    assert mates.max() == 1
    falls = (bad / good).log()
    torch.testing.assert_close(falls, falls[:, :1].expand_as(falls), rtol=1e-3, atol=1e-4)
    assert -clip.FALL <= falls.min() < falls.max() <= 0 and (none == 0).all()
    again = batch_of([pool], range(32), 0)
    assert torch.equal(again.pictures, batch.pictures) and again.texts == batch.texts
    assert batch_of([pool], range(32), 1).texts != batch.texts


# Measures


def test_captions_with_so_many_attributes_right() -> None:
    asked = shapes.ALL_ATTRIBUTES[77]
    for right in range(5):
        for seed in range(5):
            found = with_right(asked, right, rng(seed))
            assert sum(a == b for a, b in zip(visible(found), visible(asked), strict=True)) == right
            assert found.motion == asked.motion


def test_measures_of_answers_that_are_known() -> None:
    counts = torch.arange(5.0)[None, :, None].expand(3, 5, 4)
    assert rank_correlation(counts) == pytest.approx(1.0) and rank_correlation(-counts) == pytest.approx(-1.0)
    assert falls(torch.tensor([[3.0, 2.0, 1.0], [3.0, 4.0, 1.0]])) == pytest.approx(0.75)


# Training


def trained(work: Path, steps: int) -> Any:
    """A tiny training on rendered clips; the autoencoder is an untrained one."""
    torch.manual_seed(0)
    stage = Stage(steps=steps, batch=6, lr=3e-3, warmup=1, save_every=2, decay_from=1.0)
    return train_clip(work, new_autoencoder(), stage, Pictures(8, 2), 0, 0.5, World(), new=tiny)[0]


def test_training_resumes_exactly(tmp_path: Path) -> None:
    whole = trained(tmp_path / "whole", 3)
    trained(tmp_path / "broken", 2)
    resumed = trained(tmp_path / "broken", 3)
    for (name, a), b in zip(whole.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b), name
    begun = checkpoint.load(checkpoint.newest(tmp_path / "whole" / "clip" / "checkpoints")).tensors
    fresh = tiny(new_tokenizer())
    assert begun.keys() >= {f"{part}/{name}" for part in ("clip", "ema") for name, _ in fresh.named_parameters()}


def test_what_is_written_is_read_in_both_formats(tmp_path: Path) -> None:
    tokenizer, network = new_tokenizer(), tiny(new_tokenizer()).eval()
    save_clip(tmp_path, network, tokenizer)
    agree(tmp_path, network, tolerance=5e-3)  # of an untrained network, half precision is coarser
    tokenizer(["a"], padding="max_length", truncation=True)
    save_clip(tmp_path, network, tokenizer)
    written = json.loads((tmp_path / "tokenizer.json").read_text())
    assert written["padding"] is None and written["truncation"] is None  # whatever it was last used for


def read(folder: Path) -> tuple[Any, Any, Any]:
    """The folder's network by transformers, by open_clip's names, and its tokenizer."""
    from transformers import AutoTokenizer, CLIPConfig, CLIPModel

    own: Any = CLIPModel.from_pretrained(folder, local_files_only=True).eval()
    state = torch.load(folder / "HPS_v2.1_compressed.pt", weights_only=True)["state_dict"]
    assert all(value.dtype == torch.float16 for value in state.values())
    config = json.loads((folder / "open_clip_config.json").read_text())
    other: Any = CLIPModel(CLIPConfig(**geometry(state, config))).eval()
    other.load_state_dict({name: value.float() for name, value in from_open_clip(state).items()}, strict=True)
    assert open_clip_config(own.config) == config and own.dtype == torch.float32
    return own, other, AutoTokenizer.from_pretrained(folder, local_files_only=True)


def agree(folder: Path, expected: Any = None, tolerance: float = 1e-3) -> None:
    own, other, tokenizer = read(folder)
    pictures = stack([shapes.render(a, 3)[5] for a in shapes.ALL_ATTRIBUTES[::100]])
    texts = [shapes.caption(a) for a in shapes.ALL_ATTRIBUTES[::90]]
    found = cosines(own, tokenizer, pictures, texts)
    torch.testing.assert_close(cosines(other, tokenizer, pictures, texts), found, rtol=0, atol=1e-5)
    if expected is not None:
        torch.testing.assert_close(found, cosines(expected, new_tokenizer(), pictures, texts), rtol=0, atol=tolerance)


# The shipped folder


@pytest.fixture(scope="module")
def shipped() -> tuple[Any, Any]:
    own, _, tokenizer = read(SHIPPED)
    return own, tokenizer


def test_the_shipped_folder_is_small_and_the_same_in_both_formats(shipped: tuple[Any, Any]) -> None:
    assert sum(path.stat().st_size for path in SHIPPED.rglob("*") if path.is_file()) < 4e6
    agree(SHIPPED)
    assert shipped[1].get_vocab() == new_tokenizer().get_vocab()


def test_our_embeddings_are_those_of_transformers_own_preparation(shipped: tuple[Any, Any]) -> None:
    from PIL import Image
    from transformers import CLIPImageProcessorPil

    network, tokenizer = shipped
    frame = shapes.render(shapes.ALL_ATTRIBUTES[500], 1)[3]
    prepared = CLIPImageProcessorPil.from_pretrained(SHIPPED)(Image.fromarray(frame), return_tensors="pt")
    texts = tokenizer([shapes.caption(a) for a in shapes.ALL_ATTRIBUTES[:3]], padding="max_length", return_tensors="pt")
    with torch.no_grad():
        output = network(input_ids=texts.input_ids, pixel_values=prepared.pixel_values)
        shown = embed_pictures(network, stack([frame]))
        said = embed_texts(network, tokenizer, [shapes.caption(a) for a in shapes.ALL_ATTRIBUTES[:3]])
    torch.testing.assert_close(
        shown @ said.T * network.logit_scale.exp(), output.logits_per_image, rtol=1e-4, atol=1e-3
    )


def test_the_shipped_clip_finds_captions_and_frames_that_it_never_saw(shipped: tuple[Any, Any]) -> None:
    clips, asked = held_out_clips(seed=5)
    chosen = slice(0, 100)
    frames, asked = frames_of(clips[chosen], 5), asked[chosen]
    found = retrieval(*shipped, frames, asked)
    assert found["text"] > 0.95 and found["picture"] > 0.95
    assert rank_correlation(order(*shipped, frames[:40], asked[:40], 5)) > 0.93


def test_what_shows_no_object_scores_low(shipped: tuple[Any, Any]) -> None:
    clips, asked = held_out_clips(seed=6)
    frames = frames_of(clips[:60], 6)
    texts = [shapes.caption(a) for a in asked[:60]]
    right = cosines(*shipped, stack(frames), texts).diagonal()
    poor: dict[str, Callable] = {
        "blurred": lambda frame: blurred(frame, 4.0),
        "noisy": lambda frame: noisy(frame, 90.0, rng()),
        "two": lambda frame: np.where(np.abs(frame - np.roll(frame, 32, 1)) > 60, np.roll(frame, 32, 1), frame),
        "empty": lambda frame: np.broadcast_to(np.median(frame, (0, 1)), frame.shape),
    }
    for name, spoil in poor.items():
        low = cosines(*shipped, stack([spoil(frame.astype(np.float32)) for frame in frames]), texts).diagonal()
        assert (low < right).float().mean() > 0.9, name


# The command


def test_the_command_makes_a_folder_and_goes_on_with_the_same_settings_only(
    command: Callable, tiny_teacher_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dollar.pretraining.clip_measures.measure", lambda *_: {"frames": 3})
    keys = (
        "make=clip",
        f"autoencoder={tiny_teacher_folder}",
        f"work={tmp_path / 'work'}",
        f"out={tmp_path / 'out'}",
        "clip.batch=4",
        "pictures={rendered: 4, decoded: 2}",
    )
    said = command("pretrain", *keys, "clip.steps=1")
    assert said.code == 0 and "the CLIP is in" in said.out, said.err
    assert json.loads((tmp_path / "out" / "metrics.json").read_text()) == {"frames": 3}
    own, _, tokenizer = read(tmp_path / "out")
    state = checkpoint.load(checkpoint.newest(tmp_path / "work" / "clip" / "checkpoints"))
    saved = state.tensors["clip/text_projection.weight"]
    torch.testing.assert_close(own.text_projection.weight, saved, rtol=0, atol=0.05)
    assert len(tokenizer) == own.config.text_config.vocab_size
    again = command("pretrain", *keys, "clip.steps=2")
    assert again.code == 2 and "clip.steps was 1, now 2" in again.err
    # The autoencoder is known by what it holds.
    (tmp_path / "link").symlink_to(tiny_teacher_folder, target_is_directory=True)
    assert command("pretrain", *keys, "clip.steps=1", f"autoencoder={tmp_path / 'link'}").code == 0
    other = Path(shutil.copytree(tiny_teacher_folder, tmp_path / "other"))
    config = other / "vae" / "config.json"
    config.write_text(config.read_text() + " ")
    again = command("pretrain", *keys, "clip.steps=1", f"autoencoder={other}")
    assert again.code == 2 and "autoencoder was" in again.err and "add same=[autoencoder]" in again.err
    # The teacher keeps its own settings in the same folder, and knows nothing of the CLIP's.
    from dollar.cli.build import pretraining as pretrain

    teacher = compose("pretrain", f"work={tmp_path / 'work'}")
    assert pretrain.begun(teacher, tmp_path / "work") == (tmp_path / "work" / "config.yaml", False)
    assert not {"make", "clip", "pictures", "autoencoder"} & pretrain.decides(teacher).keys()
    assert {"decoder", "teacher", "clips", "init"} <= pretrain.decides(teacher).keys()


@pytest.mark.parametrize(
    ("mistake", "words"),
    [
        ("make=clap", "make is 'clap'; it is teacher or clip"),
        ("pictures.decoded=0", "pictures.decoded is 0; it must be at least 2"),
        ("clip.batch=0", "clip.batch is 0; it must be at least 1"),
        ("autoencoder=null", "autoencoder is null"),
        ("autoencoder=/nowhere", "no teacher at /nowhere"),
    ],
)
def test_mistakes_are_sentences_before_anything_is_written(
    command: Callable, tmp_path: Path, mistake: str, words: str
) -> None:
    key = mistake.split("=")[0]
    given = [f"work={tmp_path / 'work'}", f"out={tmp_path / 'out'}", mistake, *([] if key == "make" else ["make=clip"])]
    said = command("pretrain", *given)
    assert said.code == 2 and words in said.err and "Traceback" not in said.err
    assert not (tmp_path / "work").exists()
