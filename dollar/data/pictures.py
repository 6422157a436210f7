"""Still pictures and animations as browsers show them: sRGB, on white, turned as their EXIF tag says.

What a file is is told by its content, not by its ending. A GIF, WebP, PNG or AVIF of several pictures is a film, each
picture shown for as long as it says, and for 0.1 s where it says 0.01 s or less; one of a single picture is a still, as
is the first picture of a TIFF, of a phone's multi-picture JPEG, or of an icon.
Numbers of more than 8 bits are scaled by their bits, those of floating point are taken as 0 to 1. A colour profile is
converted to sRGB; one that doesn't fit its picture is left aside.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import suppress
from functools import cache, lru_cache
from typing import Any

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from dollar.data.films import Extent
from dollar.data.frames import WHITE
from dollar.data.listed import NotShown

FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM", "HEIF")
ANIMATED = {"GIF", "WEBP", "PNG", "AVIF"}
SHORTEST, INSTEAD = 10, 100  # ms: browsers show a picture that says no more than the first for the second
HEIC = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
HDR = {16, 18}  # PQ and HLG, of which Pillow gives the numbers as they are
HEAD = 1 << 16  # bytes in which a file says what it is
GAMMA, SAME_GAMMA = 2.2, 0.05  # what a PNG's gamma is taken against, and how near to it counts as the same
PNG_DEPTH = 24  # the byte of a PNG that says how many bits its numbers have
BITS_PER_SAMPLE, WHITE_IS_ZERO = 258, 262  # TIFF's tags


def open_picture(file: str | io.BytesIO, suffix: str = "") -> Image.Image | None:
    """The opened picture or animation; None for what is none. NotShown for one that can't be read here.

    suffix: the ending of its name, which counts for TGA alone, for that begins with no mark of its own.
    """
    try:
        image = Image.open(file, formats=[*_readable(), *(["TGA"] if suffix.lower() == ".tga" else [])])
    except UnidentifiedImageError:
        if (head := _head(file))[4:8] == b"ftyp" and head[8:12] in HEIC:
            advice = "install pillow-heif (pip install pillow-heif) or convert it to JPEG or PNG"
            raise NotShown("HEIC picture", f"is a HEIC picture, which Pillow can't read; {advice}") from None
        return None
    except Image.DecompressionBombError:
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        raise NotShown("too large", f"has more than {most:,} pixels; make it smaller") from None
    finally:
        if isinstance(file, io.BytesIO):
            file.seek(0)
    if image.format in ("AVIF", "PNG") and _transfer(_head(file)) in HDR:
        image.close()
        raise NotShown(
            "HDR still", "is an HDR picture (PQ or HLG), which Pillow reads as if it were none; convert it to SDR"
        )
    if image.format == "PNG" and image.mode in ("L", "RGB") and "transparency" in image.info:
        image.info["transparency"] = _of_depth(image.info["transparency"], _head(file)[PNG_DEPTH])
    return image


def is_animated(image: Image.Image) -> bool:
    """Whether it is a film rather than a still."""
    return image.format in ANIMATED and len(_numbers(image)) > 1


def rgb(image: Image.Image) -> np.ndarray:
    """The picture that is at hand of an opened file, or one of an animation: uint8 [H, W, 3]."""
    image.load()
    picture = ImageOps.exif_transpose(image)
    alpha = None
    if picture.mode.startswith(("I", "F")):
        if (clear := picture.info.get("transparency")) is not None:
            alpha = Image.fromarray(np.where(np.asarray(picture) == clear, 0, 255).astype(np.uint8))
        picture = _of_eight_bits(picture, image)
    elif picture.mode in ("La", "RGBa", "LA", "RGBA", "PA", "P") or "transparency" in picture.info:
        # A transparency of P, L, RGB is a colour of its own; Pillow makes alpha of it.
        straight = (picture.convert("LA") if picture.mode == "La" else picture).convert("RGBA")
        alpha, picture = straight.getchannel("A"), straight.convert("RGB")
    picture = _to_srgb(picture, image.info)
    if alpha is not None and alpha.getextrema() != (255, 255):
        picture = Image.composite(picture, Image.new("RGB", picture.size, (WHITE,) * 3), alpha)
    return np.asarray(picture)


def animation(image: Image.Image) -> Iterator[tuple[float, Image.Image]]:
    """(seconds from the first picture, picture) of an animation, once through."""
    now = 0
    for number in _numbers(image):
        image.seek(number)
        image.load()
        yield now / 1000, image.copy()
        now += _shown_for(image)


def extent(image: Image.Image) -> Extent:
    """When an animation's last picture is shown, and how long the others are on average."""
    durations = []
    for number in _numbers(image):
        image.seek(number)
        image.load()
        durations.append(_shown_for(image))
    last = sum(durations[:-1]) / 1000
    return Extent(last, last / max(1, len(durations) - 1))


