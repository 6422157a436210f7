"""Still pictures and animations: which is which, depths, transparency, colour profiles, moments."""

from __future__ import annotations

import io
import struct
import sys
import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from dollar import media
from dollar.data import pictures
from dollar.data.colour import DISPLAY_P3, primaries_to_bt709
from dollar.data.decoding import measure, read_still, read_video
from dollar.data.listed import Entry, Skipped
from dollar.data.probing import examine

ANIMATIONS: list[tuple[str, dict[str, Any]]] = [
    ("a.gif", {}),
    ("a.webp", {"lossless": True}),
    ("a.png", {}),
    ("a.avif", {"quality": 100}),
]


def found(path: Path, stills: str = "repeat", fps: float = 8) -> Any:
    return examine(Entry("a", path, "a caption"), fps, stills)


def grays(count: int, start: int = 10) -> list[Image.Image]:
    return [Image.new("RGB", (24, 16), (start + 10 * k,) * 3) for k in range(count)]


def animate(path: Path, images: list[Image.Image], duration: int | list[int], **options: Any) -> Path:
    images[0].save(path, save_all=True, append_images=images[1:], duration=duration, **options)
    return path


def numbers(path: Path, times: list[float]) -> list[int]:
    return [round((float(p[8, 8].mean()) - 10) / 10) for p in read_video(path, np.array(times))]


def halves(mode: str, left: Any, right: Any) -> Image.Image:
    image = Image.new(mode, (16, 16), left)
    image.paste(right, (8, 0, 16, 16))
    return image


def shown(path: Path) -> tuple[list[int], list[int]]:
    """The colours of a still's left and right."""
    picture = read_still(path)
    look = found(path)
    assert look.still and look.frames == 1 and picture.shape == (look.height, look.width, 3)
    return picture[8, 3].tolist(), picture[8, -4].tolist()


