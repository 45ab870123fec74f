"""Photos, depth maps and inpainting through the whole pipeline, with the embedded models."""

import dataclasses
import io
import logging
import random

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from stereo_jobs.baselines import leave_blank
from stereo_jobs.data.images import encode_disparity, encode_png
from stereo_jobs.data.manifest import INPUTS
from stereo_jobs.models.resolve import resolve_recipe
from stereo_jobs.models.stable_diffusion import StableDiffusion
from stereo_jobs.pipeline.generator import PairGenerator
from stereo_jobs.pixels import to_image, to_tensor
from stereo_jobs.quality.truth import PSNR_CAP, psnr
from stereo_jobs.records import Camera, Row, RowError, StereoPair
from stereo_jobs.spec import Recipe, Size
from stereo_jobs.stereo.config import MethodConfig
from stereo_jobs.stereo.image_warp import ImageWarp
from stereo_jobs.stereo.rims import find_rims
from stereo_jobs.stereo.warp import border_holes, forward_warp, upsample
from stereo_jobs.toyscapes.render import render
from stereo_jobs.toyscapes.scenes import draw_scene
from tests.datasets import assert_same
from tests.models.tiny import write_checkpoint

SIZE = 64
STEPS = 5
SHORT = {"steps": STEPS, "shift_step": 1, "attention_step": 2, "scheduler": "ddim", "inversion": "direct"}
SIZES = [(64, 64), (60, 64), (48, 90), (131, 40), (64, 61), (32, 32)]
"""Heights and widths; the first two and the fifth share a working size."""
SCENES = [render(draw_scene(10 + i), width, height) for i, (height, width) in enumerate(SIZES)]
PROMPTS = ("", "a red circle", "", "a blue square", "a green triangle", "")


def photo_row(i, id_=None, **inputs):
    image = encode_png(SCENES[i].left)
    return Row(id_ or f"photo-{i}", PROMPTS[i], "", 100 + i, 12.0, {"image": image} | inputs)


ROWS = [photo_row(i) for i in range(len(SIZES))]
GIVEN = encode_disparity(SCENES[0].disparity)
HOLE = np.zeros((SIZE, SIZE), bool)
HOLE[20:41, 17:38] = True


@pytest.fixture(scope="module")
def pipeline(one_thread):
    size, quality = {"width": SIZE, "height": SIZE}, {"enabled": False}
    recipe = resolve_recipe(Recipe(mode="image", method=SHORT, size=size, quality=quality))
    return PairGenerator.load(recipe, "cpu", 2)


def variant(pipeline, mode="image", batch_size=2, sd=None, **method):
    """The same models with another mode, method or batch size."""
    recipe = pipeline.recipe.model_copy(update={"mode": mode, "method": type(pipeline.method)(**(SHORT | method))})
    return PairGenerator(sd or pipeline.sd, pipeline.depth, recipe, batch_size)


@pytest.fixture(scope="module")
def base(pipeline):
    """All photos at batch size 2."""
    return {pair.id: pair for pair in pipeline.generate(ROWS)}


@pytest.fixture
def evaluations(pipeline):
    """How many samples went through the U-Net in a call."""

    def count(call):
        seen = []
        hook = pipeline.sd.unet.register_forward_hook(lambda unet, args, out: seen.append(len(args[0])))
        try:
            call()
        finally:
            hook.remove()
        return sum(seen)

    return count


def known_of_right(pair):
    """The right view as far as its left one gives it, soft rims included, and where: outside of the holes at least."""
    left, disparity = torch.from_numpy(pair.left).permute(2, 0, 1)[None], torch.from_numpy(pair.disparity)[None]
    sign = torch.ones(1)
    warped = ImageWarp(disparity, sign, rims=find_rims(left, disparity, sign, traces=True))
    warped = warped.rows(slice(0, len(pair.left)))
    pixels = to_tensor(pair.left)
    seen, filled = to_tensor(to_image(warped.seen(pixels))), warped.warp.filled
    black, white = (to_image(warped.with_rims(torch.where(filled, seen, hole), pixels)) for hole in (0.0, 1.0))
    return black, (black == white).all(-1)


def pair_evaluations(method):
    """U-Net evaluations of the pair's pass without guidance, read off the config."""
    kept = method.keeps_left and method.inversion == "direct"
    attentive = [method.attention != "off" and i >= method.attention_step for i in range(method.steps)]
    both = [method.changes_left or (seen and not kept) for seen in attentive]
    return sum(2 if both[i] else 1 for i in range(method.first_pair_step, method.steps))


