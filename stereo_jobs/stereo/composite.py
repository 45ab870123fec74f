"""The finished right view: the left's own pixels where they are seen, diffusion in the holes."""

import torch
from torch import Tensor
from torch.nn import functional

from stereo_jobs.stereo.membrane import membrane

TRUSTED_LEVELS = 5.0
"""Error of a whole latent's colour, in levels of 255, up to which diffused pixels are taken as they are.

A VAE that knows a kind of picture loses its detail, but hardly the mean colour of a latent.
"""

QUIET_LEVELS = 2.0
"""Variation, in levels of 255, that diffused pixels may always have, be their surroundings as plain as they like."""
_AROUND = 5
"""Width of the surroundings of a latent, in latents."""


def composite(warped: Tensor, filled: Tensor, drawn: Tensor, background: Tensor) -> Tensor:
    """Combine warped pixels, where the warp is filled, with drawn pixels in the holes, without a seam.

    This is not in the paper. A VAE never returns exactly the picture that it was given. Its error at the rim of a hole,
    on the background's side, is carried into the hole as a membrane (Perez et al. 2003, "Poisson image editing").
    Pixels outside the holes are not changed.

    Args:
        warped: B,3,H,W in [0, 1], the left view warped at full resolution; only filled pixels are read.
        filled: B,H,W bool.
        drawn: B,3,H,W in [0, 1], the right view as drawn.
        background: B,H,W bool, the filled pixels whose error is carried into holes, see `background_beside`.

    Returns:
        B,3,H,W in [0, 1].
    """
    missed = membrane(warped - drawn, background)
    return torch.where(filled[:, None], warped, drawn + missed).clamp(0, 1)


def trusted_share(given: Tensor, returned: Tensor, seen: Tensor, factor: int) -> Tensor:
    """Weight of diffused pixels in the holes, from how well the VAE returns the picture around each.

    Errors are those of the mean colours of latents: a VAE that only loses detail and noise is trusted, one
    that cannot even return the colour of a latent was trained on other pictures, and so was its U-Net.

    Args:
        given: B,3,h,w in [0, 1], what was encoded.
        returned: B,3,h,w in [0, 1], what was decoded.
        seen: B,h,w bool, the pixels outside of holes.
        factor: width of a latent in pixels; divides h and w.

    Returns:
        B,1,h,w in [0, 1]: 1 up to an RMS error of `TRUSTED_LEVELS`; above, (TRUSTED_LEVELS / error)^2.
    """
    known = seen[:, None].to(given.dtype)
    part = functional.avg_pool2d(known, factor)  # share of each latent that is seen: B,1,h/factor,w/factor
    error = functional.avg_pool2d((given - returned) * known, factor) / part.clamp_min(1e-6)
    counted = (part >= 0.5).to(given.dtype)
    near = functional.avg_pool2d(counted, 3, stride=1, padding=1)
    squared = error.square().mean(1, keepdim=True) * counted
    loss = functional.avg_pool2d(squared, 3, stride=1, padding=1) / near.clamp_min(1e-6)
    loss = membrane(loss, (near > 0)[:, 0])
    share = (TRUSTED_LEVELS**2 / (255**2 * loss).clamp_min(1e-6)).clamp(max=1)
    return functional.interpolate(share, given.shape[-2:], mode="bilinear", align_corners=False)


def usual_share(given: Tensor, drawn: Tensor, seen: Tensor, factor: int) -> Tensor:
    """Weight of diffused pixels in the holes, from how much they vary beside what the picture varies around each.

    A hole shows what is around it, so that on a plain wall it holds no more than a plain wall does. A U-Net that was
    trained on other pictures draws its own there, which no error of the VAE tells.

    Args:
        given: B,3,h,w in [0, 1], the picture, continued smoothly into the holes.
        drawn: B,3,h,w in [0, 1], as it was diffused.
        seen: B,h,w bool, the pixels outside of holes.
        factor: width of a latent in pixels; divides h and w.

    Returns:
        B,1,h,w in [0, 1]: the picture's variance around a pixel over the mean squared difference of what is drawn there
        from its smooth continuation, at most 1.
    """
    known = seen[:, None].to(given.dtype)
    there, hidden = _around(known, factor), _around(1 - known, factor)
    mean, squares = (_around(values * known, factor) / there.clamp_min(1e-6) for values in (given, given.square()))
    usual = membrane((squares - mean.square()).clamp_min(0).mean(1, keepdim=True), there[:, 0] > 0)
    varied = _around((drawn - given).square().mean(1, keepdim=True) * (1 - known), factor) / hidden.clamp_min(1e-6)
    share = (((QUIET_LEVELS / 255) ** 2 + usual) / varied.clamp_min(1e-12)).clamp(max=1)
    return functional.interpolate(share, given.shape[-2:], mode="bilinear", align_corners=False)


def _around(values: Tensor, factor: int) -> Tensor:
    """Mean over the surroundings of each latent: B,C,h,w -> B,C,h/factor,w/factor."""
    latents = functional.avg_pool2d(values, factor)
    return functional.avg_pool2d(latents, _AROUND, stride=1, padding=_AROUND // 2, count_include_pad=False)


def hole_depth(seen: Tensor, factor: int) -> Tensor:
    """Distance of each pixel from what is seen, in latents, up to 1: B,h,w bool -> B,1,h,w.

    Less than a latent away, diffused pixels mix with what is in front: their latent has to show both.
    """
    depth, near = torch.zeros_like(seen[:, None], dtype=torch.float32), seen[:, None].float()
    for _ in range(factor):
        depth = depth + (1 - near)
        near = functional.max_pool2d(near, 3, stride=1, padding=1)
    return depth / factor
