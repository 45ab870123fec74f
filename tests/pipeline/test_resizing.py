"""Pictures of any size on their way into the working size and back."""

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from stereo_jobs.pipeline.resizing import Letterbox

often = settings(max_examples=200, deadline=None, derandomize=True, database=None)
some = settings(max_examples=60, deadline=None, derandomize=True, database=None)

sides = st.integers(16, 4000)
small = st.integers(16, 200)
multiples = st.sampled_from([8, 16, 24, 32, 64])


def ramp(height, width):
    """A smooth picture, 1,3,H,W in [0, 1]: brighter to the right, redder below, one wave across."""
    y, x = torch.linspace(0, 1, height)[:, None], torch.linspace(0, 1, width)[None]
    return torch.stack([x + 0 * y, y + 0 * x, 0.5 - 0.5 * torch.cos(2 * torch.pi * x) * torch.cos(torch.pi * y)])[None]


@often
@given(sides, sides, multiples, st.integers(1, 12))
@example(16, 3_000_000, 64, 8)
@example(3_000_000, 16, 8, 64)
@example(16, 16, 64, 1)
def test_the_working_size_is_whole_multiples_of_about_the_area(height, width, multiple, times):
    area = (multiple * times) ** 2
    letterbox = Letterbox.of_area((height, width), area, multiple)
    assert letterbox.size == (height, width)
    for inner, working in zip(letterbox.inner, letterbox.working, strict=True):
        assert working % multiple == 0
        assert working - multiple < inner <= working
    # Each side is padded by three quarters of a multiple at most, or scaled down by less than a quarter.
    assert 0.6 * area <= letterbox.working[0] * letterbox.working[1] <= 1.6**2 * area + 1
    assert letterbox.zoom == letterbox.inner[1] / width


@often
@given(sides, sides, multiples, st.integers(4, 12))
def test_the_shape_is_kept(height, width, multiple, times):
    letterbox = Letterbox.of_area((height, width), (multiple * times) ** 2, multiple)
    assume(min(letterbox.inner) >= 2 * multiple)
    # Rounding, and scaling down to a multiple by less than a quarter of one.
    assert 0.85 < (letterbox.inner[1] / width) / (letterbox.inner[0] / height) < 1 / 0.85


@pytest.mark.parametrize("multiple", [8, 16, 32, 64])
def test_a_picture_of_the_wanted_area_in_whole_multiples_stays_as_it_is(multiple):
    for size in ((8 * multiple, 8 * multiple), (4 * multiple, 16 * multiple)):
        assert Letterbox.of_area(size, 64 * multiple**2, multiple) == Letterbox.exact(size)


def test_nothing_changes_where_the_sizes_agree():
    letterbox = Letterbox.exact((48, 64))
    image, maps = torch.rand(2, 3, 48, 64), torch.rand(2, 48, 64)
    assert letterbox.zoom == 1
    assert torch.equal(letterbox.into(image), image)
    assert torch.equal(letterbox.back(image), image)
    assert torch.equal(letterbox.map_into(maps), maps)
    assert torch.equal(letterbox.map_back(maps), maps)
    mask = maps > 0.5
    assert letterbox.map_back(mask).dtype == torch.bool
    assert torch.equal(letterbox.map_back(mask), mask)


@some
@given(small, small, st.sampled_from([8, 16, 64]))
def test_a_smooth_picture_comes_back(height, width, multiple):
    letterbox = Letterbox.of_area((height, width), 128**2, multiple)
    assume(min(letterbox.inner) > multiple)  # a strip is squeezed, and its wave with it
    picture = ramp(height, width)
    there = letterbox.into(picture)
    assert there.shape == (1, 3, *letterbox.working)
    assert there.min() >= 0
    assert there.max() <= 1
    back = letterbox.back(there)
    assert back.shape == picture.shape
    error = (back - picture).abs()
    assert error.max() < 0.05
    assert error.mean() < 0.006


@some
@given(small, small, st.sampled_from([8, 16, 64]))
def test_maps_never_overshoot(height, width, multiple):
    letterbox = Letterbox.of_area((height, width), 96**2, multiple)
    rng = np.random.default_rng(height * 1000 + width)
    maps = torch.from_numpy(np.where(rng.random((1, height, width)) < 0.5, -3.0, 7.0).astype(np.float32))
    there = letterbox.map_into(maps)
    assert there.shape == (1, *letterbox.working)
    assert there.min() >= -3
    assert there.max() <= 7
    back = letterbox.map_back(there)
    assert back.shape == maps.shape
    assert set(back.unique().tolist()) <= set(there.unique().tolist())


@pytest.mark.parametrize("size", [(60, 90), (20, 33), (200, 150)])
def test_the_edge_of_a_surface_does_not_ring(size):
    """An overshoot would be a third surface, nearer than the near one; the map's full range does not excuse it."""
    letterbox = Letterbox.of_area(size, 64**2, 16)
    maps = torch.full((1, *size), 3.0)
    maps[..., size[1] // 2 :] = 5.0
    maps[:, :2, 0], maps[:, :2, -1] = -50.0, 50.0
    there = letterbox.map_into(maps)[:, letterbox.inner[0] // 2 :]
    assert there.min() > 3 - 1e-5
    assert there.max() < 5 + 1e-5


def test_padding_repeats_the_edge_of_a_map_and_mirrors_a_picture():
    letterbox = Letterbox((5, 6), (5, 6), (8, 8))
    maps = torch.arange(30.0).reshape(1, 5, 6)
    padded = letterbox.map_into(maps)
    assert torch.equal(padded[:, :5, :6], maps)
    assert torch.equal(padded[0, 5:, :6], maps[0, 4].expand(3, 6))
    assert torch.equal(padded[0, :, 6:], padded[0, :, 5:6].expand(8, 2))
    picture = torch.rand(1, 3, 5, 6)
    padded = letterbox.into(picture)
    assert torch.equal(padded[..., :5, :6], picture)
    assert torch.equal(padded[..., 5:, :6], picture[..., [3, 2, 1], :])
    assert torch.equal(padded[..., 6:], padded[..., [4, 3]])
    assert torch.equal(letterbox.back(padded), picture)


@pytest.mark.parametrize("inner", [(2, 2), (3, 5), (1, 4), (4, 1), (1, 1), (8, 1)])
def test_padding_larger_than_the_picture_mirrors_more_than_once(inner):
    letterbox = Letterbox(inner, inner, (16, 24))
    picture = torch.rand(1, 3, *inner)
    padded = letterbox.into(picture)
    assert padded.shape == (1, 3, 16, 24)
    mirrored = []
    for count, total in zip(inner, (16, 24), strict=True):
        period = max(1, 2 * count - 2)
        mirrored.append([min(i % period, period - i % period) for i in range(total)])
    assert torch.equal(padded, picture[:, :, mirrored[0]][..., mirrored[1]])
    assert torch.equal(letterbox.back(padded), picture)


def test_labels_come_back_as_the_nearest():
    letterbox = Letterbox((6, 9), (4, 4), (8, 8))
    grid = torch.arange(64).reshape(1, 8, 8)
    back = letterbox.map_back(grid)
    assert back.dtype == grid.dtype
    assert back.shape == (1, 6, 9)
    for y in range(6):
        for x in range(9):
            nearest = int((y + 0.5) * 4 / 6) * 8 + int((x + 0.5) * 4 / 9)
            assert back[0, y, x] == nearest
