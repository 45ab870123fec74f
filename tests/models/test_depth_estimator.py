"""Depth estimators: their output becomes inverse depth of the whole picture, at the estimator's own size."""

import json
from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from transformers import BeitConfig, ZoeDepthConfig, ZoeDepthForDepthEstimation

from stereo_jobs.errors import ModelError
from stereo_jobs.models.depth_estimator import DepthEstimator
from stereo_jobs.models.files import local_folder
from stereo_jobs.models.resolve import POLARITY
from stereo_jobs.stereo.disparity import resize

DEMO = local_folder("demo", "depth")


class Returns(nn.Module):
    """A network that returns a function of its pixels B,3,h,w as depth B,h,w."""

    dtype = torch.float32

    def __init__(self, depth):
        super().__init__()
        self.depth = depth

    def forward(self, pixels):
        return SimpleNamespace(predicted_depth=self.depth(pixels))


def estimator(folder, polarity, depth=None):
    made = DepthEstimator(folder, polarity, torch.float32, "cpu")
    if depth is not None:
        made.network = Returns(depth)
    return made


def picture(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def zoe(tmp_path_factory):
    """A tiny ZoeDepth of random weights, with the switches of the published processor."""
    folder = tmp_path_factory.mktemp("zoe")
    layers = {"num_hidden_layers": 4, "hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    stages = [f"stage{i}" for i in range(1, 5)]
    backbone = BeitConfig(image_size=64, patch_size=16, reshape_hidden_states=False, out_features=stages, **layers)
    sizes = dict.fromkeys(("fusion_hidden_size", "bottleneck_features", "bin_embedding_dim"), 8)
    torch.manual_seed(0)
    ZoeDepthForDepthEstimation(
        ZoeDepthConfig(backbone_config=backbone, neck_hidden_sizes=[8] * 4, num_relative_features=8, **sizes)
    ).save_pretrained(folder)
    switches = {"do_pad": True, "keep_aspect_ratio": True, "ensure_multiple_of": 32}
    processor = {"image_processor_type": "ZoeDepthImageProcessor", "size": {"height": 64, "width": 64}} | switches
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


@pytest.mark.parametrize("size", [(48, 64), (64, 32), (130, 131)])
def test_maps_have_the_estimator_s_own_size(zoe, size):
    images = [picture(*size), picture(48, 64)]
    for made in (estimator(DEMO, "inverse"), estimator(zoe, POLARITY["zoedepth"])):
        with torch.inference_mode():
            depths = made.inverse_depth(images)
        seen = [made.processor(images=one, do_pad=False, return_tensors="pt")["pixel_values"] for one in images]
        assert [depth.shape for depth in depths] == [pixels.shape[-2:] for pixels in seen]
        assert all(bool(depth.isfinite().all()) for depth in depths)


def test_a_metric_estimator_is_inverted():
    values = torch.linspace(1, 9, 16).expand(1, 16, 16)
    for polarity, expected in (("inverse", values[0]), ("metric", 1 / values[0])):
        found = estimator(DEMO, polarity, lambda pixels: values).inverse_depth([picture(16, 16)])[0]
        torch.testing.assert_close(found, expected)


def test_a_steep_edge_of_metric_depth_is_no_nearer_than_its_near_side():
    """Bicubic resizing, which follows, undershoots at edges: below 0 metres, if it came before the inversion."""
    edge = torch.full((1, 16, 16), 20.0)
    edge[..., 8:] = 0.5
    found = resize(estimator(DEMO, "metric", lambda pixels: edge).inverse_depth([picture(64, 64)])[0][None], (64, 64))
    assert 1.9 < found.max() < 1.2 / 0.5
    assert found.min() > 1 / 20 - 0.2 / 0.5


def test_what_a_processor_pads_is_no_part_of_the_picture(zoe):
    """ZoeDepth's processor would add a mirrored tenth or more of the picture on every side."""
    ramp = np.broadcast_to(np.linspace(10, 240, 96).astype(np.uint8)[None, :, None], (64, 96, 3))
    found = estimator(zoe, "inverse", lambda pixels: pixels.mean(1)).inverse_depth([np.ascontiguousarray(ramp)])[0]
    torch.testing.assert_close(found, torch.from_numpy(ramp[..., 0] / 127.5 - 1).float(), rtol=0, atol=0.05)


@pytest.mark.skipif(find_spec("torchvision") is not None, reason="DepthPro's processor needs torchvision")
def test_a_processor_that_needs_another_library_is_a_model_error(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "depth_pro"}))
    for name in ("DepthProImageProcessor", "DepthProImageProcessorFast"):
        (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_processor_type": name}))
        with pytest.raises(ModelError, match="cannot be loaded"):
            estimator(tmp_path, "inverse")
