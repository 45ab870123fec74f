"""What a row gives to the method: pictures and maps, decoded and checked, and how they fit the working size."""

from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from stereo_jobs.data.images import InputError, decode_rgb
from stereo_jobs.data.maps import decode_depth, decode_disparity_px, decode_mask
from stereo_jobs.pipeline.resizing import Letterbox
from stereo_jobs.quality.lpips import SMALLEST_SIDE as LPIPS_SIDE
from stereo_jobs.quality.truth import hidden
from stereo_jobs.records import Row
from stereo_jobs.spec import Recipe
from stereo_jobs.stereo.disparity import metric_disparity
from stereo_jobs.stereo.fill import fill_sparse

SMALLEST_SIDE = 16
"""Pixels of a photo; below, not even one latent lies wholly inside."""
_MAX_PIXELS = 2**31  # bounded already, when the bytes were fetched


@dataclass(frozen=True)
class Scene:
    """One row, decoded.

    Attributes:
        row: where it comes from.
        letterbox: how its picture lies in the working size.
        photo: H,W,3 uint8, the left view; None where it is still to be made.
        guide: H,W,3 uint8 of depth mode, which depth is estimated on.
        map: H,W float32 that the shift is made of: disparity in pixels (geometry metric), or anything that grows
            towards the viewer (relative); None: the estimator finds it.
        mask: H,W bool, True where the photo is to be filled.
        given_photo: the photo as it came, which a reconstruction is measured against.
        given_right: H,W,3 uint8, a right view that another program made.
        true_right: H,W,3 uint8, the true right view.
        true_hole_right: H,W bool, right pixels that the left view does not show, by the true disparity.
        true_known_right: H,W bool, right pixels of which that is known.
    """

    row: Row
    letterbox: Letterbox
    photo: NDArray[np.uint8] | None = None
    guide: NDArray[np.uint8] | None = None
    map: NDArray[np.float32] | None = None
    mask: NDArray[np.bool_] | None = None
    given_photo: NDArray[np.uint8] | None = None
    given_right: NDArray[np.uint8] | None = None
    true_right: NDArray[np.uint8] | None = None
    true_hole_right: NDArray[np.bool_] | None = None
    true_known_right: NDArray[np.bool_] | None = None

    @property
    def given(self) -> NDArray[np.uint8]:
        """The photo as it came; only rows of photo modes have one."""
        assert self.given_photo is not None
        return self.given_photo


def read_scene(row: Row, recipe: Recipe, multiple: int) -> Scene:
    """Decode a row's inputs.

    Args:
        row: without an error.
        recipe: resolved; its mode, size and geometry decide what is needed.
        multiple: what the working size must be a multiple of.

    Raises:
        InputError: naming the column, the rule, the value and the remedy.
    """
    assert recipe.size is not None
    size = (recipe.size.height, recipe.size.width)
    if recipe.method.geometry == "metric":
        _check_metric(row)
    if recipe.mode == "text":
        return Scene(row, Letterbox.exact(size))
    if recipe.mode == "depth":
        return _read_depth_scene(row, recipe, size)
    photo = decode_rgb(row.inputs["image"], _MAX_PIXELS)
    height, width = photo.shape[:2]
    if min(height, width) < SMALLEST_SIDE:
        raise InputError(f"image: {width}x{height} pixels; it needs at least {SMALLEST_SIDE} each way")
    letterbox = Letterbox.of_area((height, width), size[0] * size[1], multiple)
    mask = decode_mask(row.inputs["mask"], (height, width)) if recipe.mode == "inpaint" else None
    scene = Scene(row, letterbox, photo, None, _read_map(row, recipe, (height, width)), mask, photo)
    return scene if recipe.mode == "inpaint" else _with_right_views(scene, recipe)


