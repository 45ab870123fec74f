"""Brings a map of another size to the size of its photo: numpy only, since each value must be known or unknown."""

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from stereo_jobs.pipeline.resizing import Size
from stereo_jobs.pixels import F32
from stereo_jobs.stereo.bands import bands

Value = TypeVar("Value", bound=np.generic)


def same_shape(one: Size, other: Size) -> bool:
    """Return whether one size is the other scaled, where the sides of the smaller one were rounded to whole pixels."""
    small, large = sorted((one, other))
    ratios = [((s - 1) / n, (s + 1) / n) for s, n in zip(small, large, strict=True)]
    return max(low for low, _ in ratios) < min(high for _, high in ratios)


def nearest(values: NDArray[Value], size: Size) -> NDArray[Value]:
    """Resize H,W values to a size: each pixel takes the value of the sample that its centre lies in."""
    rows, columns = ((2 * np.arange(n) + 1) * old // (2 * n) for n, old in zip(size, values.shape, strict=True))
    found: NDArray[Value] = values[rows[:, None], columns]
    return found


def linear(values: F32, size: Size) -> F32:
    """Resize an H,W map to a size, bilinearly between the centres of samples; beyond the outer ones it is constant.

    A pixel is NaN if one of the samples that it is made of is: four, or two or one where it lies on their lines.
    """
    (top, bottom, down), (left, right, across) = (_between(n, old) for n, old in zip(size, values.shape, strict=True))
    made = np.empty(size, np.float32)
    for rows in bands(*size):
        upper, lower = values[top[rows]], values[bottom[rows]]
        lines = upper + (lower - upper) * down[rows, None]
        made[rows] = lines[:, left] + (lines[:, right] - lines[:, left]) * across
    return made


def resized_map(values: F32, size: Size, rule: str) -> F32:
    """Resize an H,W map by the rule `nearest` or `linear`; NaN means unknown. Its values stay in their unit."""
    return linear(values, size) if rule == "linear" else nearest(values, size)


def _between(size: int, old: int) -> tuple[NDArray[np.intp], NDArray[np.intp], F32]:
    """Return for each new pixel along a side the samples before and after its centre, and how far it lies past one.

    The sample after it is the one before, where it lies on that.
    """
    doubled = (2 * np.arange(size) + 1) * old - size  # position times 2 * size, in whole numbers
    doubled = doubled.clip(0, 2 * size * (old - 1))
    before, past = np.divmod(doubled, 2 * size)
    return before, before + (past > 0), np.asarray(past / (2 * size), np.float32)
