"""A decoded picture of a film as it is shown: BT.709's colours, on white, of square pixels, turned.

What a file doesn't say about its YUV is taken as browsers do: BT.709 for stored pictures of 720 lines and more, BT.601
below, limited range (mpv starts BT.709 at 1,280 columns or 577 lines, ffplay at 577 lines; ours agrees with them on
ordinary sizes); BT.2020 for HDR. Gray is of full range unless it is tagged as limited. Alpha is taken as straight.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter
from PIL import Image

from dollar.data.colour import BT709, BT2020, HLG, PQ, UNSPECIFIED, Colours, to_bt709
from dollar.data.listed import NotShown

HD_LINES = 720
WHITE = 255  # what lies behind transparent pictures: they are mostly made to be seen on a page
LIMITED, FULL = 1, 2  # ranges
MATRICES = {1: 1, 4: 4, 5: 5, 6: 5, 7: 7, 9: 9}  # H.273's numbers of matrices and libswscale's for them
BT601 = 5
UNSAID = (0, UNSPECIFIED, 3)  # 0 and 3 are reserved; as a matrix 0 is RGB, which no YUV has
# Pictures whose numbers are neither a monitor's nor a known HDR's: logarithmic (9, 10) and cinema's X'Y'Z' (17).
UNKNOWN_TRANSFERS = {9: "logarithmic", 10: "logarithmic", 17: "digital cinema's"}
STRETCHED = 16.0  # a stated width of a pixel, or height, beyond which the header is not believed
# From more than 8 bits to 8 the fast way is 2 of 255 too dark; to 16 bits the exact one is wrong.
FAST = Interpolation.BILINEAR
EXACT = Interpolation.BILINEAR | Interpolation.FULL_CHR_H_INT


class Layout(NamedTuple):
    """What a pixel format's name means: its bits, and whether it has colours, YUV, a full range, alpha."""

    bits: int
    gray: bool
    rgb: bool
    full: bool
    alpha: bool


class Stated(NamedTuple):
    """What a container says of its pictures: a pixel's width over its height, and numbers of H.273."""

    pixel: float
    matrix: int
    transfer: int
    primaries: int


def stated(stream: av.VideoStream) -> Stated:
    """What the container says, read before decoding, for decoders put their own (ProRes': nothing) in its place."""
    pixel, context = stream.sample_aspect_ratio, stream.codec_context
    believed = pixel is not None and 1 / STRETCHED < pixel < STRETCHED
    width = float(pixel) if pixel and believed else 1.0
    return Stated(width, context.colorspace, context.color_trc, context.color_primaries)


class Screen:
    """Shows the pictures of one film: decoded ones as uint8 [H, W, 3]; NotShown for colours that aren't known.

    Where pixels aren't square the shorter side of them is stretched, so that nothing is lost. A film is turned as its
    first picture is.
    """

    def __init__(self, stated: Stated) -> None:
        self.stated = stated
        self._converter = VideoReformatter()  # one for all pictures: it has threads and tables
        self._turn: np.ndarray | None = None
        self._begun = False

    def show(self, frame: av.VideoFrame) -> np.ndarray:
        """A picture as it is shown."""
        if not self._begun:
            self._turn, self._begun = self._besides(frame), True
        picture, pixel = self._rgb(frame), self.stated.pixel
        height, width = picture.shape[:2]
        square = max(height, round(height / pixel)), max(width, round(width * pixel))
        if square != (height, width):
            picture = np.asarray(Image.fromarray(picture).resize(square[::-1], Image.Resampling.BICUBIC))
        return np.ascontiguousarray(turned(picture, self._turn))

    def _besides(self, frame: av.VideoFrame) -> np.ndarray | None:
        """The display matrix, int32 [9]; NotShown for Dolby Vision without other colours.

        Looked up in a small copy, since a PyAV frame whose side data was asked for is freed by the garbage collector
        only: large ones would pile up.
        """
        matrix = None if _layout(frame.format.name).rgb else BT601  # libswscale refuses those that it doesn't know
        small = self._converter.reformat(frame, width=16, height=16, format="rgb24", src_colorspace=matrix)
        side: Any = small.side_data
        if side.get("DOVI_METADATA") and _first_known(frame.color_trc, self.stated.transfer) == UNSPECIFIED:
            raise NotShown("unknown colours", "is Dolby Vision of profile 5, without ordinary colours; convert it")
        turn = side.get("DISPLAYMATRIX")
        return None if turn is None else np.frombuffer(bytes(turn), np.int32)

    def _rgb(self, frame: av.VideoFrame) -> np.ndarray:
        """A picture in BT.709's colours, uint8 [H, W, 3]."""
        layout = _layout(frame.format.name)
        stated_matrix = _first_known(frame.colorspace, self.stated.matrix)
        colours = _colours(frame, stated_matrix, self.stated)
        matrix = None if layout.rgb or layout.gray else _yuv_matrix(stated_matrix, frame.height, colours)
        if colours.ordinary:
            picture = self._converted(frame, "rgb24", matrix, EXACT if layout.bits > 8 else FAST)
        else:
            codes = self._converted(frame, "rgb48le", matrix, FAST)
            picture = to_bt709(codes, _white(layout, frame.color_range), colours)
        if layout.gray and not layout.full and frame.color_range == LIMITED:  # libswscale takes all gray as full
            picture = _expanded()[picture]
        if layout.alpha:
            picture = on_white(picture, self._converted(frame, "rgba", matrix, FAST)[..., 3])
        return picture

    def _converted(self, frame: av.VideoFrame, form: str, matrix: int | None, how: Interpolation) -> np.ndarray:
        made = self._converter.reformat(frame, format=form, src_colorspace=matrix, interpolation=how)
        return made.to_ndarray()


