"""Stereo Pixel Shift: the forward warp of the method and the masks it implies (Sec. 3.1, Eq. 3).

Eq. 3 is written as a gather. Read literally, it samples the disparity at the target and moves content to the right.
The published code scatters instead, and this module does the same: source column x goes to x - d. Where two sources
land on one target, the nearer one wins.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

SURFACE_PX = 1.001
"""Largest difference of disparity within a surface, from column to column: a pixel, and what rounding may add to it."""


@dataclass(frozen=True)
class ForwardWarp:
    """A computed Stereo Pixel Shift (StereoDiffusion, Sec. 3.1, Eq. 3): where every target pixel comes from.

    The masks are results of the warp; they are never inferred from pixel values.

    Attributes:
        source: B,h,w int64, source column of each target pixel; 0 in holes.
        filled: B,h,w bool, the paper's mask M: True where the warp wrote a value; holes are `~filled`.
        visible: B,h,w bool on the SOURCE grid, True where the pixel stays in the frame and no nearer one hides it.
        beside: B,h,w int64, the column next to `source` that a sub-pixel warp blends with; None for whole pixels.
        share: B,h,w float in [0, 1], weight of `beside` in the blend; None for whole pixels.
    """

    source: Tensor
    filled: Tensor
    visible: Tensor
    beside: Tensor | None = None
    share: Tensor | None = None

    def __call__(self, x: Tensor, into: Tensor | float = 0.0) -> Tensor:
        """Warp `x` (B,C,h,w); holes take the values of `into` (the same shape, or one number)."""
        value = _columns(x, self.source)
        if self.beside is not None and self.share is not None:
            value = torch.lerp(value, _columns(x, self.beside), self.share[:, None].to(x.dtype))
        return torch.where(self.filled[:, None], value, into)

    def nearest(self, x: Tensor, into: Tensor | float = 0.0) -> Tensor:
        """Warp `x` by whole pixels: each value goes to one target at most, so white noise stays white.

        Where a surface is stretched, a target would repeat its neighbour's value; it takes that of `into` instead.
        """
        again = self.filled & self.filled.roll(1, -1) & (self.source == self.source.roll(1, -1))
        again[..., 0] = False  # `roll` wraps around: the neighbour is at the opposite edge
        return torch.where((self.filled & ~again)[:, None], _columns(x, self.source), into)

    def pad(self, columns: int) -> "ForwardWarp":
        """The same warp on a grid with `columns` more columns on the right, which are neither source nor target."""
        padded: dict[str, Any] = {
            name: None if values is None else functional.pad(values, (0, columns))
            for name, values in vars(self).items()
        }
        return ForwardWarp(**padded)

    def mirrored(self) -> "ForwardWarp":
        """The same warp of the mirrored view: column x becomes w - 1 - x."""
        last = self.source.shape[-1] - 1
        source = torch.where(self.filled, last - self.source, 0).flip(-1)
        beside = None if self.beside is None else torch.where(self.filled, last - self.beside, 0).flip(-1)
        share = None if self.share is None else self.share.flip(-1)
        return ForwardWarp(source, self.filled.flip(-1), self.visible.flip(-1), beside, share)

    @classmethod
    def cat(cls, warps: Sequence["ForwardWarp"]) -> "ForwardWarp":
        """Stack warps on grids of the same size along the batch.

        Raises:
            ValueError: whole-pixel and sub-pixel warps are mixed.
        """
        if len({warp.beside is None for warp in warps}) > 1:
            raise ValueError("warps: whole-pixel and sub-pixel warps cannot form one batch; make all of them alike")
        together: dict[str, Any] = {
            name: None if first is None else torch.cat([vars(warp)[name] for warp in warps])
            for name, first in vars(warps[0]).items()
        }
        return cls(**together)


def forward_warp(disparity: Tensor, scale_sign: Tensor, *, subpixel: bool = False) -> ForwardWarp:
    """Stereo Pixel Shift (StereoDiffusion, Sec. 3.1, Eq. 3): a forward warp in which the nearest source wins.

    Args:
        disparity: B,h,w float, in pixels of this grid; content moves left by it.
        scale_sign: B, the sign of the scale that turned depth into `disparity`. Where it is negative (the new view is
            on the other side), the smallest disparity is the nearest point.
        subpixel: False truncates to whole pixels, as the published code does. True keeps the fraction, and draws each
            surface as one piece: between neighbouring columns of a surface the targets are interpolated, at its ends it
            reaches half a pixel farther. A surface is a run of columns in a row, each of whose disparities differs from
            the one before by at most a pixel. Its columns land in their own order, so that it never hides itself.

    Returns:
        The warp; applying it costs one gather, or two if `subpixel`.
    """
    mirrored = (scale_sign < 0)[:, None, None].to(disparity.device)
    # The view from the other side is the mirror image of the view from this side of the mirrored scene.
    draw = _draw_surfaces if subpixel else _move_pixels
    if disparity.device.type == "cpu" and not mirrored.any():  # on a GPU the answer would be waited for
        return draw(disparity)
    warp = draw(torch.where(mirrored, -disparity.flip(-1), disparity))
    turned = warp.mirrored()
    made: dict[str, Any] = {
        name: None if values is None else torch.where(mirrored, vars(turned)[name], values)
        for name, values in vars(warp).items()
    }
    return ForwardWarp(**made)


def _move_pixels(disparity: Tensor) -> ForwardWarp:
    """Send every column to the whole column at which its truncated disparity puts it."""
    width = disparity.shape[-1]
    column = torch.arange(width, device=disparity.device).expand(disparity.shape)
    target = column - disparity.trunc().long()
    winner = _nearest_sources([target], column)
    inside = (target >= 0) & (target < width)
    visible = inside & (winner.gather(-1, target.clamp(0, width - 1)) == column)
    return ForwardWarp(source=winner.clamp(min=0), filled=winner >= 0, visible=visible)


def _draw_surfaces(disparity: Tensor) -> ForwardWarp:
    """Draw every surface between the places at which its columns land."""
    width = disparity.shape[-1]
    column = torch.arange(width, device=disparity.device).expand(disparity.shape)
    landing = column - disparity
    joined = (disparity[..., 1:] - disparity[..., :-1]).abs() <= SURFACE_PX  # B,h,w-1: with the next column
    goes_on, went_on = functional.pad(joined, (0, 1)), functional.pad(joined, (1, 0))
    # A column covers the targets beyond its own place up to the next column's: two at most, three at a surface's start.
    low = torch.where(went_on, landing, landing - 0.5).floor().long()
    high = torch.where(goes_on, landing.roll(-1, -1), landing + 0.5).floor().long()
    winner = _nearest_sources([torch.where(low + n <= high, low + n, width) for n in (1, 2, 3)], column)
    filled, source = winner >= 0, winner.clamp(min=0)

    here = landing.gather(-1, source)
    between = filled & goes_on.gather(-1, source) & (here < column)
    after = torch.where(between, source + 1, source)
    span = torch.where(between, landing.gather(-1, after) - here, 1.0)
    share = torch.where(between, (column - here) / span, 0.0)
    second = share > 0.5  # the column that lies nearer to the target is its source

    surface = (~went_on).cumsum(-1)
    target = (landing + 0.5).floor().long()
    shown = source.gather(-1, target.clamp(0, width - 1))
    return ForwardWarp(
        source=torch.where(second, after, source),
        filled=filled,
        visible=(target >= 0) & (target < width) & (surface.gather(-1, shown) == surface),
        beside=torch.where(second, source, after),
        share=torch.where(second, 1 - share, share),
    )


def _nearest_sources(targets: Sequence[Tensor], column: Tensor) -> Tensor:
    """For each target, the nearest column that is sent to it, -1 for none: B,h,w int64.

    Args:
        targets: B,h,w int64 each, targets of every column; those outside the frame are ignored.
        column: B,h,w int64, the columns themselves.
    """
    width = column.shape[-1]
    winner = torch.full((*column.shape[:-1], width + 1), -1, dtype=torch.int64, device=column.device)
    for target in targets:
        # Two columns on one target have x1 - d1 = x2 - d2: the one with the larger d is also the one further right.
        slot = torch.where((target >= 0) & (target < width), target, width)  # a spare column for what leaves the frame
        winner = winner.scatter_reduce(-1, slot, column, reduce="amax")
    return winner[..., :width]


def _columns(x: Tensor, column: Tensor) -> Tensor:
    """Values of `x` (B,C,h,w) at one column for each pixel (B,h,w): B,C,h,w."""
    return x.gather(-1, column[:, None].expand(-1, x.shape[1], -1, -1))


def border_holes(filled: Tensor) -> Tensor:
    """The part of the holes that touches the left or right edge of the frame: B,h,w bool -> B,h,w bool.

    The scene there lies outside the left view's frame, so the left view has no background to continue into it.
    """
    holes = (~filled).long()
    from_left = holes.cumprod(-1)
    from_right = holes.flip(-1).cumprod(-1).flip(-1)
    return (from_left + from_right) > 0


def upsample(grid: Tensor, factor: int) -> Tensor:
    """Repeat every latent pixel `factor` times in both directions: B,h,w -> B,h*factor,w*factor."""
    return grid.repeat_interleave(factor, dim=-1).repeat_interleave(factor, dim=-2)
