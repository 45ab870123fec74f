"""The matcher on pairs with known disparity, and on labels with known errors."""

import math
from dataclasses import astuple

import numpy as np
import pytest

from stereo_jobs.quality.matcher import MOST_FITTED, Match, agreement, match, robust_line
from stereo_jobs.toyscapes.render import render
from stereo_jobs.toyscapes.scenes import LEVELS, draw_scene


@pytest.fixture(scope="module")
def views():
    """Ten rendered scenes of each level."""
    return {level: [render(draw_scene(seed, "test", level)) for seed in range(10)] for level in LEVELS}


def reach(view):
    return float(view.disparity.max())


# --- Which labels agree ---


@pytest.mark.parametrize("level", LEVELS)
def test_the_truth_of_toyscapes_agrees(views, level):
    found = [agreement(match(v.left, v.right, reach(v)), v.disparity, v.nonocc_left) for v in views[level]]
    assert np.mean([a.bad_2 for a in found]) < 0.05
    assert np.mean([a.d1 for a in found]) < 0.05
    assert np.mean([a.epe for a in found]) < 0.5
    for a in found:
        assert a.density > 0.9
        assert a.fit_a == pytest.approx(1, abs=0.2)
        assert a.fit_b == pytest.approx(0, abs=0.8)


def test_occluded_pixels_do_not_count(views):
    """The matcher guesses the disparity of most occluded pixels."""
    view = views["crowded"][0]
    found = match(view.left, view.right, reach(view))
    assert found.valid[~view.nonocc_left].any()
    absurd = Match(np.where(view.nonocc_left, found.disparity, np.float32(999)), found.valid | ~view.nonocc_left)
    expected = agreement(found, view.disparity, view.nonocc_left)
    assert agreement(absurd, view.disparity, view.nonocc_left) == expected


@pytest.mark.parametrize("level", LEVELS)
def test_swapped_eyes_mirror_the_line(views, level):
    """Every disparity changes its sign: slope -1 and offset 0, with the label of either view."""
    for view in views[level][:5]:
        found = match(view.right, view.left, reach(view))
        assert (found.disparity[found.valid] < 0).mean() > 0.95
        for label, visible in ((view.disparity, view.nonocc_left), (view.right_disparity, ~view.hole_right)):
            a = agreement(found, label, visible)
            assert a.fit_a == pytest.approx(-1, abs=0.2)
            assert a.fit_b == pytest.approx(0, abs=0.8)
            assert a.bad_2 > 0.95


def test_a_pair_without_depth_has_no_disparity(views):
    for view in views["structured"][:5]:
        found = match(view.left, view.left, reach(view))
        assert np.abs(found.disparity[found.valid]).mean() < 0.01
        assert found.valid.mean() > 0.99
        flat = agreement(found, np.zeros_like(view.disparity), view.nonocc_left)
        assert (flat.fit_a, flat.fit_b, flat.bad_2) == pytest.approx((1, 0, 0), abs=0.01)
        # A label that claims depth for such a pair shows in the slope.
        assert agreement(found, view.disparity, view.nonocc_left).fit_a == pytest.approx(0, abs=0.01)


@pytest.mark.parametrize("offset", [-4.0, 3.0])
def test_an_offset_of_the_label_shows_in_the_offset_of_the_line(views, offset):
    for view in views["structured"][:5]:
        found = match(view.left, view.right, reach(view))
        right = agreement(found, view.disparity, view.nonocc_left)
        wrong = agreement(found, view.disparity + np.float32(offset), view.nonocc_left)
        assert wrong.fit_a == pytest.approx(right.fit_a, abs=1e-3)
        assert wrong.fit_b == pytest.approx(right.fit_b - offset * right.fit_a, abs=0.01)
        assert wrong.bad_2 > 0.9


@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_a_scaled_label_shows_in_the_slope(views, scale):
    for view in views["structured"][:5]:
        found = match(view.left, view.right, reach(view))
        a = agreement(found, view.disparity * np.float32(scale), view.nonocc_left)
        assert a.fit_a == pytest.approx(1 / scale, rel=0.2)
        assert a.epe > 1.5


def test_disparities_up_to_the_largest_expected_are_found():
    """Noise shifted by a whole number of pixels in either direction."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 160, 3)).astype(np.uint8)
    for d in (-40, -17, 17, 40):
        found = match(noise, np.roll(noise, -d, axis=1), abs(d))
        middle = np.s_[:, 50:-50]
        assert found.valid[middle].mean() > 0.95
        assert np.median(found.disparity[middle][found.valid[middle]]) == d


def test_only_the_expected_range_is_searched(views):
    """A few pixels more are: other disparities are not found, and those of the range are as good as without bounds."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 160, 3)).astype(np.uint8)
    for d, low, high in ((20, 16, 24), (-20, -24, -16), (3, 0, 5)):
        found = match(noise, np.roll(noise, -d, axis=1), high, low)
        middle = np.s_[:, 50:-50]
        assert found.valid[middle].mean() > 0.95
        assert np.median(found.disparity[middle][found.valid[middle]]) == d
    assert match(noise, np.roll(noise, 60, axis=1), 5, 0).valid[:, 70:-70].mean() < 0.1
    for view in views["crowded"][:5]:
        bounded = match(view.left, view.right, reach(view), float(view.disparity.min()))
        one, other = (
            agreement(found, view.disparity, view.nonocc_left)
            for found in (bounded, match(view.left, view.right, reach(view)))
        )
        assert one.bad_2 == pytest.approx(other.bad_2, abs=0.02)
        assert one.density == pytest.approx(other.density, abs=0.02)


