"""What rows give: bad input is refused in words that help, good input is read as it looks."""

import io

import numpy as np
import pytest
from PIL import Image

from stereo_jobs.data.images import InputError, encode_disparity, encode_png
from stereo_jobs.data.maps import encode_pfm
from stereo_jobs.pipeline.inputs import GuidedNoise, MaskedPhoto, Noise, Photo, decode_row
from stereo_jobs.records import Camera, DisparityEncoding, Row
from stereo_jobs.spec import Recipe

HEIGHT, WIDTH = 24, 40
PHOTO = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
RAMP = np.tile(np.linspace(0.5, 9.5, WIDTH, dtype=np.float32), (HEIGHT, 1))
CAMERA = Camera(focal_px=50.0, baseline=0.2, doffs_px=1.5)
MULTIPLE = 16


def recipe(mode="image", **method):
    return Recipe(mode=mode, method=method, size={"width": 64, "height": 64})


METRIC = recipe(geometry="metric")


def row(depth_kind="inverse", camera=None, meaning=None, **inputs):
    inputs = {"image": encode_png(PHOTO)} | inputs
    meaning = meaning or DisparityEncoding()
    return Row("row", "a circle", "", 1, 8.0, inputs, depth_kind, camera or Camera(), disparity=meaning)


def read(given, chosen=None):
    return decode_row(given, chosen or recipe(), MULTIPLE)


def saved(pixels, file_format="PNG", **options):
    buffer = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def npy(values, **options):
    buffer = io.BytesIO()
    np.save(buffer, values, **options)
    return buffer.getvalue()


# --- Bad input ---

NOTHING = np.full((HEIGHT, WIDTH), np.nan, np.float32)


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"disparity": encode_disparity(RAMP[:, :-1])}, "disparity: 39x24 pixels, but the image has 40x24; a map must"),
        ({"depth": encode_disparity(RAMP.T.copy())}, "depth: 24x40 pixels, but the image has 40x24; a map must have"),
        ({"disparity": encode_disparity(NOTHING)}, "disparity: no pixel has a finite value"),
        ({"disparity": encode_disparity(NOTHING + np.inf)}, "disparity: no pixel has a finite value"),
        (
            {"disparity": saved(np.zeros((HEIGHT, WIDTH), np.uint16)), "meaning": DisparityEncoding(scale=256)},
            "disparity: no pixel has a finite value",
        ),
        (
            {"disparity": saved(np.ones((HEIGHT, WIDTH), np.uint16))},
            r"disparity: its values are integers \(uint16\) of unknown scale; set recipe.disparity_scale, or the",
        ),
        ({"depth": encode_disparity(NOTHING)}, r"depth: no pixel has a usable value \(finite\)"),
        ({"disparity": b"1.0, 2.0, 3.0\n"}, "disparity: not a readable image; use float TIFF, PFM, NPY, or 8- or 16-b"),
        (
            {"disparity": encode_png(PHOTO)},
            r"disparity: must have one channel of numbers, got shape \(24, 40, 3\).*use",
        ),
        (
            {"depth": encode_png(PHOTO)},
            r"depth: must have one channel of numbers, got shape \(24, 40, 3\) of uint8; us",
        ),
        ({"disparity": npy(RAMP[..., None])}, r"disparity: must have one channel of numbers, got shape \(24, 40, 1\)"),
        ({"image": encode_png(PHOTO[:15])}, "image: 40x15 pixels; it needs at least 16 each way"),
        ({"image": encode_png(PHOTO)[:-200]}, r"image: not a readable image \(image file is truncated"),
        ({"image": b"no image"}, "image: not a readable image; use PNG, JPEG, WebP, TIFF, BMP, AVIF or HEIC"),
    ],
)
def test_bad_input_is_refused_with_column_rule_value_and_remedy(inputs, words):
    with pytest.raises(InputError, match=f"^{words}"):
        read(row(**inputs))


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (np.ones((HEIGHT, WIDTH), bool), "mask: all of it is set; white marks what to fill, black what to keep"),
        (np.zeros((HEIGHT, WIDTH), bool), "mask: none of it is set; white marks what to fill, black what to keep"),
        (np.eye(HEIGHT, WIDTH + 1) > 0, "mask: 41x24 pixels, but the image has 40x24"),
        (b"no image", "mask: not a readable image; use PNG"),
    ],
)
def test_a_bad_mask_is_refused(mask, words):
    with pytest.raises(InputError, match=f"^{words}"):
        read(row(mask=mask if isinstance(mask, bytes) else encode_png(mask)), recipe("inpaint"))


