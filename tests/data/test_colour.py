"""ICC profiles: pictures are converted to sRGB as Little CMS does it, and those that are in sRGB stay bit-equal."""

import io
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from stereo_jobs.data.images import decode_rgb
from stereo_jobs.data.maps import decode_map, decode_mask

RNG = np.random.default_rng(0)
COLOURS = RNG.integers(0, 256, (12, 16, 3), dtype=np.uint8)
COLOURS[0, :4] = [[230, 20, 20], [20, 200, 20], [20, 20, 230], [250, 220, 10]]
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def icc(space, tags):
    """A profile of version 2 with these tags."""
    at, table, body = 128 + 4 + 12 * len(tags), b"", b""
    for name, content in tags.items():
        padded = content + bytes(-len(content) % 4)
        table += name + struct.pack(">II", at + len(body), len(content))
        body += padded
    head = struct.pack(">I4s4s4s4s4s", at + len(body), b"lcms", b"\x02\x40\0\0", b"prtr", space, b"XYZ ")
    if space == b"CMYK":
        head = head[:-4] + b"Lab "
    head += bytes(12) + b"acsp" + bytes(28) + struct.pack(">iii", 0xF6D6, 0x10000, 0xD32D)
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


def point(*values):
    return b"XYZ " + bytes(4) + struct.pack(">iii", *(round(value * 65536) for value in values))


def gamma(value):
    return b"curv" + bytes(4) + struct.pack(">IH", 1, round(value * 256))


WHITE = point(0.9642, 1.0, 0.8249)
DISPLAY_P3 = icc(
    b"RGB ",
    {
        b"wtpt": WHITE,
        b"rXYZ": point(0.5151, 0.2412, -0.0011),
        b"gXYZ": point(0.2920, 0.6922, 0.0419),
        b"bXYZ": point(0.1571, 0.0666, 0.7841),
        **dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), gamma(2.2)),
    },
)
GREY_18 = icc(b"GRAY", {b"wtpt": WHITE, b"kTRC": gamma(1.8)})


def cmyk_profile():
    """Ink to Lab by a table of two steps each: 100 % of any ink is darker, and black is black."""
    ramp = struct.pack(">HH", 0, 65535)
    cells = b""
    for c in (0, 1):
        for m in (0, 1):
            for y in (0, 1):
                for k in (0, 1):
                    light = 100 * (1 - 0.3 * c) * (1 - 0.3 * m) * (1 - 0.1 * y) * (1 - k)
                    cells += struct.pack(
                        ">HHH", round(light * 652.8), 32768 + 6000 * (m - c) * (1 - k), 32768 + 9000 * (y - c) * (1 - k)
                    )
    identity = struct.pack(">9i", *(65536 * (i % 4 == 0) for i in range(9)))
    table = b"mft2" + bytes(4) + bytes([4, 3, 2, 0]) + identity + struct.pack(">HH", 2, 2) + ramp * 4 + cells + ramp * 3
    return icc(b"CMYK", {b"wtpt": WHITE, b"A2B0": table, b"A2B1": table})


INK = cmyk_profile()


def saved(image, file_format="PNG", **options):
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, file_format, **options)
    return buffer.getvalue()


def by_cms(image, profile):
    """By Pillow's own way through Little CMS."""
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    intent = ImageCms.Intent.RELATIVE_COLORIMETRIC
    return np.asarray(ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), intent, "RGB"))


