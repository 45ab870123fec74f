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
    plain: Tensor,
    share: Tensor,
) -> Tensor:
    """Warped pixels where the warp is filled, diffused ones in the holes, with neither seam nor blur.

    A VAE never returns a picture as it was. The colours that it misses outside of a hole, on the background's side, are
    taken off inside, fading with the distance. The fine grain that it loses of the background continued into the hole
    is given back, in part: what diffusion drew there is not all that background. Of a picture that the VAE hardly knows
    the hole is drawn in part only, and else left plain. Nothing outside a hole is touched.

    Args:
        continued: B,3,H,W in [0, 1], the left view warped at full resolution, its holes continued from the background.
        filled: B,H,W bool, where it is the warp.
        diffused: B,3,H,W in [0, 1], the decoded right view.
        columns: B,H,W of `background_columns` or `mirrored_columns`.
        reach_px: distance of a pixel to its column at which the correction of its colour has faded to 1/e.
        returned: B,3,H,W in [0, 1], `continued`, encoded and decoded.
        grain: how much of it is given back, from 0 to 1.
        plain: B,3,H,W in [0, 1], the warped view with its holes as they are without diffusion.
        share: B in [0, 1] of `trusted_share`: how much of a hole is drawn; the rest is `plain`.

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
    hole = torch.lerp(plain, hole, share.to(hole)[:, None, None, None])
    return torch.where(filled[:, None], continued, hole).clamp(0, 1)


def trusted_share(given: Tensor, returned: Tensor, trusted_loss: float | None) -> Tensor:
    """How far the holes that diffusion drew into pictures are believed, by what the VAE makes of them: B in [0, 1].

    A VAE that loses much of what it is given has learned from other pictures, and so has the U-Net beside it.

    Args:
        given: B,3,h,w in [0, 1].
        returned: the same, encoded and decoded.
        trusted_loss: RMS difference of both in levels of 255, up to which the share is 1; beyond, it falls with the
            square of the loss. None: always 1.
    """
    if trusted_loss is None:
        return torch.ones(len(given), device=given.device)
    loss = 255 * (returned - given).square().mean((1, 2, 3)).sqrt()
    return (trusted_loss / loss.clamp_min(1e-6)).square().clamp(max=1)


def _blur(x: Tensor, pixels: int) -> Tensor:
    """Mean of the pixels around: a single one would draw its noise as a streak."""
    return functional.avg_pool2d(x, pixels, stride=1, padding=pixels // 2, count_include_pad=False)
