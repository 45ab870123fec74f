"""Whether the views look alike where they show the same things, and the holes like their surroundings."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from skimage.metrics import structural_similarity

from stereo_jobs.pixels import F32, Bools, Image
from stereo_jobs.quality.ghosts import ghost
from stereo_jobs.quality.labelled_pair import Views, sample
from stereo_jobs.quality.lpips import SMALLEST_SIDE, lpips_model
from stereo_jobs.quality.matcher import Match
from stereo_jobs.quality.truth import decibels, masked_mean

FEWEST_PIXELS = 96
"""The smallest number of pixels, inside the holes and around them, for which their sharpness is compared. The variance
of fewer pixels says little: a fifth of the true pairs of 64x64 pixels would seem blurred."""
QUANTISATION = 0.5
"""Levels of 255 added to both gradients of `seam`, so that flat pictures have a ratio of 1."""
SPECKLE_LEVELS = 8.0
"""The smallest difference in levels of 255 that is seen as a speck."""
QUANTISATION_LAPLACIAN = 2.0
"""Variance added to both variances of `hole_sharpness`: about what rounding to whole levels leaves in a Laplacian."""


@dataclass(frozen=True)
class Appearance:
    """Points 3, 4, 7 and 8 of quality control, explained in docs/quality.md; NaN where there is nothing to measure."""

    backwarp_psnr: float
    backwarp_ssim: float
    backwarp_lpips: float
    siou: float
    color_delta: float
    hole_share: float
    hole_sharpness: float
    seam: float
    ghost: float
    speckle: float
    raw_backwarp_lpips: float


def measure_appearance(views: Views, small: Views, found: Match) -> Appearance:
    """Compare the views through the label and their colours through the matcher, and measure the holes.

    Args:
        views: the pair and its label, at the size at which its holes are looked at.
        small: the same at the size at which the views are compared.
        found: what the matcher finds in the left and right view of `small`.
    """
    backs = [back_warp(small, right) for right in (small.right, small.raw_right) if right is not None]
    lpips = _lpips(small.left, backs, small.visible)
    return Appearance(
        backwarp_psnr=_psnr(small.left, backs[0], small.visible),
        backwarp_ssim=_ssim(small.left, backs[0], small.visible),
        backwarp_lpips=lpips[0],
        siou=siou(views.left, views.right, views.warped if views.true_right is None else views.true_right),
        color_delta=colour_drift(small.left, small.right, found, small.visible),
        hole_share=float(views.hole.mean()) if views.hole.size else np.nan,
        hole_sharpness=hole_sharpness(views.right, views.hole),
        seam=seam(views.right, views.hole),
        ghost=ghost(views),
        speckle=speckle(views.right, views.hole),
        raw_backwarp_lpips=lpips[1] if len(lpips) > 1 else np.nan,
    )


# --- Through the label ---


def back_warp(views: Views, right: Image) -> Image:
    """The left view as the right one shows it, R(x - D(x)); pixels that the right view hides come from the left view.

    Args:
        views: the pair and its label.
        right: H,W,3, the right view to sample; the finished one, or the one before the composite.
    """
    sampled = sample(right, views.disparity)
    return np.where(views.visible[..., None], (sampled + 0.5).astype(np.uint8), views.left)


def _psnr(left: Image, back: Image, visible: Bools) -> float:
    return decibels(masked_mean(((left.astype(np.float64) - back) ** 2).mean(-1), visible))


def _ssim(left: Image, back: Image, visible: Bools) -> float:
    if min(visible.shape) < 7:  # the size of its window
        return np.nan
    left, back = left.astype(np.float32), back.astype(np.float32)  # half the time of float64
    _, values = structural_similarity(left, back, channel_axis=-1, data_range=255, full=True)  # type: ignore[no-untyped-call]
    return masked_mean(values.mean(-1), visible)


def _lpips(left: Image, backs: Sequence[Image], visible: Bools) -> list[float]:
    if min(visible.shape) < SMALLEST_SIDE or not visible.any():
        return [np.nan] * len(backs)
    return [masked_mean(values, visible) for values in lpips_model()(left[None], np.stack(backs)).map]


def siou(left: Image, right: Image, wanted: Image) -> float:
    """Stereo intersection over union (Mono2Stereo, Yu et al. 2025): edges and change of `right` against `wanted`.

    The weight of the edges (Canny 100/200) is 0.75. The weight of the change, the pixels that differ from the left view
    by more than 5 levels, is 0.25. The difference is taken per channel and then made grey, without wrap-around, as in
    the corrected form of the published code. Two empty sets count as equal.

    Args:
        left: H,W,3 uint8.
        right: H,W,3 uint8, the view to judge.
        wanted: H,W,3 uint8, the true right view or the left view warped by the label.

    Returns:
        A number in [0, 1]; 1 is best.
    """
    edges = [cv2.Canny(_grey(view), 100, 200) > 0 for view in (right, wanted)]
    change = [_grey(cv2.absdiff(view, left)) > 5 for view in (right, wanted)]
    return 0.75 * _iou(*edges) + 0.25 * _iou(*change)


def _grey(image: Image | np.ndarray) -> np.ndarray:
    """H,W,3 -> H,W."""
    return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)


def _iou(a: Bools, b: Bools) -> float:
    """Intersection over union of two masks; 1 where both are empty."""
    union = int((a | b).sum())
    return int((a & b).sum()) / union if union else 1.0


# --- Through the matcher ---


def colour_drift(left: Image, right: Image, found: Match, visible: Bools) -> float:
    """Length of the mean CIE Lab difference over visible, matched pixels: a colour cast; noise averages out.

    Returns:
        A CIE Lab distance, 0 or more; NaN without a visible, matched pixel.
    """
    over = visible & found.valid
    if not over.any():
        return np.nan
    matched = sample(right, np.where(found.valid, found.disparity, np.float32(0)))
    drift = (_lab(matched) - _lab(left))[over].mean(0, dtype=np.float64)
    return float(np.linalg.norm(drift))


def _lab(image: Image | np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> F32:
    """H,W,3 in [0, 255] -> CIE L in [0, 100], a and b."""
    return np.asarray(cv2.cvtColor(image.astype(np.float32) / np.float32(255), cv2.COLOR_RGB2Lab), np.float32)


# --- Holes ---


def surround(hole: Bools) -> Bools:
    """Pixels beside the holes on the background's side, up to a sixteenth of the width (at least 4 pixels) away: H,W.

    A hole opens to the right of an object in front, so its background lies to its right. A hole at the right edge of
    the frame has its background to its left.
    """
    deep = max(4, hole.shape[1] // 16)
    line = np.ones((1, deep + 1), np.uint8)
    # Whether any of the last `deep` pixels of the row is a hole, or any of the next ones lies in one at the border.
    behind = cv2.dilate(hole.astype(np.uint8), line, anchor=(deep, 0))
    ahead = cv2.dilate(_right_border(hole).astype(np.uint8), line, anchor=(0, 0))
    return np.asarray(cv2.max(behind, ahead) > hole)


def _right_border(hole: Bools) -> Bools:
    """The part of the holes that touches the right edge of the frame: H,W."""
    return np.logical_and.accumulate(hole[:, ::-1], axis=1)[:, ::-1]


def hole_sharpness(right: Image, hole: Bools) -> float:
    """Variance of the Laplacian inside the holes over the variance beside them: below 1, the holes are blurred.

    Returns:
        The ratio; NaN where fewer than `FEWEST_PIXELS` pixels lie inside the holes or beside them.
    """
    laplacian = cv2.Laplacian(_grey(right), cv2.CV_16S)
    inside, beside = _inner(hole), surround(hole) & _inner(~hole)
    if min(inside.sum(), beside.sum()) < FEWEST_PIXELS:
        return np.nan
    inner, outer = (float(laplacian[area].var(dtype=np.float64)) for area in (inside, beside))
    return (inner + QUANTISATION_LAPLACIAN) / (outer + QUANTISATION_LAPLACIAN)


def _inner(area: Bools) -> Bools:
    """Pixels of the area whose four neighbours, as far as they lie in the frame, belong to the area, too: H,W."""
    return np.asarray(cv2.erode(area.astype(np.uint8), cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))) > 0)


def seam(right: Image, hole: Bools) -> float:
    """Gradient across the seam between hole and background over the gradient on both sides: above 1, the seam shows.

    The gradients are steps between neighbouring pixels of a row, averaged over the channels. Their medians are
    compared, because an object's outline may coincide with a part of the seam. The seam with the object in front is
    left out: an edge belongs there.

    Returns:
        The ratio; NaN without holes.
    """
    step = cv2.absdiff(right[:, 1:], right[:, :-1])  # H,W-1,3
    border = _right_border(hole)
    across = (hole[:, :-1] & ~hole[:, 1:]) | (~hole[:, :-1] & border[:, 1:])
    near = hole | surround(hole)
    around = near[:, :-1] & near[:, 1:] & (hole[:, :-1] == hole[:, 1:])
    if not across.any() or not around.any():
        return np.nan
    over, beside = (float(np.median(step[pixels].mean(-1))) for pixels in (across, around))
    return (over + QUANTISATION) / (beside + QUANTISATION)


def speckle(right: Image, hole: Bools) -> float:
    """How much more of the holes than of the background beside them differs from its own surroundings.

    A pixel differs if a channel lies further from its median over 3 x 3 pixels than `SPECKLE_LEVELS`, and half as far
    again as in 98 of 100 pixels of the background: single pixels, hairlines, grain, and rows that were filled apart
    from each other. Pixels at the outline of the holes do not count.

    Returns:
        The difference of both shares, at most 1; about 0 for holes like the background, a little less where it has
        more structure. NaN where fewer than `FEWEST_PIXELS` pixels lie inside the holes or beside them.
    """
    apart = cv2.absdiff(right, cv2.medianBlur(np.ascontiguousarray(right), 3))  # H,W,3
    whole = cv2.morphologyEx(hole.astype(np.uint8), cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8)) > 0
    inside, beside = (apart[area].max(-1) for area in (_inner(whole), surround(whole) & _inner(~whole)))
    if min(inside.size, beside.size) < FEWEST_PIXELS:
        return np.nan
    limit = max(SPECKLE_LEVELS, 1.5 * float(np.quantile(beside, 0.98)))
    return float((inside > limit).mean() - (beside > limit).mean())
