"""Data sets in their authors' layouts, and what is made of a scene; what cannot be used is named, the rest goes on."""

import io

import numpy as np
import pytest
from PIL import Image

from stereo_jobs.data.images import encode_png
from stereo_jobs.data.maps import encode_pfm
from stereo_jobs.evaluate.datasets import (
    DatasetError,
    Problem,
    TruthScene,
    kitti,
    middlebury,
    open_dataset,
    prepare,
    toyscapes,
)
from stereo_jobs.toyscapes.render import render
from stereo_jobs.toyscapes.scenes import draw_scene


@pytest.fixture(scope="module")
def view():
    return render(draw_scene(3, "test", "structured"), 160, 96)


def write_middlebury(folder, view, disparity):
    folder.mkdir(parents=True)
    (folder / "im0.png").write_bytes(encode_png(view.left))
    (folder / "im1.png").write_bytes(encode_png(view.right))
    (folder / "disp0.pfm").write_bytes(encode_pfm(disparity))
    (folder / "calib.txt").write_text("width=160\nheight=96\n")


def write_kitti(folder, view, name="000004_10.png"):
    stored = np.round(view.disparity * 256).astype(np.uint16)
    stored[2:4] = 0
    buffer = io.BytesIO()
    Image.fromarray(stored).save(buffer, "PNG")
    parts = {"image_2": encode_png(view.left), "image_3": encode_png(view.right), "disp_occ_0": buffer.getvalue()}
    for part, data in parts.items():
        (folder / part).mkdir(exist_ok=True)
        (folder / part / name).write_bytes(data)


def test_middlebury_scenes_come_by_name_with_unknown_pixels_as_nan(tmp_path, view):
    holed = view.disparity.copy()
    holed[5, 7] = np.inf
    for name in ("Piano", "Adirondack"):
        write_middlebury(tmp_path / name, view, holed)
    found = open_dataset(tmp_path)
    assert (found.name, found.ids) == ("middlebury", ("Adirondack", "Piano"))
    scene = found.read("Adirondack")
    np.testing.assert_array_equal(scene.left, view.left)
    np.testing.assert_array_equal(scene.right, view.right)
    assert np.isnan(scene.disparity[5, 7])
    known = np.isfinite(holed)
    np.testing.assert_array_equal(scene.disparity[known], view.disparity[known])


def test_scikit_images_copy_of_a_scene_is_read(tmp_path, view):
    (tmp_path / "motorcycle_left.png").write_bytes(encode_png(view.left))
    (tmp_path / "motorcycle_right.png").write_bytes(encode_png(view.right))
    np.savez(tmp_path / "motorcycle_disp.npz", view.disparity)
    found = middlebury(tmp_path)
    assert found.ids == ("motorcycle",)
    np.testing.assert_array_equal(found.read("motorcycle").disparity, view.disparity)


