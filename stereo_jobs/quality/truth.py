"""How close a right view is to the true one: PSNR, SSIM and LPIPS over all, non-occluded and occluded pixels."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from skimage.metrics import structural_similarity
from torch import Tensor

from stereo_jobs.pixels import Bools, Image
from stereo_jobs.quality.lpips import SMALLEST_SIDE, lpips_model
from stereo_jobs.quality.working_size import WorkingSize
from stereo_jobs.stereo.bands import bands, in_bands
from stereo_jobs.stereo.fill import fill_sparse
from stereo_jobs.stereo.warp import forward_warp

Floats = NDArray[np.floating]

PSNR_CAP = 100.0
"""Decibels reported for equal images, whose PSNR is infinite, so that columns and their means stay finite."""
SSIM_WINDOW = 7
"""Side of SSIM's window in pixels."""


@dataclass(frozen=True)
class TrueScores:
    """Scores of a right view against the true one; NaN where there are no pixels to score.

    Plain fields score all pixels, as in publications. `_nonocc` scores the pixels that the left view shows, too, and
    `_occ` the pixels in the holes. Both take their part of the full image's maps, so that a pixel beside a hole is
    judged together with its surroundings.

    Attributes:
        psnr: peak signal-to-noise ratio in decibels, at most `PSNR_CAP`; larger is better.
        psnr_nonocc: PSNR from the mean squared error over the non-occluded pixels.
        psnr_occ: PSNR from the mean squared error over the holes.
        ssim: structural similarity, at most 1 (equal); without the 3 pixels along the border, where the window is cut.
        ssim_nonocc: mean of the whole SSIM map, its border included, over the non-occluded pixels.
        ssim_occ: mean of the whole SSIM map, its border included, over the holes, most of which touch the border.
        lpips: perceptual distance, 0 (equal) or more; the mean of each layer's map, summed over the layers.
        lpips_nonocc: mean of the upsampled LPIPS map over the non-occluded pixels.
        lpips_occ: mean of the upsampled LPIPS map over the holes.
    """

    psnr: float
    psnr_nonocc: float
    psnr_occ: float
    ssim: float
    ssim_nonocc: float
    ssim_occ: float
    lpips: float
    lpips_nonocc: float
    lpips_occ: float


def hidden(true_disparity: Floats) -> tuple[Bools, Bools]:
    """Find the right pixels that the left view does not show, from the true disparity.

    Gaps in the disparity are filled for the warp. Whether a right pixel is hidden is known where all left pixels that
    it comes from have a known disparity. For a pixel in a hole, it is known where the nearest pixels on both sides of
    it in its row are known.

    Args:
        true_disparity: H,W pixels of the left view, not finite where unknown.

    Returns:
        Two H,W bool masks of the right view: the hidden pixels (holes), and the pixels for which this is known.
    """
    values = torch.from_numpy(true_disparity)[None]

    def measured(complete: Tensor, given: Tensor) -> Tensor:
        warp = forward_warp(complete, torch.ones(1), subpixel=True)
        return torch.where(warp.filled, warp(torch.isfinite(given).float()[:, None])[:, 0], torch.nan)

    seen = in_bands(measured, fill_sparse(values), values)  # NaN in holes
    sides = fill_sparse(seen), fill_sparse(seen.flip(-1)).flip(-1)
    return torch.isnan(seen)[0].numpy(), torch.minimum(*sides)[0].numpy() == 1


