"""Rows in, pairs out, with the embedded models: a row's result depends on the row alone, and its labels are true."""

import dataclasses
import random

import numpy as np
import pytest
import torch

from stereo_jobs.models.resolve import resolve_recipe
from stereo_jobs.pipeline.batching import batches
from stereo_jobs.pipeline.generator import PairGenerator
from stereo_jobs.records import Row, RowError
from stereo_jobs.spec import Recipe
from tests.datasets import assert_same

SIZE = 64
SHORT = {"preset": "official", "steps": 6, "shift_step": 1, "recopy_interval": 2, "attention_step": 1}
PROMPTS = (
    "a red dotted circle in the middle, sand tiled floor, blue brick wall",
    "a blue striped square on the left, green plank floor, pink tiled wall",
    "a green triangle on the right, grey tiled floor, beige wall with pictures",
    "a yellow star",
    "grey wall",
    "a red square",
)
ROWS = [Row(f"row-{i}", prompt, "blurry" if i % 2 else "", 100 + i, 12.0) for i, prompt in enumerate(PROMPTS)]


@pytest.fixture(scope="module")
def pipeline(one_thread):
    recipe = resolve_recipe(Recipe(method=SHORT, size={"width": SIZE, "height": SIZE}))
    return PairGenerator.load(recipe, "cpu", 2)


@pytest.fixture(scope="module")
def base(pipeline):
    """All rows at batch size 2."""
    return {pair.id: pair for pair in pipeline.generate(ROWS)}


def variant(pipeline, batch_size=2, **method):
    """The same models with another method or batch size."""
    recipe = pipeline.recipe.model_copy(update={"method": type(pipeline.method)(**(SHORT | method))})
    return PairGenerator(pipeline.sd, pipeline.depth, recipe, batch_size)


def test_results_come_in_the_order_of_the_rows(base):
    assert list(base) == [row.id for row in ROWS]
    pair = base["row-0"]
    assert pair.left.shape == pair.right.shape == (SIZE, SIZE, 3)
    assert pair.left.dtype == pair.right.dtype == np.uint8
    assert pair.disparity.dtype == pair.disparity_requested.dtype == np.float32
    assert pair.mask_hole_right.dtype == bool
    assert pair.disparity_of == "left"
    assert len({pair.left.tobytes() for pair in base.values()}) == len(ROWS)


def test_a_row_does_not_depend_on_its_neighbours_or_their_order(pipeline, base):
    shuffled = random.Random(0).sample(ROWS, len(ROWS))
    for result in pipeline.generate(shuffled):
        assert_same(result, base[result.id])
    for row in (ROWS[1], ROWS[4]):
        assert_same(pipeline.generate([row])[0], base[row.id])


@pytest.mark.parametrize(
    "method", [{"attention": "bi"}, {"attention": "off", "fill": "noise"}, {"shift_both": True}, {"guidance_scale": 1}]
)
def test_no_method_lets_neighbours_in(pipeline, method):
    other = variant(pipeline, **method)
    together = other.generate(ROWS[:2])
    assert_same(other.generate(ROWS[1:2])[0], together[1])
    for one, two in zip(together, reversed(other.generate(ROWS[1::-1])), strict=True):
        assert_same(one, two)


def test_the_seed_and_the_prompts_make_the_image(pipeline, base):
    row = ROWS[0]
    others = [dataclasses.replace(row, seed=7), dataclasses.replace(row, prompt="a triangle")]
    others.append(dataclasses.replace(row, negative_prompt="a red circle"))
    lefts = {base[row.id].left.tobytes(), *(pipeline.generate([other])[0].left.tobytes() for other in others)}
    assert len(lefts) == 4


def test_scales_of_one_seed_share_the_left_image(pipeline, base):
    scales = (6.0, 12.0, -12.0, 18.0, 25.0)
    rows = [dataclasses.replace(ROWS[2], id=f"row-2~{k}", scale_percent=scale) for k, scale in enumerate(scales)]
    assert [len(batch) for batch in batches(rows, 2)] == [5]
    pairs = pipeline.generate([ROWS[0], *rows, ROWS[1]])[1:-1]
    for pair in pairs:
        assert pair.left.tobytes() == base["row-2"].left.tobytes()
        assert pair.unet_evaluations == base["row-2"].unet_evaluations
    assert len({pair.right.tobytes() for pair in pairs}) == len(scales)
    assert_same(dataclasses.replace(pairs[1], id="row-2"), base["row-2"])
    assert pairs[2].disparity.max() <= 0
    assert pairs[2].disparity.min() < 0


