"""What is painted on the walls of level `hard`: structure that goes on behind an object, as no single row can tell.

A row of the picture shows where a slanted beam, a ring, a turned chessboard or a line of letters ends at an object, but
not how it goes on. The rows above and below, and the other side of the object, do.
"""

import numpy as np
from numpy.typing import NDArray

from stereo_jobs.toyscapes.scenes import Structure

F32 = NDArray[np.float32]

INKS = ((0.30, 0.18, 0.10), (0.14, 0.20, 0.44), (0.12, 0.34, 0.22), (0.96, 0.95, 0.92))
"""Colours of the structures: all of them stand out from every wall."""

_STROKES: dict[str, tuple[tuple[float, float, float, float], ...]] = {
    "E": ((-3, 0, 1, 5), (0, -4, 4, 1), (0, 0, 3, 1), (0, 4, 4, 1)),
    "F": ((-3, 0, 1, 5), (0, -4, 4, 1), (0, 0, 3, 1)),
    "H": ((-3, 0, 1, 5), (3, 0, 1, 5), (0, 0, 3, 1)),
    "L": ((-3, 0, 1, 5), (0, 4, 4, 1)),
    "T": ((0, 0, 1, 5), (0, -4, 4, 1)),
    "U": ((-3, 0, 1, 5), (3, 0, 1, 5), (0, 4, 4, 1)),
}
"""Letters as boxes: centre, half the width and half the height of each stroke, in units of `coverage`."""


def coverage(structure: Structure, x: F32, y: F32, u: float, texture: int) -> F32:
    """Share of each pixel that a structure covers, H,W in [0, 1]; edges are anti-aliased by their distance.

    Args:
        structure: which structure.
        x: left-view coordinates in pixels, H,W.
        y: rows in pixels, H,1.
        u: unit of length in pixels.
        texture: seed of its angle, place and letters.
    """
    rng = np.random.default_rng([texture, 1])
    angle, phase = rng.uniform(0.45, 1.1) * rng.choice([-1, 1]), rng.uniform(0, 64) * u
    across, along = x * np.sin(angle) - y * np.cos(angle) + phase, x * np.cos(angle) + y * np.sin(angle)
    if structure == "beams":
        return line(across, 26 * u, 4.5 * u)
    if structure == "arcs":
        centre = rng.uniform(0.2, 0.8) * 128 * u
        return line(np.hypot(x - centre, y - rng.uniform(20, 100) * u), 16 * u, 3.5 * u)
    if structure == "checks":
        side = 15 * u
        one, other = (np.clip(0.5 + side * (np.abs(np.mod(t / side, 2) - 1) - 0.5), 0, 1) for t in (across, along))
        return np.asarray(one + other - 2 * one * other, np.float32)
    return _letters(x + phase, y, u, int(rng.integers(len(_STROKES))))


def _letters(x: F32, y: F32, u: float, first: int) -> F32:
    """Lines of one text, each moved a little against the line above: a letter stands beside its copies."""
    wide, high = 13 * u, 15 * u
    row = np.floor(y / high)
    x = x - 5 * u * row
    column = np.floor(x / wide).astype(np.int32)
    dx, dy = ((np.mod(t, side) - side / 2).astype(np.float32) for t, side in ((x, wide), (y, high)))
    distance = np.full(x.shape, np.inf, np.float32)
    for i, strokes in enumerate(_STROKES.values()):
        here = (column * 5 + first) % 6 == i
        letter = np.min([box(dx - a * u, dy - b * u, c * u, d * u) for a, b, c, d in strokes], axis=0)
        distance = np.where(here, letter, distance)
    return np.asarray(np.clip(0.5 - distance, 0, 1), np.float32)


# --- Parts of structures, walls and figures ---


def box(dx: F32, dy: F32, half_wide: float, half_high: float) -> F32:
    """Signed distance to a box; not exact outside its corners."""
    return np.asarray(np.maximum(np.abs(dx) - half_wide, np.abs(dy) - half_high), np.float32)


def line(x: F32, period: float, half: float, footprint: F32 | float = 1.0) -> F32:
    """Coverage of each pixel, in [0, 1], by lines of width 2 * half at all multiples of the period.

    Args:
        x: coordinates across the lines.
        period: distance of two lines.
        half: half the width of a line.
        footprint: width of a pixel in the units of x.
    """
    distance = period / 2 - np.abs(np.mod(x, period) - period / 2)
    return np.asarray(np.clip(0.5 + (half - distance) / footprint, 0, 1), np.float32)
