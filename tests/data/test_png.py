"""Colour keys of PNG files: of every bit depth, the pixels that have the key lie on white and no others."""

import struct
import zlib

import cv2
import numpy as np
import pytest

from stereo_jobs.data.images import InputError, decode_rgb
from stereo_jobs.data.png import bit_depth


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(values, depth, key=()):
    """Grey from H,W, colours from H,W,3; the samples are packed as the format says."""
    height, width = values.shape[:2]
    lines = [np.array(line, np.uint16).reshape(-1, 1) >> np.arange(depth - 1, -1, -1) & 1 for line in values]
    body = b"".join(b"\0" + np.packbits(line.astype(np.uint8)).tobytes() for line in lines)
    header = struct.pack(">IIBBBBB", width, height, depth, 2 if values.ndim == 3 else 0, 0, 0, 0)
    keys = chunk(b"tRNS", struct.pack(f">{len(key)}H", *key)) if key else b""
    content = chunk(b"IHDR", header) + keys + chunk(b"IDAT", zlib.compress(body)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + content


def by_opencv(data):
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_a_grey_key_is_the_one_value_of_the_file_that_is_transparent(depth):
    top = 2**depth - 1
    some = sorted({0, 1, top // 3, top // 2, top - 1, top, 300 & top})
    values = np.array([some, some[::-1]])
    np.testing.assert_array_equal(by_opencv(png(values, depth)), values if depth > 8 else values * 255 // top)
    for key in some:
        expected = np.where(values == key, 255, values * 255 / top)
        found = decode_rgb(png(values, depth, [key]), 100)
        np.testing.assert_allclose(found, np.dstack([expected] * 3), atol=1)
        np.testing.assert_array_equal(found == 255, np.dstack([expected.round() == 255] * 3))


@pytest.mark.parametrize("depth", [8, 16])
def test_a_colour_key_is_compared_in_all_bits_of_the_file(depth):
    top = 2**depth - 1
    for key in ((0, 0, 0), (top, 0, top), (1, 2, 3), (0, 0, 200), (top // 2, top // 3, top // 4)):
        others = [(0, 0, 0), (1, 2, 3), (1, 2, 4), (top, 0, 200), (key[0], key[1], key[2] ^ 1)]
        values = np.array([[key, *others]])
        data = png(values, depth, key)
        transparent = (values == key).all(axis=2)
        by_second = by_opencv(data)
        if by_second.shape[2] == 4:  # an OpenCV that applies keys
            np.testing.assert_array_equal(by_second[..., 3] == 0, transparent)
        expected = np.where(transparent[..., None], 255, values * 255 / top)
        np.testing.assert_allclose(decode_rgb(data, 100), expected, atol=1.01)


def test_a_damaged_picture_with_a_key_is_an_input_error():
    data = png(np.random.default_rng(0).integers(0, 65536, (40, 40, 3)), 16, (1, 2, 3))
    for length in (60, 200, len(data) // 2, len(data) - 30):
        with pytest.raises(InputError, match="image: not a readable image"):
            decode_rgb(data[:length], 10_000)


def test_the_bit_depth_is_read_from_the_header():
    for depth in (1, 2, 4, 8, 16):
        assert bit_depth(png(np.zeros((1, 1), int), depth)) == depth
    for data in (b"", b"\x89PNG", b"II*\0" + bytes(40)):
        assert bit_depth(data) == 0
