"""Rewards that need no weights: JPEG size, flicker, dynamic degree; and those made of others: mixture, function."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import compose
from PIL import Image
from scipy.ndimage import gaussian_filter, shift
from torch import Tensor

from dollar.data import shapes
from dollar.rewards.colourfulness import Colourfulness
from dollar.rewards.dynamic_degree import DynamicDegree
from dollar.rewards.flicker import Flicker
from dollar.rewards.function import Function
from dollar.rewards.jpeg import JpegSize
from dollar.rewards.mixture import Mixture


def rendered(motion: str, seed: int = 0) -> Tensor:
    """A clip of the shapes world [T, 3, H, W] in [0, 1]."""
    clip = shapes.render(shapes.Attributes("large", "red", "cross", motion, "gray"), seed)
    return torch.from_numpy(clip).permute(0, 3, 1, 2) / 255


def random_videos(*size: int, seed: int = 0) -> Tensor:
    return torch.rand(*size, generator=torch.Generator().manual_seed(seed))


# JPEG


@pytest.mark.parametrize("quality", [95, 40])
def test_jpeg_size_is_the_mean_of_the_files_sizes(quality: int) -> None:
    videos = random_videos(2, 3, 3, 24, 32)
    sizes = np.zeros((2, 3))
    for b, t in np.ndindex(2, 3):
        file = io.BytesIO()
        level = np.rint(videos[b, t].numpy() * 255).astype(np.uint8).transpose(1, 2, 0)
        Image.fromarray(level).save(file, format="JPEG", quality=quality)
        sizes[b, t] = len(file.getvalue()) / 1000
    for sign in (1, -1):
        found = JpegSize(sign, quality).score(videos, ["a", "b"])
        assert found.tolist() == pytest.approx((sign * sizes.mean(1)).tolist(), rel=1e-6)
    ends = JpegSize(1, quality, frames=2).score(videos, ["a", "b"])
    assert ends.tolist() == pytest.approx(sizes[:, [0, 2]].mean(1).tolist(), rel=1e-6)


def test_jpeg_of_broken_pixels_is_no_number_and_mistakes_are_told() -> None:
    videos = random_videos(3, 2, 3, 8, 8)
    videos[0, 1, 2, 3, 4], videos[2, 0, 0, 0, 0] = float("inf"), float("nan")
    assert JpegSize().score(videos, list("abc")).isnan().tolist() == [True, False, True]
    for wrong, words in (({"sign": 0}, "reward.sign is 0"), ({"quality": 100}, "1 to 95"), ({"frames": 0}, "frames")):
        with pytest.raises(ValueError, match=words):
            JpegSize(**wrong)


# Flicker


def test_flicker_has_its_closed_form_and_its_gradient() -> None:
    videos = torch.zeros(2, 5, 3, 4, 4)
    videos[1, 1::2] = 0.25  # every neighbour is a quarter apart
    assert Flicker().score(videos, ["a", "b"]).tolist() == [1.0, 0.75]
    smooth = random_videos(1, 4, 3, 2, 2).double().requires_grad_()
    Flicker().score(smooth, ["a"]).sum().backward()
    assert smooth.grad is not None
    for place in ((0, 0, 0, 0, 0), (0, 2, 1, 1, 0)):
        ends = []
        for step in (-1e-3, 1e-3):
            moved = smooth.detach().clone()
            moved[place] += step
            ends.append(Flicker().score(moved, ["a"]).item())
        assert (ends[1] - ends[0]) / 2e-3 == pytest.approx(float(smooth.grad[place]), abs=1e-3)


def test_flicker_of_broken_pixels_is_no_number_and_of_one_frame_a_sentence() -> None:
    videos = random_videos(3, 3, 3, 2, 2)
    videos[0, 0, 0, 0, 0], videos[1, 2, 0, 0, 0] = float("inf"), float("nan")
    assert Flicker().score(videos, list("abc")).isnan().tolist() == [True, True, False]
    for reward in (Flicker(), DynamicDegree()):
        with pytest.raises(ValueError, match="these clips have one"):
            reward.score(videos[:, :1], list("abc"))


# Dynamic degree


def texture(height: int, width: int, blur: float = 2.0) -> np.ndarray:
    picture = gaussian_filter(np.random.default_rng(0).normal(size=(height + 80, width + 80)), blur)
    return (picture - picture.min()) / (picture.max() - picture.min())


def sliding(step: float, height: int = 128, width: int = 128, frames: int = 4, blur: float = 2.0) -> Tensor:
    """A texture that moves by `step` pixels a frame: [1, T, 3, H, W]."""
    big = texture(height, width, blur)
    clip = [shift(big, (0, step * t), order=3)[40 : 40 + height, 40 : 40 + width] for t in range(frames)]
    return torch.from_numpy(np.stack(clip)).float().clamp(0, 1)[None, :, None].expand(-1, -1, 3, -1, -1)


@pytest.mark.parametrize("step", [0.5, 1.0, 2.0, 4.0, 8.0])
def test_motion_of_a_sliding_texture(step: float) -> None:
    """Of 128 pixels, at 8 frames a second: step / 128 * 8 shorter sides a second."""
    within = 0.2 if step < 1 else 0.1
    assert DynamicDegree(fps=8).score(sliding(step), ["a"]).item() == pytest.approx(step / 16, rel=within)


def test_motion_does_not_depend_on_size_rate_or_the_longer_side() -> None:
    large = DynamicDegree(fps=8).score(sliding(4.0, 256, 384, blur=4.0), ["a"]).item()  # shrunk to half
    assert large == pytest.approx(4 / 256 * 8, rel=0.1)
    clip = sliding(1.0, frames=9)
    slow = DynamicDegree(fps=8).score(clip, ["a"]).item()
    assert DynamicDegree(fps=24, apart=1 / 24).score(clip, ["a"]).item() == pytest.approx(3 * slow, rel=1e-6)
    # Pairs that lie three frames apart in place of one: another flow, the same speed.
    far = DynamicDegree(fps=24, apart=0.125).score(clip, ["a"]).item()
    assert far == pytest.approx(3 * slow, rel=0.1) and far != 3 * slow


def test_motion_of_the_shapes_world() -> None:
    """What stands still has none; of straight motions 9 in 10 are read within 25 %, all on average within 10 %."""
    reward, errors = DynamicDegree(fps=shapes.FPS), []
    still = torch.stack([rendered("standing still", seed) for seed in range(3)])
    assert reward.score(still, ["a"] * 3).abs().max() < 1e-3
    for attributes in shapes.ALL_ATTRIBUTES[::37]:
        if attributes.motion.startswith("moving"):
            clip = shapes.render(attributes, 3)
            found = reward.score(torch.from_numpy(clip).permute(0, 3, 1, 2)[None] / 255, ["a"]).item()
            errors.append(found * shapes.HEIGHT / shapes.FPS / true_speed(attributes, 3) - 1)
    assert len(errors) > 20 and np.mean(np.abs(errors) < 0.25) >= 0.9 and abs(np.mean(errors)) < 0.1


def true_speed(attributes: shapes.Attributes, seed: int) -> float:
    """Pixels a frame, drawn as `render` draws it."""
    rng = np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, 0, shapes.ALL_ATTRIBUTES.index(attributes)]))
    radius = rng.uniform(*shapes.SIZES[attributes.size])
    return shapes.trajectory(attributes.motion, radius, rng).speed


def test_what_changes_without_moving_scores_as_the_docstring_says() -> None:
    still, moving = rendered("standing still"), rendered("moving left")
    rng = np.random.default_rng(0)
    patches = np.stack([gaussian_filter(rng.normal(size=(64, 64)), 3) for _ in still])
    boiling = still + 0.05 * torch.from_numpy(patches / patches.std()).float()[:, None]
    grainy = still + 0.05 * torch.randn(still.shape, generator=torch.Generator().manual_seed(0))
    flashing = torch.where(torch.arange(len(still))[:, None, None, None] % 2 == 0, still, 0.8 * still)
    clips = torch.stack([moving, grainy, boiling, flashing]).clamp(0, 1)
    moved, grain, boil, flash = DynamicDegree().score(clips, ["a"] * 4).tolist()
    assert 0.7 < grain / moved < 1.5 and 1 < boil < 2 and flash < 0.05


def test_the_threshold_gives_the_share_of_faster_pairs() -> None:
    moving = sliding(4.0, frames=4)  # three pairs at 0.25 shorter sides a second
    still = moving[:, -1:].expand(-1, 9, -1, -1, -1)
    clip = torch.cat([moving, still], 1)  # and nine that stand still
    assert DynamicDegree(threshold=0.19).score(clip, ["a"]).item() == pytest.approx(3 / 12)
    assert DynamicDegree(threshold=0.4).score(clip, ["a"]).item() == 0
    broken = torch.cat([clip, clip])
    broken[1, 5, 0, 7, 7] = float("nan")
    assert DynamicDegree().score(broken, ["a", "b"]).isnan().tolist() == [False, True]
    for wrong in ({"fps": 0}, {"apart": -1}, {"threshold": -0.1}):
        with pytest.raises(ValueError, match=f"reward.{next(iter(wrong))}"):
            DynamicDegree(**wrong)


def test_dynamic_degree_without_opencv_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install opencv-python-headless"):
        DynamicDegree()


# Mixture


class First:
    """The first channel's mean over the frames that it gets; knows one prompt only."""

    differentiable = True

    def __init__(self, frames: int | None = None) -> None:
        self.frames = frames
        self.got = 0

    def score(self, videos: Tensor, prompts: list[str]) -> Tensor:
        self.got = videos.shape[1]
        return videos[:, :, 0].mean((1, 2, 3))

    def check(self, prompts: list[str]) -> None:
        if "wrong" in prompts:
            raise ValueError("it says wrong")