# --- Photos ---


def test_direct_inversion_leaves_the_photo_as_it_is(base):
    assert list(base) == [row.id for row in ROWS]
    for i, pair in enumerate(base.values()):
        np.testing.assert_array_equal(pair.left, SCENES[i].left)
        assert pair.left_psnr == PSNR_CAP == 100
        assert pair.disparity_of == "left"


def test_each_photo_comes_out_at_its_own_size(base):
    for (height, width), pair in zip(SIZES, base.values(), strict=True):
        assert pair.left.shape == pair.right.shape == pair.raw_right.shape == (height, width, 3)
        assert pair.left.dtype == pair.right.dtype == pair.raw_right.dtype == np.uint8
        assert pair.disparity.shape == (height, width)
        assert pair.disparity.dtype == np.float32
        masks = (pair.mask_nonocc_left, pair.mask_hole_right, pair.mask_border_right)
        assert {(mask.shape, mask.dtype.name) for mask in masks} == {((height, width), "bool")}
        requested = pair.disparity if pair.disparity_requested is None else pair.disparity_requested
        np.testing.assert_allclose([requested.min(), requested.max()], [0, 0.12 * width], rtol=1e-6)


def test_photos_of_mixed_sizes_do_not_depend_on_neighbours_or_order(pipeline, base):
    shuffled = random.Random(1).sample(ROWS, len(ROWS))
    for result in pipeline.generate(shuffled):
        assert_same(result, base[result.id])
    for i in (1, 3):
        assert_same(pipeline.generate([ROWS[i]])[0], base[ROWS[i].id])


def test_bad_rows_stand_among_good_ones(pipeline, base):
    small = Row("small", "", "", 1, 8.0, {"image": encode_png(SCENES[0].left[:9])})
    broken = Row("broken", "", "", 1, 8.0, {"image": b"no image"})
    results = pipeline.generate([small, ROWS[0], broken, ROWS[4]])
    assert results[0] == RowError("small", "InvalidRow", "image: 64x9 pixels; it needs at least 16 each way")
    assert (results[2].id, results[2].error_type) == ("broken", "InvalidRow")
    assert_same(results[1], base["photo-0"])
    assert_same(results[3], base["photo-4"])


def test_evaluations_are_counted_as_they_were(pipeline, base, evaluations):
    expected = STEPS + pair_evaluations(pipeline.method)
    assert {pair.unet_evaluations for pair in base.values()} == {expected}
    assert evaluations(lambda: pipeline.generate(ROWS[:2])) == 2 * expected
    assert evaluations(lambda: pipeline.generate(ROWS[:1])) == 2 * expected  # padded


def test_a_photo_takes_at_most_45_evaluations(pipeline, evaluations):
    recipe = pipeline.recipe.model_copy(update={"method": MethodConfig(), "size": Size(width=32, height=32)})
    default = PairGenerator(pipeline.sd, pipeline.depth, recipe, 1)
    assert (default.method.steps, default.method.inversion) == (20, "direct")
    made = []
    spent = evaluations(lambda: made.extend(default.generate([photo_row(5)])))
    assert made[0].unet_evaluations == spent == 20 + pair_evaluations(default.method)
    assert spent <= 45


def test_a_renoised_photo_is_the_left_view_and_needs_no_inversion(pipeline, base, evaluations):
    renoised = variant(pipeline, inversion="renoise")
    made = []
    spent = evaluations(lambda: made.extend(renoised.generate(ROWS[:2])))
    assert spent == 2 * pair_evaluations(renoised.method)
    for pair, row in zip(made, ROWS, strict=False):
        np.testing.assert_array_equal(pair.left, base[row.id].left)
        np.testing.assert_array_equal(pair.disparity, base[row.id].disparity)
        assert pair.left_psnr == 100
        assert pair.unet_evaluations == pair_evaluations(renoised.method)
    again = renoised.generate([dataclasses.replace(ROWS[0], seed=5)])[0]
    assert again.right.tobytes() != made[0].right.tobytes()  # its noise is the row's own


