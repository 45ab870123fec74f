"""TIFF files in every byte order, compression, type and layout: decoded as written, and as others decode them."""

import io
import itertools
import struct

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from stereo_jobs.data.images import InputError, decode_rgb
from stereo_jobs.data.maps import check_map, decode_depth, decode_disparity_px, decode_map

CODECS = {None: 1, "tiff_lzw": 5, "tiff_adobe_deflate": 8, "packbits": 32773, "lzma": 34925, "zstd": 50000}
LAYOUTS = {"one strip": {}, "strips": {"rows": 9}, "tiles": {"tile": 16}}
HEIGHT, WIDTH = 17, 10


# --- A writer of TIFF, since no library writes all of these ---


def compressed(content, codec):
    """By libtiff, which does not care of what type the bytes are."""
    if codec is None:
        return content
    buffer = io.BytesIO()
    Image.frombytes("L", (len(content), 1), content).save(buffer, "TIFF", compression=codec)
    with tifffile.TiffFile(io.BytesIO(buffer.getvalue())) as file:
        (start,), (size,) = file.pages[0].dataoffsets, file.pages[0].databytecounts
    return buffer.getvalue()[start : start + size]


def predicted(block, predictor, order):
    """A block's bytes: as they are (1), differences to the left (2), or those of the bytes of floats (3)."""
    if predictor == 1:
        return block.astype(block.dtype.newbyteorder(order)).tobytes()
    if predictor == 2:
        numbers = np.ascontiguousarray(block).view(f"u{block.dtype.itemsize}")
        numbers = np.diff(numbers, axis=1, prepend=np.zeros_like(numbers[:, :1]))
        return numbers.astype(numbers.dtype.newbyteorder(order)).tobytes()
    bytes_first = np.ascontiguousarray(block, block.dtype.newbyteorder(">")).view(np.uint8)
    bytes_first = bytes_first.reshape(block.shape[0], -1, block.dtype.itemsize).swapaxes(1, 2)
    rows = bytes_first.reshape(block.shape[0], -1)
    step = block.shape[2]
    return np.concatenate([rows[:, :step], rows[:, step:] - rows[:, :-step]], axis=1).tobytes()


def blocks_of(plane, rows, tile):
    if not tile:
        return [plane[y : y + rows] for y in range(0, len(plane), rows)]
    wide = np.pad(plane, [(0, -size % tile) for size in plane.shape[:2]] + [(0, 0)])
    return [wide[y : y + tile, x : x + tile] for y in range(0, len(wide), tile) for x in range(0, wide.shape[1], tile)]


def tiff(values, order="<", codec=None, predictor=1, *, planar=False, rows=None, tile=None, photometric=1, extra=None):
    height, width, *rest = values.shape
    channels, rows = rest[0] if rest else 1, rows or height
    samples = values.reshape(height, width, channels)
    planes = [samples[..., i : i + 1] for i in range(channels)] if planar else [samples]
    blocks = [block for plane in planes for block in blocks_of(plane, rows, tile)]
    contents = [compressed(predicted(block, predictor, order), codec) for block in blocks]
    kind = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    tags = {256: [width], 257: [height], 258: [values.dtype.itemsize * 8] * channels, 259: [CODECS[codec]]}
    tags |= {262: [photometric], 277: [channels], 284: [2 if planar else 1], 317: [predictor]}
    tags |= {322: [tile], 323: [tile]} if tile else {278: [rows]}
    tags |= {339: [kind] * channels} | ({} if extra is None else {338: [extra]})
    offsets, sizes = (324, 325) if tile else (273, 279)
    tags |= {sizes: [len(content) for content in contents], offsets: [0] * len(contents)}
    body = 8 + 2 + 12 * len(tags) + 4
    start = body + sum(4 * len(value) for value in tags.values())
    tags[offsets] = [start + sum(tags[sizes][:i]) for i in range(len(contents))]
    head, later = struct.pack(f"{order}2sHIH", b"II" if order == "<" else b"MM", 42, 8, len(tags)), b""
    for tag, value in sorted(tags.items()):  # all as LONG, with the values behind the directory if more than one
        packed = struct.pack(f"{order}{len(value)}I", *value)
        head += struct.pack(f"{order}HHI", tag, 4, len(value))
        head += packed if len(value) == 1 else struct.pack(f"{order}I", body + len(later))
        later += packed if len(value) > 1 else b""
    return (head + bytes(4) + later).ljust(start, b"\0") + b"".join(contents)


