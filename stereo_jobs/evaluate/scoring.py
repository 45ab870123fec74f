"""One finished pair against its truth, as numbers."""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from stereo_jobs.baselines import stretch
from stereo_jobs.quality.matcher import match
from stereo_jobs.quality.truth import score
from stereo_jobs.records import StereoPair

Image = NDArray[np.uint8]


@dataclass(frozen=True)
class Truth:
    """What a pair should be.

    Attributes:
        right: H,W,3 uint8.
        disparity: H,W float32 pixels, of the left view.
        nonocc_left: H,W bool, left pixels that the right view shows.
        hole_right: H,W bool, right pixels that the left view does not show.
    """

    right: Image
    disparity: NDArray[np.float32]
    nonocc_left: NDArray[np.bool_]
    hole_right: NDArray[np.bool_]


def score_right(right: Image, left: Image, truth: Truth) -> dict[str, float]:
    """Image metrics of a right view, everywhere and by occlusion, and what its holes look like.

    `sharpness` is the Laplacian's variance in the holes over that of the truth there (1 is right);
    `change` the mean absolute difference to `stretch` in the holes, levels of 255.
    """
    scores = vars(score(right, truth.right, truth.hole_right))
    stretched, _ = stretch(left, truth.disparity)
    hole = truth.hole_right
    # Not along the rim: an object's outline beside the hole would count as the hole's own detail.
    inside = cv2.erode(hole.astype(np.uint8), np.ones((3, 3), np.uint8), borderValue=1) > 0
    wanted = _laplacian(truth.right)[inside].var() if inside.any() else 0.0
    sharpness = _laplacian(right)[inside].var() / wanted if wanted > 0 else np.nan
    change = np.abs(right.astype(np.float64) - stretched)[hole].mean() if hole.any() else np.nan
    return {**scores, "sharpness": float(sharpness), "change": float(change)}


def score_geometry(left: Image, right: Image, truth: Truth) -> float:
    """Share of visible, matched pixels whose disparity is over 1 pixel off the truth."""
    found = match(left, right, float(truth.disparity.max()))
    over = truth.nonocc_left & found.valid
    if not over.any():
        return float("nan")
    return float((np.abs(found.disparity - truth.disparity)[over] > 1).mean())


def score_pair(pair: StereoPair, truth: Truth) -> dict[str, float]:
    """All numbers of a generated pair; `bad_1_raw` is the geometry before the composite."""
    raw = pair.right if pair.raw_right is None else pair.raw_right
    return {
        **score_right(pair.right, pair.left, truth),
        "bad_1": score_geometry(pair.left, pair.right, truth),
        "bad_1_raw": score_geometry(pair.left, raw, truth),
        "evaluations": float(pair.unet_evaluations),
        "left_psnr": float("nan") if pair.left_psnr is None else pair.left_psnr,
    }


def _laplacian(image: Image) -> NDArray[np.float64]:
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float64)
    return np.asarray(cv2.Laplacian(grey, cv2.CV_64F), np.float64)