def test_scales_of_one_photo_share_its_left(pipeline, base, evaluations):
    scales = (6.0, 12.0, -12.0, 25.0)
    rows = [dataclasses.replace(ROWS[1], id=f"photo-1~{k}", scale_percent=scale) for k, scale in enumerate(scales)]
    pairs = []
    spent = evaluations(lambda: pairs.extend(pipeline.generate(rows)))
    once = pair_evaluations(pipeline.method)
    assert spent == 2 * (STEPS + 2 * once)  # inverted once, though it takes two batches of right views
    for pair in pairs:
        np.testing.assert_array_equal(pair.left, SCENES[1].left)
        assert pair.unet_evaluations == STEPS + once
    assert len({pair.right.tobytes() for pair in pairs}) == len(scales)
    assert_same(dataclasses.replace(pairs[1], id="photo-1"), base["photo-1"])
    assert pairs[2].disparity.max() <= 0
    assert pairs[2].disparity.min() < 0


def test_the_seed_of_a_photo_changes_nothing_but_the_holes(pipeline, base):
    one, other = base["photo-1"], pipeline.generate([dataclasses.replace(ROWS[1], seed=7)])[0]
    known = ~one.mask_hole_right
    assert (one.right[~known] != other.right[~known]).any()
    np.testing.assert_array_equal(one.right[known], other.right[known])
    for field in ("left", "disparity", "mask_hole_right", "mask_nonocc_left"):
        np.testing.assert_array_equal(getattr(one, field), getattr(other, field))


@pytest.mark.parametrize("inversion", ["ddim", "null_text"])
def test_other_inversions_record_how_well_they_did(pipeline, inversion):
    other = variant(pipeline, inversion=inversion, photo_guidance_scale=3.0, null_text_iterations=2, attention="off")
    rows = [ROWS[1], ROWS[4]]
    pairs = other.generate(rows)
    for i, pair in zip((1, 4), pairs, strict=True):
        assert pair.left_psnr == psnr(pair.left, SCENES[i].left)
        assert 10 < pair.left_psnr < 60
        assert pair.unet_evaluations >= STEPS + 2 * STEPS
    assert_same(other.generate(rows[1:])[0], pairs[1])


def test_null_text_leads_closer_to_the_photo_than_ddim(pipeline):
    found = {}
    for inversion in ("ddim", "null_text"):
        method = {"inversion": inversion, "photo_guidance_scale": 7.5, "null_text_iterations": 10, "attention": "off"}
        found[inversion] = variant(pipeline, batch_size=1, steps=10, **method).generate([ROWS[3]])[0]
    print({name: f"{pair.left_psnr:.1f} dB" for name, pair in found.items()})
    assert found["null_text"].left_psnr > found["ddim"].left_psnr + 5
    assert found["null_text"].unet_evaluations > found["ddim"].unet_evaluations


# --- Inpainting ---


@pytest.fixture(scope="module")
def inpainted(pipeline):
    rows = [dataclasses.replace(photo_row(0, mask=encode_png(HOLE)), prompt="a red ball")]
    mask = np.zeros(SIZES[2], bool)
    mask[5:30, 30:60] = True
    rows.append(photo_row(2, mask=encode_png(mask)))
    return rows, (HOLE, mask), variant(pipeline, "inpaint").generate(rows)


def test_inpainting_changes_the_left_inside_of_its_mask_alone(inpainted):
    _, masks, pairs = inpainted
    for i, mask, pair in zip((0, 2), masks, pairs, strict=True):
        photo = SCENES[i].left
        np.testing.assert_array_equal(pair.left[~mask], photo[~mask])
        assert (pair.left[mask] != photo[mask]).mean() > 0.5
        assert pair.left_psnr == PSNR_CAP, "what was to be redrawn does not count"
        assert pair.disparity_of == "left"
        right, known = known_of_right(pair)
        np.testing.assert_array_equal(pair.right[known], right[known])


def test_what_stood_inside_of_the_mask_is_not_known(pipeline, inpainted):
    rows, _, pairs = inpainted
    photo = SCENES[0].left.copy()
    photo[HOLE] = (255, 0, 255)
    other = dataclasses.replace(rows[0], inputs=rows[0].inputs | {"image": encode_png(photo)})
    made = variant(pipeline, "inpaint").generate([other])[0]
    assert_same(dataclasses.replace(made, left_psnr=pairs[0].left_psnr), pairs[0])


def test_inpainting_counts_its_evaluations_too(pipeline, inpainted, evaluations):
    rows, _, pairs = inpainted
    one = variant(pipeline, "inpaint", batch_size=1)
    assert evaluations(lambda: one.generate(rows[:1])) == pairs[0].unet_evaluations
    # Inverted to be filled, filled with guidance, inverted again.
    assert pairs[0].unet_evaluations == STEPS + 2 * STEPS + STEPS + pair_evaluations(one.method)


