"""Scores that a dataset has no column for: how sharp the holes are, and the geometry that a stereo matcher finds."""

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from stereo_jobs.baselines import stretch
from stereo_jobs.evaluate.datasets import F32
from stereo_jobs.pixels import Bools, Image
from stereo_jobs.quality.matcher import Match, match
from stereo_jobs.quality.truth import hidden, score
from stereo_jobs.stereo.fill import fill_sparse
from stereo_jobs.stereo.warp import forward_warp

_LARGEST_SHARE = 0.2
"""Largest disparity that is looked for where none is known, as a share of the width."""


def score_details(left: Image, right: Image, true_right: Image, true_disparity: F32) -> dict[str, float]:
    """Three scores of a right view against its truth, over the pixels whose truth is known; NaN if there are none.

    - `sharpness`: variance of the Laplacian in the holes, divided by that of the truth there; 1 is right.
    - `change`: mean absolute difference to `stretch` in the holes, in levels of 0 to 255; near 0 if nothing was drawn.
    - `bad_1`: share of the visible, matched pixels whose disparity is wrong by more than 1 pixel.

    Args:
        left: left view, H,W,3 uint8.
        right: right view to be scored, H,W,3 uint8.
        true_right: right view of a camera, H,W,3 uint8.
        true_disparity: H,W float32 pixels of the left view, NaN where unknown.
    """
    disparity = fill_sparse(torch.from_numpy(true_disparity)[None])
    warp = forward_warp(disparity, torch.ones(1), subpixel=True)
    hole, known = hidden(true_disparity)
    hole &= known
    stretched, _ = stretch(left, disparity[0].numpy())
    # Without the rim: the outline of an object beside the hole would count as detail of the hole.
    inside = cv2.erode(hole.astype(np.uint8), np.ones((3, 3), np.uint8), borderValue=1) > 0
    wanted = _laplacian(true_right)[inside].var() if inside.any() else 0.0
    sharpness = _laplacian(right)[inside].var() / wanted if wanted > 0 else np.nan
    change = np.abs(right.astype(np.float64) - stretched)[hole].mean() if hole.any() else np.nan
    found = match(left, right, float(disparity.max()))
    over = warp.visible[0].numpy() & found.valid & np.isfinite(true_disparity)
    bad = (np.abs(found.disparity - true_disparity)[over] > 1).mean() if over.any() else np.nan
    return {"sharpness": float(sharpness), "change": float(change), "bad_1": float(bad)}


def score_masked(filled: Image, photo: Image, mask: Bools) -> dict[str, float]:
    """`psnr_occ`, `ssim_occ` and `lpips_occ` of a filled photo over its mask; images H,W,3 uint8, mask H,W bool."""
    scores = score(filled, photo, mask)
    return {name: getattr(scores, name) for name in ("psnr_occ", "ssim_occ", "lpips_occ")}


def matched(left: Image, right: Image) -> Match:
    """What a stereo matcher finds in a pair, H,W,3 uint8, of which no disparity is known."""
    return match(left, right, _LARGEST_SHARE * left.shape[1])


def disparity_rmse(found: Match, true: Match) -> float:
    """Root mean squared difference, in pixels, over the pixels that are matched in both; infinite if there are none."""
    over = found.valid & true.valid
    difference = found.disparity[over].astype(np.float64) - true.disparity[over]
    return float(np.sqrt((difference**2).mean())) if over.any() else np.inf


def _laplacian(image: Image) -> NDArray[np.float64]:
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float64)
    return np.asarray(cv2.Laplacian(grey, cv2.CV_64F), np.float64)
