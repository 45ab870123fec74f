"""Stereo scenes with truth: Middlebury 2014 and KITTI 2015 in their authors' layouts, and rendered ToyScapes."""

import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from stereo_jobs.data.images import IMAGE_SUFFIXES, InputError, decode_rgb
from stereo_jobs.data.maps import decode_disparity_px
from stereo_jobs.errors import StereoJobsError
from stereo_jobs.pixels import Image
from stereo_jobs.records import ID_RULE, DisparityEncoding, valid_id
from stereo_jobs.stereo.fill import fill_sparse
from stereo_jobs.toyscapes.render import render
from stereo_jobs.toyscapes.scenes import Level, draw_scene

F32 = NDArray[np.float32]
Frame = Literal["crop", "squash", "cycle", "photo"]
"""How a scene is brought to its size: the centre square; the whole scene as a square; as it is, which protocol `cycle`
has made of a photo; the right view alone as a photo, its longer side at most the size."""
_MAX_PIXELS = 200_000_000
_FLOATS = DisparityEncoding()
_KITTI = DisparityEncoding(scale=256)


class DatasetError(StereoJobsError):
    """A data set, or one of its scenes, cannot be used; the message names the file and the remedy."""

    exit_code = 2


@dataclass(frozen=True)
class TruthScene:
    """A stereo pair as a data set has it, with the true disparity of its left view.

    Attributes:
        id: its name, unique in the data set.
        left: left view, H,W,3 uint8.
        right: right view, H,W,3 uint8.
        disparity: H,W float32 pixels of the left view; NaN where it is unknown.
        level: level of a ToyScape; None for photos.
    """

    id: str
    left: Image
    right: Image
    disparity: F32
    level: str | None = None


@dataclass(frozen=True)
class PreparedScene:
    """A scene as the methods are given it: at its size, with a complete disparity in its pixels.

    Attributes:
        id: its name, unique in the data set.
        left: left view, H,W,3 uint8.
        right: right view, H,W,3 uint8.
        disparity: H,W float32 pixels of the left view, gaps filled.
        true_disparity: the same disparity, NaN where it is unknown.
        level: level of a ToyScape; None for photos.
    """

    id: str
    left: Image
    right: Image
    disparity: F32
    true_disparity: F32
    level: str | None = None


class Problem(NamedTuple):
    """A scene that cannot be scored, and why. It is data, not an exception, so that the other scenes are scored."""

    id: str
    message: str


@dataclass(frozen=True)
class Dataset:
    """A named, ordered set of scenes.

    Attributes:
        name: name in tables and folders.
        ids: ids of all scenes, in order.
        read: reads a scene by its id; raises DatasetError if it cannot be used.
        identity: texts that differ if the scenes differ.
        has_truth: whether its scenes have a true right view and disparity. Photos have one view, which is both the
            left and the right one, and no disparity.
    """

    name: str
    ids: tuple[str, ...]
    read: Callable[[str], TruthScene]
    identity: tuple[str, ...]
    has_truth: bool = True

    def prepared(self, ids: Sequence[str], size: int, frame: Frame = "crop") -> Iterator[PreparedScene | Problem]:
        """Scenes at one size; a scene that cannot be used yields its problem instead."""
        for name in ids:
            try:
                if not valid_id(name):
                    raise DatasetError(f"its name must be {ID_RULE}; rename it")
                yield prepare(self.read(name), size, frame)
            except (DatasetError, InputError) as error:
                yield Problem(name, str(error))


def open_dataset(folder: Path) -> Dataset:
    """The data set in a folder, recognised by its layout. Raises DatasetError for a folder that is none."""
    if (folder / "image_2").is_dir():
        return kitti(folder)
    return middlebury(folder)


def middlebury(folder: Path) -> Dataset:
    """Middlebury 2014: a folder per scene with im0.png, im1.png and disp0.pfm (inf where unknown).

    scikit-image's copy of one scene (`NAME_left.png`, `NAME_right.png`, `NAME_disp.npz`) is read, too. A scene that
    lacks one of its files becomes a `Problem`; a folder without any scene raises DatasetError.
    """
    files = {
        path.parent.name: tuple(path.parent / name for name in ("im0.png", "im1.png", "disp0.pfm"))
        for pattern in ("im0.png", "im1.png", "disp0.pfm")
        for path in folder.glob(f"*/{pattern}")
    }
    for left in folder.glob("*_left.png"):
        name = left.name.removesuffix("_left.png")
        files[name] = (left, folder / f"{name}_right.png", folder / f"{name}_disp.npz")
    if not files:
        raise DatasetError(
            f"{folder}: no scene in it; Middlebury 2014 has folders with im0.png, im1.png and disp0.pfm, KITTI 2015 "
            "(its folder `training`) has image_2, image_3 and disp_occ_0"
        )
    return _of_files("middlebury", files)


def kitti(folder: Path) -> Dataset:
    """KITTI 2015: frames `*_10.png` in image_2, image_3 and disp_occ_0 (16-bit PNG, 256ths of a pixel, 0 if unknown).

    Raises DatasetError for a folder without any frame.
    """
    parts = ("image_2", "image_3", "disp_occ_0")
    names = {path.name for part in parts for path in (folder / part).glob("*_10.png")}
    if not names:
        raise DatasetError(f"{folder}: no KITTI scene in it; it needs image_2, image_3 and disp_occ_0 (its `training`)")
    files = {Path(name).stem: tuple(folder / part / name for part in parts) for name in names}
    return _of_files("kitti", files, _KITTI)


