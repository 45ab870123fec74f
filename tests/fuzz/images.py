"""Pictures and maps, through the product's decoders.

What is whole must come out as a second decoder shows it: OpenCV (its own libpng, libjpeg, libwebp and libtiff) or
tifffile against Pillow, and numpy for NPY and PFM. What the formats leave open is
handled knowingly: EXIF turns a picture upright, transparency lies on white, 16 bits are scaled, the only ICC profile is
that of sRGB, integers of a disparity have a scale. What is damaged must be refused, or decoded to something, and must
cost neither time nor memory.
"""

import io
import random
import struct
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image, ImageCms

from stereo_jobs.data.images import InputError, decode_rgb
from stereo_jobs.data.maps import check_map, decode_depth, decode_disparity_px, decode_map, decode_mask
from stereo_jobs.records import DisparityEncoding
from stereo_jobs.spec import Runtime
from tests.fuzz.cases import Record

Pixels = NDArray[Any]
MAX_PIXELS = int(Runtime().max_image_pixels)


@dataclass
class Sample:
    """A file that is whole.

    Attributes:
        data: its bytes.
        made: how it came about.
        picture: H,W,3 as a second decoder shows it, 0 to 255; None for maps, and where there is no second opinion.
        values: H,W of a map; None for pictures.
        tolerance: largest difference of any pixel.
        mean: largest mean difference.
        refusable: whether the product may refuse it, politely.
    """

    data: bytes
    made: str
    picture: Pixels | None = None
    values: Pixels | None = None
    tolerance: float = 1.0
    mean: float = 1.0
    refusable: bool = False


# --- Pictures ---


