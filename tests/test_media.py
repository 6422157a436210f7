from __future__ import annotations

import io
import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from dollar import media
from dollar.data import shapes


def shape_clip(motion: str = "moving right", seed: int = 0) -> np.ndarray:
    return shapes.render(shapes.Attributes("large", "red", "circle", motion, "gray"), seed)


def plain(value: int, frames: int = 2, height: int = 4, width: int = 6) -> np.ndarray:
    return np.full((frames, height, width, 3), value, dtype=np.uint8)


def read_mp4(path: Path) -> tuple[np.ndarray, list[float]]:
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    return np.stack([f.to_ndarray(format="rgb24") for f in frames]), [f.time for f in frames]


def gif_frames(data: bytes) -> tuple[np.ndarray, list[int]]:
    image = Image.open(io.BytesIO(data))
    pictures, delays = [], []
    for number in range(image.n_frames):
        image.seek(number)
        pictures.append(np.asarray(image.convert("RGB")))
        delays.append(image.info["duration"])
    return np.stack(pictures), delays


@pytest.mark.parametrize("fps", [8, 23.976, Fraction(30000, 1001)])
def test_mp4_comes_back_nearly_as_it_was(tmp_path: Path, fps: float) -> None:
    clip = shape_clip()
    media.write_mp4(tmp_path / "deep" / "a.mp4", clip, fps)
    back, times = read_mp4(tmp_path / "deep" / "a.mp4")
    with av.open(str(tmp_path / "deep" / "a.mp4")) as container:
        assert container.streams.video[0].codec_context.colorspace == 6  # said aloud, since players guess by height
    assert back.shape == clip.shape
    # Chroma is halved in size, so edges differ; a wrong colour matrix would move the plain areas by 10 and more.
    error = np.abs(back.astype(int) - clip)
    assert error.mean() < 2.5 and np.median(error.max(-1)) <= 4
    assert times == pytest.approx(np.arange(17) / float(fps), abs=1e-3)
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["a.mp4"]


def test_the_same_clip_is_the_same_mp4(tmp_path: Path) -> None:
    """Whatever the cores and the load: the file names the settings that x264 depends on them by."""
    clip, cores = shape_clip(), os.sched_getaffinity(0)
    media.write_mp4(tmp_path / "many.mp4", clip, 8)
    os.sched_setaffinity(0, [min(cores)])
    try:
        media.write_mp4(tmp_path / "one.mp4", clip, 8)
    finally:
        os.sched_setaffinity(0, cores)
    data = (tmp_path / "many.mp4").read_bytes()
    assert data == (tmp_path / "one.mp4").read_bytes()
    assert b" threads=1 " in data and b" mbtree=0 " in data


def test_mp4_keeps_saturated_colours(tmp_path: Path) -> None:
    for colour in [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)]:
        clip = np.broadcast_to(np.array(colour, np.uint8), (3, 32, 32, 3)).copy()
        media.write_mp4(tmp_path / "a.mp4", clip, 8)
        assert np.abs(read_mp4(tmp_path / "a.mp4")[0].astype(int) - clip).max() <= 5


def test_mp4_of_odd_size_is_padded_by_one(tmp_path: Path) -> None:
    clip = shape_clip()[:, :31, :45]
    media.write_mp4(tmp_path / "a.mp4", clip, 8)
    back, _ = read_mp4(tmp_path / "a.mp4")
    assert back.shape == (17, 32, 46, 3)
    assert np.abs(back[:, 31].astype(int) - back[:, 30]).mean() < 5


def test_gif_keeps_pictures_and_total_time() -> None:
    clip = shape_clip()
    pictures, delays = gif_frames(media.gif_bytes(clip, 8))
    assert pictures.shape == clip.shape
    assert np.abs(pictures.astype(int) - clip).mean() < 4
    assert sum(delays) == 2120  # 17 / 8 s to a hundredth, although a frame lasts 12.5 hundredths
    assert sum(gif_frames(media.gif_bytes(shape_clip("standing still"), 8))[1]) == 2120


