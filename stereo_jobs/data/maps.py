"""Depth maps, disparity maps and masks as files: they are checked for size, decoded to arrays, and checked again."""

import io
import re

import numpy as np
from numpy.typing import NDArray

from stereo_jobs.data import png, tiff
from stereo_jobs.data.images import InputError, open_image

F32 = NDArray[np.float32]
_PFM = re.compile(rb"\A(P[fF])\s+(\d{1,9})\s+(\d{1,9})\s+([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)(?=\s)")
_PFM_HEADER_END = re.compile(rb"[ \t]*\r?\n|\s")
_KITTI_STEP = 256.0
_MAX_PIXELS = 2**31  # the size was checked when the file was read
FORMATS = "float TIFF, PFM, NPY, or 8- or 16-bit PNG"


def check_map(data: bytes, max_pixels: int, column: str) -> None:
    """Check from the header alone that a file is a map of at most `max_pixels`. Raises InputError."""
    if _kind(data) == "image":
        open_image(data, max_pixels, column, FORMATS)
        return
    height, width = _header_size(data, column)
    if width * height > max_pixels:
        raise InputError(f"{column}: {width}x{height} pixels, more than max_image_pixels = {max_pixels}")


def decode_map(data: bytes, column: str) -> F32:
    """Decode a map to H,W float32, with the values as they are in the file; they may be infinite or NaN.

    Raises:
        InputError: another format, more than one channel, or damaged.
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
                image = image.convert("RGB")  # the indices of a palette are no values; refused below
            stored = tiff.stored_dtype(image)
            values = np.asarray(image.convert("I") if image.mode.startswith("I") else image)
            values = values if stored is None else values.view(stored)
    except InputError:
        raise
    except Exception as error:  # from Pillow, numpy, or Python's parser, which reads the header of NPY
        raise InputError(f"{column}: not a readable map ({str(error)[:80]}); use {FORMATS}") from None
    if values.ndim != 2 or not (np.issubdtype(values.dtype, np.number) and np.isrealobj(values)):
        raise InputError(
            f"{column}: must have one channel of numbers, got shape {values.shape} of {values.dtype}; use {FORMATS}"
        )
    with np.errstate(over="ignore"):  # a value outside of float32 becomes infinite, which means unknown
        return np.asarray(values, np.float32)


def decode_disparity_px(data: bytes, column: str = "disparity") -> F32:
    """Decode a disparity in pixels to H,W float32, NaN where unknown.

    A 16-bit PNG holds 256ths of a pixel, and 0 means unknown (KITTI).

    Raises:
        InputError: not a map, see `decode_map`; or no pixel is known.
    """
    values = decode_map(data, column)
    if png.bit_depth(data) == 16:
        values = np.where(values > 0, values / np.float32(_KITTI_STEP), np.float32(np.nan))
    values = np.asarray(np.where(np.isfinite(values), values, np.nan), np.float32)
    if np.isnan(values).all():
        raise InputError(f"{column}: no pixel has a finite value")
    return values


def decode_depth(data: bytes, kind: str, column: str = "depth") -> F32:
    """Decode a depth map to H,W float32, NaN where unknown.

    Args:
        data: the file.
        kind: `depth_kind` of the row; for `metric`, values that are not positive are unknown, too.
        column: name of the input, for messages.

    Raises:
        InputError: not a map, see `decode_map`; or no pixel is known.
    """
    values = decode_map(data, column)
    unknown = ~np.isfinite(values)
    if kind == "metric":
        unknown |= values <= 0
    if unknown.all():
        raise InputError(f"{column}: no pixel has a usable value ({'above 0' if kind == 'metric' else 'finite'})")
    return np.asarray(np.where(unknown, np.float32(np.nan), values), np.float32)


def decode_mask(data: bytes, size: tuple[int, int], column: str = "mask") -> NDArray[np.bool_]:
    """Decode a mask to H,W bool, True (white) where the photo is to be filled.

    Args:
        data: an image; colours are converted to grey, and white is 128 or more.
        size: (height, width) that the mask must have.
        column: name of the input, for messages.

    Raises:
        InputError: not an image, damaged, of another size, all white or all black.
    """
    try:
        values = np.asarray(open_image(data, _MAX_PIXELS, column).convert("L")) >= 128
    except (InputError, MemoryError):
        raise
    except Exception as error:  # as in `decode_rgb`
        raise InputError(f"{column}: not a readable image ({error})") from None
    if values.shape != size:
        raise InputError(f"{column}: {values.shape[1]}x{values.shape[0]} pixels, but the image has {size[1]}x{size[0]}")
    if values.all() or not values.any():
        which = "all" if values.all() else "none"
        raise InputError(f"{column}: {which} of it is set; white marks what to fill, black what to keep")
    return values


def encode_pfm(values: F32) -> bytes:
    """Encode an H,W map as PFM: rows from bottom to top, little-endian (scale -1)."""
    height, width = values.shape
    return f"Pf\n{width} {height}\n-1.0\n".encode() + np.flipud(values).astype("<f4").tobytes()


def _decode_pfm(data: bytes) -> F32:
    """Decode a PFM of one channel to H,W float32. Raises ValueError."""
    header = _PFM.match(data)
    if header is None or header.group(1) != b"Pf":
        raise ValueError("not a PFM of one channel")
    width, height = int(header.group(2)), int(header.group(3))
    order = "<f4" if float(header.group(4)) < 0 else ">f4"
    start = len(data) - width * height * 4  # samples may begin with what looks like white space
    if start < 0 or not _PFM_HEADER_END.fullmatch(data, header.end(), start):
        raise ValueError(f"{width}x{height} samples do not fit the bytes after its header")
    values = np.frombuffer(data, order, count=width * height, offset=start)
    return np.flipud(values.reshape(height, width)).astype(np.float32)


def _header_size(data: bytes, column: str) -> tuple[int, int]:
    """Return height and width of a PFM or NPY file. Raises InputError."""
    if header := _PFM.match(data):
        return int(header.group(3)), int(header.group(2))
    try:
        stream = io.BytesIO(data)
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, _ = read(stream)
    except Exception as error:  # the header is Python, and numpy does not catch what its parser raises
        raise InputError(f"{column}: not a readable map ({str(error)[:80]}); use {FORMATS}") from None
    if len(shape) != 2:
        raise InputError(f"{column}: must have one channel of numbers, got shape {shape}; use {FORMATS}")
    return int(shape[0]), int(shape[1])


def _kind(data: bytes) -> str:
    if data.startswith(b"\x93NUMPY"):
        return "npy"
    return "pfm" if _PFM.match(data) else "image"
