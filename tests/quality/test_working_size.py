"""Large pairs are scored at a smaller size, small ones as they are."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from stereo_jobs.quality.appearance import hole_sharpness, seam, speckle
from stereo_jobs.quality.measure import measure
from stereo_jobs.quality.truth import score
from stereo_jobs.quality.working_size import MOST_COLUMNS, MOST_COMPARED, MOST_PIXELS, WorkingSize
from stereo_jobs.toyscapes.render import render
from stereo_jobs.toyscapes.scenes import draw_scene

often = settings(max_examples=200, deadline=None, derandomize=True, database=None)


@often
@given(st.integers(16, 100_000), st.integers(16, 100_000))
@example(1024, 1024)
@example(16, 3_000_000)
@example(3_000_000, 16)
@example(256, 256)
def test_both_sizes_are_bounded_and_keep_the_shape(height, width):
    for size, most in (
        (WorkingSize.of(height, width), MOST_PIXELS),
        (WorkingSize.compared(height, width), MOST_COMPARED),
    ):
        assert size.height * size.width <= most
        assert 1 <= size.width <= MOST_COLUMNS
        small = height * width <= most and width <= MOST_COLUMNS
        assert (size == WorkingSize(height, width, 1.0)) == small
        if min(size.height, size.width) > 50:
            assert size.height / height == pytest.approx(size.zoom, rel=0.03)


def test_what_is_small_enough_is_not_touched():
    size = WorkingSize.of(1024, 1024)
    image, values = np.zeros((1024, 1024, 3), np.uint8), np.zeros((1024, 1024), np.float32)
    mask = values > 0
    assert size.image(image) is image
    assert size.values(values) is values
    assert size.disparity(values) is values
    assert size.mask(mask) is mask


def test_disparities_are_in_pixels_of_the_working_size_and_take_no_value_between_two_surfaces():
    disparity = np.full((2000, 3000), 10, np.float32)
    disparity[:, 1111:] = 90
    size = WorkingSize.of(2000, 3000)
    assert size.zoom == pytest.approx(0.5, rel=0.01)
    assert set(np.unique(size.disparity(disparity))) == {np.float32(v) * np.float32(size.zoom) for v in (10, 90)}


def test_views_are_compared_at_a_bounded_size_and_holes_are_looked_at_as_they_are():
    scene = render(draw_scene(1, "test"), 480, 360)
    parts = [scene.left, scene.right, scene.disparity, scene.nonocc_left, scene.hole_right]
    size = WorkingSize.compared(360, 480)
    assert (size.height, size.width) == (221, 295)
    ways = (size.image, size.image, size.disparity, size.mask, size.mask)
    large = vars(measure(*parts, raw_right=scene.left, depth=scene.disparity))
    copies = [way(part) for way, part in zip(ways, parts, strict=True)]
    small = vars(measure(*copies, raw_right=copies[0], depth=size.values(scene.disparity)))
    own = {"siou", "vertical_px", "hole_share", "hole_sharpness", "seam", "ghost", "speckle"}
    assert {name: large[name] for name in large.keys() - own} == {name: small[name] for name in small.keys() - own}
    holes = scene.right, scene.hole_right
    assert (large["seam"], large["hole_sharpness"], large["speckle"]) == (
        seam(*holes),
        hole_sharpness(*holes),
        speckle(*holes),
    )


@pytest.mark.slow
def test_a_large_pair_has_about_the_metrics_of_the_same_pair_at_the_working_size():
    scene = render(draw_scene(1, "test", "structured"), 1024, 1024)
    parts = (scene.left, scene.right, scene.disparity, scene.nonocc_left, scene.hole_right)
    small = measure(*parts)
    large = measure(
        *(np.repeat(np.repeat(part, 3, 0), 3, 1) * (3 if part.dtype == np.float32 else 1) for part in parts)
    )
    assert large.bad_2 == pytest.approx(small.bad_2, abs=0.03)
    assert large.epe == pytest.approx(small.epe, rel=0.5, abs=0.3)
    assert large.identity == pytest.approx(1, abs=0.02)
    assert large.hole_share == pytest.approx(small.hole_share, abs=0.005)


def test_scores_against_a_large_true_view_are_those_at_the_working_size():
    rng = np.random.default_rng(0)
    right = rng.integers(0, 256, (40, 2 * MOST_COLUMNS, 3), np.uint8)
    truth = np.roll(right, 3, 1)
    hole = np.zeros(right.shape[:2], bool)
    hole[:, :500] = True
    strip = score(right, truth, hole)
    assert np.isnan(strip.lpips)
    assert np.isfinite([strip.psnr, strip.ssim, strip.ssim_occ]).all()
    right, truth, hole = (np.repeat(part, 2, 0) for part in (right, truth, hole))
    size = WorkingSize.of(*hole.shape)
    assert score(right, truth, hole) == score(size.image(right), size.image(truth), size.mask(hole))
