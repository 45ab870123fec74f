"""LPIPS against its published numbers and a slow and obvious reference."""

import hashlib
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from stereo_jobs.quality.lpips import LPIPS, SMALLEST_SIDE, WEIGHTS, lpips_model

pytestmark = pytest.mark.usefixtures("one_thread")

IMAGES = Path(__file__).parent / "images"


def published(name):
    return cv2.cvtColor(cv2.imread(str(IMAGES / f"ex_{name}.png")), cv2.COLOR_BGR2RGB)


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def smooth(height, width, seed=0):
    return cv2.GaussianBlur(noise(height, width, 3, seed=seed), (0, 0), 3)


def windows(x, size, stride):
    """C,H,W -> C,h,w,size,size"""
    return np.lib.stride_tricks.sliding_window_view(x, (size, size), (1, 2))[:, ::stride, ::stride]


def slow_layers(image):
    """AlexNet in float64, every window multiplied out."""
    weights = {name: value.astype(np.float64) for name, value in load_file(WEIGHTS).items()}
    x = image.transpose(2, 0, 1) / 255 * 2 - 1
    x = (x - np.reshape([-0.030, -0.088, -0.188], (3, 1, 1))) / np.reshape([0.458, 0.448, 0.450], (3, 1, 1))
    for i, (size, stride, padding) in enumerate([(11, 4, 2), (5, 1, 2), (3, 1, 1), (3, 1, 1), (3, 1, 1)]):
        if i in (1, 2):
            x = windows(x, 3, 2).max((3, 4))
        padded = np.pad(x, ((0, 0), (padding, padding), (padding, padding)))
        x = np.einsum("chwij,ocij->ohw", windows(padded, size, stride), weights[f"conv{i}.weight"], optimize=True)
        x = np.maximum(x + weights[f"conv{i}.bias"][:, None, None], 0)
        yield x / (np.sqrt((x**2).sum(0)) + 1e-10), weights[f"lin{i}.weight"][:, None, None]


def slow_lpips(first, second):
    """The score, and the map by OpenCV's bilinear resize."""
    height, width, _ = first.shape
    maps = [(w * (a - b) ** 2).sum(0) for (a, w), (b, _) in zip(slow_layers(first), slow_layers(second), strict=True)]
    return sum(m.mean() for m in maps), sum(cv2.resize(m, (width, height)) for m in maps)


def test_one_image_is_compared_with_a_batch_as_with_each_of_it():
    model, one, others = lpips_model(), smooth(48, 40), np.stack([smooth(48, 40, seed) for seed in (1, 2, 3)])
    together = model(one[None], others)
    for score, values, other in zip(together.score, together.map, others, strict=True):
        alone = model(one, other)
        assert score == pytest.approx(float(alone.score), rel=1e-4)
        np.testing.assert_allclose(values, alone.map, atol=1e-5)


@pytest.mark.parametrize(("name", "value"), [("p0", 0.722), ("p1", 0.138)])
def test_the_published_images_give_the_published_numbers(name, value):
    distance = lpips_model()(published("ref"), published(name))
    assert round(float(distance.score), 3) == value


def test_the_weights_are_those_that_their_readme_names():
    (stated,) = re.findall(r"[0-9a-f]{64}", (WEIGHTS.parent / "README.md").read_text())
    assert hashlib.sha256(WEIGHTS.read_bytes()).hexdigest() == stated


@pytest.mark.parametrize("size", [(31, 31), (64, 64), (47, 90), (101, 66)])
def test_score_and_map_equal_the_slow_reference(size):
    first, second = smooth(*size), smooth(*size, seed=1)
    distance = lpips_model()(first, second)
    score, mapped = slow_lpips(first, second)
    assert (distance.score.dtype, distance.map.dtype) == (np.float32, np.float32)
    assert distance.score.shape == ()
    assert distance.map.shape == size
    assert float(distance.score) == pytest.approx(score, rel=1e-4)
    np.testing.assert_allclose(distance.map, mapped, rtol=1e-3, atol=1e-5)


def test_equal_images_are_at_no_distance():
    image = smooth(64, 96)
    distance = lpips_model()(image, image.copy())
    assert float(distance.score) == 0
    assert not distance.map.any()


@pytest.mark.parametrize("value", [0, 255])
def test_a_flat_image_has_a_finite_distance(value):
    distance = lpips_model()(np.full((40, 40, 3), value, np.uint8), noise(40, 40, 3))
    assert 0 < float(distance.score) < 10
    assert np.isfinite(distance.map).all()


