"""Images in and out: hostile input is bounded before it is decoded, output is encoded losslessly."""

import io
import urllib.parse
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from stereo_jobs.data.storage import NotFoundError, open_storage
from stereo_jobs.errors import StereoJobsError, StorageError
from stereo_jobs.spec import StorageSpec

_FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP")
"""Pillow reads far more, some with outside programs."""


class InputError(StereoJobsError):
    """One input of one row cannot be used; becomes that row's RowError."""


class InputReader:
    """Fetches the image columns of a manifest within fixed bounds.

    Args:
        allowed_prefixes: folders and s3:// prefixes below which URIs may point.
        max_bytes: larger inputs are refused unread.
        settings: S3 access.
        max_pixels: larger images are refused undecoded.
    """

    def __init__(
        self, allowed_prefixes: Sequence[str], max_bytes: int, settings: StorageSpec, max_pixels: int = 50_000_000
    ) -> None:
        self.allowed = [_normal(prefix) for prefix in allowed_prefixes]
        self.max_bytes = max_bytes
        self.settings = settings
        self.max_pixels = max_pixels

    def read_image(self, value: object, column: str) -> bytes:
        """As `read`, for a cell that must hold an image; only its header is decoded here."""
        data = self.read(value, column)
        open_image(data, self.max_pixels, column)
        return data

    def read_map(self, value: object, column: str) -> bytes:
        """As `read`, for a cell that must hold a depth or disparity map."""
        from stereo_jobs.data.maps import check_map

        data = self.read(value, column)
        check_map(data, self.max_pixels, column)
        return data

    def read(self, value: object, column: str) -> bytes:
        """Bytes of one cell: inline bytes, `{bytes, path}`, or a URI below an allowed prefix.

        Raises:
            InputError: naming the column, the rule and the value.
        """
        if isinstance(value, dict):
            inline = value.get("bytes")
            value = inline if inline is not None else value.get("path")
        if isinstance(value, bytes):
            return self._bounded(value, column)
        if not isinstance(value, str) or not value:
            raise InputError(f"{column}: must be bytes, {{bytes, path}} or a URI; got {type(value).__name__}")
        uri = _normal(value)
        if not any(uri.startswith(prefix.rstrip("/") + "/") for prefix in self.allowed):
            raise InputError(
                f"{column}: {value!r} is outside the allowed prefixes; add its folder to "
                "runtime.allowed_prefixes if you trust it"
            )
        folder, _, name = uri.rpartition("/")
        storage = open_storage(folder, self.settings)
        try:
            size = storage.size(name)
            if size > self.max_bytes:
                raise InputError(f"{column}: {size} bytes, more than max_image_bytes = {self.max_bytes}")
            return self._bounded(storage.read(name), column)
        except NotFoundError:
            raise InputError(f"{column}: {value!r} does not exist") from None
        except StorageError as error:
            raise InputError(f"{column}: {error}") from None

    def _bounded(self, data: bytes, column: str) -> bytes:
        if len(data) > self.max_bytes:
            raise InputError(f"{column}: {len(data)} bytes, more than max_image_bytes = {self.max_bytes}")
        return data


def _normal(uri: str) -> str:
    """One spelling per place, so that `..` and symbolic links cannot lead out of a prefix."""
    if uri.startswith("s3://"):
        key = uri.removeprefix("s3://").partition("/")[2]
        if ".." in urllib.parse.unquote(key).split("/"):
            raise InputError(f"{uri!r}: '..' is not allowed in a URI")
        return uri
    if "://" in uri and not uri.startswith("file://"):
        raise InputError(f"{uri!r}: only s3:// and local files can be read")
    try:
        return str(Path(uri.removeprefix("file://")).expanduser().resolve())
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links, an unknown ~user, a NUL byte
        raise InputError(f"{uri!r}: not a usable path ({error})") from None


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
