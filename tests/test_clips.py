from __future__ import annotations

import json
import shutil
from collections import Counter
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
from PIL import Image

from dollar import media
from dollar.data import films, probing
from dollar.data.clips import ClipFolder, split_captions
from dollar.data.decoding import fit, read_video
from dollar.data.listed import Entry

REAL = Path(__file__).parents[2] / "shared" / "clips"


def counting(frames: int, height: int = 32, width: int = 48) -> np.ndarray:
    """Frame k is plain gray of level 10 + 4k, so that a decoded picture tells which frame it was."""
    levels = 10 + 4 * np.arange(frames, dtype=np.uint8)
    return np.broadcast_to(levels[:, None, None, None], (frames, height, width, 3)).copy()


def numbers(clip: np.ndarray) -> list[int]:
    """The frame numbers of a window of `counting`."""
    return np.rint((clip[:, 2:-2, 2:-2].mean((1, 2, 3)) - 10) / 4).astype(int).tolist()


def write_sound(path: Path) -> None:
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=16000)
        for k in range(20):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 16000, 1024 * k
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def write_webm(path: Path, clip: np.ndarray, fps: int) -> None:
    """A file whose header does not say how many pictures it has."""
    with av.open(str(path), "w", format="webm") as container:
        stream = container.add_stream("libvpx", rate=fps)
        stream.height, stream.width, stream.pix_fmt = *clip.shape[1:3], "yuv420p"
        stream.options = {"crf": "4", "b": "4M"}
        for picture in clip:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def add(folder: Path, name: str, clip: np.ndarray, fps: float, caption: str | None = "a caption") -> Path:
    folder.mkdir(exist_ok=True)
    media.write_mp4(folder / name, clip, fps)
    if caption is not None:
        (folder / name).with_suffix(".txt").write_text(caption)
    return folder / name


