"""A stereo matcher, and how its disparity agrees with the label of a pair."""

from dataclasses import dataclass
from math import ceil, floor

import cv2
import numpy as np
from numpy.typing import NDArray

from stereo_jobs.pixels import F32, Bools, Image

SPARE_PX = 8
"""Pixels by which disparities may exceed the expected range on both sides and still be found."""
MOST_FITTED = 2**13
"""The largest number of pixels to which a line is fitted; of more, pixels at equal distances are taken."""


@dataclass(frozen=True)
class Match:
    """What the matcher finds in a pair.

    Attributes:
        disparity: H,W float32, disparity of the view that is matched from, in pixels.
        valid: H,W bool, True where a disparity was found.
    """

    disparity: F32
    valid: Bools


@dataclass(frozen=True)
class Agreement:
    """How a label and the matcher's disparity agree over the visible, matched pixels; NaN where there are none.

    Attributes:
        epe: mean absolute error, pixels.
        bad_2: share with an error over 2 pixels.
        d1: share with an error over 3 pixels and over 5 % of the label (KITTI 2015).
        density: share of the visible pixels that were matched.
        fit_a: slope a of the robust line `matched = a * label + b`; negative where the eyes are swapped.
        fit_b: offset b of the line, pixels.
    """

    epe: float
    bad_2: float
    d1: float
    density: float
    fit_a: float
    fit_b: float


def match(left: Image, right: Image, max_disparity: float, min_disparity: float | None = None) -> Match:
    """Semi-global matching (Hirschmueller 2008, OpenCV's StereoSGBM along three paths) of two views.

    Args:
        left: H,W,3 uint8, the view to match from.
        right: H,W,3 uint8.
        max_disparity: largest expected disparity in pixels. `SPARE_PX` more are searched.
        min_disparity: smallest expected disparity in pixels, at most `max_disparity`; `SPARE_PX` less are searched.
            None: the range on the other side of zero is searched, too, so that swapped eyes are found as negative
            disparities.

    Raises:
        ValueError: the sizes of the views differ, `max_disparity` is not finite, or negative without `min_disparity`,
            or `min_disparity` is larger or not finite.
    """
    if left.shape != right.shape:
        raise ValueError(f"the views must have one size, got {left.shape} and {right.shape}")
    if not np.isfinite(max_disparity) or (max_disparity < 0 and min_disparity is None):
        raise ValueError(f"max_disparity must be finite and not negative, got {max_disparity}")
    least = -max_disparity if min_disparity is None else min_disparity
    if not -np.inf < least <= max_disparity:
        raise ValueError(f"min_disparity must be finite and at most {max_disparity}, got {min_disparity}")
    lowest = 16 * floor((least - SPARE_PX) / 16)
    count = 16 * ceil((max_disparity + SPARE_PX + 1 - lowest) / 16)
    sgbm = cv2.StereoSGBM.create(
        minDisparity=lowest,
        numDisparities=count,
        blockSize=5,
        P1=8 * 3 * 25,
        P2=32 * 3 * 25,
        disp12MaxDiff=1,
        uniquenessRatio=10,
        speckleWindowSize=100,
        speckleRange=2,
        mode=cv2.STEREO_SGBM_MODE_SGBM_3WAY,
    )
    # OpenCV leaves out columns whose counterparts, at any of the disparities, lie beyond the frame.
    before, after = max(0, lowest + count), max(0, -lowest)
    padded = [cv2.copyMakeBorder(view, 0, 0, before, after, cv2.BORDER_REPLICATE) for view in (left, right)]
    fixed_point = sgbm.compute(*padded)[:, before : before + left.shape[1]]
    return Match((fixed_point / np.float32(16)).astype(np.float32), fixed_point >= lowest * 16)


def agreement(found: Match, label: F32, visible: Bools) -> Agreement:
    """Compare the matcher's disparity with a label.

    Args:
        found: the match.
        label: H,W float32 pixels; not finite where it is unknown.
        visible: H,W bool, where the other view shows the pixel.
    """
    over = visible & found.valid & np.isfinite(label)
    wanted, got = label[over].astype(np.float64), found.disparity[over].astype(np.float64)
    density = over.sum() / visible.sum() if visible.any() else np.nan
    if wanted.size == 0:
        return Agreement(np.nan, np.nan, np.nan, float(density), np.nan, np.nan)
    error = np.abs(got - wanted)
    step = ceil(wanted.size / MOST_FITTED) | 1  # odd: rows are often a multiple of 2 long
    a, b = robust_line(wanted[::step], got[::step])
    return Agreement(
        epe=float(error.mean()),
        bad_2=float((error > 2).mean()),
        d1=float(((error > 3) & (error > 0.05 * np.abs(wanted))).mean()),
        density=float(density),
        fit_a=a,
        fit_b=b,
    )


def robust_line(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[float, float]:
    """Fit y ~ a x + b by iteratively reweighted least squares with bisquare weights (Beaton and Tukey 1974).

    Returns:
        Slope a and offset b after ten rounds. Where x is constant, no slope can be found: a is 1, and b is the median
        difference.
    """
    a, b = 1.0, float(np.median(y - x))
    if np.ptp(x) < 1e-6:
        return a, b
    weight = np.ones_like(x)
    for _ in range(10):
        total = weight.sum()
        mx, my = (weight * x).sum() / total, (weight * y).sum() / total
        variance = (weight * (x - mx) ** 2).sum()
        if variance <= 1e-9 * total:
            break
        a = float((weight * (x - mx) * (y - my)).sum() / variance)
        b = float(my - a * mx)
        residual = np.abs(y - a * x - b)
        reach = 4.685 * max(1.4826 * float(np.median(residual)), 0.05)
        weight = np.clip(1 - (residual / reach) ** 2, 0, None) ** 2
        if not weight.any():
            break
    return a, b
