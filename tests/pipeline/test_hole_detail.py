"""Holes of photos larger than the working size, drawn again at the photo's own resolution."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stereo_jobs.data.images import encode_disparity, encode_png
from stereo_jobs.models.resolve import resolve_recipe
from stereo_jobs.pipeline import hole_detail
from stereo_jobs.pipeline.generator import PairGenerator
from stereo_jobs.pipeline.hole_detail import Windows, any_within, enlarge_into, levels, paste, ramps
from stereo_jobs.records import Row
from stereo_jobs.spec import Recipe, parse_recipe
from stereo_jobs.toyscapes.render import render
from stereo_jobs.toyscapes.scenes import draw_scene
from tests.datasets import assert_same

some = settings(max_examples=60, deadline=None, derandomize=True, database=None)
pytestmark = pytest.mark.usefixtures("one_thread")


def random_holes(height, width, share, seed):
    return np.random.default_rng(seed).random((height, width)) < share


# --- Windows ---


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


# --- Levels ---


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
    assert all(len(level.windows.corners) <= hole_detail.MOST_WINDOWS for level in planned)


def test_no_window_is_opened_for_slivers():
    holes = np.zeros((256, 256), bool)
    holes[:, 101:105] = True
    assert all(not level.windows.corners for level in levels(holes, 0.25, (16, 16), 4))


# --- Pixels ---


def test_only_holes_are_written_and_windows_blend():
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (32, 40, 3), np.uint8)
    before, holes = picture.copy(), wide_hole(32, 40)
    written = np.zeros_like(holes)
    paste(picture[:, :32], holes[:, :32], torch.ones(1, 3, 32, 32), written[:, :32])
    np.testing.assert_array_equal(picture[~holes], before[~holes])
    assert (picture[holes] != before[holes]).any()
    np.testing.assert_array_equal(written, holes & (np.arange(40) < 32))


def test_a_level_is_enlarged_into_the_holes_of_the_photo():
    right, holes = np.zeros((30, 45, 3), np.uint8), wide_hole(30, 45)
    part = np.full((8, 12, 3), 200, np.uint8)
    enlarge_into(right, holes, part, np.s_[0:8, 0:12], 4)
    assert (right[holes] == 200).all()
    assert (right[~holes] == 0).all()


def test_a_windows_weights_fall_towards_its_edges():
    weights = ramps((16, 32))
    assert weights.max() == 1
    assert weights[8, 16] == 1
    assert 0 < weights[0, 0] < weights[0, 16] < weights[1, 16] < 1


# --- With the embedded models ---

SIZE = 64
METHOD = {"geometry": "metric", "steps": 4, "scheduler": "dpm++_karras"}


@pytest.fixture(scope="module")
def loaded(one_thread):
    recipe = resolve_recipe(Recipe(mode="image", size={"width": SIZE, "height": SIZE}))
    return PairGenerator.load(recipe, "cpu", 2)


def with_method(loaded, **method):
    values = {"mode": "image", "method": METHOD | method, "quality": {"enabled": False}, "size": loaded.recipe.size}
    recipe = parse_recipe(values).model_copy(update={"models": loaded.recipe.models})
    return PairGenerator(loaded.sd, loaded.depth, recipe, 2)


def photo(name, seed, size):
    view = render(draw_scene(seed, "test", "structured"), size, size)
    return Row(name, "", "", seed, 8.0, {"image": encode_png(view.left), "disparity": encode_disparity(view.disparity)})


@pytest.fixture(scope="module")
def pairs(loaded):
    """Two photos four times the working size, without and with their holes drawn again."""
    rows = [photo("a", 5001, 4 * SIZE), photo("b", 5002, 4 * SIZE)]
    return rows, [with_method(loaded, hole_detail=on).generate(rows) for on in (False, True)]


def test_holes_are_drawn_again_and_nothing_else(pairs):
    _, (plain, detailed) = pairs
    for before, after in zip(plain, detailed, strict=True):
        holes = before.mask_hole_right
        np.testing.assert_array_equal(after.right[~holes], before.right[~holes])
        assert (after.right[holes] != before.right[holes]).any()
        assert after.unet_evaluations > before.unet_evaluations
        np.testing.assert_array_equal(after.raw_right, before.raw_right)
        np.testing.assert_array_equal(after.disparity, before.disparity)


def test_a_photos_holes_do_not_depend_on_its_neighbours(loaded, pairs):
    rows, (_, detailed) = pairs
    generator = with_method(loaded, hole_detail=True)
    assert_same(generator.generate(rows[1:])[0], detailed[1])
    assert_same(generator.generate(rows[::-1])[1], detailed[0])
    [other] = generator.generate([dataclasses.replace(rows[0], seed=77)])
    assert not np.array_equal(other.right, detailed[0].right)


def test_a_photo_of_the_working_size_is_left_alone(loaded):
    rows = [photo("small", 5001, SIZE)]
    plain, detailed = (
        [pair] for on in (False, True) for [pair] in [with_method(loaded, hole_detail=on).generate(rows)]
    )
    assert_same(plain[0], detailed[0])
