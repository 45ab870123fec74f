"""PSNR, SSIM and LPIPS against the true right view: scikit-image, and slow and obvious masked means."""

from dataclasses import asdict, fields, replace

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from stereo_jobs.quality.lpips import lpips_model
from stereo_jobs.quality.truth import PSNR_CAP, TrueScores, hidden, masked_mean, score

pytestmark = pytest.mark.usefixtures("one_thread")

often = settings(max_examples=100, deadline=None, derandomize=True, database=None)
seldom = settings(often, max_examples=15)

FIELD_OPTIONS = {"channel_axis": -1, "data_range": 255}


def noise(height, width, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)


def smooth(height, width, seed=0):
    return cv2.GaussianBlur(noise(height, width, seed=seed), (0, 0), 2)


def pair(height=48, width=64, seed=0):
    """A true view, and one with small errors everywhere and large ones in its holes, a band on the right."""
    true = smooth(height, width, seed)
    grain = np.random.default_rng(seed + 1).normal(0, 6, true.shape)
    right = np.clip(true + grain, 0, 255).astype(np.uint8)
    hole = np.zeros((height, width), bool)
    hole[:, -width // 5 :] = True
    hole[height // 3 : height // 2, width // 4 : width // 3] = True
    right[hole] = smooth(height, width, seed + 2)[hole]
    return right, true, hole


def slow_ssim_map(x, y):
    """SSIM (Wang et al. 2004, Eq. 13), with a 7x7 window written out for every pixel and reflected borders."""
    window, sample = np.full((7, 7, 1), 1 / 49), 49 / 48
    x, y = (np.pad(image.astype(float), ((3, 3), (3, 3), (0, 0)), mode="symmetric") for image in (x, y))
    out = np.zeros((x.shape[0] - 6, x.shape[1] - 6))
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    for row, column in np.ndindex(out.shape):
        a, b = (image[row : row + 7, column : column + 7] for image in (x, y))
        ma, mb = (window * a).sum((0, 1)), (window * b).sum((0, 1))
        va, vb = ((window * (v - m) ** 2).sum((0, 1)) * sample for v, m in ((a, ma), (b, mb)))
        vab = (window * (a - ma) * (b - mb)).sum((0, 1)) * sample
        ssim = (2 * ma * mb + c1) * (2 * vab + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2))
        out[row, column] = ssim.mean()
    return out


def slow_masked_mean(values, over):
    chosen = [float(values[at]) for at in np.ndindex(values.shape) if over[at]]
    return sum(chosen) / len(chosen) if chosen else np.nan


def slow_psnr(right, true, over):
    squares = [(int(a) - int(b)) ** 2 for at in np.argwhere(over) for a, b in zip(right[*at], true[*at], strict=True)]
    return 10 * np.log10(255**2 / (sum(squares) / len(squares)))


def test_the_whole_image_is_scored_as_scikit_image_and_lpips_do():
    right, true, hole = pair()
    scores = score(right, true, hole)
    assert scores.psnr == pytest.approx(peak_signal_noise_ratio(true, right, data_range=255), rel=1e-12)
    assert scores.ssim == pytest.approx(structural_similarity(true, right, **FIELD_OPTIONS), rel=1e-12)
    assert scores.lpips == pytest.approx(float(lpips_model()(true, right).score), rel=1e-5)


@pytest.mark.parametrize("size", [(31, 31), (40, 64)])
def test_the_parts_equal_the_slow_reference(size):
    right, true, hole = pair(*size)
    scores = score(right, true, hole)
    ssim_map, lpips_map = slow_ssim_map(right, true), lpips_model()(right, true).map
    for part, over in (("nonocc", ~hole), ("occ", hole)):
        assert getattr(scores, f"psnr_{part}") == pytest.approx(slow_psnr(right, true, over), rel=1e-12)
        assert getattr(scores, f"ssim_{part}") == pytest.approx(slow_masked_mean(ssim_map, over), rel=1e-6)
        assert getattr(scores, f"lpips_{part}") == pytest.approx(slow_masked_mean(lpips_map, over), rel=1e-6)
    assert scores.ssim == pytest.approx(ssim_map[3:-3, 3:-3].mean(), rel=1e-6)


def test_the_parts_are_scored_where_the_truth_is_known():
    right, true, hole = pair()
    known = np.random.default_rng(3).random(hole.shape) < 0.4
    scores, whole = score(right, true, hole, known), score(right, true, hole)
    assert (scores.psnr, scores.ssim, scores.lpips) == (whole.psnr, whole.ssim, whole.lpips)
    for part, over in (("nonocc", ~hole & known), ("occ", hole & known)):
        assert getattr(scores, f"psnr_{part}") == pytest.approx(slow_psnr(right, true, over), rel=1e-12)
        lpips = slow_masked_mean(lpips_model()(right, true).map, over)
        assert getattr(scores, f"lpips_{part}") == pytest.approx(lpips, rel=1e-6)
    assert score(right, true, hole, np.ones_like(hole)) == whole
    assert np.isnan(score(right, true, hole, ~hole).ssim_occ)


def test_a_right_pixel_is_known_by_what_it_comes_from_and_a_hole_by_both_its_sides():
    #                        0  1  2  3  4  5  6  7  8  9
    disparity = np.array([[0, 0, 0, 2, 2, 2, 0, 0, 0, 0]] * 5, np.float32)
    gaps = {1: 7, 2: 5, 3: 2, 4: 9}  # in a row each: not to be told from its left neighbour, so nothing moves
    for row, column in gaps.items():
        disparity[row, column] = np.nan
    hole, known = hidden(disparity)
    # Left pixels 3 to 5 move to 1 to 3 and open 4 and 5; pixels 1 and 2 are hidden.
    np.testing.assert_array_equal(hole[[0, 1, 2, 4]], [[x in (4, 5) for x in range(10)]] * 4)
    assert known[0].all()
    assert np.nonzero(~known[1])[0].tolist() == [7]
    assert np.nonzero(~known[2])[0].tolist() == [3, 4, 5]
    assert known[3].all()  # the gap is hidden
    assert np.nonzero(~known[4])[0].tolist() == [9]


def test_a_border_hole_is_known_by_its_one_side():
    disparity = np.full((2, 8), 2, np.float32)
    disparity[1, 7] = np.nan
    hole, known = hidden(disparity)
    np.testing.assert_array_equal(hole, [[x > 5 for x in range(8)]] * 2)
    assert known[0].all()
    assert np.nonzero(~known[1])[0].tolist() == [5, 6, 7]


@often
@given(
    st.data(),
    st.tuples(st.integers(1, 6), st.integers(1, 6)),
    st.sampled_from([np.float32, np.float64]),
)
def test_masked_means_equal_the_slow_reference(data, shape, dtype):
    values = data.draw(arrays(dtype, shape, elements=st.floats(0, 100, width=32)))
    over = data.draw(arrays(bool, shape))
    assert masked_mean(values, over) == pytest.approx(slow_masked_mean(values, over), rel=1e-9, nan_ok=True)


@seldom
@given(st.integers(31, 40), st.integers(31, 40), st.integers(0, 1000), st.floats(0, 1))
def test_the_parts_make_up_the_whole(height, width, seed, share):
    right, true, _ = pair(height, width, seed)
    hole = np.random.default_rng(seed).random((height, width)) < share
    scores = score(right, true, hole)
    parts = [(hole.mean(), scores.psnr_occ), (1 - hole.mean(), scores.psnr_nonocc)]
    error = sum(weight * 10 ** (-psnr / 10) for weight, psnr in parts if weight)
    assert scores.psnr == pytest.approx(-10 * np.log10(error), rel=1e-9)
    everywhere = score(right, true, np.ones_like(hole))
    for metric in ("ssim", "lpips"):
        parts = [(hole.mean(), f"{metric}_occ"), (1 - hole.mean(), f"{metric}_nonocc")]
        mean = sum(weight * getattr(scores, part) for weight, part in parts if weight)
        assert getattr(everywhere, f"{metric}_occ") == pytest.approx(mean, rel=1e-9)
    swapped = score(right, true, ~hole)
    for metric in ("psnr", "ssim", "lpips"):
        assert getattr(swapped, metric) == getattr(scores, metric)
        np.testing.assert_equal(getattr(swapped, f"{metric}_occ"), getattr(scores, f"{metric}_nonocc"))


def test_either_view_may_be_called_the_true_one():
    right, true, hole = pair()
    there, back = asdict(score(right, true, hole)), asdict(score(true, right, hole))
    assert there == pytest.approx(back, rel=1e-5)


def test_mirrored_views_have_the_same_psnr_and_ssim():
    right, true, hole = pair()
    scores, mirrored = score(right, true, hole), score(right[:, ::-1], true[:, ::-1], hole[:, ::-1])
    for field in fields(TrueScores):
        if not field.name.startswith("lpips"):
            assert getattr(mirrored, field.name) == pytest.approx(getattr(scores, field.name), rel=1e-9)


def test_the_holes_are_worse_where_they_are_badly_filled():
    scores = score(*pair())
    assert scores.psnr_occ < scores.psnr < scores.psnr_nonocc
    assert scores.ssim_occ < scores.ssim < scores.ssim_nonocc
    assert scores.lpips_occ > scores.lpips > scores.lpips_nonocc


def test_equal_views_get_the_cap_and_finite_scores():
    _, true, hole = pair()
    psnr, ssim, lpips = ([value] * 3 for value in (PSNR_CAP, 1, 0))
    assert list(asdict(score(true, true.copy(), hole)).values()) == pytest.approx(psnr + ssim + lpips, abs=1e-12)


def test_one_level_of_one_value_is_told_from_equality():
    _, true, hole = pair()
    right = true.copy()
    right[0, 0, 0] ^= 1
    scores = score(right, true, hole)
    assert scores.psnr == pytest.approx(10 * np.log10(255**2 * true.size))
    assert scores.psnr < PSNR_CAP
    assert scores.psnr_occ == PSNR_CAP


def test_black_and_white_have_no_psnr():
    black, white = np.zeros((40, 40, 3), np.uint8), np.full((40, 40, 3), 255, np.uint8)
    scores = score(black, white, np.zeros((40, 40), bool))
    assert scores.psnr == scores.psnr_nonocc == 0
    assert 0 < scores.ssim < 0.001


@pytest.mark.parametrize(("holes", "empty", "full"), [(False, "occ", "nonocc"), (True, "nonocc", "occ")])
def test_an_empty_part_is_nan_and_a_full_one_is_the_whole_map(holes, empty, full):
    right, true, _ = pair()
    scores = score(right, true, np.full(right.shape[:2], holes))
    assert all(np.isnan(getattr(scores, f"{metric}_{empty}")) for metric in ("psnr", "ssim", "lpips"))
    assert getattr(scores, f"psnr_{full}") == pytest.approx(scores.psnr)
    assert getattr(scores, f"lpips_{full}") == pytest.approx(lpips_model()(right, true).map.mean(), rel=1e-5)
    _, ssim_map = structural_similarity(right, true, full=True, **FIELD_OPTIONS)
    assert getattr(scores, f"ssim_{full}") == pytest.approx(ssim_map.mean())


def test_scores_are_plain_floats_named_as_the_columns():
    scores = score(*pair())
    names = [f"{metric}{part}" for metric in ("psnr", "ssim", "lpips") for part in ("", "_nonocc", "_occ")]
    assert list(asdict(scores)) == names
    assert all(type(value) is float for value in asdict(scores).values())
    assert replace(scores) == scores


def test_inputs_stay_untouched_and_may_be_read_only():
    parts = pair()
    for part in parts:
        part.flags.writeable = False
    before = [part.copy() for part in parts]
    assert score(*parts) == score(*parts)
    for part, was in zip(parts, before, strict=True):
        np.testing.assert_array_equal(part, was)


def changed(**parts):
    right, true_right, hole = pair(40, 40)
    return {"right": right, "true_right": true_right, "hole": hole} | parts


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (changed(true_right=noise(40, 41)), r"one size, got \(40, 40, 3\) and \(40, 41, 3\)"),
        (changed(right=noise(40, 40, 4)), r"right must be H,W,3 uint8, got \(40, 40, 4\) uint8"),
        (changed(right=noise(40, 40)[..., 0]), r"right must be H,W,3 uint8, got \(40, 40\) uint8"),
        (changed(true_right=noise(40, 40) / 255), r"true_right must be H,W,3 uint8, got \(40, 40, 3\) float64"),
        (changed(hole=np.zeros((40, 39), bool)), r"hole must be \(40, 40\) bool, .* got \(40, 39\) bool"),
        (changed(hole=np.zeros((40, 40), np.uint8)), r"hole must be \(40, 40\) bool, .* got \(40, 40\) uint8"),
        (
            dict(zip(("right", "true_right", "hole"), pair(30, 64), strict=True)),
            r"right: .* 31 pixels or more, got \(30, 64, 3\)",
        ),
    ],
)
def test_other_inputs_are_refused_with_the_rule(parts, message):
    with pytest.raises(ValueError, match=message):
        score(**parts)
