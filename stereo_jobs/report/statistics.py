"""Distributions of a dataset's columns, and its worst and best pairs."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from stereo_jobs.quality.config import QualityConfig
from stereo_jobs.records import QUALITY_PREFIX

BINS = 32
TRUE_PREFIX = "true_"
OTHERS = ("left_psnr", "scale_percent", "unet_evaluations", "run_seconds")
"""Columns shown besides the metrics."""

RANKINGS = (("true_lpips", False), ("qc_raw_backwarp_lpips", False), ("qc_backwarp_lpips", False), ("qc_siou", True))
"""Columns to rank pairs by, and whether larger is better; the first one that a dataset has is used."""

_NOT_OF_THE_COLUMN = {"max_bad_2"}
"""Thresholds on something other than the column of their name: this one limits the excess over the control."""


@dataclass(frozen=True)
class Distribution:
    """How the values of one column are distributed.

    Attributes:
        name: the column.
        count: number of finite values; only these are counted below.
        mean: mean of all values.
        smallest: smallest value.
        largest: largest value.
        quantiles: quantiles at 5, 25, 50, 75 and 95 %.
        edges: ascending edges of `bins`; values beyond the outer edges are counted in the outermost bins.
        bins: number of values in each bin.
        limits: thresholds of quality control on this column.
    """

    name: str
    count: int
    mean: float
    smallest: float
    largest: float
    quantiles: tuple[float, ...]
    edges: tuple[float, ...]
    bins: tuple[int, ...]
    limits: tuple[float, ...] = ()


def distribution(name: str, values: NDArray[np.floating], limits: tuple[float, ...] = ()) -> Distribution | None:
    """The distribution of the finite values; None if there are none. The outer 0.5 % do not widen the bins."""
    known = values[np.isfinite(values)].astype(np.float64)
    if not len(known):
        return None
    low, high = np.quantile(known, [0.005, 0.995])
    if low == high:
        low, high = low - 0.5, high + 0.5
    bins, edges = np.histogram(known.clip(low, high), BINS, (low, high))
    return Distribution(
        name,
        len(known),
        float(known.mean()),
        float(known.min()),
        float(known.max()),
        tuple(float(q) for q in np.quantile(known, [0.05, 0.25, 0.5, 0.75, 0.95])),
        tuple(float(edge) for edge in edges),
        tuple(int(n) for n in bins),
        limits,
    )


def distributions(scalars: pa.Table, quality: QualityConfig) -> list[Distribution]:
    """Distributions of every metric of the dataset, in the order of its columns, with their thresholds."""
    names = [n for n in scalars.column_names if n.startswith((QUALITY_PREFIX, TRUE_PREFIX)) or n in OTHERS]
    found = (distribution(name, numbers(scalars, name), limits_of(name, quality)) for name in names)
    return [each for each in found if each is not None]


def limits_of(column: str, quality: QualityConfig) -> tuple[float, ...]:
    """Thresholds of a column. Fields are named after the column they limit: `min_siou` limits `qc_siou`.

    `min_clip` limits the columns of both views.
    """
    metric = column.removeprefix(QUALITY_PREFIX).removesuffix("_left").removesuffix("_right")
    fields = (f"{side}_{metric}" for side in ("min", "max"))
    values = (getattr(quality, field, None) for field in fields if field not in _NOT_OF_THE_COLUMN)
    return tuple(float(value) for value in values if value is not None) if quality.enabled else ()


def numbers(scalars: pa.Table, column: str) -> NDArray[np.float64]:
    """A column as float64, null as NaN; empty if the dataset has no such column."""
    if column not in scalars.column_names:
        return np.empty(0)
    return np.asarray(pc.cast(scalars[column], pa.float64()).to_numpy(zero_copy_only=False), np.float64)


@dataclass(frozen=True)
class Ranking:
    """The pairs at both ends of a column.

    Attributes:
        column: the column that pairs are ranked by.
        worst: indices of rows, the worst first.
        best: indices of rows, the best first.
    """

    column: str
    worst: list[int]
    best: list[int]


def rank(scalars: pa.Table, count: int) -> Ranking | None:
    """The `count` worst and best pairs, no pair in both; None if no column of `RANKINGS` has a value."""
    for column, larger_is_better in RANKINGS:
        values = numbers(scalars, column)
        known = np.flatnonzero(np.isfinite(values))
        if len(known):
            ascending = known[np.argsort(values[known], kind="stable")]
            from_worst = [int(i) for i in (ascending if larger_is_better else ascending[::-1])]
            worst = from_worst[: min(count, len(known) // 2)]
            return Ranking(column, worst, from_worst[::-1][: min(count, len(known) - len(worst))])
    return None


def reasons(scalars: pa.Table) -> Mapping[str, list[Any]]:
    """Ids of the rejected pairs in the data, by `reject_reason`."""
    found: dict[str, list[Any]] = {}
    if "reject_reason" in scalars.column_names:
        rejected = scalars.filter(pc.is_valid(scalars["reject_reason"]))
        for name, reason in zip(rejected["id"].to_pylist(), rejected["reject_reason"].to_pylist(), strict=True):
            found.setdefault(reason, []).append(name)
    return found
