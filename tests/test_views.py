"""Pairs as one picture."""

import numpy as np
import pytest

from stereo_jobs.views import anaglyph, coloured, side_by_side

RNG = np.random.default_rng(0)
LEFT, RIGHT = RNG.integers(0, 256, (2, 5, 7, 3), dtype=np.uint8)

# Dubois, "A projection method to generate anaglyph stereo images", for red-cyan: rows R, G, B; columns R, G, B.
RED_EYE = [[0.437, 0.449, 0.164], [-0.062, -0.062, -0.024], [-0.048, -0.050, -0.017]]
CYAN_EYE = [[-0.011, -0.032, -0.007], [0.377, 0.761, 0.009], [-0.026, -0.093, 1.234]]


def test_the_anaglyph_mixes_as_published():
    expected = np.zeros_like(LEFT)
    for y in range(5):
        for x in range(7):
            for c in range(3):
                value = sum(RED_EYE[c][k] * int(LEFT[y, x, k]) + CYAN_EYE[c][k] * int(RIGHT[y, x, k]) for k in range(3))
                expected[y, x, c] = min(255, max(0, round(value)))
    found = anaglyph(LEFT, RIGHT)
    assert (found.dtype, found.shape) == (np.uint8, LEFT.shape)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("grey", [0, 1, 100, 255])
def test_grey_without_depth_stays_grey(grey):
    image = np.full((2, 3, 3), grey, np.uint8)
    assert np.abs(anaglyph(image, image).astype(int) - grey).max() <= 1


def test_red_shows_the_left_view_and_cyan_the_right_one():
    white, black = np.full((1, 1, 3), 255, np.uint8), np.zeros((1, 1, 3), np.uint8)
    assert anaglyph(white, black)[0, 0].tolist() == [255, 0, 0]
    assert anaglyph(black, white)[0, 0].tolist() == [0, 255, 255]


def test_views_stand_side_by_side():
    both = side_by_side(LEFT, RIGHT)
    assert (both.dtype, both.shape) == (np.uint8, (5, 14, 3))
    np.testing.assert_array_equal(both[:, :7], LEFT)
    np.testing.assert_array_equal(both[:, 7:], RIGHT)
    np.testing.assert_array_equal(side_by_side(LEFT, RIGHT, cross_eyed=True), side_by_side(RIGHT, LEFT))


def test_near_is_yellow_and_far_is_blue():
    ramp = np.tile(np.linspace(-3, 9, 7, dtype=np.float32), (2, 1))
    colours = coloured(ramp)
    assert (colours.dtype, colours.shape) == (np.uint8, (2, 7, 3))
    assert colours[0, 0].tolist() == [30, 20, 90]
    assert colours[0, -1].tolist() == [250, 230, 60]
    assert coloured(np.ones((2, 3), np.float32)).tolist() == [[[30, 20, 90]] * 3] * 2
