"""Holes of photos larger than the working size, drawn again at the photo's own resolution."""

import dataclasses

import numpy as np
import pytest
import torch

from stereo_jobs.data.images import encode_disparity, encode_png
from stereo_jobs.models.resolve import resolve_recipe
from stereo_jobs.pipeline import hole_detail
from stereo_jobs.pipeline.generator import PairGenerator
from stereo_jobs.pipeline.hole_detail import enlarge_into, in_front, paste, without_front
from stereo_jobs.records import Row
from stereo_jobs.spec import Recipe
from stereo_jobs.spec_reading import parse_recipe
from stereo_jobs.stereo.image_warp import ImageWarp
from stereo_jobs.toyscapes.render import render
from stereo_jobs.toyscapes.scenes import draw_scene
from tests.datasets import assert_same

pytestmark = pytest.mark.usefixtures("one_thread")


def wide_hole(height, width):
    holes = np.zeros((height, width), bool)
    holes[height // 4 : height // 2, width // 3 : width // 2] = True
    return holes


def test_only_holes_are_written_and_windows_blend():
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (32, 40, 3), np.uint8)
    before, holes = picture.copy(), wide_hole(32, 40)
    written = np.zeros_like(holes)
    front = np.zeros_like(holes)
    paste(picture[:, :32], holes[:, :32], front[:, :32], torch.ones(1, 3, 32, 32), written[:, :32])
    np.testing.assert_array_equal(picture[~holes], before[~holes])
    assert (picture[holes] != before[holes]).any()
    np.testing.assert_array_equal(written, holes & (np.arange(40) < 32))


def test_a_level_is_enlarged_into_the_holes_of_the_photo():
    right, holes = np.zeros((30, 45, 3), np.uint8), wide_hole(30, 45)
    part = np.full((8, 12, 3), 200, np.uint8)
    enlarge_into(right, holes, part, np.s_[0:8, 0:12], 4)
    assert (right[holes] == 200).all()
    assert (right[~holes] == 0).all()


def test_what_is_in_front_lies_opposite_to_the_background():
    disparity = torch.zeros(1, 4, 40)
    disparity[..., 15:25] = 6.0  # moves to 9 to 18; the hole behind it is 19 to 24, and the frame's 40 has none
    warp = ImageWarp(disparity, torch.ones(1))
    np.testing.assert_array_equal(np.flatnonzero(~warp.masks.filled[0, 0]), np.arange(19, 25))
    np.testing.assert_array_equal(np.flatnonzero(in_front(warp, 5)[0]), np.arange(14, 19))
    warp = ImageWarp(-disparity, -torch.ones(1))  # the view from the left
    np.testing.assert_array_equal(np.flatnonzero(~warp.masks.filled[0, 0]), np.arange(15, 21))
    np.testing.assert_array_equal(np.flatnonzero(in_front(warp, 5)[0]), np.arange(21, 26))


def test_what_is_in_front_is_replaced_by_the_background():
    image = np.full((24, 48, 3), 90, np.uint8)
    front, holes = np.zeros((2, 24, 48), bool)
    image[:, :20], front[:, 12:20], holes[:, 20:32] = 250, True, True
    image[:, 20:24] = 170  # its outline, enlarged
    hidden = without_front(image, holes, front)
    assert np.abs(hidden[:, 20:24].astype(int) - 90).mean() < 25  # 80 before
    np.testing.assert_array_equal(hidden[~(front | holes)], image[~(front | holes)])
    np.testing.assert_array_equal(without_front(image, holes, np.zeros_like(front)), image)


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
    other = dataclasses.replace(rows[0], seed=77)
    again, reseeded = with_method(loaded, hole_detail=True).generate([rows[1], other])
    assert_same(again, detailed[1])
    assert not np.array_equal(reseeded.right, detailed[0].right)


def test_a_level_whose_detail_the_vae_loses_is_left_alone(loaded, pairs, monkeypatch):
    rows, (plain, _) = pairs
    monkeypatch.setattr(hole_detail, "LEAST_RETURNED", 2.0)
    assert_same(with_method(loaded, hole_detail=True).generate(rows)[0], plain[0])


def test_a_photo_of_the_working_size_is_left_alone(loaded):
    rows = [photo("small", 5001, SIZE)]
    plain, detailed = (
        [pair] for on in (False, True) for [pair] in [with_method(loaded, hole_detail=on).generate(rows)]
    )
    assert_same(plain[0], detailed[0])
