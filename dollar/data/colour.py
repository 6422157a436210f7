"""Colours of films as a monitor of BT.709 shows them: HDR (PQ, HLG) is tone-mapped, wide primaries are converted.

HDR is read as light of the display: PQ by its table of cd/m2 (SMPTE ST 2084), HLG by its inverse curve and the system
gamma of 1.2 of a display of 1,000 cd/m2 (ITU-R BT.2100, table 5). It is divided by 203 cd/m2, the HDR reference white
that stands for 100 % of SDR (ITU-R BT.2408, table 1), and its primaries become those of BT.709; negative parts, colours
beyond BT.709, are cut to 0. The largest of a pixel's channels, m, is then bent by

    shoulder(m) = m                                      up to k = 0.7
                  k + (1 - k) (1 - exp(-(m - k) / (1 - k)))   beyond

(the exponential shoulder of film, of slope 1 at the knee), and the others shrink by the same factor, so that hues stay.
Values of a display are y ** (1 / 2.4) (ITU-R BT.1886). Below 0.7 of the reference white HDR thus gives exactly the SDR
that BT.2408 derives it from; the reference white gives 243 of 255, and highlights share what is above.

Wide primaries in SDR (BT.2020, Display P3, DCI P3) are converted in linear light, and cut to BT.709's range as colour
management does by relative colorimetry. Primaries of BT.601 (and older) differ by little, are often wrong, and stay.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np

REFERENCE_WHITE, HLG_PEAK, HLG_GAMMA = 203.0, 1000.0, 1.2  # cd/m2; BT.2408, BT.2100
KNEE = 0.7  # of the reference white
GAMMA = 2.4  # BT.1886
DARKEST = np.float32(1e-9)
LEVELS = 1 << 16
ROWS = 64  # rows converted at a time, which stay in the processor's cache

# Numbers of ITU-T H.273, as ffmpeg has them.
BT709, UNSPECIFIED, PQ, HLG, LINEAR = 1, 2, 16, 18, 8
BT2020, DCI_P3, DISPLAY_P3 = 9, 11, 12
# The x, y of red, green, blue and white.
CHROMATICITIES = {
    BT709: ((0.640, 0.330), (0.300, 0.600), (0.150, 0.060), (0.3127, 0.3290)),
    BT2020: ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046), (0.3127, 0.3290)),
    DCI_P3: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060), (0.3140, 0.3510)),
    DISPLAY_P3: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060), (0.3127, 0.3290)),
}


class Colours(NamedTuple):
    """How a picture's numbers are meant, of those that BT.709's aren't: numbers of H.273."""

    transfer: int
    primaries: int

    @property
    def ordinary(self) -> bool:
        """Whether a monitor of BT.709 shows the numbers as they are."""
        return self.transfer not in (PQ, HLG, LINEAR) and self.primaries not in (BT2020, DCI_P3, DISPLAY_P3)


def to_bt709(codes: np.ndarray, white: int, colours: Colours) -> np.ndarray:
    """The uint8 [H, W, 3] that a monitor of BT.709 shows of uint16 codes [H, W, 3] of these colours; `white` is 1.0."""
    light = _light_of_codes(white, colours.transfer)
    matrix = primaries_to_bt709(colours.primaries).T.astype(np.float32)
    luma = luminances(colours.primaries).astype(np.float32)
    shown = np.empty(codes.shape, np.uint8)
    for top in range(0, len(codes), ROWS):
        part = light[codes[top : top + ROWS]]
        if colours.transfer == HLG:  # the system gamma acts on luminance, so that hues stay
            part *= (HLG_PEAK / REFERENCE_WHITE) * (part @ luma)[..., None] ** (HLG_GAMMA - 1)
        part = np.maximum(part @ matrix, 0)
        if colours.transfer in (PQ, HLG):
            most = np.maximum(np.maximum(part[..., 0], part[..., 1]), part[..., 2]) + DARKEST
            part *= (shoulder(most) / most)[..., None]
        # The root spreads the dark values, of which the eye sees the steps, over the table.
        shown[top : top + ROWS] = _values_of_roots()[
            (np.sqrt(np.minimum(part, 1)) * (LEVELS - 1) + 0.5).astype(np.uint16)
        ]
    return shown


def pq_light(code: np.ndarray) -> np.ndarray:
    """Light in cd/m2 of PQ codes in [0, 1] (ST 2084's EOTF)."""
    m1, m2, c1, c2, c3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128
    root = np.clip(code, 0, 1) ** (1 / m2)
    return 10000 * (np.maximum(root - c1, 0) / (c2 - c3 * root)) ** (1 / m1)


def hlg_light(code: np.ndarray) -> np.ndarray:
    """Light of the scene, 1 at its peak, of HLG codes in [0, 1] (BT.2100's inverse OETF)."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    return np.where(code <= 0.5, code**2 / 3, (np.exp((code - c) / a) + b) / 12)


def shoulder(light: np.ndarray) -> np.ndarray:
    """The light of a display whose peak is 1 for light of HDR, both over the reference white."""
    beyond = np.maximum(light - KNEE, 0) / (1 - KNEE)
    return np.minimum(light, KNEE) + (1 - KNEE) * (1 - np.exp(-beyond))


@cache
def primaries_to_bt709(primaries: int) -> np.ndarray:
    """[3, 3]: linear light of these primaries to that of BT.709; white stays white, also another than D65."""
    matrix = np.linalg.inv(_xyz(BT709)) @ _xyz(primaries)
    return matrix / matrix.sum(1, keepdims=True)


def luminances(primaries: int) -> np.ndarray:
    """[3]: what red, green and blue add to the luminance."""
    return _xyz(primaries)[1]


@cache
def _xyz(primaries: int) -> np.ndarray:
    """[3, 3]: linear light of these primaries to XYZ; others than the known ones are taken for BT.709's."""
    red, green, blue, white = (
        np.array([x / y, 1, (1 - x - y) / y]) for x, y in CHROMATICITIES.get(primaries, CHROMATICITIES[BT709])
    )
    columns = np.stack([red, green, blue], 1)
    return columns * np.linalg.solve(columns, white)


@cache
def _light_of_codes(white: int, transfer: int) -> np.ndarray:
    """float32 [65536]: linear light of each code; over the reference white, but HLG's of the scene, over its peak."""
    code = np.arange(LEVELS) / white
    if transfer == PQ:
        light = pq_light(code) / REFERENCE_WHITE
    elif transfer == HLG:
        light = hlg_light(code)
    else:
        light = code if transfer == LINEAR else code**GAMMA
    return light.astype(np.float32)


@cache
def _values_of_roots() -> np.ndarray:
    """uint8 [65536]: what a display is given for light whose square root is k / 65535."""
    return np.rint(255 * (np.arange(LEVELS) / (LEVELS - 1)) ** (2 / GAMMA)).astype(np.uint8)