def score(
    right: Image, true_right: Image, hole: Bools, known: Bools | None = None, *, device: str = "cpu"
) -> TrueScores:
    """PSNR, SSIM (Wang et al. 2004) and LPIPS (Zhang et al. 2018) of a right view against the true one.

    All use a data range of 255 on uint8 RGB. SSIM uses scikit-image's defaults, as published comparisons do: a uniform
    window of 7x7 pixels, sample covariance, K1 0.01, K2 0.03, the mean over the channels. LPIPS is v0.1 on AlexNet.
    Views are scored at their `WorkingSize`, which is their own unless they are large.

    Args:
        right: H,W,3 uint8, with sides of 31 pixels or more.
        true_right: H,W,3 uint8, the view of a real camera.
        hole: H,W bool, the pixels of the right view without a source in the left view.
        known: H,W bool, where `hole` is known to be right; only there the parts are scored. None: everywhere.
        device: name of the torch device that computes LPIPS.

    Raises:
        ValueError: an input has another type or shape, the sizes differ, or a side is below 31 pixels.
    """
    _check(right, true_right, hole)
    size = WorkingSize.of(*hole.shape)
    right, true_right, hole = size.image(right), size.image(true_right), size.mask(hole)
    known = None if known is None else size.mask(known)
    seen = ~hole if known is None else ~hole & known
    unseen = hole if known is None else hole & known
    error = ((right.astype(np.float64) - true_right) ** 2).mean(-1)  # H,W,3 -> H,W
    ssim, ssim_map = _ssim(right, true_right)
    lpips, lpips_map = _lpips(right, true_right, device)
    return TrueScores(
        psnr=decibels(float(error.mean())),
        psnr_nonocc=decibels(masked_mean(error, seen)),
        psnr_occ=decibels(masked_mean(error, unseen)),
        ssim=ssim,
        ssim_nonocc=masked_mean(ssim_map, seen),
        ssim_occ=masked_mean(ssim_map, unseen),
        lpips=lpips,
        lpips_nonocc=masked_mean(lpips_map, seen),
        lpips_occ=masked_mean(lpips_map, unseen),
    )


def masked_mean(values: Floats, over: Bools) -> float:
    """Mean of H,W values where `over` (H,W bool) is True, summed in float64; NaN where it is True nowhere."""
    return float(values[over].mean(dtype=np.float64)) if over.any() else np.nan


def psnr(image: Image, truth: Image, over: Bools | None = None) -> float:
    """Peak signal-to-noise ratio of two images.

    Args:
        image: H,W,3 uint8.
        truth: H,W,3 uint8.
        over: H,W bool, the pixels that count. None: all.

    Returns:
        Decibels, at most `PSNR_CAP`.
    """
    total = count = 0
    for rows in bands(*image.shape[:2]):  # whole numbers, whose sum does not depend on the bands
        squared = (image[rows].astype(np.int32) - truth[rows]) ** 2
        chosen = squared if over is None else squared[over[rows]]
        total, count = total + int(chosen.sum(dtype=np.int64)), count + chosen.size
    return decibels(total / count if count else np.nan)


def decibels(squared_error: float) -> float:
    """PSNR in decibels, at most `PSNR_CAP`, from the mean squared error of values in [0,255]; NaN stays NaN."""
    above_zero = np.maximum(squared_error, 1e-9)  # zero has no logarithm; values this small reach the cap anyway
    return float(np.minimum(PSNR_CAP, 10 * np.log10(255**2 / above_zero)))


def _ssim(right: Image, true_right: Image) -> tuple[float, Floats]:
    """SSIM and its map H,W; NaN for a strip that is narrower than its window at the working size."""
    if min(right.shape[:2]) < SSIM_WINDOW:
        return np.nan, np.full(right.shape[:2], np.nan)
    ssim, ssim_map = structural_similarity(  # type: ignore[no-untyped-call]
        right, true_right, channel_axis=-1, data_range=255, full=True
    )
    return float(ssim), ssim_map.mean(-1)  # H,W,3 -> H,W


def _lpips(right: Image, true_right: Image, device: str) -> tuple[float, Floats]:
    """LPIPS and its map H,W; NaN for a strip that is too narrow for it at the working size."""
    if min(right.shape[:2]) < SMALLEST_SIDE:
        return np.nan, np.full(right.shape[:2], np.nan)
    distance = lpips_model(device)(right, true_right)
    return float(distance.score), distance.map


def _check(right: Image, true_right: Image, hole: Bools) -> None:
    for name, image in (("right", right), ("true_right", true_right)):
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise ValueError(f"{name} must be H,W,3 uint8, got {image.shape} {image.dtype}")
    if right.shape != true_right.shape:
        raise ValueError(f"right and true_right must have one size, got {right.shape} and {true_right.shape}")
    if hole.shape != right.shape[:2] or hole.dtype != np.bool_:
        raise ValueError(f"hole must be {right.shape[:2]} bool, the size of right, got {hole.shape} {hole.dtype}")
    if min(right.shape[:2]) < SMALLEST_SIDE:
        raise ValueError(f"right: LPIPS on AlexNet needs sides of {SMALLEST_SIDE} pixels or more, got {right.shape}")
