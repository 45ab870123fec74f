"""Photos and maps as people have them, as the bytes that a manifest row holds. Files are passed on as they are."""

from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from stereo_jobs.data.images import encode_disparity, encode_png, to_rgb
from stereo_jobs.errors import StereoJobsError

Picture = str | Path | Image.Image | NDArray[np.uint8]
"""A photo: path of its file, PIL image, or H,W,3 uint8 in [0, 255]."""
Map = str | Path | Image.Image | ArrayLike
"""A map: path of its file, PIL image, or H,W numbers."""


class InputRefusedError(StereoJobsError, ValueError):
    """An input cannot be made into a pair; the message names the input, the rule and the remedy."""

    exit_code = 2


def photo_bytes(name: str, photo: Picture) -> bytes:
    """Return a photo as bytes of an image file. Raises InputRefusedError."""
    return _read(name, photo) if isinstance(photo, str | Path) else encode_png(_pixels(name, photo))


def map_bytes(name: str, values: Map) -> bytes:
    """Return a map of depth or disparity as bytes of a file. Raises InputRefusedError."""
    if isinstance(values, str | Path):
        return _read(name, values)
    return encode_disparity(_flat(name, values).astype(np.float32))


def mask_bytes(name: str, values: Map) -> bytes:
    """Return a mask, set where it is not 0, as bytes of an image file. Raises InputRefusedError."""
    return _read(name, values) if isinstance(values, str | Path) else encode_png(_flat(name, values).astype(bool))


def _read(name: str, path: str | Path) -> bytes:
    """Read a local file; pipes and devices, which could be waited for without end, are refused."""
    if "://" in str(path):
        raise InputRefusedError(f"{name}: {path} is not a local file; download it first, and give its path")
    path = Path(path).expanduser()
    try:
        if path.is_file():
            return path.read_bytes()
        problem = "is a folder; give the path of one file" if path.is_dir() else "no such file; check the path"
    except (OSError, ValueError) as error:
        problem = f"cannot be read ({error})"
    raise InputRefusedError(f"{name}: {path}: {problem}")


def _pixels(name: str, image: Image.Image | NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return H,W or H,W,3 or H,W,4 uint8; a PIL image of any mode and EXIF orientation becomes what it looks like."""
    if isinstance(image, Image.Image):
        return to_rgb(image)
    pixels = np.asarray(image)
    flat = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in (3, 4))
    if pixels.dtype != np.uint8 or not flat or not pixels.size:
        raise InputRefusedError(
            f"{name}: must be a PIL image or H,W,3 uint8 in [0, 255]; got shape {pixels.shape} of {pixels.dtype}"
            f"{_remedy(pixels)}"
        )
    return pixels


def _remedy(pixels: NDArray[np.generic]) -> str:
    """How to turn an array that is not a photo into one, where that is known."""
    if pixels.dtype.kind == "f" and pixels.ndim in (2, 3):
        return "; from floats in [0, 1]: (255 * image).round().astype('uint8')"
    return "; the path of a file will do, too" if pixels.ndim == 0 else ""


def _flat(name: str, values: Map) -> NDArray[np.generic]:
    """Return H,W numbers, or refuse the input `name`."""
    array = np.asarray(values)
    if array.ndim != 2 or not array.size or array.dtype.kind not in "biuf":
        raise InputRefusedError(f"{name}: must be H,W numbers; got shape {array.shape} of {array.dtype}")
    return array
