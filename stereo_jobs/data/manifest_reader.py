"""Reads single rows of manifest files, and makes sure that they are still the files that were planned."""

import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import pyarrow as pa

from stereo_jobs.data.arrow_types import plain
from stereo_jobs.data.manifest import KNOWN, SCALARS, carried_schema
from stereo_jobs.data.manifest_files import ManifestFile, open_file, split_uri, unreadable
from stereo_jobs.data.row_groups import UNREADABLE, Cursor, RowGroups
from stereo_jobs.data.storage import NotFoundError
from stereo_jobs.errors import DriftError, ManifestError, StorageUnavailableError
from stereo_jobs.spec import StorageSpec

Cells = dict[str, Any]
"""One row of a manifest: values of the known columns, and arrays of one cell of the columns that are carried through.

A known cell that Python cannot hold is the exception that says why. A carried one never becomes a Python object."""

_STREAMED_ROWS = 4096
"""Rows that `stream_cells` gives at a time."""


class ManifestReader:
    """Reads rows of manifest files. It keeps its place in the last row group, where the next shard often continues."""

    def __init__(self, settings: StorageSpec) -> None:
        self.settings = settings
        self._file: tuple[str, RowGroups] | None = None
        self._cursors: tuple[tuple[str, int, tuple[str, ...]], list[Cursor]] | None = None
        self._confirmed: dict[str, str] = {}
        """The version of each file at which its content was the planned one."""
        self._carried: dict[str, pa.Schema] = {}
        self._lock = threading.Lock()

    def read(
        self,
        file: ManifestFile,
        rows: Sequence[int],
        columns: frozenset[str] | None = None,
        carried: Sequence[str] | None = None,
    ) -> list[Cells]:
        """Read rows of a file.

        Args:
            file: the manifest file, as it was planned.
            rows: indices into the file, ascending.
            columns: known columns to read, of those that the file has. None: all of them.
            carried: other columns to read, of those that the file or its folders have. None: all of them.

        Raises:
            DriftError: the file is not the one that was planned.
            ManifestError: the file cannot be read.
            StorageUnavailableError: the store does not answer at the moment.
        """
        with self._lock:
            self._confirm(file)
            try:
                cells = self._read(file.uri, rows, columns, carried)
            except (ManifestError, StorageUnavailableError):
                # The credentials or the connection of the open file may have expired: try once more with a new one.
                self._forget()
                self._confirm(file)
                cells = self._read(file.uri, rows, columns, carried)
        shared = {
            name: pa.array([value], pa.string())
            for name, value in file.partitions.items()
            if carried is None or name in carried
        }
        return [row | shared for row in cells] if shared else cells

    def confirm(self, file: ManifestFile) -> None:
        """Check that a file still has the content that was planned. Cheap: a file is only read if it was touched.

        Raises:
            DriftError: it has not, or is gone.
        """
        with self._lock:
            self._confirm(file)

    def carried_schema(self, file: ManifestFile) -> pa.Schema:
        """Return names and types of the columns of a file that are carried through as `src_*`."""
        if file.uri not in self._carried:
            self.confirm(file)
            self._carried[file.uri] = carried_schema(file.uri, self.settings)
            self.confirm(file)
        return self._carried[file.uri]

    def _confirm(self, file: ManifestFile) -> None:
        storage, name = split_uri(file.uri, self.settings)
        try:
            version = storage.version(name)
            if self._confirmed.get(file.uri) == version:
                return
            self._forget()  # what is open may be an older or a newer file than the one looked at now
            if storage.content_tag(name) == file.tag:
                self._confirmed[file.uri] = version
                return
        except NotFoundError:
            raise DriftError(f"manifest {file.uri}: gone since it was planned; restore it and run again") from None
        raise DriftError(
            f"manifest {file.uri}: its content changed since it was planned; restore it and run again, or choose a "
            "new output"
        )

    def _forget(self) -> None:
        self._file = self._cursors = None

    def _read(
        self, uri: str, rows: Sequence[int], columns: frozenset[str] | None, carried: Sequence[str] | None
    ) -> list[Cells]:
        cells: list[Cells] = []
        start = 0
        try:
            parquet = self._open(uri)
            wanted = [(columns if name in KNOWN else carried, name) for name in parquet.schema.names]
            names = tuple(name for among, name in wanted if among is None or name in among)
            for group in range(parquet.metadata.num_row_groups):
                end = start + parquet.metadata.row_group(group).num_rows
                inside = [row - start for row in rows if start <= row < end]
                if inside:
                    cells += self._read_group(parquet, (uri, group, names), inside)
                start = end
        except UNREADABLE as error:
            raise unreadable(uri, self.settings, "cannot be read", error) from None
        if len(cells) != len(rows):
            raise ManifestError(
                f"manifest {uri}: has {start} rows, fewer than when the job was planned; restore the file"
            )
        return cells

    def _open(self, uri: str) -> RowGroups:
        if self._file is None or self._file[0] != uri:
            self._file = (uri, open_file(uri, self.settings))
        return self._file[1]

    def _read_group(self, parquet: RowGroups, place: tuple[str, int, tuple[str, ...]], rows: list[int]) -> list[Cells]:
        if self._cursors is None or self._cursors[0] != place:
            _, group, names = place
            self._cursors = (place, [Cursor(parquet, group, part) for part in parquet.parts(group, names)])
        try:
            read = [_cells(cursor, rows) for cursor in self._cursors[1]]
        except Exception:
            self._cursors = None  # what broke off has lost its place
            raise
        return [dict(itertools.chain(*(cells.items() for cells in parts))) for parts in zip(*read, strict=False)]


