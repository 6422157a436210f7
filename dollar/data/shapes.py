"""The shapes world: short procedural clips whose captions state everything that can be checked in them.

A clip shows one object on a plain background. Its caption gives five attributes (size, colour, shape, motion,
background); position, speed, phase and shading come from the seed, so one caption has many valid clips.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

FRAMES, HEIGHT, WIDTH, FPS = 17, 64, 64, 8

SIZES = {"small": (10.0, 11.0), "large": (14.5, 15.5)}  # radius range in pixels
COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 180, 60),
    "blue": (50, 80, 230),
    "yellow": (235, 215, 50),
    "magenta": (215, 60, 200),
    "cyan": (50, 210, 220),
}
SHAPES = ("circle", "square", "triangle", "cross")
MOTIONS = ("moving left", "moving right", "moving up", "moving down", "circling around", "standing still")
BACKGROUNDS = {"black": (12, 12, 12), "gray": (128, 128, 128), "white": (243, 243, 243), "brown": (110, 70, 35)}

SPEED = (0.8, 1.2)  # pixels a frame, straight motions
ORBIT_RADIUS = (5.0, 6.5)  # pixels
ORBIT_SPEED = (0.20, 0.28)  # radians a frame, clockwise on the screen
ORBIT_PHASE = (0.0, np.pi / 2)  # radians from the right, where the first frame lies on the orbit
EXTENT = 1.2  # farthest point of any shape from its centre, in radii (the triangle's tip)
ARM = 0.4  # half the width of a cross's bars, in radii
HELD_OUT_FRACTION = 0.2


class Attributes(NamedTuple):
    """What a caption says; each field is the word (or words) that the caption uses."""

    size: str
    colour: str
    shape: str
    motion: str
    background: str


class Trajectory(NamedTuple):
    """Where the object is: `centres` [T, 2] in pixels (x, y); speed in pixels or radians a frame; phase in radians."""

    centres: np.ndarray
    speed: float
    phase: float


ALL_ATTRIBUTES = tuple(Attributes(*a) for a in itertools.product(SIZES, COLOURS, SHAPES, MOTIONS, BACKGROUNDS))


def caption(attributes: Attributes) -> str:
    """The clip's caption, ten words whatever the attributes."""
    size, colour, shape, motion, background = attributes
    return f"a {size} {colour} {shape} {motion} on a {background} background"


_BY_CAPTION = {caption(a): a for a in ALL_ATTRIBUTES}


def parse(text: str) -> Attributes:
    """The attributes that a caption states; raises ValueError for any other text."""
    try:
        return _BY_CAPTION[" ".join(text.lower().split())]
    except KeyError:
        raise ValueError(
            f"{text!r} is not a caption of the shapes world. Use, for example, "
            f"{caption(ALL_ATTRIBUTES[0])!r}: sizes {', '.join(SIZES)}; colours {', '.join(COLOURS)}; shapes "
            f"{', '.join(SHAPES)}; motions {', '.join(MOTIONS)}; backgrounds {', '.join(BACKGROUNDS)}."
        ) from None


def captions(split: str) -> list[str]:
    """Captions of a split: `train`, `held_out` (a fixed fifth of all combinations) or `all`, in a fixed order."""
    order = np.random.Generator(np.random.PCG64(20)).permutation(len(ALL_ATTRIBUTES))
    held_out = set(order[: int(len(order) * HELD_OUT_FRACTION)].tolist())
    keep = {
        "train": lambda i: i not in held_out,
        "held_out": lambda i: i in held_out,
        "all": lambda i: True,
    }
    if split not in keep:
        raise ValueError(f"unknown split {split!r}; the shapes world has {', '.join(keep)}")
    return [caption(a) for i, a in enumerate(ALL_ATTRIBUTES) if keep[split](i)]


