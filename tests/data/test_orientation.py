"""Orientation: whatever holds the tag, and whatever else is damaged, pictures, masks and maps are turned alike."""

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from stereo_jobs.data.images import decode_rgb
from stereo_jobs.data.maps import decode_depth, decode_disparity_px, decode_mask
from stereo_jobs.data.orientation import upright
from stereo_jobs.records import DisparityEncoding

often = settings(max_examples=80, deadline=None, derandomize=True, database=None)
SCENE = cv2.resize(np.random.default_rng(0).integers(0, 256, (3, 5, 3), dtype=np.uint8), (40, 24))
STORED = {  # how an upright picture lies in a file of each orientation
    1: lambda scene: scene,
    2: lambda scene: scene[:, ::-1],
    3: lambda scene: scene[::-1, ::-1],
    4: lambda scene: scene[::-1],
    5: lambda scene: scene.swapaxes(0, 1),
    6: np.rot90,
    7: lambda scene: scene[::-1, ::-1].swapaxes(0, 1),
    8: lambda scene: np.rot90(scene, -1),
}
orientations = st.sampled_from(sorted(STORED))


def entry(order, tag, kind, count, value):
    return struct.pack(f"{order}HHI4s", tag, kind, count, value)


@st.composite
def exif(draw, orientation):
    """EXIF data with the tag, among entries that lie about where their values are; its end may be missing."""
    order = draw(st.sampled_from("<>"))
    short = st.sampled_from(
        [(3, struct.pack(f"{order}HH", orientation, 0)), (4, struct.pack(f"{order}I", orientation))]
    )
    kind, value = draw(short)
    others = st.builds(
        lambda tag, kind, count, value: entry(order, tag, kind, count, value),
        st.sampled_from([271, 272, 282, 305, 34665, 34853, 37500]),
        st.sampled_from([0, 1, 2, 3, 5, 7, 12, 99]),
        st.sampled_from([0, 1, 9, 2**31, 2**32 - 1]),
        st.binary(min_size=4, max_size=4),
    )
    before, after = draw(st.lists(others, max_size=3)), draw(st.lists(others, max_size=3))
    entries = [*before, entry(order, 274, kind, 1, value), *after]
    start = draw(st.sampled_from([8, 8, 20]))
    head = struct.pack(f"{order}2sHI", b"II" if order == "<" else b"MM", 42, start).ljust(start, b"\0")
    count = draw(st.sampled_from([len(entries), len(entries), 60_000]))
    return head + struct.pack(f"{order}H", count) + b"".join(entries) + draw(st.binary(max_size=20))


def jpeg_with(pixels, content):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=100, subsampling=0)
    segment = b"Exif\0\0" + content
    return b"\xff\xd8\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + buffer.getvalue()[2:]


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_with(pixels, content, kind=b"eXIf", *, last=False):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    data, at = buffer.getvalue(), len(buffer.getvalue()) - 12 if last else 33
    return data[:at] + chunk(kind, content) + data[at:]


def webp_with(pixels, content):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "WEBP", lossless=True, exif=content)
    return buffer.getvalue()


def saved(pixels, file_format, orientation, **options):
    tag, buffer = Image.Exif(), io.BytesIO()
    tag[274] = orientation
    Image.fromarray(pixels).save(buffer, file_format, exif=tag.tobytes(), **options)
    return buffer.getvalue()


