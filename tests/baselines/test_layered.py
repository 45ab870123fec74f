"""The layered baseline: the warp of leave_blank where it is filled, the background in its holes."""

import numpy as np
import pytest

from stereo_jobs.baselines import layered, leave_blank, stretch
from stereo_jobs.quality.truth import score
from stereo_jobs.toyscapes.render import render
from stereo_jobs.toyscapes.scenes import draw_scene

pytestmark = pytest.mark.usefixtures("one_thread")
BACK, FRONT = (40, 90, 160), (220, 60, 30)


def box(width=18):
    """A plain box in front of a plain wall: image and disparity."""
    left = np.full((40, 80, 3), BACK, np.uint8)
    disparity = np.full((40, 80), 2, np.float32)
    left[10:30, 40 : 40 + width] = FRONT
    disparity[10:30, 40 : 40 + width] = 9
    return left, disparity


@pytest.mark.parametrize("subpixel", [True, False])
def test_outside_the_holes_it_is_the_plain_warp(subpixel):
    view = render(draw_scene(3, "test", "structured"))
    blank, holes = leave_blank(view.left, view.disparity, subpixel=subpixel)
    right, found = layered(view.left, view.disparity, subpixel=subpixel)
    np.testing.assert_array_equal(found, holes)
    np.testing.assert_array_equal(right[~holes], blank[~holes])


@pytest.mark.parametrize("width", [18, 3])
def test_holes_are_filled_from_the_background_alone(width):
    left, disparity = box(width)
    given = left.copy(), disparity.copy()
    right, holes = layered(left, disparity)
    assert holes[12:28, 20:70].any()
    assert np.abs(right[holes].astype(int) - BACK).max() <= 4  # the colours are 190 apart; Telea dithers
    np.testing.assert_array_equal(left, given[0])
    np.testing.assert_array_equal(disparity, given[1])


def test_a_view_to_the_other_side_is_the_mirror_image():
    left, disparity = box()
    right, holes = layered(left, disparity)
    mirrored, mirrored_holes = layered(left[:, ::-1].copy(), -disparity[:, ::-1].copy(), scale_sign=-1)
    np.testing.assert_array_equal(mirrored_holes[:, ::-1], holes)
    np.testing.assert_allclose(mirrored[:, ::-1].astype(int), right.astype(int), atol=4)


def test_a_slanted_background_goes_on_behind_the_box():
    """Inpainting continues structures across the edge; stretching repeats single pixels."""
    left, disparity = box()
    ramp = np.linspace(0, 200, 80).astype(np.uint8)
    wall = disparity == 2
    left[wall] = np.broadcast_to(ramp[None, :, None], left.shape)[wall]
    truth = np.broadcast_to(np.interp(np.arange(80) + 2, np.arange(80), ramp)[None, :, None], left.shape)
    right, holes = layered(left, disparity)
    plain, _ = stretch(left, disparity)
    inside = holes.copy()
    inside[:, 70:] = False  # the frame's edge
    errors = [np.abs(image[inside] - truth[inside]).mean() for image in (right, plain)]
    assert errors[0] <= errors[1]


def test_without_depth_nothing_happens():
    left, disparity = box()
    right, holes = layered(left, np.zeros_like(disparity))
    assert not holes.any()
    np.testing.assert_array_equal(right, left)


def test_rendered_scenes_get_plausible_holes():
    gains = []
    for seed in range(4):
        view = render(draw_scene(seed, "test", "structured"))
        scores = [
            score(fill(view.left, view.disparity)[0], view.right, view.hole_right) for fill in (layered, leave_blank)
        ]
        gains.append(scores[0].psnr_occ - scores[1].psnr_occ)
    assert np.mean(gains) > 5
