"""Verifier of the shapes world: reads the five attributes back from a clip's pixels by ordinary image analysis.

A clip is read without its caption: `read` gives, for every attribute, the distance from what is seen to each class of
the world. The caption then only selects: an attribute's margin compares the distance to the requested class with
the distance to the nearest other one, and it is right when the requested class is nearest and near enough.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.ndimage import minimum_filter
from torch import Tensor

from dollar.data import shapes
from dollar.data.shapes import FRAMES, HEIGHT, WIDTH, Attributes

CLASSES: dict[str, tuple[str, ...]] = {
    "size": tuple(shapes.SIZES),
    "colour": tuple(shapes.COLOURS),
    "shape": shapes.SHAPES,
    "motion": shapes.MOTIONS,
    "background": tuple(shapes.BACKGROUNDS),
}
# How far from its class an attribute may be and still be right: radius in pixels, colour in levels (of 255, Euclidean;
# the closest two classes are 130 apart, backgrounds 111), shape in 1 - overlap, motion in pixels from the nearest path.
TOLERANCE = {"size": 1.0, "colour": 45.0, "shape": 0.15, "motion": 1.0, "background": 40.0}
STEADY_FRAMES = 0.8  # the least fraction of frames in which the shape must be the requested one
PRESENT_OVERLAP = 0.5  # the least overlap with some shape that makes a frame's foreground an object
PRESENCE_RAMP = (0.4, 0.8)  # overlaps between which the soft presence rises from 0 to 1
LEAST_CONTRAST = 60.0  # levels between object and background; the world's own least is about 80
FOREGROUND_RAMP = (0.25, 0.75)  # parts of the contrast between which foreground rises from 0 to 1
WINDOW = 20  # pixels from the object's centre to the side of the square in which shapes are compared

AREA = {
    "circle": np.pi,
    "square": 1.76**2,
    "triangle": 3**1.5 * (shapes.EXTENT / 2) ** 2,
    "cross": 8 * shapes.ARM - 4 * shapes.ARM**2,
}
"""Area of each shape of radius 1."""


class Motion(NamedTuple):
    """distances: [6] root mean square pixels to the nearest path of each motion; phase and speed as in Reading."""

    distances: np.ndarray
    phase: float
    speed: float


class Reading(NamedTuple):
    """What is seen in a clip, whatever its caption.

    distances: to each class of each attribute, in the units of TOLERANCE; overlap: [4, T] of the foreground with each
    shape in each frame; position: [2] mean centre (x, y) in pixels; phase: radians, nan unless circling; speed: pixels
    a frame, radians a frame when circling, 0 when standing still.
    """

    distances: dict[str, np.ndarray]
    overlap: np.ndarray
    position: np.ndarray
    phase: float
    speed: float


class Match(NamedTuple):
    """One clip against one caption: margins [5] in [0, 1] and right [5]."""

    margins: np.ndarray
    right: np.ndarray


class Matches(NamedTuple):
    """Clips against their captions; the columns are in the order of `shapes.Attributes`.

    margins: [B, 5] float in [0, 1], nan where pixels are not finite; right: [B, 5] bool; position: [B, 2] mean centre
    (x, y) in pixels; phase: [B] radians, nan unless circling; speed: [B] pixels a frame, radians a frame when circling.
    """

    margins: Tensor
    right: Tensor
    position: Tensor
    phase: Tensor
    speed: Tensor


class ShapesVerifier:
    """Pixel reward of the shapes world; neither learned nor differentiable."""

    sees_motion = True
    consistency = "motion"  # of its values, the one that every frame has a part in

    def score(self, videos: Tensor, prompts: list[str]) -> Tensor:
        """Mean of the five margins; videos [B, T, C, H, W] in [0, 1], prompts B captions. Returns [B] in [0, 1].

        A clip with pixels that are not finite gets nan, which is for the caller to leave out and count.
        """
        return self.match(videos, prompts).margins.mean(1)

    def scores(self, videos: Tensor, prompts: list[str]) -> dict[str, Tensor]:
        """Each attribute's margin [B] by its name; videos as in `score`."""
        return dict(zip(CLASSES, self.match(videos, prompts).margins.unbind(1), strict=True))

    def check(self, prompts: Iterable[str]) -> None:
        """Raise ValueError for the first prompt that is no caption of the shapes world."""
        for prompt in prompts:
            shapes.parse(prompt)

    def match(self, videos: Tensor, prompts: list[str]) -> Matches:
        """Margins and right or wrong per attribute; videos as in `score`. ValueError if a prompt is no caption."""
        expected = (FRAMES, 3, HEIGHT, WIDTH)
        if tuple(videos.shape[1:]) != expected or len(videos) != len(prompts):
            raise ValueError(
                f"got videos of shape {tuple(videos.shape)} and {len(prompts)} prompts; the shapes world needs "
                f"[B, {', '.join(map(str, expected))}] and B prompts. Decode at this size, one caption a clip."
            )
        captions = [shapes.parse(prompt) for prompt in prompts]
        finite = videos.isfinite()
        broken = ~finite.flatten(1).all(1)  # such clips are read with black in the place of what is no number
        pixels = 255 * videos.detach().float().where(finite, 0.0).clamp(0, 1).cpu().numpy()
        readings = [read(clip) for clip in pixels]
        matches = [compare(reading, caption) for reading, caption in zip(readings, captions, strict=True)]

        def gather(rows: list[Any], dtype: torch.dtype, *shape: int) -> Tensor:
            return torch.tensor(np.array(rows), dtype=dtype, device=videos.device).reshape(len(captions), *shape)

        margins = gather([match.margins for match in matches], torch.float32, 5)
        right = gather([match.right for match in matches], torch.bool, 5)
        return Matches(
            margins=margins.masked_fill(broken[:, None], float("nan")),
            right=right & ~broken[:, None],
            position=gather([reading.position for reading in readings], torch.float32, 2),
            phase=gather([reading.phase for reading in readings], torch.float32),
            speed=gather([reading.speed for reading in readings], torch.float32),
        )


