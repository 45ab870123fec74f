"""Stereo Pixel Shift: the forward warp of the method and the masks it implies (Sec. 3.1, Eq. 3).

Eq. 3 is written as a gather. Read literally, it samples the disparity at the target and moves content to the right.
The published code scatters instead, and this module does the same: source column x goes to x - d. Where two sources
land on one target, the nearer one wins.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


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

        A closed crack would repeat its neighbour's value; it takes the value of `into` instead.
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
    """Stereo Pixel Shift (StereoDiffusion, Sec. 3.1, Eq. 3): a scatter in which the nearest source wins.

    Args:
        disparity: B,h,w float, in pixels of this grid; content moves left by it.
        scale_sign: B, the sign of the scale that turned depth into `disparity`. Where it is negative (the new view is
            on the other side), the smallest disparity is the nearest point.
        subpixel: False truncates to whole pixels, as the published code does. True keeps the fraction: a target
            blends the two columns it lies between, if both belong to one surface (disparities within half a pixel);
            at the edge of a surface it takes the nearer column alone. Gaps of one column that a receding surface
            leaves are closed, even where something behind the surface shows through them.

    Returns:
        The warp; applying it costs one gather, or two if `subpixel`.
    """
    column = torch.arange(disparity.shape[-1], device=disparity.device).expand(disparity.shape)
    if not subpixel:
        return _scatter(column - disparity.trunc().long(), column, scale_sign)
    landing = column - disparity
    target = (landing + 0.5).floor().long()
    warp = _see_narrowed(_scatter(target, column, scale_sign), disparity, target)
    return _blend(_close_cracks(warp, disparity, target, scale_sign), disparity, landing)


def _scatter(target: Tensor, column: Tensor, scale_sign: Tensor) -> ForwardWarp:
    """Send every source column to its target column; where several meet, the nearest wins."""
    width = column.shape[-1]
    inside = (target >= 0) & (target < width)
    # Two sources on one target have x1 - d1 = x2 - d2 (to less than a pixel): the one with the larger d is also the
    # one further right. Therefore "nearest wins" is "largest column wins", mirrored where the scale is negative.
    mirrored = (scale_sign < 0)[:, None, None].to(column.device)
    rank = torch.where(mirrored, width - 1 - column, column)
    slot = torch.where(inside, target, width)  # one spare column collects what leaves the frame
    winner = torch.full((*column.shape[:-1], width + 1), -1, dtype=torch.int64, device=column.device)
    winner = winner.scatter_reduce(-1, slot, rank, reduce="amax")
    visible = inside & (winner.gather(-1, slot) == rank)
    winner = winner[..., :width]
    filled = winner >= 0
    source = torch.where(mirrored, width - 1 - winner, winner)
    return ForwardWarp(source=torch.where(filled, source, 0), filled=filled, visible=visible)


def _see_narrowed(warp: ForwardWarp, disparity: Tensor, target: Tensor) -> ForwardWarp:
    """Mark neighbours of one surface that share a target as visible: a slanted surface does not hide itself."""
    width = disparity.shape[-1]
    inside = (target >= 0) & (target < width)
    shown = warp.source.gather(-1, target.clamp(0, width - 1))
    neighbour = (shown - torch.arange(width, device=shown.device)).abs() == 1
    shared = inside & neighbour & _one_surface(disparity.gather(-1, shown), disparity)
    return replace(warp, visible=warp.visible | shared)


def _close_cracks(warp: ForwardWarp, disparity: Tensor, target: Tensor, scale_sign: Tensor) -> ForwardWarp:
    """Fill gaps of one column inside a surface from the neighbour that is nearer (`_blend` then interpolates).

    Either nothing landed in such a gap, or something behind the surface shows through it. A gap lies inside a surface
    if the columns on both sides, and the source column between them, belong to the surface.
    """
    mirrored = (scale_sign < 0)[:, None, None].to(disparity.device)
    before, after = warp.source.roll(1, -1), warp.source.roll(-1, -1)
    here, first, last, between = (disparity.gather(-1, c) for c in (warp.source, before, after, (before + after) // 2))
    beside = warp.filled.roll(1, -1) & warp.filled.roll(-1, -1) & ((first - last).abs() <= 1)
    beside[..., 0] = beside[..., -1] = False  # `roll` wraps around: the neighbours are at the opposite edge
    farther = torch.where(mirrored, here - torch.maximum(first, last), torch.minimum(first, last) - here) > 1
    whole = ((before - after).abs() <= 2) & ((between - first).abs() <= 1) & ((between - last).abs() <= 1)
    shown = warp.filled & beside & farther & whole
    crack = (~warp.filled & beside) | shown
    nearer = torch.where(mirrored, after, before)
    hidden = shown.gather(-1, target.clamp(0, disparity.shape[-1] - 1))
    return replace(
        warp,
        source=torch.where(crack, nearer, warp.source),
        filled=warp.filled | crack,
        visible=warp.visible & ~hidden,
    )


def _blend(warp: ForwardWarp, disparity: Tensor, landing: Tensor) -> ForwardWarp:
    """Find the two source columns between which each target lies, and the weight of the second."""
    width = disparity.shape[-1]
    target = torch.arange(width, device=disparity.device).expand(disparity.shape)
    here = landing.gather(-1, warp.source)
    beside = (warp.source + torch.where(here < target, 1, -1)).clamp(0, width - 1)
    one_surface = _one_surface(disparity.gather(-1, beside), disparity.gather(-1, warp.source))
    span = landing.gather(-1, beside) - here
    usable = one_surface & (span != 0)
    share = torch.where(usable, (target - here) / torch.where(usable, span, 1.0), 0.0).clamp(0, 1)
    return replace(warp, beside=beside, share=share)


def _one_surface(disparity: Tensor, beside: Tensor) -> Tensor:
    """Where neighbouring columns belong to one surface: their disparities differ by at most half a pixel."""
    return (disparity - beside).abs() <= 0.5


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
