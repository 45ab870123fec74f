"""Membranes: smooth, within the range of what is known, and alike for one sample or many."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from stereo_jobs.stereo.membrane import ROW_STIFFNESS, membrane

often = settings(max_examples=60, deadline=None, derandomize=True, database=None)
shapes = st.tuples(st.integers(1, 2), st.integers(1, 9), st.integers(1, 9))


@st.composite
def samples(draw):
    shape = draw(shapes)
    known = draw(arrays(bool, shape))
    values = draw(arrays(np.float32, (shape[0], 2, *shape[1:]), elements=st.integers(-8, 8).map(float)))
    return torch.from_numpy(values), torch.from_numpy(known)


@often
@given(samples())
def test_known_values_stay_and_the_rest_lies_between_them(sample):
    values, known = sample
    out = membrane(values, known)
    for b, c in np.ndindex(*values.shape[:2]):
        inside = values[b, c][known[b]]
        if not len(inside):
            assert (out[b, c] == 0).all()
            continue
        assert torch.equal(out[b, c][known[b]], inside)
        assert inside.min() - 1e-5 <= out[b, c].min() <= out[b, c].max() <= inside.max() + 1e-5


@often
@given(samples())
def test_a_sample_does_not_depend_on_its_batch_nor_on_unknown_values(sample):
    values, known = sample
    out = membrane(values, known)
    other = torch.where(known[:, None], values, torch.nan)
    for b in range(len(values)):
        assert torch.equal(membrane(other[b : b + 1], known[b : b + 1]), out[b : b + 1])


def exact(values, known):
    """Solve u_xx + u_yy / ROW_STIFFNESS^2 = 0 as one system of equations; the frame reflects."""
    height, width = known.shape
    system, wanted = np.eye(height * width), np.where(known, values, 0).ravel()
    for y, x in np.argwhere(~known):
        row = system[y * width + x]
        for dy, dx, weight in ((0, 1, 1), (0, -1, 1), (1, 0, ROW_STIFFNESS**-2), (-1, 0, ROW_STIFFNESS**-2)):
            row[min(max(y + dy, 0), height - 1) * width + min(max(x + dx, 0), width - 1)] -= weight / (
                2 + 2 * ROW_STIFFNESS**-2
            )
    return np.linalg.solve(system, wanted).reshape(height, width)


@pytest.mark.parametrize("seed", range(4))
def test_a_hole_is_near_the_exact_solution(seed):
    random = np.random.default_rng(seed)
    values = np.cumsum(random.normal(size=(24, 24)), 0) / 4
    known = np.ones((24, 24), bool)
    known[5:20, 6 : 10 + 3 * seed] = False
    out = membrane(torch.from_numpy(values)[None, None], torch.from_numpy(known)[None])[0, 0].numpy()
    assert np.abs(out - exact(values, known)).max() < 0.15 * np.ptp(values)


def test_a_single_pixel_of_the_rim_becomes_no_streak():
    """Beside it the value fades, and the rows above and below take their part of it."""
    values = torch.zeros(1, 1, 33, 65)
    values[..., 16, 40] = 1
    known = torch.ones(1, 33, 65, dtype=torch.bool)
    known[..., 8:40] = False
    hole = membrane(values, known)[0, 0]
    assert hole[16, 39] > 0.5
    assert hole[16, 20:30].max() < 0.15
    assert hole[15, 36] > 0.1 * hole[16, 36]
