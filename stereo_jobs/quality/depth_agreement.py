"""Whether the label agrees with the depth that an estimator sees in the left view. The caller runs the estimator."""

import numpy as np
from numpy.typing import NDArray

from stereo_jobs.pixels import F32, Bools


def depth_doubt(depth: F32, mirrored: F32) -> float:
    """How much an estimator contradicts itself on the mirrored image: mean |D(I) - flip D(flip I)| / range of D(I).

    Args:
        depth: H,W inverse depth, as estimated for an image.
        mirrored: H,W inverse depth, as estimated for the mirrored image.

    Returns:
        0 or more, 0 where both agree; NaN where an estimate is not finite or `depth` is constant.
    """
    if not (np.isfinite(depth).all() and np.isfinite(mirrored).all()) or not depth.size:
        return np.nan
    spread = float(np.ptp(depth))
    return float(np.abs(depth.astype(np.float64) - mirrored[:, ::-1]).mean()) / spread if spread > 0 else np.nan


def depth_rank(disparity: F32, depth: F32, known: Bools) -> float:
    """Rank correlation (Spearman 1904) of the label's steps along the rows with those of the estimated depth.

    Steps are compared, not whole maps: even the label of another scene ranks like the estimate, since floors are near
    and walls are far in both. A step is the difference of two pixels of a row that are a sixteenth of the width (at
    least 2 pixels) apart. Only steps above a tenth of the range in at least one of the maps count.

    Args:
        disparity: H,W, the label; larger is nearer.
        depth: H,W inverse depth, as estimated.
        known: H,W bool, where the label is known.

    Returns:
        A correlation in [-1, 1]; NaN with fewer than two such steps, or where all of them are equal in one of the maps.
    """
    apart = max(2, known.shape[1] // 16)
    known = known & np.isfinite(disparity) & np.isfinite(depth)
    if not known.any():
        return np.nan
    both = known[:, apart:] & known[:, :-apart]
    steps = [(values[:, apart:] - values[:, :-apart])[both].astype(np.float64) for values in (disparity, depth)]
    ranges = [float(np.ptp(values[known])) for values in (disparity, depth)]
    large = np.logical_or(*(np.abs(step) > 0.1 * spread for step, spread in zip(steps, ranges, strict=True)))
    x, y = (_ranks(step[large]) for step in steps)
    if x.size < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return np.nan
    x, y = x - x.mean(), y - y.mean()
    return float((x * y).sum() / np.sqrt((x * x).sum() * (y * y).sum()))


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ranks, from 1 on; equal values share the mean of their ranks."""
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2)[group], np.float64)