def combinations(dtype, codecs=CODECS, **layouts):
    """All keywords of `tiff` that fit a type."""
    predictors = (1, 2, 3) if np.dtype(dtype).kind == "f" else (1, 2)
    for order, codec, predictor, layout in itertools.product("<>", codecs, predictors, (LAYOUTS | layouts).values()):
        if predictor == 1 or codec not in (None, "packbits"):
            yield {"order": order, "codec": codec, "predictor": predictor, **layout}


def by_opencv(data):
    try:
        return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        return None


def by_tifffile(data):
    """None where it lacks the codec."""
    try:
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            values, planar = file.pages[0].asarray(), file.pages[0].planarconfig == 2
    except (ValueError, KeyError, ImportError):
        return None
    return np.moveaxis(values, 0, -1) if planar and values.ndim == 3 else values


def numbers(dtype, shape=(HEIGHT, WIDTH)):
    """From the whole range of integers, the least and the largest among them."""
    source, kind = np.random.default_rng(0), np.dtype(dtype)
    if kind.kind == "f":
        return source.normal(20, 30, shape).astype(kind)
    limits = np.iinfo(kind)
    values = source.integers(limits.min, limits.max, shape, kind, endpoint=True)
    values.flat[:2] = limits.min, limits.max
    return values


# --- Maps ---


@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "u4", "i4", "f2", "f4", "f8"])
def test_maps_of_every_byte_order_compression_and_layout_are_decoded_as_written(dtype):
    values, confirmed = numbers(dtype), 0
    for keywords in combinations(dtype, planes={"planar": True}):
        data = tiff(values, **keywords)
        check_map(data, values.size, "depth")
        np.testing.assert_array_equal(decode_map(data, "depth"), values.astype(np.float32), str(keywords))
        for other in (by_opencv(data), by_tifffile(data)):
            if other is not None:
                np.testing.assert_array_equal(other, values, str(keywords))
                confirmed += 1
    assert confirmed > 40


@pytest.mark.parametrize("dtype", ["u1", "u2"])
def test_maps_that_are_white_at_zero_have_the_numbers_of_the_file(dtype):
    values = numbers(dtype)
    for codec in (None, "tiff_lzw"):
        np.testing.assert_array_equal(decode_map(tiff(values, "<", codec, photometric=0), "depth"), values)


def test_depth_and_disparity_are_those_of_the_file():
    values = np.array([[1.0, 2.5, np.nan], [np.inf, -3.0, 1e30]])
    data = tiff(values, ">", "tiff_adobe_deflate")
    np.testing.assert_array_equal(decode_disparity_px(data), np.float32([[1, 2.5, np.nan], [np.nan, -3, 1e30]]))
    np.testing.assert_array_equal(decode_depth(data, "metric"), np.float32([[1, 2.5, np.nan], [np.nan, np.nan, 1e30]]))
    far = decode_map(tiff(np.array([[1e300, -1e300, 1e-300]]), ">"), "depth")
    np.testing.assert_array_equal(far, np.float32([[np.inf, -np.inf, 0]]))


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("dtype", ["u8", "i8"])
def test_types_that_are_not_read_are_refused_with_one_that_is(dtype, order):
    words = r"depth: not a readable image \(a TIFF, but .* is not read, like 64-bit integers; float32 is read\); use "
    for step in (lambda d: check_map(d, 10**6, "depth"), lambda d: decode_map(d, "depth")):
        with pytest.raises(InputError, match=words):
            step(tiff(numbers(dtype), order))


# --- Pictures ---

