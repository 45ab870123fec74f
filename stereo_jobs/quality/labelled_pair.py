"""A pair with its label as quality control reads it: the second view on the right, larger disparities nearer."""

from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from stereo_jobs.pixels import F32, Bools, Image
from stereo_jobs.stereo.fill import background_columns, extend_background, fill_sparse
from stereo_jobs.stereo.warp import ForwardWarp, forward_warp

T = TypeVar("T", bound=np.generic)


@dataclass(frozen=True)
class Views:
    """Both views of a pair and its label. Make it with `Views.of`.

    Attributes:
        left: H,W,3 uint8.
        right: H,W,3 uint8, the finished right view.
        disparity: H,W float32, finite, pixels of the left view; content moves left by it, nearer things further.
        visible: H,W bool, left pixels that the right view shows and whose disparity is known.
        hole: H,W bool, right pixels without a source in the left view.
        raw_right: H,W,3 uint8, the right view before it was composited with pixels of the left one; None: no composite.
        true_right: H,W,3 uint8, the view of a real camera; None: not known.
    """

    left: Image
    right: Image
    disparity: F32
    visible: Bools
    hole: Bools
    raw_right: Image | None = None
    true_right: Image | None = None

    @classmethod
    def of(
        cls,
        left: Image,
        right: Image,
        disparity: F32,
        nonocc_left: Bools,
        hole_right: Bools,
        *,
        raw_right: Image | None = None,
        true_right: Image | None = None,
        scale_sign: int = 1,
    ) -> "Views":
        """Check a pair and mirror it where needed, so that larger disparities are nearer.

        With a negative scale the second view lies to the left of the first, and the smallest disparity is the nearest.
        The mirror image of such a pair is a pair with a positive scale.

        Args:
            left: H,W,3 uint8.
            right: H,W,3 uint8, the finished right view.
            disparity: H,W float32, pixels of the left view; not finite where it is unknown.
            nonocc_left: H,W bool, left pixels that the right view shows.
            hole_right: H,W bool, right pixels without a source in the left view.
            raw_right: H,W,3 uint8, see the class.
            true_right: H,W,3 uint8, see the class.
            scale_sign: negative for a pair with a negative scale.

        Raises:
            ValueError: an image is not H,W,3 uint8, or the sizes differ.
        """
        check_sizes(left, right, disparity, nonocc_left, hole_right, raw_right=raw_right, true_right=true_right)
        known = np.isfinite(disparity)
        complete = disparity if known.all() else _without_gaps(disparity)
        views = cls(left, right, complete, nonocc_left & known, hole_right, raw_right, true_right)
        return views if scale_sign >= 0 else views._mirrored()

    def _mirrored(self) -> "Views":
        # x -> W - 1 - x turns x - d into x + d.
        return Views(
            left=_flip(self.left),
            right=_flip(self.right),
            disparity=_flip(-self.disparity),
            visible=_flip(self.visible),
            hole=_flip(self.hole),
            raw_right=None if self.raw_right is None else _flip(self.raw_right),
            true_right=None if self.true_right is None else _flip(self.true_right),
        )

    @property
    def reach(self) -> float:
        """Largest absolute disparity of the label, pixels."""
        return float(np.abs(self.disparity).max(initial=0.0))

    @cached_property
    def warp(self) -> ForwardWarp:
        """The label's warp to the right view, of one map."""
        return forward_warp(torch.from_numpy(self.disparity)[None], torch.ones(1), subpixel=True)

    @cached_property
    def right_disparity(self) -> F32:
        """H,W float32, disparity of the right view's pixels, by the label's warp; NaN in its holes."""
        return np.asarray(self.warp(torch.from_numpy(self.disparity)[None, None], np.nan)[0, 0].numpy(), np.float32)

    @cached_property
    def warped(self) -> Image:
        """The left view warped by the label, holes filled from the background: a right view that fits the label."""
        warp = self.warp
        columns = background_columns(warp.filled, torch.from_numpy(self.right_disparity)[None], torch.ones(1))
        pixels = torch.from_numpy(self.left).permute(2, 0, 1)[None].float()  # H,W,3 -> 1,3,H,W
        filled = extend_background(warp(pixels), columns)[0].permute(1, 2, 0)
        return np.asarray((filled + 0.5).clamp(0, 255).to(torch.uint8).numpy(), np.uint8)


def _without_gaps(disparity: F32) -> F32:
    """Fill unknown disparities from their rows; 0 where none is known at all."""
    complete = fill_sparse(torch.from_numpy(np.ascontiguousarray(disparity, np.float32))[None])[0].numpy()
    return np.where(np.isfinite(complete), complete, np.float32(0))


def check_sizes(
    left: Image,
    right: Image,
    disparity: F32,
    nonocc_left: Bools,
    hole_right: Bools,
    *,
    raw_right: Image | None = None,
    true_right: Image | None = None,
) -> None:
    """Check that the parts of a pair have one size. Raises ValueError, naming the part that does not fit."""
    given = {"left": left, "right": right, "raw_right": raw_right, "true_right": true_right}
    for name, image in given.items():
        if image is None:
            continue
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.shape != left.shape:
            raise ValueError(f"{name} must be H,W,3 uint8 in one size, got {image.shape} {image.dtype}")
    for name, values in (("disparity", disparity), ("nonocc_left", nonocc_left), ("hole_right", hole_right)):
        if values.shape != left.shape[:2]:
            raise ValueError(f"{name} must be {left.shape[:2]}, the size of left, got {values.shape}")


def _flip(values: NDArray[T]) -> NDArray[T]:
    return np.ascontiguousarray(values[:, ::-1])


def sample(image: NDArray[np.generic], disparity: F32) -> NDArray[np.float64]:
    """Sample an image (H,W or H,W,C) at x - d(x), linearly along the row; beyond the frame, its edge is repeated."""
    height, width = disparity.shape
    at = np.clip(np.arange(width) - disparity.astype(np.float64), 0, width - 1)
    first = at.astype(np.int64)  # rounds down: no place is negative
    second = np.minimum(first + 1, width - 1)
    share = at - first
    rows = np.arange(height)[:, None] * width
    a, b = (image.reshape(height * width, *image.shape[2:])[rows + columns] for columns in (first, second))
    share = share.reshape(*share.shape, *(1,) * (image.ndim - 2))
    return np.asarray(a + share * np.subtract(b, a, dtype=np.float64), np.float64)