def compare(reading: Reading, caption: Attributes) -> Match:
    """Compare what is seen in a clip with its caption's attributes."""
    best = reading.overlap.max(0)  # [T]
    presence = np.clip((best - PRESENCE_RAMP[0]) / (PRESENCE_RAMP[1] - PRESENCE_RAMP[0]), 0, 1).mean()
    frame_shape = np.where(best >= PRESENT_OVERLAP, reading.overlap.argmax(0), -1)  # -1: no object in this frame
    margins, right = np.zeros(5), np.zeros(5, dtype=bool)
    for i, attribute in enumerate(Attributes._fields):
        distances, index = reading.distances[attribute], CLASSES[attribute].index(caption[i])
        own, other = distances[index], np.delete(distances, index).min()
        margins[i] = other**2 / (own**2 + other**2 + 1e-9)
        right[i] = own < other and own <= TOLERANCE[attribute]
    # Nothing but the background can be right in a clip where no object is recognised.
    margins[:4] *= presence
    right[:4] &= np.mean(frame_shape >= 0) >= STEADY_FRAMES
    # The mean over frames would pass a shape that morphs, and a path fitted to centres an object that flickers.
    right[2] &= np.mean(frame_shape == shapes.SHAPES.index(caption.shape)) >= STEADY_FRAMES
    right[3] &= bool((frame_shape >= 0).all())
    return Match(margins, right)


def read(clip: np.ndarray) -> Reading:
    """Read a clip: float32 [T, 3, H, W] in levels 0..255."""
    foreground = find_foreground(clip)
    area = foreground.sum((1, 2))  # [T]
    centres = find_centres(foreground, area)
    typical_area = np.median(area)
    # At the clip's own scale and each frame's own place: growing, vanishing and second objects all cost overlap.
    overlap = shape_overlap(foreground, area, centres, typical_area)
    seen_shape = shapes.SHAPES[int(overlap.mean(1).argmax())]
    motion = read_motion(centres)
    distances = {
        "size": size_distance(np.sqrt(typical_area / AREA[seen_shape])),
        "colour": colour_distance(clip, foreground),
        "shape": 1 - overlap.mean(1),
        "motion": motion.distances,
        "background": background_distance(clip, foreground),
    }
    return Reading(distances, overlap, centres.mean(0), motion.phase, motion.speed)