@pytest.mark.parametrize(
    ("method", "evaluations"),
    [
        ({}, 6 * 2 + 4 * 2),
        ({"keep_left": False}, 6 * 2 + 4 * 4),
        ({"pair_guidance_scale": 1}, 6 * 2 + 4),
        ({"pair_guidance_scale": 1, "keep_left": False}, 6 * 2 + 4 * 2),
        ({"pair_guidance_scale": 3, "guidance_scale": 1}, 6 + 4 * 4),  # half of the guidance was not run, nothing kept
        ({"attention": "off"}, 6 * 2 + 4 * 2),
        ({"attention": "off", "guidance_scale": 1}, 6 + 4),
        ({"attention": "bi"}, 6 * 2 + 4 * 4),
    ],
)
def test_unet_evaluations_are_counted_per_pair(pipeline, method, evaluations):
    assert variant(pipeline, **method).generate(ROWS[:1])[0].unet_evaluations == evaluations


# --- Labels ---


def on_the_grid(pair, factor):
    """Disparity in latent pixels and the masks, one value per latent pixel; each must be constant over it."""
    fields = (pair.disparity, pair.mask_nonocc_left, pair.mask_hole_right, pair.mask_border_right)
    for field in fields:
        small = field[::factor, ::factor]
        np.testing.assert_array_equal(small.repeat(factor, 0).repeat(factor, 1), field)
    return (fields[0][::factor, ::factor] / factor, *(field[::factor, ::factor] for field in fields[1:]))


@pytest.mark.parametrize("scale", [12.0, -12.0, 30.0])
def test_masks_and_applied_disparity_agree(pipeline, scale):
    factor = pipeline.sd.latent_factor
    for pair in pipeline.generate([dataclasses.replace(row, scale_percent=scale) for row in ROWS[:2]]):
        disparity, visible, hole, border = on_the_grid(pair, factor)
        np.testing.assert_array_equal(disparity, disparity.round())
        assert np.abs(disparity).max() >= 1
        rows, columns = np.nonzero(visible)
        targets = columns - disparity[rows, columns].astype(int)
        assert targets.min() >= 0
        assert targets.max() < visible.shape[1]
        # Visible left pixels and filled right pixels are the same pairs, each once.
        landed = np.zeros_like(hole)
        landed[rows, targets] = True
        np.testing.assert_array_equal(landed, ~hole)
        assert visible.sum() == (~hole).sum()
        # What is not visible leaves the frame or lies behind what is.
        nearest = np.full(hole.shape, -np.inf)
        nearest[rows, targets] = np.abs(disparity[rows, columns])
        for y, x in zip(*np.nonzero(~visible), strict=True):
            target = x - int(disparity[y, x])
            assert not 0 <= target < visible.shape[1] or nearest[y, target] > abs(disparity[y, x])
        assert not (border & ~hole).any()
        assert hole.any()


def test_the_requested_disparity_has_the_scale_asked_for(base):
    for pair in base.values():
        assert pair.disparity_requested.min() == 0
        np.testing.assert_allclose(pair.disparity_requested.max(), 0.12 * SIZE, rtol=1e-6)
        assert np.abs(pair.disparity).max() <= 0.12 * SIZE


def test_pixels_are_found_where_the_disparity_says(pipeline):
    """With a copy after the last step the shifted pixels differ by what the VAE makes of their neighbours."""
    rows = [dataclasses.replace(row, scale_percent=30.0) for row in ROWS[:3]]
    for pair in variant(pipeline, steps=7).generate(rows):
        y, x = np.nonzero(pair.mask_nonocc_left & (pair.disparity > 0))
        target = x - pair.disparity[y, x].astype(int)
        left, right = pair.left.astype(int), pair.right.astype(int)
        assert np.abs(left[y, x] - right[y, target]).mean() < 0.7 * np.abs(left[y, x] - right[y, x]).mean()


@pytest.mark.parametrize(("method", "unit"), [({"attention": "bi"}, 1), ({"shift_both": True}, 2)])
def test_methods_that_change_the_left_say_so(pipeline, base, method, unit):
    rows = [dataclasses.replace(row, scale_percent=30.0) for row in ROWS[:2]]
    for pair in variant(pipeline, **method).generate(rows):
        assert pair.disparity_of == "first_left"
        assert pair.left.tobytes() != base[pair.id].left.tobytes()
        factor = pipeline.sd.latent_factor * unit
        np.testing.assert_array_equal(pair.disparity % factor, 0)