def test_a_mask_without_a_prompt_needs_no_second_half(pipeline, evaluations):
    """Filled with guidance 7.5 where a prompt says anything; each row as if it were alone."""
    masked = photo_row(0, mask=encode_png(HOLE))
    one = variant(pipeline, "inpaint", batch_size=1)
    rows = [dataclasses.replace(masked, id="said", prompt="a red ball"), masked]
    rows.append(dataclasses.replace(masked, id="same", prompt="a red ball", negative_prompt="a red ball"))
    pairs = one.generate(rows)
    after = STEPS + pair_evaluations(one.method)
    assert [pair.unet_evaluations for pair in pairs] == [n * STEPS + after for n in (1 + 2, 1 + 1, 1 + 1)]
    assert evaluations(lambda: one.generate(rows[1:2])) == pairs[1].unet_evaluations
    for row, pair in zip(rows, pairs, strict=True):
        assert_same(one.generate([row])[0], pair)


# --- Known disparity and depth ---


def metric(pipeline, **method):
    return variant(pipeline, geometry="metric", **method)


@pytest.mark.parametrize("warp", ["pixel", "subpixel", "integer"])
def test_a_given_disparity_is_the_label(pipeline, warp):
    scene = SCENES[0]
    pair = metric(pipeline, warp=warp).generate([photo_row(0, disparity=GIVEN)])[0]
    np.testing.assert_array_equal(pair.disparity, scene.disparity)
    assert pair.disparity_requested is None
    assert (pair.mask_hole_right == scene.hole_right).mean() > 0.95
    assert (pair.mask_nonocc_left == scene.nonocc_left).mean() > 0.95
    both = ~pair.mask_hole_right & ~scene.hole_right
    assert psnr(pair.right[both], scene.right[both]) > 28  # the true right view


def test_refined_edges_are_told_from_what_was_asked_for(pipeline):
    blurred = np.asarray(Image.fromarray(SCENES[0].disparity).resize((16, 16)).resize((SIZE, SIZE)), np.float32)
    row = photo_row(0, depth=encode_disparity(blurred))
    sharp, plain = (variant(pipeline, refine_edges=on).generate([row])[0] for on in (True, False))
    assert plain.disparity_requested is None
    np.testing.assert_array_equal(sharp.disparity_requested, plain.disparity)
    # Sharp edges may reach less far than blurred ones; relative disparity then has another unit and zero.
    around = np.ones((11, 11))
    flat = cv2.dilate(blurred, around) - cv2.erode(blurred, around) < 0.1 * np.ptp(blurred)
    assert flat.mean() > 0.3
    same_unit = np.polyval(np.polyfit(plain.disparity[flat], sharp.disparity[flat], 1), plain.disparity)
    changed = np.abs(sharp.disparity - same_unit) > 1e-3
    assert 0 < changed.mean() < 0.5  # edges alone
    assert not changed[flat].any()
    assert np.abs(sharp.disparity[changed][:, None] - same_unit.ravel()).min(1).max() < 1e-3  # no new depth


def test_metric_depth_and_a_camera_give_eq_2(pipeline):
    depth = np.tile(np.linspace(4, 9, SIZE, dtype=np.float32)[:, None], (1, SIZE))
    row = dataclasses.replace(
        photo_row(0, depth=encode_disparity(depth)), depth_kind="metric", camera=Camera(80.0, 0.5, 1.25)
    )
    pair = metric(pipeline).generate([row])[0]
    np.testing.assert_allclose(pair.disparity, 80 * 0.5 / depth - 1.25, rtol=1e-5, atol=1e-5)


def test_metric_geometry_without_any_measure_fails_the_row(pipeline):
    error = metric(pipeline).generate([photo_row(0)])[0]
    assert error.error_type == "InvalidRow"
    assert error.error_message.startswith("disparity: geometry metric needs a disparity in pixels, or a metric depth")


def test_a_photo_of_another_size_is_shifted_by_its_own_pixels(pipeline):
    i = 2
    given = np.full(SIZES[i], 3.0, np.float32)
    row = photo_row(i, disparity=encode_disparity(given))
    for method in ({}, {"warp": "subpixel", "composite": False}):
        pair = metric(pipeline, **method).generate([row])[0]
        np.testing.assert_allclose(pair.disparity, given, rtol=1e-6)
        assert not pair.mask_hole_right[:, :-6].any()
        assert pair.mask_hole_right[:, -2:].all()