def test_refusals_say_the_same_in_every_run():
    """Errors are rows of the dataset: no address in memory, no file name of the moment."""
    for inputs in ({"image": b"no image"}, {"disparity": b"no map"}, {"image": encode_png(PHOTO)[:100]}):
        messages = set()
        for _ in range(3):
            with pytest.raises(InputError) as caught:
                read(row(**{name: bytes(bytearray(data)) for name, data in inputs.items()}))
            messages.add(str(caught.value))
        assert len(messages) == 1
        assert "0x" not in messages.pop()


@pytest.mark.parametrize("sign", [1, -1])
def test_a_disparity_of_more_than_half_of_the_width_is_refused_where_pixels_count(sign):
    large = RAMP.copy()
    large[3, 5] = sign * 20.5
    words = "disparity: a disparity of 20 px is more than half of the width 40; it must be in pixels of this image"
    with pytest.raises(InputError, match=words):
        read(row(disparity=encode_disparity(large)), METRIC)
    assert read(row(disparity=encode_disparity(large))).map.shape == (HEIGHT, WIDTH)
    large[3, 5] = sign * 20
    assert read(row(disparity=encode_disparity(large)), METRIC).map[3, 5] == sign * 20


NEITHER = "disparity: geometry metric needs a disparity in pixels, or a metric depth with focal_px and baseline; this"


@pytest.mark.parametrize("mode", ["depth", "image", "inpaint"])
def test_metric_geometry_is_never_made_of_what_an_estimator_finds(mode):
    chosen = recipe(mode, geometry="metric")
    depth = encode_disparity(RAMP)
    mask = encode_png(np.eye(HEIGHT, WIDTH) > 0)
    bare = row(mask=mask)
    for given in (
        bare,
        row(mask=mask, depth=depth, camera=CAMERA),
        row(mask=mask, depth=depth, depth_kind="metric"),
        row(mask=mask, depth=depth, depth_kind="metric", camera=Camera(focal_px=50.0)),
    ):
        with pytest.raises(InputError, match=NEITHER):
            read(given, chosen)


@pytest.mark.parametrize(("depth", "camera"), [(1e-40, Camera()), (2.0, Camera(1.0, 1.0, float("nan")))])
def test_what_leaves_the_range_of_numbers_is_refused(depth, camera):
    given = row("metric", camera, depth=npy(np.full((HEIGHT, WIDTH), depth, np.float32)))
    with np.errstate(all="ignore"), pytest.raises(InputError, match="depth: every value leaves the range of float32"):
        read(given, METRIC if camera.focal_px else recipe())


def test_depth_mode_refuses_small_guides():
    with pytest.raises(InputError, match="image: 40x15 pixels; it needs at least 16 each way"):
        read(row(image=encode_png(PHOTO[:15])), recipe("depth"))


# --- Photos ---


def test_a_photo_is_read_as_it_is():
    decoded = read(row())
    np.testing.assert_array_equal(decoded.source.image, PHOTO)
    assert type(decoded.source) is Photo, "neither mask nor guide"
    assert decoded.map is None
    assert decoded.letterbox.size == (HEIGHT, WIDTH)
    assert all(side % MULTIPLE == 0 for side in decoded.letterbox.working)
    assert decoded.source.image.flags.writeable


def test_text_and_depth_mode_make_the_size_of_the_recipe():
    decoded = read(row(), recipe("text"))
    assert (decoded.letterbox.size, decoded.letterbox.working, decoded.source) == ((64, 64), (64, 64), Noise())
    decoded = read(row(), recipe("depth"))
    assert isinstance(decoded.source, GuidedNoise)
    assert (decoded.letterbox.size, decoded.map, decoded.source.guide.shape) == ((64, 64), None, (64, 64, 3))
    assert decoded.source.guide.dtype == np.uint8


