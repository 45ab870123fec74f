"""The finished right view: the left's own pixels where they are seen, diffusion in the holes."""

import torch
from torch import Tensor
from torch.nn import functional

from stereo_jobs.stereo.fill import extend_background


def composite(
    continued: Tensor,
    filled: Tensor,
    diffused: Tensor,
    columns: Tensor,
    *,
    reach_px: float,
    returned: Tensor,
    grain: float,
    plain: Tensor | None,
    share: Tensor,
) -> Tensor:
    """Combine warped pixels, where the warp is filled, with diffused pixels in the holes, without a seam or blur.

    This is not in the paper. A VAE never returns exactly the picture that it was given, so pixels in the holes are
    corrected in three ways; pixels outside the holes are not changed:

    - Colour: the VAE's colour error just outside a hole, on the background's side, is subtracted inside the hole. The
      correction fades with the distance.
    - Grain: the fine grain that the VAE loses in the continued background is added back in part, because what
      diffusion drew in the hole is not all background.
    - Trust: where the VAE reproduces a picture badly, the holes are a mixture of diffused and plain pixels.

    Args:
        continued: B,3,H,W in [0, 1], the left view warped at full resolution, its holes continued from the background.
        filled: B,H,W bool, where `continued` comes from the warp.
        diffused: B,3,H,W in [0, 1], the decoded right view.
        columns: B,H,W, from `background_columns` or `mirrored_columns`.
        reach_px: distance of a pixel to its column at which the correction of its colour has faded to 1/e.
        returned: B,3,H,W in [0, 1], `continued`, encoded and decoded.
        grain: share of the lost grain that is added back, in [0, 1].
        plain: B,3,H,W in [0, 1], the warped view with its holes filled without diffusion; None where each `share` is 1.
        share: B in [0, 1], from `trusted_share`: weight of the diffused pixels in the holes; the rest is `plain`.

    Returns:
        B,3,H,W in [0, 1].
    """
    known = filled[:, None].to(continued.dtype)
    missed = _blur((continued - diffused) * known, 5) / _blur(known, 5).clamp_min(1e-3)
    distance = (columns - torch.arange(columns.shape[-1], device=columns.device)).abs()
    fade = torch.exp(-distance / reach_px)[:, None].to(continued.dtype)
    hole = diffused + extend_background(missed, columns) * fade
    lost = continued - returned
    hole = hole + grain * (lost - _blur(lost, 3))
    if plain is not None:
        hole = torch.lerp(plain, hole, share.to(hole)[:, None, None, None])
    return torch.where(filled[:, None], continued, hole).clamp(0, 1)


HALO = 2
"""Rows above and below a pixel that `composite` looks at."""


def trusted_share(given: Tensor, returned: Tensor, trusted_loss: float | None) -> Tensor:
    """Weight of diffused pixels in the holes of each picture, from how well the VAE reproduces it: B in [0, 1].

    A VAE that loses much of a picture was trained on other pictures, and so was the U-Net of the same checkpoint.

    Args:
        given: B,3,h,w in [0, 1].
        returned: B,3,h,w in [0, 1], `given`, encoded and decoded.
        trusted_loss: largest RMS difference of both, in levels of 255, at which the weight is 1; above, the weight is
            (trusted_loss / difference)^2. None: always 1.
    """
    if trusted_loss is None:
        return torch.ones(len(given), device=given.device)
    loss = 255 * (returned - given).square().mean((1, 2, 3)).sqrt()
    return (trusted_loss / loss.clamp_min(1e-6)).square().clamp(max=1)


def _blur(x: Tensor, pixels: int) -> Tensor:
    """Mean over a square of pixels; the noise of a single pixel would become a streak in the hole."""
    return functional.avg_pool2d(x, pixels, stride=1, padding=pixels // 2, count_include_pad=False)
