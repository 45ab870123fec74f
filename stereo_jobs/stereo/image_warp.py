"""The warp of one image at its own size, in bands of rows: at 50 megapixels a whole warp would take 1.5 GB."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from stereo_jobs.stereo.bands import bands
from stereo_jobs.stereo.fill import background_columns, extend_background, mirrored_columns
from stereo_jobs.stereo.rims import Rims
from stereo_jobs.stereo.warp import ForwardWarp, border_holes, forward_warp


@dataclass(frozen=True)
class Masks:
    """What a warp says of both views, 1,H,W bool each.

    Attributes:
        visible: pixels of the left view that the right one shows.
        filled: pixels of the right view that the left one gives.
        border: pixels of the right view that lie beyond the left view's frame.
    """

    visible: Tensor
    filled: Tensor
    border: Tensor


@dataclass(frozen=True)
class WarpedRows:
    """The warp of some rows of an image, and where its holes continue the background. B = 1.

    Attributes:
        warp: warp of their pixels.
        edges: column of the background beside each hole.
        columns: column from which each pixel of a hole continues the background.
        rims: soft rims of these rows, and the warp that moves them with their objects; None: pixels move as a whole.
        moved: disparity of each warped pixel, 1,rows,W; 0 in holes.
    """

    warp: ForwardWarp
    edges: Tensor
    columns: Tensor
    rims: tuple[Rims, ForwardWarp] | None
    moved: Tensor

    def seen(self, pixels: Tensor) -> Tensor:
        """Warp the pixels of these rows, without the soft rims of objects: 1,3,rows,W; 0 in holes."""
        return self.warp(pixels if self.rims is None else self.rims[0].without_objects(pixels))

    def continued(self, pixels: Tensor) -> Tensor:
        """Warp as `seen`, and continue the background into the holes: 1,3,rows,W."""
        return extend_background(self.seen(pixels), self.columns)

    def with_rims(self, view: Tensor, pixels: Tensor) -> Tensor:
        """Lay the soft rims of objects over a view of these rows, whose holes are filled: 1,3,rows,W in [0, 1] both."""
        if self.rims is None:
            return view
        rims, warp = self.rims
        return rims.over(view, pixels, warp)


class ImageWarp:
    """The Stereo Pixel Shift of one image at its own size. Rows are warped when they are asked for.

    Args:
        disparity: 1,H,W pixels; content moves left by it.
        sign: the sign of the scale, see `forward_warp`.
        subpixel: keep the fraction of the disparity.
        nearness: 1,H,W, a disparity that says which background is farther; None: `disparity` itself.
        mirror: continue the background by its mirror image, over surfaces whose disparity changes by at most so many
            pixels; None: by the pixel at its edge.
        rims: soft rims of the image, to be moved apart from the rest; None: every pixel moves as a whole.
    """

    def __init__(
        self,
        disparity: Tensor,
        sign: Tensor,
        *,
        subpixel: bool = True,
        nearness: Tensor | None = None,
        mirror: float | None = None,
        rims: Rims | None = None,
    ) -> None:
        self.disparity = disparity
        self.sign = sign
        self.rims = rims
        self._subpixel = subpixel
        self._nearness = disparity if nearness is None else nearness
        self._mirror = mirror
        self._latest: tuple[slice, WarpedRows] | None = None
        """The rows that were warped last: an image of one band is warped once."""

    def bands(self) -> Iterator[slice]:
        """The bands of the image, from the top down."""
        return bands(*self.disparity.shape[-2:])

    def rows(self, rows: slice) -> WarpedRows:
        """Warp some rows."""
        if self._latest is None or self._latest[0] != rows:
            self._latest = rows, self._warp(rows)
        return self._latest[1]

    def _warp(self, rows: slice) -> WarpedRows:
        nearness = self._nearness[:, rows]
        warp = forward_warp(self.disparity[:, rows], self.sign, subpixel=self._subpixel)
        moved = warp(nearness[:, None])[:, 0]
        columns = edges = background_columns(warp.filled, moved, self.sign)
        if self._mirror is not None:
            columns = mirrored_columns(warp.filled, moved, self.sign, self._mirror)
        rims = None
        if self.rims is not None:
            own = self.rims.of_rows(rows)
            moved_along = forward_warp(own.with_objects(self.disparity[:, rows]), self.sign, subpixel=self._subpixel)
            rims = own, moved_along
        return WarpedRows(warp, edges, columns, rims, moved)

    def continued(self, values: Tensor) -> Tensor:
        """Warp an image or map 1,C,H,W and continue the background into its holes."""
        return torch.cat([self.rows(rows).continued(values[..., rows, :]) for rows in self.bands()], -2)

    @cached_property
    def masks(self) -> Masks:
        """What the applied disparity says of both views."""
        parts = []
        for rows in self.bands():
            warp = self.rows(rows).warp
            parts.append((warp.visible, warp.filled, border_holes(warp.filled)))
        return Masks(*(torch.cat(masks, 1) for masks in zip(*parts, strict=True)))
