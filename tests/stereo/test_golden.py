"""The published code's numbers (tests/stereo/golden/README.md): warp and mask exact, latents to float noise."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel

from stereo_jobs.stereo.attention import Keep
from stereo_jobs.stereo.config import MethodConfig
from stereo_jobs.stereo.disparity import relative_disparity, scaled_disparity
from stereo_jobs.stereo.sampler import GuidedUNet, ViewShift, denoise, denoise_pair
from stereo_jobs.stereo.solver import Solver
from stereo_jobs.stereo.warp import ForwardWarp, forward_warp

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="module")
def numbers():
    return np.load(GOLDEN / "official_uni.npz")


@pytest.fixture(scope="module")
def unet():
    return UNet2DConditionModel.from_pretrained(GOLDEN / "tiny_unet").eval()


def warp_for(depth: np.ndarray, scale_percent: float) -> ForwardWarp:
    relative = relative_disparity(torch.from_numpy(depth)[None])
    scale = torch.tensor([scale_percent], dtype=torch.float64)
    return forward_warp(scaled_disparity(relative, scale), scale)


@pytest.mark.parametrize("case", [0, 1, 2])
def test_stereo_pixel_shift_is_exact(numbers, case):
    latent, depth = numbers[f"shift{case}_z"], numbers[f"shift{case}_d"]
    scale, both = numbers[f"shift{case}_meta"]
    z = torch.from_numpy(latent)
    right = warp_for(depth, scale / (2 if both else 1))(z)
    left = warp_for(depth, -scale / 2)(z) if both else z
    np.testing.assert_array_equal(right.numpy(), numbers[f"shift{case}_right"])
    np.testing.assert_array_equal(left.numpy(), numbers[f"shift{case}_left"])


def method(**switches) -> MethodConfig:
    return MethodConfig(preset="official", guidance_scale=7.5, **switches)


def solver() -> Solver:
    return Solver.of({"steps_offset": 0}, method().steps, "ddim")


def guided(numbers, unet) -> GuidedUNet:
    return GuidedUNet(unet, torch.from_numpy(numbers["traj_uni_cond"]), torch.from_numpy(numbers["traj_uni_unc"]), 7.5)


@pytest.fixture(scope="module")
def first(numbers, unet):
    """The left view alone."""
    model = guided(numbers, unet)
    with torch.no_grad():
        noise = torch.from_numpy(numbers["traj_uni_xT"])
        trajectory = denoise(model, solver(), noise, keep=Keep(method().attention_start, model.evaluations_per_view))
    assert trajectory.evaluations.tolist() == [100]
    return trajectory


def run(numbers, unet, first, **switches):
    model, warp = guided(numbers, unet), warp_for(numbers["traj_uni_disp"], 8)
    with torch.no_grad():
        shift = ViewShift(warp, warp.filled)
        pair = denoise_pair(model, solver(), first, method=method(**switches), to_right=shift)
    return pair, warp, pair.evaluations


@pytest.mark.parametrize(("keep_left", "spent"), [(False, 256), (True, 178)])
def test_full_run_with_unidirectional_attention(numbers, unet, first, keep_left, spent):
    pair, warp, evaluations = run(numbers, unet, first, keep_left=keep_left)
    golden_left, golden_right = numbers["traj_uni_at_shift"]
    at_shift = first.latents[11]
    assert np.abs(at_shift[0].numpy() - golden_left).mean() < 2e-4
    assert np.abs(warp(at_shift)[0].numpy() - golden_right).mean() < 2e-4
    np.testing.assert_array_equal(warp.filled[:, None].expand(-1, 4, -1, -1).numpy(), numbers["traj_uni_mask"])
    assert np.abs(pair.left.numpy() - numbers["traj_uni_left"]).mean() < 2e-4
    assert np.abs(pair.right.numpy() - numbers["traj_uni_right"]).mean() < 2e-4
    assert first.evaluations.item() + evaluations == spent


def test_the_golden_numbers_can_tell_attention_off(numbers, unet, first):
    pair, _, evaluations = run(numbers, unet, first, attention="off")
    assert np.abs(pair.right.numpy() - numbers["traj_uni_right"]).mean() > 0.01
    assert evaluations == 78
