"""Right views of the baselines and of other programs through `generate`, and what a true right view adds."""

import dataclasses
import math

import numpy as np
import pytest

from stereo_jobs.baselines import FILLS
from stereo_jobs.data.images import encode_disparity, encode_png
from stereo_jobs.models.resolve import resolve_recipe
from stereo_jobs.pipeline.generator import PairGenerator
from stereo_jobs.pipeline.scoring import true_cells
from stereo_jobs.quality.truth import score
from stereo_jobs.records import Row, RowError
from stereo_jobs.spec import Recipe
from stereo_jobs.spec_reading import parse_recipe
from stereo_jobs.toyscapes.render import render
from stereo_jobs.toyscapes.scenes import draw_scene
from tests.datasets import assert_same

SIZE = 64
PUBLISHED = {"refine_edges": False, "warp": "integer", "geometry": "relative"}
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def loaded(one_thread):
    recipe = resolve_recipe(Recipe(mode="image", size={"width": SIZE, "height": SIZE}))
    return PairGenerator.load(recipe, "cpu", 2)


@pytest.fixture(scope="module")
def view():
    return render(draw_scene(5, "test", "structured"), SIZE, SIZE)


def with_method(loaded, mode="image", batch_size=2, **method):
    """The same models with another method, without quality control."""
    recipe = parse_recipe({"mode": mode, "method": method, "quality": {"enabled": False}, "size": loaded.recipe.size})
    recipe = recipe.model_copy(update={"models": loaded.recipe.models})
    return PairGenerator(loaded.sd, loaded.depth, recipe, batch_size)


def row(view, name="a", **inputs):
    """A photo with its true disparity and true right view; `inputs` replace some, None leaves one out."""
    given = {
        "image": encode_png(view.left),
        "disparity": encode_disparity(view.disparity),
        "true_right": encode_png(view.right),
        "true_disparity": encode_disparity(view.disparity),
    } | inputs
    return Row(name, "", "", 7, 8.0, {key: data for key, data in given.items() if data is not None})


@pytest.mark.parametrize("name", FILLS)
@pytest.mark.parametrize("geometry", ["relative", "metric"])
def test_a_pixel_baseline_is_its_fill_of_the_protocols_disparity(loaded, view, name, geometry):
    [pair] = with_method(loaded, **PUBLISHED | {"right_view": name, "geometry": geometry}).generate([row(view)])
    disparity = view.disparity
    if geometry == "relative":  # min-max to 8 % of the width, truncated
        span = (disparity - disparity.min()) / (disparity.max() - disparity.min())
        disparity = np.trunc(span * np.float32(0.08 * SIZE))
    np.testing.assert_array_equal(pair.disparity, np.round(disparity))
    right, holes = FILLS[name](view.left, disparity, subpixel=False)
    np.testing.assert_array_equal(pair.right, right)
    np.testing.assert_array_equal(pair.mask_hole_right, holes)
    np.testing.assert_array_equal(pair.left, view.left)
    assert (pair.unet_evaluations, pair.left_psnr, pair.disparity_of) == (0, 100, "left")
    assert not pair.mask_border_right[~holes].any()


def test_sub_pixel_baselines_shift_by_the_disparity_itself(loaded, view):
    method = {"right_view": "stretch", "refine_edges": False, "warp": "subpixel", "geometry": "metric"}
    [pair] = with_method(loaded, **method).generate([row(view)])
    np.testing.assert_array_equal(pair.disparity, view.disparity)
    np.testing.assert_array_equal(pair.right, FILLS["stretch"](view.left, view.disparity)[0])
    assert pair.disparity_requested is None


@pytest.mark.parametrize("name", FILLS)
def test_which_disparity_is_the_nearest_is_not_guessed(loaded, view, name):
    """Known ones may all be negative (Eq. 2 with large doffs); a negative scale turns the others around."""
    doffs = np.float32(view.disparity.max() + 1)
    known = {"right_view": name, "refine_edges": False, "warp": "subpixel", "geometry": "metric"}
    [pair] = with_method(loaded, **known).generate([row(view, disparity=encode_disparity(view.disparity - doffs))])
    np.testing.assert_array_equal(pair.right, FILLS[name](view.left, view.disparity - doffs)[0])
    [pair] = with_method(loaded, **known | {"geometry": "relative"}).generate(
        [dataclasses.replace(row(view), scale_percent=-8.0)]
    )
    np.testing.assert_array_equal(pair.right, FILLS[name](view.left, pair.disparity, scale_sign=-1)[0])


def test_baselines_take_left_views_of_prompts_too(loaded):
    method = {"right_view": "stretch", "steps": 3, "shift_step": 1, "attention_step": 1, "guidance_scale": 1.0}
    [pair] = with_method(loaded, "text", **method).generate([Row("t", "a red circle", "", 3, 8.0)])
    assert pair.unet_evaluations == 3  # of the left view alone
    assert pair.disparity.max() > 2


REPAINT = PUBLISHED | {"right_view": "repaint", "steps": 12, "composite": False}


