"""Bands of rows give the bits of the whole picture, whatever their size."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stereo_jobs.stereo import bands as module
from stereo_jobs.stereo.bands import bands, in_bands, widened
from stereo_jobs.stereo.disparity import relative_disparity
from stereo_jobs.stereo.edges import refine
from stereo_jobs.stereo.fill import fill_sparse
from stereo_jobs.stereo.image_warp import ImageWarp

often = settings(max_examples=80, deadline=None, derandomize=True, database=None)
sides = st.integers(1, 24)
seeds = st.integers(0, 99)


@pytest.fixture(scope="module", autouse=True)
def small_bands():
    """Yield a function that sets the pixels of a band, for all tests of this module."""
    with pytest.MonkeyPatch.context() as patch:
        yield lambda pixels: patch.setattr(module, "BAND_PIXELS", pixels)


def noise(*shape, seed):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def in_both(small_bands, pixels, work):
    """What `work` gives for the whole picture, and in bands of so many pixels."""
    small_bands(2**30)
    whole = work()
    small_bands(pixels)
    return whole, work()


@often
@given(sides, sides, st.integers(1, 200), st.integers(0, 30))
def test_bands_cover_every_row_once_and_halos_stay_in_the_picture(small_bands, height, width, pixels, halo):
    small_bands(pixels)
    cut = list(bands(height, width))
    assert [row for rows in cut for row in range(rows.start, rows.stop)] == list(range(height))
    for rows in cut:
        assert (rows.stop - rows.start) * width <= max(pixels, width)
        wide, own = widened(rows, halo, height)
        assert range(height)[wide][own] == range(height)[rows]
        assert wide.start == max(0, rows.start - halo)
        assert wide.stop == min(height, rows.stop + halo)


@often
@given(sides, sides, st.integers(1, 200), st.integers(1, 3), st.integers(0, 99))
def test_edges_are_refined_and_maps_normalised_alike_in_bands(small_bands, height, width, pixels, zoom, seed):
    maps = noise(2, height, width, seed=seed).round(decimals=1)
    picture = (100 * noise(2, 3, zoom * height, width + zoom, seed=seed)).abs().clamp(max=255).to(torch.uint8)
    for work in (lambda: refine(maps, picture), lambda: relative_disparity(maps)):
        whole, banded = in_both(small_bands, pixels, work)
        assert torch.equal(whole, banded)


@often
@given(sides, sides, st.integers(1, 200), st.integers(0, 99))
def test_gaps_are_filled_alike_in_bands_also_from_other_rows(small_bands, height, width, pixels, seed):
    maps = noise(2, height, width, seed=seed)
    maps[maps < 0.4] = torch.nan
    maps[:, noise(height, seed=seed + 1) < 0.5] = torch.nan
    whole, banded = in_both(small_bands, pixels, lambda: fill_sparse(maps))
    assert torch.equal(whole.nan_to_num(-1), banded.nan_to_num(-1))
    assert not torch.isnan(banded[torch.isfinite(maps).flatten(1).any(1)]).any()


@often
@given(sides, sides, st.integers(1, 200), st.sampled_from([1.0, -1.0]), st.sampled_from([None, 0.5]), seeds)
def test_images_are_warped_and_continued_alike_in_bands(small_bands, height, width, pixels, sign, mirror, seed):
    disparity = sign * 6 * noise(1, height, width, seed=seed).round(decimals=1)
    image = noise(1, 3, height, width, seed=seed + 1)

    def work():
        warp = ImageWarp(disparity, torch.tensor([sign]), mirror=mirror)
        return warp.continued(image), *vars(warp.masks).values()

    whole, banded = in_both(small_bands, pixels, work)
    assert all(torch.equal(*both) for both in zip(whole, banded, strict=True))


def test_work_that_needs_no_rows_around_gets_each_row_once(small_bands):
    small_bands(8)
    seen = []
    maps = torch.arange(24.0).reshape(1, 6, 4)
    doubled = in_bands(lambda part: seen.append(part.shape[-2]) or 2 * part, maps)
    assert torch.equal(doubled, 2 * maps)
    assert seen == [2, 2, 2]


def test_an_image_of_one_band_is_warped_once(small_bands):
    small_bands(2**19)
    warp = ImageWarp(noise(1, 8, 8, seed=0), torch.ones(1))
    rows = next(warp.bands())
    assert warp.rows(rows) is warp.rows(slice(0, 8))
