"""A finished right view and what is known of it as one labelled pair."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stereo_jobs.pipeline.inputs import Scene
from stereo_jobs.pixels import Image
from stereo_jobs.quality.truth import psnr
from stereo_jobs.records import Row, StereoPair
from stereo_jobs.stereo.config import MethodConfig
from stereo_jobs.stereo.disparity import relative_disparity, scaled_disparity, sharpen_edges


@dataclass(frozen=True)
class Labels:
    """Facts of the shift that made a right view, at the picture's size.

    Attributes:
        applied: H,W float32, disparity of the left view that was really applied, pixels.
        visible: 1,H,W bool, pixels of the left view that the right one shows.
        filled: 1,H,W bool, pixels of the right view that the left one gives.
        border: 1,H,W bool, the others of them beyond the left view's frame.
    """

    applied: NDArray[np.float32]
    visible: Tensor
    filled: Tensor
    border: Tensor


def labelled_pair(
    row: Row,
    scene: Scene,
    method: MethodConfig,
    values: Tensor,
    *,
    left: Image,
    right: Image,
    labels: Labels,
    evaluations: int,
    raw_right: Image | None = None,
) -> StereoPair:
    """One finished pair.

    Args:
        row: asked for it.
        scene: what the row gave.
        method: made it.
        values: H,W, what its shift is made of.
        left: finished left view.
        right: finished right view.
        labels: of the right view.
        evaluations: of the U-Net, for this pair.
        raw_right: right view before its composite.
    """
    requested = requested_disparity(values, row, method)
    kept = None if scene.mask is None else ~scene.mask
    return StereoPair(
        id=row.id,
        left=left,
        right=right,
        disparity=labels.applied,
        disparity_requested=None if np.array_equal(requested, labels.applied) else requested,
        disparity_of="first_left" if method.changes_left else "left",
        mask_nonocc_left=labels.visible[0].cpu().numpy(),
        mask_hole_right=~labels.filled[0].cpu().numpy(),
        mask_border_right=labels.border[0].cpu().numpy(),
        unet_evaluations=evaluations,
        raw_right=raw_right,
        left_psnr=None if scene.given_photo is None else psnr(left, scene.given_photo, kept),
        scale_sign=scale_sign(row, method),
    )


def scale_sign(row: Row, method: MethodConfig) -> Literal[1, -1]:
    """-1 where the second view lies to the left; known disparities say of themselves what is nearer."""
    return -1 if method.geometry == "relative" and row.scale_percent < 0 else 1


def requested_disparity(values: Tensor, row: Row, method: MethodConfig, *, edge_px: int = 0) -> NDArray[np.float32]:
    """Disparity of the left view before it is quantised or cut: H,W px, from its map H,W, edges sharp if wanted."""
    maps = values[None]
    if method.geometry == "relative":
        scale = torch.tensor([row.scale_percent], dtype=torch.float64)
        maps = scaled_disparity(relative_disparity(sharpen_edges(maps, edge_px), of=maps), scale)
    return np.asarray(maps[0].cpu().numpy(), np.float32)
