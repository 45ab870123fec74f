"""Data sets in their authors' layouts, and what a protocol makes of a scene."""

import io

import numpy as np
import pytest
from PIL import Image

from stereo_jobs.data.images import encode_png
from stereo_jobs.data.maps import encode_pfm
from stereo_jobs.evaluate.datasets import DatasetError, Scene, kitti, middlebury, prepare
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


def test_middlebury_scenes_come_by_name_with_unknown_pixels_as_nan(tmp_path, view):
    holed = view.disparity.copy()
    holed[5, 7] = np.inf
    for name in ("Piano", "Adirondack"):
        write_middlebury(tmp_path / name, view, holed)
    scenes = list(middlebury(tmp_path))
    assert [scene.id for scene in scenes] == ["Adirondack", "Piano"]
    np.testing.assert_array_equal(scenes[0].left, view.left)
    np.testing.assert_array_equal(scenes[0].right, view.right)
    assert np.isnan(scenes[0].disparity[5, 7])
    known = np.isfinite(holed)
    np.testing.assert_array_equal(scenes[0].disparity[known], view.disparity[known])


def test_scikit_images_copy_of_a_scene_is_read(tmp_path, view):
    (tmp_path / "motorcycle_left.png").write_bytes(encode_png(view.left))
    (tmp_path / "motorcycle_right.png").write_bytes(encode_png(view.right))
    np.savez(tmp_path / "motorcycle_disp.npz", view.disparity)
    [scene] = middlebury(tmp_path)
    assert scene.id == "motorcycle"
    np.testing.assert_array_equal(scene.disparity, view.disparity)


def test_kitti_disparities_are_256ths_and_zero_is_unknown(tmp_path, view):
    for part, image in (("image_2", view.left), ("image_3", view.right)):
        (tmp_path / part).mkdir()
        (tmp_path / part / "000004_10.png").write_bytes(encode_png(image))
    stored = np.round(view.disparity * 256).astype(np.uint16)
    stored[2:4] = 0
    (tmp_path / "disp_occ_0").mkdir()
    buffer = io.BytesIO()
    Image.fromarray(stored).save(buffer, "PNG")
    (tmp_path / "disp_occ_0/000004_10.png").write_bytes(buffer.getvalue())
    [scene] = kitti(tmp_path)
    assert scene.id == "000004_10"
    assert np.isnan(scene.disparity[2:4]).all()
    np.testing.assert_allclose(scene.disparity[10:], view.disparity[10:], atol=1 / 512)


@pytest.mark.parametrize("read", [middlebury, kitti])
def test_an_empty_folder_is_named(tmp_path, read):
    with pytest.raises(DatasetError, match=r"no (Middlebury|KITTI) scene in it; it needs"):
        list(read(tmp_path))


def test_missing_files_and_wrong_sizes_are_named(tmp_path, view):
    write_middlebury(tmp_path / "A", view, view.disparity[:50])
    with pytest.raises(DatasetError, match="A: views and disparity must have one size"):
        list(middlebury(tmp_path))
    (tmp_path / "A/disp0.pfm").unlink()
    with pytest.raises(DatasetError, match=r"A: disp0\.pfm is missing"):
        list(middlebury(tmp_path))


def test_the_metric_protocol_keeps_true_pixels(view):
    ready = prepare(Scene("x", view.left, view.right, view.disparity), "metric", 192)
    assert ready.left.shape == ready.right.shape == (192, 192, 3)
    assert ready.disparity.shape == (192, 192)
    # The crop is 96 pixels wide and grows to 192: so do its disparities.
    np.testing.assert_allclose(ready.disparity.max(), 2 * view.disparity[:, 32:128].max())


def test_the_paper_protocol_has_whole_shifts_of_eight_percent(view):
    ready = prepare(Scene("x", view.left, view.right, view.disparity), "paper", 128)
    np.testing.assert_array_equal(ready.disparity, np.trunc(ready.disparity))
    assert (ready.disparity.min(), ready.disparity.max()) == (0, np.trunc(0.08 * 128))


def test_gaps_take_their_left_neighbour_and_stay_unknown_as_truth(view):
    holed = view.disparity.copy()
    holed[:, 60:64] = np.nan
    ready = prepare(Scene("x", view.left, view.right, holed), "metric", 96)
    assert np.isfinite(ready.disparity).all()
    assert np.isnan(ready.true_disparity[:, 28:32]).all()
    np.testing.assert_array_equal(ready.disparity[:, 28:32], np.repeat(ready.disparity[:, 27:28], 4, 1))


def test_a_scene_without_any_valid_pixel_is_named(view):
    with pytest.raises(DatasetError, match="x: its disparity has no valid pixel"):
        prepare(Scene("x", view.left, view.right, np.full_like(view.disparity, np.nan)), "metric")
