"""Bands of rows: whatever looks only at a pixel's row, or a few rows around it, needs no memory for a whole picture.

A band holds about `BAND_PIXELS` pixels, so that the memory of a computation does not grow with the picture. The result
is the same, to the bit, as that of the whole picture at once: each of its numbers comes from the same numbers by the
same steps.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

BAND_PIXELS = 2**20
"""Pixels of a band, about; at least one row. A picture of this size is one band."""


def bands(height: int, width: int) -> Iterator[slice]:
    """Cut a picture into bands: the rows of each, from the top down."""
    rows = max(1, BAND_PIXELS // max(1, width))
    for top in range(0, height, rows):
        yield slice(top, min(top + rows, height))


def widened(rows: slice, halo: int, height: int) -> tuple[slice, slice]:
    """Widen a band by the rows that a computation looks at above and below it.

    Returns:
        The rows of the wider band, at most all rows of the picture; and where the band lies among them.
    """
    top, below = max(0, rows.start - halo), min(height, rows.stop + halo)
    return slice(top, below), slice(rows.start - top, rows.stop - top)


def in_bands(work: Callable[..., Tensor], *maps: Tensor, halo: int = 0) -> Tensor:
    """Apply `work` to maps, band after band.

    Args:
        work: takes a band of each map and returns ...,rows,W; each of its pixels depends on the pixel's row, and the
            `halo` rows above and below, alone.
        maps: ...,H,W each.
        halo: rows above and below that `work` looks at.
    """
    height, width = maps[0].shape[-2:]
    whole: Tensor | None = None
    for rows in bands(height, width):
        wide, own = widened(rows, halo, height)
        made = work(*(values[..., wide, :] for values in maps))
        if made.shape[-2] == height:
            return made
        if whole is None:
            whole = torch.empty((*made.shape[:-2], height, made.shape[-1]), dtype=made.dtype, device=made.device)
        whole[..., rows, :] = made[..., own, :]
    return work(*maps) if whole is None else whole