_Y, _X = np.mgrid[:HEIGHT, :WIDTH]
_PLANES = np.stack([np.ones((HEIGHT, WIDTH)), _X / WIDTH - 0.5, _Y / HEIGHT - 0.5]).reshape(3, -1).astype(np.float32)
_BORDER = np.flatnonzero((_X == 0) | (_X == WIDTH - 1) | (_Y == 0) | (_Y == HEIGHT - 1))
_PLANE_FIT = np.linalg.pinv(_PLANES[:, _BORDER])  # [border, 3]


def find_foreground(clip: np.ndarray) -> np.ndarray:
    """How far each pixel is from its frame's background, in [0, 1] with 1 the object's own distance: [T, H, W]."""
    flat = clip.reshape(len(clip), 3, -1)
    # Objects never touch the picture's border, so a plane through it is the background with its slope of light.
    difference = flat - flat[:, :, _BORDER] @ _PLANE_FIT @ _PLANES
    away = np.sqrt(np.square(difference).sum(1))  # [T, H * W]
    # The 40th largest distance lies on any object (the smallest covers 180 pixels) and above single noisy pixels.
    contrast = max(float(np.median(np.partition(away, -40, axis=1)[:, -40])), LEAST_CONTRAST)
    low, high = FOREGROUND_RAMP
    return np.clip((away / contrast - low) / (high - low), 0, 1).reshape(-1, HEIGHT, WIDTH)


def find_centres(foreground: np.ndarray, area: np.ndarray) -> np.ndarray:
    """Centre of mass (x, y) of each frame's foreground in pixels, the picture's middle where there is none: [T, 2]."""
    x = foreground.sum(1) @ np.arange(WIDTH)
    y = foreground.sum(2) @ np.arange(HEIGHT)
    middle = np.array([(WIDTH - 1) / 2, (HEIGHT - 1) / 2])
    return np.where(area[:, None] > 1, np.stack([x, y], 1) / np.maximum(area, 1)[:, None], middle)


def shape_overlap(foreground: np.ndarray, area: np.ndarray, centres: np.ndarray, typical_area: float) -> np.ndarray:
    """Intersection over union, [4, T], of each frame's foreground [T, H, W] with each shape of the typical area."""
    corner = np.rint(centres).astype(int)
    offsets = np.arange(-WINDOW, WINDOW + 1)
    rows, columns = corner[:, 1, None] + offsets, corner[:, 0, None] + offsets  # [T, 2 * WINDOW + 1]
    padded = np.pad(foreground, ((0, 0), (WINDOW, WINDOW), (WINDOW, WINDOW)))
    frame = np.arange(len(foreground))[:, None, None]
    window = padded[frame, rows[:, :, None] + WINDOW, columns[:, None, :] + WINDOW]
    x = (columns - centres[:, :1])[:, None, :].astype(np.float32)
    y = (rows - centres[:, 1:])[:, :, None].astype(np.float32)
    overlap = np.empty((len(shapes.SHAPES), len(foreground)))
    for i, shape in enumerate(shapes.SHAPES):
        radius = max(float(np.sqrt(typical_area / AREA[shape])), 1.0)
        template = np.clip(0.5 - shapes.signed_distance(shape, x, y, radius), 0, 1)
        shared = np.minimum(template, window).sum((1, 2))
        # The frame's whole foreground counts, within the window or not.
        overlap[i] = shared / (area + max(typical_area, 1.0) - shared)
    return overlap


def size_distance(radius: float) -> np.ndarray:
    """Pixels from a radius to each size's range: [2]."""
    return np.array([max(low - radius, radius - high, 0.0) for low, high in shapes.SIZES.values()])


