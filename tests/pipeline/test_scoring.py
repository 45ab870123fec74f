"""One pair, one set of numbers: the same for a job's columns and for a notebook."""

import dataclasses

import numpy as np
import pytest

from stereo_jobs.data.images import encode_disparity, encode_png
from stereo_jobs.models.resolve import resolve_recipe
from stereo_jobs.notebook import StereoImage, StereoPipeline
from stereo_jobs.pipeline.generator import PairGenerator
from stereo_jobs.pipeline.scoring import measure_pair, quality_cells
from stereo_jobs.quality.config import QualityConfig
from stereo_jobs.records import DATASET_COLUMNS, Mean, QualitySummary, Row, StereoPair, Truth
from stereo_jobs.spec import Recipe
from stereo_jobs.stereo.disparity import resize
from stereo_jobs.toyscapes.render import render
from stereo_jobs.toyscapes.scenes import draw_scene
from tests.models.tiny import write_clip

SHORT = {"preset": "official", "steps": 4, "shift_step": 1, "recopy_interval": 2, "attention_step": 1}


@pytest.fixture(scope="module")
def pair():
    view = render(draw_scene(1))
    return StereoPair(
        id="one",
        left=view.left,
        right=view.right,
        disparity=view.disparity,
        disparity_requested=None,
        disparity_of="left",
        mask_nonocc_left=view.nonocc_left,
        mask_hole_right=view.hole_right,
        mask_border_right=view.border_right,
        unet_evaluations=1,
    )


def test_notebook_and_job_measure_alike(pair):
    cells = quality_cells(pair, QualityConfig())
    assert cells.keys() <= set(DATASET_COLUMNS.names)
    assert {"accepted", "reject_reason", "qc_epe"} <= cells.keys()
    assert {f"qc_{name}": value for name, value in vars(StereoImage(pair).quality).items()}.items() <= cells.items()
    assert cells["accepted"] is True


def test_a_true_right_view_is_passed_on(pair):
    assert measure_pair(pair).siou < 1 == measure_pair(dataclasses.replace(pair, truth=Truth(pair.right))).siou


def test_switched_off_there_are_no_cells(pair):
    assert quality_cells(pair, QualityConfig(enabled=False)) == {}


def test_the_sign_of_the_scale_is_passed_on(pair):
    turned = dataclasses.replace(
        pair,
        **{
            name: np.ascontiguousarray(getattr(pair, name)[:, ::-1])
            for name in ("left", "right", "mask_nonocc_left", "mask_hole_right")
        },
        disparity=np.ascontiguousarray(-pair.disparity[:, ::-1]),
        scale_sign=-1,
    )
    assert measure_pair(turned) == measure_pair(pair)


def test_sums_of_verdicts_add_up():
    rows = [
        {"accepted": True, "reject_reason": None, "qc_epe": 1.0, "qc_seam": None},
        {"accepted": False, "reject_reason": "seam", "qc_epe": 2.0, "qc_seam": 30.0},
        {"accepted": False, "reject_reason": "matcher", "qc_epe": 6.0, "qc_seam": 2.0},
        {"width": 3},
    ]
    whole = QualitySummary.of(rows)
    assert (whole.judged, whole.accepted, whole.reasons) == (3, 1, {"matcher": 1, "seam": 1})
    assert whole.means == {"qc_epe": Mean(count=3, mean=3.0), "qc_seam": Mean(count=2, mean=16.0)}
    assert QualitySummary.of(rows[:1]).merged(QualitySummary.of(rows[1:])) == whole
    assert QualitySummary().merged(whole) == whole == whole.merged(QualitySummary())
    assert QualitySummary().acceptance is None


def test_the_pipeline_looks_at_the_depth_of_finished_left_views(one_thread):
    recipe = resolve_recipe(Recipe(method=SHORT, size={"width": 64, "height": 64}))
    pipeline = PairGenerator.load(recipe, "cpu", 2)
    rows = [Row(f"r{i}", "a red circle", "", i, scale) for i, scale in enumerate((8.0, -8.0, 8.0))]
    made = pipeline.generate(rows)
    alone = pipeline.generate(rows[1:2])[0]
    off = recipe.model_copy(update={"quality": QualityConfig(enabled=False)})
    blind = PairGenerator(pipeline.sd, pipeline.depth, off, 2).generate(rows[:1])[0]
    assert [pair.scale_sign for pair in made] == [1, -1, 1]
    for pair in made:
        assert pair.model_scores.depth.plain.shape == pair.model_scores.depth.mirrored.shape == (64, 64)
    one, other = alone.model_scores.depth, made[1].model_scores.depth
    assert one.plain.tobytes() == other.plain.tobytes(), "no neighbour changes it"
    assert one.mirrored.tobytes() == other.mirrored.tobytes()
    assert measure_pair(alone) == measure_pair(made[1])
    assert blind.model_scores.depth is None
    assert measure_pair(blind).depth_rank is None