STORED = {  # how the rows and columns of an upright picture lie in a file of each orientation
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.swapaxes(0, 1),
    6: np.rot90,
    7: lambda upright: upright[::-1, ::-1].swapaxes(0, 1),
    8: lambda upright: np.rot90(upright, -1),
}


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
def test_photos_are_turned_upright_by_their_exif(orientation, file_format):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = saved(np.ascontiguousarray(STORED[orientation](PHOTO)), file_format, exif=exif.tobytes())
    decoded = read(row(image=stored, disparity=encode_disparity(RAMP)))
    np.testing.assert_array_equal(decoded.source.image, PHOTO)
    assert decoded.letterbox.size == decoded.map.shape == (HEIGHT, WIDTH)


def test_grey_alpha_16_bit_and_palette_decode_as_they_look():
    grey = PHOTO[..., 0]
    deep = grey.astype(np.uint16) * 257 + np.uint16(40)  # not all of them whole 8-bit steps
    half = np.dstack([PHOTO, np.full_like(grey, 128)])
    clear = np.dstack([PHOTO, np.where(grey < 128, 0, 255).astype(np.uint8)])
    palette = Image.fromarray(PHOTO).quantize(64)
    on_white = np.where(grey[..., None] < 128, 255, PHOTO)
    expected = {
        "grey": (saved(grey), np.repeat(grey[..., None], 3, 2), 0),
        "grey and alpha": (saved(Image.fromarray(clear).convert("LA")), None, 0),
        "16 bit": (saved(deep), np.repeat((deep / 257).round().clip(0, 255)[..., None], 3, 2), 0),
        "16 bit TIFF": (saved(deep, "TIFF"), np.repeat((deep / 257).round().clip(0, 255)[..., None], 3, 2), 0),
        "transparent": (saved(clear), on_white, 0),
        "half transparent": (saved(half), PHOTO * (128 / 255) + 127, 1),
        "palette": (saved(palette), np.asarray(palette.convert("RGB")), 0),
        "black and white": (saved(grey > 99), np.repeat(np.where(grey > 99, 255, 0)[..., None], 3, 2), 0),
    }
    for name, (data, pixels, tolerance) in expected.items():
        photo = read(row(image=data)).source.image
        assert (photo.dtype, photo.shape) == (np.uint8, (HEIGHT, WIDTH, 3)), name
        if pixels is not None:
            assert np.abs(photo - pixels.astype(np.float64)).max() <= tolerance, name
        else:
            assert (photo[grey < 128] == 255).all(), name


# --- Maps ---


@pytest.mark.parametrize("order", ["<", ">"])
def test_pfm_is_read_bottom_up_in_either_byte_order(order):
    values = np.arange(HEIGHT * WIDTH, dtype=np.float32).reshape(HEIGHT, WIDTH) / 97
    scale = -1.0 if order == "<" else 1.0
    data = f"Pf\n{WIDTH} {HEIGHT}\n{scale}\n".encode() + np.flipud(values).astype(f"{order}f4").tobytes()
    np.testing.assert_array_equal(read(row(disparity=data)).map, values)


@pytest.mark.parametrize(
    "values",
    [RAMP, RAMP.astype(np.float64), RAMP.astype(np.float16), RAMP.astype(">f4"), np.asfortranarray(RAMP)],
    ids=["float", "double", "half", "big-endian", "columns first"],
)
def test_npy_is_read(values):
    found = read(row(disparity=npy(values))).map
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, np.asarray(values, np.float32))


def test_a_16_bit_png_counts_256ths_and_nothing_is_known_of_zeros():
    """As KITTI writes disparity."""
    stored = (RAMP * 256).astype(np.uint16)
    stored[4, 7:9] = 0
    stored[5, :2] = 0
    found = read(row(disparity=saved(stored), meaning=DisparityEncoding(scale=256)), METRIC).map
    expected = stored / np.float32(256)
    expected[4, 7:9] = expected[4, 6]
    expected[5, :2] = expected[5, 2]
    np.testing.assert_array_equal(found, expected)