@pytest.mark.parametrize(("name", "options"), ANIMATIONS)
def test_animations_are_films_of_their_own_moments(tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    path = animate(tmp_path / name, grays(10), 120, **options)
    look = found(path, "skip")  # it is no still
    assert (look.still, look.frames, look.height, look.width) == (
        False,
        10,
        16,
        24,
    )  # of 1.08 s, and half an interval of grace
    assert numbers(path, [0.12 * k for k in range(10)]) == list(range(10))
    path = animate(path, grays(6), [100, 50, 50, 300, 100, 200], **options)
    assert measure(path).extent == pytest.approx((0.6, 0.12))
    assert numbers(path, [0.0, 0.1, 0.15, 0.2, 0.34, 0.36, 0.5, 0.6]) == [0, 1, 2, 3, 3, 4, 4, 5]
    assert measure(animate(path, grays(6), 0, **options)).extent == pytest.approx((0.5, 0.1))  # as browsers do
    animate(path, grays(1), 100, **options)
    assert found(path).still and found(path, "skip").cause == "still image"


def test_what_a_file_is_is_told_by_its_content(tmp_path: Path) -> None:
    animate(tmp_path / "a.gif", grays(10), 120).rename(tmp_path / "a.mp4")
    assert found(tmp_path / "a.mp4").frames == 10
    grays(1)[0].save(tmp_path / "b.png")
    (tmp_path / "b.png").rename(tmp_path / "b.mp4")
    assert found(tmp_path / "b.mp4").still
    (tmp_path / "c.png").write_bytes(b"no picture" * 100)
    assert found(tmp_path / "c.png").cause == "corrupt" and found(tmp_path / "c.png", "skip").cause == "still image"


def test_the_picture_for_those_who_show_no_animations_is_left_out(tmp_path: Path) -> None:
    path = animate(tmp_path / "a.png", grays(4), 120, default_image=True)
    assert found(path).frames == 3 and numbers(path, [0, 0.12, 0.24]) == [1, 2, 3]


@pytest.mark.parametrize("fps", [8, 24])
def test_our_own_gif_comes_back(tmp_path: Path, fps: int) -> None:
    media.write_gif(tmp_path / "a.gif", np.stack([np.asarray(image) for image in grays(20)]), fps)
    assert found(tmp_path / "a.gif", fps=fps).frames == 20
    assert numbers(tmp_path / "a.gif", [k / fps for k in range(20)]) == list(range(20))


@pytest.mark.parametrize(("name", "options"), [
    ("a.gif", {"disposal": 2}),
    ("a.webp", {"lossless": True, "exact": True}),
    ("a.png", {"disposal": 1}),
    ("a.avif", {"quality": 100}),
])  # fmt: skip
def test_animations_lie_on_white(tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    images = []
    for k in range(5):
        images.append(Image.new("RGBA", (24, 16), (200, 0, 0, 0)))
        images[-1].paste((0, 0, 200, 255), (4 * k, 0, 4 * k + 4, 16))
    for k, picture in enumerate(read_video(animate(tmp_path / name, images, 120, **options), 0.12 * np.arange(5))):
        assert picture[8, 4 * k + 2].tolist() == pytest.approx([0, 0, 200], abs=2)
        assert picture[8, (4 * k + 12) % 24].tolist() == [255, 255, 255]


@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.avif", "a.tif"])
def test_transparent_stills_lie_on_white(tmp_path: Path, name: str) -> None:
    """The hidden colour isn't seen; half of black is gray."""
    options = {"lossless": True, "exact": True} if name == "a.webp" else {"quality": 100} if name == "a.avif" else {}
    halves("RGBA", (200, 0, 0, 0), (0, 0, 0, 128)).save(tmp_path / name, **options)
    left, right = shown(tmp_path / name)
    assert left == [255] * 3 and right == pytest.approx([127] * 3, abs=1)


@pytest.mark.parametrize(("mode", "left", "right", "clear", "want"), [
    ("LA", (50, 0), (100, 255), None, 100),
    ("L", 50, 100, 50, 100),
    ("RGB", (200, 0, 0), (100, 100, 100), (200, 0, 0), 100),
    ("P", 1, 2, 1, 100),
    ("P", 1, 2, b"\xff\x00\xff", 100),
])  # fmt: skip
def test_every_way_of_transparency(tmp_path: Path, mode: str, left: Any, right: Any, clear: Any, want: int) -> None:
    image = halves(mode, left, right)
    if mode == "P":
        image.putpalette([0, 0, 0, 200, 0, 0, 100, 100, 100])
    image.save(tmp_path / "a.png", **({} if clear is None else {"transparency": clear}))
    assert shown(tmp_path / "a.png") == ([255] * 3, [want] * 3)


def test_premultiplied_colours_are_divided() -> None:
    straight = Image.new("RGBA", (4, 4), (200, 100, 0, 128))
    for mode, want in (("RGBa", [227, 177, 127]), ("RGBA", [227, 177, 127])):
        assert pictures.rgb(straight.convert(mode))[0, 0].tolist() == pytest.approx(want, abs=2)
    assert pictures.rgb(Image.new("LA", (4, 4), (100, 128)).convert("La"))[0, 0].tolist() == pytest.approx(
        [177] * 3, abs=2
    )


def png(colour: int, values: np.ndarray, *more: tuple[bytes, bytes], bits: int = 16) -> bytes:
    """A PNG of 16 bits a channel, or of 4: values uint16 [H, W, C]; more: chunks before the picture's."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    packed = values.astype(">u2") if bits == 16 else (values[:, ::2] << 4 | values[:, 1::2]).astype(np.uint8)
    rows = b"".join(b"\0" + row.tobytes() for row in packed)
    head = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], bits, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + b"".join(chunk(*m) for m in more)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(("colour", "channels"), [(0, [1]), (2, [1, 1, 1]), (4, [1, 0.5]), (6, [1, 1, 1, 0.5])])
def test_sixteen_bits_are_scaled(tmp_path: Path, colour: int, channels: list[float]) -> None:
    gray = 100 / 255
    values = np.rint(65535 * np.array([gray if part == 1 else part for part in channels])).astype(np.uint16)
    (tmp_path / "a.png").write_bytes(png(colour, np.broadcast_to(values, (16, 16, len(channels)))))
    want = 100 if len(channels) in (1, 3) else 100 / 2 + 255 / 2
    assert shown(tmp_path / "a.png")[0] == pytest.approx([want] * 3, abs=1)


@pytest.mark.parametrize(
    ("bits", "colour", "clear", "opaque", "want"),
    [(16, 0, [1000], [40000], 156), (16, 2, [1000, 2000, 3000], [40000] * 3, 156), (4, 0, [1], [14], 238)],
)
def test_a_transparent_colour_counts_in_any_depth(
    tmp_path: Path, bits: int, colour: int, clear: list[int], opaque: list[int], want: int
) -> None:
    values = np.array([clear] * 8 + [opaque] * 8, np.uint16)[None].repeat(16, 0)
    chunk = b"tRNS", np.array(clear, ">u2").tobytes()
    (tmp_path / "a.png").write_bytes(png(colour, values, chunk, bits=bits))
    assert shown(tmp_path / "a.png") == ([255] * 3, [want] * 3)


def test_the_gamma_of_a_png_counts_unless_it_says_srgb(tmp_path: Path) -> None:
    """Linear light of a half is 186 of 255 in a gamma of 2.2."""
    half, linear = np.full((16, 16, 3), 32896, np.uint16), (b"gAMA", struct.pack(">I", 100000))
    (tmp_path / "a.png").write_bytes(png(2, half, linear))
    (tmp_path / "b.png").write_bytes(png(2, half, linear, (b"sRGB", b"\0")))
    (tmp_path / "c.png").write_bytes(png(2, half, (b"gAMA", struct.pack(">I", 45455))))
    assert [shown(tmp_path / name)[0][0] for name in ("a.png", "b.png", "c.png")] == [186, 128, 128]


@pytest.mark.parametrize(("name", "image", "want"), [
    ("a.tif", Image.fromarray(np.full((16, 16), 25700, np.uint16)), (100, 100, 100)),
    ("a.tif", Image.fromarray(np.full((16, 16), 0.4, np.float32)), (102, 102, 102)),
    ("a.png", Image.new("1", (16, 16), 1), (255, 255, 255)),
    ("a.tif", Image.new("CMYK", (16, 16), (0, 255, 255, 0)), (255, 0, 0)),
    ("a.jpg", Image.new("CMYK", (16, 16), (0, 255, 255, 0)), (255, 0, 0)),  # stored inverted, as Adobe does
    ("a.tif", Image.new("YCbCr", (16, 16), (76, 85, 255)), (254, 0, 0)),
    ("a.tif", Image.new("LAB", (16, 16), (136, 208, 195)), (250, 3, 11)),
    ("a.bmp", Image.new("RGB", (16, 16), (200, 100, 50)), (200, 100, 50)),
    ("a.tga", Image.new("RGB", (16, 16), (200, 100, 50)), (200, 100, 50)),
    ("a.ppm", Image.new("RGB", (16, 16), (200, 100, 50)), (200, 100, 50)),
    ("a.jp2", Image.new("RGB", (16, 16), (200, 100, 50)), (200, 100, 50)),
])  # fmt: skip
def test_every_depth_and_colour_model(tmp_path: Path, name: str, image: Image.Image, want: tuple[int, ...]) -> None:
    image.save(tmp_path / name, **({"quality": 100} if name == "a.jpg" else {}))
    assert shown(tmp_path / name)[0] == pytest.approx(want, abs=1)


def display_p3() -> bytes:
    """The colour profile of phones: Display P3's primaries (adapted to D50), sRGB's curve."""

    def fixed(*numbers: float) -> bytes:
        return b"".join(struct.pack(">i", round(number * 65536)) for number in numbers)

    name = "Display P3".encode("utf-16be")
    curve = b"para\0\0\0\0\0\3\0\0" + fixed(2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
    tags = {
        b"desc": b"mluc\0\0\0\0" + struct.pack(">II", 1, 12) + b"enUS" + struct.pack(">II", len(name), 28) + name,
        b"wtpt": b"XYZ \0\0\0\0" + fixed(0.9642, 1, 0.8249),
        b"rXYZ": b"XYZ \0\0\0\0" + fixed(0.51512, 0.24120, -0.00105),
        b"gXYZ": b"XYZ \0\0\0\0" + fixed(0.29198, 0.69225, 0.04189),
        b"bXYZ": b"XYZ \0\0\0\0" + fixed(0.15710, 0.06657, 0.78407),
        **dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve),
    }
    table, body, start = struct.pack(">I", len(tags)), b"", 132 + 12 * len(tags)
    for tag, data in tags.items():
        table += tag + struct.pack(">II", start + len(body), len(data))
        body += data + b"\0" * (-len(data) % 4)
    head = struct.pack(">I", start + len(body)) + b"\0" * 4 + struct.pack(">I", 0x04300000) + b"mntrRGB XYZ "
    head += b"\0" * 12 + b"acsp" + b"\0" * 28 + fixed(0.9642, 1, 0.8249)
    return head.ljust(128, b"\0") + table + body


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.avif", "b.png", "c.png"])
def test_colour_profiles_are_converted(tmp_path: Path, name: str) -> None:
    stored = np.array([200, 100, 50]) / 255
    light = primaries_to_bt709(DISPLAY_P3) @ np.where(
        stored > 0.04045, ((stored + 0.055) / 1.055) ** 2.4, stored / 12.92
    )
    image = Image.new("RGB", (16, 16), (200, 100, 50))
    image = {"b.png": image.quantize(4), "c.png": image.convert("RGBA")}.get(name, image)
    image.save(tmp_path / name, icc_profile=display_p3(), **({} if name.endswith("png") else {"quality": 100}))
    want = 255 * (1.055 * light ** (1 / 2.4) - 0.055)  # (215, 93, 31)
    assert shown(tmp_path / name)[0] == pytest.approx(want, abs=3)


def test_a_profile_that_does_not_fit_is_left_aside(tmp_path: Path) -> None:
    Image.new("L", (16, 16), 100).save(tmp_path / "a.png", icc_profile=display_p3())
    Image.new("RGB", (16, 16), (100, 100, 100)).save(tmp_path / "b.png", icc_profile=b"no profile")
    assert shown(tmp_path / "a.png")[0] == shown(tmp_path / "b.png")[0] == [100] * 3


def test_the_first_of_several_pictures_is_the_still(tmp_path: Path) -> None:
    """A phone's JPEG with a second picture in it, and pages of a TIFF."""
    for name, form in (("a.jpg", "MPO"), ("a.tif", "TIFF")):
        first, second = (Image.new("RGB", (16, 16), colour) for colour in ((200, 0, 0), (0, 200, 0)))
        first.save(tmp_path / name, form, save_all=True, append_images=[second])
        assert shown(tmp_path / name)[0] == pytest.approx([200, 0, 0], abs=2)


def skips() -> list[tuple[str, bytes, str, str]]:
    def saved(image: Image.Image, form: str, **options: Any) -> bytes:
        image.save(buffer := io.BytesIO(), form, **options)
        return buffer.getvalue()

    avif = saved(Image.new("RGB", (16, 16), (100, 100, 100)), "AVIF")
    place = avif.index(b"colrnclx") + 10
    return [
        ("a.heic", struct.pack(">I", 24) + b"ftypheic\0\0\0\0mif1heic" + b"\0" * 400, "HEIC picture", "pillow-heif"),
        ("a.avif", avif[:place] + b"\0\x10" + avif[place + 2 :], "HDR still", "convert it to SDR"),
        ("a.png", png(2, np.zeros((4, 4, 3), np.uint16), (b"cICP", bytes([9, 16, 0, 1]))), "HDR still", "PQ or HLG"),
        ("a.tif", saved(Image.fromarray(np.full((16, 16), 200, np.float32)), "TIFF"), "unknown range", "0 to 1"),
        ("b.tif", saved(Image.fromarray(np.full((16, 16), 70000, np.int32)), "TIFF"), "unknown range", "32 bits"),
        ("a.jpg", saved(Image.effect_noise((64, 64), 50), "JPEG")[:-300], "corrupt", "runcated"),
    ]


@pytest.mark.parametrize(("name", "data", "cause", "words"), skips(), ids=[row[0] for row in skips()])
def test_what_cannot_be_shown_right_is_a_cause(tmp_path: Path, name: str, data: bytes, cause: str, words: str) -> None:
    (tmp_path / name).write_bytes(data)
    got = found(tmp_path / name)
    assert isinstance(got, Skipped) and got.cause == cause and words in got.sentence
    assert got.sentence.startswith(str(tmp_path / name)) and got.sentence.endswith(".")


def test_heic_is_read_where_pillow_heif_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in registers itself with Pillow as the real one does."""

    def register() -> None:
        Image.register_open("HEIF", lambda *_: PngImageFile(io.BytesIO(whole)), lambda head: head[4:12] == b"ftypheic")

    grays(1)[0].save(tmp_path / "a.png")
    whole = (tmp_path / "a.png").read_bytes()
    monkeypatch.setitem(sys.modules, "pillow_heif", cast(Any, SimpleNamespace(register_heif_opener=register)))
    monkeypatch.setattr(pictures, "_readable", pictures._readable.__wrapped__)
    monkeypatch.setattr(Image, "OPEN", dict(Image.OPEN))
    monkeypatch.setattr(Image, "ID", list(Image.ID))
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic" + b"\0" * 400)
    assert shown(tmp_path / "a.heic")[0] == [10, 10, 10]


def test_a_picture_that_is_too_large_is_a_cause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grays(1)[0].save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert (
        found(tmp_path / "a.png").cause == "too large" and "more than 200 pixels" in found(tmp_path / "a.png").sentence
    )
