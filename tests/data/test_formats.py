"""Picture files of every format: as a second decoder shows them, the first of several, with metadata of any size."""

import io
import struct
import sys
import zlib

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin
from pillow_heif import register_heif_opener

from stereo_jobs.data import images
from stereo_jobs.data.images import IMAGE_SUFFIXES, InputError, decode_rgb, open_image
from stereo_jobs.data.maps import decode_map, decode_mask
from stereo_jobs.data.orientation import upright

register_heif_opener()
often = settings(max_examples=100, deadline=None, derandomize=True, database=None)
SCENE = cv2.resize(np.random.default_rng(0).integers(0, 256, (3, 5, 3), dtype=np.uint8), (48, 32))
OTHER = 255 - SCENE
ORDER = {1: [0], 3: [2, 1, 0], 4: [2, 1, 0, 3]}  # of channels, in OpenCV


def saved(pixels, file_format, **options):
    buffer = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def exif(orientation):
    tags = Image.Exif()
    tags[274] = orientation
    return tags.tobytes()


def by_opencv(data):
    flags = cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION
    found = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    assert found is not None
    return found[..., [2, 1, 0, 3][: found.shape[2]]] if found.ndim == 3 else found


def on_white(pixels):
    """H,W,3 in steps of 8 bits."""
    unit = pixels.astype(np.float64) / np.iinfo(pixels.dtype).max
    unit = unit.reshape(*unit.shape[:2], -1)
    unit = unit.repeat(3, 2) if unit.shape[2] == 1 else unit
    return 255 * (unit[..., :3] * unit[..., 3:] + 1 - unit[..., 3:] if unit.shape[2] == 4 else unit)


def assert_alike(found, wanted):
    """But for what a lossy format loses."""
    assert found.shape == wanted.shape
    assert np.abs(found.astype(np.float64) - wanted).mean() < 4


# --- As a second decoder shows it ---

KINDS = [
    *(("PNG", channels, bits) for channels in (1, 3, 4) for bits in (8, 16)),
    *(("TIFF", channels, bits) for channels in (1, 3) for bits in (8, 16)),
    *(("JPEG", channels, 8) for channels in (1, 3)),
    *(("WEBP", channels, 8) for channels in (3, 4)),
    ("BMP", 3, 8),
]


@often
@given(st.sampled_from(KINDS), st.integers(0, 9), st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 40))
def test_pictures_look_as_a_second_decoder_shows_them(kind, orientation, seed, width, height):
    file_format, channels, bits = kind
    source = np.random.default_rng(seed)
    coarse = source.integers(0, 2**bits, (2, 3, channels)).astype(np.uint8 if bits == 8 else np.uint16)
    pixels = cv2.resize(coarse, (width, height)).reshape(height, width, channels)
    if bits == 16 or file_format in ("TIFF", "BMP"):
        turned, data = (
            1,
            cv2.imencode(f".{file_format.lower()}", np.ascontiguousarray(pixels[..., ORDER[channels]]))[1].tobytes(),
        )
    else:
        turned = orientation if 1 <= orientation <= 8 else 1
        options = {"lossless": True} if file_format == "WEBP" else {"quality": 95} if file_format != "PNG" else {}
        data = saved(pixels[..., 0] if channels == 1 else pixels, file_format, exif=exif(orientation), **options)
    wanted, tolerance = upright(on_white(by_opencv(data)), turned), 4 if file_format == "JPEG" else 2.01
    np.testing.assert_allclose(decode_rgb(data, 10_000), wanted, atol=tolerance)
    if file_format != "JPEG":
        np.testing.assert_allclose(wanted, upright(on_white(pixels), turned), atol=1.5)


# --- Several pictures in one file: the first ---