def _content(rng: random.Random, channels: int, top: int = 255) -> Pixels:
    """H,W,C: smooth, with a little noise and hard edges."""
    source = np.random.default_rng(rng.randrange(2**32))
    height, width = rng.choice((1, 2, 7, 16, 33, 40)), rng.choice((1, 2, 7, 16, 33, 40))
    y, x = np.mgrid[0:height, 0:width] / 40
    shades = [np.sin(3 * (x * source.normal() + y * source.normal() + source.random())) for _ in range(channels)]
    values = np.stack(shades, axis=2) * 0.4 + 0.5 + source.normal(0, 0.02, (height, width, channels))
    values[height // 2 :, width // 2 :] = source.random(channels)
    return (values.clip(0, 1) * top).round().astype(np.uint8 if top <= 255 else np.uint16)


MODES = {
    "1": 1,
    "L": 1,
    "P": 3,
    "LA": 2,
    "RGB": 3,
    "RGBA": 4,
    "CMYK": 4,
    "YCbCr": 3,
    "I;16": 1,
    "I": 1,
    "F": 1,
    "LAB": 3,
}


def _image(rng: random.Random, mode: str) -> Image.Image:
    """A picture of a mode of Pillow."""
    if mode in ("I;16", "I"):
        values = _content(rng, 1, 65535)[..., 0]
        return Image.fromarray(values if mode == "I;16" else values.astype(np.int32))
    if mode == "F":
        return Image.fromarray(_content(rng, 1)[..., 0].astype(np.float32) / 7)
    pixels = _content(rng, MODES[mode])
    if mode == "1":
        return Image.fromarray(pixels[..., 0] >= 128)
    if mode == "P":
        colours = rng.choice((2, 3, 4, 5, 16, 17, 256))
        return Image.fromarray(pixels).quantize(colours, dither=Image.Dither.NONE)
    if mode in ("YCbCr", "CMYK", "LAB"):
        size = (pixels.shape[1], pixels.shape[0])
        return Image.frombytes(mode, size, np.ascontiguousarray(pixels).tobytes())
    return Image.fromarray(pixels[..., 0] if mode == "L" else pixels)


def _saved(image: Image.Image, file_format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def _exif(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = orientation, "a photo"
    return exif.tobytes()


def _upright(pixels: Pixels, orientation: int) -> Pixels:
    """Turned as EXIF says: rows and columns of the file to those of the scene."""
    turns: dict[int, Callable[[Pixels], Pixels]] = {
        2: lambda p: p[:, ::-1],
        3: lambda p: p[::-1, ::-1],
        4: lambda p: p[::-1],
        5: lambda p: p.swapaxes(0, 1),
        6: lambda p: p[::-1].swapaxes(0, 1),
        7: lambda p: p[::-1, ::-1].swapaxes(0, 1),
        8: lambda p: p.swapaxes(0, 1)[::-1],
    }
    return turns.get(orientation, lambda p: p)(pixels)


def _on_white(pixels: Pixels) -> Pixels:
    """Channels as they are in the file, to H,W,3 of 0 to 255: grey three times, transparency on white."""
    scaled = pixels.astype(np.float64) / (257 if pixels.dtype == np.uint16 else 1)
    if scaled.ndim == 2:
        scaled = scaled[..., None]
    if scaled.shape[2] in (1, 3):
        return np.repeat(scaled, 3, axis=2) if scaled.shape[2] == 1 else scaled
    colour, alpha = scaled[..., :-1], scaled[..., -1:] / 255
    return np.broadcast_to(colour * alpha + 255 * (1 - alpha), (*colour.shape[:2], 3)).copy()


def _by_opencv(data: bytes) -> Pixels:
    """Channels as OpenCV decodes them, as they lie in the file, RGB(A) or grey."""
    flags = cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    if pixels is None:
        raise ValueError("OpenCV does not read it")
    if pixels.ndim == 3 and pixels.shape[2] in (3, 4):
        pixels = pixels[..., [2, 1, 0, 3][: pixels.shape[2]]]
    return pixels


def _png(rng: random.Random) -> Sample:
    how = rng.choice(
        ("plain", "plain", "orientation", "ICC", "16 bits", "colour key", "palette with alpha", "animated")
    )
    options: dict[str, Any] = {"compress_level": rng.choice((0, 1, 9))}
    orientation, mode = 1, rng.choice(("1", "L", "P", "LA", "RGB", "RGBA", "I;16"))
    if how == "16 bits":
        channels = rng.choice((1, 3, 4))
        values = _content(rng, channels, 65535)
        data = cv2.imencode(".png", values if channels > 1 else values[..., 0])[1].tobytes()
        return Sample(data, f"PNG of {channels} channels of 16 bits", _on_white(_by_opencv(data)), tolerance=2.01)
    if how == "orientation":
        orientation = rng.randrange(0, 10)
        options["exif"] = _exif(orientation)
    elif how == "ICC":
        options["icc_profile"] = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    elif how == "colour key":
        mode = rng.choice(("L", "RGB", "I;16", "1"))
    elif how == "palette with alpha":
        mode = "P"
    image = _image(rng, mode)
    if how == "colour key":
        key = image.getpixel((0, 0))
        options["transparency"] = key if mode != "1" else key // 255
    elif how == "palette with alpha":
        options["transparency"] = rng.choice((0, bytes(range(0, 250, 50))))
    elif how == "animated":
        options |= {"save_all": True, "append_images": [_image(rng, mode).resize(image.size)], "duration": 100}
    data = _saved(image, "PNG", **options)
    pixels = _by_opencv(data)
    picture = _upright(_on_white(pixels), orientation)
    if how == "colour key" and (pixels.ndim == 2 or pixels.shape[2] == 3):  # OpenCV has left it to its user
        picture[(pixels.reshape(*pixels.shape[:2], -1) == key).all(axis=2)] = 255
    return Sample(data, f"PNG of mode {mode} with {how}, {orientation}", picture, tolerance=1.51)


def _jpeg(rng: random.Random) -> Sample:
    mode, orientation = rng.choice(("L", "RGB", "RGB", "RGB", "CMYK")), rng.randrange(0, 10)
    options: dict[str, Any] = {"quality": rng.choice((30, 75, 95, 100)), "progressive": rng.random() < 0.3}
    if mode == "RGB":
        options["subsampling"] = rng.choice((0, 1, 2))
    if rng.random() < 0.5:
        options["exif"] = _exif(orientation)
    else:
        orientation = 1
    if rng.random() < 0.2:
        options["icc_profile"] = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    data = _saved(_image(rng, mode), "JPEG", **options)
    picture = _upright(_on_white(_by_opencv(data)), orientation)
    tolerance = 6.0 if mode == "CMYK" else 3.0
    return Sample(data, f"JPEG of mode {mode}, orientation {orientation}", picture, tolerance=tolerance, mean=2.0)


def _webp(rng: random.Random) -> Sample:
    mode, orientation = rng.choice(("RGB", "RGBA")), rng.randrange(0, 10)
    options: dict[str, Any] = {"lossless": rng.random() < 0.5, "exact": rng.random() < 0.5, "method": 0}
    if rng.random() < 0.3:
        options["exif"] = _exif(orientation)
    else:
        orientation = 1
    image = _image(rng, mode)
    if rng.random() < 0.2:
        options |= {"save_all": True, "append_images": [image.rotate(180)], "duration": 100}
    data = _saved(image, "WEBP", **options)
    picture = _upright(_on_white(_by_opencv(data)), orientation)
    return Sample(data, f"WebP of mode {mode}, orientation {orientation}, {options}", picture, tolerance=2.0)


def _bmp(rng: random.Random) -> Sample:
    mode = rng.choice(("1", "L", "P", "RGB", "RGBA"))
    data = _saved(_image(rng, mode), "BMP")
    if mode == "RGBA":  # the fourth byte is not said to be alpha, and both take it for none
        return Sample(data, "BMP of 32 bits", _on_white(_by_opencv(data)[..., :3]))
    return Sample(data, f"BMP of mode {mode}", _on_white(_by_opencv(data)))


def _tiff(rng: random.Random) -> Sample:
    """As Pillow writes it, read by OpenCV or tifffile."""
    mode = rng.choice(("1", "L", "P", "LA", "RGB", "RGBA", "CMYK", "I;16"))
    packed = ("raw", "tiff_lzw", "tiff_deflate", "tiff_adobe_deflate", "packbits")
    options: dict[str, Any] = {"compression": rng.choice(packed + (("group4", "group3") if mode == "1" else ()))}
    orientation = 1
    if rng.random() < 0.3:
        orientation = rng.randrange(1, 9)
        options["tiffinfo"] = {274: orientation}
    image = _image(rng, mode)
    if rng.random() < 0.2:
        options |= {"save_all": True, "append_images": [image.rotate(180)]}
    if rng.random() < 0.1:
        options["big_tiff"] = True
    data = _saved(image, "TIFF", **options)
    picture = _tiff_picture(data)
    # OpenCV turns some pictures by itself, drops the alpha of grey ones, and knows but one kind of faxes.
    if picture is None and orientation == 1 and mode != "LA" and options["compression"] != "group3":
        pixels = _by_opencv(data)
        picture = _on_white(pixels)
        if pixels.ndim == 3 and pixels.shape[2] == 4:  # libtiff has multiplied the colours by alpha
            picture = pixels[..., :3].astype(np.float64) + 255 - pixels[..., 3:]
    return Sample(
        data,
        f"TIFF of mode {mode}, orientation {orientation}, {options}",
        None if picture is None else _upright(picture, orientation),
        tolerance=3.0 if mode in ("CMYK", "RGBA", "LA") else 1.51,
    )


def _tiff_picture(data: bytes) -> Pixels | None:
    """By tifffile, as the tags say; None where it lacks the codec."""
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page = file.pages[0]
        try:
            values = page.asarray()
        except (ValueError, KeyError):  # a codec that only a further package brings
            return None
        photometric, samples = page.photometric, page.extrasamples
    if page.planarconfig == tifffile.PLANARCONFIG.SEPARATE and values.ndim == 3:
        values = np.moveaxis(values, 0, -1)
    if values.dtype == np.bool_ or page.bitspersample == 1:
        values = values.astype(np.uint8) * 255
    if photometric == tifffile.PHOTOMETRIC.PALETTE:
        return (np.moveaxis(page.colormap, 0, -1)[values] >> 8).astype(np.float64)
    if photometric == tifffile.PHOTOMETRIC.MINISWHITE:
        values = np.iinfo(values.dtype).max - values
    if photometric == tifffile.PHOTOMETRIC.SEPARATED:
        ink = values.astype(np.float64) / np.iinfo(values.dtype).max
        return 255 * (1 - ink[..., :3]) * (1 - ink[..., 3:4])
    if samples and samples[0] == tifffile.EXTRASAMPLE.ASSOCALPHA:
        scaled = values.astype(np.float64) / (257 if values.dtype == np.uint16 else 1)
        return scaled[..., :-1] + 255 - scaled[..., -1:]
    return _on_white(values)


def _scientific_tiff(rng: random.Random) -> Sample:
    """As tifffile writes it."""
    top = rng.choice((255, 255, 65535))
    channels = rng.choice((1, 1, 3, 3, 4))
    values = _content(rng, channels, top)
    options: dict[str, Any] = {"byteorder": rng.choice("<>"), "compression": rng.choice((None, "zlib"))}
    if channels == 1:
        values = values[..., 0]
        options["photometric"] = rng.choice(("minisblack", "miniswhite"))
    else:
        options["photometric"] = "rgb"
        if channels == 4:
            options["extrasamples"] = [rng.choice(("unassalpha", "assocalpha"))]
            if options["extrasamples"] == ["assocalpha"]:
                values = np.minimum(values, values[..., 3:])
        if rng.random() < 0.2:
            options["planarconfig"] = "separate"
            values = np.ascontiguousarray(np.moveaxis(values, -1, 0))
    if rng.random() < 0.2:
        options["tile"] = (16, 16)
    elif rng.random() < 0.3:
        options["rowsperstrip"] = 3
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, values, **options)
    data = buffer.getvalue()
    # 16 bits become 8 here by their upper byte, there by scaling; of premultiplied colours few bits may be left.
    tolerance = {"assocalpha": 3.0, "unassalpha": 2.01}.get(options.get("extrasamples", [""])[0], 1.51)
    made = f"TIFF of {values.dtype}, {values.shape}, {options}"
    wide = values.dtype == np.uint16
    rare = wide and options["byteorder"] == ">" and options["photometric"] == "miniswhite"
    rare |= "planarconfig" in options and channels == 4 and options["compression"] is None
    return Sample(data, made, _tiff_picture(data), tolerance=tolerance, refusable=rare)


def _rare_tiff(rng: random.Random) -> Sample:
    """Modes without an agreed picture: decoded or refused, but nothing else."""
    mode = rng.choice(("I", "F", "LAB", "YCbCr"))
    return Sample(_saved(_image(rng, mode), "TIFF"), f"TIFF of mode {mode}", refusable=True)


# --- Maps ---


def _map_values(rng: random.Random, dtype: str) -> Pixels:
    source = np.random.default_rng(rng.randrange(2**32))
    shape = (rng.choice((1, 2, 7, 20)), rng.choice((1, 2, 7, 20)))
    kind = np.dtype(dtype)
    if kind.kind == "f":
        values = source.normal(20, 30, shape).astype(kind)
        if rng.random() < 0.3:
            odd = np.array([np.nan, np.inf, -np.inf, 0, -0.0, 1e-30, 6e4], kind)
            values.flat[rng.randrange(values.size)] = rng.choice(list(odd))
        return values
    info = np.iinfo(kind)
    values = source.integers(info.min, info.max, shape, kind.newbyteorder("="), endpoint=True).astype(kind)
    values.flat[0] = rng.choice((info.min, info.max, 0, 1))
    return values


def _npy(rng: random.Random) -> Sample:
    dtype = rng.choice(("<f4", ">f4", "<f8", "<f2", "u1", "<u2", ">u2", "<i2", "<i4", "<u4", "<i8", "<u8", "i1"))
    values = _map_values(rng, dtype)
    order = rng.choice("CF")
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.asarray(values, order=order), rng.choice((None, (1, 0), (2, 0), (3, 0))))
    return Sample(buffer.getvalue(), f"NPY of {dtype} in order {order}", values=values)


def _pfm(rng: random.Random) -> Sample:
    values = _map_values(rng, "<f4")
    order, scale = rng.choice((("<f4", "-1.0"), (">f4", "1.0"), ("<f4", "-0.5"), (">f4", "1e0")))
    space, end = rng.choice(("\n", " ")), rng.choice(("\n", "\r\n", " \n", " "))
    header = f"Pf\n{values.shape[1]}{space}{values.shape[0]}\n{scale}{end}".encode()
    return Sample(header + np.flipud(values).astype(order).tobytes(), f"PFM {order} {scale}", values=values)


def _map_png(rng: random.Random) -> Sample:
    values = _map_values(rng, rng.choice(("u1", "<u2")))
    by_opencv = rng.random() < 0.5
    data = cv2.imencode(".png", values)[1].tobytes() if by_opencv else _saved(Image.fromarray(values), "PNG")
    return Sample(data, f"PNG map of {values.dtype}", values=values)


def _map_tiff(rng: random.Random) -> Sample:
    dtype = rng.choice(("f4", "f4", "f4", "f8", "f2", "u1", "u2", "i2", "i4", "u4", "i1", "u8"))
    values = _map_values(rng, dtype)
    options: dict[str, Any] = {"byteorder": rng.choice("<>"), "compression": rng.choice((None, "zlib"))}
    if rng.random() < 0.3:
        options["tile"] = (16, 16)
    by = rng.choice(("tifffile", "OpenCV")) if dtype in ("f4", "f8", "u1", "u2") else "tifffile"
    if by == "OpenCV":
        data = cv2.imencode(".tiff", values)[1].tobytes()
    else:
        buffer = io.BytesIO()
        tifffile.imwrite(buffer, values, photometric="minisblack", **options)
        data = buffer.getvalue()
    refusable = dtype == "u8"
    return Sample(data, f"TIFF map of {dtype} by {by}, {options}", values=values, refusable=refusable)


MAKERS: tuple[tuple[int, Callable[[random.Random], Sample]], ...] = (
    (6, _png),
    (4, _jpeg),
    (3, _webp),
    (2, _bmp),
    (4, _tiff),
    (4, _scientific_tiff),
    (1, _rare_tiff),
    (2, _npy),
    (1, _pfm),
    (2, _map_png),
    (4, _map_tiff),
)


# --- Damage ---


def _flipped(rng: random.Random, data: bytes) -> bytes:
    out = bytearray(data)
    reach = len(out) if rng.random() < 0.5 else min(len(out), 200)
    for _ in range(rng.choice((1, 2, 4, 16))):
        out[rng.randrange(reach)] = rng.randrange(256)
    return bytes(out)


def _cut(rng: random.Random, data: bytes) -> bytes:
    return data[: rng.randrange(len(data))]


def _lengthened(rng: random.Random, data: bytes) -> bytes:
    return data + rng.choice((b"\0", b"x" * 1000, data))


def _a_part_twice(rng: random.Random, data: bytes) -> bytes:
    low, high = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    return data[:high] + data[low:high] * rng.choice((1, 20)) + data[high:]


def _a_part_less(rng: random.Random, data: bytes) -> bytes:
    low = rng.randrange(len(data))
    return data[:low] + data[low + rng.randrange(1, 40) :]


def _controls(rng: random.Random, data: bytes) -> bytes:
    at = rng.randrange(len(data))
    return data[:at] + rng.choice((b"\x1b[31m", b"\x9b1m", b"\xe2\x80\xae", b"\0" * 9, b"\r")) + data[at:]


DAMAGE = (_flipped, _flipped, _flipped, _cut, _lengthened, _a_part_twice, _a_part_less, _controls)


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _large(rng: random.Random) -> Sample:
    """A file of some kilobytes that is as many pixels as a manifest's picture may have, or more."""
    side = rng.choice((7000, 7071, 7072, 20_000, 65_000))
    depth, colour = rng.choice(((8, 0), (8, 2), (8, 6), (16, 0), (16, 2), (16, 6), (1, 0), (8, 4), (8, 3)))
    line = 1 + -(-side * depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour] // 8)
    packer = zlib.compressobj(1)
    body = b"".join(packer.compress(bytes(line)) for _ in range(side if side < 8000 else 10)) + packer.flush()
    head = _chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, depth, colour, 0, 0, 0))
    head += _chunk(b"PLTE", bytes(range(6))) if colour == 3 else b""
    data = b"\x89PNG\r\n\x1a\n" + head + _chunk(b"IDAT", body) + _chunk(b"IEND", b"")
    return Sample(data, f"PNG of {side}x{side}, {depth} bits, colour type {colour}", refusable=True)