def trajectory(motion: str, radius: float, rng: np.random.Generator) -> Trajectory:
    """Draw a path of FRAMES centres that keeps an object of this radius inside the picture."""
    time = np.arange(FRAMES)
    low, high = EXTENT * radius + 1, WIDTH - EXTENT * radius - 1
    if motion == "circling around":
        orbit, speed, phase = rng.uniform(*ORBIT_RADIUS), rng.uniform(*ORBIT_SPEED), rng.uniform(*ORBIT_PHASE)
        centre = rng.uniform(low + orbit, high - orbit, size=2)
        angle = phase + speed * time
        return Trajectory(centre + orbit * np.stack([np.cos(angle), np.sin(angle)], 1), speed, phase)
    directions = {
        "moving left": (-1, 0),
        "moving right": (1, 0),
        "moving up": (0, -1),
        "moving down": (0, 1),
        "standing still": (0, 0),
    }
    direction = np.array(directions[motion], dtype=float)
    speed = rng.uniform(*SPEED) if direction.any() else 0.0
    path = speed * time[:, None] * direction
    start = rng.uniform(low - path.min(0), high - path.max(0))
    return Trajectory(start + path, speed, 0.0)


def signed_distance(shape: str, x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    """Distance in pixels to the shape's edge, negative inside; x, y are offsets from its centre (y down)."""
    if shape == "circle":
        return np.hypot(x, y) - radius
    if shape == "square":
        return np.maximum(np.abs(x), np.abs(y)) - 0.88 * radius
    if shape == "triangle":
        inner = EXTENT / 2 * radius  # inscribed circle of an equilateral triangle whose tip points up
        return np.maximum(y, np.abs(x) * np.sqrt(3) / 2 - y / 2) - inner
    if shape == "cross":
        arm = ARM * radius
        return np.minimum(
            np.maximum(np.abs(x) - radius, np.abs(y) - arm), np.maximum(np.abs(x) - arm, np.abs(y) - radius)
        )
    raise ValueError(f"unknown shape {shape!r}; use one of {', '.join(SHAPES)}")


def render(attributes: Attributes, seed: int) -> np.ndarray:
    """The clip of these attributes and this seed: uint8 [T, H, W, 3]."""
    rng = np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, 0, ALL_ATTRIBUTES.index(attributes)]))
    radius = rng.uniform(*SIZES[attributes.size])
    path = trajectory(attributes.motion, radius, rng)
    y, x = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)
    # Shading: a slope of brightness across the picture and another across the object.
    slope, object_slope = rng.uniform(-1, 1, size=2), rng.uniform(-1, 1, size=2)
    background = np.array(BACKGROUNDS[attributes.background], dtype=np.float32)
    light = 9 * (slope[0] * (x / WIDTH - 0.5) + slope[1] * (y / HEIGHT - 0.5))
    picture = background + light[..., None]  # [H, W, 3]
    dx = x - path.centres[:, 0, None, None]  # [T, H, W]
    dy = y - path.centres[:, 1, None, None]
    shade = 1 + 0.10 * np.clip((object_slope[0] * dx + object_slope[1] * dy) / radius, -1, 1)
    colour = np.array(COLOURS[attributes.colour], dtype=np.float32) * rng.uniform(0.92, 1.0)
    alpha = np.clip(0.5 - signed_distance(attributes.shape, dx, dy, radius), 0, 1)[..., None]
    clip = alpha * (colour * shade[..., None]) + (1 - alpha) * picture
    return np.clip(np.rint(clip), 0, 255).astype(np.uint8)


class ShapesClips:
    """`size` clips of a split, each with its own caption and seed (captions come round in a fixed shuffled order)."""

    windowed = False

    def __init__(self, split: str = "train", size: int = 1024, seed: int = 0) -> None:
        if size < 1:
            raise ValueError(f"data.size is {size}; the shapes world makes any number of clips from 1 up")
        rng = np.random.Generator(np.random.PCG64([seed, 7]))
        known = captions(split)
        rounds = -(-size // len(known))
        order = np.concatenate([rng.permutation(len(known)) for _ in range(rounds)])[:size]
        self.captions: Sequence[str] = [known[i] for i in order]
        self.seeds = rng.integers(2**31, size=size).tolist()

    def __len__(self) -> int:
        return len(self.captions)

    def clip(self, index: int, u: float = 0.0) -> tuple[np.ndarray, str]:
        """The clip, uint8 [T, H, W, 3], and its caption; u is not used, since every clip is one window long."""
        return render(parse(self.captions[index]), self.seeds[index]), self.captions[index]
