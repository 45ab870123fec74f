"""What the columns `true_*` do not say of a right view: its holes' sharpness, and the geometry as a matcher sees it."""

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from stereo_jobs.baselines import stretch
from stereo_jobs.pixels import Image
from stereo_jobs.quality.matcher import match
from stereo_jobs.quality.truth import hidden
from stereo_jobs.stereo.fill import fill_sparse
from stereo_jobs.stereo.warp import forward_warp

F32 = NDArray[np.float32]


def score_details(left: Image, right: Image, true_right: Image, true_disparity: F32) -> dict[str, float]:
    """Three numbers of a right view, by its truth.

    `sharpness`: the Laplacian's variance in the holes over that of the truth there (1 is right). `change`: mean
    absolute difference to `stretch` in the holes, levels of 255: whether anything was drawn at all. `bad_1`: share of
    the visible pixels a matcher finds whose disparity is over 1 pixel off. Only over pixels whose truth is known; NaN
    where there are none.

    Args:
        left: H,W,3 uint8, as the other views.
        right: to be scored.
        true_right: what a camera saw.
        true_disparity: H,W float32 pixels of the left view, NaN where unknown.
    """
    disparity = fill_sparse(torch.from_numpy(true_disparity)[None])
    warp = forward_warp(disparity, torch.ones(1), subpixel=True)
    hole, known = hidden(true_disparity)
    hole &= known
    stretched, _ = stretch(left, disparity[0].numpy())
    # Not along the rim: an object's outline beside the hole would count as the hole's own detail.
    inside = cv2.erode(hole.astype(np.uint8), np.ones((3, 3), np.uint8), borderValue=1) > 0
    wanted = _laplacian(true_right)[inside].var() if inside.any() else 0.0
    sharpness = _laplacian(right)[inside].var() / wanted if wanted > 0 else np.nan
    change = np.abs(right.astype(np.float64) - stretched)[hole].mean() if hole.any() else np.nan
    found = match(left, right, float(disparity.max()))
    over = warp.visible[0].numpy() & found.valid & np.isfinite(true_disparity)
    bad = (np.abs(found.disparity - true_disparity)[over] > 1).mean() if over.any() else np.nan
    return {"sharpness": float(sharpness), "change": float(change), "bad_1": float(bad)}


def _laplacian(image: Image) -> NDArray[np.float64]:
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float64)
    return np.asarray(cv2.Laplacian(grey, cv2.CV_64F), np.float64)