# --- The case ---


def make(rng: random.Random) -> tuple[Sample, bool]:
    """A file, and whether it was damaged or is one that may be refused."""
    if rng.random() < 0.01:
        return _large(rng), True
    weights = [weight for weight, _ in MAKERS]
    sample = rng.choices([maker for _, maker in MAKERS], weights)[0](rng)
    damaged = rng.random() < 0.6
    if damaged:
        damage = rng.choice(DAMAGE)
        sample.data = damage(rng, sample.data)
        sample.made += f"; {damage.__name__.strip('_').replace('_', ' ')}"
    return sample, damaged


def work(rng: random.Random, folder: Path, record: Record) -> None:
    """Make one picture or map, perhaps damage it, decode it with everything that a row may be decoded with."""
    cv2.setNumThreads(1)
    warnings.simplefilter("ignore")  # of Pillow, about metadata; they are no message of the product
    sample, damaged = make(rng)
    (folder / "input.bin").write_bytes(sample.data)
    record.note(sample.made)
    if sample.values is None or damaged:
        _decode_picture(sample, damaged, record)
    if sample.values is not None or damaged:
        _decode_map(sample, damaged, record, rng)


def _decode_picture(sample: Sample, damaged: bool, record: Record) -> None:
    shown = _refused_or(lambda: decode_rgb(sample.data, MAX_PIXELS), "decode_rgb", record)
    if shown is None:
        if not (damaged or sample.refusable):
            record.find("refused", f"{_kind_of(sample)}: a whole picture was refused")
        return
    if shown.dtype != np.uint8 or shown.ndim != 3 or shown.shape[2] != 3:
        record.find("picture", f"{_kind_of(sample)}: not H,W,3 uint8: {shown.shape} {shown.dtype}")
    elif not damaged and sample.picture is not None:
        _compare(sample, shown, record)