@pytest.mark.parametrize(("file_format", "options"), [("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True})])
def test_colours_are_converted_to_srgb(file_format, options):
    found = decode_rgb(saved(COLOURS, file_format, icc_profile=DISPLAY_P3, **options), 10_000)
    np.testing.assert_array_equal(found, by_cms(Image.fromarray(COLOURS), DISPLAY_P3))
    np.testing.assert_allclose(found[0, :4], [[252, 0, 0], [0, 205, 0], [12, 12, 240], [255, 220, 0]], atol=3)


def test_jpeg_avif_and_heic_are_converted_too():
    from pillow_heif import register_heif_opener

    register_heif_opener()
    smooth = np.asarray(Image.fromarray(COLOURS).resize((64, 48), Image.Resampling.BICUBIC))
    for file_format in ("JPEG", "AVIF", "HEIF"):
        plain = decode_rgb(saved(smooth, file_format, quality=90), 10_000)
        found = decode_rgb(saved(smooth, file_format, quality=90, icc_profile=DISPLAY_P3), 10_000)
        np.testing.assert_allclose(found, by_cms(Image.fromarray(plain), DISPLAY_P3), atol=1, err_msg=file_format)
        assert np.abs(found.astype(int) - plain).max() > 10


def test_grey_and_ink_are_converted():
    grey = Image.fromarray(COLOURS[..., 0])
    wanted = by_cms(grey, GREY_18)
    assert np.abs(wanted.astype(int) - np.asarray(grey)[..., None]).max() > 5
    deep = COLOURS[..., 0].astype(np.uint16) * 257
    with_alpha = Image.merge("LA", (grey, Image.new("L", grey.size, 255)))
    for image in (grey, with_alpha, Image.fromarray(deep)):
        np.testing.assert_array_equal(decode_rgb(saved(image, icc_profile=GREY_18), 10_000), wanted, image.mode)
    ink = Image.frombytes("CMYK", (16, 9), RNG.integers(0, 256, 16 * 9 * 4, dtype=np.uint8).tobytes())
    found = decode_rgb(saved(ink, "TIFF", icc_profile=INK), 10_000)
    np.testing.assert_array_equal(found, by_cms(ink, INK))
    assert np.abs(found.astype(int) - np.asarray(ink.convert("RGB"))).max() > 20


def test_palettes_and_transparent_pictures_are_converted_and_lie_on_white():
    palette = Image.fromarray(COLOURS).quantize(16)
    wanted = by_cms(palette.convert("RGB"), DISPLAY_P3)
    np.testing.assert_array_equal(decode_rgb(saved(palette, icc_profile=DISPLAY_P3), 10_000), wanted)
    clear = np.dstack([COLOURS, np.where(COLOURS[..., :1] < 128, 0, 255).astype(np.uint8)])
    wanted = np.where(COLOURS[..., :1] < 128, 255, by_cms(Image.fromarray(COLOURS), DISPLAY_P3))
    np.testing.assert_array_equal(decode_rgb(saved(clear, icc_profile=DISPLAY_P3), 10_000), wanted)


def test_a_profile_that_is_srgb_changes_nothing():
    table = struct.pack(">I", 1024)
    linear = np.linspace(0, 1, 1024)
    steps = np.where(linear <= 0.04045, linear / 12.92, ((linear + 0.055) / 1.055) ** 2.4)
    curve = b"curv" + bytes(4) + table + (steps * 65535).round().astype(">u2").tobytes()
    by_table = icc(
        b"RGB ",
        {
            b"wtpt": point(0.9505, 1.0, 1.0891),
            b"rXYZ": point(0.4361, 0.2225, 0.0139),
            b"gXYZ": point(0.3851, 0.7169, 0.0971),
            b"bXYZ": point(0.1431, 0.0606, 0.7141),
            **dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve),
        },
    )
    for profile in (SRGB, by_table):
        np.testing.assert_array_equal(decode_rgb(saved(COLOURS, icc_profile=profile), 10_000), COLOURS)
        every = np.arange(256, dtype=np.uint8)[None, :, None].repeat(3, 2)
        np.testing.assert_array_equal(decode_rgb(saved(every, icc_profile=profile), 10_000), every)


@pytest.mark.parametrize(
    "profile", [b"no profile", SRGB[:200], DISPLAY_P3[:140] + b"x" * 300, GREY_18, INK, bytes(200), b"\xff" * 4000]
)
def test_a_profile_that_is_broken_or_of_another_colour_space_is_ignored(profile):
    for file_format in ("PNG", "TIFF"):
        data = saved(COLOURS, file_format, icc_profile=profile)
        np.testing.assert_array_equal(decode_rgb(data, 10_000), COLOURS)
    grey = COLOURS[..., 0]
    if profile is not GREY_18:
        found = decode_rgb(saved(grey, icc_profile=profile), 10_000)
        np.testing.assert_array_equal(found[..., 0], grey)


def test_a_damaged_profile_never_costs_the_picture():
    for seed in range(200):
        source = np.random.default_rng(seed)
        damaged = np.frombuffer(DISPLAY_P3, np.uint8).copy()
        damaged[source.integers(0, len(damaged), 4)] = source.integers(0, 256, 4)
        assert decode_rgb(saved(COLOURS, icc_profile=damaged.tobytes()), 10_000).shape == COLOURS.shape


def test_a_chunk_that_is_damaged_is_no_profile():
    packed = b"icc\0\0" + zlib.compress(DISPLAY_P3)
    plain = saved(COLOURS)
    for content, crc in ((packed[:-9], None), (packed, 7), (b"icc", None), (b"", None)):
        checksum = zlib.crc32(b"iCCP" + content) if crc is None else crc
        chunk = struct.pack(">I", len(content)) + b"iCCP" + content + struct.pack(">I", checksum)
        np.testing.assert_array_equal(decode_rgb(plain[:33] + chunk + plain[33:], 10_000), COLOURS)


def test_masks_and_maps_are_numbers_and_no_colours():
    grey = COLOURS[..., 0]
    for file_format in ("PNG", "TIFF"):
        data = saved(grey, file_format, icc_profile=GREY_18)
        np.testing.assert_array_equal(decode_map(data, "depth"), grey)
        np.testing.assert_array_equal(decode_mask(data), grey >= 128)


def test_a_conversion_takes_little_memory_more():
    large = np.tile(COLOURS, (100, 100, 1))
    data, peaks = saved(large, compress_level=1), []
    for profile in (None, DISPLAY_P3):
        data = saved(large, compress_level=1, icc_profile=profile)
        tracemalloc.start()
        decode_rgb(data, 10**7)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < 2**23, "a band, and not the whole picture of 6 MB times its copies"
