"""A ghost is found where it was planted, at any size, and the background's own texture is not taken for one."""

import math

import numpy as np
import pytest
import torch

from stereo_jobs.quality.config import QualityConfig
from stereo_jobs.quality.ghosts import ghost
from stereo_jobs.quality.labelled_pair import Views
from stereo_jobs.stereo.warp import forward_warp

BACKGROUND, OBJECT = np.array([120, 130, 140]), np.array([200, 40, 30])
NEAR, FAR = 12, 2
ROWS, COLUMNS = slice(20, 50), slice(40, 70)
END = COLUMNS.stop - FAR
"""The first background column beside the hole, which has NEAR - FAR columns."""


def labelled(left, disparity, right=None):
    """The pair of a left view and its label; without a right view, the one that the label asks for."""
    warp = forward_warp(torch.from_numpy(disparity)[None], torch.ones(1), subpixel=True)
    visible, hole = warp.visible[0].numpy(), ~warp.filled[0].numpy()
    views = Views.of(left, left if right is None else right, disparity, visible, hole)
    return views if right is not None else Views.of(left, views.warped, disparity, visible, hole)


def square(background=None):
    """A red square in front of a wall: left view and label, 64 x 112."""
    left = np.full((64, 112, 3), BACKGROUND, np.uint8) if background is None else background.copy()
    disparity = np.full((64, 112), FAR, np.float32)
    left[ROWS, COLUMNS], disparity[ROWS, COLUMNS] = OBJECT, NEAR
    return left, disparity


def left_behind(columns, alpha, rows=ROWS):
    """The pair of the square, some of whose columns stay behind beside the hole."""
    views = labelled(*square())
    right = views.right.astype(np.float64)
    right[rows, END : END + columns] += alpha * (OBJECT - right[rows, END : END + columns])
    return labelled(views.left, views.disparity, (right + 0.5).astype(np.uint8))


def test_a_true_view_has_no_ghost():
    assert ghost(labelled(*square())) == 0


@pytest.mark.parametrize("columns", [1, 2, 3])
@pytest.mark.parametrize("alpha", [0.3, 0.6, 1])
def test_a_rim_that_stays_behind_is_a_ghost(columns, alpha):
    sides, upper_and_lower = ROWS.stop - ROWS.start, 2 * (NEAR - FAR - 1)
    assert ghost(left_behind(columns, alpha)) >= sides / (sides + upper_and_lower)


def test_the_share_is_that_of_the_boundary():
    half = slice(ROWS.start, (ROWS.start + ROWS.stop) // 2)
    assert ghost(left_behind(2, 1, half)) == pytest.approx(ghost(left_behind(2, 1)) / 2, abs=0.04)
    assert ghost(left_behind(2, 1, slice(30, 32))) == 0, "two rows are a speck"


@pytest.mark.parametrize("inside", [1, 2])
def test_a_contour_at_the_end_of_the_hole_is_a_ghost(inside):
    views = labelled(*square())
    right = views.right.copy()
    right[ROWS, END - inside] = (BACKGROUND + OBJECT) // 2
    assert ghost(labelled(views.left, views.disparity, right)) > 0.5


def test_a_tip_on_the_wall_is_a_ghost_and_one_that_moved_is_none():
    left, disparity = square()
    tip = slice(ROWS.start - 4, ROWS.start), slice(60, 68)
    left[tip] = OBJECT
    limit = QualityConfig().max_ghost
    assert limit is not None
    assert ghost(labelled(left, disparity)) > limit
    disparity[tip] = NEAR
    assert ghost(labelled(left, disparity)) == 0


@pytest.mark.parametrize("across", [False, True])
def test_the_walls_own_lines_in_the_objects_colour_are_no_ghosts(across):
    wall = np.full((64, 112, 3), BACKGROUND, np.uint8)
    lines = np.arange(112) % 6 < 2
    wall[lines[:64] if across else np.s_[:, lines]] = OBJECT
    assert ghost(labelled(*square(wall))) == 0


@pytest.mark.parametrize("change", [8, -40])
def test_what_is_not_of_the_objects_colour_is_no_ghost(change):
    """Too little of it, or beyond the background's colour."""
    views = labelled(*square())
    right = views.right.copy()
    towards = (OBJECT - BACKGROUND) / np.linalg.norm(OBJECT - BACKGROUND)
    right[ROWS, END : END + 2] = np.rint(BACKGROUND + change * towards)
    assert ghost(labelled(views.left, views.disparity, right)) == 0


def test_a_larger_picture_has_the_same_ghost():
    times = np.ones((10, 10), np.uint8)
    left, disparity = square()
    true = labelled(np.kron(left, times[..., None]), np.kron(disparity, times.astype(np.float32)) * 10)
    right = true.right.copy()
    right[ROWS.start * 10 : ROWS.stop * 10, END * 10 : END * 10 + 4] = (BACKGROUND + OBJECT) // 2
    assert right.shape == (640, 1120, 3)
    assert ghost(true) == 0
    assert ghost(labelled(true.left, true.disparity, right)) == pytest.approx(ghost(left_behind(2, 0.5)), abs=0.05)


def test_the_mirrored_pair_has_the_same_ghost():
    views = left_behind(2, 0.8)
    parts = (views.left, views.right, -views.disparity, views.visible, views.hole)
    mirrored = Views.of(*(np.ascontiguousarray(part[:, ::-1]) for part in parts), scale_sign=-1)
    assert ghost(mirrored) == ghost(views)


def test_without_a_hole_beside_an_object_there_is_nothing_to_measure():
    left, _ = square()
    assert math.isnan(ghost(labelled(left, np.full((64, 112), 3, np.float32))))
    assert math.isnan(ghost(labelled(left, np.zeros((64, 112), np.float32))))
    tiny = np.zeros((1, 1, 3), np.uint8)
    assert math.isnan(ghost(labelled(tiny, np.zeros((1, 1), np.float32))))