def _with_right_views(scene: Scene, recipe: Recipe) -> Scene:
    """The same with the right views that its row brings: one to be judged, the true one to be measured against."""
    inputs, size = scene.row.inputs, scene.given.shape[:2]
    given = true = hole = known = None
    if recipe.method.right_view == "given":
        if "given_right" not in inputs:
            raise InputError("given_right: this row has none; method.right_view given needs a right view in every row")
        given = _read_right(inputs["given_right"], "given_right", size)
    if "true_right" in inputs:
        true = _read_right(inputs["true_right"], "true_right", size)
        if min(size) < LPIPS_SIDE:
            raise InputError(f"true_right: {size[1]}x{size[0]} pixels; LPIPS needs at least {LPIPS_SIDE} each way")
        if "true_disparity" in inputs:
            disparity = decode_disparity_px(inputs["true_disparity"], "true_disparity")
            _check_size(disparity, "true_disparity", size)
            hole, known = hidden(disparity)
    return replace(scene, given_right=given, true_right=true, true_hole_right=hole, true_known_right=known)


def _read_right(data: bytes, column: str, size: tuple[int, ...]) -> NDArray[np.uint8]:
    right = decode_rgb(data, _MAX_PIXELS, column)
    if right.shape[:2] != size:
        raise InputError(
            f"{column}: {right.shape[1]}x{right.shape[0]} pixels, but the image has {size[1]}x{size[0]}; "
            "both views must have one size"
        )
    return right


def _check_size(values: NDArray[np.float32], column: str, size: tuple[int, ...]) -> None:
    if values.shape != size:
        raise InputError(
            f"{column}: {values.shape[1]}x{values.shape[0]} pixels, but the image has {size[1]}x{size[0]}; "
            "a map must have the size of its image"
        )


def _check_metric(row: Row) -> None:
    """Refuse what says nothing of pixels or metres (Eq. 2); what an estimator finds is no such thing."""
    camera = row.camera
    metric_depth = "depth" in row.inputs and row.depth_kind == "metric" and camera.focal_px and camera.baseline
    if "disparity" not in row.inputs and not metric_depth:
        raise InputError(
            "disparity: geometry metric needs a disparity in pixels, or a metric depth with focal_px and baseline; "
            "this row gives neither"
        )


def _read_depth_scene(row: Row, recipe: Recipe, size: tuple[int, int]) -> Scene:
    """Depth mode makes its picture at the working size; maps and images are brought to it."""
    found = _read_map(row, recipe, None)
    if found is not None:
        resized = cv2.resize(found, (size[1], size[0]), interpolation=cv2.INTER_AREA)
        if recipe.method.geometry == "metric":
            resized *= size[1] / found.shape[1]  # disparity in pixels of the picture
        return Scene(row, Letterbox.exact(size), map=np.asarray(resized, np.float32))
    image = decode_rgb(row.inputs["image"], _MAX_PIXELS)
    if min(image.shape[:2]) < SMALLEST_SIDE:
        raise InputError(f"image: {image.shape[1]}x{image.shape[0]} pixels; needs at least {SMALLEST_SIDE} each way")
    guide = cv2.resize(image, (size[1], size[0]), interpolation=cv2.INTER_AREA)
    return Scene(row, Letterbox.exact(size), guide=np.asarray(guide, np.uint8))


def _read_map(row: Row, recipe: Recipe, size: tuple[int, int] | None) -> NDArray[np.float32] | None:
    """The row's own disparity or depth, complete, in the form that the geometry takes; None if it has none."""
    metric = recipe.method.geometry == "metric"
    if "disparity" in row.inputs:
        column, values = "disparity", decode_disparity_px(row.inputs["disparity"])
    elif "depth" in row.inputs:
        column, values = "depth", decode_depth(row.inputs["depth"], row.depth_kind)
        if metric:
            camera = row.camera
            assert camera.focal_px is not None
            assert camera.baseline is not None
            values = metric_disparity(
                torch.from_numpy(values), camera.focal_px, camera.baseline, camera.doffs_px or 0
            ).numpy()
        elif row.depth_kind == "metric":
            values = np.reciprocal(values)
    else:
        return None
    if size is not None:
        _check_size(values, column, size)
    complete = fill_sparse(torch.from_numpy(values)[None])[0].numpy()
    if not np.isfinite(complete).all():
        raise InputError(f"{column}: every value leaves the range of float32 when it is made into a disparity")
    if metric and np.abs(complete).max() > 0.5 * complete.shape[1]:
        raise InputError(
            f"{column}: a disparity of {np.abs(complete).max():.0f} px is more than half of the width "
            f"{complete.shape[1]}; it must be in pixels of this image"
        )
    return np.asarray(complete, np.float32)
