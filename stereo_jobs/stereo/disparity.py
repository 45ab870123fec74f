"""From a depth map to a shift in pixels (StereoDiffusion, Sec. 3.1, Eq. 2)."""

import torch
from torch import Tensor
from torch.nn import functional

from stereo_jobs.stereo.bands import in_bands


def relative_disparity(inverse_depth: Tensor) -> Tensor:
    """Normalise inverse depth to [0, 1] per sample (StereoDiffusion, Sec. 3.1: "normalize the range").

    Args:
        inverse_depth: B,h,w, finite, in any unit; larger is nearer.

    Returns:
        B,h,w in [0, 1]; a map without any depth (constant) becomes 0 everywhere, which shifts nothing.
    """
    flat = inverse_depth.flatten(1)  # B,h*w
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


def nearness(disparity: Tensor, scale_sign: Tensor) -> Tensor:
    """Turn the sign of disparity, B,..., so that larger is nearer.

    Args:
        disparity: B,..., pixels.
        scale_sign: B, or one for all; where negative, the larger disparity is the farther one.
    """
    sign = torch.where(scale_sign < 0, -1.0, 1.0).to(disparity)
    return disparity * sign.reshape(-1, *[1] * (disparity.dim() - 1))


def metric_disparity(depth: Tensor, focal_px: float, baseline: float, doffs_px: float = 0.0) -> Tensor:
    """Disparity in pixels from metric depth (StereoDiffusion, Eq. 2): d = focal * baseline / Z - doffs.

    Args:
        depth: ...,h,w > 0, in the unit of `baseline`; where it is not finite (unknown), the result is not finite.
        focal_px: focal length in pixels of this image.
        baseline: distance between the cameras.
        doffs_px: difference of the principal points: x of the right camera minus x of the left.
    """
    return focal_px * baseline / depth - doffs_px
