"""How a picture was held: the orientation tag of EXIF, and pixels turned upright by it."""

import re
import struct
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

_Value = TypeVar("_Value", bound=np.generic)
_TAG = 274
_CODES = {1: "B", 3: "H", 4: "I"}
"""Types that whole numbers of EXIF have, to those of struct."""


def orientation(image: Image.Image) -> int:
    """Return the orientation that an opened image is stored in: 1 to 8, 1 where it is upright or does not say.

    A TIFF is 1: Pillow turns it while it decodes. Orientations in XMP do not count.
    """
    if isinstance(image, TiffImageFile):
        return 1
    found = image.info.get("exif")
    return _tag(found) if isinstance(found, bytes) else 1


def upright(pixels: NDArray[_Value], orientation: int) -> NDArray[_Value]:
    """Turn pixels, H,W or H,W,C, as their orientation says. Values move and never change."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)  # the first row of the file is the left or right side
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


def _tag(exif: bytes) -> int:
    """Return the orientation in EXIF data. Nothing else of it is read, so that it may be damaged."""
    data = re.sub(rb"\A(?:Exif\0\0)+", b"", exif)
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(f"{order}I", data, 4)
        (count,) = struct.unpack_from(f"{order}H", data, start)
        for at in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind = struct.unpack_from(f"{order}HH", data, at)
            if tag == _TAG and kind in _CODES:
                (value,) = struct.unpack_from(order + _CODES[kind], data, at + 8)
                return int(value) if 1 <= value <= 8 else 1
    except struct.error:  # it ends before the tag
        pass
    return 1
