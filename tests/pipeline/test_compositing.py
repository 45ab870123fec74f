"""Pictures in bands: letterboxes and composites give the bits of the whole picture."""

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
@given(sides, sides, st.integers(64, 2000), st.sampled_from([1.0, 0.7]), st.integers(0, 99))
def test_a_composite_gives_the_same_bytes_in_bands(small_bands, height, width, pixels, share, seed):
    left, diffused = picture(height, width, seed), picture(height, width, seed + 1)
    values = torch.from_numpy(picture(height, width, seed + 2)[..., 0]).float()[None] / 25
    returned = picture(height, width, seed + 3)

    def compose():
        warp = ImageWarp(values, torch.ones(1), mirror=1.0)
        return compositing._composite(warp, left, diffused, returned, grain=0.5, share=torch.tensor([share]))

    small_bands(2**30)
    whole = compose()
    small_bands(pixels)
    assert np.array_equal(compose(), whole)
