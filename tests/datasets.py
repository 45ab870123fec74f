"""Reads finished datasets, and compares pairs."""

import dataclasses

import numpy as np
import pyarrow as pa

from stereo_jobs.data.shards import read_table
from stereo_jobs.data.storage import open_storage
from stereo_jobs.output import layout
from stereo_jobs.output.plan import load_job
from stereo_jobs.output.verify import VerifyReport, verify
from stereo_jobs.records import RUN_PREFIX, StereoPair
from stereo_jobs.run.prepare import Prepared, prepare
from stereo_jobs.spec import JobSpec


def prepared(spec: JobSpec, **options) -> Prepared:
    return prepare(spec, open_storage(spec.output, spec.runtime.storage), **options)


def verdict(spec: JobSpec) -> VerifyReport:
    storage = open_storage(spec.output, spec.runtime.storage)
    return verify(storage, load_job(storage), spec.runtime.storage)


def rows(spec: JobSpec) -> dict[str, dict]:
    """All rows by id, without the columns that may differ between runs."""
    storage = open_storage(spec.output, spec.runtime.storage)
    tables = [read_table(storage.read(info.key)) for info in storage.list(layout.DATA_PREFIX)]
    table = pa.concat_tables(tables)
    table = table.drop_columns([name for name in table.column_names if name.startswith(RUN_PREFIX)])
    listed = table.to_pylist()
    assert len({row["id"] for row in listed}) == len(listed)
    return {row["id"]: row for row in listed}


def failures(spec: JobSpec) -> dict[str, str]:
    """Types of error by the ids of rows that failed."""
    storage = open_storage(spec.output, spec.runtime.storage)
    tables = [read_table(storage.read(info.key)) for info in storage.list(layout.ERRORS_PREFIX)]
    return {row["id"]: row["error_type"] for table in tables for row in table.to_pylist()}


def assert_same(one: StereoPair, other: StereoPair) -> None:
    """Two pairs are equal in every field, images byte for byte."""
    assert type(one) is type(other) is StereoPair
    _assert_same_fields(one, other)


def _assert_same_fields(one, other) -> None:
    for field in dataclasses.fields(one):
        _assert_same_values(getattr(one, field.name), getattr(other, field.name), field.name)


def _assert_same_values(a, b, name: str) -> None:
    assert type(a) is type(b), name
    if isinstance(a, np.ndarray):
        assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes()), name
    elif isinstance(a, tuple):
        for x, y in zip(a, b, strict=True):
            _assert_same_values(x, y, name)
    elif dataclasses.is_dataclass(a):
        _assert_same_fields(a, b)
    else:
        assert a == b, name
