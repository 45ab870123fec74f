"""Depth maps, disparity maps and masks as files: they are checked for size, decoded to arrays, and checked again."""

import io
import re
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stereo_jobs.data import png, tiff
from stereo_jobs.data.images import InputError, decode_white, open_image
from stereo_jobs.data.orientation import orientation, upright
from stereo_jobs.records import DisparityEncoding

F32 = NDArray[np.float32]
Bools = NDArray[np.bool_]
_GAP = rb"(?:\s|#[^\n]*\n)+"  # some programs write comments, as PGM has them
_PFM = re.compile(
    rb"\A(P[fF])"
    + _GAP
    + rb"(\d{1,9})"
    + _GAP
    + rb"(\d{1,9})"
    + _GAP
    + rb"([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)(?=\s)"
)
_PFM_HEADER_END = re.compile(rb"[ \t]*\r?\n|\s")
_FOUNDATION_STEPS = 1000.0  # stored value of one pixel, in NVIDIA's FoundationStereo data set
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


class _Samples(NamedTuple):
    """A map as it is stored, upright.

    Attributes:
        values: H,W numbers of any type, or H,W,3 of unsigned integers.
        clear: H,W, True where it is transparent; None: nowhere.
    """

    values: NDArray[Any]
    clear: Bools | None = None


def decode_map(data: bytes, column: str) -> F32:
    """Decode a map to H,W float32, upright, with the values of the file; they may be infinite or NaN.

    Grey that is stored in three equal channels is one channel. What is transparent is NaN.

    Raises:
        InputError: another format, more than one channel, or damaged.
    """
    stored, clear = _decode(data, column)
    return _as_float(_one_channel(stored, column), clear)


def decode_disparity_px(data: bytes, column: str = "disparity", meaning: DisparityEncoding | None = None) -> F32:
    """Decode a disparity to H,W float32 in pixels, upright, NaN where unknown.

    Args:
        data: the file.
        column: name of the input, for messages.
        meaning: what stored values mean; None: floats are pixels.

    Raises:
        InputError: not a map, see `decode_map`; integers whose scale is not known; or no pixel is known.
    """
    meaning = meaning or DisparityEncoding()
    stored, clear = _decode(data, column)
    whole, scale, unknown = stored.dtype.kind in "iu", meaning.scale, meaning.unknown
    if meaning.encoding == "foundation_stereo":
        values, scale = _of_three_bytes(stored, column), _FOUNDATION_STEPS
    else:
        values = _one_channel(stored, column)
    if whole and scale is None:
        raise InputError(
            f"{column}: its values are integers ({values.dtype}) of unknown scale; set recipe.disparity_scale, or the "
            "row's column disparity_scale, to the stored value of one pixel: 256 for KITTI, 1 for whole pixels"
        )
    if unknown is None and whole:
        unknown = 0
    if unknown is not None:
        equal = values == unknown
        clear = equal if clear is None else equal | clear
    found = _as_float(values, clear)
    with np.errstate(over="ignore"):
        found = found if scale is None else found / np.float32(scale)
    found[~np.isfinite(found)] = np.nan
    if np.isnan(found).all():
        raise InputError(f"{column}: no pixel has a finite value")
    return found


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


def decode_mask(data: bytes, column: str = "mask") -> Bools:
    """Decode a mask to H,W bool, upright: True (white) where the photo is to be filled.

    Args:
        data: an image; colours are converted to grey, transparent pixels lie on black, and white is 128 or more.
        column: name of the input, for messages.

    Raises:
        InputError: not an image, or damaged.
    """
    return decode_white(data, _MAX_PIXELS, column)


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


# --- Samples as they are stored ---


def _decode(data: bytes, column: str) -> _Samples:
    """Decode the samples of a map. Raises InputError."""
    kind = _kind(data)
    try:
        if kind == "npy":
            return _Samples(np.load(io.BytesIO(data), allow_pickle=False))
        return _Samples(_decode_pfm(data)) if kind == "pfm" else _decode_image(data, column)
    except (InputError, MemoryError):
        raise
    except Exception as error:  # from Pillow, numpy, or Python's parser, which reads the header of NPY
        raise InputError(f"{column}: not a readable map ({str(error)[:80]}); use {FORMATS}") from None