def test_repaint_draws_the_holes_and_nobody_elses(loaded, view):
    pipeline = with_method(loaded, **REPAINT)
    rows = [row(view), dataclasses.replace(row(view, "b"), seed=8)]
    together = pipeline.generate(rows)
    assert together[0].unet_evaluations == 12 + 9 * 10  # steps, and one jump of ten, nine times more
    assert_same(pipeline.generate(rows[:1])[0], together[0])
    assert not np.array_equal(together[0].right, together[1].right)  # each from its own seed
    holes = together[0].mask_hole_right
    assert together[0].right[holes].std() > 2  # no longer blank
    visible = together[0].right.astype(int) - FILLS["leave_blank"](view.left, together[0].disparity)[0]
    assert np.abs(visible[~holes]).mean() < 20  # the VAE's round trip


def test_a_composited_repaint_keeps_the_known_pixels(loaded, view):
    [pair] = with_method(loaded, **REPAINT | {"composite": True}).generate([row(view)])
    blank, holes = FILLS["leave_blank"](view.left, pair.disparity, subpixel=False)
    np.testing.assert_array_equal(pair.right[~holes], blank[~holes])
    assert pair.raw_right is not None


def test_a_given_right_view_is_labelled_and_measured(loaded, view):
    pipeline = with_method(loaded, right_view="given", geometry="metric")
    [pair] = pipeline.generate([row(view, given_right=encode_png(view.right))])
    np.testing.assert_array_equal(pair.right, view.right)
    assert true_cells(pair)["true_psnr"] == 100


@pytest.mark.parametrize(
    ("inputs", "complaint"),
    [
        ({}, "given_right: this row has none"),
        ({"given_right": encode_png(np.zeros((32, 64, 3), np.uint8))}, "given_right: 64x32 pixels, but the image has"),
        ({"given_right": b"no image"}, "given_right: not a readable image"),
        ({"true_right": encode_png(np.zeros((64, 32, 3), np.uint8))}, "true_right: 32x64 pixels, but the image has"),
        ({"true_disparity": encode_disparity(np.ones((32, 64), np.float32))}, "true_disparity: 64x32 pixels, but"),
        ({"true_disparity": encode_disparity(np.full((64, 64), np.nan, np.float32))}, "true_disparity: no pixel has"),
    ],
)
def test_what_a_row_lacks_is_named_and_the_others_go_on(loaded, view, inputs, complaint):
    pipeline = with_method(loaded, right_view="given", geometry="metric")
    good = row(view, "good", given_right=encode_png(view.right))
    bad = dataclasses.replace(row(view, "bad"), inputs=good.inputs | inputs)
    if not inputs:
        bad = row(view, "bad")
    failed, fine = pipeline.generate([bad, good])
    assert isinstance(failed, RowError)
    assert complaint in failed.error_message
    assert fine.id == "good"


def test_true_columns_are_the_scores_against_the_truth(loaded, view):
    [pair] = with_method(loaded, **PUBLISHED | {"right_view": "stretch"}).generate([row(view)])
    cells = true_cells(pair)
    wanted = vars(score(pair.right, view.right, pair.truth.holes.hole))
    assert {name: cells[f"true_{name}"] for name in wanted} == wanted
    # The hidden pixels are those of the truth, whatever the method's disparity was.
    assert not np.array_equal(pair.truth.holes.hole, pair.mask_hole_right)
    assert (pair.truth.holes.hole != view.hole_right).mean() < 0.03


def test_parts_are_scored_where_the_true_disparity_is_known(loaded, view):
    sparse = np.where(np.random.default_rng(0).random(view.disparity.shape) < 0.2, view.disparity, np.nan)
    sparse[:20] = np.nan  # no laser looks at the sky
    given = row(view, true_disparity=encode_disparity(sparse.astype(np.float32)))
    [pair] = with_method(loaded, **PUBLISHED | {"right_view": "stretch"}).generate([given])
    cells = true_cells(pair)
    known = pair.truth.holes.known
    assert 0 < known.mean() < 0.2
    assert not known[:20].any()
    wanted = vars(score(pair.right, view.right, pair.truth.holes.hole, known))
    for name, value in wanted.items():
        assert cells[f"true_{name}"] == (value if math.isfinite(value) else None), name
    assert cells["true_psnr_nonocc"] != score(pair.right, view.right, pair.truth.holes.hole).psnr_nonocc


def test_without_truth_there_are_no_true_columns(loaded, view):
    [pair] = with_method(loaded, **PUBLISHED | {"right_view": "stretch"}).generate([row(view, true_right=None)])
    assert not [name for name in true_cells(pair) if name.startswith("true_")]
    [pair] = with_method(loaded, **PUBLISHED | {"right_view": "stretch"}).generate([row(view, true_disparity=None)])
    assert pair.truth.holes is None
    assert math.isfinite(true_cells(pair)["true_psnr_occ"])  # by the pair's own holes


def test_given_goes_with_photos_only():
    with pytest.raises(ValueError, match="right_view given needs photos"):
        Recipe(mode="text", method={"right_view": "given"})
