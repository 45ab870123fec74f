"""Joins the views of a batch and what is known of them into labelled pairs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from stereo_jobs.pipeline.inputs import DecodedRow, MaskedPhoto, Photo
from stereo_jobs.pipeline.left_view import LeftViews
from stereo_jobs.pixels import F32, Image
from stereo_jobs.quality.truth import psnr
from stereo_jobs.records import Row, RowError, StereoPair
from stereo_jobs.stereo.config import MethodConfig
from stereo_jobs.stereo.disparity import relative_disparity, scaled_disparity
from stereo_jobs.stereo.image_warp import Masks


@dataclass(frozen=True)
class Labels:
    """Facts of the shift that made one right view, at the image's size.

    Attributes:
        applied: H,W float32, disparity of the left view that was really applied, pixels.
        masks: what it shows, fills and leaves open.
    """

    applied: F32
    masks: Masks


@dataclass(frozen=True)
class FinishedViews:
    """Finished views of a batch. It may be padded: lists may be longer than the rows.

    Attributes:
        left: finished left views.
        right: finished right views.
        raw_right: right views before their composite; None where there is none.
        labels: one for each row.
        usable: B bool, False where the model returned NaN or infinite values.
        evaluations: B, U-Net evaluations that went into each pair.
    """

    left: list[Image]
    right: list[Image]
    raw_right: list[Image] | None
    labels: list[Labels]
    usable: Tensor
    evaluations: Tensor


def labelled_pairs(
    rows: Sequence[Row], lefts: LeftViews, views: FinishedViews, method: MethodConfig
) -> list[StereoPair | RowError]:
    """Make one pair, or an error, of each row.

    Args:
        rows: the rows that asked for the pairs.
        lefts: the left views that the right ones were made from, one for each row.
        views: the finished views.
        method: the method that made them.
    """
    return [
        _labelled_pair(row, lefts, views, i, method)
        if views.usable[i]
        else RowError(row.id, "NotFinite", "the model returned NaN or infinite values for this row")
        for i, row in enumerate(rows)
    ]


def _labelled_pair(row: Row, lefts: LeftViews, views: FinishedViews, i: int, method: MethodConfig) -> StereoPair:
    """Make the pair at place `i` of the batch."""
    decoded, labels = lefts.decoded[i], views.labels[i]
    requested = requested_disparity(lefts.maps[i], row, method)
    return StereoPair(
        id=row.id,
        left=views.left[i],
        right=views.right[i],
        disparity=labels.applied,
        disparity_requested=None if np.array_equal(requested, labels.applied) else requested,
        disparity_of="first_left" if method.changes_left else "left",
        mask_nonocc_left=labels.masks.visible[0].cpu().numpy(),
        mask_hole_right=~labels.masks.filled[0].cpu().numpy(),
        mask_border_right=labels.masks.border[0].cpu().numpy(),
        unet_evaluations=int(views.evaluations[i]),
        raw_right=None if views.raw_right is None else views.raw_right[i],
        left_psnr=_left_psnr(views.left[i], decoded),
        scale_sign=scale_sign(row, method),
        truth=decoded.truth,
    )


def _left_psnr(left: Image, decoded: DecodedRow) -> float | None:
    """PSNR of a left view against the photo it was made from, outside of its mask; None where it was no photo."""
    source = decoded.source
    if not isinstance(source, Photo):
        return None
    return psnr(left, source.image, ~source.mask if isinstance(source, MaskedPhoto) else None)


def scale_sign(row: Row, method: MethodConfig) -> Literal[1, -1]:
    """Return -1 where the second view lies to the left. Known disparities carry their own sign and always give 1."""
    return -1 if method.geometry == "relative" and row.scale_percent < 0 else 1


def requested_disparity(values: Tensor, row: Row, method: MethodConfig) -> F32:
    """Disparity of the left view before it is quantised or clipped (Eq. 2 and 3): H,W pixels.

    Args:
        values: H,W, disparity for geometry metric, else anything that grows towards the viewer.
        row: gives the scale.
        method: gives the geometry.
    """
    maps = values[None]
    if method.geometry == "relative":
        scale = torch.tensor([row.scale_percent], dtype=torch.float64)
        maps = scaled_disparity(relative_disparity(maps), scale)
    return np.asarray(maps[0].cpu().numpy(), np.float32)
