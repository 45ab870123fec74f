"""Distributions, thresholds and rankings of columns."""

import numpy as np
import pyarrow as pa
import pytest

from stereo_jobs.quality.config import QualityConfig
from stereo_jobs.records import DATASET_COLUMNS, QUALITY_PREFIX
from stereo_jobs.report.statistics import distribution, distributions, limits_of, rank, reasons


def test_a_distribution_counts_every_finite_value_once():
    values = np.random.default_rng(0).normal(size=1000)
    found = distribution("x", np.append(values, [np.nan, np.inf]))
    assert (found.count, sum(found.bins)) == (1000, 1000)
    assert found.mean == pytest.approx(values.mean())
    assert (found.smallest, found.largest) == (values.min(), values.max())
    assert found.quantiles[2] == pytest.approx(np.median(values))
    wanted, _ = np.histogram(values, found.edges)
    np.testing.assert_array_equal(found.bins[1:-1], wanted[1:-1])


def test_an_outlier_does_not_stretch_the_bins():
    found = distribution("x", np.append(np.linspace(0, 1, 1000), 1e6))
    assert found.edges[-1] < 2
    assert (found.largest, sum(found.bins)) == (1e6, 1001)


def test_one_value_and_none():
    found = distribution("x", np.full(5, 3.0))
    assert found.edges[0] < 3 < found.edges[-1]
    assert sum(found.bins) == 5
    assert distribution("x", np.array([np.nan])) is None


def test_every_threshold_on_a_column_is_drawn():
    quality = QualityConfig(min_siou=0.5, max_hole_share=0.2)
    assert limits_of("qc_siou", quality) == (0.5,)
    assert limits_of("qc_identity", quality) == (0.7, 1.4)
    assert limits_of("qc_bad_2", quality) == ()  # its threshold is beyond the control
    assert limits_of("qc_clip_left", QualityConfig(min_clip=20)) == (20,)
    assert limits_of("qc_clip_right", QualityConfig(min_clip=20)) == (20,)
    assert limits_of("qc_siou", QualityConfig(enabled=False, min_siou=0.5)) == ()
    columns = {name for name in DATASET_COLUMNS.names if name.startswith(QUALITY_PREFIX)}
    named = {
        QUALITY_PREFIX + name.partition("_")[2] for name in QualityConfig.model_fields if name[:4] in ("min_", "max_")
    }
    # These limit something else than a column of their name.
    assert named - columns == {"qc_offset_px", "qc_parallax", "qc_empty_seam", "qc_clip"}


def table(**columns):
    count = len(next(iter(columns.values())))
    return pa.table({"id": [f"r{i}" for i in range(count)]} | columns)


def test_metrics_without_any_value_have_no_distribution():
    scalars = table(qc_siou=pa.array([0.1, None, 0.3]), qc_epe=pa.array([None] * 3, pa.float32()), prompt=["a"] * 3)
    [only] = distributions(scalars, QualityConfig())
    assert (only.name, only.count) == ("qc_siou", 2)


@pytest.mark.parametrize(
    ("columns", "worst", "best"),
    [
        ({"true_lpips": [0.1, 0.4, None, 0.2]}, [1], [0, 3]),
        ({"true_lpips": [None] * 4, "qc_siou": [0.1, 0.4, 0.3, 0.2]}, [0, 3], [1, 2]),
        ({"qc_backwarp_lpips": [0.5, None, None, None]}, [], [0]),
    ],
)
def test_pairs_are_ranked_by_the_first_column_that_has_values(columns, worst, best):
    scalars = table(**{name: pa.array(values, pa.float32()) for name, values in columns.items()})
    found = rank(scalars, 2)
    assert (found.worst, found.best) == (worst, best)


def test_without_metrics_nothing_is_ranked():
    assert rank(table(qc_siou=pa.array([None], pa.float32())), 2) is None


def test_rejected_pairs_are_listed_by_reason():
    scalars = table(reject_reason=["holes", None, "seam", "holes"])
    assert reasons(scalars) == {"holes": ["r0", "r3"], "seam": ["r2"]}