@pytest.mark.parametrize("value", [0.0, 7.5])
@pytest.mark.parametrize("column", ["disparity", "depth"])
@pytest.mark.parametrize("warp", ["pixel", "integer"])
def test_a_map_without_depth_shifts_nothing(pipeline, value, column, warp):
    flat = encode_disparity(np.full((SIZE, SIZE), value, np.float32))
    method = {"warp": warp, "composite": warp == "pixel"}
    pair = variant(pipeline, batch_size=1, **method).generate([photo_row(0, **{column: flat})])[0]
    assert not pair.disparity.any()
    assert not pair.mask_hole_right.any()
    assert pair.mask_nonocc_left.all()
    if pair.raw_right is not None:
        np.testing.assert_array_equal(pair.right, pair.left)


def test_gaps_of_a_map_are_filled_from_their_left(pipeline):
    gaps, filled = (SCENES[0].disparity.copy() for _ in range(2))
    gaps[10:20, 30:35] = np.nan
    filled[10:20, 30:35] = filled[10:20, 29:30]
    pair = metric(pipeline).generate([photo_row(0, disparity=encode_disparity(gaps))])[0]
    np.testing.assert_array_equal(pair.disparity, filled)


# --- Labels of every warp ---


@pytest.mark.parametrize("composite", [True, False])
@pytest.mark.parametrize("warp", ["integer", "subpixel", "pixel"])
def test_labels_and_masks_of_every_warp_agree(pipeline, warp, composite):
    rows = [dataclasses.replace(ROWS[0], scale_percent=scale, id=f"s{scale:g}") for scale in (16.0, -16.0)]
    factor = pipeline.sd.latent_factor
    for row, pair in zip(rows, variant(pipeline, warp=warp, composite=composite).generate(rows), strict=True):
        assert (pair.raw_right is not None) == composite
        unit = 1 if composite or warp == "pixel" else factor
        # Applied disparity and masks in the unit of the warp: pixels of the picture or of the latent.
        fields = (pair.disparity / np.float32(unit), pair.mask_nonocc_left, pair.mask_hole_right)
        small = [torch.from_numpy(field[::unit, ::unit].copy())[None] for field in fields]
        for field, grid in zip(fields, small, strict=True):
            np.testing.assert_array_equal(upsample(grid, unit)[0], field)
        shift, visible, hole = small
        assert shift.abs().max() >= 1
        assert hole.any()
        if unit == factor and warp == "integer":
            assert torch.equal(shift, shift.round())
        sign = torch.tensor([row.scale_percent])
        again = forward_warp(shift, sign, subpixel=unit == 1 or warp == "subpixel")
        assert torch.equal(again.visible, visible)
        assert torch.equal(~again.filled, hole)
        np.testing.assert_array_equal(pair.mask_border_right, upsample(border_holes(~hole), unit)[0])
        # Visible left pixels land on filled right ones: whole ones each on its own, others between two.
        y, x = np.nonzero(visible[0].numpy())
        landed = np.floor(x - shift[0].numpy()[y, x] + 0.5).astype(int)
        assert not hole[0].numpy()[y, landed].any()
        pairs = set(zip(y, landed, strict=True))
        if unit == factor and warp == "integer":
            assert len(pairs) == len(y) == (~hole).sum()
        closed = set(zip(*np.nonzero(~hole[0].numpy()), strict=True)) - pairs
        assert len(closed) < 0.1 * hole.numel()  # columns that a receding surface leaves open
        assert np.abs(pair.disparity).max() <= 0.16 * SIZE + 1e-5


@pytest.mark.parametrize("rims", [True, False])
@pytest.mark.parametrize("warp", ["pixel", "subpixel", "integer"])
def test_outside_of_the_holes_the_composite_is_the_left_view_warped(pipeline, base, warp, rims):
    method = {"warp": warp, "rims": rims}
    pairs = (
        base.values() if method == {"warp": "pixel", "rims": True} else variant(pipeline, **method).generate(ROWS[:3])
    )
    for pair in pairs:
        blank, holes = leave_blank(pair.left, pair.disparity)
        np.testing.assert_array_equal(pair.mask_hole_right, holes)
        right, known = known_of_right(pair) if rims else (blank, ~holes)
        np.testing.assert_array_equal(pair.right[known], right[known])
        assert not (~known & ~holes).any()
        assert (pair.raw_right != pair.right).any()
        if holes.any():
            assert (pair.right[holes] != blank[holes]).any()  # not left black


