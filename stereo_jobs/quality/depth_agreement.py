"""Does the label fit what a depth estimator sees in the finished left view? The caller runs the estimator."""

import numpy as np
from numpy.typing import NDArray

from stereo_jobs.quality.labelled_pair import F32, Bools


def depth_doubt(depth: F32, mirrored: F32) -> float:
    """How far an estimator's two opinions differ: mean |D(I) - flip D(flip I)| over the range of D(I); 0 is none.

    Args:
        depth: H,W inverse depth of an image.
        mirrored: H,W inverse depth of the mirrored image, as estimated.

    Returns:
        NaN where the estimate has no range or is not finite.
    """
    if not (np.isfinite(depth).all() and np.isfinite(mirrored).all()) or not depth.size:
        return np.nan
    spread = float(np.ptp(depth))
    return float(np.abs(depth.astype(np.float64) - mirrored[:, ::-1]).mean()) / spread if spread > 0 else np.nan


def depth_rank(disparity: F32, depth: F32, known: Bools) -> float:
    """Rank correlation (Spearman) of a label's steps along the rows, larger nearer, with those of an estimator's depth.

    Of whole maps, even labels of another scene rank like the estimate: floors are near and walls are far in both. A
    step is the difference of two pixels of a row, a sixteenth of the width apart (at least 2 pixels); those count that
    are larger than a tenth of the range in either map.

    Args:
        disparity: H,W, the label.
        depth: H,W, inverse depth.
        known: H,W bool, where the label holds.

    Returns:
        NaN with fewer than two such steps, or where all of them are alike in either map.
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
    """Ranks from 1; equal values take the mean of theirs."""
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2)[group], np.float64)