def test_a_mixture_is_the_weighted_sum_and_shows_its_parts() -> None:
    videos = random_videos(2, 9, 3, 4, 4)
    reward = Mixture({"first": First(), "still": Flicker}, {"first": 2.0, "still": -0.5})
    parts = reward.scores(videos, ["a", "b"])
    torch.testing.assert_close(parts["first"], videos[:, :, 0].mean((1, 2, 3)))
    torch.testing.assert_close(parts["still"], Flicker().score(videos, ["a", "b"]))
    torch.testing.assert_close(reward.score(videos, ["a", "b"]), 2 * parts["first"] - 0.5 * parts["still"])
    assert reward.differentiable and reward.sees_motion and reward.frames is None
    with pytest.raises(ValueError, match="it says wrong"):
        reward.check(p for p in ["right", "wrong"])


def test_each_part_sees_its_own_frames_of_the_whole_clip() -> None:
    videos = random_videos(1, 9, 3, 4, 4)
    four, three = First(4), First(3)
    reward = Mixture({"four": four, "three": three}, {"four": 1, "three": 1})
    assert reward.frames is None  # three of four frames would not be three of nine
    parts = reward.scores(videos, ["a"])
    assert (four.got, three.got) == (4, 3)
    assert parts["three"].item() == pytest.approx(videos[0, [0, 4, 8], 0].mean().item())
    assert Mixture({"one": First(4), "other": First(4)}, {"one": 1, "other": 1}).frames == 4


