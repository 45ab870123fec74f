"""Images in and out: untrusted input is checked for size before it is decoded, and output is encoded losslessly."""

import contextlib
import importlib.util
import io
import warnings
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError, features
from PIL.TiffImagePlugin import PREDICTOR, TiffImageFile

from stereo_jobs.data import jpeg, png, tiff
from stereo_jobs.data.colour import ToSrgb, to_srgb
from stereo_jobs.data.orientation import orientation, upright
from stereo_jobs.errors import StereoJobsError

_HAS_AVIF = bool(features.check("avif"))
_HAS_HEIC = importlib.util.find_spec("pillow_heif") is not None

_SUFFIXES = (".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".webp", ".tif", ".tiff", ".bmp")
_HEIC_SUFFIXES = (".heic", ".heif", ".hif")
PHOTO_SUFFIXES = (*_SUFFIXES, ".avif", *_HEIC_SUFFIXES)
"""Endings of photos, whether they can be read here or not, in lower case."""
HEIF_SUFFIXES = (*((".avif",) if _HAS_AVIF else ()), *(_HEIC_SUFFIXES if _HAS_HEIC else ()))
"""Endings of files of the HEIF family that can be read here."""
IMAGE_SUFFIXES = (*_SUFFIXES, *HEIF_SUFFIXES)
"""Endings of image files that can be read here, in lower case."""

_FORMATS = ("PNG", "WEBP", "TIFF", "BMP", *(["AVIF"] if _HAS_AVIF else []))
"""Formats that Pillow is asked for beside JPEG. It reads many more, some of them by calling other programs."""

_NAMES = ["PNG", "JPEG", "WebP", "TIFF", "BMP", *(["AVIF"] if _HAS_AVIF else []), *(["HEIC"] if _HAS_HEIC else [])]
FORMATS = f"{', '.join(_NAMES[:-1])} or {_NAMES[-1]}"
"""Formats of pictures that can be read here, for messages."""

_HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"}
_AVIF_BRANDS = {b"avif", b"avis"}
_BAND_PIXELS = 2**18
_OF_FLOATS = 3
"""TIFF's predictor for floats."""


class InputError(StereoJobsError):
    """One input of one row cannot be used. It becomes the RowError of that row."""


@contextlib.contextmanager
def _readable(column: str) -> Iterator[None]:
    """Turn what decoding a damaged image raises inside the `with` block into InputError."""
    try:
        yield
    except (InputError, MemoryError):
        raise
    except Exception as error:  # Pillow's decoders raise anything: TypeError, struct.error, zlib.error, IndexError
        raise InputError(f"{column}: not a readable image ({error})") from None


def decode_rgb(data: bytes, max_pixels: int, column: str = "image") -> NDArray[np.uint8]:
    """Decode an image to H,W,3 uint8, upright, in sRGB. The number of pixels is checked before any is decoded.

    A file with several pictures (MPO, animations, TIFF pages) is its first one.

    Args:
        data: the file.
        max_pixels: largest allowed width times height.
        column: name of the input, for messages.

    Raises:
        InputError: not an image, damaged, or larger than `max_pixels`.
    """
    with _readable(column):
        return to_rgb(png.with_colour_key(open_image(data, max_pixels, column), data))


def decode_white(data: bytes, max_pixels: int, column: str) -> NDArray[np.bool_]:
    """Decode an image to H,W bool, upright: True where it is white.

    Colours are converted to grey without regard to a profile, and transparent pixels lie on black. White is then 128
    or more of 255, in 16 bits half of the range.

    Args:
        data: the file.
        max_pixels: largest allowed width times height.
        column: name of the input, for messages.

    Raises:
        InputError: not an image, damaged, or larger than `max_pixels`.
    """
    with _readable(column):
        image = png.with_colour_key(open_image(data, max_pixels, column), data)
        if image.mode in ("I", "F"):
            return upright(np.asarray(image.convert("L")), orientation(image)) >= 128
        return np.asarray(Image.fromarray(to_rgb(image, background="black", profile=False)).convert("L")) >= 128


def to_rgb(image: Image.Image, *, background: str = "white", profile: bool = True) -> NDArray[np.uint8]:
    """Convert an image of any mode to H,W,3 uint8, upright.

    16-bit values are scaled to [0,255], floats by their largest value.

    Args:
        image: opened, decoded or not; its pixels are not changed.
        background: colour that transparent pixels are put on.
        profile: whether its ICC profile is followed, so that the result is in sRGB.
    """
    convert = to_srgb(image) if profile else None
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        kind, inverted = tiff.stored_dtype(image), image.mode.startswith("I;16") and tiff.is_white_at_zero(image)
        pixels = _scaled_to_8_bits(image, kind, inverted, background, convert)
    else:
        image.load()  # a TIFF has its size only now
        pixels = np.empty((image.height, image.width, 3), np.uint8)
        for rows, band in _bands(image):
            pixels[rows] = np.asarray(_flat(band, background, convert))
    return upright(pixels, orientation(image))


def _flat(image: Image.Image, background: str, convert: ToSrgb | None) -> Image.Image:
    """Convert an image of 8 bits to RGB, its transparent pixels on the background."""
    colours = convert(image) if convert else None
    if "A" not in image.getbands() and "transparency" not in image.info:
        return colours or image.convert("RGB")
    layer = image.convert("RGBA")
    if colours:
        alpha = layer.getchannel("A")
        layer = colours.convert("RGBA")
        layer.putalpha(alpha)
    return Image.alpha_composite(Image.new("RGBA", image.size, background), layer).convert("RGB")


def _scaled_to_8_bits(
    image: Image.Image, kind: type[np.number] | None, inverted: bool, background: str, convert: ToSrgb | None
) -> NDArray[np.uint8]:
    """Convert grey of more than 8 bits to H,W,3 uint8, band by band: doubles of a whole photo would fill the memory.

    Args:
        image: grey in 16 or 32 bits, or in floats.
        kind: type of its samples, where Pillow takes them for another.
        inverted: whether 0 is white.
        background: black or white, which transparent pixels become.
        convert: how its profile is followed, if it is.
    """
    image.load()  # a TIFF has its size only now
    key, top = image.info.get("transparency"), 65535.0
    if image.mode == "F" or kind is np.float16:
        finite = (float(band.max(where=np.isfinite(band), initial=1.0)) for _, band in _numbers(image, kind))
        top = max(finite, default=1.0)
    rgb = np.empty((image.height, image.width, 3), np.uint8)
    for rows, values in _numbers(image, kind):
        grey = (np.nan_to_num(values, posinf=top, neginf=0) / top * 255).clip(0, 255).round().astype(np.uint8)
        grey = 255 - grey if inverted else grey
        rgb[rows] = np.asarray(convert(Image.fromarray(grey))) if convert else grey[..., None]
        if isinstance(key, int):  # the one value that is transparent
            rgb[rows][values == key] = 255 if background == "white" else 0
    return rgb


def _bands(image: Image.Image) -> Iterator[tuple[slice, Image.Image]]:
    """Yield a few rows of an image at a time: which rows, and an image of them."""
    step = max(1, _BAND_PIXELS // max(1, image.width))
    for start in range(0, image.height, step):
        stop = min(start + step, image.height)
        yield slice(start, stop), image.crop((0, start, image.width, stop))


def _numbers(image: Image.Image, kind: type[np.number] | None) -> Iterator[tuple[slice, NDArray[np.float64]]]:
    """Yield the rows of an image of one channel a few at a time: which rows, and their values as float64."""
    for rows, band in _bands(image):
        values = np.asarray(band)
        yield rows, np.asarray(values if kind is None else values.view(kind), np.float64)


def open_image(data: bytes, max_pixels: int, column: str, formats: str = FORMATS) -> Image.Image:
    """Open an image and decode its header only.

    Args:
        data: the file.
        max_pixels: largest allowed width times height.
        column: name of the input, for messages.
        formats: formats that the message recommends if this is not an image.

    Raises:
        InputError: not an image, or larger than `max_pixels`.
    """
    with _readable(column), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about metadata, or a size that is checked below
        try:
            image = _opened(data)
        except UnidentifiedImageError:  # its text has a memory address, which differs between runs
            raise InputError(f"{column}: not a readable image{_why_not(data)}; use {formats}") from None
        if isinstance(image, TiffImageFile):
            tiff.correct_unpacking(image)
    for name in ("xmp", "XML:com.adobe.xmp"):
        image.info.pop(name, None)  # Pillow would turn a TIFF by it
    width, height = image.size
    if width * height > max_pixels:
        raise InputError(f"{column}: {width}x{height} pixels, more than max_image_pixels = {max_pixels}")
    return image


def _opened(data: bytes) -> Image.Image:
    """Open the first picture of a file. Raises what Pillow does."""
    if data.startswith((b"\x89PNG", b"\xff\xd8\xff")):
        plain, told = png.without_metadata(data) if data[:1] == b"\x89" else jpeg.without_metadata(data)
        image = Image.open(io.BytesIO(plain), formats=("PNG", "JPEG"))
        image.info.update(told)
        return image
    if _is_heic(data) and _HAS_HEIC:
        from pillow_heif import HeifImageFile

        heic: Image.Image = HeifImageFile(io.BytesIO(data))  # type: ignore[no-untyped-call]
        return heic
    return Image.open(io.BytesIO(data), formats=_FORMATS)


def _brands(data: bytes) -> set[bytes]:
    """Return the brands that a file of the HEIF family names, its own and those it is compatible with."""
    if data[4:8] != b"ftyp":
        return set()
    end = min(int.from_bytes(data[:4], "big"), len(data), 256)
    return {data[8:12], *(data[at : at + 4] for at in range(16, end, 4))}


def _is_heic(data: bytes) -> bool:
    return bool(_brands(data) & _HEIC_BRANDS)


def _why_not(data: bytes) -> str:
    """Return what may be wrong with a file that is no image to Pillow, if its first bytes tell more."""
    if data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return " (a TIFF, but damaged or of a type that is not read, like 64-bit integers; float32 is read)"
    if _is_heic(data):
        return " (HEIC needs the extra heic: pip install 'stereo-jobs[heic]')"
    if _brands(data) & _AVIF_BRANDS and not _HAS_AVIF:
        return " (AVIF needs a Pillow that was built with it: pip install --upgrade pillow)"
    return ""


def encode_png(pixels: NDArray[np.uint8] | NDArray[np.bool_]) -> bytes:
    """Encode an H,W,3 uint8 image as PNG, or an H,W bool mask as 1-bit PNG."""
    # What PNG's filters leave of a photo repeats in runs or not at all: a search for more takes four times as long.
    return _encode(Image.fromarray(pixels), "PNG", compress_type=zlib.Z_RLE)


def encode_disparity(disparity: NDArray[np.float32]) -> bytes:
    """Encode an H,W disparity in pixels as float32 TIFF (PIL mode F), bit for bit.

    The predictor of Adobe's TIFF Technical Note 3 stores how the bytes of a float differ from those of its neighbour,
    exponents first: smooth disparities are a fifth smaller. OpenCV reads deflate, but not zstd.
    """
    image = Image.fromarray(disparity.astype(np.float32, copy=False))
    return _encode(image, "TIFF", compression="tiff_adobe_deflate", tiffinfo={PREDICTOR: _OF_FLOATS})


def decode_disparity(data: bytes) -> NDArray[np.float32]:
    """Decode a disparity that `encode_disparity` has encoded, to H,W float32."""
    return np.asarray(Image.open(io.BytesIO(data)), dtype=np.float32)


def _encode(image: Image.Image, file_format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()
