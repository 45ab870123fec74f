"""Planted faults are recognised (rates: docs/quality.md); thresholds can be changed and switched off."""

import dataclasses

import pytest
import torch
from pydantic import ValidationError

from benchmarks import verdict as planting
from stereo_jobs.quality.config import QualityConfig
from stereo_jobs.quality.measure import Metrics, measure
from stereo_jobs.quality.verdict import judge
from stereo_jobs.toyscapes.render import render
from stereo_jobs.toyscapes.scenes import draw_scene
from tests.evaluate.test_datasets import write_middlebury

DEFAULTS = QualityConfig()
NOTHING = Metrics(**{f.name: None for f in dataclasses.fields(Metrics)})
GOOD = dataclasses.replace(
    NOTHING, density=0.9, fit_a=1.0, fit_b=0.0, identity=1.0, bad_2=0.02, control_bad_2=0.01, vertical_px=0.1
)


@pytest.fixture(scope="module")
def pairs():
    found = []
    for seed in (0, 1, 2):
        view, other = (planting.scene(s, "test", 128) for s in (seed, seed + planting.OTHER))
        found.append(
            (
                planting.Labelled(view.left, view.right, view.disparity, view.nonocc_left, view.hole_right),
                view.disparity,
                other,
            )
        )
    return found


def verdict_on(pair, depth):
    """The true depth of the left view, used in place of an estimator."""
    return judge(measure(**vars(pair), depth=depth, mirrored_depth=depth[:, ::-1]), DEFAULTS).reject_reason


def test_true_pairs_are_accepted(pairs):
    for pair, depth, _ in pairs:
        assert verdict_on(pair, depth) is None


@pytest.mark.parametrize("fault", planting.FAULTS)
def test_planted_faults_are_rejected_for_what_they_are(pairs, fault):
    meant, plant = planting.FAULTS[fault]
    reasons = [verdict_on(plant(pair, other), depth) for pair, depth, other in pairs]
    assert reasons.count(meant) >= 2, reasons


RULES = {
    "vertical_shift": ("max_vertical_px", {"vertical_px": 0.6}),
    "color_cast": ("max_color_delta", {"color_delta": 3.0}),
    "unmatched": ("min_density", {"density": 0.01}),
    "swapped_eyes": ("min_fit_a", {"fit_a": -0.9}),
    "disparity_offset": ("max_offset_px", {"fit_b": -2.0}),
    "no_parallax": ("min_parallax", {"identity": 0.1}),
    "disparity_scale": ("max_identity", {"identity": 1.9}),
    "matcher": ("max_bad_2", {"bad_2": 0.7}),
    "raw_matcher": ("max_bad_2", {"raw_bad_2": 0.7}),
    "empty_holes": ("max_empty_seam", {"seam": 90.0}),
    "seam": ("max_seam", {"seam": 19.0}),
    "blurred_holes": ("min_hole_sharpness", {"hole_sharpness": 0.01}),
    "other_depth": ("min_depth_rank", {"depth_rank": 0.1}),
    "ghost": ("max_ghost", {"ghost": 0.3}),
    "speckle": ("max_speckle", {"speckle": 0.1}),
}


@pytest.mark.parametrize("reason", RULES)
def test_each_rule_names_itself_and_can_be_switched_off(reason):
    field, values = RULES[reason]
    bad = dataclasses.replace(GOOD, **values)
    assert judge(GOOD, DEFAULTS) == (True, None)
    assert judge(bad, DEFAULTS) == (False, reason)
    off = {field: None} | ({"min_identity": None} if reason == "no_parallax" else {})
    off |= {"max_seam": None} if reason == "empty_holes" else {}
    assert judge(bad, QualityConfig(**off)).accepted


@pytest.mark.parametrize(
    ("field", "limit", "values", "reason"),
    [
        ("min_lr_consistency", 0.9, {"lr_consistency": 0.8}, "left_right"),
        ("min_backwarp_psnr", 20, {"backwarp_psnr": 19.0}, "backwarp"),
        ("max_backwarp_lpips", 0.2, {"backwarp_lpips": 0.3}, "backwarp"),
        ("max_backwarp_lpips", 0.2, {"raw_backwarp_lpips": 0.3}, "backwarp"),
        ("min_siou", 0.5, {"siou": 0.4}, "siou"),
        ("max_hole_share", 0.2, {"hole_share": 0.3}, "holes"),
        ("max_depth_confidence", 0.1, {"depth_confidence": 0.3}, "depth_doubt"),
        ("min_clip", 20, {"clip_left": 19.0, "clip_right": 21.0}, "prompt_mismatch"),
        ("min_clip", 20, {"clip_left": 21.0, "clip_right": 19.0}, "prompt_mismatch"),
    ],
)
def test_rules_that_are_off_can_be_switched_on(field, limit, values, reason):
    bad = dataclasses.replace(GOOD, **values)
    assert judge(bad, DEFAULTS).accepted
    assert judge(bad, QualityConfig(**{field: limit})) == (False, reason)


def test_a_scene_that_no_matcher_can_read_is_not_blamed_on_the_label():
    assert judge(dataclasses.replace(GOOD, bad_2=0.9, control_bad_2=0.9), DEFAULTS).accepted
    assert judge(dataclasses.replace(GOOD, bad_2=0.9, control_bad_2=1.0), DEFAULTS).accepted
    assert judge(dataclasses.replace(GOOD, bad_2=0.9, control_bad_2=0.5), DEFAULTS).reject_reason == "matcher"


def test_nothing_measured_is_unmatched():
    assert judge(NOTHING, DEFAULTS) == (False, "unmatched")


def test_a_pair_without_a_prompt_is_not_held_against_it():
    assert judge(GOOD, QualityConfig(min_clip=20)).accepted


def test_thresholds_are_checked():
    for wrong in (
        {"min_clip": 101},
        {"max_seam": 0.5},
        {"min_density": 2},
        {"max_identity": float("nan")},
        {"max_sem": 3},
    ):
        with pytest.raises(ValidationError):
            QualityConfig(**wrong)


def test_true_pairs_of_a_data_set_are_judged_without_and_with_estimated_depth(tmp_path):
    view = render(draw_scene(3, "test"))
    write_middlebury(tmp_path / "Room", view, view.disparity)

    class Backwards:
        """An estimator that sees near things as far."""

        def inverse_depth(self, images):
            return [-torch.from_numpy(view.disparity) for _ in images]

    table = planting.true_pairs(tmp_path, Backwards()).splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table]
    assert [row[:3] for row in cells[2:]] == [["Room", "none", "accepted"], ["Room", "estimated", "other_depth"]]
    rank = cells[0].index("depth_rank")
    assert (cells[2][rank], float(cells[3][rank])) == ("", -1)
