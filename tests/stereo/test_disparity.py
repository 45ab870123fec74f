"""From depth to disparity: every sample separately, in pixels of its grid."""

import numpy as np
import pytest
import torch

from stereo_jobs.stereo.disparity import (
    metric_disparity,
    relative_disparity,
    resize,
    scaled_disparity,
    sharpen_edges,
)


def test_each_sample_is_normalised_on_its_own():
    depth = torch.randn(3, 5, 7) * torch.tensor([1.0, 100.0, 1e-3])[:, None, None] + 5
    relative = relative_disparity(depth)
    np.testing.assert_array_equal(relative.flatten(1).amin(1).numpy(), 0)
    np.testing.assert_array_equal(relative.flatten(1).amax(1).numpy(), 1)
    for b in range(3):
        assert torch.equal(relative_disparity(depth[b : b + 1]), relative[b : b + 1])
        assert torch.equal(relative[b].flatten().argsort(), depth[b].flatten().argsort())


def test_a_map_without_depth_becomes_zero():
    depth = torch.stack([torch.full((4, 4), 3.5), torch.arange(16.0).reshape(4, 4), torch.zeros(4, 4)])
    relative = relative_disparity(depth)
    assert (relative[0] == 0).all()
    assert (relative[2] == 0).all()
    assert relative[1].max() == 1


def test_the_scale_is_a_percentage_of_the_width_per_sample():
    relative = torch.ones(3, 2, 64)
    pixels = scaled_disparity(relative, torch.tensor([8.0, 12.5, -8.0], dtype=torch.float64))
    np.testing.assert_allclose(pixels[:, 0, 0].numpy(), [5.12, 8.0, -5.12], rtol=1e-7)
    assert pixels.dtype == torch.float32
    assert (scaled_disparity(torch.zeros(1, 2, 64), torch.tensor([8.0])) == 0).all()


def test_the_factor_is_rounded_once():
    relative = torch.rand(1, 8, 64)
    expected = relative.numpy() * np.float32(np.float64(8.0) / 100 * 64)
    np.testing.assert_array_equal(scaled_disparity(relative, torch.tensor([8.0])).numpy(), expected)


def test_resize_is_bicubic_and_leaves_the_right_size_alone():
    maps = torch.rand(2, 16, 24)
    assert resize(maps, (16, 24)) is maps
    expected = torch.nn.functional.interpolate(maps[:, None], size=(4, 6), mode="bicubic", align_corners=False)
    assert torch.equal(resize(maps, (4, 6)), expected[:, 0])


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 1, 3)])
def test_tiny_maps_do_no_harm(shape):
    assert torch.isfinite(relative_disparity(torch.rand(shape))).all()


def test_metric_disparity_is_eq_2():
    depth = torch.tensor([[[1.0, 2.0, 4.0]], [[0.5, torch.inf, torch.nan]]])
    disparity = metric_disparity(depth, focal_px=400.0, baseline=0.1, doffs_px=3.0)
    expected = [[[37.0, 17.0, 7.0]], [[77.0, -3.0, np.nan]]]  # 400 * 0.1 / Z - 3
    np.testing.assert_allclose(disparity.numpy(), expected, rtol=1e-6)
    assert metric_disparity(torch.tensor([2.0]), 400.0, 0.1).item() == pytest.approx(20)


@pytest.mark.parametrize("radius", [1, 2, 5])
@pytest.mark.parametrize("horizontal", [True, False])
def test_a_blurred_edge_becomes_a_step_again(radius, horizontal):
    ramp = ((torch.arange(40.0) - 20) / (radius + 1)).clamp(0, 1)  # `radius` values between the two levels
    assert ((ramp > 0) & (ramp < 1)).sum() == radius
    blurred = 1 + 4 * (ramp.expand(40, 40) if horizontal else ramp[:, None].expand(40, 40))
    sharp = sharpen_edges(blurred[None], radius)[0]
    assert set(sharp.unique().tolist()) == {1.0, 5.0}
    # The near side takes all but the lowest quarter, and one pixel beyond.
    assert torch.equal(sharp == 5, (blurred > 2) | (blurred.roll(-1, 1 if horizontal else 0) > 2))


def test_surfaces_without_edges_stay_as_they_are():
    y, x = torch.meshgrid(torch.linspace(0, 1, 64), torch.linspace(0, 1, 96), indexing="ij")
    maps = torch.stack([torch.full((64, 96), 3.0), x, 5 - y, 0.5 * x + 0.5 * y])
    assert torch.equal(sharpen_edges(maps, 2), maps)
    floor = torch.linspace(0, 1, 40)[:, None].expand(1, 40, 64)  # recedes over a third of a 128 pixel image
    assert torch.equal(sharpen_edges(floor, 2), floor)


def test_a_sharp_edge_moves_by_the_pixel_that_the_near_side_gains_and_its_slanted_sides_stay():
    column = torch.arange(64.0)
    maps = torch.where(column < 30, 0.01 * column, 2 + 0.01 * column).expand(1, 8, 64)
    near = torch.ones(64, dtype=torch.bool)
    near[30 - 3 : 30 + 3] = False  # pixels whose surroundings hold the edge
    sharp = sharpen_edges(maps, 2)
    assert torch.equal(sharp[..., near], maps[..., near])
    other = torch.arange(64) == 29
    assert (sharp - maps)[..., ~other].abs().max() < 0.03
    assert torch.equal(sharp[..., other], maps[..., 32:33])  # the largest value within two pixels of its neighbour


def test_the_floor_beside_an_object_keeps_the_depth_of_its_row():
    floor = torch.linspace(0, 1, 40)[:, None].expand(40, 64)  # 0.026 a row
    maps = torch.where((torch.arange(64) - 30).abs() < 8, 2.0, floor)[None]
    sharp = sharpen_edges(maps, 2)
    beside = (torch.arange(64) - 30).abs() > 8  # the object has gained a pixel
    assert (sharp - maps)[..., beside].abs().max() < 1.01 / 39  # a median may take the row below; the smallest took two


def test_an_odd_pixel_in_a_blurred_edge_tears_nothing():
    blurred = 1 + 4 * ((torch.arange(40.0) - 20) / 3).clamp(0, 1).expand(1, 40, 40)
    odd = blurred.clone()
    odd[0, 20, 19] = 5  # beside the ramp, on the far side
    odd[0, 30, 23] = 1  # on the near side
    assert torch.equal(sharpen_edges(odd, 2), sharpen_edges(blurred, 2))


def test_every_map_has_its_own_threshold():
    blurred = (torch.arange(40.0) - 20).clamp(0, 3).expand(1, 40, 40)
    together = sharpen_edges(torch.cat([blurred, 1e3 * blurred]), 2)
    assert torch.equal(together[0:1], sharpen_edges(blurred, 2))
    assert torch.equal(together[1], 1e3 * together[0])


def test_no_radius_changes_nothing():
    maps = torch.rand(1, 6, 6)
    assert sharpen_edges(maps, 0) is maps
