"""From a depth map to a shift in pixels (StereoDiffusion, Sec. 3.1, Eq. 2)."""

import torch
from torch import Tensor
from torch.nn import functional


def relative_disparity(inverse_depth: Tensor) -> Tensor:
    """Normalise inverse depth to [0, 1] per sample (StereoDiffusion, Sec. 3.1: "normalize the range").

    Args:
        inverse_depth: B,h,w, any unit, larger is nearer, finite.

    Returns:
        B,h,w in [0, 1]; a map without any depth (constant) becomes 0 everywhere, which shifts nothing.
    """
    flat = inverse_depth.flatten(1)  # B,h*w
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