def _compare(sample: Sample, shown: Pixels, record: Record) -> None:
    assert sample.picture is not None
    if shown.shape != sample.picture.shape:
        record.find("picture", f"{_kind_of(sample)}: of {shown.shape}, a second decoder shows {sample.picture.shape}")
        return
    difference = np.abs(shown.astype(np.float64) - sample.picture)
    if difference.max() > sample.tolerance or difference.mean() > sample.mean:
        y, x, _ = np.unravel_index(difference.argmax(), difference.shape)
        record.find(
            "picture",
            f"{_kind_of(sample)}: differs by up to {difference.max():.1f}, {difference.mean():.1f} in the mean, at "
            f"({y}, {x}): {shown[y, x].tolist()} and {sample.picture[y, x].round(1).tolist()}",
        )


def _decode_map(sample: Sample, damaged: bool, record: Record, rng: random.Random) -> None:
    sized = _refused_or(lambda: check_map(sample.data, MAX_PIXELS, "depth") or True, "check_map", record)
    if not sized:  # a row is refused before its maps are decoded
        if not (damaged or sample.refusable):
            record.find("refused", f"{_kind_of(sample)}: a whole map was refused")
        return
    values = _refused_or(lambda: decode_map(sample.data, "depth"), "decode_map", record)
    whole = sample.values is not None and sample.values.dtype.kind in "iu"
    meaning = DisparityEncoding(scale=rng.choice((1, 4, 100, 256))) if whole or damaged else DisparityEncoding()
    disparity = _refused_or(lambda: decode_disparity_px(sample.data, meaning=meaning), "decode_disparity_px", record)
    kind = rng.choice(("metric", "inverse"))
    depth = _refused_or(lambda: decode_depth(sample.data, kind), "decode_depth", record)
    _refused_or(lambda: decode_mask(sample.data), "decode_mask", record)
    if damaged or sample.values is None:
        return
    if values is None:
        if not sample.refusable:
            record.find("refused", f"{_kind_of(sample)}: a whole map was refused")
        return
    with np.errstate(over="ignore"):
        wanted = sample.values.astype(np.float32)
    known = np.isfinite(wanted)
    in_pixels = np.where(known, wanted, np.nan)
    if meaning.scale:
        in_pixels = np.where(wanted != 0, wanted / np.float32(meaning.scale), np.nan)
    far = np.where(known & (wanted > 0) if kind == "metric" else known, wanted, np.nan)
    pairs = (
        (values, wanted, "decode_map"),
        (disparity, in_pixels, "decode_disparity_px"),
        (depth, far, "decode_depth"),
    )
    for found, expected, name in pairs:
        if found is None:
            if np.isfinite(expected).any():
                record.find("refused", f"{_kind_of(sample)}: refused by {name}")
        elif found.shape != expected.shape:
            record.find("picture", f"{_kind_of(sample)}: {name}: of {found.shape} and not {expected.shape}")
        elif not np.array_equal(found, expected, equal_nan=True):
            at = np.flatnonzero((found != expected) & ~(np.isnan(found) & np.isnan(expected)))[0]
            record.find("picture", f"{_kind_of(sample)}: {name}: {found.flat[at]} and not {expected.flat[at]}, first")


def _kind_of(sample: Sample) -> str:
    """The first words of how it was made, by which findings are grouped."""
    return sample.made.partition(",")[0]


def _refused_or(decode: Callable[[], Any], name: str, record: Record) -> Any:
    """What a decoder returns; None where it refuses, which is printed as a message of the product would be."""
    try:
        found = decode()
    except InputError as error:
        print(f"{name}: {error}")
        record.step(name, 2)
        return None
    record.step(name, 0)
    return found