def test_a_part_of_weight_0_is_neither_made_nor_asked_nor_counted() -> None:
    def costly() -> Any:
        raise AssertionError("made")

    reward = Mixture({"first": First(2), "costly": costly, "jpeg": JpegSize}, {"first": 1, "costly": 0.0})
    assert (reward.frames, reward.differentiable, reward.sees_motion) == (2, True, False)
    assert list(reward.scores(random_videos(1, 3, 3, 4, 4), ["a"])) == ["first"]
    with pytest.raises(ValueError, match=r"weights\.second has no part; the parts are first"):
        Mixture({"first": First()}, {"second": 1})
    with pytest.raises(ValueError, match="all of reward.weights are 0"):
        Mixture({"first": First()}, {"first": 0})


def test_a_clip_that_one_part_cannot_judge_has_no_number() -> None:
    videos = random_videos(2, 3, 3, 4, 4)
    videos[1, 1, 1, 1, 1] = float("nan")
    scored = Mixture({"a": Colourfulness(), "b": First()}, {"a": 1, "b": 1}).score(videos, ["a", "b"])
    assert scored.isnan().tolist() == [False, True]


def test_a_mixture_from_the_command_line() -> None:
    """Each part keeps its own yaml's keys, and only those with a weight are made, so that none fetches weights."""
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    from dollar.cli.overrides import check_overrides

    given = ["reward.weights.colourfulness=0.2", "reward.weights.flicker=2", "reward.parts.colourfulness.frames=4"]
    check_overrides("train", ["reward=mixture", *given])
    reward = instantiate(compose("train", "reward=mixture", *given).reward)
    assert reward.weights == {"colourfulness": 0.2, "flicker": 2.0} and reward.parts["colourfulness"].frames == 4
    reward = instantiate(compose("train", "reward=mixture", "reward.weights.jpeg_compressibility=1").reward)
    assert reward.weights == {"jpeg_compressibility": 1.0}  # what is given, and nothing else
    yamls = {p.stem for p in (Path(__file__).parent.parent / "conf" / "reward").glob("*.yaml")}
    node = compose("train", "reward=mixture").reward
    with pytest.raises(InstantiationException) as refused:
        instantiate(node)
    assert "all of reward.weights are 0" in str(refused.value.__cause__)
    assert set(node.parts) == set(node.weights) == yamls - {"none", "function", "mixture"}
    assert all(part["_partial_"] is True for part in node.parts.values())