def photos(folder: Path) -> Dataset:
    """Photos: all images in a folder, of any size; each is named by its file's name without the ending.

    Raises DatasetError for a folder without any image.
    """
    found = [path for path in sorted(folder.glob("[!.]*")) if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()]
    if not found:
        raise DatasetError(f"{folder}: no image in it; --photos takes a folder with images {', '.join(IMAGE_SUFFIXES)}")
    stems = [path.stem for path in found]
    files = {path.stem if stems.count(path.stem) == 1 else path.name: path for path in found}

    def read(name: str) -> TruthScene:
        photo = decode_rgb(files[name].read_bytes(), _MAX_PIXELS, files[name].name)
        return TruthScene(name, photo, photo, np.full(photo.shape[:2], np.nan, np.float32))

    sizes = tuple(f"{path.name} {path.stat().st_size}" for path in found)
    return Dataset("photos", tuple(files), read, sizes, has_truth=False)


def toyscapes(count: int, size: int, levels: tuple[Level, ...] = ("plain", "structured")) -> Dataset:
    """Held-out ToyScapes (docs/toyscapes.md), of each level in turn, rendered at `size` x `size` pixels."""
    drawn = [(i // len(levels), levels[i % len(levels)]) for i in range(count)]
    names = {f"{level}-{seed:04d}": (seed, level) for seed, level in drawn}

    def read(name: str) -> TruthScene:
        seed, level = names[name]
        view = render(draw_scene(seed, "test", level), size, size)
        return TruthScene(name, view.left, view.right, view.disparity, level)

    return Dataset(
        "toyscapes", tuple(names), read, (str(count), *(levels if levels != ("plain", "structured") else ()))
    )


def prepare(scene: TruthScene, size: int, frame: Frame = "crop") -> PreparedScene:
    """A scene at its size.

    With frame `crop` that is the centre square, with `squash` the whole scene, resized (bilinear) to `size` x `size`,
    as published comparisons do. Gaps of the disparity are first filled from the left neighbour in their row. Then the
    disparity is resized by the nearest pixel, and its values are scaled with the width. The recipe's geometry turns it
    into the disparity of a protocol (docs/benchmarks.md). Scenes of `cycle` have their size already; a `photo` is made
    smaller (by area) if its longer side is above `size`.

    Raises:
        DatasetError: no disparity is known inside the frame.
    """
    if frame == "photo":
        photo = _at_most(scene.right, size)
        unknown = np.zeros(photo.shape[:2], np.float32)
        return PreparedScene(scene.id, photo, photo, unknown, unknown, scene.level)
    height, width = scene.left.shape[:2]
    side = min(height, width)
    top, start = (height - side) // 2, (width - side) // 2
    window = np.s_[top : top + side, start : start + side] if frame == "crop" else np.s_[:, :]
    disparity = scene.disparity[window]
    full = fill_sparse(torch.from_numpy(disparity.copy())[None])[0].numpy()
    if not np.isfinite(full).all():
        raise DatasetError(f"its disparity has no valid pixel{' inside the centre crop' if frame == 'crop' else ''}")
    if frame == "cycle":
        return PreparedScene(scene.id, scene.left, scene.right, full, disparity, scene.level)
    left, right = (
        cv2.resize(view[window], (size, size), interpolation=cv2.INTER_LINEAR) for view in (scene.left, scene.right)
    )
    scale = np.float32(size / disparity.shape[1])
    return PreparedScene(
        scene.id,
        left.astype(np.uint8),
        right.astype(np.uint8),
        _nearest(full, size) * scale,
        _nearest(disparity, size) * scale,
        scene.level,
    )


def _nearest(values: F32, size: int) -> F32:
    return np.asarray(cv2.resize(values, (size, size), interpolation=cv2.INTER_NEAREST), np.float32)


def _at_most(photo: Image, size: int) -> Image:
    """A photo whose longer side is at most `size`."""
    height, width = photo.shape[:2]
    if max(height, width) <= size:
        return photo
    factor = size / max(height, width)
    shape = max(1, round(width * factor)), max(1, round(height * factor))
    return np.asarray(cv2.resize(photo, shape, interpolation=cv2.INTER_AREA), np.uint8)


def _of_files(name: str, files: dict[str, tuple[Path, ...]], meaning: DisparityEncoding = _FLOATS) -> Dataset:
    """A data set of files: left view, right view and disparity of each scene, and what stored disparities mean."""
    ids = tuple(sorted(files))
    sizes = tuple(f"{p.name} {p.stat().st_size if p.is_file() else 0}" for i in ids for p in files[i])
    return Dataset(name, ids, lambda name: _read(name, files[name], meaning), (*ids, *sizes))


def _read(name: str, files: tuple[Path, ...], meaning: DisparityEncoding) -> TruthScene:
    left, right, disparity = files
    for path in (left, right, disparity):
        if not path.is_file():
            raise DatasetError(f"{path.name} is missing in {path.parent.name}")
    views = [decode_rgb(path.read_bytes(), _MAX_PIXELS, path.name) for path in (left, right)]
    data = _only_array(disparity) if disparity.suffix == ".npz" else disparity.read_bytes()
    values = decode_disparity_px(data, disparity.name, meaning)
    sizes = {view.shape[:2] for view in views} | {values.shape}
    if len(sizes) != 1:
        shown = ", ".join(f"{width}x{height}" for height, width in sorted(sizes))
        raise DatasetError(f"both views and the disparity must have one size, got {shown}")
    return TruthScene(name, views[0], views[1], values)


def _only_array(path: Path) -> bytes:
    """The unnamed array of an NPZ file, as NPY. Raises DatasetError."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.read("arr_0.npy")
    except (zipfile.BadZipFile, zlib.error, KeyError, EOFError, NotImplementedError, RuntimeError) as error:
        raise DatasetError(f"{path.name}: not a readable NPZ file with one array ({error})") from None
