"""From a depth map to a shift in pixels (StereoDiffusion, Sec. 3.1, Eq. 2)."""

import torch
from torch import Tensor
from torch.nn import functional


def relative_disparity(inverse_depth: Tensor, *, of: Tensor | None = None) -> Tensor:
    """Normalise inverse depth to [0, 1] per sample (StereoDiffusion, Sec. 3.1: "normalize the range").

    Args:
        inverse_depth: B,h,w, any unit, larger is nearer, finite.
        of: whose range becomes [0, 1], the same maps before a change within it; left out: their own.

    Returns:
        B,h,w in [0, 1]; a map without any depth (constant) becomes 0 everywhere, which shifts nothing.
    """
    flat = (inverse_depth if of is None else of).flatten(1)  # B,h*w
    low = flat.amin(dim=1)[:, None, None]
    high = flat.amax(dim=1)[:, None, None]
    span = high - low
    return torch.where(span > 0, (inverse_depth - low) / span.where(span > 0, 1.0), 0.0)


def resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize maps as the published code does: bicubic, `align_corners=False`. B,H,W -> B,h,w."""
    if tuple(maps.shape[-2:]) == size:
        return maps
    return functional.interpolate(maps[:, None], size=size, mode="bicubic", align_corners=False)[:, 0]


def scaled_disparity(relative: Tensor, scale_percent: Tensor) -> Tensor:
    """Disparity in pixels of the grid it is on (StereoDiffusion, Eq. 3: `s * D`).

    Args:
        relative: B,h,w in [0, 1].
        scale_percent: B, shift of the nearest point in percent of the width; negative swaps the direction.

    Returns:
        B,h,w float in pixels, before any quantisation.
    """
    # The factor is rounded to float32 once, then multiplied: the order in which the published code rounds.
    pixels = (scale_percent.double() / 100.0 * relative.shape[-1]).to(relative.dtype)
    return relative * pixels[:, None, None].to(relative.device)


def metric_disparity(depth: Tensor, focal_px: float, baseline: float, doffs_px: float = 0.0) -> Tensor:
    """Disparity in pixels from metric depth (StereoDiffusion, Eq. 2): d = focal * baseline / Z - doffs.

    Args:
        depth: ...,h,w > 0, in the unit of `baseline`; not finite where it is unknown, and so is the result.
        focal_px: focal length in pixels of this image.
        baseline: distance between the cameras.
        doffs_px: difference of the principal points, x of the right camera minus that of the left.
    """
    return focal_px * baseline / depth - doffs_px


def sharpen_edges(maps: Tensor, radius: int, threshold: float = 0.12, near: float = 0.25) -> Tensor:
    """Give the pixels of a blurred depth edge to one of its sides (border hygiene before the shift).

    Estimators blur their edges and resizing does, too; shifted, such a ramp tears the object's rim over the hole.
    Where the values within `radius` span more than `threshold` of the map's range, each pixel takes the smallest or
    the largest of them (toggle mapping, Kramer and Bruckner 1975), the smallest of its own row if that has the edge: a
    floor beside an object is as far away as its row, not as those above. Most of a ramp goes to the near side, and a
    pixel beyond: an object's outline that stays behind on the background is seen, a rim of background that moves with
    the object is not. Medians of 3x3 pixels before and after keep odd ones from tearing holes ragged.

    Args:
        maps: B,h,w inverse depth or disparity.
        radius: pixels; 0 changes nothing.
        threshold: share of the map's range that makes an edge; floors that recede span less.
        near: share of the way up from which on a pixel belongs to the near side.
    """
    if radius == 0:
        return maps
    flat = maps.flatten(1)
    step = threshold * (flat.amax(1) - flat.amin(1))[:, None, None]
    even = _median_around(maps)
    high, low = _largest_around(even, radius), -_largest_around(-even, radius)
    row_high, row_low = _largest_around(even, radius, rows=0), -_largest_around(-even, radius, rows=0)
    low = torch.where(row_high - row_low > step, row_low, low)
    edge = high - low > step
    upper = edge & (even - low > near * (high - low))
    sharp = torch.where(edge, torch.where(upper, high, low), even)
    beside = _largest_around(torch.where(upper, high, -torch.inf), 1)
    sharp = torch.where(~upper & (beside - sharp > step), beside, sharp)
    around = _largest_around(edge.to(maps.dtype), 1) > 0
    return torch.where(around, _median_around(sharp), maps)


def _largest_around(maps: Tensor, radius: int, *, rows: int | None = None) -> Tensor:
    """The largest value within `radius` pixels, each way or across fewer `rows`: B,h,w -> B,h,w."""
    reach = (radius if rows is None else rows, radius)
    return functional.max_pool2d(maps[:, None], [2 * r + 1 for r in reach], stride=1, padding=reach)[:, 0]


def _median_around(maps: Tensor) -> Tensor:
    """The median of 3x3 pixels: B,h,w -> B,h,w."""
    framed = functional.pad(maps[:, None], (1, 1, 1, 1), mode="replicate")[:, 0]
    return framed.unfold(-2, 3, 1).unfold(-2, 3, 1).flatten(-2).median(-1).values