def _shown_for(image: Image.Image) -> int:
    """Milliseconds."""
    stated = round(image.info.get("duration") or 0)
    return stated if stated > SHORTEST else INSTEAD


def _numbers(image: Image.Image) -> range:
    """The numbers of the pictures that are shown: a PNG's first may stand for those who can't show animations."""
    return range(bool(image.info.get("default_image")), getattr(image, "n_frames", 1))


def _of_eight_bits(picture: Image.Image, opened: Image.Image) -> Image.Image:
    """A gray picture of more than 8 bits as one of 8."""
    values = np.asarray(picture).astype(np.float64)
    tags = getattr(opened, "tag_v2", {})
    if picture.mode == "F":
        if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
            raise NotShown("unknown range", "has values outside of 0 to 1, of which nobody can tell what is white")
        values = values * 255
    else:
        bits = tags.get(BITS_PER_SAMPLE, (16,))[0]
        if bits > 16:
            raise NotShown("unknown range", f"has whole numbers of {bits} bits, of which nobody can tell what is white")
        values = values * (255 / (2**bits - 1))
    if tags.get(WHITE_IS_ZERO) == 0:
        values = 255 - values
    return Image.fromarray(np.rint(values).astype(np.uint8))


def _of_depth(colour: Any, bits: int) -> Any:
    """A PNG's transparent colour, given in the file's bits, in the 8 bits of Pillow's picture: the upper ones of 16."""
    if isinstance(colour, tuple):
        return tuple(_of_depth(part, bits) for part in colour)
    return colour >> bits - 8 if bits > 8 else colour * 255 // (2**bits - 1)


def _to_srgb(picture: Image.Image, info: dict[Any, Any]) -> Image.Image:
    """RGB of a picture of any mode without alpha: by its colour profile, or else by a PNG's gamma."""
    if picture.mode in ("1", "YCbCr", "HSV", "RGBX"):
        picture = picture.convert("L" if picture.mode == "1" else "RGB")
    profile = info.get("icc_profile")
    transform = _transform(profile, picture.mode) if profile or picture.mode == "LAB" else None
    if transform is not None:
        return ImageCms.applyTransform(picture, transform) or picture
    gamma = info.get("gamma") or 0
    if gamma and not profile and "srgb" not in info and abs(gamma * GAMMA - 1) > SAME_GAMMA:
        table = [round(255 * (value / 255) ** (1 / (gamma * GAMMA))) for value in range(256)]
        picture = picture.convert("RGB").point(table * 3)
    return picture.convert("RGB")


@lru_cache(64)
def _transform(profile: bytes | None, mode: str) -> ImageCms.ImageCmsTransform | None:
    """From a colour profile (of LAB: none) to sRGB; None where it is sRGB already, damaged, or of another mode."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile) if profile else ImageCms.createProfile("LAB"))
        if "sRGB" in (source.profile.profile_description or ""):
            return None
        return ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None


def _head(file: str | io.BytesIO) -> bytes:
    if isinstance(file, io.BytesIO):
        return bytes(file.getbuffer()[:HEAD])
    with open(file, "rb") as stream:
        return stream.read(HEAD)


def _transfer(head: bytes) -> int:
    """The number of H.273 that an AVIF's nclx box or a PNG's cICP chunk names; 0 where there is none."""
    if head.startswith(b"\x89PNG"):
        at = head.partition(b"IDAT")[0].find(b"cICP")
        return head[at + 5] if at > 0 else 0
    at = head.find(b"colrnclx")
    return int.from_bytes(head[at + 10 : at + 12], "big") if at > 0 else 0


@cache
def _readable() -> list[str]:
    """Those of our formats that Pillow can read here; HEIC is one of them where pillow-heif is installed."""
    with suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]
