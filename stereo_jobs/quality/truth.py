"""How near is a right view to the true one: PSNR, SSIM and LPIPS, over all, non-occluded and occluded pixels."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from skimage.metrics import structural_similarity

from stereo_jobs.pixels import Image
from stereo_jobs.quality.lpips import SMALLEST_SIDE, lpips_model
from stereo_jobs.stereo.fill import fill_sparse
from stereo_jobs.stereo.warp import forward_warp

Bools = NDArray[np.bool_]
Floats = NDArray[np.floating]

PSNR_CAP = 100.0
"""Decibels given to equal images, whose PSNR is infinite, so that columns and their means stay finite."""


@dataclass(frozen=True)
class TrueScores:
    """A right view against the true one; NaN over a set of pixels that is empty.

    The plain fields are over all pixels, as published; `_nonocc` over those that the left view shows too, `_occ` over
    the holes. The parts come from the full image's maps, so a pixel beside a hole is judged with its surroundings.

    Attributes:
        psnr: decibels, at most `PSNR_CAP`; larger is better.
        psnr_nonocc: of the mean squared error over those pixels.
        psnr_occ: likewise.
        ssim: at most 1 (equal); the mean without the 3 pixels along the border, where the window is cut.
        ssim_nonocc: mean of the whole SSIM map, its border included, over those pixels.
        ssim_occ: likewise; most holes of a stereo pair touch the border.
        lpips: 0 (equal) or more; the mean of every layer's map, summed.
        lpips_nonocc: mean of the upsampled LPIPS map over those pixels.
        lpips_occ: likewise.
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
    """What the left view does not show of the right one, and of which right pixels that is known; both H,W bool.

    Gaps of the disparity are filled for the warp. A right pixel is known where it comes from left pixels of known
    disparity alone; one of a hole, where the nearest pixels on both sides of it in its row are known.

    Args:
        true_disparity: H,W pixels of the left view, not finite where unknown.
    """
    values = torch.from_numpy(true_disparity)[None]
    warp = forward_warp(fill_sparse(values), torch.ones(1), subpixel=True)
    measured = warp(torch.isfinite(values).float()[:, None], torch.nan)[:, 0]
    sides = fill_sparse(measured), fill_sparse(measured.flip(-1)).flip(-1)
    return ~warp.filled[0].numpy(), torch.minimum(*sides)[0].numpy() == 1


def score(
    right: Image, true_right: Image, hole: Bools, known: Bools | None = None, *, device: str = "cpu"
) -> TrueScores:
    """PSNR, SSIM (Wang et al. 2004) and LPIPS (Zhang et al. 2018) of a right view against the true one.

    All with a data range of 255 on uint8 RGB. SSIM with scikit-image's defaults, which published comparisons use: an
    even window of 7x7 pixels, sample covariance, K1 0.01, K2 0.03; of each channel, then the mean of the channels.
    LPIPS on AlexNet, v0.1.

    Args:
        right: H,W,3 uint8, as `true_right`; sides of 31 pixels or more.
        true_right: what a camera saw there.
        hole: H,W bool, the pixels of the right view without a source in the left view.
        known: H,W bool, where `hole` says the truth; the parts are scored there alone. None: everywhere.
        device: where LPIPS computes, as torch names it.

    Raises:
        ValueError: another type or shape, sizes that differ, or a side below 31 pixels.
    """
    _check(right, true_right, hole)
    seen = ~hole if known is None else ~hole & known
    unseen = hole if known is None else hole & known
    error = ((right.astype(np.float64) - true_right) ** 2).mean(-1)  # H,W,3 -> H,W
    ssim, ssim_map = structural_similarity(  # type: ignore[no-untyped-call]
        right, true_right, channel_axis=-1, data_range=255, full=True
    )
    ssim_map = ssim_map.mean(-1)  # H,W,3 -> H,W
    distance = lpips_model(device)(right, true_right)
    return TrueScores(
        psnr=decibels(float(error.mean())),
        psnr_nonocc=decibels(masked_mean(error, seen)),
        psnr_occ=decibels(masked_mean(error, unseen)),
        ssim=float(ssim),
        ssim_nonocc=masked_mean(ssim_map, seen),
        ssim_occ=masked_mean(ssim_map, unseen),
        lpips=float(distance.score),
        lpips_nonocc=masked_mean(distance.map, seen),
        lpips_occ=masked_mean(distance.map, unseen),
    )


def masked_mean(values: Floats, over: Bools) -> float:
    """Mean of H,W values where `over` (H,W bool) holds, summed in float64; NaN where it holds nowhere."""
    return float(values[over].mean(dtype=np.float64)) if over.any() else np.nan


def psnr(image: Image, truth: Image, over: Bools | None = None) -> float:
    """Peak signal-to-noise ratio in dB of two H,W,3 images, at most `PSNR_CAP`; `over` some pixels alone, H,W."""
    squared = (image.astype(np.float64) - truth) ** 2
    return decibels(float(np.mean(squared if over is None else squared[over])))


def decibels(squared_error: float) -> float:
    """Decibels of a mean squared error of values in [0,255]; NaN stays NaN."""
    above_zero = np.maximum(squared_error, 1e-9)  # zero has no logarithm; the cap hides the difference
    return float(np.minimum(PSNR_CAP, 10 * np.log10(255**2 / above_zero)))


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
