"""Decodes a row: its images and maps, checked, and how they lie in the working size."""

from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
import torch

from stereo_jobs.data.images import InputError, decode_rgb
from stereo_jobs.data.maps import decode_depth, decode_disparity_px, decode_mask
from stereo_jobs.pipeline.map_resizing import nearest, resized_map, same_shape
from stereo_jobs.pipeline.resizing import Letterbox, Size
from stereo_jobs.pixels import F32, Bools, Image
from stereo_jobs.quality.lpips import SMALLEST_SIDE as LPIPS_SIDE
from stereo_jobs.quality.truth import hidden
from stereo_jobs.records import Row, TrueHoles, Truth
from stereo_jobs.spec import Recipe
from stereo_jobs.stereo.disparity import metric_disparity
from stereo_jobs.stereo.fill import fill_sparse

SMALLEST_SIDE = 16
"""Smallest width and height of a photo in pixels; in a smaller one not even one latent lies wholly inside."""
_MAX_PIXELS = 2**31  # the real limit was applied when the bytes were fetched


@dataclass(frozen=True)
class Noise:
    """The left view is denoised from the noise of the row's seed (modes text and depth)."""


@dataclass(frozen=True)
class GuidedNoise(Noise):
    """The left view is denoised from noise, following the depth of an image (mode depth without a map).

    Attributes:
        guide: H,W,3 uint8 at the working size; depth is estimated on it.
    """

    guide: Image


@dataclass(frozen=True)
class Photo:
    """The left view is a photo (mode image).

    Attributes:
        image: H,W,3 uint8, as it came.
    """

    image: Image


@dataclass(frozen=True)
class MaskedPhoto(Photo):
    """The left view is a photo of which a part is drawn anew (mode inpaint).

    Attributes:
        mask: H,W bool, True where the photo is to be filled.
    """

    mask: Bools


@dataclass(frozen=True)
class PhotoPair(Photo):
    """Both views are given: a photo and a right view that another program made (right_view given).

    Attributes:
        right: H,W,3 uint8.
    """

    right: Image


@dataclass(frozen=True)
class DecodedRow:
    """One row with its inputs decoded and checked.

    Attributes:
        row: the row.
        letterbox: how its image lies in the working size.
        source: where its left view comes from; rows of one recipe have one kind of source.
        map: H,W float32, the shift is made of it: disparity in pixels (geometry metric), or anything that grows
            towards the viewer (relative). None: the depth estimator finds it.
        truth: the true right view, to measure against; None where the row has none.
    """

    row: Row
    letterbox: Letterbox
    source: Noise | Photo = Noise()
    map: F32 | None = None
    truth: Truth | None = None


class _Calibration(NamedTuple):
    """The camera of Eq. 2, complete."""

    focal_px: float
    baseline: float
    doffs_px: float


def size_of(recipe: Recipe) -> Size:
    """Height and width that a resolved recipe works at.

    Raises:
        ValueError: the recipe is not resolved.
    """
    if recipe.size is None:
        raise ValueError("the recipe must be resolved: its size is not written out; call resolve_recipe first")
    return recipe.size.height, recipe.size.width


def decode_row(row: Row, recipe: Recipe, multiple: int) -> DecodedRow:
    """Decode a row's inputs.

    Args:
        row: a row without an error.
        recipe: resolved; its mode, size and geometry decide what is needed.
        multiple: height and width of the working size are multiples of it.

    Raises:
        InputError: an input cannot be used; names the column, the rule, the value and the remedy.
    """
    size = size_of(recipe)
    calibration = _calibration(row) if recipe.method.geometry == "metric" else None
    if recipe.mode == "text":
        return DecodedRow(row, Letterbox.exact(size))
    if recipe.mode == "depth":
        return _decode_depth_row(row, calibration, recipe, size)
    photo = _decode_photo(row.inputs["image"])
    letterbox = Letterbox.of_area(_size(photo), size[0] * size[1], multiple)
    if recipe.mode == "inpaint":
        mask = _read_mask(row.inputs["mask"], recipe, _size(photo))
        source: Photo = MaskedPhoto(photo, mask)
        return DecodedRow(row, letterbox, source, _read_map(row, calibration, recipe, _size(photo)))
    values = _read_map(row, calibration, recipe, _size(photo))
    source = _with_given_right(row, photo) if recipe.method.right_view == "given" else Photo(photo)
    return DecodedRow(row, letterbox, source, values, _read_truth(row, recipe, _size(photo)))


def _decode_depth_row(row: Row, calibration: _Calibration | None, recipe: Recipe, size: Size) -> DecodedRow:
    """Decode a row of depth mode, whose image is made at the working size; its map or guide is brought to that size."""
    found = _read_map(row, calibration, recipe, None)
    if found is not None:
        resized = cv2.resize(found, (size[1], size[0]), interpolation=cv2.INTER_AREA)
        if recipe.method.geometry == "metric":
            resized *= size[1] / found.shape[1]  # disparity in pixels of the image
        return DecodedRow(row, Letterbox.exact(size), map=np.asarray(resized, np.float32))
    image = _decode_photo(row.inputs["image"])
    guide = cv2.resize(image, (size[1], size[0]), interpolation=cv2.INTER_AREA)
    return DecodedRow(row, Letterbox.exact(size), GuidedNoise(np.asarray(guide, np.uint8)))


# --- Images ---


