"""Continuing the background into the holes of a warped view, row by row."""

import torch
from torch import Tensor
from torch.nn import functional


def background_columns(filled: Tensor, disparity: Tensor, scale_sign: Tensor) -> Tensor:
    """For every hole the nearest filled column of its row on the background's side.

    Args:
        filled: B,h,w bool of a warped view.
        disparity: B,h,w of the same view; only filled pixels are read.
        scale_sign: B; where negative, the larger disparity is the farther one.

    Returns:
        B,h,w int64; filled pixels name themselves, rows without any filled pixel too.
    """
    width = filled.shape[-1]
    column = torch.arange(width, device=filled.device).expand(filled.shape)
    before = torch.where(filled, column, -1).cummax(-1).values  # -1: none on this side
    after = torch.where(filled, column, width).flip(-1).cummin(-1).values.flip(-1)
    nearness = _nearness(disparity, scale_sign)
    far_before = nearness.gather(-1, before.clamp(min=0)).masked_fill(before < 0, torch.inf)
    far_after = nearness.gather(-1, after.clamp(max=width - 1)).masked_fill(after >= width, torch.inf)
    chosen = torch.where(far_after <= far_before, after, before)
    return torch.where((chosen < 0) | (chosen >= width), column, chosen)


def mirrored_columns(filled: Tensor, disparity: Tensor, scale_sign: Tensor, step: float) -> Tensor:
    """For every hole the filled column that mirrors it at the edge of the background.

    Where that is no background (a hole, outside, or over `step` nearer than the edge), it is the edge itself, as in
    `background_columns`.

    Args:
        filled: B,h,w bool of a warped view.
        disparity: B,h,w of the same view; only filled pixels are read.
        scale_sign: B; where negative, the larger disparity is the farther one.
        step: in units of `disparity`.

    Returns:
        B,h,w int64; filled pixels name themselves, rows without any filled pixel too.
    """
    edges = background_columns(filled, disparity, scale_sign)
    width = filled.shape[-1]
    mirrored = 2 * edges - torch.arange(width, device=filled.device)
    inside = mirrored.clamp(0, width - 1)
    nearness = _nearness(disparity, scale_sign)
    nearer = nearness.gather(-1, inside) - nearness.gather(-1, edges)
    return torch.where((mirrored == inside) & filled.gather(-1, inside) & (nearer <= step), inside, edges)


def _nearness(disparity: Tensor, scale_sign: Tensor) -> Tensor:
    """B,h,w of which the larger is the nearer."""
    return disparity * torch.where(scale_sign < 0, -1.0, 1.0).to(disparity)[:, None, None]


def extend_background(image: Tensor, columns: Tensor) -> Tensor:
    """Every pixel of B,C,h,w takes the value of its column of `background_columns`: the `stretch` baseline."""
    return image.gather(-1, columns[:, None].expand(-1, image.shape[1], -1, -1))


def smooth_across_rows(image: Tensor, holes: Tensor, reach: int) -> Tensor:
    """The holes of B,C,h,w, extended row by row, as the median of the rows around: one odd pixel draws no streak.

    Args:
        image: B,C,h,w, its holes continued from the background.
        holes: B,h,w bool.
        reach: rows above, and rows below.
    """
    around = functional.pad(image, (0, 0, reach, reach), mode="replicate").unfold(-2, 2 * reach + 1, 1)
    return torch.where(holes[:, None], around.median(-1).values, image)


def fill_sparse(maps: Tensor) -> Tensor:
    """Gaps (not finite) of B,h,w maps take the value of the left neighbour, at the left edge of the right one.

    Rows without any value take those of the row above, or below; a map without any value stays as it is.
    """
    rows = _carry(maps, torch.isfinite(maps))
    down = rows.transpose(-1, -2)
    return _carry(down, torch.isfinite(down)).transpose(-1, -2)


def _carry(maps: Tensor, known: Tensor) -> Tensor:
    width = maps.shape[-1]
    column = torch.arange(width, device=maps.device).expand(maps.shape)
    before = torch.where(known, column, -1).cummax(-1).values
    after = torch.where(known, column, width).flip(-1).cummin(-1).values.flip(-1)
    chosen = torch.where(before >= 0, before, after)
    return maps.gather(-1, chosen.clamp(max=width - 1))
