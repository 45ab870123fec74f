"""Details of a right view by its truth: the true view has none of the faults, each fault is seen."""

import cv2
import numpy as np
import pytest

from stereo_jobs.baselines import leave_blank, stretch
from stereo_jobs.evaluate.datasets import toyscapes
from stereo_jobs.evaluate.details import score_details
from stereo_jobs.quality.truth import hidden, score
from stereo_jobs.toyscapes.render import render
from stereo_jobs.toyscapes.scenes import draw_scene

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def view():
    return render(draw_scene(1, "test", "structured"))


def details(view, right, disparity=None):
    return score_details(view.left, right, view.right, view.disparity if disparity is None else disparity)


def test_the_true_right_view_is_perfect(view):
    found = details(view, view.right)
    assert found["sharpness"] == 1
    assert found["change"] > 2  # stretching a structured background is visibly wrong
    assert found["bad_1"] < 0.05


def test_stretch_changes_nothing_against_itself_and_blank_a_lot(view):
    assert details(view, stretch(view.left, view.disparity)[0])["change"] == 0
    assert details(view, leave_blank(view.left, view.disparity)[0])["change"] > 50


def test_fractions_of_a_pixel_beat_whole_ones_and_those_beat_black_holes():
    """What docs/benchmarks.md finds on 200 scenes, on the first four of them."""
    dataset = toyscapes(4, 128)
    for scene in dataset.prepared(dataset.ids, 128):
        fills = ((stretch, True), (stretch, False), (leave_blank, False))
        rights = [fill(scene.left, scene.disparity, subpixel=subpixel)[0] for fill, subpixel in fills]
        scores = [score(right, scene.right, *hidden(scene.true_disparity)) for right in rights]
        for metric in ("psnr", "psnr_nonocc", "ssim", "ssim_nonocc"):
            fractions, whole, black = (getattr(each, metric) for each in scores)
            assert fractions > whole > black, (scene.id, metric)


def test_blur_in_the_holes_is_less_sharp_than_the_truth(view):
    blurred = np.where(view.hole_right[..., None], cv2.GaussianBlur(view.right, (0, 0), 3), view.right)
    assert details(view, blurred)["sharpness"] < 0.7


def test_wrong_geometry_is_seen_by_the_matcher(view):
    assert details(view, np.roll(view.right, 3, axis=1))["bad_1"] > 0.9


def test_unknown_truth_does_not_count(view):
    sparse = np.where(np.arange(view.disparity.shape[1]) % 4 == 0, view.disparity, np.nan).astype(np.float32)
    assert details(view, view.right, sparse)["bad_1"] < 0.05