def test_what_a_part_says_of_its_keys_is_said_of_the_mixtures() -> None:
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    where = r"reward\.parts\.pickscore\.path"
    for part, key, told in (
        ("pickscore", "path=no/where", rf"pickscore, a part.*: {where} is no/where.*set {where} to a folder"),
        ("hpsv2", "version=v3", r"hpsv2, a part.*: reward\.parts\.hpsv2\.version is v3"),
        ("colourfulness", "frames=0", r"colourfulness, a part.*: reward\.parts\.colourfulness\.frames is 0"),
        # The name of a file that looks like a key stays what it is.
        ("hpsv2", "path=./reward.path", r"reward\.parts\.hpsv2\.path is \./reward\.path, and there is no such"),
    ):
        node = compose("train", "reward=mixture", f"reward.weights.{part}=1", f"reward.parts.{part}.{key}").reward
        with pytest.raises(InstantiationException) as refused:
            instantiate(node)
        assert re.search(told, str(refused.value.__cause__)), refused.value.__cause__

    class Failing(First):
        def score(self, videos: Tensor, prompts: list[str]) -> Tensor:
            raise ValueError("it is tired")

    with pytest.raises(ValueError, match="second, a part of the mixture: it is tired"):
        Mixture({"first": First(), "second": Failing()}, {"first": 1, "second": 1}).score(
            torch.zeros(1, 2, 3, 4, 4), [""]
        )


# Function

MODULE = """
import numpy as np
import torch

calls = []

def redness(images, prompts, metadata):
    calls.append((images.shape, prompts, metadata))
    return images[:, 0].mean((1, 2)), {}

def listed(images, prompts, metadata):
    return [len(p) + m["frame"] for p, m in zip(prompts, metadata)], None

def array(images, prompts, metadata):
    return images.numpy().mean((1, 2, 3))[:, None], None

def bare(images, prompts, metadata):
    return images[:, 0].mean((1, 2))

def one(images, prompts, metadata):
    return 1.0, None

def words(images, prompts, metadata):
    return ["good"] * len(images), None

def cut(images, prompts, metadata):
    return images[:, 0].mean((1, 2)).detach(), None

number = 3
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module in the current folder, which is not on the path yet."""
    import sys

    name = f"mine_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    (tmp_path / f"{name}_broken.py").write_text("import nothing_of_the_sort")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", str(tmp_path))])
    return name


def test_a_function_gets_all_frames_with_their_prompts_and_places(mine: str) -> None:
    import importlib

    videos = random_videos(2, 5, 3, 4, 4)
    reward = Function(f"{mine}.redness", frames=3)
    assert (reward.frames, reward.differentiable) == (3, False)
    scored = reward.score(videos, ["a", "b"])
    torch.testing.assert_close(scored, videos[:, [0, 2, 4], 0].mean((1, 2, 3)))
    (shape, prompts, metadata), *others = importlib.import_module(mine).calls
    assert shape == (6, 3, 4, 4) and prompts == ("a", "a", "a", "b", "b", "b") and not others
    assert metadata == tuple({"clip": i, "frame": t} for i in range(2) for t in range(3))


def test_rewards_may_be_a_list_or_an_array(mine: str) -> None:
    videos = random_videos(2, 2, 3, 4, 4)
    assert Function(f"{mine}.listed").score(videos, ["a", "four"]).tolist() == [1.5, 4.5]
    torch.testing.assert_close(Function(f"{mine}.array").score(videos, ["a", "b"]), videos.mean((1, 2, 3, 4)))


def test_gradients_pass_where_the_function_was_declared_differentiable(mine: str) -> None:
    videos = random_videos(2, 2, 3, 4, 4).requires_grad_()
    Function(f"{mine}.redness", differentiable=True).score(videos, ["a", "b"]).sum().backward()
    assert videos.grad is not None
    torch.testing.assert_close(videos.grad[:, :, 0], torch.full((2, 2, 4, 4), 1 / 32))
    assert videos.grad[:, :, 1:].abs().max() == 0
    with pytest.raises(ValueError, match="declared differentiable"):
        Function(f"{mine}.cut", differentiable=True).score(videos, ["a", "b"])


def test_a_function_is_not_shown_broken_clips(mine: str) -> None:
    videos = random_videos(3, 2, 3, 4, 4)
    videos[1, 0, 0, 0, 0] = float("nan")
    scored = Function(f"{mine}.listed").score(videos, ["a", "bb", "ccc"])
    assert scored.isnan().tolist() == [False, True, False] and scored[[0, 2]].tolist() == [1.5, 3.5]
    assert Function(f"{mine}.listed").score(videos[1:2], ["a"]).isnan().all()


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("redness", "name a function with its module"),
        ("no_such_module_here.score", "no_such_module_here can't be imported"),
        ("{mine}_broken.score", "No module named 'nothing_of_the_sort'"),
        ("{mine}.absent", "has no absent"),
        ("{mine}.number", "number is a int, and can't be called"),
    ],
)
def test_a_path_that_names_no_function_is_told_at_once(mine: str, path: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Function(path.format(mine=mine))


@pytest.mark.parametrize(
    ("name", "words"),
    [("bare", "must return \\(rewards, metadata\\)"), ("one", "one number an image"), ("words", "are no numbers")],
)
def test_a_function_that_returns_something_else_is_told(mine: str, name: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Function(f"{mine}.{name}").score(random_videos(2, 2, 3, 4, 4), ["a", "b"])