@pytest.mark.parametrize(
    "method", [{"attention": "bi"}, {"attention": "bi", "composite": False}, {"shift_both": True, "composite": False}]
)
@pytest.mark.parametrize("warp", ["pixel", "subpixel"])
def test_methods_that_change_the_left_say_so(pipeline, base, method, warp):
    pair = variant(pipeline, warp=warp, **method).generate([ROWS[0]])[0]
    assert pair.disparity_of == "first_left"
    assert pair.left.tobytes() != SCENES[0].left.tobytes()
    assert pair.left_psnr == psnr(pair.left, SCENES[0].left) < 100
    if warp == "pixel":  # the label tells the whole way, whatever share of it each view went
        np.testing.assert_allclose(pair.disparity, base["photo-0"].disparity, rtol=1e-6)
    assert pair.unet_evaluations == STEPS + 2 * (STEPS - 2)


# --- Failures ---


@pytest.mark.parametrize("mode", ["image", "inpaint"])
@pytest.mark.parametrize("part", ["encode", "decode", "inverse_depth"])
def test_nan_fails_its_row_alone(pipeline, monkeypatch, mode, part):
    """A black hole must not pass for a filled one."""
    rows = [photo_row(0, "bad"), photo_row(4)]
    masks = [encode_png(HOLE), encode_png(HOLE[:, : SIZES[4][1]])]
    if mode == "inpaint":
        rows = [dataclasses.replace(row, inputs=row.inputs | {"mask": m}) for row, m in zip(rows, masks, strict=True)]
    chosen = variant(pipeline, mode)
    good = chosen.generate(rows)[1]
    owner = pipeline.depth if part == "inverse_depth" else pipeline.sd
    real, calls = getattr(owner, part), []

    def poisoned(batch):
        out = real(batch)
        if not calls:  # the first of several decodes is the inpainting
            out[0][..., :9, :9] = torch.nan
        calls.append(part)
        return out

    with monkeypatch.context() as patch:
        patch.setattr(owner, part, poisoned)
        results = chosen.generate(rows)
    assert results[0] == RowError("bad", "NotFinite", "the model returned NaN or infinite values for this row")
    assert_same(results[1], good)


@pytest.mark.parametrize("inversion", ["direct", "renoise", "ddim", "null_text"])
def test_nan_from_the_unet_fails_its_row_alone(pipeline, inversion):
    method = {"inversion": inversion, "photo_guidance_scale": 3.0, "null_text_iterations": 1, "attention": "off"}
    chosen = variant(pipeline, **method)
    rows = [ROWS[1], ROWS[4]]
    text = pipeline.sd.encode_prompts([rows[0].prompt])[0]
    good = chosen.generate(rows)[1]

    def poison(unet, args, kwargs, output):
        output.sample[torch.isclose(kwargs["encoder_hidden_states"], text, atol=1e-4).flatten(1).all(1)] = torch.nan

    hook = pipeline.sd.unet.register_forward_hook(poison, with_kwargs=True)
    try:
        results = chosen.generate(rows)
    finally:
        hook.remove()
    assert results[0] == RowError("photo-1", "NotFinite", "the model returned NaN or infinite values for this row")
    assert_same(results[1], good)


def test_unknown_words_are_reported_once(pipeline, caplog, monkeypatch):
    monkeypatch.setitem(pipeline.sd.tokenizer.init_kwargs, "closed_vocabulary", True)
    fresh = variant(pipeline, batch_size=1)
    bad = {"image": b"no image"}
    rows = [
        Row("a", "a red zebra", "", 1, 8.0, ROWS[5].inputs),
        Row("b", "a zebra on a Quokka", "", 1, 8.0, ROWS[5].inputs),
        Row("c", "an emu", "", 1, 8.0, bad),
    ]
    with caplog.at_level(logging.WARNING, "stereo_jobs.pipeline.generator"):
        fresh.generate(rows)
        fresh.generate(rows[:1])
    assert [record.getMessage() for record in caplog.records] == [
        "row a: the model does not know the word 'zebra' and draws nothing for it",
        "row b: the model does not know the word 'Quokka' and draws nothing for it",
    ]


def test_the_first_prompt_that_is_cut_is_reported(pipeline, caplog):
    fresh = variant(pipeline, batch_size=1)
    long = " ".join(["red circle"] * 40)
    rows = [Row(name, prompt, "", 1, 8.0, ROWS[5].inputs) for name, prompt in (("a", "red"), ("b", long), ("c", long))]
    with caplog.at_level(logging.WARNING, "stereo_jobs.pipeline.generator"):
        fresh.generate(rows)
    cut = [record.getMessage() for record in caplog.records if "tokens" in record.getMessage()]
    assert len(cut) == 1
    assert cut[0].startswith(f"row b: the model reads {fresh.sd.prompt_tokens} tokens and ignores the rest")


