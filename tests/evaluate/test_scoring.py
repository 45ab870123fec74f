"""Scores of a pair against its truth: the true right view is perfect, the usual faults are seen."""

import cv2
import numpy as np
import pytest

from stereo_jobs.baselines import leave_blank, stretch
from stereo_jobs.evaluate.scoring import Truth, score_geometry, score_right
from stereo_jobs.toyscapes.render import render
from stereo_jobs.toyscapes.scenes import draw_scene

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def view():
    return render(draw_scene(1, "test", "structured"))


@pytest.fixture(scope="module")
def truth(view):
    return Truth(view.right, view.disparity, view.nonocc_left, view.hole_right)


def test_the_true_right_view_is_perfect(view, truth):
    scores = score_right(view.right, view.left, truth)
    assert (scores["psnr"], scores["ssim"], scores["lpips"]) == (100, 1, 0)
    assert scores["sharpness"] == 1
    assert scores["change"] > 2  # stretching a structured background is visibly wrong
    assert score_geometry(view.left, view.right, truth) < 0.05


def test_stretch_changes_nothing_against_itself_and_blank_a_lot(view, truth):
    stretched, _ = stretch(view.left, view.disparity)
    blank, _ = leave_blank(view.left, view.disparity)
    assert score_right(stretched, view.left, truth)["change"] == 0
    assert score_right(blank, view.left, truth)["change"] > 50
    assert score_right(stretched, view.left, truth)["psnr_occ"] > score_right(blank, view.left, truth)["psnr_occ"] + 5


def test_blur_in_the_holes_is_less_sharp_than_the_truth(view, truth):
    blurred = np.where(truth.hole_right[..., None], cv2.GaussianBlur(view.right, (0, 0), 3), view.right)
    assert score_right(blurred, view.left, truth)["sharpness"] < 0.7


def test_wrong_geometry_is_seen_by_the_matcher(view, truth):
    shifted = np.roll(view.right, 3, axis=1)
    assert score_geometry(view.left, shifted, truth) > 0.9
