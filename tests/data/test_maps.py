"""Maps as files: what is written is read, what is hostile costs nothing and raises nothing but input errors."""

import io
import pickle
import random
import struct

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image, ImageFile

from stereo_jobs.data.images import InputError, encode_disparity, encode_png
from stereo_jobs.data.maps import (
    check_map,
    decode_depth,
    decode_disparity_px,
    decode_map,
    decode_mask,
    encode_pfm,
)
from stereo_jobs.data.reader import InputReader
from stereo_jobs.records import DisparityEncoding
from stereo_jobs.spec import StorageSpec
from tests.data.test_png import png

often = settings(max_examples=60, deadline=None, derandomize=True, database=None)
VALUES = np.random.default_rng(0).uniform(0.1, 90, (12, 16)).astype(np.float32)


def npy(values, version=None, **options):
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.asarray(values), version=version, **options)
    return buffer.getvalue()


def saved(pixels, file_format="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, file_format)
    return buffer.getvalue()


def npy_header(description):
    """An NPY file whose header says anything, and 64 bytes of content."""
    text = description.encode().ljust(118) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + bytes(64)


MAPS = {
    "float TIFF": encode_disparity(VALUES),
    "plain TIFF": saved(VALUES, "TIFF"),
    "PFM": encode_pfm(VALUES),
    "NPY": npy(VALUES),
    "NPY of doubles": npy(VALUES.astype(np.float64)),
    "NPY 2.0": npy(VALUES, (2, 0)),
    "NPY 3.0": npy(VALUES, (3, 0)),
}


# --- There and back ---

floats = arrays(np.float32, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.floats(width=32))


@often
@given(floats)
def test_every_float_comes_back_bit_for_bit(values):
    for data in (encode_disparity(values), encode_pfm(values), npy(values), npy(np.asfortranarray(values))):
        check_map(data, values.size, "depth")
        found = decode_map(data, "depth")
        assert (found.dtype, found.shape) == (np.float32, values.shape)
        np.testing.assert_array_equal(found, values)


@pytest.mark.parametrize("data", MAPS.values(), ids=MAPS)
def test_every_format_is_read(data):
    np.testing.assert_array_equal(decode_map(data, "depth"), VALUES)
    np.testing.assert_array_equal(decode_disparity_px(data), VALUES)
    np.testing.assert_array_equal(decode_depth(data, "metric"), VALUES)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_pngs_of_whole_numbers_are_read(dtype):
    values = np.random.default_rng(1).integers(0, np.iinfo(dtype).max + 1, (9, 7)).astype(dtype)
    for data in (saved(values), saved(values, "TIFF")):
        np.testing.assert_array_equal(decode_map(data, "depth"), values)
    unit = 256 if dtype == np.uint16 else 1
    found = decode_disparity_px(saved(values), meaning=DisparityEncoding(scale=unit))
    np.testing.assert_array_equal(found, np.where(values == 0, np.nan, values / np.float32(unit)))


def test_a_pfm_header_may_be_written_in_many_ways():
    body = np.flipud(VALUES).astype("<f4").tobytes()
    for header in (b"Pf\n16 12\n-1.0\n", b"Pf 16 12 -1 ", b"Pf\n16\n12\n-2.5e-3\n", b"Pf\n16  12\n-1.000000\n"):
        np.testing.assert_array_equal(decode_map(header + body, "depth"), VALUES)


@pytest.mark.parametrize(
    "end", ["-1.0\n", "-1.0\r\n", "-1.0 \n", "-1.0 \t\r\n", "-1.\n", "-.5\n", "-1e0 ", "+1.0\n", "1.\r\n"]
)
@pytest.mark.parametrize("first", [b"\n\n\n\n", b"\r\n\r\n", b"    ", b"1234"])
def test_the_samples_of_a_pfm_begin_where_their_number_says(end, first):
    """However its header ends, and though the first sample looks like white space."""
    order = "<f4" if end.startswith("-") else ">f4"
    samples = first + np.arange(11, dtype=order).tobytes()
    data = f"Pf\n3 4\n{end}".encode() + samples
    check_map(data, 12, "depth")
    np.testing.assert_array_equal(decode_map(data, "depth"), np.flipud(np.frombuffer(samples, order).reshape(4, 3)))
    by_second = (
        cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED) if end in ("-1.0\n", "+1.0\n") else None
    )
    if by_second is not None:
        np.testing.assert_array_equal(by_second * np.float32(1), decode_map(data, "depth"))


