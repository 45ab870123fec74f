"""A label against an estimator's depth."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from stereo_jobs.quality.depth_agreement import depth_doubt, depth_rank
from stereo_jobs.toyscapes.render import render
from stereo_jobs.toyscapes.scenes import draw_scene


def everywhere(values):
    return np.ones(values.shape, bool)


def slow_rank(label, depth, known):
    apart = max(2, label.shape[1] // 16)
    pairs = []
    for y in range(label.shape[0]):
        for x in range(label.shape[1] - apart):
            if known[y, x] and known[y, x + apart]:
                pairs.append((label[y, x + apart] - label[y, x], depth[y, x + apart] - depth[y, x]))
    limits = 0.1 * np.ptp(label[known]), 0.1 * np.ptp(depth[known])
    large = np.array([pair for pair in pairs if abs(pair[0]) > limits[0] or abs(pair[1]) > limits[1]])
    return spearmanr(*large.T).statistic


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32 - 1))
def test_rank_against_scipy(seed):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 6, (5, 48)).astype(np.float32)
    depth = (label + rng.normal(0, 2, label.shape)).astype(np.float32)
    known = rng.random(label.shape) < 0.9
    assert depth_rank(label, depth, known) == pytest.approx(slow_rank(label, depth, known), abs=1e-9)


def test_rank_is_blind_to_scale_and_offset_and_sees_another_scene():
    one, other = (render(draw_scene(seed)).disparity for seed in (1, 2))
    assert depth_rank(one, 3 * one - 7, everywhere(one)) == pytest.approx(1)
    assert depth_rank(one, -one, everywhere(one)) == pytest.approx(-1)
    assert depth_rank(other, one, everywhere(one)) < 0.5


def test_constant_or_unknown_maps_have_no_rank():
    flat, slope = np.zeros((4, 32), np.float32), np.tile(np.arange(32, dtype=np.float32), (4, 1))
    assert math.isnan(depth_rank(flat, flat, everywhere(flat)))
    assert math.isnan(depth_rank(slope, flat, everywhere(flat)))
    assert math.isnan(depth_rank(slope, slope, ~everywhere(flat)))
    assert math.isnan(depth_rank(slope[:, :1], slope[:, :1], everywhere(flat[:, :1])))
    assert math.isnan(depth_rank(np.full_like(slope, np.nan), slope, everywhere(flat)))


def test_doubt():
    depth = np.random.default_rng(0).random((6, 8)).astype(np.float32)
    assert depth_doubt(depth, depth[:, ::-1]) == 0
    assert depth_doubt(depth, depth[:, ::-1] + np.float32(0.5)) == pytest.approx(0.5 / np.ptp(depth), rel=1e-5)
    assert math.isnan(depth_doubt(np.zeros_like(depth), depth))
    assert math.isnan(depth_doubt(depth, np.full_like(depth, np.nan)))
