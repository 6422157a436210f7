"""What a film's numbers look like: colours, range, transparency, turns."""

from __future__ import annotations

import gc
import io
import struct
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import av
import films
import numpy as np
import pytest
from av.video.reformatter import VideoReformatter
from films import planes, write, yuv
from PIL import Image, ImageOps

from dollar import media
from dollar.data.colour import (
    BT709,
    BT2020,
    DCI_P3,
    DISPLAY_P3,
    HLG,
    PQ,
    Colours,
    hlg_light,
    pq_light,
    primaries_to_bt709,
    shoulder,
    to_bt709,
)
from dollar.data.decoding import read_video
from dollar.data.frames import Screen, Stated
from dollar.data.listed import Entry, Skipped
from dollar.data.probing import examine

GREEN = np.array([40, 180, 60])
LIMITED, FULL = 1, 2


def first(path: Path) -> np.ndarray:
    return read_video(path, np.zeros(1))[0]


def middle(path: Path) -> list[int]:
    picture = first(path)
    return picture[picture.shape[0] // 2, picture.shape[1] // 2].tolist()


def pq_code(light: np.ndarray) -> np.ndarray:
    """ST 2084's inverse of `pq_light`, by its own formula."""
    power = (light / 10000) ** (2610 / 16384)
    return ((3424 / 4096 + 2413 / 128 * power) / (1 + 2392 / 128 * power)) ** (2523 / 32)


def hdr(
    path: Path, code: Any, transfer: int, bits: int, full: bool, matrix: str = "2020", primaries: int = BT2020
) -> Path:
    """A film of one R'G'B' code, tagged as phones and discs do."""
    codes = yuv(np.broadcast_to(code, 3).tolist(), matrix, bits, full)
    pictures = [planes(f"yuv420p{bits}le", codes) for _ in range(2)]
    tags = {
        "color_range": FULL if full else LIMITED,
        "colorspace": BT2020 if matrix == "2020" else BT709,
        "color_trc": transfer,
        "color_primaries": primaries,
    }
    if path.name == "hevc.mkv":
        return write(path, pictures, "libx265", tags=tags, **{"x265-params": "log-level=none:crf=1"})
    return write(path, pictures, "ffv1", tags=tags)


def test_curves_of_hdr_are_those_of_the_standards() -> None:
    assert pq_light(np.array([0.0, 0.58069, 0.75183, 1.0])) == pytest.approx([0, 203, 1000, 10000], rel=1e-3)
    assert pq_code(pq_light(np.linspace(0, 1, 50))) == pytest.approx(np.linspace(0, 1, 50), abs=1e-6)
    assert hlg_light(np.array([0.0, 0.5, 0.75, 1.0])) == pytest.approx([0, 1 / 12, 0.26496, 1], abs=1e-5)
    # The reference white of HLG is that of PQ: 203 cd/m2 on a display of 1,000.
    assert 1000 * hlg_light(np.array(0.75)) ** 1.2 == pytest.approx(203, rel=1e-3)
    rising = shoulder(np.linspace(0, 50, 10001))
    assert (np.diff(rising) >= 0).all() and rising[-1] <= 1
    assert np.array_equal(rising[:141], np.linspace(0, 50, 10001)[:141])  # up to 0.7 nothing changes


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("bits", [10, 12])
@pytest.mark.parametrize(("transfer", "white"), [(PQ, 0.5807), (HLG, 0.75)])
def test_the_reference_white_of_hdr_is_white(
    tmp_path: Path, transfer: int, white: float, bits: int, full: bool
) -> None:
    # shoulder(1) ** (1 / 2.4) = (0.7 + 0.3 (1 - 1 / e)) ** (1 / 2.4) = 0.9525, which is 243 of 255
    for name in ("a.mkv", "hevc.mkv") if bits == 10 else ("a.mkv",):
        assert middle(hdr(tmp_path / name, white, transfer, bits, full)) == pytest.approx([243] * 3, abs=1)
    assert middle(hdr(tmp_path / "b.mkv", 0.0, transfer, bits, full)) == [0, 0, 0]


@pytest.mark.parametrize("transfer", [PQ, HLG])
def test_grays_of_hdr_stay_gray_and_rise(transfer: int) -> None:
    ramp = np.arange(0, 65281, 8, dtype=np.uint16)[None, :, None].repeat(3, 2)
    shown = to_bt709(ramp, 65280, Colours(transfer, BT2020))[0].astype(int)
    assert (shown == shown[:, :1]).all() and (np.diff(shown[:, 0]) >= 0).all()
    assert shown[0, 0] == 0 and shown[-1, 0] == 255


@pytest.mark.parametrize("colour", [(200, 40, 30), (40, 180, 60), (30, 60, 190), (110, 108, 100)])
def test_sdr_put_into_hdr_comes_back(tmp_path: Path, colour: tuple[int, int, int]) -> None:
    """BT.2408: SDR's light, with its white at 203 cd/m2, in BT.2020's primaries; below the shoulder it's the same."""
    light = (np.array(colour) / 255) ** 2.4
    wide = np.linalg.inv(primaries_to_bt709(BT2020)) @ light
    assert middle(hdr(tmp_path / "a.mkv", pq_code(203 * wide), PQ, 12, False)) == pytest.approx(colour, abs=2)


def test_what_is_brighter_keeps_its_hue() -> None:
    """A bright orange of 1,000 cd/m2 in red is bent as a whole: the ratios of linear light stay."""
    wide = np.linalg.inv(primaries_to_bt709(BT2020)) @ (np.array([1000.0, 500.0, 250.0]))
    codes = np.rint(65280 * pq_code(wide)).astype(np.uint16).reshape(1, 1, 3)
    light = (to_bt709(codes, 65280, Colours(PQ, BT2020))[0, 0] / 255) ** 2.4
    assert light / light[0] == pytest.approx([1, 0.5, 0.25], abs=0.01) and light[0] > 0.99


def test_hlg_of_a_phone_may_have_hd_primaries_or_no_others(tmp_path: Path) -> None:
    assert middle(hdr(tmp_path / "a.mkv", 0.75, HLG, 10, False, "709", BT709)) == pytest.approx([243] * 3, abs=1)
    # Red of BT.709 alone: its luminance of 0.2126 dims it by the system gamma, 4.926 x 0.2126 ** 0.2 x E.
    red = middle(hdr(tmp_path / "b.mkv", (0.75, 0, 0), HLG, 10, False, "709", BT709))
    m = 1000 / 203 * (0.2126 * 0.26496) ** 0.2 * 0.26496
    assert red == pytest.approx([255 * float(shoulder(np.array(m))) ** (1 / 2.4), 0, 0], abs=3)


@pytest.mark.parametrize(
    ("number", "red"), [(BT2020, (1.6605, -0.1246, -0.0182)), (DISPLAY_P3, (1.2249, -0.0421, -0.0196))]
)
def test_primaries_become_those_of_bt709(number: int, red: tuple[float, float, float]) -> None:
    matrix = primaries_to_bt709(number)
    assert matrix[:, 0] == pytest.approx(red, abs=1e-4)  # BT.2087; CSS Color 4
    for each in (BT709, BT2020, DCI_P3, DISPLAY_P3):
        assert primaries_to_bt709(each).sum(1) == pytest.approx([1, 1, 1])


@pytest.mark.parametrize(("primaries", "matrix"), [(BT2020, "2020"), (DISPLAY_P3, "709")])
def test_wide_colours_of_sdr_are_converted(tmp_path: Path, primaries: int, matrix: str) -> None:
    light = np.linalg.inv(primaries_to_bt709(primaries)) @ (GREEN / 255) ** 2.4
    frame = planes("yuv444p10le", yuv((light ** (1 / 2.4)).tolist(), matrix, 10))
    tags = {"colorspace": BT2020 if matrix == "2020" else BT709, "color_trc": 14, "color_primaries": primaries}
    assert middle(write(tmp_path / "a.mkv", [frame], "ffv1", tags=tags)) == pytest.approx(GREEN, abs=2)


@pytest.mark.parametrize(("lines", "matrix"), [(480, "601"), (704, "601"), (720, "709"), (1080, "709")])
@pytest.mark.parametrize(
    ("codec", "form", "bits"), [("libx264", "yuv420p", 8), ("ffv1", "yuv444p", 8), ("ffv1", "yuv422p10le", 10)]
)
def test_untagged_yuv_is_taken_by_its_lines(
    tmp_path: Path, lines: int, matrix: str, codec: str, form: str, bits: int
) -> None:
    path = tmp_path / "a.mkv"
    write(path, [planes(form, yuv((GREEN / 255).tolist(), matrix, bits), lines, 32)], codec)
    assert middle(path) == pytest.approx(GREEN, abs=2)


def test_the_lines_that_count_are_those_before_a_turn(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", [planes("yuv420p", yuv((GREEN / 255).tolist(), "601"), 480, 720)])
    films.patch(path, b"tkhd", 44, struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30))
    assert first(path).shape[:2] == (720, 480) and middle(path) == pytest.approx(GREEN, abs=2)


@pytest.mark.parametrize(("codec", "name", "form", "bits"), [
    ("libx264", "a.mp4", "yuv420p", 8),
    ("prores_ks", "a.mov", "yuv422p10le", 10),  # its decoder forgets what the container says
    ("ffv1", "a.mkv", "yuv444p", 8),
])  # fmt: skip
@pytest.mark.parametrize(("tag", "matrix"), [(1, "709"), (6, "601"), (5, "601"), (9, "2020")])
def test_tags_are_respected(tmp_path: Path, codec: str, name: str, form: str, bits: int, tag: int, matrix: str) -> None:
    frame = planes(form, yuv((GREEN / 255).tolist(), matrix, bits))
    tags = {"colorspace": tag, "color_primaries": BT709, "color_trc": 1}
    assert middle(write(tmp_path / name, [frame], codec, tags=tags)) == pytest.approx(GREEN, abs=2)


@pytest.mark.parametrize(
    ("form", "stated", "full"), [("yuvj420p", 0, True), ("yuv420p", FULL, True), ("yuv420p", 0, False)]
)
def test_a_full_range_is_respected(tmp_path: Path, form: str, stated: int, full: bool) -> None:
    frame = planes(form, yuv((GREEN / 255).tolist(), "601", full=full))
    path = write(tmp_path / "a.mp4", [frame], tags={"color_range": stated} if stated else None)
    assert middle(path) == pytest.approx(GREEN, abs=2)


@pytest.mark.parametrize(("codec", "name", "form", "value", "want"), [
    ("ffv1", "a.mkv", "gray", 180, 180),
    ("ffv1", "a.mkv", "gray10le", 720, 180),
    ("ffv1", "a.mkv", "yuv420p10le", 940, 255),  # libswscale's fast way gives 253
])  # fmt: skip
def test_gray_and_deep_white(tmp_path: Path, codec: str, name: str, form: str, value: int, want: int) -> None:
    frame = planes(form, [value] + [512] * (2 if "yuv" in form else 0))
    assert middle(write(tmp_path / name, [frame], codec)) == [want] * 3


def test_gray_of_limited_range() -> None:
    frame = planes("gray", [16 + 219 * 0.6])
    frame.color_range = LIMITED
    assert Screen(Stated(1.0, 2, 2, 2)).show(frame)[5, 5].tolist() == pytest.approx([153] * 3, abs=1)


@pytest.mark.parametrize(("codec", "name", "form"), [
    ("ffv1", "a.mkv", "bgr0"),
    ("png", "a.mov", "rgb24"),
    ("huffyuv", "a.avi", "rgb24"),
    ("libx264rgb", "a.mp4", "rgb24"),
])  # fmt: skip
def test_rgb_is_shown_as_it_is(tmp_path: Path, codec: str, name: str, form: str) -> None:
    picture = np.broadcast_to(GREEN.astype(np.uint8), (64, 64, 3))
    options = {"qp": "0"} if codec == "libx264rgb" else {}
    assert middle(write(tmp_path / name, [films.rgb(picture, form)], codec, **options)) == GREEN.tolist()


@pytest.mark.parametrize("size", [(64, 96), (736, 96)])
def test_our_own_films_come_back(tmp_path: Path, size: tuple[int, int]) -> None:
    """They say that they are BT.601, whatever their height."""
    media.write_mp4(tmp_path / "a.mp4", np.broadcast_to(GREEN.astype(np.uint8), (2, *size, 3)).copy(), 8)
    assert middle(tmp_path / "a.mp4") == pytest.approx(GREEN, abs=2)


def test_colours_that_nobody_knows_are_a_cause(tmp_path: Path) -> None:
    frame = planes("yuv444p", yuv((GREEN / 255).tolist(), "709"))
    for tags, words in (({"colorspace": 14}, "number 14 of H.273"), ({"color_trc": 9}, "logarithmic transfer curve")):
        path = write(tmp_path / "a.mkv", [frame], "ffv1", tags=tags)
        found = examine(Entry("a", path, "a caption"), 8, "repeat")
        assert isinstance(found, Skipped) and found.cause == "unknown colours" and words in found.sentence
        assert found.sentence.startswith(str(path)) and found.sentence.endswith(".")


def test_dolby_vision_without_ordinary_colours_is_refused() -> None:
    frame = planes("yuv420p10le", [500, 500, 500])
    small = SimpleNamespace(side_data={"DOVI_METADATA": b"metadata"})
    screen = Screen(Stated(1.0, 2, 2, 2))
    screen._converter = cast(Any, SimpleNamespace(reformat=lambda *_, **__: small))
    with pytest.raises(ValueError, match="Dolby Vision of profile 5"):
        screen.show(frame)


def test_shown_pictures_are_freed_at_once(tmp_path: Path) -> None:
    """PyAV's frames, which may be large, don't wait for the garbage collector, nor do the converter's threads."""
    path = write(tmp_path / "a.mp4", films.numbered(9))
    gc.collect()
    gc.disable()
    try:
        first(path)
        left = [o for o in gc.get_objects() if isinstance(o, (av.VideoFrame, VideoReformatter))]
        assert [frame.width for frame in left if isinstance(frame, av.VideoFrame)] == [16]
        assert not any(isinstance(o, VideoReformatter) for o in left)
    finally:
        gc.enable()


def transparent() -> np.ndarray:
    """A hidden red, half a black, and an opaque blue, side by side."""
    picture = np.zeros((32, 96, 4), np.uint8)
    picture[:, :32], picture[:, 32:64], picture[:, 64:] = (200, 0, 0, 0), (0, 0, 0, 128), (0, 0, 200, 255)
    return picture


@pytest.mark.parametrize(("codec", "name", "form", "options"), [
    ("libvpx", "a.webm", "yuva420p", {"auto-alt-ref": "0", "b": "4M"}),
    ("libvpx-vp9", "a.webm", "yuva420p", {"b": "4M"}),
    ("libvpx-vp9", "a.mkv", "yuva420p", {"b": "4M"}),
    ("prores_ks", "a.mov", "yuva444p10le", {}),
    ("qtrle", "a.mov", "argb", {}),
    ("png", "a.mov", "rgba", {}),
    ("ffv1", "a.mkv", "yuva420p", {}),
    ("utvideo", "a.avi", "gbrap", {}),
])  # fmt: skip
def test_films_lie_on_white(tmp_path: Path, codec: str, name: str, form: str, options: dict[str, str]) -> None:
    path = write(tmp_path / name, [films.rgb(transparent(), form) for _ in range(5)], codec, **options)
    for picture in read_video(path, np.array([0, 4 / 24])):
        assert picture[16, 16].tolist() == [255, 255, 255]
        assert picture[16, 48].tolist() == pytest.approx([127] * 3, abs=2) and picture[
            16, 80
        ].tolist() == pytest.approx([0, 0, 200], abs=3)


# The rows (a, b), (c, d) of the display matrix that shows what an EXIF orientation of this number shows.
MATRICES = {
    1: (1, 0, 0, 1),
    2: (-1, 0, 0, 1),
    3: (-1, 0, 0, -1),
    4: (1, 0, 0, -1),
    5: (0, 1, 1, 0),
    6: (0, 1, -1, 0),
    7: (0, -1, -1, 0),
    8: (0, -1, 1, 0),
}


@pytest.mark.parametrize("number", list(MATRICES))
def test_display_matrices_turn_and_mirror(tmp_path: Path, number: int) -> None:
    quarters = np.zeros((32, 48, 3), np.uint8)
    quarters[:16, :24], quarters[:16, 24:], quarters[16:, :24] = (220, 30, 30), (30, 220, 30), (30, 30, 220)
    path = write(tmp_path / "a.mp4", [films.rgb(quarters, "yuv444p")], qp="0")
    a, b, c, d = (value << 16 for value in MATRICES[number])
    films.patch(path, b"tkhd", 44, struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30))
    buffer, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = number
    Image.fromarray(quarters).save(buffer, "PNG", exif=exif)
    want = np.asarray(ImageOps.exif_transpose(Image.open(buffer)))
    shown = first(path)
    assert shown.shape == want.shape and np.abs(shown.astype(int) - want).max() <= 3


def test_a_stretched_film_is_stretched_before_it_is_turned(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", films.numbered(2), tags=cast(Any, {"sample_aspect_ratio": Fraction(2)}))
    films.patch(path, b"tkhd", 44, struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30))
    assert first(path).shape[:2] == (96, 32)
