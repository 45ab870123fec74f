"""From depth to disparity: every sample separately, in pixels of its grid."""

import numpy as np
import pytest
import torch

from stereo_jobs.stereo.disparity import (
    metric_disparity,
    relative_disparity,
    resize,
    scaled_disparity,
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
