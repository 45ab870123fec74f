"""Continuing the background: every hole gets the right column, every gap a neighbour's value."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from stereo_jobs.stereo.fill import (
    background_beside,
    background_columns,
    extend_background,
    fill_sparse,
    mirrored_columns,
)

often = settings(max_examples=100, deadline=None, derandomize=True, database=None)
nan = float("nan")


def slow_columns(filled, disparity, sign):
    """Each hole looks left and right; the farther of the two pixels wins, and in a tie the right one."""
    columns = np.zeros(filled.shape, np.int64)
    for b, y, x in np.ndindex(filled.shape):
        left = next((c for c in range(x, -1, -1) if filled[b, y, c]), None)
        right = next((c for c in range(x, filled.shape[2]) if filled[b, y, c]), None)
        if left is None and right is None:
            columns[b, y, x] = x
        elif left is None or right is None:
            columns[b, y, x] = right if left is None else left
        else:
            farther = disparity[b, y, right] * sign[b] <= disparity[b, y, left] * sign[b]
            columns[b, y, x] = right if farther else left
    return columns


@st.composite
def views(draw):
    shape = (draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 10)))
    filled = draw(arrays(bool, shape))
    disparity = draw(arrays(np.float32, shape, elements=st.integers(-3, 3).map(float)))
    sign = draw(arrays(np.float64, shape[:1], elements=st.sampled_from([-1.0, 1.0])))
    return filled, disparity, sign


@often
@given(views())
def test_holes_continue_the_background_as_in_the_slow_reference(view):
    filled, disparity, sign = view
    columns = background_columns(*(torch.from_numpy(part) for part in view))
    np.testing.assert_array_equal(columns.numpy(), slow_columns(filled, disparity, sign))


def slow_mirror(filled, disparity, sign, step):
    """Each hole walks as far beyond the edge of the background as it lies before it."""
    columns = slow_columns(filled, disparity, sign)
    for b, y, x in np.ndindex(filled.shape):
        edge = columns[b, y, x]
        mirrored = edge + (edge - x)
        if 0 <= mirrored < filled.shape[2] and filled[b, y, mirrored]:
            nearer = (disparity[b, y, mirrored] - disparity[b, y, edge]) * sign[b]
            if nearer <= step:
                columns[b, y, x] = mirrored
    return columns


@often
@given(views(), st.sampled_from([0.0, 1.0, 2.5]))
def test_holes_mirror_the_background_as_in_the_slow_reference(view, step):
    filled, disparity, sign = view
    columns = mirrored_columns(*(torch.from_numpy(part) for part in view), step)
    np.testing.assert_array_equal(columns.numpy(), slow_mirror(filled, disparity, sign, step))


def test_an_object_in_front_of_the_background_is_not_mirrored():
    filled = torch.tensor([[[True, False, False, False, True, True, True, True]]])
    disparity = torch.tensor([[[9.0, 0.0, 0.0, 0.0, 1.0, 1.5, 8.0, 0.0]]])
    columns = mirrored_columns(filled, disparity, torch.ones(1), step=1.0)
    assert columns.flatten().tolist() == [0, 7, 4, 5, 4, 5, 6, 7]


def slow_beside(filled, disparity, sign, step):
    """A filled pixel looks at the eight around it: at each hole among them, it may be no nearer than its background."""
    columns = slow_columns(filled, disparity, sign)
    found = np.zeros(filled.shape, bool)
    for b, y, x in np.argwhere(filled):
        for v, u in np.ndindex(3, 3):
            row, column = y + v - 1, x + u - 1
            if not (0 <= row < filled.shape[1] and 0 <= column < filled.shape[2]) or filled[b, row, column]:
                continue
            behind = disparity[b, row, columns[b, row, column]] * sign[b] if filled[b, row].any() else np.inf
            found[b, y, x] |= disparity[b, y, x] * sign[b] <= behind + step
    return found


@often
@given(views(), st.sampled_from([0.0, 1.0, 2.5]))
def test_the_background_beside_holes_is_that_of_the_slow_reference(view, step):
    found = background_beside(*(torch.from_numpy(part) for part in view), step)
    np.testing.assert_array_equal(found.numpy(), slow_beside(*view, step))


def test_an_object_beside_a_hole_is_not_its_background_from_any_side():
    filled = torch.ones(1, 4, 6, dtype=torch.bool)
    filled[:, 1:3, 2:4] = False
    disparity = torch.ones(1, 4, 6)
    disparity[..., :2] = 9  # on its left
    disparity[:, 3, :4] = 9  # and below
    found = background_beside(filled, disparity, torch.ones(1), step=1.0)[0]
    assert found.nonzero().tolist() == [[0, 2], [0, 3], [0, 4], [1, 4], [2, 4], [3, 4]]


@pytest.mark.parametrize(("sign", "chosen"), [(1.0, 3), (-1.0, 0)])
def test_the_background_is_on_the_side_of_the_smaller_disparity_and_swaps_with_the_sign(sign, chosen):
    filled = torch.tensor([[[True, False, False, True]]])
    disparity = torch.tensor([[[5.0, 99.0, -99.0, 2.0]]])  # values in holes are ignored
    columns = background_columns(filled, disparity, torch.tensor([sign]))
    assert columns.flatten().tolist() == [0, chosen, chosen, 3]


def test_rows_without_any_filled_pixel_name_themselves():
    filled = torch.tensor([[[False, False, False], [False, True, False]]])
    columns = background_columns(filled, torch.zeros(1, 2, 3), torch.ones(1))
    assert columns.tolist() == [[[0, 1, 2], [1, 1, 1]]]


def test_extending_gathers_every_channel_of_every_sample():
    image = torch.arange(24.0).reshape(2, 2, 2, 3)
    columns = torch.tensor([[[0, 0, 2], [1, 1, 1]], [[2, 1, 0], [0, 1, 2]]])
    out = extend_background(image, columns)
    for b, c, y, x in np.ndindex(*image.shape):
        assert out[b, c, y, x] == image[b, c, y, columns[b, y, x]]


@pytest.mark.parametrize(
    ("gaps", "complete"),
    [
        ([[1, nan, nan, 4]], [[1, 1, 1, 4]]),  # the left neighbour
        ([[nan, nan, 3, nan]], [[3, 3, 3, 3]]),  # at the left edge: the right neighbour
        ([[1, float("inf"), -float("inf"), 4]], [[1, 1, 1, 4]]),
        ([[1, 2], [nan, nan], [5, 6]], [[1, 2], [1, 2], [5, 6]]),  # the row above
        ([[nan, nan], [nan, 3]], [[3, 3], [3, 3]]),  # no row above: the one below
        ([[0, -1], [2, 3]], [[0, -1], [2, 3]]),
    ],
)
def test_gaps_take_the_value_of_a_neighbour(gaps, complete):
    assert fill_sparse(torch.tensor([gaps], dtype=torch.float32)).tolist() == [complete]


def test_a_map_without_any_value_stays_as_it_is_and_its_neighbours_do_not_care():
    maps = torch.full((2, 3, 4), nan)
    maps[1, 1, 2] = 7
    complete = fill_sparse(maps)
    assert complete[0].isnan().all()
    assert (complete[1] == 7).all()


@often
@given(arrays(np.float32, (2, 3, 5), elements=st.sampled_from([nan, 1.0, 2.0, 3.0])))
def test_known_values_stay_and_nothing_is_invented(values):
    complete = fill_sparse(torch.from_numpy(values)).numpy()
    for before, after in zip(values, complete, strict=True):
        known = np.isfinite(before)
        np.testing.assert_array_equal(after[known], before[known])
        assert set(after[np.isfinite(after)].tolist()) <= set(before[known].tolist())
        assert np.isfinite(after).all() == known.any()