def stream_cells(file: ManifestFile, settings: StorageSpec) -> Iterator[list[Cells]]:
    """Read the known columns of a file from its first row to its last, some rows at a time, but no images.

    A cell of an image column is empty bytes, whether the row has an image or not.

    Raises:
        ManifestError: the file cannot be read.
        StorageUnavailableError: the store does not answer at the moment.
    """
    try:
        parquet = open_file(file.uri, settings)
        known = [name for name in parquet.schema.names if name in KNOWN]
        images: Cells = dict.fromkeys((name for name in known if name not in SCALARS), b"")
        for group in range(parquet.metadata.num_row_groups):
            rows = range(parquet.metadata.row_group(group).num_rows)
            cursors = [Cursor(parquet, group, part) for part in parquet.parts(group, [*SCALARS])]
            for start in range(0, len(rows), _STREAMED_ROWS):
                read = [_cells(cursor, rows[start : start + _STREAMED_ROWS]) for cursor in cursors]
                yield [images | dict(itertools.chain(*(c.items() for c in parts))) for parts in zip(*read, strict=True)]
    except UNREADABLE as error:
        raise unreadable(file.uri, settings, "cannot be read", error) from None


def _cells(cursor: Cursor, rows: Sequence[int]) -> list[Cells]:
    """Read the columns of one cursor, as one dictionary per row."""
    cells: list[Cells] = []
    for batch in cursor.take(rows):
        found = {name: (_values if name in KNOWN else _single)(batch[name]) for name in cursor.part.columns}
        cells += [dict(zip(found, row, strict=True)) for row in zip(*found.values(), strict=True)]
    return cells


def _single(column: pa.Array) -> list[Any]:
    """Return an array of one cell for each row. A cell with no value in its dictionary becomes its exception."""
    dtype = plain(column.type)
    cells = [column.slice(i, 1) for i in range(len(column))]
    return cells if dtype == column.type else [_value(partial(_looked_up, cell, dtype)) for cell in cells]


def _looked_up(cell: pa.Array, dtype: pa.DataType) -> pa.Array:
    """Return a cell, once its dictionaries have a value for it. The value is not kept: rows may share a long one."""
    cell.cast(dtype)
    return cell


def _values(column: pa.Array) -> list[Any]:
    """Convert cells to plain values; rows that share a value in a dictionary share one object."""
    if not pa.types.is_dictionary(column.type):
        return [_value(cell.as_py) for cell in column]
    shared = {i: _value(column.dictionary[i].as_py) for i in column.indices.unique().drop_null().to_pylist()}
    return [None if i is None else shared[i] for i in column.indices.to_pylist()]


def _value(convert: Callable[[], Any]) -> Any:
    """Convert a cell. One that cannot be converted becomes its exception, which fails only its row."""
    try:
        return convert()
    except (ValueError, ArithmeticError, IndexError) as error:
        return error
