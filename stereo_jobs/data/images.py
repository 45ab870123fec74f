"""Images in and out: hostile input is bounded before it is decoded, output is encoded losslessly."""

import io
import warnings

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from stereo_jobs.errors import StereoJobsError

_FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP")
"""Pillow reads far more, some with outside programs."""


class InputError(StereoJobsError):
    """One input of one row cannot be used; becomes that row's RowError."""


def decode_rgb(data: bytes, max_pixels: int, column: str = "image") -> NDArray[np.uint8]:
    """Decode an image to H,W,3 uint8, upright, refusing too many pixels before any is decoded.

    Raises:
        InputError: not an image, broken, or larger than `max_pixels`.
    """
    try:
        return to_rgb(open_image(data, max_pixels, column))
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(f"{column}: not a readable image ({error})") from None


def to_rgb(image: Image.Image) -> NDArray[np.uint8]:
    """Any mode to H,W,3 uint8, upright: 16 bits are scaled, not cut; transparent pixels lie on white."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        values = np.asarray(image, np.float64)
        top = 65535.0 if image.mode != "F" else float(values.max(where=np.isfinite(values), initial=1.0))
        grey = (np.nan_to_num(values, posinf=top, neginf=0) / top * 255).clip(0, 255).round().astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if "A" in image.getbands() or "transparency" in image.info:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return np.array(image.convert("RGB"))  # a copy: the arrays of Pillow cannot be written to


def open_image(data: bytes, max_pixels: int, column: str, formats: str = "PNG, JPEG, WebP, TIFF or BMP") -> Image.Image:
    """An image of which nothing but the header is decoded yet; `formats` is the remedy where it is none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=_FORMATS)
    except UnidentifiedImageError:  # whose text names an address in memory, another one in each run
        raise InputError(f"{column}: not a readable image; use {formats}") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"{column}: not a readable image ({error})") from None
    width, height = image.size
    if width * height > max_pixels:
        raise InputError(f"{column}: {width}x{height} pixels, more than max_image_pixels = {max_pixels}")
    return image


def encode_png(pixels: NDArray[np.uint8] | NDArray[np.bool_]) -> bytes:
    """PNG of an H,W,3 uint8 image, or 1-bit PNG of an H,W bool mask."""
    return _encode(Image.fromarray(pixels), "PNG")


def encode_disparity(disparity: NDArray[np.float32]) -> bytes:
    """Float32 TIFF (PIL mode F) of an H,W disparity in pixels; lossless, read back by PIL."""
    return _encode(Image.fromarray(disparity.astype(np.float32, copy=False)), "TIFF", "tiff_adobe_deflate")


def decode_disparity(data: bytes) -> NDArray[np.float32]:
    """The H,W float32 disparity of `encode_disparity`."""
    return np.asarray(Image.open(io.BytesIO(data)), dtype=np.float32)


def _encode(image: Image.Image, file_format: str, compression: str | None = None) -> bytes:
    buffer = io.BytesIO()
    options = {"compression": compression} if compression else {}
    image.save(buffer, file_format, **options)
    return buffer.getvalue()
