"""Do the views lie where the label says: a matcher against the label, left against right, and along columns."""

from dataclasses import dataclass

import cv2
import numpy as np

from stereo_jobs.pixels import Image
from stereo_jobs.quality.labelled_pair import F32, Bools, Views
from stereo_jobs.quality.matcher import Match, agreement, match

FEWEST_MATCHES = 8
"""Corners that must be found in both views before their median height means anything."""


@dataclass(frozen=True)
class Geometry:
    """Points 1, 2, 5 and 6 of quality control; NaN where there is nothing to measure. See docs/quality.md."""

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


def measure_geometry(views: Views, found: Match) -> Geometry:
    """Compare the label with what a matcher finds in the views (`found`, of left and right)."""
    label, visible, reach = views.disparity, views.visible, views.reach
    final = agreement(found, label, visible)
    control = agreement(match(views.left, views.warped, reach), label, visible)
    raw = None
    if views.raw_right is not None:
        raw = agreement(match(views.left, views.raw_right, reach), label, visible)
    return Geometry(
        **vars(final),
        lr_consistency=left_right_consistency(found, match_right(views.left, views.right, reach), visible),
        identity=parallax_ratio(found, label, visible),
        vertical_px=vertical_shift(views.left, views.right),
        control_bad_2=control.bad_2,
        raw_epe=np.nan if raw is None else raw.epe,
        raw_bad_2=np.nan if raw is None else raw.bad_2,
    )


def match_right(left: Image, right: Image, reach: float) -> Match:
    """Disparity of the right view: its pixel x shows what stands at x + d in the left one. From the flipped pair."""
    flipped = match(np.ascontiguousarray(right[:, ::-1]), np.ascontiguousarray(left[:, ::-1]), reach)
    return Match(flipped.disparity[:, ::-1], flipped.valid[:, ::-1])


def left_right_consistency(left: Match, right: Match, visible: Bools) -> float:
    """Share of |D_L(x) - D_R(x - D_L(x))| <= 1 over the visible pixels matched from the left.

    A pixel whose counterpart has no disparity, or lies outside the frame, is not consistent. NaN without any match.
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
    """Identity guard: median of matched over labelled disparity among the largest ones; 1 is right, 0 is no stereo.

    Over visible, matched pixels whose label exceeds both 2 pixels and half of the largest; NaN without any.
    """
    size = np.abs(label)
    over = visible & found.valid & (size > max(2.0, float(size.max(initial=0.0)) / 2))
    return float(np.median(found.disparity[over].astype(np.float64) / label[over])) if over.any() else np.nan


def vertical_shift(left: Image, right: Image) -> float:
    """Median |dy| in pixels of corners (Shi and Tomasi 1994) followed into the right view (Lucas and Kanade 1981).

    Needs no label. Corners count that are found again from there to half a pixel; NaN with fewer than eight.
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
