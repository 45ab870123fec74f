"""Where the background of a warped view goes on into its holes, and continuing it row by row."""

import torch
from torch import Tensor
from torch.nn import functional

from stereo_jobs.stereo.bands import in_bands
from stereo_jobs.stereo.disparity import nearness


def background_columns(filled: Tensor, disparity: Tensor, scale_sign: Tensor) -> Tensor:
    """Find the nearest filled column on the background's side, for every hole pixel of a warped view.

    Args:
        filled: B,h,w bool, the mask of the warped view.
        disparity: B,h,w, disparity of the warped view; only filled pixels are read.
        scale_sign: B; where negative, the larger disparity is the farther one.

    Returns:
        B,h,w int64 columns. Filled pixels, and all pixels of a row without any filled pixel, get their own column.
    """
    width = filled.shape[-1]
    column = torch.arange(width, device=filled.device).expand(filled.shape)
    before = torch.where(filled, column, -1).cummax(-1).values  # -1: none on this side
    after = torch.where(filled, column, width).flip(-1).cummin(-1).values.flip(-1)
    near = nearness(disparity, scale_sign)
    far_before = near.gather(-1, before.clamp(min=0)).masked_fill(before < 0, torch.inf)
    far_after = near.gather(-1, after.clamp(max=width - 1)).masked_fill(after >= width, torch.inf)
    chosen = torch.where(far_after <= far_before, after, before)
    return torch.where((chosen < 0) | (chosen >= width), column, chosen)


def mirrored_columns(filled: Tensor, disparity: Tensor, scale_sign: Tensor, step: float) -> Tensor:
    """Find the column that mirrors a hole pixel at the edge of the background, for every hole pixel.

    Where the mirrored pixel is not background (a hole, outside the frame, or nearer than the edge by more than `step`),
    the edge itself is taken, as in `background_columns`.

    Args:
        filled: B,h,w bool, the mask of the warped view.
        disparity: B,h,w, disparity of the warped view; only filled pixels are read.
        scale_sign: B; where negative, the larger disparity is the farther one.
        step: largest difference of disparity within the background.

    Returns:
        B,h,w int64 columns. Filled pixels, and all pixels of a row without any filled pixel, get their own column.
    """
    edges = background_columns(filled, disparity, scale_sign)
    width = filled.shape[-1]
    mirrored = 2 * edges - torch.arange(width, device=filled.device)
    inside = mirrored.clamp(0, width - 1)
    near = nearness(disparity, scale_sign)
    nearer = near.gather(-1, inside) - near.gather(-1, edges)
    return torch.where((mirrored == inside) & filled.gather(-1, inside) & (nearer <= step), inside, edges)


def background_beside(filled: Tensor, disparity: Tensor, scale_sign: Tensor, step: float) -> Tensor:
    """Find the filled pixels at the rim of holes that belong to the background: what holes are continued from.

    A pixel counts if it touches a hole, beside, above, below or at a corner, and is not nearer than the background that
    `background_columns` finds for that hole.

    Args:
        filled: B,h,w bool, the mask of the warped view.
        disparity: B,h,w, disparity of the warped view; only filled pixels are read.
        scale_sign: B; where negative, the larger disparity is the farther one.
        step: disparity by which a pixel may be nearer and still be background.

    Returns:
        B,h,w bool.
    """
    near = nearness(disparity, scale_sign)
    behind = near.gather(-1, background_columns(filled, disparity, scale_sign))
    behind = torch.where(filled.any(-1, keepdim=True), behind, torch.inf)  # a row of a hole alone: all is background
    around = functional.max_pool2d(behind.masked_fill(filled, -torch.inf)[:, None], 3, stride=1, padding=1)[:, 0]
    return filled & (near <= around + step)


def extend_background(image: Tensor, columns: Tensor) -> Tensor:
    """Give every pixel the value at its column: the fill of the `stretch` baseline (StereoDiffusion, Table 1).

    Args:
        image: B,C,h,w.
        columns: B,h,w, from `background_columns` or `mirrored_columns`.
    """
    return image.gather(-1, columns[:, None].expand(-1, image.shape[1], -1, -1))


def fill_sparse(maps: Tensor) -> Tensor:
    """Fill the gaps (values that are not finite) of B,h,w maps from their neighbours in the row.

    A gap takes the nearest value on its left, or on its right where there is none on the left. A row without any value
    is filled from the row above, or below. A map without any value stays as it is.
    """
    maps = in_bands(_fill_rows, maps)
    known = torch.isfinite(maps[..., :1]).transpose(-1, -2)  # B,1,h: a row is now known throughout, or not at all
    if known.all():
        return maps
    return maps.gather(-2, _nearest_known(known).transpose(-1, -2).expand_as(maps))


def _fill_rows(maps: Tensor) -> Tensor:
    """Fill the gaps of each row from the row alone."""
    return maps.gather(-1, _nearest_known(torch.isfinite(maps)))


def _nearest_known(known: Tensor) -> Tensor:
    """Find the nearest known place along the last dimension, for every place; on the left if there is any."""
    width = known.shape[-1]
    place = torch.arange(width, device=known.device).expand(known.shape)
    before = torch.where(known, place, -1).cummax(-1).values
    after = torch.where(known, place, width).flip(-1).cummin(-1).values.flip(-1)
    return torch.where(before >= 0, before, after).clamp(max=width - 1)