def test_both_directions_are_equally_far():
    first, second = smooth(50, 70), noise(50, 70, 3)
    there, back = lpips_model()(first, second), lpips_model()(second, first)
    np.testing.assert_allclose(there.score, back.score, rtol=1e-6)
    np.testing.assert_allclose(there.map, back.map, rtol=1e-5, atol=1e-7)


def test_more_noise_is_further_away():
    image = smooth(96, 96).astype(np.int64)
    grain = np.random.default_rng(1).normal(size=image.shape)
    noisy = [np.clip(image + level * grain, 0, 255).astype(np.uint8) for level in (0, 5, 15, 40)]
    scores = [float(lpips_model()(noisy[0], other).score) for other in noisy]
    assert scores == sorted(scores)
    assert scores[1] > 0


def test_the_map_is_where_the_images_differ():
    first = smooth(64, 320)
    second = first.copy()
    second[:, :8] = 255 - second[:, :8]
    found = lpips_model()(first, second).map
    assert found[:, :16].mean() > 20 * found[:, 160:].mean()
    assert not found[:, -64:].any()  # out of reach of the last layer and of its upsampling


def test_a_batch_is_its_pairs():
    first = np.stack([smooth(45, 64, seed=seed) for seed in range(3)])
    second = np.stack([smooth(45, 64, seed=seed) for seed in (3, 1, 5)])
    together = lpips_model()(first, second)
    assert together.score.shape == (3,)
    assert together.map.shape == (3, 45, 64)
    for i in range(3):
        alone = lpips_model()(first[i], second[i])
        np.testing.assert_allclose(together.score[i], alone.score, rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(together.map[i], alone.map, rtol=1e-4, atol=1e-6)
    assert together.score[1] == 0


def test_the_same_inputs_give_the_same_bits_and_stay_untouched():
    first, second = smooth(64, 64), smooth(64, 64, seed=1)
    before = first.copy(), second.copy()
    one, two = lpips_model()(first, second), LPIPS()(first, second)
    assert one.score.tobytes() == two.score.tobytes()
    assert one.map.tobytes() == two.map.tobytes()
    np.testing.assert_array_equal((first, second), before)


def test_any_layout_in_memory_will_do():
    first, second = smooth(40, 50), smooth(40, 50, seed=1)
    mirrored = lpips_model()(first[:, ::-1], second[:, ::-1])
    copied = lpips_model()(first[:, ::-1].copy(), second[:, ::-1].copy())
    first.flags.writeable = False
    assert lpips_model()(first, second).score > 0
    assert mirrored.map.tobytes() == copied.map.tobytes()


def test_the_model_is_loaded_once():
    assert lpips_model("cpu") is lpips_model("cpu")


@pytest.mark.parametrize("size", [(SMALLEST_SIDE, 64), (64, SMALLEST_SIDE)])
def test_the_smallest_side_is_the_real_limit(size):
    assert np.isfinite(lpips_model()(noise(*size, 3), noise(*size, 3, seed=1)).map).all()
    height, width = (side - (side == SMALLEST_SIDE) for side in size)
    with pytest.raises(RuntimeError, match="too small"):
        list(lpips_model()._features(torch.zeros(1, 3, height, width)))
    with pytest.raises(ValueError, match=rf"31 pixels or more, got \({height}, {width}, 3\)"):
        lpips_model()(noise(height, width, 3), noise(height, width, 3))


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (noise(40, 40, 3), noise(40, 41, 3), r"one shape, got \(40, 40, 3\) and \(40, 41, 3\)"),
        (noise(40, 40, 3), noise(1, 40, 40, 3), r"one shape, got \(40, 40, 3\) and \(1, 40, 40, 3\)"),
        (noise(40, 40, 4), noise(40, 40, 4), r"first must be H,W,3 or B,H,W,3 uint8, got \(40, 40, 4\) uint8"),
        (noise(40, 40), noise(40, 40), r"first must be .* got \(40, 40\) uint8"),
        (noise(40, 40, 3), noise(40, 40, 3) / 255, r"second must be .* got \(40, 40, 3\) float64"),
    ],
)
def test_other_inputs_are_refused_with_the_rule(first, second, message):
    with pytest.raises(ValueError, match=message):
        lpips_model()(first, second)


@pytest.mark.gpu
def test_a_gpu_measures_what_the_cpu_measures():
    before = torch.backends.cudnn.allow_tf32
    first, second = smooth(64, 96), smooth(64, 96, seed=1)
    there, here = lpips_model("cuda")(first, second), lpips_model()(first, second)
    np.testing.assert_allclose(there.score, here.score, rtol=1e-4)
    np.testing.assert_allclose(there.map, here.map, rtol=1e-3, atol=1e-5)
    assert torch.backends.cudnn.allow_tf32 == before