def test_a_line_through_many_pixels_is_that_through_some_of_them():
    rng = np.random.default_rng(4)
    label = rng.uniform(0, 40, (256, 256)).astype(np.float32)
    found = Match((0.9 * label + 2 + rng.normal(0, 0.5, label.shape)).astype(np.float32), label >= 0)
    assert label.size > 4 * MOST_FITTED
    a = agreement(found, label, label >= 0)
    assert (a.fit_a, a.fit_b) == pytest.approx((0.9, 2), abs=0.05)


def test_a_match_has_the_size_of_the_views():
    for height, width in ((32, 32), (50, 131)):
        view = render(draw_scene(1), width, height)
        found = match(view.left, view.right, reach(view))
        assert (found.disparity.shape, found.disparity.dtype) == ((height, width), np.float32)
        assert (found.valid.shape, found.valid.dtype) == ((height, width), bool)


# --- What is refused ---


def test_views_of_two_sizes_are_refused():
    with pytest.raises(ValueError, match=r"one size, got \(32, 32, 3\) and \(32, 33, 3\)"):
        match(np.zeros((32, 32, 3), np.uint8), np.zeros((32, 33, 3), np.uint8), 4)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -1.0])
def test_no_disparity_to_search_for_is_refused(value):
    view = np.zeros((32, 32, 3), np.uint8)
    with pytest.raises(ValueError, match=f"must be finite and not negative, got {value}"):
        match(view, view, value)


@pytest.mark.parametrize("value", [math.nan, -math.inf, 5.0])
def test_an_empty_range_is_refused(value):
    view = np.zeros((32, 32, 3), np.uint8)
    with pytest.raises(ValueError, match=f"min_disparity must be finite and at most 4, got {value}"):
        match(view, view, 4, value)


# --- Figures ---


def test_figures_are_those_of_the_slow_reference():
    rng = np.random.default_rng(1)
    label = rng.uniform(-10, 90, (20, 30)).astype(np.float32)
    found = Match((label + rng.normal(0, 4, label.shape)).astype(np.float32), rng.random(label.shape) < 0.7)
    visible = rng.random(label.shape) < 0.8
    label[rng.random(label.shape) < 0.1] = np.nan  # a label may have gaps
    errors, bad, d1, matched = [], 0, 0, 0
    for y, x in zip(*np.nonzero(visible), strict=True):
        if found.valid[y, x] and not np.isnan(label[y, x]):
            matched += 1
            error = abs(float(found.disparity[y, x]) - float(label[y, x]))
            errors.append(error)
            bad += error > 2
            d1 += error > 3 and error > 0.05 * abs(float(label[y, x]))
    a = agreement(found, label, visible)
    expected = np.mean(errors), bad / matched, d1 / matched, matched / visible.sum()
    assert (a.epe, a.bad_2, a.d1, a.density) == pytest.approx(expected)
    assert 0 < a.d1 < a.bad_2 < 1


def test_nothing_visible_has_no_figures():
    nowhere, everywhere = np.zeros((4, 5), bool), np.ones((4, 5), bool)
    label = np.zeros((4, 5), np.float32)
    assert all(math.isnan(value) for value in astuple(agreement(Match(label, everywhere), label, nowhere)))
    unmatched = agreement(Match(label, nowhere), label, everywhere)
    assert unmatched.density == 0
    assert all(math.isnan(v) for v in (unmatched.epe, unmatched.bad_2, unmatched.d1, unmatched.fit_a, unmatched.fit_b))


def test_one_matched_pixel_fixes_an_offset_and_no_slope():
    one = np.zeros((4, 5), bool)
    one[2, 3] = True
    a = agreement(Match(np.full((4, 5), 7, np.float32), one), np.full((4, 5), 5, np.float32), np.ones((4, 5), bool))
    assert (a.epe, a.density, a.fit_a, a.fit_b) == (2, 1 / 20, 1, 2)


# --- The robust line ---


@pytest.mark.parametrize("slope", [-1.0, 0.0, 0.5, 1.0, 2.0])
def test_on_clean_data_it_is_the_line_of_least_squares(slope):
    rng = np.random.default_rng(2)
    x = rng.uniform(0, 15, 500)
    exact = slope * x - 3
    assert robust_line(x, exact) == pytest.approx((slope, -3), abs=1e-9)
    noisy = exact + rng.normal(0, 0.2, x.size)
    assert robust_line(x, noisy) == pytest.approx(tuple(np.polyfit(x, noisy, 1)), abs=0.02)


@pytest.mark.parametrize("outliers", ["scattered", "all above", "one value"])
def test_thirty_percent_of_outliers_do_not_move_it(outliers):
    rng = np.random.default_rng(3)
    x = rng.uniform(0, 15, 1000)
    y = 0.9 * x + 1 + rng.normal(0, 0.2, x.size)
    wrong = {"scattered": rng.uniform(-30, 30, 300), "all above": y[:300] + rng.uniform(5, 20, 300), "one value": 0.0}
    y[:300] = wrong[outliers]
    assert robust_line(x, y) == pytest.approx((0.9, 1), abs=0.06)
    assert np.polyfit(x, y, 1) != pytest.approx((0.9, 1), abs=0.2)


def test_a_constant_label_fixes_no_slope():
    y = np.array([3.0, 4, 5, 100])
    assert robust_line(np.full(4, 2.0), y) == (1.0, 2.5)
