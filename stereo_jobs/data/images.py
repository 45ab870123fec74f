"""Images in and out: untrusted input is checked for size before it is decoded, and output is encoded losslessly."""

import io
import warnings

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from stereo_jobs.errors import StereoJobsError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")
"""Endings of image files, in lower case."""

_FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP")
"""Formats that are accepted. Pillow reads many more, some of them by calling other programs."""


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
        return to_rgb(open_image(data, max_pixels, column))
    except (InputError, MemoryError):
        raise
    except Exception as error:  # Pillow's decoders raise anything: TypeError, struct.error, zlib.error, IndexError
        raise InputError(f"{column}: not a readable image ({error})") from None


def to_rgb(image: Image.Image) -> NDArray[np.uint8]:
    """Convert an image of any mode to H,W,3 uint8, upright.

    16-bit values are scaled to [0,255], floats by their largest value; transparent pixels are put on white.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        values = np.asarray(image, np.float64)
        top = 65535.0 if image.mode != "F" else float(values.max(where=np.isfinite(values), initial=1.0))
        grey = (np.nan_to_num(values, posinf=top, neginf=0) / top * 255).clip(0, 255).round().astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if "A" in image.getbands() or "transparency" in image.info:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return np.array(image.convert("RGB"))  # a copy, since arrays of Pillow are read-only


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
    except UnidentifiedImageError:  # its text has a memory address, which differs between runs
        raise InputError(f"{column}: not a readable image; use {formats}") from None
    except MemoryError:
        raise
    except Exception as error:  # as in `decode_rgb`
        raise InputError(f"{column}: not a readable image ({error})") from None
    width, height = image.size
    if width * height > max_pixels:
        raise InputError(f"{column}: {width}x{height} pixels, more than max_image_pixels = {max_pixels}")
    return image


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
