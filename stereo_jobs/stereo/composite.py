"""The finished right view: the left's own pixels where they are seen, in the holes what diffusion made of them."""

import torch
from torch import Tensor


def composite(continued: Tensor, filled: Tensor, diffused: Tensor, returned: Tensor, share: Tensor) -> Tensor:
    """Warped pixels where the warp is filled; in the holes the continued background and what diffusion changed of it.

    A VAE never returns a picture as it was. Its error is in both `diffused` and `returned`, and not in their
    difference: where diffusion changes nothing, a hole keeps the colours and the grain of the background.

    Args:
        continued: B,3,H,W in [0, 1], the left view warped at full resolution, its holes continued from the background.
        filled: B,H,W bool, where it is the warp.
        diffused: B,3,H,W in [0, 1], the decoded right view.
        returned: B,3,H,W in [0, 1], `continued`, encoded and decoded.
        share: B in [0, 1], of the change that is taken.

    Returns:
        B,3,H,W in [0, 1].
    """
    change = share.to(continued)[:, None, None, None] * (diffused - returned)
    return torch.where(filled[:, None], continued, continued + change).clamp(0, 1)


def trusted_share(given: Tensor, returned: Tensor, trusted_loss: float | None) -> Tensor:
    """How much of what diffusion draws into pictures is to be believed, by what the VAE makes of them: B in [0, 1].

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
