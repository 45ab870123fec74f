"""Reads a dataset's scalar columns, single rows and errors from its shards; images only where they are asked for."""

import bisect
import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stereo_jobs.data.storage import Storage
from stereo_jobs.output import layout
from stereo_jobs.output.commits import failed_rows, keys_with_errors, sizes
from stereo_jobs.output.layout import ShardKey
from stereo_jobs.output.reading import intact
from stereo_jobs.records import IMAGE_COLUMNS, RowError

SHARD, POSITION = "shard", "position"
"""Columns added to the data: a row's index into `shard_keys` and its position in that shard, for `read_rows`."""


def read_scalars(storage: Storage, most_rows: int | None = None) -> pa.Table:
    """All columns but images of all committed pairs, with `shard` (an index into `shard_keys`) and `position`.

    Args:
        storage: the storage of the output.
        most_rows: a larger dataset is sampled: only every n-th shard is read, about this many rows in all.
    """
    keys = shard_keys(storage)
    wanted = range(len(keys))
    first = [_read_scalars(storage, keys[0], 0)] if keys else []
    if first and most_rows is not None:
        stride = max(1, -(-len(keys) * max(1, len(first[0])) // most_rows))
        wanted = range(0, len(keys), stride)
    with ThreadPoolExecutor(8) as pool:
        rest = list(pool.map(lambda i: _read_scalars(storage, keys[i], i), wanted[1:]))
    tables = [table for table in (*first, *rest) if len(table)]
    with intact(storage, layout.DATA_PREFIX, "their shards have columns of different types; verify names them"):
        return pa.concat_tables(tables or first, promote_options="default") if first else pa.table({})


def shard_keys(storage: Storage) -> list[ShardKey]:
    """The keys of all committed shards, in order."""
    return sorted(key for key, _ in sizes(storage))


def read_rows(storage: Storage, places: Sequence[tuple[int, int]], columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Single rows, in the order of `places`.

    Args:
        storage: the storage of the output.
        places: shard (an index into `shard_keys`) and position of each row.
        columns: names of the columns to read, which may hold images.
    """
    keys = shard_keys(storage)
    for shard, listed in itertools.groupby(places, lambda place: place[0]):
        filesystem, path = storage.for_pyarrow(layout.data(keys[shard]))
        with intact(storage, layout.data(keys[shard])), filesystem.open_input_file(path) as source:
            yield from _rows_at(pq.ParquetFile(source), [position for _, position in listed], columns)


def _rows_at(file: pq.ParquetFile, positions: Sequence[int], columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    ends = list(itertools.accumulate(file.metadata.row_group(g).num_rows for g in range(file.num_row_groups)))
    for group, together in itertools.groupby(positions, lambda position: bisect.bisect_right(ends, position)):
        start = ends[group - 1] if group else 0
        table = file.read_row_group(group, columns=list(columns))
        for position in together:
            yield from table.slice(position - start, 1).to_pylist()


def read_errors(storage: Storage) -> list[RowError]:
    """All failed rows, in the order of their shards; a row that failed again in a retry is listed each time."""
    return [error for _, errors in failed_rows(storage, keys_with_errors(storage)) for error in errors]


def _read_scalars(storage: Storage, key: ShardKey, index: int) -> pa.Table:
    filesystem, path = storage.for_pyarrow(layout.data(key))
    with intact(storage, layout.data(key)), filesystem.open_input_file(path) as source:
        file = pq.ParquetFile(source)
        names = [name for name in file.schema_arrow.names if name not in IMAGE_COLUMNS]
        table = file.read(columns=names)
    places = {SHARD: pa.array([index] * len(table), pa.int32()), POSITION: pa.array(range(len(table)), pa.int32())}
    for name, values in places.items():
        table = table.append_column(name, values)
    return table.replace_schema_metadata(None)
