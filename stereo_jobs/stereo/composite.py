"""The finished right view: the left's own pixels where they are seen, diffusion in the holes."""

import torch
from torch import Tensor
from torch.nn import functional

from stereo_jobs.stereo.fill import extend_background


def composite(warped: Tensor, filled: Tensor, diffused: Tensor, columns: Tensor, reach_px: float) -> Tensor:
    """Warped pixels where the warp is filled, diffused ones in the holes, without a seam.

    A VAE never returns colours exactly. What it misses just outside of a hole, on the background's side, is taken
    off inside, fading with the distance; nothing outside the hole is touched.

    Args:
        warped: B,3,H,W in [0, 1], the left view warped at full resolution.
        filled: B,H,W bool.
        diffused: B,3,H,W in [0, 1], the decoded right view.
        columns: B,H,W of `background_columns`.
        reach_px: distance at which the correction has faded to 1/e.

    Returns:
        B,3,H,W in [0, 1].
    """
    known = filled[:, None].to(warped.dtype)
    missed = _blur((warped - diffused) * known) / _blur(known).clamp_min(1e-3)
    distance = (columns - torch.arange(columns.shape[-1], device=columns.device)).abs()
    fade = torch.exp(-distance / reach_px)[:, None].to(warped.dtype)
    corrected = diffused + extend_background(missed, columns) * fade
    return torch.where(filled[:, None], warped, corrected).clamp(0, 1)


def _blur(x: Tensor) -> Tensor:
    """Mean of 5 x 5 pixels: a single one would draw its noise as a streak."""
    return functional.avg_pool2d(x, 5, stride=1, padding=2, count_include_pad=True)