@pytest.mark.filterwarnings("ignore:::PIL")
@often
@given(st.data(), orientations, st.sampled_from(["JPEG", "PNG", "PNG, at its end", "WebP"]))
def test_the_tag_counts_though_the_rest_of_the_exif_is_damaged(data, orientation, kind):
    stored, content = np.ascontiguousarray(STORED[orientation](SCENE)), data.draw(exif(orientation))
    picture = {
        "JPEG": lambda: jpeg_with(stored, content),
        "PNG": lambda: png_with(stored, content),
        "PNG, at its end": lambda: png_with(stored, content, last=True),
        "WebP": lambda: webp_with(stored, content),
    }[kind]()
    plain = cv2.imdecode(np.frombuffer(picture, np.uint8), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
    turned = upright(plain, orientation)
    found = decode_rgb(picture, 10_000)
    assert found.shape == SCENE.shape
    np.testing.assert_allclose(found, turned, atol=2)
    np.testing.assert_allclose(found, SCENE, atol=8)


@pytest.mark.parametrize("orientation", STORED)
def test_another_decoder_turns_alike(orientation):
    stored = np.ascontiguousarray(STORED[orientation](SCENE))
    for file_format in ("JPEG", "PNG", "WEBP"):
        data = saved(stored, file_format, orientation, **({} if file_format == "PNG" else {"quality": 95}))
        other = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
        np.testing.assert_allclose(decode_rgb(data, 10_000), other, atol=4, err_msg=file_format)


@pytest.mark.parametrize("orientation", STORED)
def test_maps_and_masks_are_turned_and_their_values_only_move(orientation):
    values = np.random.default_rng(1).integers(1, 65536, (24, 40)).astype(np.uint16)
    stored = np.ascontiguousarray(STORED[orientation](values))
    steps = DisparityEncoding(scale=256)
    tag = [(274, "H", 1, orientation, True)]
    for kind in ("16-bit PNG", "TIFF", "float TIFF", "compressed TIFF"):
        buffer = io.BytesIO()
        if kind == "16-bit PNG":
            buffer.write(saved(stored, "PNG", orientation))
        else:
            samples = stored.astype(np.float32) if kind == "float TIFF" else stored
            packed = "zlib" if kind == "compressed TIFF" else None
            tifffile.imwrite(buffer, samples, photometric="minisblack", extratags=tag, compression=packed)
        data = buffer.getvalue()
        np.testing.assert_array_equal(decode_depth(data, "inverse"), values, kind)
        np.testing.assert_array_equal(decode_disparity_px(data, meaning=steps), values / np.float32(256), kind)
    mask = values > 30_000
    white = np.ascontiguousarray(STORED[orientation](mask)).astype(np.uint8) * 255
    for file_format in ("PNG", "TIFF", "WEBP"):
        options = {"lossless": True} if file_format == "WEBP" else {}
        pixels = np.dstack([white] * 3) if options else white
        np.testing.assert_array_equal(decode_mask(saved(pixels, file_format, orientation, **options)), mask)


def test_what_is_no_orientation_turns_nothing():
    good = struct.pack("<2sHIH", b"II", 42, 8, 1) + entry("<", 274, 3, 1, struct.pack("<HH", 6, 0))
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf tiff:Orientation="6"/></x:xmpmeta>'
    tall = decode_rgb(png_with(SCENE, good), 10_000)
    assert tall.shape[:2] == (40, 24)
    for content in (b"", b"II", good[:12], b"XX" + good[2:], good.replace(b"\x06\0\0\0", b"\x09\0\0\0")):
        np.testing.assert_array_equal(decode_rgb(png_with(SCENE, content), 10_000), SCENE)
    text = b"XML:com.adobe.xmp\0\0\0\0\0" + xmp
    np.testing.assert_array_equal(decode_rgb(png_with(SCENE, text, b"iTXt"), 10_000), SCENE)
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, SCENE, photometric="rgb", extratags=[(700, 1, len(xmp), xmp, True)])
    np.testing.assert_array_equal(decode_rgb(buffer.getvalue(), 10_000), SCENE)


def test_exif_that_older_programs_keep_as_text_counts():
    good = struct.pack("<2sHIH", b"II", 42, 8, 1) + entry("<", 274, 3, 1, struct.pack("<HH", 6, 0))
    text = f"\nexif\n{len(good):8}\n{good.hex()}\n".encode()
    for kind, content in ((b"tEXt", text), (b"zTXt", b"\0" + zlib.compress(text))):
        data = png_with(SCENE, b"Raw profile type exif\0" + content, kind)
        np.testing.assert_array_equal(decode_rgb(data, 10_000), np.rot90(SCENE, -1))