def test_other_whole_numbers_stand_as_they_are():
    stored, pixels = RAMP.astype(np.uint8), DisparityEncoding(scale=1, unknown=-1)
    assert stored.min() == 0
    for data in (saved(stored), saved(stored.astype(np.uint16), "TIFF"), npy(stored.astype(np.int16))):
        np.testing.assert_array_equal(read(row(disparity=data, meaning=pixels), METRIC).map, stored)
    np.testing.assert_array_equal(read(row(depth=saved(stored.astype(np.uint16)))).map, stored)


def test_gaps_take_the_value_of_the_left_neighbour():
    values = RAMP.copy()
    values[2, 10:14] = np.nan
    values[3, 10:14] = np.inf
    values[4, :3] = np.nan  # nothing to the left: from the right
    values[5] = np.nan  # a whole row: from above
    values[0] = -np.inf  # the first one: from below
    expected = values.copy()
    expected[2:4, 10:14] = values[2, 9]
    expected[4, :3] = values[4, 3]
    expected[5], expected[0] = expected[4], expected[1]
    for data in (encode_disparity(values), encode_pfm(values), npy(values)):
        np.testing.assert_array_equal(read(row(disparity=data)).map, expected)
        np.testing.assert_array_equal(read(row(depth=data)).map, expected)


def test_metric_depth_with_a_camera_gives_eq_2():
    depth = np.linspace(2, 9, HEIGHT * WIDTH, dtype=np.float32).reshape(HEIGHT, WIDTH)
    found = read(row("metric", CAMERA, depth=encode_disparity(depth)), METRIC).map
    np.testing.assert_allclose(found, 50.0 * 0.2 / depth - 1.5, rtol=1e-5, atol=1e-6)
    without = read(row("metric", Camera(50.0, 0.2), depth=encode_disparity(depth)), METRIC).map
    np.testing.assert_allclose(without, 50.0 * 0.2 / depth, rtol=1e-6)


def test_a_disparity_wins_over_a_depth():
    given = row("metric", CAMERA, depth=encode_disparity(RAMP + 2), disparity=encode_disparity(RAMP))
    for chosen in (recipe(), METRIC):
        np.testing.assert_array_equal(read(given, chosen).map, RAMP)


def test_metric_depth_is_inverted_in_relative_geometry_and_unknown_where_not_positive():
    depth = RAMP.copy()
    depth[6, 20], depth[7, 20] = 0.0, -1.0
    expected = 1 / RAMP
    expected[6:8, 20] = expected[6, 19]
    np.testing.assert_allclose(read(row("metric", depth=encode_disparity(depth))).map, expected, rtol=1e-6)
    np.testing.assert_array_equal(read(row("inverse", depth=encode_disparity(depth))).map, depth)


def test_depth_mode_brings_maps_to_its_size():
    steps = np.repeat(np.array([[1.0, 3.0], [5.0, 7.0]], np.float32), 32, 0).repeat(64, 1)  # 64x128, twice as wide
    decoded = read(row(depth=npy(steps)), recipe("depth"))
    np.testing.assert_array_equal(decoded.map, steps[:, ::2])
    chosen = recipe("depth", geometry="metric")
    metric = read(row("metric", Camera(10.0, 2.0), depth=npy(steps)), chosen).map
    np.testing.assert_allclose(metric, 20.0 / steps[:, ::2] / 2, rtol=1e-6)  # pixels of a picture half as wide
    tiny = read(row(depth=npy(steps[::32, ::64])), recipe("depth")).map
    assert tiny.shape == (64, 64)
    assert (tiny.min(), tiny.max()) == (1, 7)


def test_a_mask_is_white_where_it_is_to_be_filled():
    shades = np.tile(np.linspace(0, 255, WIDTH).astype(np.uint8), (HEIGHT, 1))
    for data in (saved(shades), saved(np.dstack([shades] * 3)), saved(shades >= 128)):
        decoded = read(row(mask=data), recipe("inpaint"))
        assert isinstance(decoded.source, MaskedPhoto)
        np.testing.assert_array_equal(decoded.source.mask, shades >= 128)