def colour_distance(clip: np.ndarray, foreground: np.ndarray) -> np.ndarray:
    """Root mean square distance, in levels, of the object's pixels to each colour in any of its shades: [6]."""
    core = minimum_filter(foreground, size=(1, 3, 3)) > 0.9  # edges are mixed with the background
    if not core.any():
        return np.full(len(shapes.COLOURS), 255.0)
    pixels = clip.transpose(0, 2, 3, 1)[core]  # [N, 3]
    colours = np.array(list(shapes.COLOURS.values()), dtype=np.float32)
    along, length = pixels @ colours.T, np.square(colours).sum(1)
    shade = np.clip(along / length, 0.92 * 0.90, 1.10)  # [N, 6], the nearest shade of each colour
    # |p - s c|^2 = |p|^2 - 2 s p.c + s^2 |c|^2
    square = np.square(pixels).sum(1, keepdims=True) - 2 * shade * along + shade**2 * length
    return np.sqrt(np.maximum(square.mean(0), 0))


def background_distance(clip: np.ndarray, foreground: np.ndarray) -> np.ndarray:
    """Root mean square distance, in levels, of the pixels off the object to each background: [4]."""
    flat = clip.reshape(len(clip), 3, -1)
    weight = 1 - foreground.reshape(len(clip), -1, 1)
    total = max(float(weight.sum()), 1.0)
    mean = (flat @ weight).sum((0, 2)) / total  # [3]
    square = (np.square(flat) @ weight).sum() / total
    # E|p - b|^2 = E|p|^2 - 2 b.E[p] + |b|^2
    backgrounds = np.array(list(shapes.BACKGROUNDS.values()), dtype=float)
    return np.sqrt(np.maximum(square - 2 * backgrounds @ mean + np.square(backgrounds).sum(1), 0))


_DIRECTIONS = {"moving left": -1, "moving right": 1, "moving up": -1j, "moving down": 1j}
_ORBIT_SPEEDS = np.linspace(*shapes.ORBIT_SPEED, 29)


def read_motion(centres: np.ndarray) -> Motion:
    """Compare the track of centres [T, 2] with the nearest path of each motion.

    As complex numbers every path is z(t) = c + a b(t), with b = t for a line, exp(i w t) for a circle and a = 0 for
    standing still. So a is one projection, moved to the nearest value that the world's speed or orbit radius admits.
    """
    time = np.arange(len(centres))
    track = centres[:, 0] + 1j * centres[:, 1]
    track = track - track.mean()
    distances, speeds = {"standing still": np.sqrt(np.square(np.abs(track)).mean())}, {"standing still": 0.0}

    line = (time - time.mean())[None]
    velocity = project(track, line)
    for motion, direction in _DIRECTIONS.items():
        speed = (velocity * np.conj(direction)).real  # [1]
        distances[motion] = residual(track, line, direction * np.clip(speed, *shapes.SPEED))[0]
        speeds[motion] = speed[0]

    circles = np.exp(1j * _ORBIT_SPEEDS[:, None] * time)
    circles = circles - circles.mean(1, keepdims=True)
    orbit = project(track, circles)
    off = residual(track, circles, np.exp(1j * np.angle(orbit)) * np.clip(np.abs(orbit), *shapes.ORBIT_RADIUS))
    best = off.argmin()
    distances["circling around"], speeds["circling around"] = off[best], _ORBIT_SPEEDS[best]

    seen = min(distances, key=distances.__getitem__)
    phase = float(np.angle(orbit[best])) if seen == "circling around" else float("nan")
    return Motion(np.array([distances[motion] for motion in shapes.MOTIONS]), phase, float(speeds[seen]))


def project(track: np.ndarray, bases: np.ndarray) -> np.ndarray:
    """The a [K] that brings a times each of the bases [K, T] nearest to the track [T]; complex, means removed."""
    return bases.conj() @ track / np.square(np.abs(bases)).sum(1)


def residual(track: np.ndarray, bases: np.ndarray, a: np.ndarray) -> np.ndarray:
    """Root mean square distance, [K], of the track [T] from a [K] times the bases [K, T]."""
    return np.sqrt(np.square(np.abs(track - a[:, None] * bases)).mean(1))
