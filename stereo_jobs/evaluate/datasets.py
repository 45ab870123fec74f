"""Stereo scenes with truth, as their authors lay them out in folders: Middlebury 2014, KITTI 2015."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from stereo_jobs.data.images import decode_rgb
from stereo_jobs.data.maps import decode_disparity_px
from stereo_jobs.errors import StereoJobsError
from stereo_jobs.stereo.fill import fill_sparse

Image = NDArray[np.uint8]
F32 = NDArray[np.float32]
Protocol = Literal["paper", "metric"]
_MAX_PIXELS = 200_000_000


class DatasetError(StereoJobsError):
    """A data set's folder lacks what its layout promises; names the file and the remedy."""

    exit_code = 2


@dataclass(frozen=True)
class Scene:
    """A stereo pair with true disparity of the left view, H,W float32 pixels, NaN where it is unknown."""

    id: str
    left: Image
    right: Image
    disparity: F32


@dataclass(frozen=True)
class Prepared:
    """A scene as a protocol shows it to the methods: one size, and a complete disparity in its pixels.

    Attributes:
        disparity: what the methods shift by.
        true_disparity: metric, NaN where unknown.
    """

    id: str
    left: Image
    right: Image
    disparity: F32
    true_disparity: F32


def middlebury(folder: Path) -> Iterator[Scene]:
    """Middlebury 2014: a folder per scene with im0.png, im1.png and disp0.pfm (inf where unknown).

    scikit-image's copy of one scene (`NAME_left.png`, `NAME_right.png`, `NAME_disp.npz`) is read, too.
    """
    scenes = sorted(path.parent for path in folder.glob("*/im0.png"))
    for scene in scenes:
        yield _read(scene.name, scene / "im0.png", scene / "im1.png", scene / "disp0.pfm")
    copies = sorted(folder.glob("*_left.png"))
    for left in copies:
        name = left.name.removesuffix("_left.png")
        yield _read(name, left, folder / f"{name}_right.png", folder / f"{name}_disp.npz")
    if not scenes and not copies:
        raise DatasetError(f"{folder}: no Middlebury scene in it; it needs folders with im0.png, im1.png and disp0.pfm")


def kitti(folder: Path) -> Iterator[Scene]:
    """KITTI 2015: image_2, image_3 and disp_occ_0 (16-bit PNG of 256ths, 0 where unknown), frames `*_10.png`."""
    names = sorted(path.name for path in (folder / "image_2").glob("*_10.png"))
    if not names:
        raise DatasetError(f"{folder}: no KITTI scene in it; it needs image_2, image_3 and disp_occ_0 (its `training`)")
    for name in names:
        yield _read(name.removesuffix(".png"), *(folder / part / name for part in ("image_2", "image_3", "disp_occ_0")))


def prepare(scene: Scene, protocol: Protocol, size: int = 512, scale_percent: float = 8.0) -> Prepared:
    """A scene under a protocol: centre square crop, images resized (bilinear) to `size`.

    `paper`: the disparity is min-max normalised after the crop, scaled to `scale_percent` of the width, truncated: what
    the paper's Table 1 measures. `metric`: true pixels. In both, gaps are first filled from the left neighbour in their
    row, and disparities are resized by the nearest pixel.
    """
    side = min(scene.left.shape[:2])
    top, start = (scene.left.shape[0] - side) // 2, (scene.left.shape[1] - side) // 2
    window = np.s_[top : top + side, start : start + side]
    true = _nearest(scene.disparity[window], size) * np.float32(size / side)
    full = fill_sparse(torch.from_numpy(scene.disparity[window].copy())[None])[0].numpy()
    if not np.isfinite(full).all():
        raise DatasetError(f"{scene.id}: its disparity has no valid pixel inside the centre crop")
    complete = _nearest(full, size) * np.float32(size / side)
    if protocol == "paper":
        span = max(float(np.ptp(complete)), 1e-6)
        complete = np.trunc((complete - complete.min()) / span * (scale_percent / 100 * size)).astype(np.float32)
    left, right = (
        cv2.resize(view[window], (size, size), interpolation=cv2.INTER_LINEAR) for view in (scene.left, scene.right)
    )
    return Prepared(scene.id, left.astype(np.uint8), right.astype(np.uint8), complete, true)


def _nearest(values: F32, size: int) -> F32:
    return np.asarray(cv2.resize(values, (size, size), interpolation=cv2.INTER_NEAREST), np.float32)


def _read(name: str, left: Path, right: Path, disparity: Path) -> Scene:
    for path in (left, right, disparity):
        if not path.is_file():
            raise DatasetError(f"{name}: {path.name} is missing in {path.parent}")
    views = [decode_rgb(path.read_bytes(), _MAX_PIXELS, path.name) for path in (left, right)]
    if disparity.suffix == ".npz":
        values = np.load(disparity)["arr_0"].astype(np.float32)
        values = np.where(np.isfinite(values), values, np.nan).astype(np.float32)
    else:
        values = decode_disparity_px(disparity.read_bytes(), disparity.name)
    sizes = {view.shape[:2] for view in views} | {values.shape}
    if len(sizes) != 1:
        raise DatasetError(f"{name}: views and disparity must have one size, got {sorted(sizes)}")
    return Scene(name, views[0], views[1], values)
