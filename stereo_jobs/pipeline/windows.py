"""Windows through which a U-Net looks at a picture larger than it works at, and the resolutions at which it does so."""

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

from stereo_jobs.pipeline.resizing import Size
from stereo_jobs.pixels import Bools, Image

LARGEST_ZOOM = 0.75
"""Working pixels per photo pixel below which holes are drawn again; above, enlarging them blurs next to nothing."""
FINER = 4
"""Details that a level draws are at most so many times as fine as those drawn before it."""
MOST_WINDOWS = 64
"""Windows of the finest level of a photo. If its holes take more, that level has half of the photo's resolution, or a
quarter, and so on: the work of the U-Net has a bound."""
NARROWEST = 3
"""Latents that a hole spans in a row; a narrower one has no room for detail, and no window is opened for it."""


@dataclass(frozen=True)
class Windows:
    """Overlapping windows through which a U-Net looks at a canvas that is larger than it was trained for. In latents.

    Attributes:
        canvas: height and width of the canvas.
        size: height and width of a window.
        corners: top left corner of each.
    """

    canvas: Size
    size: Size
    corners: list[tuple[int, int]]

    @classmethod
    def over(cls, holes: Bools, size: Size, most: int) -> "Windows | None":
        """Cover holes, strip by strip from the top, each strip from the left; None if it takes more than `most`.

        A pixel counts as covered only where a window sees an eighth of its size beyond it, or the canvas ends.

        Args:
            holes: H,W bool, the canvas; at least of a window's size.
            size: height and width of a window.
            most: number of windows.
        """
        open_holes, corners = holes.copy(), []
        while open_holes.any():
            top, below = _span(np.asarray(open_holes.any(1)), size[0])
            strip = open_holes[:below]
            while strip.any():
                left, beside = _span(np.asarray(strip.any(0)), size[1])
                strip[:, :beside] = False
                corners.append((top, left))
                if len(corners) > most:
                    return None
        return cls((holes.shape[0], holes.shape[1]), size, corners)

    def places(self, factor: int) -> list[tuple[slice, slice]]:
        """Return the rows and columns of each window, in pixels; it may end beyond the picture."""
        height, width = (n * factor for n in self.size)
        corners = [(y * factor, x * factor) for y, x in self.corners]
        return [(slice(y, y + height), slice(x, x + width)) for y, x in corners]

    def cut(self, canvas: Tensor) -> Tensor:
        """Cut the windows out of a canvas: 1,C,H,W -> N,C,h,w."""
        height, width = self.size
        return torch.cat([canvas[..., y : y + height, x : x + width] for y, x in self.corners])

    def joined(self, parts: Tensor) -> Tensor:
        """Put windows together, each weighing most in its middle: N,C,h,w -> 1,C,H,W, zero where there is no window."""
        height, width = self.size
        ramp = ramps(self.size).to(parts)
        whole = torch.zeros(1, parts.shape[1], *self.canvas, device=parts.device)
        weights = torch.zeros(1, 1, *self.canvas, device=parts.device)
        for (y, x), part in zip(self.corners, parts, strict=True):
            whole[..., y : y + height, x : x + width] += part * ramp
            weights[..., y : y + height, x : x + width] += ramp
        return whole / weights.clamp_min(1e-6)


def _span(holes: Bools, size: int) -> tuple[int, int]:
    """Place a window along one axis: where it begins, and where the holes end that it covers."""
    margin = size // 8
    begin = max(0, min(int(holes.argmax()) - margin, len(holes) - size))
    end = begin + size
    return begin, end if end == len(holes) else end - margin


def ramps(size: Size) -> Tensor:
    """Weights of a window's pixels: 1 in the middle, falling over an eighth of its size towards each edge, h,w."""
    along = [torch.arange(1, n + 1).minimum(torch.arange(n, 0, -1)).float() / (n // 8 + 1) for n in size]
    return along[0].clamp(max=1)[:, None] * along[1].clamp(max=1)


@dataclass(frozen=True)
class Level:
    """One of the resolutions at which a right view's holes are drawn again.

    Attributes:
        shrink: pixels of the photo per pixel of the level, in a row: a power of two.
        holes: H,W bool, pixels of the level.
        windows: through which they are seen.
    """

    shrink: int
    holes: Bools
    windows: Windows

    @classmethod
    def of(cls, holes: Bools, shrink: int, window: Size, factor: int, most: int) -> "Level | None":
        """Plan a level; None if it takes too many windows.

        Args:
            holes: H,W bool, pixels of the photo that are drawn again.
            shrink: pixels of the photo per pixel of the level.
            window: size of a window in latents.
            factor: pixels per latent.
            most: number of windows.
        """
        shrunk = any_within(holes, shrink)
        grid = any_within(shrunk, factor)
        canvas = max(window[0], grid.shape[0]), max(window[1], grid.shape[1])
        wide = cv2.erode(padded_to(grid, canvas).astype(np.uint8), np.ones((1, NARROWEST), np.uint8)) > 0
        windows = Windows.over(wide, window, most)
        return None if windows is None else cls(shrink, shrunk, windows)

    def of_picture(self, picture: Image) -> Image:
        """Bring the photo's right view to this level; the photo itself, if it has the same pixels."""
        if self.shrink == 1:
            return picture
        height, width = self.holes.shape
        below, beside = height * self.shrink - picture.shape[0], width * self.shrink - picture.shape[1]
        whole = cv2.copyMakeBorder(picture, 0, below, 0, beside, cv2.BORDER_REPLICATE)
        return np.asarray(cv2.resize(whole, (width, height), interpolation=cv2.INTER_AREA), np.uint8)


def padded_to(mask: Bools, size: Size) -> Bools:
    """Lengthen a mask at the right and below."""
    return np.pad(mask, [(0, n - m) for n, m in zip(size, mask.shape, strict=True)])


def any_within(mask: Bools, block: int) -> Bools:
    """Whether any pixel of each block x block pixels is set: H,W -> ceil(H / block),ceil(W / block)."""
    if block == 1:
        return mask
    below, beside = (-n % block for n in mask.shape)
    blocks = np.pad(mask, ((0, below), (0, beside)))
    return np.asarray(blocks.reshape(blocks.shape[0] // block, block, -1, block).any((1, 3)))


def levels(holes: Bools, zoom: float, window: Size, factor: int) -> list[Level]:
    """Plan the levels of a photo, from coarse to fine.

    Args:
        holes: H,W bool, pixels of the photo that are drawn again.
        zoom: working pixels per photo pixel.
        window: size of a window in latents.
        factor: pixels per latent.
    """
    planned: list[Level] = []
    shrink = 1
    while shrink * zoom < LARGEST_ZOOM:
        level = Level.of(holes, shrink, window, factor, MOST_WINDOWS)
        if level is not None and level.windows.corners:
            planned.append(level)
        shrink *= FINER if planned else 2
    return planned[::-1]