def turned(picture: np.ndarray, matrix: np.ndarray | None) -> np.ndarray:
    """The picture [H, W, 3] as a display matrix shows it: the nearest of the eight turns and flips by quarters.

    matrix: int32 [9], rows of [a b u; c d v; x y w]; a pixel of column p and row q is shown at (a p + c q, b p + d q).
    """
    if matrix is None:
        return picture
    a, b, c, d = (int(matrix[i]) for i in (0, 1, 3, 4))
    if abs(b) + abs(c) > abs(a) + abs(d):
        picture, a, d = picture.transpose(1, 0, 2), c, b
    return picture[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]


def on_white(picture: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3] over white by straight alpha, uint8 [H, W]."""
    part = alpha[..., None].astype(np.uint16)
    return ((picture * part + WHITE * (255 - part) + 127) // 255).astype(np.uint8)


def _first_known(*numbers: int) -> int:
    """The first of these numbers of H.273 that says something."""
    return next((number for number in numbers if number not in UNSAID), UNSPECIFIED)


def _colours(frame: av.VideoFrame, matrix: int, stated: Stated) -> Colours:
    """What the file says of its colours, or what goes without saying."""
    transfer = _first_known(frame.color_trc, stated.transfer)
    primaries = _first_known(frame.color_primaries, stated.primaries)
    if transfer in UNKNOWN_TRANSFERS:
        raise NotShown("unknown colours", f"has a {UNKNOWN_TRANSFERS[transfer]} transfer curve; convert it to BT.709")
    if primaries == UNSPECIFIED:
        primaries = BT2020 if transfer in (PQ, HLG) or matrix == BT2020 else BT709
    return Colours(transfer, primaries)


def _yuv_matrix(stated: int, lines: int, colours: Colours) -> int:
    """libswscale's number of the matrix that makes RGB of YUV."""
    if stated == UNSPECIFIED:
        if colours.transfer in (PQ, HLG) or colours.primaries == BT2020:
            return BT2020
        return BT709 if lines >= HD_LINES else BT601
    if stated not in MATRICES:
        raise NotShown("unknown colours", f"has a YUV matrix that isn't known (number {stated} of H.273); convert it")
    return MATRICES[stated]


def _white(layout: Layout, stated: int) -> int:
    """What libswscale's 16 bits hold for white: it shifts what YUV holds, and fills the range of RGB."""
    if layout.rgb:
        return 65535
    if layout.full or stated == FULL:
        return ((1 << layout.bits) - 1) << (16 - layout.bits)
    return 65280


@cache
def _layout(name: str) -> Layout:
    """What a pixel format's name means."""
    form = av.VideoFormat(name)
    alpha = sum(c.is_alpha for c in form.components)
    palette = form.has_palette
    return Layout(
        bits=max(c.bits for c in form.components),
        gray=len(form.components) - alpha == 1 and not palette,
        rgb=form.is_rgb or palette,
        full=name.startswith("yuvj"),
        alpha=bool(alpha or palette),
    )


@cache
def _expanded() -> np.ndarray:
    """uint8 [256]: limited range made full."""
    return np.clip(np.rint((np.arange(256) - 16) * 255 / 219), 0, 255).astype(np.uint8)