def _decode_photo(data: bytes) -> Image:
    photo = decode_rgb(data, _MAX_PIXELS)
    height, width = _size(photo)
    if min(height, width) < SMALLEST_SIDE:
        raise InputError(f"image: {width}x{height} pixels; it needs at least {SMALLEST_SIDE} each way")
    return photo


def _with_given_right(row: Row, photo: Image) -> PhotoPair:
    if "given_right" not in row.inputs:
        raise InputError("given_right: this row has none; method.right_view given needs a right view in every row")
    return PhotoPair(photo, _read_right(row.inputs["given_right"], "given_right", _size(photo)))


def _read_truth(row: Row, recipe: Recipe, size: Size) -> Truth | None:
    """Decode the true right view, and find what the left view does not show of it, where the row brings them."""
    if "true_right" not in row.inputs:
        return None
    right = _read_right(row.inputs["true_right"], "true_right", size)
    if min(size) < LPIPS_SIDE:
        raise InputError(f"true_right: {size[1]}x{size[0]} pixels; LPIPS needs at least {LPIPS_SIDE} each way")
    if "true_disparity" not in row.inputs:
        return Truth(right)
    disparity = _read_disparity(row, "true_disparity", recipe, size)
    return Truth(right, TrueHoles(*hidden(disparity)))


def _read_right(data: bytes, column: str, size: Size) -> Image:
    right = decode_rgb(data, _MAX_PIXELS, column)
    if _size(right) != size:
        raise InputError(
            f"{column}: {right.shape[1]}x{right.shape[0]} pixels, but the image has {size[1]}x{size[0]}; "
            "both views must have one size"
        )
    return right


def _read_mask(data: bytes, recipe: Recipe, size: Size) -> Bools:
    mask = decode_mask(data)
    if _must_resize(_size(mask), "mask", recipe, size):
        mask = nearest(mask, size)
    if mask.all() or not mask.any():
        which = "all" if mask.all() else "none"
        raise InputError(f"mask: {which} of it is set; white marks what to fill, black what to keep")
    return mask


def _size(image: Image | F32 | Bools) -> Size:
    return image.shape[0], image.shape[1]


# --- Maps ---


def _calibration(row: Row) -> _Calibration | None:
    """Return the camera that turns the row's metric depth into disparity; None where the row has a disparity.

    Raises:
        InputError: the row has neither. An estimator's depth is not in metres, so it cannot stand in (Eq. 2).
    """
    if "disparity" in row.inputs:
        return None
    camera = row.camera
    if "depth" in row.inputs and row.depth_kind == "metric" and camera.focal_px and camera.baseline:
        return _Calibration(camera.focal_px, camera.baseline, camera.doffs_px or 0)
    raise InputError(
        "disparity: geometry metric needs a disparity in pixels, or a metric depth with focal_px and baseline; "
        "this row gives neither"
    )


def _read_map(row: Row, calibration: _Calibration | None, recipe: Recipe, size: Size | None) -> F32 | None:
    """Decode the row's disparity or depth in the form that the geometry takes, gaps filled; None if it has neither.

    Args:
        row: its disparity goes before its depth.
        calibration: turns its metric depth into disparity; None: its depth stays relative.
        recipe: says which geometry.
        size: the map must have this size; None: any.
    """
    if "disparity" in row.inputs:
        column, values = "disparity", _read_disparity(row, "disparity", recipe, size)
    elif "depth" in row.inputs:
        column, values = "depth", decode_depth(row.inputs["depth"], row.depth_kind)
        if size is not None and _must_resize(_size(values), column, recipe, size):
            values = resized_map(values, size, recipe.resize_maps)
        if calibration is not None:
            values = metric_disparity(torch.from_numpy(values), *calibration).numpy()
        elif row.depth_kind == "metric":
            values = np.reciprocal(values)
    else:
        return None
    complete = np.asarray(fill_sparse(torch.from_numpy(values)[None])[0].numpy(), np.float32)
    _check_range(complete, column, metric=recipe.method.geometry == "metric")
    return complete


def _read_disparity(row: Row, column: str, recipe: Recipe, size: Size | None) -> F32:
    """Decode a disparity map in pixels of the photo, NaN where unknown; any size is its own if `size` is None."""
    values = decode_disparity_px(row.inputs[column], column, row.disparity)
    if size is None or not _must_resize(_size(values), column, recipe, size):
        return values
    stretch = np.float32(size[1] / values.shape[1])
    return resized_map(values, size, recipe.resize_maps) * stretch


def _must_resize(found: Size, column: str, recipe: Recipe, size: Size) -> bool:
    """Return whether a map or mask is to be resized. Raises InputError if it has another size and may not be."""
    if found == size:
        return False
    sizes = f"{column}: {found[1]}x{found[0]} pixels, but the image has {size[1]}x{size[0]}"
    if recipe.resize_maps == "refuse":
        raise InputError(f"{sizes}; a map must have the size of its image, unless recipe.resize_maps says otherwise")
    if not same_shape(found, size):
        raise InputError(f"{sizes}; only a map of the image's shape is resized (recipe.resize_maps): crop it, too")
    return True


def _check_range(values: F32, column: str, *, metric: bool) -> None:
    if not np.isfinite(values).all():
        raise InputError(f"{column}: every value leaves the range of float32 when it is made into a disparity")
    if metric and np.abs(values).max() > 0.5 * values.shape[1]:
        raise InputError(
            f"{column}: a disparity of {np.abs(values).max():.0f} px is more than half of the width "
            f"{values.shape[1]}; it must be in pixels of this image"
        )
