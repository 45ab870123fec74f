"""Pixel baselines (StereoDiffusion, Table 1): a left image and its disparity give a right image."""

from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from stereo_jobs.pixels import Image, to_image, to_tensor
from stereo_jobs.stereo.fill import background_columns, extend_background
from stereo_jobs.stereo.warp import ForwardWarp, forward_warp

Result = tuple[Image, NDArray[np.bool_]]
"""Right image H,W,3 uint8, and its holes H,W bool."""


class Fill(Protocol):
    """What every pixel baseline is."""

    def __call__(
        self, left: Image, disparity: NDArray[np.float32], *, scale_sign: int = 1, subpixel: bool = True
    ) -> Result:
        """The right view of a left one.

        Args:
            left: H,W,3 uint8.
            disparity: H,W float32 pixels, finite; content moves left by it.
            scale_sign: -1 where the right view lies to the other side, so that the smallest disparity is the nearest.
            subpixel: False rounds it to whole pixels, as most published comparisons do.

        Raises:
            ValueError: sizes differ, or a disparity is not finite.
        """


def identity(left: Image, disparity: NDArray[np.float32], *, scale_sign: int = 1, subpixel: bool = True) -> Result:
    """The left image itself, for reference: what a metric says of a pair without any depth."""
    warp = warp_of(left, disparity, scale_sign, subpixel)
    return left.copy(), ~warp.filled[0].numpy()


def leave_blank(left: Image, disparity: NDArray[np.float32], *, scale_sign: int = 1, subpixel: bool = True) -> Result:
    """The forward warp with its holes left black (Table 1, "leave blank")."""
    warp = warp_of(left, disparity, scale_sign, subpixel)
    return to_image(warp(to_tensor(left))), ~warp.filled[0].numpy()


def stretch(left: Image, disparity: NDArray[np.float32], *, scale_sign: int = 1, subpixel: bool = True) -> Result:
    """The forward warp, each hole filled with the pixel beside it on the background's side (Table 1, "stretching")."""
    warp = warp_of(left, disparity, scale_sign, subpixel)
    columns = columns_of(warp, disparity, scale_sign)
    return to_image(extend_background(warp(to_tensor(left)), columns)), ~warp.filled[0].numpy()


def warp_of(left: Image, disparity: NDArray[np.float32], scale_sign: int, subpixel: bool) -> ForwardWarp:
    """The forward warp that every fill begins with, of H,W pixels; arguments and errors as of `Fill`."""
    if left.shape[:2] != disparity.shape:
        raise ValueError(f"disparity: must have the image's size {left.shape[:2]}, got {disparity.shape}")
    if not np.isfinite(disparity).all():
        raise ValueError("disparity: must be finite everywhere; fill its gaps first")
    values = torch.from_numpy(disparity if subpixel else np.round(disparity))[None]
    return forward_warp(values, torch.tensor([scale_sign]), subpixel=subpixel)


def columns_of(warp: ForwardWarp, disparity: NDArray[np.float32], scale_sign: int) -> torch.Tensor:
    """From where each hole of a warp by H,W pixels continues the background: 1,H,W of `background_columns`."""
    at_target = warp(torch.from_numpy(disparity)[None, None])[:, 0]
    return background_columns(warp.filled, at_target, torch.tensor([scale_sign]))