@pytest.mark.parametrize("spoil", [lambda d: d + b"\n", lambda d: d[:-1], lambda d: d + bytes(48), lambda d: d[:15]])
def test_a_pfm_with_more_or_fewer_bytes_than_its_samples_take_is_refused(spoil):
    data = b"Pf\n3 4\n-1.0\n" + np.arange(1, 13, dtype="<f4").tobytes()
    words = r"depth: not a readable map \(3x4 samples do not fit the bytes after its header\); use float TIFF, PFM"
    with pytest.raises(InputError, match=words):
        decode_map(spoil(data), "depth")


def test_what_is_unknown_becomes_nan():
    values = np.array([[1, np.nan, np.inf], [-np.inf, 0, -2]], np.float32)
    expected = np.array([[1, np.nan, np.nan], [np.nan, 0, -2]], np.float32)
    np.testing.assert_array_equal(decode_disparity_px(npy(values)), expected)
    np.testing.assert_array_equal(decode_depth(npy(values), "inverse"), expected)
    expected[1] = np.nan  # metric depth is above 0
    np.testing.assert_array_equal(decode_depth(npy(values), "metric"), expected)
    for kind, words in (("inverse", "finite"), ("metric", "above 0")):
        with pytest.raises(InputError, match=rf"depth: no pixel has a usable value \({words}\)"):
            decode_depth(npy(np.full((3, 3), np.nan)), kind)
    with pytest.raises(InputError, match="above 0"):
        decode_depth(npy(np.zeros((3, 3))), "metric")


# --- Refused ---


@pytest.mark.parametrize("data", MAPS.values(), ids=MAPS)
def test_too_many_pixels_are_refused_by_the_header_alone(data, monkeypatch):
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda *args: pytest.fail("was decoded"))
    monkeypatch.setattr(np, "load", lambda *args, **options: pytest.fail("was decoded"))
    monkeypatch.setattr(np, "frombuffer", lambda *args, **options: pytest.fail("was decoded"))
    check_map(data, 16 * 12, "depth")
    with pytest.raises(InputError, match="depth: 16x12 pixels, more than max_image_pixels = 191"):
        check_map(data, 16 * 12 - 1, "depth")
    reader = InputReader((), 10_000, StorageSpec(), max_pixels=191)
    with pytest.raises(InputError, match="depth: 16x12 pixels"):
        reader.read_map(data, "depth")


@pytest.mark.parametrize(
    "data",
    [
        b"Pf\n99999 99999\n-1.0\n",
        b"Pf\n999999999 999999999\n-1.0\n",
        npy_header("{'descr': '<f4', 'fortran_order': False, 'shape': (99999, 99999), }"),
    ],
)
def test_a_small_file_that_declares_a_huge_map_is_refused(data):
    with pytest.raises(InputError, match=r"depth: 9+x9+ pixels, more than max_image_pixels = 50000000"):
        check_map(data, 50_000_000, "depth")


