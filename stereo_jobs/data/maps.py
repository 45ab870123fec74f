"""Depth, disparity and masks as files: decoded to arrays, bounded and checked before anything uses them."""

import io
import re

import numpy as np
from numpy.typing import NDArray

from stereo_jobs.data.images import InputError, open_image

F32 = NDArray[np.float32]
_PFM = re.compile(rb"\A(P[fF])\s+(\d{1,9})\s+(\d{1,9})\s+(-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?)\s")
_KITTI_STEP = 256.0
_MAX_PIXELS = 2**31  # bounded already, when the bytes were fetched
FORMATS = "float TIFF, PFM, NPY, or 8- or 16-bit PNG"


def check_map(data: bytes, max_pixels: int, column: str) -> None:
    """Refuse what is no map, or has too many pixels, from its header alone. Raises InputError."""
    if _kind(data) == "image":
        open_image(data, max_pixels, column, FORMATS)
        return
    height, width = _header_size(data, column)
    if width * height > max_pixels:
        raise InputError(f"{column}: {width}x{height} pixels, more than max_image_pixels = {max_pixels}")


def decode_map(data: bytes, column: str) -> F32:
    """A map H,W float32, as it stands in the file; not finite where the file says so.

    Raises:
        InputError: another format, more than one channel, or broken.
    """
    kind = _kind(data)
    try:
        if kind == "npy":
            values = np.load(io.BytesIO(data), allow_pickle=False)
        elif kind == "pfm":
            values = _decode_pfm(data)
        else:
            image = open_image(data, _MAX_PIXELS, column, FORMATS)
            if image.mode == "P":
                image = image.convert("RGB")  # the numbers of a palette mean nothing; refused below
            values = np.asarray(image.convert("I") if image.mode.startswith("I") else image)
    except InputError:
        raise
    except Exception as error:  # of Pillow, of numpy, of Python, which reads the header of NPY
        raise InputError(f"{column}: not a readable map ({str(error)[:80]}); use {FORMATS}") from None
    if values.ndim != 2 or not (np.issubdtype(values.dtype, np.number) and np.isrealobj(values)):
        raise InputError(
            f"{column}: must have one channel of numbers, got shape {values.shape} of {values.dtype}; use {FORMATS}"
        )
    with np.errstate(over="ignore"):  # what no float32 holds becomes infinite, and so unknown
        return np.asarray(values, np.float32)


def decode_disparity_px(data: bytes, column: str = "disparity") -> F32:
    """Disparity in pixels, H,W float32, NaN where unknown; a 16-bit PNG counts 256ths and 0 is unknown (KITTI).

    Raises:
        InputError: as `decode_map`, or no pixel is known.
    """
    values = decode_map(data, column)
    if _is_16_bit_png(data):
        values = np.where(values > 0, values / np.float32(_KITTI_STEP), np.float32(np.nan))
    values = np.asarray(np.where(np.isfinite(values), values, np.nan), np.float32)
    if np.isnan(values).all():
        raise InputError(f"{column}: no pixel has a finite value")
    return values


def decode_depth(data: bytes, kind: str, column: str = "depth") -> F32:
    """Depth H,W float32 as the row's `depth_kind` says, NaN where unknown (metric: also where not positive).

    Raises:
        InputError: as `decode_map`, or no pixel is known.
    """
    values = decode_map(data, column)
    unknown = ~np.isfinite(values)
    if kind == "metric":
        unknown |= values <= 0
    if unknown.all():
        raise InputError(f"{column}: no pixel has a usable value ({'above 0' if kind == 'metric' else 'finite'})")
    return np.asarray(np.where(unknown, np.float32(np.nan), values), np.float32)


def decode_mask(data: bytes, size: tuple[int, int], column: str = "mask") -> NDArray[np.bool_]:
    """A mask H,W bool, True (white) where it is to be filled.

    Args:
        data: image of one channel, or of several alike.
        size: (height, width) that it must have.
        column: for messages.

    Raises:
        InputError: broken, of another size, or empty or full.
    """
    try:
        values = np.asarray(open_image(data, _MAX_PIXELS, column).convert("L")) >= 128
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(f"{column}: not a readable image ({error})") from None
    if values.shape != size:
        raise InputError(f"{column}: {values.shape[1]}x{values.shape[0]} pixels, but the image has {size[1]}x{size[0]}")
    if values.all() or not values.any():
        which = "all" if values.all() else "none"
        raise InputError(f"{column}: {which} of it is set; white marks what to fill, black what to keep")
    return values


def encode_pfm(values: F32) -> bytes:
    """PFM of an H,W map: rows from the bottom up, little-endian (scale -1)."""
    height, width = values.shape
    return f"Pf\n{width} {height}\n-1.0\n".encode() + np.flipud(values).astype("<f4").tobytes()


def _decode_pfm(data: bytes) -> F32:
    header = _PFM.match(data)
    if header is None or header.group(1) != b"Pf":
        raise ValueError("not a PFM of one channel")
    width, height = int(header.group(2)), int(header.group(3))
    order = "<f4" if float(header.group(4)) < 0 else ">f4"
    values = np.frombuffer(data, order, count=width * height, offset=header.end())
    return np.flipud(values.reshape(height, width)).astype(np.float32)


def _header_size(data: bytes, column: str) -> tuple[int, int]:
    if header := _PFM.match(data):
        return int(header.group(3)), int(header.group(2))
    try:
        stream = io.BytesIO(data)
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, _ = read(stream)
    except Exception as error:  # the header is Python: numpy lets through what its tokenizer raises
        raise InputError(f"{column}: not a readable map ({str(error)[:80]}); use {FORMATS}") from None
    if len(shape) != 2:
        raise InputError(f"{column}: must have one channel of numbers, got shape {shape}; use {FORMATS}")
    return int(shape[0]), int(shape[1])


def _kind(data: bytes) -> str:
    if data.startswith(b"\x93NUMPY"):
        return "npy"
    return "pfm" if _PFM.match(data) else "image"


def _is_16_bit_png(data: bytes) -> bool:
    return data.startswith(b"\x89PNG") and data[24:25] == b"\x10"  # bit depth, in the header chunk
