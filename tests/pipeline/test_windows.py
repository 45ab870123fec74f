"""Windows over holes, and the resolutions at which holes are drawn again."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stereo_jobs.pipeline.windows import MOST_WINDOWS, Windows, any_within, levels, ramps

some = settings(max_examples=40, deadline=None, derandomize=True, database=None)


def random_holes(height, width, share, seed):
    return np.random.default_rng(seed).random((height, width)) < share


@some
@given(st.integers(16, 60), st.integers(16, 60), st.sampled_from([0.0, 0.002, 0.1]), st.integers(0, 99))
def test_windows_cover_every_hole_with_room_around_it(height, width, share, seed):
    holes = random_holes(height, width, share, seed)
    windows = Windows.over(holes, (16, 12), 1000)
    seen = np.zeros((height, width), bool)
    for y, x in windows.corners:
        assert 0 <= y <= height - 16
        assert 0 <= x <= width - 12
        inner = seen[y + 2 * (y > 0) : y + 16 - 2 * (y + 16 < height), x + (x > 0) : x + 12 - (x + 12 < width)]
        inner[...] = True
    assert seen[holes].all()
    assert len(windows.corners) <= holes.sum()
    assert Windows.over(holes, (16, 12), len(windows.corners)) == windows
    if windows.corners:
        assert Windows.over(holes, (16, 12), len(windows.corners) - 1) is None


@some
@given(st.integers(16, 40), st.integers(16, 40), st.integers(0, 99))
def test_windows_cut_apart_and_joined_are_the_canvas(height, width, seed):
    holes = random_holes(height, width, 0.05, seed)
    holes[0, 0] = True
    windows = Windows.over(holes, (16, 16), 1000)
    canvas = torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(seed))
    parts = windows.cut(canvas)
    joined = windows.joined(parts)
    seen = windows.joined(torch.ones_like(parts)) > 0.5
    torch.testing.assert_close(joined[seen], canvas[seen])
    assert (joined[~seen] == 0).all()


@some
@given(st.integers(1, 30), st.integers(1, 30), st.integers(1, 7), st.integers(0, 99))
def test_a_block_is_set_where_any_of_its_pixels_is(height, width, block, seed):
    mask = random_holes(height, width, 0.1, seed)
    blocks = any_within(mask, block)
    for y, x in np.ndindex(*blocks.shape):
        assert blocks[y, x] == mask[y * block : (y + 1) * block, x * block : (x + 1) * block].any()


def wide_hole(height, width):
    holes = np.zeros((height, width), bool)
    holes[height // 4 : height // 2, width // 3 : width // 2] = True
    return holes


def test_each_level_is_at_most_four_times_as_fine_as_the_one_before():
    assert [level.shrink for level in levels(wide_hole(64, 64), 1.0, (16, 16), 4)] == []
    assert [level.shrink for level in levels(wide_hole(256, 256), 0.25, (16, 16), 4)] == [1]
    assert [level.shrink for level in levels(wide_hole(512, 512), 0.125, (16, 16), 4)] == [4, 1]
    # The finest level of this one would take too many windows.
    assert [level.shrink for level in levels(wide_hole(2048, 2048), 1 / 32, (16, 16), 4)] == [8, 2]


def test_the_windows_of_a_huge_photo_are_bounded():
    planned = levels(wide_hole(6000, 8000), 128 / 7000, (32, 32), 4)
    assert planned[-1].shrink > 1
    assert all(len(level.windows.corners) <= MOST_WINDOWS for level in planned)


def test_no_window_is_opened_for_slivers():
    holes = np.zeros((256, 256), bool)
    holes[:, 101:105] = True
    assert levels(holes, 0.25, (16, 16), 4) == []


def test_a_windows_weights_fall_towards_its_edges():
    weights = ramps((16, 32))
    assert weights.max() == 1
    assert weights[8, 16] == 1
    assert 0 < weights[0, 0] < weights[0, 16] < weights[1, 16] < 1