class Trap:
    """Unpickled, it writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_object_arrays_are_refused_and_never_unpickled(tmp_path):
    values = np.empty((1, 1), object)
    values[0, 0] = Trap(tmp_path / "sprung")
    with pytest.raises(InputError, match=r"depth: not a readable map \(Object arrays cannot be loaded"):
        decode_map(npy(values), "depth")
    assert not (tmp_path / "sprung").exists()
    with pytest.raises(InputError, match="depth: not a readable image; use float TIFF, PFM, NPY"):
        decode_map(pickle.dumps(VALUES), "depth")


@pytest.mark.parametrize(
    "values",
    [
        VALUES[0],
        np.dstack([VALUES] * 3),
        VALUES.astype(np.complex64),
        VALUES > 1,
        VALUES.astype("datetime64[s]"),
        VALUES.astype("S4"),
        np.zeros((3, 3), [("x", "<f4"), ("y", "<f4")]),
    ],
    ids=["one row", "three channels", "complex", "bool", "time", "text", "record"],
)
def test_arrays_that_are_no_map_are_refused(values):
    with pytest.raises(InputError, match=r"depth: must have one channel of numbers, got shape .*; use float TIFF, PFM"):
        check_map(npy(values), 10_000, "depth")
        decode_map(npy(values), "depth")


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "CMYK", "1"])
def test_images_that_are_no_map_are_refused(mode):
    buffer = io.BytesIO()
    colours = np.dstack([VALUES, VALUES[::-1], VALUES]).astype(np.uint8)
    Image.fromarray(colours).convert(mode).save(buffer, "TIFF")
    with pytest.raises(InputError, match="depth: must have one channel of numbers"):
        decode_map(buffer.getvalue(), "depth")


def test_a_pfm_of_three_channels_is_refused():
    with pytest.raises(InputError, match=r"depth: not a readable map \(not a PFM of one channel\)"):
        decode_map(b"PF\n2 2\n-1.0\n" + bytes(48), "depth")


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '<f4', 'fortran_order': False, 'shape': (9223372036854775808, 0), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (-4, -4), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (0, 0), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (True, 3), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (4, 4.0), }",
        "{'descr': '|S900000000', 'fortran_order': False, 'shape': (1, 1), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (((((((((((((((((((((4,4), }",
        "{'descr': '<f4',",
        "__import__('os').getcwd()",
        "",
    ],
)
def test_a_hostile_npy_header_is_an_input_error(header):
    with pytest.raises(InputError, match=r"^depth: ") as caught:
        check_map(npy_header(header), 10_000, "depth")
        decode_depth(npy_header(header), "inverse")
    assert len(str(caught.value)) < 250


@pytest.mark.filterwarnings("ignore:::PIL")
@pytest.mark.parametrize("name", [*MAPS, "16-bit PNG", "8-bit PNG"])
def test_damaged_maps_raise_nothing_but_input_errors(name):
    others = {"16-bit PNG": saved(VALUES.astype(np.uint16)), "8-bit PNG": saved(VALUES.astype(np.uint8))}
    data, rng = (MAPS | others)[name], random.Random(0)
    for attempt in range(300):
        damaged = bytearray(data[: rng.randrange(len(data))] if attempt % 2 else data)
        for _ in range(rng.randrange(5) if damaged else 0):
            damaged[rng.randrange(min(len(damaged), 150))] = rng.randrange(256)
        for step in (lambda d: check_map(d, 10_000, "depth"), lambda d: decode_map(d, "depth")):
            try:
                step(bytes(damaged))
            except InputError as error:
                assert str(error).startswith("depth: ")
                break


@pytest.mark.filterwarnings("ignore:::PIL")
@pytest.mark.parametrize("name", MAPS)
def test_truncated_maps_are_refused(name):
    data = MAPS[name]
    for length in (0, 1, 7, 20, len(data) // 4, len(data) // 2, len(data) - 20):
        with pytest.raises(InputError, match=r"depth: not a readable (map|image)"):
            decode_map(data[:length], "depth")


# --- Masks ---


def test_a_mask_of_any_kind_of_image_is_read():
    mask = np.random.default_rng(2).random((6, 9)) < 0.5
    grey = np.where(mask, 255, 0).astype(np.uint8)
    palette = Image.fromarray(np.dstack([grey] * 3)).quantize(2)
    buffer = io.BytesIO()
    palette.save(buffer, "PNG")
    for data in (encode_png(mask), saved(grey), saved(np.dstack([grey] * 3)), saved(grey, "TIFF"), buffer.getvalue()):
        found = decode_mask(data)
        assert found.dtype == bool
        np.testing.assert_array_equal(found, mask)
    with pytest.raises(InputError, match=r"mask: not a readable image \(image file is truncated"):
        decode_mask(saved(grey.repeat(99, 0))[:-30])


def test_what_is_transparent_in_a_mask_is_not_set():
    white = np.full((2, 4), 255, np.uint8)
    alpha = np.array([[0, 127, 128, 255]] * 2, np.uint8)
    for image in (
        Image.merge("LA", (Image.fromarray(white), Image.fromarray(alpha))),
        Image.fromarray(np.dstack([white, white, white, alpha])),
    ):
        np.testing.assert_array_equal(decode_mask(saved_image(image)), alpha >= 128)
    key = saved_image(Image.fromarray(np.array([[255, 0, 200]], np.uint8)), transparency=255)
    np.testing.assert_array_equal(decode_mask(key), [[False, False, True]])
    palette = Image.frombytes("P", (3, 1), bytes([0, 1, 2]))
    palette.putpalette([255, 255, 255, 0, 0, 0, 255, 255, 255])
    np.testing.assert_array_equal(decode_mask(saved_image(palette, transparency=bytes([0]))), [[False, False, True]])
    deep = np.array([[0, 32767, 32768, 65535]], np.uint16)
    np.testing.assert_array_equal(decode_mask(saved(deep)), deep >= 32768)


# --- What stored disparities mean ---


def saved_image(image, file_format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


whole = arrays(np.uint16, st.tuples(st.integers(1, 6), st.integers(1, 6)), elements=st.integers(0, 65535))


@often
@given(whole, st.sampled_from([1, 4, 32, 64, 100, 256, 0.5]), st.sampled_from([None, 0, 65535, 7]))
def test_integers_are_divided_by_their_scale_and_unknown_where_they_say(values, scale, unknown):
    small = (values >> 8).astype(np.uint8)
    meaning = DisparityEncoding(scale=scale, unknown=unknown)
    for stored in (values, small, values.astype(np.int32), values.astype(">u2")):
        kinds = [npy(stored)] if stored.dtype.kind == "i" or stored.dtype.byteorder == ">" else None
        for data in kinds or (saved(stored), saved(stored, "TIFF"), npy(stored)):
            wanted = np.where(stored == (unknown or 0), np.nan, stored / np.float32(scale)).astype(np.float32)
            if np.isnan(wanted).all():
                with pytest.raises(InputError, match="disparity: no pixel has a finite value"):
                    decode_disparity_px(data, meaning=meaning)
            else:
                np.testing.assert_array_equal(decode_disparity_px(data, meaning=meaning), wanted)
            with pytest.raises(InputError, match=r"integers \(\S+\) of unknown scale; set recipe.disparity_scale, or"):
                decode_disparity_px(data)


def test_floats_are_pixels_unless_a_scale_is_declared():
    values = np.array([[0, 1.5, -1], [np.inf, np.nan, 256]], np.float32)
    expected = np.where(np.isfinite(values), values, np.nan)
    for data in (encode_disparity(values), encode_pfm(values), npy(values), npy(values.astype(np.float16))):
        np.testing.assert_array_equal(decode_disparity_px(data), expected)
        np.testing.assert_array_equal(decode_disparity_px(data, meaning=DisparityEncoding(scale=256)), expected / 256)
        found = decode_disparity_px(data, meaning=DisparityEncoding(unknown=-1))
        np.testing.assert_array_equal(found, np.where(values == -1, np.nan, expected))


@often
@given(arrays(np.uint8, st.tuples(st.integers(1, 5), st.integers(1, 5), st.just(3))))
def test_three_bytes_of_foundation_stereo_are_one_number(stored):
    """As the reader of its data set says: R * 255 * 255 + G * 255 + B, by 1000."""
    red, green, blue = np.moveaxis(stored.astype(np.float64), 2, 0)
    expected = (red * 255 * 255 + green * 255 + blue) / 1000
    expected[expected == 0] = np.nan
    meaning = DisparityEncoding("foundation_stereo")
    if np.isnan(expected).all():
        return
    np.testing.assert_allclose(decode_disparity_px(saved(stored), meaning=meaning), expected, rtol=1e-6)
    with pytest.raises(
        InputError, match=r"foundation_stereo is an RGB picture of 8 bits, got shape .* of uint16; set it"
    ):
        decode_disparity_px(saved(stored[..., 0].astype(np.uint16)), meaning=meaning)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [3, 4])
def test_grey_in_equal_channels_is_one_channel_and_what_is_transparent_unknown(dtype, channels):
    values = np.random.default_rng(4).integers(1, np.iinfo(dtype).max, (5, 7)).astype(dtype)
    alpha = np.full_like(values, np.iinfo(dtype).max)
    alpha[1, 2:5] = 0
    data = cv2.imencode(".png", np.dstack([*[values] * 3, alpha][:channels]))[1].tobytes()
    expected = np.where((alpha == 0) & (channels == 4), np.nan, values)
    np.testing.assert_array_equal(decode_map(data, "depth"), expected)
    steps = DisparityEncoding(scale=4)
    np.testing.assert_array_equal(decode_disparity_px(data, meaning=steps), (expected / 4).astype(np.float32))
    colours = np.dstack([*[values] * 3, alpha][:channels])
    colours[3, 3, 0] ^= 1
    with pytest.raises(InputError, match="depth: must have one channel of numbers, got shape"):
        decode_map(cv2.imencode(".png", colours)[1].tobytes(), "depth")


def test_palettes_of_grey_and_transparent_values_are_read():
    palette = Image.frombytes("P", (3, 1), bytes([0, 1, 2]))
    palette.putpalette([9, 9, 9, 50, 50, 50, 200, 200, 200])
    np.testing.assert_array_equal(decode_map(saved_image(palette), "depth"), [[9, 50, 200]])
    np.testing.assert_array_equal(decode_map(saved_image(palette, transparency=1), "depth"), [[9, np.nan, 200]])
    for values in (np.array([[1, 2, 3]], np.uint8), np.array([[1, 2, 300]], np.uint16)):
        keyed = saved_image(Image.fromarray(values), transparency=2)
        np.testing.assert_array_equal(decode_map(keyed, "depth"), np.where(values == 2, np.nan, values))
    with_alpha = Image.merge("LA", [Image.frombytes("L", (2, 1), b) for b in (b"\x05\x06", b"\x00\xff")])
    np.testing.assert_array_equal(decode_map(saved_image(with_alpha), "depth"), [[np.nan, 6]])


@pytest.mark.parametrize("depth", [2, 4])
def test_few_bits_are_the_numbers_of_the_file(depth):
    values = np.arange(2**depth, dtype=np.uint8)[None]
    np.testing.assert_array_equal(decode_map(png(values, depth), "depth"), values)
    np.testing.assert_array_equal(decode_map(png(values, depth, [1]), "depth"), np.where(values == 1, np.nan, values))


# --- Headers of PFM ---

space = st.sampled_from([" ", "\n", "\r\n", "\t", "  ", "\n# a comment 1 2\n", "\n#\n# 3\n"])
scales = st.sampled_from(["-1", "-1.0", "-1.", "-.5", "-1e0", "-2.5E-3", "1", "+1.0", "1.", ".5", "1e+0", "-1.000000"])


@often
@given(space, space, space, scales, st.sampled_from(["\n", "\r\n", " \n", " ", "\t"]), floats)
def test_every_header_of_a_pfm_gives_the_same_samples(first, second, third, scale, end, values):
    height, width = values.shape
    order = "<f4" if scale.startswith("-") else ">f4"
    head = f"Pf{first}{width}{second}{height}{third}{scale}{end}".encode()
    data = head + np.flipud(values).astype(order).tobytes()
    check_map(data, values.size, "depth")
    np.testing.assert_array_equal(decode_map(data, "depth"), values)
    with pytest.raises(InputError, match="samples do not fit the bytes after its header"):
        decode_map(data + b"\0", "depth")


def test_grey_in_colours_of_16_bits_keeps_all_of_them_and_knows_what_is_transparent():
    values = np.array([[1, 258], [65535, 300]])
    colours = np.repeat(values[..., None], 3, 2)
    expected = np.where(values == 300, np.nan, values)
    np.testing.assert_array_equal(decode_map(png(colours, 16, (300, 300, 300)), "depth"), expected)
    with_alpha = np.dstack([colours, np.where(values == 300, 0, 65535)]).astype(np.uint16)
    np.testing.assert_array_equal(decode_map(cv2.imencode(".png", with_alpha)[1].tobytes(), "depth"), expected)
