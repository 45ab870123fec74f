"""One pair, one set of numbers: the same for a job's columns and for a notebook."""

import dataclasses

import numpy as np
import pytest

from stereo_jobs.curation import measure_pair, quality_cells
from stereo_jobs.generate import StereoPipeline
from stereo_jobs.models.resolve import resolve_recipe
from stereo_jobs.notebook import StereoImage
from stereo_jobs.quality.config import QualityConfig
from stereo_jobs.records import DATASET_COLUMNS, Mean, QualitySummary, Row, StereoPair
from stereo_jobs.spec import Recipe
from stereo_jobs.toyscapes.render import render
from stereo_jobs.toyscapes.scenes import draw_scene

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
    pipeline = StereoPipeline.load(recipe, "cpu", 2)
    rows = [Row(f"r{i}", "a red circle", "", i, scale) for i, scale in enumerate((8.0, -8.0, 8.0))]
    made = pipeline.generate(rows)
    alone = pipeline.generate(rows[1:2])[0]
    off = recipe.model_copy(update={"quality": QualityConfig(enabled=False)})
    blind = StereoPipeline(pipeline.sd, pipeline.depth, off, 2).generate(rows[:1])[0]
    assert [pair.scale_sign for pair in made] == [1, -1, 1]
    for pair in made:
        assert pair.depth.shape == pair.mirrored_depth.shape == (64, 64)
    assert alone.depth.tobytes() == made[1].depth.tobytes(), "no neighbour changes it"
    assert alone.mirrored_depth.tobytes() == made[1].mirrored_depth.tobytes()
    assert measure_pair(alone) == measure_pair(made[1])
    assert blind.depth is None
    assert measure_pair(blind).depth_rank is None
