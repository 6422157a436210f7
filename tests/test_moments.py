"""Which pictures of a film are shown when: formats, time stamps, edit lists, streams, damage."""

from __future__ import annotations

import shutil
import struct
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from films import numbered, numbers, patch, rgb, write

from dollar.data.decoding import measure, read_video, read_window
from dollar.data.listed import Entry, Skipped
from dollar.data.probing import Examined, examine

PLAIN = {"g": "10", "qp": "4"}
OLD = {"g": "10", "b": "4M"}


def look(path: Path, fps: float = 24) -> Examined:
    found = examine(Entry("a", path, "a caption"), fps, "repeat")
    assert isinstance(found, Examined), found
    return found


def skipped(path: Path) -> Skipped:
    found = examine(Entry("a", path, "a caption"), 24, "repeat")
    assert isinstance(found, Skipped) and found.sentence.startswith(str(path)) and found.sentence.endswith(".")
    return found


def check(path: Path, first: int, count: int) -> None:
    """Pictures first .. first + count - 1 are the film, read from its beginning, its middle, its end."""
    found = look(path)
    assert found.frames == count and not found.still
    for start in (0, count // 2, count - 5):
        window = read_window(path, False, start, 5, 24, (found.height, found.width))
        assert numbers(window) == [first + start + k for k in range(5)], start


FORMATS: list[tuple[str, str, str, str, dict[str, str]]] = [
    ("a.mp4", "libx264", "mp4", "yuv420p", PLAIN),
    ("a.mov", "prores_ks", "mov", "yuv422p10le", {}),
    ("a.mkv", "libx264", "matroska", "yuv420p", PLAIN),
    ("a.webm", "libvpx-vp9", "webm", "yuv420p", OLD),
    ("a.ts", "libx264", "mpegts", "yuv420p", PLAIN),
    ("b.ts", "libx264", "mpegts", "yuv420p", PLAIN | {"x264-params": "open-gop=1"}),
    ("c.ts", "mpeg2video", "mpegts", "yuv420p", OLD | {"bf": "2"}),
    ("a.mpg", "mpeg2video", "mpeg", "yuv420p", OLD | {"bf": "2"}),  # few of its pictures have time stamps
    ("a.mpeg", "mpeg1video", "mpeg", "yuv420p", OLD),
    ("a.avi", "mpeg4", "avi", "yuv420p", OLD),
    ("b.avi", "libx264", "avi", "yuv420p", PLAIN),  # its time stamps are not in the order of showing
    ("a.wmv", "wmv2", "asf", "yuv420p", OLD),
    ("a.flv", "libx264", "flv", "yuv420p", PLAIN),
    ("a.3gp", "mpeg4", "3gp", "yuv420p", OLD),
    ("a.ogv", "libvpx", "ogg", "yuv420p", OLD),
]


@pytest.mark.parametrize(("name", "codec", "form", "pixels", "options"), FORMATS, ids=[row[0] for row in FORMATS])
def test_windows_of_any_format(tmp_path: Path, name: str, codec: str, form: str, pixels: str, options: Any) -> None:
    check(write(tmp_path / name, numbered(50, pixels), codec, form, **options), 0, 50)


@pytest.mark.parametrize("flags", ["frag_keyframe+empty_moov", "dash+frag_every_frame"])
def test_films_in_fragments(tmp_path: Path, flags: str) -> None:
    check(write(tmp_path / "a.mp4", numbered(50), form="mp4", container={"movflags": flags}, **PLAIN), 0, 50)


@pytest.mark.parametrize(
    ("name", "form"), [("a.mp4", "mp4"), ("a.mkv", "matroska"), ("a.ts", "mpegts"), ("a.flv", "flv")]
)
def test_time_stamps_may_begin_anywhere(tmp_path: Path, name: str, form: str) -> None:
    moments = [100 + k for k in range(50)]
    check(write(tmp_path / name, numbered(50), form=form, moments=moments, unit=Fraction(1, 24), **PLAIN), 0, 50)


def test_what_lies_before_zero_is_not_shown(tmp_path: Path) -> None:
    moments = [k - 30 for k in range(50)]
    check(write(tmp_path / "a.mp4", numbered(50), moments=moments, unit=Fraction(1, 24), **PLAIN), 30, 20)


def test_an_edit_list_cuts_a_film(tmp_path: Path) -> None:
    """As phones trim: the pictures are all there, from the twelfth on one second is shown."""
    path = write(tmp_path / "a.mp4", numbered(50), **PLAIN)
    patch(path, b"elst", 12, struct.pack(">Ii", 1000, 1024 + 12 * 512))  # 1,024 is what the order of decoding costs
    assert measure(path).extent == pytest.approx((23 / 24, 1 / 24))
    check(path, 12, 24)


def test_sound_may_begin_before_the_pictures(tmp_path: Path) -> None:
    path, packets = tmp_path / "a.mp4", []
    with av.open(str(path), "w") as file:
        video, audio = file.add_stream("libx264", rate=24), file.add_stream("aac", rate=48000)
        video.height, video.width, video.pix_fmt, video.options = 32, 48, "yuv420p", PLAIN
        for number in range(140):
            sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            sound.sample_rate, sound.pts = 48000, 1024 * number
            packets += audio.encode(sound)
        for number, frame in enumerate(numbered(50)):
            frame.pts, frame.time_base = 24 + number, Fraction(1, 24)
            packets += video.encode(frame)
        for packet in sorted(packets + audio.encode() + video.encode(), key=lambda p: p.dts * p.time_base):
            file.mux(packet)
    check(path, 0, 50)


@pytest.mark.parametrize(("name", "form"), [("a.mp4", "mp4"), ("a.mkv", "matroska"), ("a.ts", "mpegts")])
def test_a_varying_rate(tmp_path: Path, name: str, form: str) -> None:
    """25 pictures of 1/24 s, then 25 of 1/12 s: 24 + 1 + 2 x 24 = 73 intervals; the last picture may be held."""
    moments = [k if k < 25 else 25 + 2 * (k - 25) for k in range(50)]
    path = write(tmp_path / name, numbered(50), form=form, moments=moments, unit=Fraction(1, 24), **PLAIN)
    assert measure(path).extent == pytest.approx((73 / 24, 73 / 24 / 49), abs=2e-3)
    assert look(path).frames == 74
    window = read_window(path, False, 64, 10, 24, (32, 48))
    assert np.abs(np.array(numbers(window)) - [25 + (k - 25) / 2 for k in range(64, 74)]).max() <= 0.5


def test_the_last_window_can_be_read_after_a_short_last_interval(tmp_path: Path) -> None:
    moments = [*range(0, 400, 10), 391]
    path = write(tmp_path / "a.mp4", numbered(41), moments=moments, unit=Fraction(1, 240), **PLAIN)
    count = look(path, 9.7).frames
    assert numbers(read_window(path, False, count - 5, 5, 9.7, (32, 48)))[-1] == 40


def test_duplicated_time_stamps_and_one_picture(tmp_path: Path) -> None:
    moments = [k if k < 20 else k - 1 for k in range(50)]
    path = write(tmp_path / "a.mkv", numbered(50), "ffv1", moments=moments, unit=Fraction(1, 24))
    assert look(path).frames == 49 and numbers(read_window(path, False, 40, 5, 24, (32, 48))) == list(range(41, 46))
    assert look(write(tmp_path / "a.mp4", numbered(1))).frames == 1


def test_time_that_goes_back_is_a_cause(tmp_path: Path) -> None:
    one = write(tmp_path / "a.ts", numbered(50), form="mpegts", **PLAIN).read_bytes()
    (tmp_path / "b.ts").write_bytes(one + one)
    assert skipped(tmp_path / "b.ts").cause == "time goes back"


@pytest.mark.parametrize(("codec", "options"), [("libx264", PLAIN), ("mpeg2video", OLD)])
def test_a_stream_that_begins_within_a_group(tmp_path: Path, codec: str, options: dict[str, str]) -> None:
    """As recordings do: the film begins where its pictures can be decoded."""
    path = write(tmp_path / "a.ts", numbered(50), codec, "mpegts", **options)
    packets = [path.read_bytes()[k : k + 188] for k in range(0, path.stat().st_size, 188)]
    path.write_bytes(b"".join(packets[:3] + packets[len(packets) // 5 :]))
    first = numbers(read_video(path, np.zeros(1)))[0]
    assert 5 < first < 15
    check(path, first, 50 - first)


@pytest.mark.parametrize("begin", [0, 100])
def test_a_film_that_was_cut_off_ends_there(tmp_path: Path, begin: int) -> None:
    """The header in front lists 50 pictures; those that are there can be read to the last."""
    moments = [begin + k for k in range(50)]
    how: Any = {"container": {"movflags": "faststart"}, "moments": moments, "unit": Fraction(1, 24)}
    path = write(tmp_path / "a.mp4", numbered(50), bf="0", **how, **PLAIN)
    with av.open(str(path)) as file:
        places = [p.pos + p.size for p in file.demux(video=0) if p.pos is not None and p.size]
    path.write_bytes(path.read_bytes()[: places[29] + 5])  # five bytes of the next one
    check(path, 0, 30)
    path.write_bytes(path.read_bytes()[:60])
    assert skipped(path).cause == "corrupt"


def test_a_cover_is_not_the_film(tmp_path: Path) -> None:
    red = np.full((64, 96, 3), (200, 0, 0), np.uint8)
    for name, codec, pixels in (("a.mp4", "png", "rgb24"), ("a.mkv", "mjpeg", "yuvj420p")):
        with av.open(str(tmp_path / name), "w") as file:
            cover, film = file.add_stream(codec, rate=1), file.add_stream("libx264", rate=24)
            cover.height, cover.width, cover.pix_fmt = 64, 96, pixels
            cover.disposition = av.stream.Disposition.attached_pic
            film.height, film.width, film.pix_fmt, film.options = 32, 48, "yuv420p", PLAIN
            file.mux(cover.encode(rgb(red, pixels)))
            file.mux(cover.encode())
            for frame in numbered(50):
                file.mux(film.encode(frame))
            file.mux(film.encode())
        check(tmp_path / name, 0, 50)


def test_a_song_with_a_cover_has_no_film(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mp4"), "w") as file:
        cover = file.add_stream("png", rate=1)
        cover.height, cover.width, cover.pix_fmt = 32, 48, "rgb24"
        cover.disposition = av.stream.Disposition.attached_pic
        file.mux(cover.encode(rgb(np.zeros((32, 48, 3), np.uint8), "rgb24")))
        file.mux(cover.encode())
    assert skipped(tmp_path / "a.mp4").cause == "no video stream"
    assert "a cover, but no film" in skipped(tmp_path / "a.mp4").sentence


def test_an_unknown_codec_is_a_cause(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", numbered(2))
    assert skipped(patch(path, b"avc1\0\0", 0, b"zzzz")).cause == "unknown codec"


def fields() -> Iterator[av.VideoFrame]:
    """A bar that moves 4 pixels from one field to the next, both in one picture as cameras interlace them."""
    for number in range(10):
        picture = np.full((64, 96, 3), 20, np.uint8)
        for field in (0, 1):
            left = 4 * (2 * number + field)
            picture[field::2, left : left + 8] = 220
        yield rgb(picture)


@pytest.mark.parametrize(("name", "form"), [("a.mp4", "mp4"), ("a.ts", "mpegts")])
def test_interlaced_pictures_are_made_whole(tmp_path: Path, name: str, form: str) -> None:
    path = write(tmp_path / name, list(fields()), form=form, **{"x264-params": "tff=1", "crf": "4"})
    assert look(path).frames == 10
    for start in (0, 5):
        window = read_window(path, False, start, 5, 24, (64, 96))[..., 1].astype(int)
        assert np.abs(np.diff(window[:, 16:48], axis=1)).max() < 30  # no comb: both fields show one moment
        left = (window[:, 32] > 120).argmax(1)
        assert np.diff(left).tolist() == [8, 8, 8, 8] and left[0] // 8 == start


@pytest.mark.parametrize("name", ["a.mp4", "a.gif", "a.png"])
def test_a_film_is_one_whatever_its_name(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "film", numbered(50), form="matroska", **PLAIN)
    shutil.move(path, tmp_path / name)
    check(tmp_path / name, 0, 50)


def test_reading_beyond_the_end_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", numbered(50), **PLAIN)
    with pytest.raises(ValueError, match=r"a\.mp4 ends before 3\.00 s"):
        read_video(path, np.array([3.0]))