@pytest.mark.parametrize("file_format", ["PNG", "WEBP", "TIFF", "MPO", "AVIF", "HEIF"])
def test_the_first_picture_of_several_counts(file_format):
    options = {"lossless": True} if file_format == "WEBP" else {} if file_format in ("PNG", "TIFF") else {"quality": 95}
    several = {} if file_format == "TIFF" else {"duration": 100} if file_format in ("PNG", "WEBP") else {}
    data = saved(SCENE, file_format, save_all=True, append_images=[Image.fromarray(OTHER)], **options, **several)
    with Image.open(io.BytesIO(data)) as image:
        assert image.n_frames == 2
    assert_alike(decode_rgb(data, 10_000), SCENE)
    if file_format in ("PNG", "TIFF"):
        grey = saved(SCENE[..., 0], file_format, save_all=True, append_images=[Image.fromarray(OTHER[..., 0])])
        np.testing.assert_array_equal(decode_map(grey, "depth"), SCENE[..., 0])
        np.testing.assert_array_equal(decode_mask(grey), SCENE[..., 0] >= 128)


def test_a_picture_beside_an_animation_counts_and_not_its_first_frame():
    data = saved(SCENE, "PNG", save_all=True, default_image=True, append_images=[Image.fromarray(OTHER)] * 2)
    np.testing.assert_array_equal(decode_rgb(data, 10_000), SCENE)


def test_the_list_of_pictures_behind_a_jpeg_may_be_damaged():
    data = saved(SCENE, "MPO", save_all=True, append_images=[Image.fromarray(OTHER)], quality=95)
    start = data.index(b"MPF\0")
    for seed in range(60):
        source, damaged = np.random.default_rng(seed), bytearray(data)
        for at in source.integers(start + 4, start + 80, 6):
            damaged[at] = source.integers(256)
        assert_alike(decode_rgb(bytes(damaged), 10_000), SCENE)


# --- AVIF and HEIC ---


@pytest.mark.parametrize("file_format", ["AVIF", "HEIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_avif_and_heic_are_read_and_turned(file_format, orientation):
    data = saved(SCENE, file_format, quality=95, exif=exif(orientation))
    assert_alike(decode_rgb(data, 10_000), upright(SCENE, orientation))
    with pytest.raises(InputError, match=r"left: \d+x\d+ pixels, more than max_image_pixels = 100"):
        open_image(data, 100, "left")


def test_heic_without_its_extra_is_refused_with_how_to_get_it(monkeypatch):
    data = saved(SCENE, "HEIF")
    monkeypatch.setattr(images, "_HAS_HEIC", False)
    words = r"image: not a readable image \(HEIC needs the extra heic: pip install 'stereo-jobs\[heic\]'\); use PNG"
    with pytest.raises(InputError, match=words):
        decode_rgb(data, 10_000)


@pytest.mark.parametrize("file_format", ["AVIF", "HEIF"])
def test_damaged_avif_and_heic_are_input_errors_or_pictures(file_format):
    data = saved(SCENE, file_format)
    for seed in range(120):
        source = np.random.default_rng(seed)
        damaged = bytearray(data[: source.integers(1, len(data) + 1)] if seed % 3 == 0 else data)
        for at in source.integers(0, len(damaged), 4):
            damaged[at] = source.integers(256)
        try:
            assert decode_rgb(bytes(damaged), 100_000).dtype == np.uint8
        except InputError as error:
            assert str(error).startswith("image: ")


def test_endings_of_every_format_that_is_read_are_known():
    assert {".png", ".jpg", ".jpe", ".jfif", ".mpo", ".webp", ".tif", ".bmp", ".avif", ".heic", ".heif"} <= {
        *IMAGE_SUFFIXES
    }


# --- Metadata ---


def chunk(kind, content, crc=None):
    crc = zlib.crc32(kind + content) if crc is None else crc
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", crc)


LONG = b"x" * (PngImagePlugin.MAX_TEXT_CHUNK + 1)
CHUNKS = {
    "zTXt": chunk(b"zTXt", b"Comment\0\0" + zlib.compress(LONG)),
    "iTXt": chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(LONG)),
    "plain iTXt": chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + LONG),
    "tEXt": chunk(b"tEXt", b"Comment\0" + LONG),
    "many texts": chunk(b"tEXt", b"Comment\0" + LONG) * 70,
    "iCCP": chunk(b"iCCP", b"icc\0\0" + zlib.compress(LONG)),
    "huge iCCP": chunk(b"iCCP", b"icc\0\0" + zlib.compress(bytes(2**25))),
    "eXIf": chunk(b"eXIf", b"MM\0*\0\0\0\x08\xff\xff" + LONG),
    "checksum": chunk(b"tEXt", b"Comment\0a photo", crc=7),
    "checksum of eXIf": chunk(b"eXIf", exif(6)[6:], crc=7),
    "no keyword": chunk(b"zTXt", b""),
    "short pHYs": chunk(b"pHYs", b"\0"),
    "short gAMA": chunk(b"gAMA", b"\0"),
    "short cHRM": chunk(b"cHRM", b"\0\1\2"),
    "bad acTL": chunk(b"acTL", b"\0" * 8) + chunk(b"acTL", b"\0"),
    "own kind": chunk(b"prVt", b"\0" * 99),
}


