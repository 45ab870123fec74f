"""Membranes: smooth continuations of what is known into what is not, from all rows at once."""

import torch
from torch import Tensor
from torch.nn import functional

ROW_STIFFNESS = 4
"""How much farther a membrane reaches along a row than across rows: what a picture shows reaches along its rows."""
_SWEEPS = 4
"""Relaxations at each size of the pyramid."""


def membrane(values: Tensor, known: Tensor) -> Tensor:
    """Continue values smoothly into unknown pixels: u_xx + u_yy / ROW_STIFFNESS^2 = 0 (Perez et al. 2003, Sec. 2).

    Solved approximately by pull and push (Gortler et al. 1996) with a few relaxations at each size. Detail along the
    rim of a hole fades within a few pixels, its mean colour reaches far. Cost and memory are linear in the pixels.

    Args:
        values: B,C,h,w; only known pixels are read.
        known: B,h,w bool.

    Returns:
        B,C,h,w within the range of the known values; known pixels are unchanged. A sample without any is 0.
    """
    weight = known[:, None].to(values.dtype)
    return _solve(torch.where(weight > 0, values, 0.0), weight, 1, 1)


def _solve(values: Tensor, weight: Tensor, wide: int, high: int) -> Tensor:
    """Solve the membrane on a grid whose cells have `wide` times `high` pixels; `weight` is the known share of each."""
    height, width = values.shape[-2:]
    if height * width == 1:
        return values
    # Cells become as many times wider than high as the membrane is stiffer along rows, and keep that shape then.
    pool = (2 if height > 1 and (wide >= ROW_STIFFNESS * high or width == 1) else 1, 2 if width > 1 else 1)
    shares = functional.avg_pool2d(weight, pool, ceil_mode=True, count_include_pad=False)
    sums = functional.avg_pool2d(values * weight, pool, ceil_mode=True, count_include_pad=False)
    coarse = _solve(sums / shares.clamp_min(1e-12), shares, wide * pool[1], high * pool[0])
    guess = functional.interpolate(coarse, (height, width), mode="bilinear", align_corners=False)
    across = (wide / (ROW_STIFFNESS * high)) ** 2  # weight of the rows above and below, that of the columns is 1
    return _relaxed(torch.where(weight > 0, values, guess), weight, across)


def _relaxed(values: Tensor, weight: Tensor, across: float) -> Tensor:
    """Replace each unknown cell by the mean of its neighbours, a few times."""
    now = values
    for _ in range(_SWEEPS):
        around = functional.pad(now, (1, 1, 1, 1), mode="replicate")
        rows = around[..., :-2, 1:-1] + around[..., 2:, 1:-1]
        columns = around[..., 1:-1, :-2] + around[..., 1:-1, 2:]
        now = torch.where(weight > 0, values, (columns + across * rows) / (2 + 2 * across))
    return now
