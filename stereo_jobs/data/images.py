"""Images in and out: untrusted input is checked for size before it is decoded, and output is encoded losslessly."""

import io
import warnings
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from stereo_jobs.data import png, tiff
from stereo_jobs.errors import StereoJobsError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".jfif", ".jpe", ".mpo")
"""Endings of image files, in lower case."""

_FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP")
"""Formats that are accepted. Pillow reads many more, some of them by calling other programs."""

_BAND_PIXELS = 2**18


class InputError(StereoJobsError):
    """One input of one row cannot be used. It becomes the RowError of that row."""


def decode_rgb(data: bytes, max_pixels: int, column: str = "image") -> NDArray[np.uint8]:
    """Decode an image to H,W,3 uint8, upright. The number of pixels is checked before any of them is decoded.

    Args:
        data: the file.
        max_pixels: largest allowed width times height.
        column: name of the input, for messages.

    Raises:
        InputError: not an image, damaged, or larger than `max_pixels`.
    """
    try:
        return to_rgb(png.with_colour_key(open_image(data, max_pixels, column), data))
    except (InputError, MemoryError):
        raise
    except Exception as error:  # Pillow's decoders raise anything: TypeError, struct.error, zlib.error, IndexError
        raise InputError(f"{column}: not a readable image ({error})") from None


def to_rgb(image: Image.Image) -> NDArray[np.uint8]:
    """Convert an image of any mode to H,W,3 uint8, upright.

    16-bit values are scaled to [0,255], floats by their largest value; transparent pixels are put on white.
    """
    kind, inverted = tiff.stored_dtype(image), tiff.is_white_at_zero(image)  # known only before it is turned
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        return _scaled_to_8_bits(image, kind, inverted)
    if "A" in image.getbands() or "transparency" in image.info:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return np.array(image.convert("RGB"))  # a copy, since arrays of Pillow are read-only


def _scaled_to_8_bits(image: Image.Image, kind: type[np.number] | None, inverted: bool) -> NDArray[np.uint8]:
    """Convert grey of more than 8 bits to H,W,3 uint8, band by band: doubles of a whole photo would fill the memory.

    Args:
        image: grey in 16 or 32 bits, or in floats.
        kind: type of its samples, where Pillow takes them for another.
        inverted: whether 0 is white.
    """
    height, key, top = image.height, image.info.get("transparency"), 65535.0
    if image.mode == "F":
        finite = (float(band.max(where=np.isfinite(band), initial=1.0)) for _, band in _bands(image, kind))
        top = max(finite, default=1.0)
    rgb = np.empty((height, image.width, 3), np.uint8)
    for rows, values in _bands(image, kind):
        grey = (np.nan_to_num(values, posinf=top, neginf=0) / top * 255).clip(0, 255).round()
        grey = 255 - grey if inverted else grey
        if isinstance(key, int):  # the one value that is transparent
            grey[values == key] = 255
        rgb[rows] = grey[..., None]
    return rgb


def _bands(image: Image.Image, kind: type[np.number] | None) -> Iterator[tuple[slice, NDArray[np.float64]]]:
    """Yield the rows of an image of one channel a few at a time: which rows, and their values as float64."""
    step = max(1, _BAND_PIXELS // max(1, image.width))
    for start in range(0, image.height, step):
        stop = min(start + step, image.height)
        values = np.asarray(image.crop((0, start, image.width, stop)))
        yield slice(start, stop), np.asarray(values if kind is None else values.view(kind), np.float64)


def open_image(data: bytes, max_pixels: int, column: str, formats: str = "PNG, JPEG, WebP, TIFF or BMP") -> Image.Image:
    """Open an image and decode its header only.

    Args:
        data: the file.
        max_pixels: largest allowed width times height.
        column: name of the input, for messages.
        formats: formats that the message recommends if this is not an image.

    Raises:
        InputError: not an image, or larger than `max_pixels`.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=_FORMATS)
        if isinstance(image, TiffImageFile):
            tiff.correct_unpacking(image)
    except UnidentifiedImageError:  # its text has a memory address, which differs between runs
        raise InputError(f"{column}: not a readable image{_why_not(data)}; use {formats}") from None
    except MemoryError:
        raise
    except Exception as error:  # as in `decode_rgb`
        raise InputError(f"{column}: not a readable image ({error})") from None
    width, height = image.size
    if width * height > max_pixels:
        raise InputError(f"{column}: {width}x{height} pixels, more than max_image_pixels = {max_pixels}")
    return image


def _why_not(data: bytes) -> str:
    """Return what may be wrong with a file that is no image to Pillow, if its first bytes tell more."""
    if data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return " (a TIFF, but damaged or of a type that is not read, like float16; float32 is read)"
    return ""


def encode_png(pixels: NDArray[np.uint8] | NDArray[np.bool_]) -> bytes:
    """Encode an H,W,3 uint8 image as PNG, or an H,W bool mask as 1-bit PNG."""
    return _encode(Image.fromarray(pixels), "PNG")


def encode_disparity(disparity: NDArray[np.float32]) -> bytes:
    """Encode an H,W disparity in pixels as float32 TIFF (PIL mode F), without loss."""
    return _encode(Image.fromarray(disparity.astype(np.float32, copy=False)), "TIFF", "tiff_adobe_deflate")


def decode_disparity(data: bytes) -> NDArray[np.float32]:
    """Decode a disparity that `encode_disparity` has encoded, to H,W float32."""
    return np.asarray(Image.open(io.BytesIO(data)), dtype=np.float32)


def _encode(image: Image.Image, file_format: str, compression: str | None = None) -> bytes:
    buffer = io.BytesIO()
    options = {"compression": compression} if compression else {}
    image.save(buffer, file_format, **options)
    return buffer.getvalue()
