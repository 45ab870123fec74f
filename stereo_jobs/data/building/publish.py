"""Writes tables as one Parquet file under a name that is still free."""

import io
from collections.abc import Iterable

import pyarrow as pa
import pyarrow.parquet as pq

from stereo_jobs.data.manifest_files import split_uri
from stereo_jobs.data.storage import AlreadyExistsError
from stereo_jobs.errors import ManifestError
from stereo_jobs.spec import StorageSpec

ROW_GROUP_ROWS = 10_000
"""Rows per row group; small, because a shard reads only the row groups of its own rows."""


def publish(table: pa.Table, target: str, settings: StorageSpec, row_group_rows: int = ROW_GROUP_ROWS) -> None:
    """Write a table as a manifest. Raises ManifestError if the target exists."""
    create(encode(table.schema, [table], row_group_rows), target, settings)


def encode(schema: pa.Schema, tables: Iterable[pa.Table], row_group_rows: int = ROW_GROUP_ROWS) -> bytes:
    """Return tables of one schema as the bytes of a Parquet file; each table begins a row group of its own."""
    buffer = io.BytesIO()
    # Workers read it page by page, and no store vouches for a part of an object.
    with pq.ParquetWriter(buffer, schema, compression="zstd", write_page_checksum=True) as writer:
        for table in tables:
            writer.write_table(table, row_group_size=row_group_rows)
    return buffer.getvalue()


def create(data: bytes, target: str, settings: StorageSpec) -> None:
    """Write a whole manifest. Raises ManifestError if the target exists."""
    storage, name = split_uri(target, settings)
    try:
        storage.create(name, data)
    except AlreadyExistsError:
        raise exists_already(target) from None


def refuse_existing(target: str, settings: StorageSpec) -> None:
    """Check early that a name is free. Raises ManifestError if the target exists."""
    storage, name = split_uri(target, settings)
    if storage.exists(name):
        raise exists_already(target)


def exists_already(target: str) -> ManifestError:
    """Return what to raise for a target that exists."""
    return ManifestError(f"{target}: exists already; a planned manifest must not change, choose a new name")
