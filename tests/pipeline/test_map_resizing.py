"""Maps of another size than their photo, against slow obvious references."""

import io
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from stereo_jobs.data.images import InputError, encode_disparity, encode_png
from stereo_jobs.pipeline.inputs import decode_row
from stereo_jobs.pipeline.map_resizing import linear, nearest, same_shape
from stereo_jobs.records import Camera, DisparityEncoding, Row
from stereo_jobs.spec import Recipe
from stereo_jobs.stereo import bands

often = settings(max_examples=80, deadline=None, derandomize=True, database=None)
sides = st.integers(1, 9)
maps = arrays(
    np.float32, st.tuples(sides, sides), elements=st.one_of(st.floats(-100, 100, width=32), st.just(float("nan")))
)


def slow_nearest(values, size):
    height, width = values.shape
    made = np.empty(size, values.dtype)
    for y in range(size[0]):
        for x in range(size[1]):
            made[y, x] = values[math.floor((y + 0.5) * height / size[0]), math.floor((x + 0.5) * width / size[1])]
    return made


def slow_linear(values, size):
    """Each pixel from the samples around its centre, weighed by how near they are; those of weight 0 do not count."""
    made = np.empty(size, np.float64)
    for y in range(size[0]):
        for x in range(size[1]):
            total = 0.0
            for j, down in around(y, size[0], values.shape[0]):
                for i, across in around(x, size[1], values.shape[1]):
                    total += down * across * float(values[j, i])
            made[y, x] = total
    return made


def around(at, size, old):
    position = min(max(((2 * at + 1) * old - size) / (2 * size), 0), old - 1)
    before = math.floor(position + 1e-9)
    past = position - before
    return [(before, 1.0)] if abs(past) < 1e-9 else [(before, 1 - past), (before + 1, past)]


@often
@given(maps, st.tuples(st.integers(1, 20), st.integers(1, 20)))
def test_resizing_is_that_of_a_slow_reference(values, size):
    np.testing.assert_array_equal(nearest(values, size), slow_nearest(values, size))
    np.testing.assert_allclose(linear(values, size), slow_linear(values, size), rtol=1e-4, atol=1e-4)


def test_bands_change_nothing(monkeypatch):
    values = np.random.default_rng(0).normal(size=(40, 31)).astype(np.float32)
    whole = linear(values, (97, 75))
    monkeypatch.setattr(bands, "BAND_PIXELS", 200)
    np.testing.assert_array_equal(linear(values, (97, 75)), whole)


def test_a_map_of_the_same_size_stays_as_it_is():
    values = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32)
    values[2, 3] = np.nan
    np.testing.assert_array_equal(linear(values, (5, 7)), values)
    np.testing.assert_array_equal(nearest(values, (5, 7)), values)


@given(
    st.tuples(st.integers(16, 4000), st.integers(16, 4000)),
    st.integers(2, 8),
    st.sampled_from([math.floor, round, math.ceil]),
)
@often
def test_whatever_rounding_a_smaller_copy_was_made_by_it_has_the_same_shape(size, factor, rounded):
    small = tuple(max(1, rounded(side / factor)) for side in size)
    assert same_shape(small, size)
    assert same_shape(size, small)


@pytest.mark.parametrize(
    ("one", "other"), [((240, 320), (480, 600)), ((100, 100), (240, 320)), ((478, 640), (480, 640))]
)
def test_crops_have_another_shape(one, other):
    assert not same_shape(one, other)
    assert not same_shape(other, one)


# --- In a row ---

HEIGHT, WIDTH = 48, 64
PHOTO = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
SMALL = np.tile(np.linspace(1, 9, WIDTH // 2, dtype=np.float32), (HEIGHT // 2, 1))


def read(rule, mode="image", geometry="relative", meaning=None, depth_kind="inverse", **inputs):
    recipe = Recipe(mode=mode, resize_maps=rule, method={"geometry": geometry}, size={"width": 64, "height": 64})
    inputs = {"image": encode_png(PHOTO)} | inputs
    camera = Camera(50.0, 0.2)
    given = Row("row", "", "", 1, 8.0, inputs, depth_kind, camera, disparity=meaning or DisparityEncoding())
    return decode_row(given, recipe, 16)


def test_maps_of_another_size_are_refused_unless_the_recipe_says_otherwise():
    for column in ("disparity", "depth"):
        with pytest.raises(
            InputError, match=rf"^{column}: 32x24 pixels, but the image has 64x48; .*recipe.resize_maps"
        ):
            read("refuse", **{column: encode_disparity(SMALL)})
    cropped = encode_disparity(SMALL[:, :-4])
    with pytest.raises(
        InputError, match=r"^disparity: 28x24 pixels, but the image has 64x48; only a map of the image's"
    ):
        read("nearest", disparity=cropped)


def test_a_disparity_grows_with_the_width_and_depth_stays():
    for rule, resize in (("nearest", nearest), ("linear", linear)):
        bigger = resize(SMALL, (HEIGHT, WIDTH))
        found = read(rule, geometry="metric", disparity=encode_disparity(SMALL)).map
        np.testing.assert_array_equal(found, bigger * 2)
        np.testing.assert_array_equal(read(rule, depth=encode_disparity(SMALL)).map, bigger)
        metric = read(rule, geometry="metric", depth_kind="metric", depth=encode_disparity(SMALL)).map
        np.testing.assert_allclose(metric, 10 / bigger, rtol=1e-6)


def test_resizing_comes_before_gaps_are_filled():
    gaps = SMALL.copy()
    gaps[4, 10] = np.nan
    stored = np.round(np.nan_to_num(gaps) * 256).astype(np.uint16)
    buffer = io.BytesIO()
    Image.fromarray(stored).save(buffer, "PNG")
    found = read("nearest", meaning=DisparityEncoding(scale=256), disparity=buffer.getvalue()).map
    known = stored / np.float32(128)
    np.testing.assert_array_equal(found[8:10, 20:22], known[4, 9])
    found = read("linear", disparity=encode_disparity(gaps)).map
    unknown = np.isnan(linear(gaps, (HEIGHT, WIDTH)))
    assert 4 < unknown.sum() <= 16
    np.testing.assert_array_equal(found[~unknown], 2 * linear(gaps, (HEIGHT, WIDTH))[~unknown])


@pytest.mark.parametrize("rule", ["nearest", "linear"])
def test_masks_and_truth_are_resized_too(rule):
    mask = np.zeros((HEIGHT // 2, WIDTH // 2), bool)
    mask[3:9, 4:11] = True
    found = read(rule, "inpaint", mask=encode_png(mask)).source.mask
    np.testing.assert_array_equal(found, mask.repeat(2, 0).repeat(2, 1))
    truth = {"true_right": encode_png(PHOTO), "true_disparity": encode_disparity(SMALL)}
    assert read(rule, **truth).truth.holes is not None
    with pytest.raises(InputError, match=r"^mask: 32x24 pixels, but the image has 64x48"):
        read("refuse", "inpaint", mask=encode_png(mask))