def test_gif_loops_for_ever_and_is_written_whole(tmp_path: Path) -> None:
    media.write_gif(tmp_path / "a.gif", shape_clip(), 8)
    image = Image.open(tmp_path / "a.gif")
    assert image.info["loop"] == 0 and image.n_frames == 17


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), media.atomically(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    with media.atomically(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


def test_side_by_side_holds_last_frames_and_centres() -> None:
    joined = media.side_by_side([plain(10, frames=1), plain(20, frames=3, height=8)], gap=2)
    assert joined.shape == (3, 8, 14, 3)
    assert (joined[:, 2:6, :6] == 10).all() and (joined[:, :2, :6] == 255).all() and (joined[:, 6:, :6] == 255).all()
    assert (joined[:, :, 6:8] == 255).all() and (joined[:, :, 8:] == 20).all()


def test_grid_stacks_rows() -> None:
    made = media.grid([[plain(1), plain(2)], [plain(3)]], gap=2)
    assert made.shape == (2, 10, 14, 3)
    assert (made[:, :4, :6] == 1).all() and (made[:, :4, 8:] == 2).all() and (made[:, 6:, 4:10] == 3).all()
    assert (made[:, 4:6] == 255).all()
    with pytest.raises(ValueError, match="no clips"):
        media.grid([])


def test_strip_takes_every_nth_frame() -> None:
    clip = np.stack([plain(value, frames=1)[0] for value in range(5)])
    picture = media.strip(clip, every=2)
    assert picture.shape == (12, 6, 3) and picture[::4, 0, 0].tolist() == [0, 2, 4]


def test_shrink_keeps_proportions_and_small_clips() -> None:
    assert media.shrink(plain(7, height=100, width=50), 20).shape == (2, 20, 10, 3)
    assert (media.shrink(plain(7, height=100, width=50), 20) == 7).all()
    small = plain(7)
    assert media.shrink(small, 20) is small


def test_to_uint8_rounds_clamps_and_moves_channels_last() -> None:
    video = torch.tensor([-0.5, 0.0, 0.4999 / 255, 127.6 / 255, 1.0, 1.5]).view(1, 1, 1, 6).repeat(2, 3, 1, 1)
    video[:, 2] = 1.0
    clip = media.to_uint8(video.requires_grad_())
    assert clip.dtype == np.uint8 and clip.shape == (2, 1, 6, 3)
    assert clip[0, 0, :, 0].tolist() == [0, 0, 0, 128, 255, 255] and (clip[..., 2] == 255).all()
    assert (media.to_uint8(torch.ones(1, 3, 2, 2, dtype=torch.bfloat16)) == 255).all()
    with pytest.raises(ValueError, match=r"\[T, 3, H, W\]"):
        media.to_uint8(torch.zeros(3, 2, 4, 4))


def test_names_are_safe_and_unique() -> None:
    prompts = [
        "a" * 300,
        "a" * 299 + "b",
        "a/b",
        "a b",
        "a-b",
        "../../etc",
        "..",
        "🦆",
        "🐸",
        "",
        "é",
        "e",
        "\ud800",
        "con\n",
    ]
    names = [media.safe_name(p, 3, 4, "demo") for p in prompts]
    names += [
        media.safe_name("a b", 3, 4, "teacher"),
        media.safe_name("a b", 4, 4, "demo"),
        media.safe_name("a b", 3, 2, "demo"),
    ]
    assert len({n.lower() for n in names}) == len(names)
    for name in names:
        assert len(name) < 120 and set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
    assert media.safe_name("A red circle!", 0, 4, "demo").startswith("a-red-circle-")
    assert media.safe_name("A red circle!", 0, 4, "demo") == media.safe_name("A red circle!", 0, 4, "demo")


@pytest.mark.parametrize("bad", [plain(0).astype(float), plain(0)[0], plain(0)[:0], plain(0)[..., :1]])
def test_what_is_not_a_clip_is_refused(tmp_path: Path, bad: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"uint8 array \[T, H, W, 3\]"):
        media.write_mp4(tmp_path / "a.mp4", bad, 8)
    with pytest.raises(ValueError, match="uint8 array"):
        media.gif_bytes(bad, 8)
    with pytest.raises(ValueError, match="fps is 0"):
        media.gif_bytes(plain(0), 0)
    assert list(tmp_path.iterdir()) == []
