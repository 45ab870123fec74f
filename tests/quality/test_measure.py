"""All metrics of a pair in one call: mirrored pairs, unusual pairs, and the same bits every time."""

import dataclasses
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from stereo_jobs.quality.appearance import siou
from stereo_jobs.quality.measure import Metrics, measure
from stereo_jobs.records import DATASET_COLUMNS, QUALITY_PREFIX
from stereo_jobs.toyscapes.render import render
from stereo_jobs.toyscapes.scenes import draw_scene


def arrays(view):
    return {
        "left": view.left,
        "right": view.right,
        "disparity": view.disparity,
        "nonocc_left": view.nonocc_left,
        "hole_right": view.hole_right,
    }


@pytest.fixture(scope="module")
def pair():
    return arrays(render(draw_scene(3), 96, 64))


def test_every_metric_is_a_column_and_every_column_a_metric():
    columns = {name.removeprefix(QUALITY_PREFIX) for name in DATASET_COLUMNS.names if name.startswith(QUALITY_PREFIX)}
    assert {field.name for field in dataclasses.fields(Metrics)} == columns


def test_a_mirrored_pair_of_negative_scale_has_the_same_metrics(pair):
    depth = pair["disparity"] + np.random.default_rng(0).random(pair["disparity"].shape, np.float32)
    mirrored = depth[:, ::-1] + np.float32(0.1)
    one = measure(**pair, raw_right=pair["left"], depth=depth, mirrored_depth=mirrored)
    turned = {name: np.ascontiguousarray(values[:, ::-1]) for name, values in pair.items()}
    turned["disparity"] = -turned["disparity"]
    other = measure(
        **turned,
        raw_right=np.ascontiguousarray(pair["left"][:, ::-1]),
        depth=np.ascontiguousarray(depth[:, ::-1]),
        mirrored_depth=np.ascontiguousarray(mirrored[:, ::-1]),
        scale_sign=-1,
    )
    for name, value in vars(one).items():
        # The depth maps are not mirrored back: ranks and doubt are equal up to the order of their sums.
        assert getattr(other, name) == (None if value is None else pytest.approx(value, rel=1e-4, abs=1e-6)), name


def test_the_raw_view_is_measured_apart(pair):
    metrics = measure(**pair, raw_right=pair["left"])
    assert metrics.bad_2 < 0.1 < 0.8 < metrics.raw_bad_2
    assert metrics.backwarp_lpips < metrics.raw_backwarp_lpips
    assert metrics.raw_epe > 2
    alone = measure(**pair)
    assert (alone.raw_epe, alone.raw_bad_2, alone.raw_backwarp_lpips, alone.depth_rank) == (None,) * 4
    assert alone.bad_2 == metrics.bad_2


def test_siou_takes_the_true_right_view_where_it_is_known(pair):
    alone, judged = measure(**pair), measure(**pair, true_right=pair["right"])
    assert alone.siou < judged.siou == 1  # the label's own warp is not quite the true view
    assert dataclasses.replace(judged, siou=alone.siou) == alone
    copied = pair | {"right": pair["left"]}
    assert measure(**copied, true_right=pair["right"]).siou == siou(pair["left"], pair["left"], pair["right"])
    turned = {name: np.ascontiguousarray(values[:, ::-1]) for name, values in pair.items()}
    turned["disparity"] = -turned["disparity"]
    assert measure(**turned, true_right=turned["right"], scale_sign=-1).siou == 1


def test_clip_scores_are_taken_as_they_are(pair):
    metrics = measure(**pair, clip_left=31.5, clip_right=float("nan"))
    assert (metrics.clip_left, metrics.clip_right) == (31.5, None)
    assert (measure(**pair).clip_left, measure(**pair).clip_right) == (None, None)


def test_the_same_bits_from_any_thread(pair):
    expected = measure(**pair)
    with ThreadPoolExecutor(4) as threads:
        assert set(threads.map(lambda _: measure(**pair), range(8))) == {expected}


def odd(kind):
    rng = np.random.default_rng(0)
    height, width = (16, 16) if kind == "tiny" else (3, 5) if kind == "minute" else (40, 48)
    noise = rng.integers(0, 256, (height, width, 3)).astype(np.uint8)
    flat = np.full_like(noise, 128)
    image = flat if kind == "constant" else noise
    no, yes = np.zeros((height, width), bool), np.ones((height, width), bool)
    disparity = np.full((height, width), 3, np.float32)
    if kind == "no disparity":
        disparity[:] = 0
    if kind == "negative":
        disparity -= 6
    if kind == "huge":
        disparity += 500
    if kind in ("unknown", "nothing known"):
        disparity[:, 10:20] = np.nan
        disparity[0] = np.inf
        disparity[:, :] = np.nan if kind == "nothing known" else disparity
    hidden = kind == "all occluded"
    return {
        "left": image,
        "right": image,
        "disparity": disparity,
        "nonocc_left": no if hidden else yes,
        "hole_right": yes if hidden else no,
    }


ODD = (
    *("plain", "constant", "tiny", "minute", "no disparity", "negative", "huge", "unknown", "nothing known"),
    "all occluded",
)


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("scale_sign", [1, -1])
def test_odd_pairs_are_measured_as_far_as_they_can_be(kind, scale_sign):
    pair = odd(kind)
    metrics = measure(**pair, raw_right=pair["right"], scale_sign=scale_sign)
    for name, value in vars(metrics).items():
        assert value is None or (isinstance(value, float) and np.isfinite(value)), name
    assert metrics.hole_share == (kind == "all occluded")
    if kind in ("all occluded", "nothing known"):
        assert (metrics.epe, metrics.density, metrics.backwarp_psnr, metrics.color_delta) == (None,) * 4
    if kind in ("tiny", "minute"):
        assert metrics.backwarp_lpips is None


def test_wrong_sizes_and_types_are_refused(pair):
    for name, wrong in (
        ("right", pair["right"][:-1]),
        ("left", pair["left"].astype(float)),
        ("disparity", pair["disparity"][:-1]),
        ("hole_right", pair["hole_right"][:, :-1]),
    ):
        with pytest.raises(ValueError, match=r"must be"):
            measure(**pair | {name: wrong})
