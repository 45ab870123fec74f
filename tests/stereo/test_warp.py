"""Stereo Pixel Shift against a slow and obvious reference."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from stereo_jobs.stereo.warp import border_holes, forward_warp, upsample

often = settings(max_examples=150, deadline=None, derandomize=True, database=None)


def slow_warp(disparity, sign):
    """Every pixel in turn moves left by its truncated disparity; where two meet, the nearer one stays."""
    batch, height, width = disparity.shape
    source = np.zeros(disparity.shape, np.int64)
    filled, visible = np.zeros((2, *disparity.shape), bool)
    for b in range(batch):
        for y in range(height):
            nearness = {}
            for x in range(width):
                shift = int(disparity[b, y, x])  # towards zero
                target, near = x - shift, shift if sign[b] > 0 else -shift
                if 0 <= target < width and near > nearness.get(target, -np.inf):
                    if filled[b, y, target]:
                        visible[b, y, source[b, y, target]] = False
                    nearness[target] = near
                    source[b, y, target] = x
                    filled[b, y, target] = visible[b, y, x] = True
    return source, filled, visible


@st.composite
def cases(draw):
    """Disparities of a few shapes and magnitudes, with the scale's sign of each sample."""
    shape = (draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 12)))
    numbers = st.floats(-6, 6, width=32) | st.integers(-14, 14).map(float)
    sign = draw(st.lists(st.sampled_from([-1.0, 1.0]), min_size=shape[0], max_size=shape[0]))
    return draw(arrays(np.float32, shape, elements=numbers)), np.array(sign)


@often
@given(cases())
def test_the_warp_equals_the_slow_reference(case):
    disparity, sign = case
    warp = forward_warp(torch.from_numpy(disparity), torch.from_numpy(sign))
    source, filled, visible = slow_warp(disparity, sign)
    np.testing.assert_array_equal(warp.filled.numpy(), filled)
    np.testing.assert_array_equal(warp.visible.numpy(), visible)
    np.testing.assert_array_equal(warp.source.numpy(), source)


@often
@given(cases(), st.integers(1, 3))
def test_no_value_is_invented(case, channels):
    disparity, sign = case
    warp = forward_warp(torch.from_numpy(disparity), torch.from_numpy(sign))
    batch, height, width = disparity.shape
    x = torch.arange(batch * channels * height * width, dtype=torch.float32).reshape(batch, channels, height, width)
    out = warp(x + 1, into=-1.0)
    for b in range(batch):
        for c in range(channels):
            for y in range(height):
                assert set(out[b, c, y].tolist()) <= {*(x[b, c, y] + 1).tolist(), -1.0}
    np.testing.assert_array_equal((out > 0).numpy(), warp.filled[:, None].expand_as(out).numpy())
    assert warp.filled.sum() == warp.visible.sum()


@often
@given(cases())
def test_every_sample_is_warped_on_its_own(case):
    disparity, sign = (torch.from_numpy(part) for part in case)
    together = forward_warp(disparity, sign)
    for b in range(len(disparity)):
        alone = forward_warp(disparity[b : b + 1], sign[b : b + 1])
        for field in ("source", "filled", "visible"):
            assert torch.equal(getattr(together, field)[b : b + 1], getattr(alone, field))


@often
@given(cases())
def test_mirroring_the_scene_and_the_direction_mirrors_the_warp(case):
    disparity, sign = (torch.from_numpy(part) for part in case)
    warp = forward_warp(disparity, sign)
    mirrored = forward_warp(-disparity.flip(-1), -sign)
    assert torch.equal(mirrored.filled.flip(-1), warp.filled)
    assert torch.equal(mirrored.visible.flip(-1), warp.visible)


def test_no_disparity_moves_nothing():
    x = torch.randn(2, 4, 3, 5)
    warp = forward_warp(torch.zeros(2, 3, 5), torch.ones(2))
    assert torch.equal(warp(x), x)
    assert warp.filled.all()
    assert warp.visible.all()


def test_holes_take_the_values_given():
    warp = forward_warp(torch.full((1, 1, 4), 1.0), torch.ones(1))
    x, into = torch.arange(4.0).reshape(1, 1, 1, 4), torch.full((1, 1, 1, 4), 9.0)
    assert warp(x).flatten().tolist() == [1, 2, 3, 0]
    assert warp(x, into).flatten().tolist() == [1, 2, 3, 9]
    assert warp(x, 7.0).flatten().tolist() == [1, 2, 3, 7]
    assert warp.visible.flatten().tolist() == [False, True, True, True]


@often
@given(arrays(bool, st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(1, 10))))
def test_border_holes_are_those_reachable_from_the_edge(filled):
    expected = np.zeros_like(filled)
    for row, out in zip(filled.reshape(-1, filled.shape[-1]), expected.reshape(-1, filled.shape[-1]), strict=True):
        for order in (range(len(row)), range(len(row))[::-1]):
            for x in order:
                if row[x]:
                    break
                out[x] = True
    found = border_holes(torch.from_numpy(filled))
    assert found.dtype == torch.bool
    np.testing.assert_array_equal(found.numpy(), expected)


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32])
def test_upsample_repeats_every_pixel(dtype):
    grid = torch.tensor([[[0, 1], [1, 0]]]).to(dtype)
    expected = [[0, 0, 0, 1, 1, 1]] * 3 + [[1, 1, 1, 0, 0, 0]] * 3
    big = upsample(grid, 3)
    assert big.dtype == dtype
    assert big.tolist() == [expected]