# --- Failures ---


def test_rows_with_an_error_pass_through(pipeline, base, monkeypatch):
    error = RowError("bad", "InvalidRow", "prompt: must not be empty")
    bad = Row("bad", "", "", 1, 8.0, error=error)
    mixed = pipeline.generate([ROWS[0], bad, ROWS[1]])
    assert mixed[1] is error
    assert_same(mixed[0], base["row-0"])
    assert_same(mixed[2], base["row-1"])
    monkeypatch.setattr(pipeline.sd, "unet", None)
    assert pipeline.generate([bad]) == [error]
    assert pipeline.generate([]) == []


@pytest.mark.parametrize(("pass_", "keep_left"), [("left", True), ("pair", True), ("pair", False)])
def test_nan_from_the_unet_fails_its_row_alone(pipeline, pass_, keep_left):
    text = pipeline.sd.encode_prompts([ROWS[1].prompt])[0]
    chosen = variant(pipeline, keep_left=keep_left)
    good = chosen.generate(ROWS[:3])
    calls = []

    def poison(unet, args, kwargs, output):
        hit = torch.isclose(kwargs["encoder_hidden_states"], text, atol=1e-4).flatten(1).all(1)
        calls.append(len(hit))
        if pass_ == "left" or len(calls) > chosen.method.steps:  # the row is in the first batch, its left view first
            output.sample[hit.nonzero()[-1:]] = torch.nan  # the last is the right view

    hook = pipeline.sd.unet.register_forward_hook(poison, with_kwargs=True)
    try:
        results = chosen.generate(ROWS[:3])
    finally:
        hook.remove()
    assert results[1] == RowError("row-1", "NotFinite", "the model returned NaN or infinite values for this row")
    for i in (0, 2):
        assert_same(results[i], good[i])
    assert_same(chosen.generate(ROWS[1:2])[0], good[1])


@pytest.mark.parametrize("part", ["vae", "depth"])
def test_nan_after_denoising_fails_its_row_alone_too(pipeline, base, monkeypatch, part):
    """A half-precision VAE overflows on finite latents: a black image must not pass for a success."""
    owner, name = (pipeline.sd, "decode") if part == "vae" else (pipeline.depth, "inverse_depth")
    real = getattr(owner, name)

    def poisoned(batch):
        out = real(batch)
        out = out.clone() if isinstance(out, torch.Tensor) else [values.clone() for values in out]  # some share a map
        out[0][..., :3, :3] = torch.nan
        return out

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, poisoned)
        results = pipeline.generate(ROWS[:2])
    assert results[0].error_type == "NotFinite"
    assert_same(results[1], base["row-1"])


# --- Batch sizes ---


@pytest.mark.parametrize("batch_size", [1, 4])
def test_other_batch_sizes_differ_by_float_noise_only(pipeline, base, batch_size):
    disparities_differ = 0
    rows = ROWS[:4]
    for row, other in zip(rows, variant(pipeline, batch_size).generate(rows), strict=True):
        pair = base[row.id]
        assert np.abs(pair.left.astype(int) - other.left.astype(int)).max() <= 1
        if (pair.disparity == other.disparity).all():
            assert np.abs(pair.right.astype(int) - other.right.astype(int)).max() <= 1
        else:
            disparities_differ += 1
    print(f"batch size {batch_size}: truncated disparities differ in {disparities_differ} of {len(rows)} rows")
    assert disparities_differ <= len(rows) / 2


@pytest.mark.parametrize(("keep_left", "expected"), [(True, {4}), (False, {4, 8})])
def test_short_batches_are_padded_to_the_same_shape(pipeline, keep_left, expected):
    """Both halves of the guidance for two rows; for both views, where the left one's attention was not kept."""
    shapes, chosen = set(), variant(pipeline, keep_left=keep_left)
    hook = pipeline.sd.unet.register_forward_hook(lambda unet, args, out: shapes.add(args[0].shape[0]))
    try:
        chosen.generate(ROWS[:1])
        alone, shapes = shapes, set()
        chosen.generate(ROWS[:3])
    finally:
        hook.remove()
    assert alone == shapes == expected


def test_an_unresolved_recipe_is_refused(pipeline):
    with pytest.raises(ValueError, match="must be resolved"):
        PairGenerator(pipeline.sd, pipeline.depth, Recipe(), 2)