def test_a_broken_archive_is_named_and_the_others_prepared(tmp_path, view):
    arrays = {"fine": view.disparity, "empty": None, "named": None, "cut": None, "colour": np.ones((96, 160, 3))}
    for name, array in arrays.items():
        (tmp_path / f"{name}_left.png").write_bytes(encode_png(view.left))
        (tmp_path / f"{name}_right.png").write_bytes(encode_png(view.right))
        if array is not None:
            np.savez(tmp_path / f"{name}_disp.npz", array)
    (tmp_path / "empty_disp.npz").write_bytes(b"")
    np.savez(tmp_path / "named_disp.npz", disparity=view.disparity)
    whole = (tmp_path / "fine_disp.npz").read_bytes()
    (tmp_path / "cut_disp.npz").write_bytes(whole[: len(whole) // 2])
    found = middlebury(tmp_path)
    scenes = list(found.prepared(found.ids, 64))
    problems = {problem.id: problem.message for problem in scenes if isinstance(problem, Problem)}
    assert problems.keys() == {"empty", "named", "cut", "colour"}
    for name in ("empty", "named", "cut"):
        assert problems[name].startswith(f"{name}_disp.npz: not a readable NPZ file with one array (")
    assert problems["colour"].startswith("colour_disp.npz: must have one channel")


def test_kitti_disparities_are_256ths_and_zero_is_unknown(tmp_path, view):
    write_kitti(tmp_path, view)
    found = open_dataset(tmp_path)
    assert (found.name, found.ids) == ("kitti", ("000004_10",))
    scene = found.read("000004_10")
    assert np.isnan(scene.disparity[2:4]).all()
    np.testing.assert_allclose(scene.disparity[10:], view.disparity[10:], atol=1 / 512)


@pytest.mark.parametrize("read", [middlebury, kitti])
def test_an_empty_folder_is_named(tmp_path, read):
    with pytest.raises(DatasetError, match=r"no (KITTI )?scene in it; "):
        read(tmp_path)


def test_scenes_that_cannot_be_used_are_named_and_the_others_prepared(tmp_path, view):
    write_middlebury(tmp_path / "A-good", view, view.disparity)
    write_middlebury(tmp_path / "B-other-size", view, view.disparity[:50])
    write_middlebury(tmp_path / "C-no-truth", view, view.disparity)
    (tmp_path / "C-no-truth/disp0.pfm").unlink()
    write_middlebury(tmp_path / "D-all-invalid", view, np.full_like(view.disparity, np.inf))
    write_middlebury(tmp_path / "E-invalid-crop", view, view.disparity)
    outside = np.where(np.arange(160) < 20, view.disparity, np.inf).astype(np.float32)
    (tmp_path / "E-invalid-crop/disp0.pfm").write_bytes(encode_pfm(outside))
    write_middlebury(tmp_path / "F-broken", view, view.disparity)
    (tmp_path / "F-broken/im1.png").write_bytes(b"no picture")
    write_middlebury(tmp_path / "G bad name", view, view.disparity)
    found = middlebury(tmp_path)
    good, *problems = found.prepared(found.ids, 64)
    assert good.id == "A-good"
    assert [(problem.id, problem.message.partition(";")[0]) for problem in problems] == [
        ("B-other-size", "both views and the disparity must have one size, got 160x50, 160x96"),
        ("C-no-truth", "disp0.pfm is missing in C-no-truth"),
        ("D-all-invalid", "disp0.pfm: no pixel has a finite value"),
        ("E-invalid-crop", "its disparity has no valid pixel inside the centre crop"),
        ("F-broken", "im1.png: not a readable image"),
        ("G bad name", "its name must be 1 to 200 characters of A-Z a-z 0-9 . _ - and not starting with a dot"),
    ]


def test_a_kitti_frame_without_its_right_view_is_named(tmp_path, view):
    write_kitti(tmp_path, view)
    write_kitti(tmp_path, view, "000005_10.png")
    (tmp_path / "image_3/000005_10.png").unlink()
    found = kitti(tmp_path)
    good, problem = found.prepared(found.ids, 64)
    assert (good.id, problem.message) == ("000004_10", "000005_10.png is missing in image_3")


def test_toyscapes_are_plain_and_structured_in_turn():
    found = toyscapes(5, 64)
    assert found.ids == ("plain-0000", "structured-0000", "plain-0001", "structured-0001", "plain-0002")
    scene = found.read("structured-0001")
    view = render(draw_scene(1, "test", "structured"), 64, 64)
    np.testing.assert_array_equal(scene.right, view.right)
    assert scene.level == "structured"


def test_true_pixels_grow_with_the_picture(view):
    ready = prepare(TruthScene("x", view.left, view.right, view.disparity), 192)
    assert ready.left.shape == ready.right.shape == (192, 192, 3)
    assert ready.disparity.shape == (192, 192)
    # The crop is 96 pixels wide and grows to 192: so do its disparities.
    np.testing.assert_allclose(ready.disparity.max(), 2 * view.disparity[:, 32:128].max())


def test_gaps_take_their_left_neighbour_and_stay_unknown_as_truth(view):
    holed = view.disparity.copy()
    holed[:, 60:64] = np.nan
    ready = prepare(TruthScene("x", view.left, view.right, holed), 96)
    assert np.isfinite(ready.disparity).all()
    assert np.isnan(ready.true_disparity[:, 28:32]).all()
    np.testing.assert_array_equal(ready.disparity[:, 28:32], np.repeat(ready.disparity[:, 27:28], 4, 1))


def test_a_squashed_scene_is_whole_and_its_disparity_scaled_with_the_width(view):
    ready = prepare(TruthScene("x", view.left, view.right, view.disparity), 80, "squash")
    assert ready.left.shape == ready.right.shape == (80, 80, 3)
    # 160 x 96 pixels become 80 x 80: half of the width, and of the disparity.
    np.testing.assert_array_equal(ready.true_disparity[0], view.disparity[0, ::2] / 2)
    averages = view.left[0].astype(float).reshape(80, 2, 3).mean(1)  # halving linearly takes the mean of two columns
    assert np.abs(ready.left[0] - averages).mean() < 3


def test_a_scene_without_any_disparity_is_not_squashed(view):
    unknown = np.full_like(view.disparity, np.nan)
    with pytest.raises(DatasetError, match=r"its disparity has no valid pixel$"):
        prepare(TruthScene("x", view.left, view.right, unknown), 64, "squash")


def test_levels_of_toyscapes_are_drawn_in_turn_and_told_apart():
    assert toyscapes(3, 64, ("hard", "crowded")).ids == ("hard-0000", "crowded-0000", "hard-0001")
    assert toyscapes(3, 64).identity == ("3",)  # as in evaluations that were begun before there was a choice
    assert toyscapes(3, 64, ("hard",)).identity != toyscapes(3, 64).identity
