"""Images: hostile input is refused before it costs anything, output comes back as it went in."""

import io
import random
import struct
import tracemalloc
import zlib

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageFile, TiffImagePlugin

from stereo_jobs.data.images import (
    InputError,
    decode_disparity,
    decode_rgb,
    encode_disparity,
    encode_png,
)
from stereo_jobs.data.reader import InputReader
from stereo_jobs.spec import StorageSpec

LOCAL = StorageSpec()


# --- Decoding ---


def png_chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_bomb(width, height):
    """A few bytes that declare width x height black pixels."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", zlib.compress(bytes(1000))) + png_chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(50_000, 50_000), (10_000, 8_000)])
def test_an_image_bomb_is_refused_before_decoding(size, monkeypatch):
    monkeypatch.setattr(Image.Image, "convert", lambda *args: pytest.fail("was decoded"))
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda *args: pytest.fail("was decoded"))
    with pytest.raises(InputError, match="pixels"):
        decode_rgb(png_bomb(*size), 50_000_000)


def test_a_reader_looks_at_the_header_of_what_must_be_an_image(monkeypatch):
    reader, png = InputReader((), 10_000, LOCAL, max_pixels=256), saved("PNG")
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda *args: pytest.fail("was decoded"))
    assert reader.read_image(png, "image") == png
    for data, words in ((png_bomb(17, 16), "17x16 pixels, more than max_image_pixels = 256"), (b"x", "not a readable")):
        with pytest.raises(InputError, match=f"image: {words}"):
            reader.read_image(data, "image")


def test_the_pixel_limit_is_inclusive():
    data = encode_png(np.zeros((4, 5, 3), np.uint8))
    assert decode_rgb(data, 20).shape == (4, 5, 3)
    with pytest.raises(InputError, match="left: 5x4 pixels, more than max_image_pixels = 19"):
        decode_rgb(data, 19, "left")


def saved(file_format):
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, file_format)
    return buffer.getvalue()


@pytest.mark.parametrize("data", [b"", b"not an image", b"\x89PNG\r\n\x1a\n", saved("PNG")[:-100], saved("JPEG")[:200]])
def test_what_is_not_a_whole_image_is_refused(data):
    with pytest.raises(InputError, match="image: not a readable image"):
        decode_rgb(data, 10_000)


@pytest.mark.parametrize("file_format", ["EPS", "PDF", "ICO"])
def test_only_image_formats_that_manifests_may_name_are_opened(file_format):
    with pytest.raises(InputError, match="not a readable image"):
        decode_rgb(saved(file_format), 10_000)


@pytest.mark.filterwarnings("ignore:::PIL")
@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP", "TIFF", "BMP"])
def test_damaged_images_raise_nothing_but_input_errors(file_format):
    data, rng = saved(file_format), random.Random(0)
    assert decode_rgb(data, 10_000).shape == (16, 16, 3)
    for _ in range(150):
        damaged = bytearray(data[: rng.randrange(1, len(data) + 1)])
        for _ in range(rng.randrange(4)):
            damaged[rng.randrange(min(len(damaged), 200))] = rng.randrange(256)
        try:
            assert decode_rgb(bytes(damaged), 10_000).dtype == np.uint8
        except InputError as error:
            assert str(error).startswith("image: ")


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_other_modes_become_rgb(mode):
    buffer = io.BytesIO()
    Image.new("RGB", (6, 4), (255, 255, 255)).convert(mode).save(buffer, "TIFF")
    pixels = decode_rgb(buffer.getvalue(), 100)
    assert pixels.shape == (4, 6, 3)
    assert (pixels == 255).all()


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P"])
def test_decoded_pixels_may_be_written_to(mode):
    buffer = io.BytesIO()
    Image.new("RGB", (6, 4), (9, 9, 9)).convert(mode).save(buffer, "PNG")
    pixels = decode_rgb(buffer.getvalue(), 100)
    pixels[0, 0] = 255
    assert pixels[0, 0, 0] == 255


@pytest.mark.parametrize(
    ("orientation", "turned"),
    [
        (1, [[1, 2, 3], [4, 5, 6]]),
        (2, [[3, 2, 1], [6, 5, 4]]),
        (3, [[6, 5, 4], [3, 2, 1]]),
        (4, [[4, 5, 6], [1, 2, 3]]),
        (5, [[1, 4], [2, 5], [3, 6]]),
        (6, [[4, 1], [5, 2], [6, 3]]),
        (7, [[6, 3], [5, 2], [4, 1]]),
        (8, [[3, 6], [2, 5], [1, 4]]),
        (9, [[1, 2, 3], [4, 5, 6]]),
    ],
)
def test_an_image_is_turned_upright_by_its_exif(orientation, turned):
    """6, for example, says: the camera was held so that the picture is to be turned to the right by 90 degrees."""
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    stored = np.repeat(np.array([[1, 2, 3], [4, 5, 6]], np.uint8)[..., None], 3, 2)
    Image.fromarray(stored).save(buffer, "PNG", exif=exif.tobytes())
    np.testing.assert_array_equal(decode_rgb(buffer.getvalue(), 100)[..., 0], turned)


@pytest.mark.filterwarnings("ignore:::PIL")
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_broken_exif_is_an_input_error_or_ignored(file_format):
    exif, rng = Image.Exif(), random.Random(1)
    exif[0x0112], exif[0x010E] = 6, "a photo"
    buffer = io.BytesIO()
    Image.new("RGB", (6, 4)).save(buffer, file_format, exif=exif.tobytes())
    data = buffer.getvalue()
    start = max(0, data.find(b"II*\0"), data.find(b"MM\0*"))
    assert decode_rgb(data, 100).shape == (6, 4, 3)
    for _ in range(150):
        damaged = bytearray(data)
        for _ in range(rng.randrange(1, 5)):
            damaged[min(start + rng.randrange(60), len(data) - 1)] = rng.randrange(256)
        try:
            assert decode_rgb(bytes(damaged), 100).dtype == np.uint8
        except InputError as error:
            assert str(error).startswith("image: ")


@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
def test_16_bits_are_scaled_not_cut(file_format):
    buffer = io.BytesIO()
    Image.fromarray(np.array([[0, 128, 129, 257, 32768, 65534, 65535]], np.uint16)).save(buffer, file_format)
    pixels = decode_rgb(buffer.getvalue(), 100)
    np.testing.assert_array_equal(pixels, np.repeat([[[0], [0], [1], [1], [128], [255], [255]]], 3, 2))


def test_floats_are_scaled_to_their_largest_value():
    for values, expected in (([0, 0.5, 1], [0, 128, 255]), ([0, 100, 200], [0, 128, 255]), ([-1, 0, 0], [0, 0, 0])):
        data = encode_disparity(np.array([values], np.float32))
        np.testing.assert_array_equal(decode_rgb(data, 100)[0, :, 0], expected)
    unknown = encode_disparity(np.array([[np.nan, np.inf, -np.inf, 1.0]], np.float32))
    np.testing.assert_array_equal(decode_rgb(unknown, 100)[0, :, 0], [0, 255, 0, 255])
    nothing = encode_disparity(np.full((2, 2), np.nan, np.float32))
    assert not decode_rgb(nothing, 100).any()


def test_wide_grey_takes_no_doubles_of_the_whole_picture():
    """A picture of 50 megapixels would take 400 MB for each array of them."""
    rng, side = np.random.default_rng(5), 1500
    wide = rng.integers(0, 65536, (side, side)).astype(np.uint16)
    for pixels, expected in ((wide, wide / 65535), (wide.astype(np.float32) / 9, wide / wide.max())):
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG" if pixels.dtype == np.uint16 else "TIFF")
        tracemalloc.start()
        found = decode_rgb(buffer.getvalue(), 10**7)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        np.testing.assert_allclose(found[..., 1], expected * 255, atol=0.51)
        assert peak < 8 * found[..., 0].size + 2**24, "the result takes 3 bytes per pixel, a band some MB"


def test_transparent_pixels_lie_on_white():
    pixels = np.array([[[200, 100, 0, 0], [200, 100, 0, 255], [200, 100, 0, 128]]], np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    found = decode_rgb(buffer.getvalue(), 100)[0]
    np.testing.assert_array_equal(found[:2], [[255, 255, 255], [200, 100, 0]])
    np.testing.assert_allclose(found[2], [227, 177, 127], atol=1)
    buffer = io.BytesIO()
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putdata([0, 1])
    palette.save(buffer, "PNG", transparency=1)
    np.testing.assert_array_equal(decode_rgb(buffer.getvalue(), 100), [[[10, 20, 30], [255, 255, 255]]])


def test_what_is_no_image_is_refused_in_the_same_words_every_time():
    """Pillow names an address in memory, which would make the rows of two runs differ."""
    for data in (b"", b"not an image"):
        with pytest.raises(
            InputError, match=r"^image: not a readable image; use PNG, JPEG, WebP, TIFF, BMP, AVIF or HEIC$"
        ):
            decode_rgb(bytes(bytearray(data)), 100)


# --- Encoding ---


def test_png_round_trips_exactly():
    pixels = np.random.default_rng(1).integers(0, 256, (7, 5, 3), dtype=np.uint8)
    np.testing.assert_array_equal(decode_rgb(encode_png(pixels), 100), pixels)


@pytest.mark.parametrize("width", [1, 7, 8, 9])
def test_masks_are_one_bit_pngs_and_round_trip_exactly(width):
    mask = np.random.default_rng(2).random((5, width)) < 0.5
    image = Image.open(io.BytesIO(encode_png(mask)))
    assert (image.format, image.mode) == ("PNG", "1")
    np.testing.assert_array_equal(np.asarray(image), mask)


def test_disparity_round_trips_exactly_as_float32():
    disparity = np.random.default_rng(3).normal(0, 50, (9, 13)).astype(np.float32)
    disparity[0, :4] = [0.0, -0.0, 1e-30, 12345.678]
    data = encode_disparity(disparity)
    image = Image.open(io.BytesIO(data))
    assert (image.format, image.mode) == ("TIFF", "F")
    decoded = decode_disparity(data)
    assert decoded.dtype == np.float32
    np.testing.assert_array_equal(decoded, disparity)


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (700, 67)])
def test_disparity_keeps_every_bit_in_every_reader(shape):
    """The shapes have one strip and several; the patterns include numbers that are not finite or hardly above 0."""
    from datasets import Image as HubImage  # takes a second to import

    rng = np.random.default_rng(6)
    special = np.array([0x7FC00001, 0xFFC00000, 0x7F800000, 0xFF800000, 0x80000000, 0x00000001, 0x7F7FFFFF], np.uint32)
    patterns = rng.integers(0, 2**32, shape, dtype=np.uint32)
    patterns.flat[: len(special)] = special[: patterns.size]
    disparity = patterns.view(np.float32)
    data = encode_disparity(disparity)
    assert tifffile.TiffFile(io.BytesIO(data)).pages[0].predictor == 3
    readers = {
        "own": decode_disparity(data),
        "PIL": np.asarray(Image.open(io.BytesIO(data))),
        "OpenCV": cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED),
        "datasets": np.asarray(HubImage().decode_example({"bytes": data, "path": None})),
    }
    for name, found in readers.items():
        assert found.dtype == np.float32, name
        np.testing.assert_array_equal(found.view(np.uint32), patterns, err_msg=name)


def test_a_disparity_of_an_older_version_is_read():
    disparity = np.random.default_rng(7).normal(0, 50, (9, 13)).astype(np.float32)
    buffer = io.BytesIO()
    Image.fromarray(disparity).save(buffer, "TIFF", compression="tiff_adobe_deflate")
    np.testing.assert_array_equal(decode_disparity(buffer.getvalue()), disparity)


def test_encoding_is_deterministic():
    pixels = np.random.default_rng(4).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    assert encode_png(pixels) == encode_png(pixels.copy())
    disparity = pixels[..., 0].astype(np.float32)
    assert encode_disparity(disparity) == encode_disparity(disparity.copy())


@pytest.mark.parametrize("error", [TypeError("'str' object"), IndexError("list"), struct.error("unpack"), KeyError(1)])
def test_whatever_a_decoder_raises_is_about_the_row(monkeypatch, error):
    def fail(self):
        raise error

    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "TIFF")
    monkeypatch.setattr(TiffImagePlugin.TiffImageFile, "load", fail)
    with pytest.raises(InputError, match="image: not a readable image"):
        decode_rgb(buffer.getvalue(), 100)