def test_depth_that_the_shift_was_made_of_is_not_estimated_again(one_thread, monkeypatch):
    size = {"width": 64, "height": 64}
    pipeline = PairGenerator.load(resolve_recipe(Recipe(method=SHORT, size=size)), "cpu", 2)
    calls = []
    estimate = pipeline.depth.inverse_depth

    def counted(images):
        calls.append([np.array(image) for image in images])
        return estimate(images)

    monkeypatch.setattr(pipeline.depth, "inverse_depth", counted)
    rows = [Row(f"r{i}", "a red circle", "", i, 8.0) for i in range(2)]
    made = pipeline.generate(rows)
    shifted, mirrored = calls
    for pair, image, turned in zip(made, shifted, mirrored, strict=True):
        np.testing.assert_array_equal(pair.left, image)
        np.testing.assert_array_equal(pair.left[:, ::-1], turned)
    again = estimate([pair.left for pair in made])
    for pair, values in zip(made, again, strict=True):
        assert pair.model_scores.depth.plain.tobytes() == resize(values[None], (64, 64))[0].numpy().tobytes()

    calls.clear()
    depth = encode_disparity(render(draw_scene(1), 64, 64).disparity)
    image = encode_png(render(draw_scene(1), 64, 64).left)
    known = resolve_recipe(Recipe(mode="image", method=SHORT | {"geometry": "metric"}, size=size))
    photo = Row("photo", "", "", 0, 8.0, {"image": image, "disparity": depth})
    (pair,) = pipeline.with_recipe(known, 2).generate([photo])
    assert len(calls) == 2, "the row's own map is no estimate"
    assert pair.model_scores.depth is not None


@pytest.fixture(scope="module")
def with_clip(one_thread, tmp_path_factory):
    clip = write_clip(tmp_path_factory.mktemp("clip") / "tiny")
    size = {"width": 64, "height": 64}
    recipe = resolve_recipe(Recipe(method=SHORT, size=size, models={"clip": {"path": str(clip)}}))
    return PairGenerator.load(recipe, "cpu", 2)


def test_both_views_are_compared_with_the_prompt(with_clip):
    rows = [Row(f"r{i}", prompt, "", i, 20.0) for i, prompt in enumerate(("a red circle", "red", "a circle"))]
    made = with_clip.generate(rows)
    for row, pair in zip(rows, made, strict=True):
        cells = quality_cells(pair, QualityConfig())
        for view, name in ((pair.left, "qc_clip_left"), (pair.right, "qc_clip_right")):
            [expected, _] = with_clip.clip.scores([view, view], [row.prompt] * 2)
            assert cells[name] == expected
    assert 0 < made[0].model_scores.clip.left != made[0].model_scores.clip.right > 0


def test_no_neighbour_changes_a_clip_score(with_clip):
    rows = [Row("one", "a red circle", "", 1, 8.0), Row("two", "a red " * 90, "", 2, 8.0)]
    together = with_clip.generate(rows)
    for row, pair in zip(rows, together, strict=True):
        [alone] = with_clip.generate([row])
        assert alone.model_scores.clip == pair.model_scores.clip is not None


def test_a_failed_neighbour_changes_no_clip_score(with_clip, monkeypatch):
    rows = [Row("one", "red", "", 1, 8.0), Row("two", "a red circle", "", 2, 8.0)]
    expected = with_clip.generate(rows)[1]
    decode = with_clip.sd.decode

    def poisoned(latents):
        images = decode(latents)
        images[0] = np.nan
        return images

    monkeypatch.setattr(with_clip.sd, "decode", poisoned)
    failed, pair = with_clip.generate(rows)
    assert failed.error_type == "NotFinite"
    assert pair.model_scores.clip == expected.model_scores.clip
    assert pair.model_scores.clip.left > 0


def test_photos_have_clip_scores_where_they_have_a_prompt(with_clip):
    photo = render(draw_scene(2), 64, 64).left
    pipeline = StereoPipeline(with_clip)
    assert pipeline.from_image(photo, "a red circle").quality.clip_right is not None
    for empty in ("", "  "):
        quality = pipeline.from_image(photo, empty).quality
        assert (quality.clip_left, quality.clip_right) == (None, None)


def test_without_quality_control_clip_is_not_asked(with_clip):
    off = with_clip.recipe.model_copy(update={"quality": QualityConfig(enabled=False)})
    quiet = PairGenerator(with_clip.sd, with_clip.depth, off, 2, clip=with_clip.clip)
    [pair] = quiet.generate([Row("one", "a red circle", "", 1, 8.0)])
    assert pair.model_scores.clip is None
