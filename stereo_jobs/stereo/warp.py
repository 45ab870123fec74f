"""Stereo Pixel Shift: the forward warp of the method and the masks it implies (Sec. 3.1, Eq. 3).

Eq. 3 is written as a gather. Read literally it samples the disparity at the target and moves content to the
right; the published code scatters, and so do we: the source column x goes to x - d. Where two sources land on
one target, the nearer one wins.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ForwardWarp:
    """Where every target pixel comes from. Masks are facts of the warp, never guessed from pixel values.

    Attributes:
        source: B,h,w int64, source column of each target pixel; 0 in holes.
        filled: B,h,w bool, the paper's mask M: True where the warp wrote a value; holes are `~filled`.
        visible: B,h,w bool on the SOURCE grid: the pixel is in the frame and not hidden by a nearer one.
    """

    source: Tensor
    filled: Tensor
    visible: Tensor

    def __call__(self, x: Tensor, into: Tensor | float = 0.0) -> Tensor:
        """Warp `x` (B,C,h,w); holes take the values of `into` (same shape, or one number)."""
        index = self.source[:, None].expand(-1, x.shape[1], -1, -1)  # B,h,w -> B,C,h,w
        return torch.where(self.filled[:, None], x.gather(-1, index), into)


def forward_warp(disparity: Tensor, scale_sign: Tensor) -> ForwardWarp:
    """Stereo Pixel Shift (StereoDiffusion, Sec. 3.1, Eq. 3): truncate, scatter, nearest wins.

    Args:
        disparity: B,h,w float, pixels of this grid; content moves left by it.
        scale_sign: B, the sign of what turned depth into `disparity`: where it is negative (the view lies to
            the other side), the smallest disparity is the nearest point.

    Returns:
        The warp; applying it costs one gather.
    """
    shift = disparity.trunc().long()
    width = disparity.shape[-1]
    column = torch.arange(width, device=disparity.device).expand_as(shift)
    target = column - shift
    inside = (target >= 0) & (target < width)
    # Two sources on one target have x1 - d1 = x2 - d2: the one with the larger d is also the one further
    # right. So "nearest wins" is "largest column wins", mirrored where the scale is negative.
    mirrored = (scale_sign < 0)[:, None, None].to(shift.device)
    rank = torch.where(mirrored, width - 1 - column, column)
    slot = torch.where(inside, target, width)  # one spare column takes what leaves the frame
    winner = torch.full((*shift.shape[:-1], width + 1), -1, dtype=torch.int64, device=shift.device)
    winner = winner.scatter_reduce(-1, slot, rank, reduce="amax")
    visible = inside & (winner.gather(-1, slot) == rank)
    winner = winner[..., :width]
    filled = winner >= 0
    source = torch.where(mirrored, width - 1 - winner, winner)
    return ForwardWarp(source=torch.where(filled, source, 0), filled=filled, visible=visible)


def border_holes(filled: Tensor) -> Tensor:
    """The part of the holes that touches the left or right edge of the frame: B,h,w bool -> B,h,w bool.

    What belongs there lies outside the other view's frame, so no background of the scene can continue it.
    """
    holes = (~filled).long()
    from_left = holes.cumprod(-1)
    from_right = holes.flip(-1).cumprod(-1).flip(-1)
    return (from_left + from_right) > 0


def upsample(grid: Tensor, factor: int) -> Tensor:
    """Repeat every latent pixel `factor` times each way: B,h,w -> B,h*factor,w*factor."""
    return grid.repeat_interleave(factor, dim=-1).repeat_interleave(factor, dim=-2)
