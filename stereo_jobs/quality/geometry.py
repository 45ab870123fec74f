"""Whether the views lie where the label says: matcher against label, left against right, and vertical offset."""

from dataclasses import dataclass

import cv2
import numpy as np

from stereo_jobs.pixels import F32, Bools, Image
from stereo_jobs.quality.labelled_pair import Views
from stereo_jobs.quality.matcher import Match, agreement, match

FEWEST_MATCHES = 8
"""The smallest number of corners found in both views for which their median offset is measured."""


@dataclass(frozen=True)
class Geometry:
    """Points 1, 2, 5 and 6 of quality control, explained in docs/quality.md; NaN where there is nothing to measure."""

    epe: float
    bad_2: float
    d1: float
    density: float
    fit_a: float
    fit_b: float
    lr_consistency: float
    identity: float
    vertical_px: float
    control_bad_2: float
    raw_epe: float
    raw_bad_2: float


def measure_geometry(views: Views, small: Views, found: Match) -> Geometry:
    """Compare the label with what a matcher finds in the views.

    Args:
        views: the pair and its label, at the size at which its holes are looked at.
        small: the same at the size at which the views are compared.
        found: what the matcher finds in the left and right view of `small`, on both sides of zero.
    """
    label, visible, largest, least = small.disparity, small.visible, small.reach, float(small.disparity.min(initial=0))
    final = agreement(found, label, visible)
    control = agreement(match(small.left, small.warped, largest, least), label, visible)
    raw = None
    if small.raw_right is not None:
        raw = agreement(match(small.left, small.raw_right, largest, least), label, visible)
    return Geometry(
        **vars(final),
        lr_consistency=left_right_consistency(found, match_right(small.left, small.right, largest, least), visible),
        identity=parallax_ratio(found, label, visible),
        vertical_px=vertical_shift(views.left, views.right),
        control_bad_2=control.bad_2,
        raw_epe=np.nan if raw is None else raw.epe,
        raw_bad_2=np.nan if raw is None else raw.bad_2,
    )


def match_right(left: Image, right: Image, max_disparity: float, min_disparity: float | None = None) -> Match:
    """Match from the right view: its pixel x shows what stands at x + d in the left view.

    The matcher is given the mirrored pair, since it always matches from the left view.
    """
    flipped = match(
        np.ascontiguousarray(right[:, ::-1]), np.ascontiguousarray(left[:, ::-1]), max_disparity, min_disparity
    )
    return Match(flipped.disparity[:, ::-1], flipped.valid[:, ::-1])


def left_right_consistency(left: Match, right: Match, visible: Bools) -> float:
    """Share of the visible, matched left pixels x with |D_L(x) - D_R(x - D_L(x))| <= 1 pixel.

    A pixel whose counterpart has no disparity, or lies outside the frame, is not consistent.

    Returns:
        A share in [0, 1]; NaN without any visible, matched pixel.
    """
    rows, columns = np.nonzero(visible & left.valid)
    if not rows.size:
        return np.nan
    d = left.disparity[rows, columns]
    there = np.round(columns - d).astype(np.int64)
    inside = (there >= 0) & (there < visible.shape[1])
    there = np.clip(there, 0, visible.shape[1] - 1)
    agree = inside & right.valid[rows, there] & (np.abs(d - right.disparity[rows, there]) <= 1)
    return float(agree.mean())


def parallax_ratio(found: Match, label: F32, visible: Bools) -> float:
    """Median ratio of matched to labelled disparity of the nearest things: 1 is right, 0 is a copied view.

    Only visible, matched pixels count whose label exceeds both 2 pixels and half of the largest label.

    Returns:
        The ratio; NaN without any such pixel.
    """
    size = np.abs(label)
    over = visible & found.valid & (size > max(2.0, float(size.max(initial=0.0)) / 2))
    return float(np.median(found.disparity[over].astype(np.float64) / label[over])) if over.any() else np.nan


def vertical_shift(left: Image, right: Image) -> float:
    """Median |dy| of corners (Shi and Tomasi 1994) that are tracked into the right view (Lucas and Kanade 1981).

    It needs no label. Only corners count that are tracked back from the right view to within half a pixel.

    Returns:
        Pixels, 0 or more; NaN with fewer than `FEWEST_MATCHES` corners, or where a side is below 16 pixels.
    """
    grey = [cv2.cvtColor(view, cv2.COLOR_RGB2GRAY) for view in (left, right)]
    corners = cv2.goodFeaturesToTrack(grey[0], 500, 0.001, 4)
    if corners is None or min(grey[0].shape) < 16:
        return np.nan
    there, ok, _ = cv2.calcOpticalFlowPyrLK(grey[0], grey[1], corners, None, winSize=(15, 15), maxLevel=3)  # type: ignore[call-overload]
    back, ok_back, _ = cv2.calcOpticalFlowPyrLK(grey[1], grey[0], there, None, winSize=(15, 15), maxLevel=3)  # type: ignore[call-overload]
    sure = (ok[:, 0] > 0) & (ok_back[:, 0] > 0) & (np.abs(back - corners)[:, 0].max(-1) < 0.5)
    dy = np.abs(there - corners)[sure, 0, 1]
    return float(np.median(dy)) if dy.size >= FEWEST_MATCHES else np.nan