def truncate(path: Path, keep: float) -> None:
    """Damage the pictures of the later part and leave the header, which lies in front, whole."""
    data = path.read_bytes()
    keep = int(len(data) * keep)
    path.write_bytes(data[:keep] + bytes(len(data) - keep))


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Two good files among six that each fail in their own way."""
    folder = tmp_path / "mixed"
    add(folder, "a-good.mp4", counting(40), 8, "good a")
    add(folder, "b-good.mp4", counting(17), 8, "good b")
    add(folder, "c-short.mp4", counting(5), 8)
    add(folder, "d-mute.mp4", counting(17), 8, None)
    for name, data in [("e-empty", b""), ("f-corrupt", b"not a video" * 100)]:
        (folder / f"{name}.mp4").write_bytes(data)
        (folder / f"{name}.txt").write_text("a caption")
    write_sound(folder / "g-sound.mp4")
    (folder / "g-sound.txt").write_text("a caption")
    add(folder, "h-bytes.mp4", counting(17), 8)
    (folder / "h-bytes.txt").write_bytes(b"\xff\xfe\xff")
    return folder


def test_bad_files_are_skipped_counted_and_explained(mixed: Path) -> None:
    folder = ClipFolder(mixed, 17, 32, 32, 8, max_bad_fraction=0.8)
    assert [i.caption for i in folder.items] == ["good a", "good b"] and len(folder) == 2
    causes = {"too short": 1, "unreadable caption": 2, "empty": 1, "corrupt": 1, "no video stream": 1}
    assert folder.report.causes == Counter(causes)
    assert folder.report.bad_fraction == 6 / 8
    for skipped in folder.report.skipped:
        assert skipped.file.name in skipped.sentence and skipped.sentence.endswith(".")
    text = str(folder.report)
    assert text.startswith("2 usable") and "gives 5 frames at 8 fps; 17 are needed (2.00 s)" in text


def test_too_many_bad_files_stop(mixed: Path) -> None:
    with pytest.raises(ValueError, match=r"75% of its 8 clips are bad; at most 50%.*max_bad_fraction.*1 corrupt"):
        ClipFolder(mixed, 17, 32, 32, 8)
    ClipFolder(mixed, 17, 32, 32, 8, max_bad_fraction=0.75)


def test_missing_and_empty_folders_are_sentences(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere does not exist"):
        ClipFolder(tmp_path / "nowhere", 17, 32, 32, 8)
    with pytest.raises(ValueError, match="lists no clips.*captions.jsonl.*name.mp4"):
        ClipFolder(tmp_path, 17, 32, 32, 8)
    add(tmp_path, "a.mp4", counting(3), 8)
    with pytest.raises(ValueError, match="100% of its 1 clips are bad.*one must be usable"):
        ClipFolder(tmp_path, 17, 32, 32, 8, max_bad_fraction=1.0)


def test_u_chooses_the_window(tmp_path: Path) -> None:
    add(tmp_path, "a.mp4", counting(40), 8)
    folder = ClipFolder(tmp_path, 17, 32, 48, 8)
    assert folder.items[0].windows == 24
    for u, start in [(0.0, 0), (0.5, 12), (0.9999, 23)]:
        clip, caption = folder.clip(0, u)
        assert clip.shape == (17, 32, 48, 3) and clip.dtype == np.uint8 and caption == "a caption"
        assert numbers(clip) == list(range(start, start + 17))
    with pytest.raises(ValueError, match="u 1.0"):
        folder.clip(0, 1.0)


@pytest.mark.parametrize("source", [23.976, Fraction(30000, 1001), 12, 5])
@pytest.mark.parametrize("fps", [8, 7.5])
def test_sampling_follows_time_at_any_fps(tmp_path: Path, source: float, fps: float) -> None:
    add(tmp_path, "a.mp4", counting(60), source)
    folder = ClipFolder(tmp_path, 9, 32, 48, fps)
    for u in (0.0, 0.37, 0.9999):
        times = (int(u * folder.items[0].windows) + np.arange(9)) / fps
        # No other frame is nearer by more than a tie's millisecond; the last may be half an interval away.
        assert np.abs(numbers(folder.clip(0, u)[0]) - times * float(source)).max() <= 0.54


@pytest.mark.parametrize("ending", ["mp4", "webm"])
def test_between_two_equally_near_frames_it_is_always_the_later(tmp_path: Path, ending: str) -> None:
    write = media.write_mp4 if ending == "mp4" else write_webm  # which rounds time stamps to milliseconds
    write(tmp_path / f"a.{ending}", counting(60), 12)
    (tmp_path / "a.txt").write_text("a caption")
    folder = ClipFolder(tmp_path, 9, 32, 48, 8)
    for start in range(folder.items[0].windows - 1):
        got = numbers(folder.clip(0, start / folder.items[0].windows + 1e-6)[0])
        assert got == np.floor((start + np.arange(9)) * 1.5 + 0.5).astype(int).tolist()


def test_the_last_window_ends_at_the_last_frame(tmp_path: Path) -> None:
    add(tmp_path, "a.mp4", counting(49), 24)
    folder = ClipFolder(tmp_path, 49, 32, 48, 23.976)
    assert folder.items[0].windows == 1 and numbers(folder.clip(0, 0.5)[0]) == list(range(49))


def test_a_window_may_lie_just_after_the_last_key_frame(tmp_path: Path) -> None:
    # 251 frames: the last is a key frame, at 25.0 s; sampling at 9.99 fps ends at 25.03 s, within its showing.
    add(tmp_path, "a.mp4", np.zeros((251, 16, 16, 3), np.uint8), 10)
    folder = ClipFolder(tmp_path, 1, 16, 16, 9.99)
    assert folder.items[0].windows == 251
    folder.clip(0, 0.9999)
    assert not folder.report.failed


def test_the_grace_is_at_most_half_an_interval_of_what_is_asked_for(tmp_path: Path) -> None:
    add(tmp_path, "a.mp4", counting(21), 10)  # the last picture begins at 2.0 s
    assert ClipFolder(tmp_path, 1, 32, 48, 20).items[0].windows == 41  # half a source interval would give 42
    with pytest.raises(ValueError, match="gives 41 frames at 20 fps; 42 are needed"):
        ClipFolder(tmp_path, 42, 32, 48, 20)


def test_too_few_pictures_a_second(tmp_path: Path) -> None:
    for rate in (3, 4, 5):
        add(tmp_path, f"{rate}.mp4", counting(30), rate)
    folder = ClipFolder(tmp_path, 9, 32, 48, 8)
    assert [i.file.name for i in folder.items] == ["4.mp4", "5.mp4"]  # half is enough
    assert folder.report.causes == {"too few pictures a second": 1}
    assert "3.mp4 has 3 pictures a second; 8 are needed" in str(folder.report)


def write_stretched(path: Path, clip: np.ndarray, pixel: Fraction) -> None:
    """A file whose pixels are `pixel` times as wide as they are high."""
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.height, stream.width, stream.pix_fmt = *clip.shape[1:3], "yuv420p"
        stream.codec_context.sample_aspect_ratio = pixel
        stream.options = {"crf": "4"}
        for picture in clip:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


@pytest.mark.parametrize("pixel", [Fraction(2), Fraction(1, 2)])
def test_pixels_that_are_not_square_are_shown_as_they_are_meant(tmp_path: Path, pixel: Fraction) -> None:
    """A square of 32x32 as shown, on a ground of twice as much, stored at half its width or height."""
    clip = np.zeros((9, 64, 64, 3), np.uint8)
    high, wide = (32, 16) if pixel == 2 else (16, 32)
    clip[:, 32 - high // 2 : 32 + high // 2, 32 - wide // 2 : 32 + wide // 2] = 200
    write_stretched(tmp_path / "a.mp4", clip, pixel)
    size = (64, 128) if pixel == 2 else (128, 64)
    picture = read_video(tmp_path / "a.mp4", np.zeros(1))[0]
    assert picture.shape[:2] == size
    bright = (picture[..., 0] > 100).nonzero()
    for axis in bright:
        assert np.ptp(axis) + 1 == pytest.approx(32, abs=2)
    found = probing.examine(Entry("a.mp4", tmp_path / "a.mp4", "a caption"), 8, "repeat")
    assert isinstance(found, probing.Examined) and (found.height, found.width) == size


@pytest.mark.parametrize("name", ["x" * 300 + ".mp4", "a/" * 3000 + "b.mp4"])
def test_a_name_that_no_file_can_have_is_skipped(tmp_path: Path, name: str) -> None:
    add(tmp_path, "a.mp4", counting(9), 8)
    rows = [{"file": file, "caption": "a caption"} for file in ("a.mp4", name)]
    (tmp_path / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder = ClipFolder(tmp_path, 9, 32, 48, 8)
    assert len(folder) == 1 and folder.report.causes == {"missing file": 1}
    (skipped,) = folder.report.skipped
    assert skipped.id == name and "can't be reached" in skipped.sentence and len(skipped.sentence) < 300


def test_what_may_not_be_looked_at_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b"):
        add(tmp_path, f"{name}.mp4", counting(9), 8)
    real = Path.stat

    def refused(path: Path, **how: bool) -> object:
        if path.name == "b.mp4":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, **how)

    monkeypatch.setattr(Path, "stat", refused)
    folder = ClipFolder(tmp_path, 9, 32, 48, 8)
    assert len(folder) == 1 and "b.mp4 can't be reached: Permission denied." in str(folder.report)


def test_a_long_report_is_cut(tmp_path: Path) -> None:
    add(tmp_path, "a.mp4", counting(5), 8)
    for number in range(30):
        (tmp_path / f"b{number}.mp4").write_bytes(b"")
        (tmp_path / f"b{number}.txt").write_text("a caption")
    text = str(ClipFolder(tmp_path, 5, 32, 48, 8, max_bad_fraction=1.0).report)
    assert "1 usable, 30 empty" in text and text.endswith("and 10 more.") and len(text.splitlines()) == 22


def test_a_file_whose_header_has_no_count(tmp_path: Path) -> None:
    write_webm(tmp_path / "a.webm", counting(24), 8)
    (tmp_path / "a.txt").write_text("a caption")
    folder = ClipFolder(tmp_path, 17, 32, 48, 8)
    assert folder.items[0].windows == 8
    assert numbers(folder.clip(0, 0.9999)[0]) == list(range(7, 24))


@pytest.fixture
def long_video(tmp_path: Path) -> Path:
    """More frames than lie between two key frames (250), so that late windows lie behind a seek."""
    levels = np.random.default_rng(0).integers(0, 256, (300, 1, 1, 3), dtype=np.uint8)
    return add(tmp_path, "a.mp4", levels.repeat(16, 1).repeat(16, 2), 24)


def test_seeking_gives_what_reading_from_the_start_gives(long_video: Path) -> None:
    whole = read_video(long_video, np.arange(300) / 24)
    assert np.array_equal(read_video(long_video, np.arange(270, 290) / 24), whole[270:290])
    assert np.array_equal(read_video(long_video, np.arange(230, 270) / 24), whole[230:270])
    with av.open(str(long_video)) as container:
        assert next(films.pictures(container, 12.0))[0] > 5  # it did not begin at the beginning


def test_a_seek_that_leads_too_far_is_made_good(long_video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    straight = read_video(long_video, np.arange(48, 60) / 24)
    pictures = films.pictures
    monkeypatch.setattr(films, "pictures", lambda container, start: pictures(container, 6 * start))
    assert np.array_equal(read_video(long_video, np.arange(48, 60) / 24), straight)


def test_a_picture_marked_as_damaged_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frame = SimpleNamespace(is_corrupt=True, interlaced_frame=False, pts=0)
    monkeypatch.setattr(films, "_decoded", lambda *_: iter([frame]))
    with av.open(str(add(tmp_path, "a.mp4", counting(2), 8))) as container, pytest.raises(ValueError, match="damaged"):
        next(films.pictures(container, 0.0))


@pytest.mark.parametrize(("height", "width"), [(33, 57), (57, 33)])
def test_odd_sizes_are_scaled_and_cropped_around_the_centre(tmp_path: Path, height: int, width: int) -> None:
    clip = np.zeros((17, height, width, 3), np.uint8)
    edge = (max(height, width) - 33) // 2  # colour only the centred square, which is all that should remain
    middle = slice(edge, edge + 33)
    clip[:, middle if height > width else slice(None), middle if width > height else slice(None)] = (40, 180, 60)
    add(tmp_path, "a.mp4", clip, 8)
    picture, _ = ClipFolder(tmp_path, 17, 16, 16, 8).clip(0, 0)
    assert picture.shape == (17, 16, 16, 3)
    assert np.abs(picture[:, 1:-1, 1:-1].astype(int) - (40, 180, 60)).max() < 12


def test_fit_is_antialiased() -> None:
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    assert np.abs(fit(stripes, 8, 8).astype(int) - 127).max() < 12  # nearest or plain bilinear would give 0 or 255
    assert np.array_equal(fit(stripes, 64, 64), stripes)
    ramp = np.repeat(np.linspace(0, 250, 100).astype(np.uint8)[None, :, None], 50, 0).repeat(3, 2)
    assert fit(ramp, 10, 10)[5, :, 0].mean() == pytest.approx(125, abs=2)


def test_a_video_filmed_sideways_is_turned(tmp_path: Path) -> None:
    clip = np.zeros((17, 32, 48, 3), np.uint8)
    clip[:, :, :24] = 200  # bright on the left; a quarter turn clockwise brings it to the top
    path = add(tmp_path, "a.mp4", clip, 8)
    data = bytearray(path.read_bytes())
    matrix = data.index(b"tkhd") + 44  # version 0: nine 32-bit numbers, the last column in 2.30 and the rest in 16.16
    values = [0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30]
    data[matrix : matrix + 36] = b"".join(v.to_bytes(4, "big", signed=True) for v in values)
    path.write_bytes(data)
    picture = ClipFolder(tmp_path, 17, 48, 32, 8).clip(0, 0)[0][0]
    assert picture[:20].min() > 180 and picture[28:].max() < 20


def write_table(folder: Path, kind: str) -> None:
    rows = [("a.mp4", "first, with a comma"), ("b.mp4", "zweite für 🦆"), ("gone.mp4", "not there"), ("a.mp4", "")]
    if kind == "csv":
        lines = ["caption,file", *(f'"{caption}",{file}' for file, caption in rows)]
    else:
        lines = [json.dumps({"file": f, "caption": c}) for f, c in rows] + ["{torn", '{"file": "a.mp4"}', ""]
    (folder / f"captions.{kind}").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_caption_tables(tmp_path: Path, kind: str) -> None:
    add(tmp_path, "a.mp4", counting(17), 8, None)
    add(tmp_path, "b.mp4", counting(17), 8, None)
    write_table(tmp_path, kind)
    folder = ClipFolder(tmp_path, 17, 32, 48, 8, max_bad_fraction=0.9)
    assert [(i.file.name, i.caption) for i in folder.items] == [
        ("a.mp4", "first, with a comma"),
        ("b.mp4", "zweite für 🦆"),
    ]
    assert folder.report.causes == {"missing file": 1, "unreadable caption": 1 if kind == "csv" else 3}
    assert "line 5 of" in str(folder.report)


def test_stills_are_repeated_or_left_out(tmp_path: Path) -> None:
    add(tmp_path, "b.mp4", counting(17), 8)
    picture = np.full((40, 60, 3), (200, 30, 90), np.uint8)
    for name in ("a.png", "c.webp", "d.jpg"):
        Image.fromarray(picture).save(tmp_path / name)
        (tmp_path / name).with_suffix(".txt").write_text("a still")
    folder = ClipFolder(tmp_path, 17, 32, 32, 8)
    assert folder.stills == [0, 2, 3] and folder.items[0].windows == 1
    for index in folder.stills:
        clip, caption = folder.clip(index, 0.7)
        assert clip.shape == (17, 32, 32, 3) and caption == "a still"
        assert np.abs(clip.astype(int) - (200, 30, 90)).max() < 10 and (clip == clip[0]).all()
    skipping = ClipFolder(tmp_path, 17, 32, 32, 8, stills="skip", max_bad_fraction=0.0)
    assert len(skipping) == 1 and skipping.report.causes == {"still image": 3}
    with pytest.raises(ValueError, match="`repeat` or `skip`"):
        ClipFolder(tmp_path, 17, 32, 32, 8, stills="maybe")


def test_a_photograph_is_turned_as_its_exif_tag_says(tmp_path: Path) -> None:
    picture = np.zeros((40, 60, 3), np.uint8)
    picture[:, :30] = 200
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn clockwise: left comes to the top
    Image.fromarray(picture).save(tmp_path / "a.jpg", exif=exif)
    (tmp_path / "a.txt").write_text("a still")
    clip, _ = ClipFolder(tmp_path, 2, 60, 40, 8).clip(0, 0)
    assert clip[0, :25].min() > 180 and clip[0, 35:].max() < 20


def test_a_file_that_fails_later_is_replaced_whatever_came_before(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (60, 32, 48, 3), dtype=np.uint8)
    add(tmp_path, "a.mp4", noise, 8, "torn")
    add(tmp_path, "b.mp4", counting(17), 8, "good")
    truncate(tmp_path / "a.mp4", 0.6)
    one, other = (ClipFolder(tmp_path, 17, 32, 48, 8) for _ in range(2))
    assert len(one) == 2  # the header promises 60 frames
    assert one.clip(0, 0.99)[1] == "good" and numbers(one.clip(0, 0.99)[0]) == list(range(17))
    assert one.report.failed == {tmp_path / "a.mp4": 2} and "2 draws replaced" in str(one.report)
    # The early part is whole, and having failed before must not change what it gives.
    early = one.clip(0, 0.0)
    assert early[1] == "torn" and np.array_equal(early[0], other.clip(0, 0.0)[0])
    (tmp_path / "b.mp4").unlink()
    (tmp_path / "a.mp4").unlink()
    one._cache.clear()
    with pytest.raises(ValueError, match="none of the 2 clips"):
        one.clip(1, 0.0)


def test_cache_is_bounded_and_safe_to_write_in(tmp_path: Path) -> None:
    path = add(tmp_path, "a.mp4", counting(40), 8)
    size = 17 * 32 * 48 * 3
    folder = ClipFolder(tmp_path, 17, 32, 48, 8, cache_bytes=2 * size)
    for u in (0.0, 0.3, 0.6):
        folder.clip(0, u)[0][:] = 0
    path.write_bytes(b"")
    assert numbers(folder.clip(0, 0.3)[0])[0] == 7 and numbers(folder.clip(0, 0.6)[0])[0] == 14
    with pytest.raises(ValueError, match="decoded any more"):
        folder.clip(0, 0.0)  # pushed out by the third, so it needs the file again


def test_splits_hold_whole_captions_out(tmp_path: Path) -> None:
    for number in range(6):
        add(tmp_path, f"{number}.mp4", counting(5), 8, f"caption {number // 2}")
    make = lambda split: ClipFolder(tmp_path, 5, 32, 48, 8, split=split, split_seed=3, held_out_fraction=0.3)  # noqa: E731
    train, held_out = make("train"), make("held_out")
    assert (len(train), len(held_out)) == (4, 2)
    assert {i.caption for i in train.items}.isdisjoint(i.caption for i in held_out.items)
    captions = {f"caption {k}" for k in range(100)}
    splits = [split_captions(captions, "held_out", seed, 0.1) for seed in (0, 0, 1)]
    assert splits[0] == splits[1] != splits[2] and len(splits[0]) == 10
    with pytest.raises(ValueError, match="unknown split 'test'"):
        make("test")
    with pytest.raises(ValueError, match="train split .* is empty"):
        ClipFolder(tmp_path, 5, 32, 48, 8, split="train", held_out_fraction=1.0)


@pytest.mark.skipif(not REAL.is_dir(), reason="the ten real clips are not here")
def test_ten_real_clips(tmp_path: Path) -> None:
    folder = ClipFolder(shutil.copytree(REAL, tmp_path / "clips"), 17, 64, 64, 8)  # which a memory is written beside
    assert len(folder) == 10 and folder.report.skipped == []
    for index in range(0, 10, 3):
        clip, caption = folder.clip(index, 0.99)
        assert clip.shape == (17, 64, 64, 3) and clip.std() > 10 and len(caption) > 20
        assert not np.array_equal(clip, folder.clip(index, 0.0)[0])
    assert not folder.report.failed