def test_cut_prompts_are_marked_and_the_first_attention_weights_are_reported(pipeline, caplog):
    fresh = variant(pipeline, batch_size=1)
    prompts = {"a": ("red", ""), "b": ("(red:1.4)", ""), "c": ("red", "red circle " * 40), "d": ("(red:1.2) " * 40, "")}
    rows = [Row(name, *texts, 1, 8.0, ROWS[5].inputs) for name, texts in prompts.items()]
    with caplog.at_level(logging.WARNING, "stereo_jobs.pipeline.generator"):
        made = fresh.generate(rows)
    assert [pair.prompt_cut for pair in made] == [False, False, True, True]
    told = [record.getMessage() for record in caplog.records if "weights" in record.getMessage()]
    assert len(told) == 1
    assert told[0].startswith("row b: attention weights such as (red:1.4) are not honoured")


# --- Depth mode ---


@pytest.fixture(scope="module")
def depth_sd(tmp_path_factory):
    """A depth-conditioned checkpoint of random weights: nothing to look at, but every tensor has its place."""
    folder = write_checkpoint(tmp_path_factory.mktemp("sd_depth") / "sd2_depth", "sd2_depth")
    return StableDiffusion(folder, torch.float32, "cpu")


def depth_row(i=0, **inputs):
    return Row(f"depth-{i}", "a red ball", "", 7 + i, 16.0, inputs or {"depth": GIVEN})


def depth_pipeline(pipeline, sd, **method):
    return variant(pipeline, "depth", sd=sd, attention="off", **method)


@pytest.fixture
def conditions(depth_sd):
    """The fifth channels that the U-Net saw in a call."""

    def record(call):
        seen = []
        hook = depth_sd.unet.register_forward_hook(lambda unet, args, out: seen.append(args[0][:, 4:].clone()))
        try:
            call()
        finally:
            hook.remove()
        return seen

    return record


def test_depth_mode_sees_the_depth_map(pipeline, depth_sd, conditions):
    chosen = depth_pipeline(pipeline, depth_sd)
    assert chosen.inputs == INPUTS["depth"]
    made = []
    seen = conditions(lambda: made.extend(chosen.generate([depth_row()])))
    pair = made[0]
    assert pair.left.shape == pair.right.shape == (SIZE, SIZE, 3)
    assert pair.left_psnr is None
    assert pair.disparity_of == "left"
    for channel in seen:
        assert channel.shape[1:] == (1, 8, 8)
        assert channel.min() == -1
        assert 0.99 < channel.max() <= 1  # the right view's is warped by fractions
    assert seen[0].max() == 1
    # The nearest is 1, the farthest -1, as in the map.
    cells = SCENES[0].disparity.reshape(8, 8, 8, 8).mean((1, 3))
    assert np.corrcoef(seen[0][0, 0].ravel(), cells.ravel())[0, 1] > 0.95
    requested = pair.disparity if pair.disparity_requested is None else pair.disparity_requested
    disparity = SCENES[0].disparity
    expected = (disparity - disparity.min()) / np.ptp(disparity) * 0.16 * SIZE
    np.testing.assert_allclose(requested, expected, rtol=1e-4, atol=1e-4)


def test_the_right_view_s_condition_is_warped_with_it(pipeline, depth_sd, conditions):
    warped = conditions(lambda: depth_pipeline(pipeline, depth_sd).generate([depth_row()]))
    same = conditions(lambda: depth_pipeline(pipeline, depth_sd, warp_condition=False).generate([depth_row()]))
    assert torch.equal(warped[0], same[0])  # the left view
    # The left view is guided, so that its batch is twice as large.
    assert torch.equal(same[-1].repeat(2, 1, 1, 1), same[0])
    assert not torch.equal(warped[-1].repeat(2, 1, 1, 1), warped[0])
    assert warped[-1].abs().max() <= 1


def test_depth_mode_estimates_from_an_image_where_there_is_no_map(pipeline, depth_sd, conditions):
    chosen = depth_pipeline(pipeline, depth_sd)
    guide, other = ({"image": encode_png(SCENES[i].left)} for i in (0, 2))
    with_map = chosen.generate([depth_row()])[0]
    results = []
    seen = conditions(lambda: results.extend(chosen.generate([depth_row(**guide), depth_row(1, **other)])))
    assert all(isinstance(result, StereoPair) for result in results)
    assert results[0].left.tobytes() != with_map.left.tobytes()
    assert not torch.equal(seen[0][0], seen[0][1])
    alone = chosen.generate([depth_row(1, **other)])[0]
    assert_same(alone, results[1])
    # A map beside another row's image: each gets its own.
    mixed = chosen.generate([depth_row(1, **other), depth_row()])
    assert_same(mixed[0], results[1])
    assert_same(mixed[1], with_map)