@pytest.mark.parametrize("extra", CHUNKS.values(), ids=CHUNKS)
def test_metadata_of_a_png_is_skipped_whatever_it_is(extra):
    plain = saved(SCENE, "PNG")
    for at in (33, len(plain) - 12):
        np.testing.assert_array_equal(decode_rgb(plain[:at] + extra + plain[at:], 10_000), SCENE)
    grey = saved(SCENE[..., 0], "PNG")
    data = grey[:33] + extra + grey[33:]
    np.testing.assert_array_equal(decode_map(data, "depth"), SCENE[..., 0])
    np.testing.assert_array_equal(decode_mask(data), SCENE[..., 0] >= 128)


def test_metadata_of_other_formats_is_skipped_whatever_it_is():
    segment = struct.pack(">H", 65_535) + b"Exif\0\0II*\0" + b"\xff" * 65_523
    others = [
        b"http://ns.adobe.com/xap/1.0/\0" + b"<" * 9,
        b"ICC_PROFILE\0\3\2x",
        b"ICC_PROFILE\0",
        b"Adobe",
        b"MPF\0x",
    ]
    data = saved(SCENE, "JPEG", quality=95)
    plain = decode_rgb(data, 10_000)
    for number, content in enumerate(others):
        marker = 0xE1 if number == 0 else 0xED if content == b"Adobe" else 0xE2
        extra = bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content
        found = decode_rgb(data[:2] + (b"\xff\xe1" + segment) * 20 + extra + data[2:], 10_000)
        np.testing.assert_array_equal(found, plain, str(content))
    huge = saved(SCENE, "WEBP", lossless=True, exif=b"MM\0*" + LONG, xmp=LONG)
    np.testing.assert_array_equal(decode_rgb(huge, 10_000), SCENE)
    tags = {270: "x" * 2_000_000, 700: LONG, 34665: 2**31, 34853: 7, 33723: b"\xff" * 100_000, 34377: b"8BIM" * 9}
    for compression in (None, "tiff_lzw"):
        data = saved(SCENE, "TIFF", tiffinfo=tags, compression=compression)
        np.testing.assert_array_equal(decode_rgb(data, 10_000), SCENE, str(compression))


def test_only_chunks_with_pixels_are_copied():
    """The file itself may be large."""
    from stereo_jobs.data.png import without_metadata

    plain = saved(SCENE, "PNG")
    noisy = plain[:33] + CHUNKS["many texts"] + plain[33:]
    assert without_metadata(noisy) == (plain, {})
    assert sys.getsizeof(without_metadata(noisy)[0]) < 10_000
    for length in range(0, len(plain), 7):
        assert without_metadata(plain[:length]) == (plain[:length], {})
