"""From a depth map to a shift in pixels (StereoDiffusion, Sec. 3.1, Eq. 2)."""

import torch
from torch import Tensor
from torch.nn import functional

from stereo_jobs.stereo.bands import in_bands


def relative_disparity(inverse_depth: Tensor, *, of: Tensor | None = None) -> Tensor:
    """Normalise inverse depth to [0, 1] per sample (StereoDiffusion, Sec. 3.1: "normalize the range").

    Args:
        inverse_depth: B,h,w, finite, in any unit; larger is nearer.
        of: B,h,w maps whose range becomes [0, 1], for example before their edges were sharpened. Default: the maps
            themselves.

    Returns:
        B,h,w in [0, 1]; a map without any depth (constant) becomes 0 everywhere, which shifts nothing.
    """
    flat = (inverse_depth if of is None else of).flatten(1)  # B,h*w
    low = flat.amin(dim=1)[:, None, None]
    high = flat.amax(dim=1)[:, None, None]
    span = high - low
    return in_bands(lambda part: torch.where(span > 0, (part - low) / span.where(span > 0, 1.0), 0.0), inverse_depth)


def resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize maps as the published code does, bicubic with `align_corners=False`: B,H,W -> B,h,w."""
    if tuple(maps.shape[-2:]) == size:
        return maps
    return functional.interpolate(maps[:, None], size=size, mode="bicubic", align_corners=False)[:, 0]


def scaled_disparity(relative: Tensor, scale_percent: Tensor) -> Tensor:
    """Disparity in pixels of the grid it is on (StereoDiffusion, Eq. 3: `s * D`).

    Args:
        relative: B,h,w in [0, 1].
        scale_percent: B, shift of the nearest point in percent of the width; negative values shift to the other side.

    Returns:
        B,h,w float in pixels, not yet rounded.
    """
    # The factor is rounded to float32 once, then multiplied: the order in which the published code rounds.
    pixels = (scale_percent.double() / 100.0 * relative.shape[-1]).to(relative.dtype)
    return relative * pixels[:, None, None].to(relative.device)


def metric_disparity(depth: Tensor, focal_px: float, baseline: float, doffs_px: float = 0.0) -> Tensor:
    """Disparity in pixels from metric depth (StereoDiffusion, Eq. 2): d = focal * baseline / Z - doffs.

    Args:
        depth: ...,h,w > 0, in the unit of `baseline`; where it is not finite (unknown), the result is not finite.
        focal_px: focal length in pixels of this image.
        baseline: distance between the cameras.
        doffs_px: difference of the principal points: x of the right camera minus x of the left.
    """
    return focal_px * baseline / depth - doffs_px


def sharpen_edges(maps: Tensor, radius: int, threshold: float = 0.12, near: float = 0.25) -> Tensor:
    """Assign the pixels of a blurred depth edge to one of its sides (toggle mapping, Kramer and Bruckner 1975).

    Depth estimators blur edges, and so does resizing. When such a ramp is shifted, the object's rim is smeared over
    the hole. Where the values within `radius` of a pixel differ by more than `threshold` of the map's range, the pixel
    takes the smallest or the largest of them. The smallest is taken from the pixel's own row if the edge shows there:
    the floor beside an object is as far away as its own row, not as the rows above.

    Most of a ramp, and one more pixel, goes to the near side: a piece of an object's outline that stays behind on the
    background is visible, but a rim of background that moves with the object is not. Medians of 3x3 pixels before and
    after keep single outliers from making the holes ragged.

    Args:
        maps: B,h,w inverse depth or disparity, larger is nearer.
        radius: width of a blurred edge in pixels; 0 changes nothing.
        threshold: share of the map's range that counts as an edge; a receding floor spans less.
        near: position on the ramp, from 0 (far) to 1 (near), above which a pixel goes to the near side.

    Returns:
        B,h,w; equal to `maps` more than a pixel away from edges.
    """
    if radius == 0:
        return maps
    flat = maps.flatten(1)
    step = threshold * (flat.amax(1) - flat.amin(1))[:, None, None]
    return in_bands(lambda part: _sharpen(part, step, radius, near), maps, halo=radius + 3)


def _sharpen(maps: Tensor, step: Tensor, radius: int, near: float) -> Tensor:
    """Sharpen the edges of maps, or of some of their rows; `step` (B,1,1) is the difference that counts as an edge."""
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
    """The largest value within `radius` pixels in each direction, vertically within `rows`: B,h,w -> B,h,w."""
    reach = (radius if rows is None else rows, radius)
    return functional.max_pool2d(maps[:, None], [2 * r + 1 for r in reach], stride=1, padding=reach)[:, 0]


def _median_around(maps: Tensor) -> Tensor:
    """The median of 3x3 pixels: B,h,w -> B,h,w."""
    framed = functional.pad(maps[:, None], (1, 1, 1, 1), mode="replicate")[:, 0]
    return framed.unfold(-2, 3, 1).unfold(-2, 3, 1).flatten(-2).median(-1).values