def test_depth_mode_in_two_passes_leaves_the_finished_left_as_it_is(pipeline, depth_sd):
    once, twice = (depth_pipeline(pipeline, depth_sd, two_pass=two).generate([depth_row()])[0] for two in (False, True))
    np.testing.assert_array_equal(once.left, twice.left)
    np.testing.assert_array_equal(once.disparity, twice.disparity)
    assert twice.left_psnr is None
    # The first left view is guided, its inversion and the pair are not.
    pair = once.unet_evaluations - 2 * STEPS
    assert pair == STEPS - 2
    assert twice.unet_evaluations == 2 * STEPS + STEPS + pair


GUIDED = {"guidance_scale": 9.0, "photo_guidance_scale": 7.5, "pair_guidance_scale": None}


@pytest.mark.parametrize(
    ("mode", "method", "expected"),
    [
        ("text", {}, (9.0, 9.0, 1.0)),
        ("depth", {}, (9.0, 9.0, 1.0)),
        ("text", {"pair_guidance_scale": 1.5}, (9.0, 1.5, 1.0)),
        ("depth", {"pair_guidance_scale": 1.0}, (9.0, 1.0, 1.0)),
        ("image", {"inversion": "renoise", "pair_guidance_scale": 1.0}, (1.0, 7.5, 1.0)),
        # A finished left view is inverted without guidance, or by null-text with that of photos.
        ("depth", {"two_pass": True, "inversion": "direct"}, (9.0, 1.0, 1.0)),
        ("depth", {"two_pass": True, "inversion": "ddim"}, (9.0, 1.0, 1.0)),
        ("depth", {"two_pass": True, "inversion": "null_text"}, (9.0, 7.5, 1.0)),
        ("depth", {"two_pass": True, "right_view": "repaint"}, (9.0, 9.0, 1.0)),
        # A photo is not denoised from noise.
        ("image", {"inversion": "direct"}, (1.0, 7.5, 1.0)),
        ("image", {"inversion": "null_text"}, (1.0, 7.5, 1.0)),
        ("inpaint", {"inversion": "direct"}, (1.0, 7.5, 9.0)),
    ],
)
def test_the_pair_takes_the_guidance_of_its_inversion(pipeline, mode, method, expected):
    chosen = variant(pipeline, mode=mode, **GUIDED | method)
    assert chosen._guidance(Row("r", "a prompt", "", 0, 8.0)) == expected
    optimised = method.get("inversion") == "null_text"
    assert chosen._guidance(Row("r", "", "", 0, 8.0)) == (1.0, 7.5 if optimised else 1.0, 1.0)


def test_nan_in_the_first_of_two_passes_fails_the_row_alone(pipeline, depth_sd, monkeypatch):
    chosen = depth_pipeline(pipeline, depth_sd, two_pass=True)
    rows = [depth_row(), depth_row(1)]
    good = chosen.generate(rows)[1]
    real, calls = depth_sd.decode, []

    def poisoned(latents):
        out = real(latents)
        if not calls:
            out[0][..., :3, :3] = torch.nan
        calls.append(1)
        return out

    with monkeypatch.context() as patch:
        patch.setattr(depth_sd, "decode", poisoned)
        results = chosen.generate(rows)
    assert results[0].error_type == "NotFinite"
    assert_same(results[1], good)


def test_depth_mode_takes_metric_depth_of_another_size(pipeline, depth_sd):
    depth = np.tile(np.linspace(4, 9, 40, dtype=np.float32)[:, None], (1, 128))
    buffer = io.BytesIO()
    np.save(buffer, depth)
    row = dataclasses.replace(depth_row(depth=buffer.getvalue()), depth_kind="metric", camera=Camera(80.0, 0.5))
    pair = depth_pipeline(pipeline, depth_sd, geometry="metric", refine_edges=False).generate([row])[0]
    # Twice as wide as the picture: half as many pixels.
    np.testing.assert_allclose(pair.disparity[[0, -1], 0], [80 * 0.5 / 4 / 2, 80 * 0.5 / 9 / 2], rtol=0.02)
    assert pair.disparity.shape == (SIZE, SIZE)
