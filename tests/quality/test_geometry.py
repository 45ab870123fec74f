"""Geometry of a pair: consistency, parallax and vertical offset against slow references and planted faults."""

import math

import numpy as np
import pytest

from stereo_jobs.quality.geometry import left_right_consistency, match_right, parallax_ratio, vertical_shift
from stereo_jobs.quality.matcher import Match, match
from stereo_jobs.toyscapes.render import render
from stereo_jobs.toyscapes.scenes import draw_scene

SCENES = [render(draw_scene(seed)) for seed in (0, 3, 6)]


def random_matches(seed):
    rng = np.random.default_rng(seed)
    shape = 6, 12
    left, right = (
        Match(rng.integers(-3, 5, shape).astype(np.float32) + np.float32(0.25), rng.random(shape) < 0.8) for _ in "lr"
    )
    return left, right, rng.random(shape) < 0.7


@pytest.mark.parametrize("seed", range(5))
def test_consistency_against_a_loop(seed):
    left, right, visible = random_matches(seed)
    found = []
    for y, x in zip(*np.nonzero(visible & left.valid), strict=True):
        there = round(float(x - left.disparity[y, x]))
        inside = 0 <= there < visible.shape[1]
        found.append(inside and right.valid[y, there] and abs(left.disparity[y, x] - right.disparity[y, there]) <= 1)
    assert left_right_consistency(left, right, visible) == pytest.approx(np.mean(found))


def test_the_right_view_is_matched_with_the_same_sign():
    view = SCENES[0]
    found = match_right(view.left, view.right, float(view.disparity.max()))
    over = found.valid & ~view.hole_right
    assert np.median(np.abs(found.disparity - view.right_disparity)[over]) < 0.5


def test_true_pairs_are_consistent_and_have_their_parallax():
    for view in SCENES:
        reach = float(view.disparity.max())
        found = match(view.left, view.right, reach)
        assert left_right_consistency(found, match_right(view.left, view.right, reach), view.nonocc_left) > 0.95
        assert parallax_ratio(found, view.disparity, view.nonocc_left) == pytest.approx(1, abs=0.1)
        assert parallax_ratio(found, view.disparity / 2, view.nonocc_left) == pytest.approx(2, abs=0.2)
        copied = match(view.left, view.left, reach)
        assert parallax_ratio(copied, view.disparity, view.nonocc_left) == pytest.approx(0, abs=0.01)


def test_the_ratio_is_of_the_nearest_things_alone():
    label = np.array([[1.0, 5, 10, 6, 9]], np.float32)
    found = Match(np.array([[50.0, 50, 5, 6, 18]], np.float32), np.ones((1, 5), bool))
    everywhere = np.ones((1, 5), bool)
    assert parallax_ratio(found, label, everywhere) == np.median([5 / 10, 6 / 6, 18 / 9])
    assert math.isnan(parallax_ratio(found, np.full((1, 5), 1.5, np.float32), everywhere)), "too near to zero to tell"
    assert math.isnan(parallax_ratio(found, label, ~everywhere))


@pytest.mark.parametrize("down", [0, 1, 3])
def test_the_height_of_the_right_view(down):
    for view in SCENES:
        lowered = np.concatenate([view.right[:1]] * down + [view.right[: len(view.right) - down]])
        assert vertical_shift(view.left, lowered) == pytest.approx(down, abs=0.15)


def test_height_without_corners():
    flat = np.full((64, 64, 3), 99, np.uint8)
    assert math.isnan(vertical_shift(flat, flat))
    assert math.isnan(vertical_shift(flat[:4, :4], flat[:4, :4]))