def _decode_image(data: bytes, column: str) -> _Samples:
    """Decode the samples of an image: H,W of grey, H,W,3 of colours and palettes."""
    image = open_image(data, _MAX_PIXELS, column, FORMATS)
    if png.bit_depth(data) == 16 and image.mode in ("LA", "RGB", "RGBA"):
        return _decode_wide_png(data, image, column)
    depth, kind = png.bit_depth(data) or tiff.bit_depth(image), tiff.stored_dtype(image)
    inverted = image.mode == "L" and kind is None and tiff.is_white_at_zero(image)
    image = png.with_colour_key(image, data)
    image.load()
    key, clear = image.info.get("transparency"), None
    if key is not None or set("Aa") & set(image.getbands()):
        clear = np.asarray(image) == key if isinstance(key, int) else _alpha(image) < 128
    if image.mode == "P" or set("Aa") & set(image.getbands()):
        image = image.convert("RGB")  # the indices of a palette are no values
    if image.mode == "RGB" and depth == 16:
        raise InputError(f"{column}: three channels of 16 bits are not read; save it with one channel, as {FORMATS}")
    values = np.asarray(image)
    values = values if kind is None else values.view(kind)
    if inverted:
        values = 255 - values  # Pillow has inverted them
    if image.mode == "L" and depth in (2, 4):
        values = values // (255 // (2**depth - 1))  # Pillow has stretched them to 8 bits
    turned = orientation(image)
    return _Samples(upright(values, turned), None if clear is None else upright(clear, turned))


def _alpha(image: Image.Image) -> NDArray[np.uint8]:
    return np.asarray(image.convert("RGBA").getchannel("A"))


def _decode_wide_png(data: bytes, image: Image.Image, column: str) -> _Samples:
    """Decode a PNG of several channels of 16 bits; Pillow would drop the lower 8 bits of each."""
    found = cv2.imdecode(np.frombuffer(png.without_metadata(data)[0], np.uint8), cv2.IMREAD_UNCHANGED)
    if found is None or found.ndim != 3 or found.dtype != np.uint16:
        raise InputError(f"{column}: a damaged PNG; save it again, with one channel of 16 bits")
    key, clear = image.info.get("transparency"), None
    if found.shape[2] == 4:
        clear = found[..., 3] < 2**15
    elif isinstance(key, tuple):
        clear = np.logical_and.reduce([found[..., 2 - i] == value for i, value in enumerate(key)])
    # One channel soon, because three of a large map take much memory. OpenCV's order is blue, green, red.
    grey = _are_equal(found)
    values = found[..., 0].copy() if grey else found[..., 2::-1]
    del found
    turned = orientation(image)
    return _Samples(upright(values, turned), None if clear is None else upright(clear, turned))


def _are_equal(colours: NDArray[Any]) -> bool:
    return all(np.array_equal(colours[..., i], colours[..., 0]) for i in (1, 2))


def _one_channel(values: NDArray[Any], column: str) -> NDArray[Any]:
    """Return H,W numbers; three channels must be equal. Raises InputError."""
    if values.ndim == 3 and values.shape[2] == 3 and values.dtype.kind == "u" and _are_equal(values):
        return values[..., 0]
    if values.ndim != 2 or not (np.issubdtype(values.dtype, np.number) and np.isrealobj(values)):
        raise InputError(
            f"{column}: must have one channel of numbers, got shape {values.shape} of {values.dtype}; use {FORMATS}"
        )
    return values


def _of_three_bytes(values: NDArray[Any], column: str) -> NDArray[np.int32]:
    """Return the numbers that FoundationStereo's pictures hold, H,W. Raises InputError."""
    if values.shape[2:] != (3,) or values.dtype != np.uint8:
        raise InputError(
            f"{column}: disparity_encoding foundation_stereo is an RGB picture of 8 bits, got shape {values.shape} of "
            f"{values.dtype}; set it to plain for maps of one channel"
        )
    number = values[..., 0] * np.int32(255 * 255)
    number += values[..., 1] * np.int32(255)
    number += values[..., 2]
    return number


def _as_float(values: NDArray[Any], unknown: Bools | None) -> F32:
    """Return a copy as float32, NaN where unknown."""
    with np.errstate(over="ignore"):  # a value outside of float32 becomes infinite, which means unknown
        found = values.astype(np.float32)
    if unknown is not None:
        found[unknown] = np.nan
    return found


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