KINDS = {
    "white is zero": (0, 1, None),
    "grey": (1, 1, None),
    "grey and alpha": (1, 2, 2),
    "RGB": (2, 3, None),
    "RGB and padding": (2, 4, 0),
    "RGB and alpha": (2, 4, 2),
    "RGB times alpha": (2, 4, 1),
    "CMYK": (5, 4, None),
}
REFUSED = {  # kind, type, byte order ("" for both), planes or not
    ("white is zero", "u2", ">", False),
    ("white is zero", "u2", ">", True),
    ("grey and alpha", "u1", "", True),
    ("grey and alpha", "u2", "", False),
    ("grey and alpha", "u2", "", True),
}
REFUSED_UNCOMPRESSED = {  # planes that libtiff is not asked for
    ("RGB and padding", "u1"),
    ("RGB and padding", "u2"),
    ("RGB times alpha", "u1"),
    ("RGB times alpha", "u2"),
    ("CMYK", "u2"),
}


def shown(values, kind):
    """H,W,3 on white, in steps of 8 bits, by the definitions of the format."""
    photometric, _, extra = KINDS[kind]
    unit = values.reshape(*values.shape[:2], -1) / np.iinfo(values.dtype).max
    if kind == "CMYK":
        return 255 * (1 - unit[..., :3]) * (1 - unit[..., 3:])
    colour = unit[..., : 3 if photometric == 2 else 1]
    if photometric == 0:
        colour = 1 - colour
    if extra == 2:
        colour = colour * unit[..., -1:]
    if extra in (1, 2):
        colour = colour + 1 - unit[..., -1:]
    return np.repeat(colour * 255, 3 // colour.shape[2], axis=2)


@pytest.mark.parametrize("dtype", ["u1", "u2"])
@pytest.mark.parametrize("kind", KINDS)
def test_pictures_are_shown_right_or_refused_with_a_remedy(kind, dtype):
    photometric, channels, extra = KINDS[kind]
    values = numbers(dtype, (HEIGHT, WIDTH, channels))
    if extra == 1:
        values = np.minimum(values, values[..., -1:])
    wanted, codecs = shown(values, kind), (None, "tiff_lzw", "packbits")
    for planar, keywords in itertools.product((False, True), combinations(dtype, codecs)):
        data = tiff(values, photometric=photometric, extra=extra, planar=planar, **keywords)
        other = by_tifffile(data)
        assert other is None or np.array_equal(other.reshape(values.shape), values)
        always = {(kind, dtype, keywords["order"], planar), (kind, dtype, "", planar)} & REFUSED
        if always or (planar and keywords["codec"] is None and (kind, dtype) in REFUSED_UNCOMPRESSED):
            with pytest.raises(InputError, match=r"^image: not a readable image \(.*(; save it with|; use PNG)"):
                decode_rgb(data, 10**6)
        else:
            tolerance = 4 if kind in ("CMYK", "RGB times alpha") else 2.01
            np.testing.assert_allclose(decode_rgb(data, 10**6), wanted, atol=tolerance, err_msg=str(keywords))


def test_wide_pictures_that_are_white_at_zero_are_inverted_when_turned_too():
    values = np.array([[0, 257, 65535], [32768, 0, 65534]], np.uint16)
    np.testing.assert_array_equal(decode_rgb(tiff(values, photometric=0), 100)[..., 0], [[255, 254, 0], [127, 255, 0]])
    turned = io.BytesIO()
    tifffile.imwrite(turned, values, photometric="miniswhite", extratags=[(274, "H", 1, 3, True)])
    np.testing.assert_array_equal(decode_rgb(turned.getvalue(), 100)[..., 0], [[0, 255, 127], [0, 254, 255]])


def test_wide_values_of_a_picture_are_not_negative():
    values = np.array([[0, 32768, 65535, 2**31, 2**32 - 1]], np.uint32)
    for order, codec in itertools.product("<>", CODECS):
        np.testing.assert_array_equal(decode_rgb(tiff(values, order, codec), 100)[0, :, 0], [0, 128, 255, 255, 255])
