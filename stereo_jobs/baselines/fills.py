"""Pixel baselines (StereoDiffusion, Table 1): from a left image and its disparity to a right image."""

from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch

from stereo_jobs.pixels import F32, Bools, Image, to_image, to_tensor
from stereo_jobs.stereo.fill import background_columns
from stereo_jobs.stereo.image_warp import ImageWarp, WarpedRows
from stereo_jobs.stereo.warp import ForwardWarp, forward_warp

Result = tuple[Image, Bools]
"""A right image, H,W,3 uint8, and its holes, H,W bool."""


class Fill(Protocol):
    """The signature of every pixel baseline."""

    def __call__(self, left: Image, disparity: F32, *, scale_sign: int = 1, subpixel: bool = True) -> Result:
        """Make the right view of a left image.

        Args:
            left: H,W,3 uint8.
            disparity: H,W float32 pixels, finite; content moves left by it.
            scale_sign: -1 where the new view lies on the other side, so that the smallest disparity is the nearest.
            subpixel: False rounds the disparity to whole pixels, as most published comparisons do.

        Raises:
            ValueError: the sizes differ, or the disparity is not finite everywhere.
        """


def identity(left: Image, disparity: F32, *, scale_sign: int = 1, subpixel: bool = True) -> Result:
    """Return the left image itself; for reference: what a metric gives for a pair without any depth."""
    _check(left, disparity)
    return left.copy(), ~image_warp(disparity, scale_sign, subpixel).masks.filled[0].numpy()


def leave_blank(left: Image, disparity: F32, *, scale_sign: int = 1, subpixel: bool = True) -> Result:
    """Forward warp whose holes stay black (StereoDiffusion, Table 1, "leave blank")."""
    return _by_bands(left, disparity, scale_sign, subpixel, lambda warped, pixels: warped.warp(pixels))


def stretch(left: Image, disparity: F32, *, scale_sign: int = 1, subpixel: bool = True) -> Result:
    """Forward warp whose holes take the pixel beside them on the background's side (Table 1, "stretching")."""
    return _by_bands(left, disparity, scale_sign, subpixel, WarpedRows.continued)


def _by_bands(
    left: Image,
    disparity: F32,
    scale_sign: int,
    subpixel: bool,
    fill: Callable[[WarpedRows, torch.Tensor], torch.Tensor],
) -> Result:
    """Make the right view band by band with `fill`: (warp of some rows, their pixels 1,3,rows,W) -> 1,3,rows,W."""
    _check(left, disparity)
    warp = image_warp(disparity, scale_sign, subpixel)
    right = np.empty_like(left)
    for rows in warp.bands():
        right[rows] = to_image(fill(warp.rows(rows), to_tensor(left[rows])))
    return right, ~warp.masks.filled[0].numpy()


def image_warp(disparity: F32, scale_sign: int, subpixel: bool) -> ImageWarp:
    """The warp of an image that a fill makes, by bands; arguments as for `Fill`."""
    values = torch.from_numpy(disparity)[None]
    moved = values if subpixel else torch.from_numpy(np.round(disparity))[None]
    return ImageWarp(moved, torch.tensor([scale_sign]), subpixel=subpixel, nearness=values)


def warp_of(left: Image, disparity: F32, scale_sign: int, subpixel: bool) -> ForwardWarp:
    """The forward warp of H,W pixels that every fill starts with; arguments and errors as for `Fill`."""
    _check(left, disparity)
    values = torch.from_numpy(disparity if subpixel else np.round(disparity))[None]
    return forward_warp(values, torch.tensor([scale_sign]), subpixel=subpixel)


def columns_of(warp: ForwardWarp, disparity: F32, scale_sign: int) -> torch.Tensor:
    """Columns from which the holes of a warp continue the background, see `background_columns`: 1,H,W int64."""
    at_target = warp(torch.from_numpy(disparity)[None, None])[:, 0]
    return background_columns(warp.filled, at_target, torch.tensor([scale_sign]))


def _check(left: Image, disparity: F32) -> None:
    if left.shape[:2] != disparity.shape:
        raise ValueError(f"disparity: must have the image's size {left.shape[:2]}, got {disparity.shape}")
    if not np.isfinite(disparity).all():
        raise ValueError("disparity: must be finite everywhere; fill its gaps first")
