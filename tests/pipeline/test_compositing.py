"""Pictures in bands: letterboxes give the bits of the whole picture, composites nearly so."""

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stereo_jobs.pipeline import compositing
from stereo_jobs.pipeline.resizing import Letterbox
from stereo_jobs.pixels import to_image, to_tensor
from stereo_jobs.stereo import bands
from stereo_jobs.stereo.image_warp import ImageWarp

some = settings(max_examples=40, deadline=None, derandomize=True, database=None)
sides = st.integers(16, 90)


@pytest.fixture(scope="module", autouse=True)
def small_bands():
    """Yield a function that sets the pixels of a band, for all tests of this module."""
    with pytest.MonkeyPatch.context() as patch:
        yield lambda pixels: patch.setattr(bands, "BAND_PIXELS", pixels)


def picture(height, width, seed):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@some
@given(sides, sides, st.integers(64, 2000), st.integers(0, 99))
def test_a_letterbox_gives_the_same_bits_in_bands_and_strips(small_bands, height, width, pixels, seed):
    image = picture(height, width, seed)
    letterbox = Letterbox.of_area((height, width), 48 * 48, 16)
    small_bands(2**30)
    inside = letterbox.into(to_tensor(image))
    back = letterbox.back(inside)
    small_bands(pixels)
    assert torch.equal(letterbox.image_into(image), inside)
    assert torch.equal(letterbox.back(inside), back)
    assert np.array_equal(letterbox.image_back(inside), to_image(back))


@some
@given(st.integers(100, 200), st.integers(16, 60), st.integers(0, 99))
def test_a_composite_is_nearly_the_same_in_bands(small_bands, height, width, seed):
    """A hole is continued from the rows around its band; farther ones hardly count."""
    left, drawn = (smooth_picture(height, width, seed + i) for i in range(2))
    values = torch.zeros(1, height, width)
    values[:, height // 4 : -height // 4, width // 4 : width // 2] = 0.08 * width  # the default scale

    def compose():
        return compositing._composite(ImageWarp(values, torch.ones(1)), left, drawn).astype(int)

    small_bands(2**30)
    whole = compose()
    small_bands(width * 40)
    assert np.abs(compose() - whole).max() <= 12


def smooth_picture(height, width, seed):
    return cv2.GaussianBlur(picture(height, width, seed), (0, 0), 2)
