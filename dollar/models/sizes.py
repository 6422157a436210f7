"""Which clips an autoencoder and its patches can make."""

from __future__ import annotations


def check_sizes(frames: int, height: int, width: int, step: int, cell: int) -> None:
    """Raise ValueError, naming the nearest that fit, unless frames = step k + 1 and cell divides both sides."""
    if frames < 1 or (frames - 1) % step:
        nearest = max((2 * (frames - 1) + step - 1) // (2 * step), 0) * step + 1
        raise ValueError(f"clips of {frames} frames don't fit this VAE: use {step}k + 1, for example {nearest}")
    if height < 1 or width < 1 or height % cell or width % cell:
        sides = [max(round(side / cell), 1) * cell for side in (height, width)]
        raise ValueError(
            f"clips of {height}x{width} pixels don't fit this VAE and its patches: use multiples of {cell}, for "
            f"example {sides[0]}x{sides[1]}"
        )
