"""Protocol `cycle`: planted scenes whose way to the left view and back is known pixel by pixel."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stereo_jobs.baselines import leave_blank
from stereo_jobs.data.images import encode_png
from stereo_jobs.evaluate.cycle import cycle_scene
from stereo_jobs.evaluate.datasets import Problem, photos, prepare
from stereo_jobs.quality.truth import hidden, score

WIDTH, HEIGHT = 96, 64
BACK, FRONT = 4, 12
SQUARE = np.s_[20:44, 40:64]


def planted(back=BACK, front=FRONT, square=SQUARE):
    """A photo of noise: a square in front of a plane, and its disparity in whole pixels."""
    photo = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3)).astype(np.uint8)
    disparity = np.full((HEIGHT, WIDTH), back, np.float32)
    disparity[square] = front
    return photo, disparity


def lost(disparity):
    """Slow reading: which photo pixels does the left view not show?"""
    mask = np.zeros(disparity.shape, bool)
    for y, x in np.ndindex(disparity.shape):
        there = x + disparity[y, x]
        nearer = (x2 for x2 in range(disparity.shape[1]) if disparity[y, x2] > disparity[y, x])
        mask[y, x] = there >= disparity.shape[1] or any(x2 + disparity[y, x2] == there for x2 in nearer)
    return mask


def test_the_square_hides_what_stands_to_its_right_and_the_frame_cuts_the_right_edge():
    photo, disparity = planted()
    scene = cycle_scene("x", photo, disparity)
    np.testing.assert_array_equal(scene.right, photo)
    # Nearer things lie further to the right in the left view: x_L = x_R + d.
    np.testing.assert_array_equal(scene.left[20:44, 40 + FRONT : 64 + FRONT], photo[SQUARE])
    np.testing.assert_array_equal(scene.disparity[20:44, 40 + FRONT : 64 + FRONT], FRONT)
    hole, known = hidden(scene.disparity)
    assert known.all()
    expected = np.zeros((HEIGHT, WIDTH), bool)
    expected[20:44, 64 : 64 + FRONT - BACK] = True  # the background that the square covers in the left view
    expected[:, WIDTH - BACK :] = True  # what leaves the left view's frame
    np.testing.assert_array_equal(hole, expected)


@settings(max_examples=30, deadline=None, derandomize=True, database=None)
@given(st.integers(0, 6), st.integers(7, 16), st.integers(0, 60), st.integers(20, 30))
def test_everything_but_the_holes_comes_back_as_it_was(back, front, x, wide):
    photo, disparity = planted(back, front, np.s_[10:30, x : x + wide])
    scene = cycle_scene("x", photo, disparity)
    hole, _ = hidden(scene.disparity)
    np.testing.assert_array_equal(hole, lost(disparity))
    right, blank = leave_blank(scene.left, scene.disparity)
    np.testing.assert_array_equal(blank, hole)
    np.testing.assert_array_equal(right[~hole], photo[~hole])
    assert score(right, scene.right, hole).psnr_nonocc == 100


def test_a_slanted_plane_comes_back_but_for_its_sampling():
    """Halves of pixels: a smooth photo comes back nearly as it was, and only the frame makes holes."""
    x = np.arange(WIDTH, dtype=np.float32)
    photo = np.repeat(np.repeat((128 + 100 * np.sin(x / 9))[None, :, None], HEIGHT, 0), 3, 2).astype(np.uint8)
    disparity = np.broadcast_to(2 + 0.1 * x, (HEIGHT, WIDTH)).astype(np.float32)
    scene = cycle_scene("x", photo, disparity)
    hole, _ = hidden(scene.disparity)
    assert not hole[:, : WIDTH - 13].any()
    right, _ = leave_blank(scene.left, scene.disparity)
    assert np.abs(right[~hole].astype(float) - photo[~hole]).mean() < 1.5


def test_photos_are_read_by_name_at_any_size_and_made_smaller_only(tmp_path):
    photo, _ = planted()
    for name in ("b.png", "A.PNG", "c.png", ".hidden.png", "two words.png"):
        (tmp_path / name).write_bytes(encode_png(photo))
    (tmp_path / "c.jpg").write_bytes(b"no picture")
    (tmp_path / "notes.txt").write_text("no photo")
    found = photos(tmp_path)
    assert (found.name, found.has_truth) == ("photos", False)
    assert found.ids == ("A", "b", "c.jpg", "c.png", "two words")
    scenes = {s.id: s for s in found.prepared(found.ids, 48, "photo")}
    assert [name for name, scene in scenes.items() if isinstance(scene, Problem)] == ["c.jpg", "two words"]
    assert scenes["b"].left.shape == (32, 48, 3)
    np.testing.assert_array_equal(prepare(found.read("b"), 512, "photo").left, photo)


@pytest.mark.parametrize("name", ["empty", "missing"])
def test_a_folder_without_photos_is_named(tmp_path, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(Exception, match=r"no image in it; --photos takes a folder"):
        photos(tmp_path / name)
