"""Reads rows of a Parquet file in memory that their decoded size bounds, whatever its footer says.

Many rows can share one value: Parquet stores it once in a dictionary, and a file of 4 MB may decode to 2.5 GB. Such
columns stay dictionaries here, which hold each value once. All others come in batches of few rows. A row group can only
be read from its start, so a reader that reads on keeps its place.
"""

import contextlib
import io
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from stereo_jobs.data.arrow_types import without_views

UNREADABLE = (pa.ArrowException, IndexError, OSError, UnicodeDecodeError)
"""What Arrow raises while it opens or reads a file that is damaged, is not Parquet, or holds what Arrow cannot read."""

_BATCH_BYTES = 8 * 1024**2
"""Decoded bytes that a batch should have, going by the footer."""
_WIDE_BYTES = 64 * 1024
"""Bytes a row, by the footer, from which a column counts as wide."""
_NARROW_ROWS = 16_384
"""Most rows of a batch of narrow columns: each of their values is small, or is stored once."""
_WIDE_ROWS = 32
"""Most rows of a batch of wide columns. Their decoded size may be far above what the footer says."""
_BUFFER_BYTES = 1024**2
"""Bytes read at a time of each column. Without it, Arrow reads the whole column of a row group at once."""
_RECENT_BYTES = 64 * 1024**2
"""Decoded bytes that a cursor keeps behind it: two shards of a worker may be read in either order."""


class _Part(NamedTuple):
    """Columns of a row group that are read together.

    Attributes:
        columns: their names.
        dictionaries: paths of their leaves that stay dictionaries.
        batch_rows: rows of a batch.
    """

    columns: list[str]
    dictionaries: list[str]
    batch_rows: int


class RowGroups:
    """An open Parquet file.

    Args:
        handle: the open file; it is read by range.

    Raises:
        UNREADABLE: it is not Parquet, or cannot be read.
    """

    def __init__(self, handle: Any) -> None:
        parquet = pq.ParquetFile(handle)
        self._handle = handle
        self.metadata: pq.FileMetaData = parquet.metadata
        # Pages may have checksums, footers have none: a store that alters bytes gives another one the second time.
        if not self.metadata.equals(pq.read_metadata(handle)):
            raise OSError("its footer reads differently each time")
        self.schema: pa.Schema = parquet.schema_arrow

    def stored_bytes(self, group: int) -> int:
        """Return the bytes that the columns of a row group take in the file, by the footer. Raises UNREADABLE."""
        chunks = self.metadata.row_group(group)
        return sum(chunks.column(i).total_compressed_size for i in range(chunks.num_columns))

    def batches(self, group: int, part: _Part) -> Iterator[pa.RecordBatch]:
        """Read some columns of a row group from its start. Views and extensions become what they stand for."""
        parquet = pq.ParquetFile(
            self._handle,
            metadata=self.metadata,
            read_dictionary=part.dictionaries,
            pre_buffer=False,
            buffer_size=_BUFFER_BYTES,
            page_checksum_verification=True,
        )
        for batch in parquet.iter_batches(part.batch_rows, row_groups=[group], columns=part.columns, use_threads=False):
            columns = [_without_views(column) for column in batch.columns]
            yield pa.RecordBatch.from_arrays(columns, names=batch.schema.names)

    def parts(self, group: int, columns: Sequence[str]) -> list[_Part]:
        """Split columns of a row group into those that are read in large batches and those in small ones.

        Raises:
            UNREADABLE: what the footer says of the row group cannot be used.
        """
        self._check_chunks(group)
        chunks = self.metadata.row_group(group)
        rows = max(1, chunks.num_rows)
        narrow, wide = _Part([], [], _NARROW_ROWS), _Part([], [], _WIDE_ROWS)
        widths = {narrow.batch_rows: 1.0, wide.batch_rows: 1.0}
        leaf = 0
        for field in self.schema:
            types = _leaves(field.type)
            leaves = [chunks.column(i) for i in range(leaf, leaf + len(types))]
            # By the schema: in a damaged footer the chunks may say other paths.
            described = [self.metadata.schema.column(leaf + i) for i in range(len(leaves))]
            repeated = any(column.max_repetition_level for column in described)
            sizes = [column.length if column.length > 0 else 8 * repeated for column in described]
            leaf += len(leaves)
            if field.name not in columns:
                continue
            # Bytes of a fixed length, and numbers in lists, may be shared, too.
            pairs = list(zip(leaves, sizes, strict=True))
            width = sum(max(chunk.total_uncompressed_size, size * chunk.num_values) for chunk, size in pairs) / rows
            part = wide if width > _WIDE_BYTES or any(map(_hides_its_size, leaves, types)) else narrow
            widths[part.batch_rows] += width
            part.columns.append(field.name)
            if part is narrow:
                shared = map(_has_dictionary, leaves)
                part.dictionaries.extend(column.path for column, has in zip(described, shared, strict=True) if has)
        return [
            part._replace(batch_rows=max(1, min(part.batch_rows, int(_BATCH_BYTES / widths[part.batch_rows]))))
            for part in (narrow, wide)
            if part.columns
        ]

    def _check_chunks(self, group: int) -> None:
        """Look at what the footer says of each column of a row group, as Arrow's own reader does.

        The binding in Python ends the process where the reader raises an error (a histogram of another length).
        """
        footer_only = pq.ParquetFile(pa.PythonFile(_NoBytes(self._handle.size())), metadata=self.metadata)
        for column in self.schema.names:
            with contextlib.suppress(_NoBytesError):
                next(footer_only.iter_batches(1, row_groups=[group], columns=[column], use_threads=False), None)


class _NoBytesError(Exception):
    """A reader has found nothing wrong in a footer, and goes on to the pages."""


class _NoBytes(io.RawIOBase):
    """A file of a given size that refuses to be read."""

    def __init__(self, size: int) -> None:
        self._size, self._at = size, 0

    def readable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + (self._size if whence == io.SEEK_END else 0)
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, size: int = -1) -> bytes:
        raise _NoBytesError


class Cursor:
    """A place in some columns of a row group, from which it reads on.

    Args:
        file: the open file.
        group: number of the row group.
        part: what to read of it.
    """

    def __init__(self, file: RowGroups, group: int, part: _Part) -> None:
        self._file, self._group, self.part = file, group, part
        self._restart()

    def _restart(self) -> None:
        self._batches = self._file.batches(self._group, self.part)
        self._recent: deque[tuple[int, pa.RecordBatch]] = deque()
        self._end = 0
        """The first row that has not been read yet."""

    def take(self, rows: Sequence[int]) -> Iterator[pa.RecordBatch]:
        """Read rows, ascending, counted from the start of the row group; yields them in one or more batches."""
        if rows and rows[0] < (self._recent[0][0] if self._recent else self._end):
            self._restart()
        for start, batch in list(self._recent):
            yield from _inside(start, batch, rows)
        while rows and rows[-1] >= self._end:
            batch = next(self._batches, None)
            if batch is None:
                return
            start, self._end = self._end, self._end + len(batch)
            self._recent.append((start, batch))
            while len(self._recent) > 1 and sum(old.nbytes for _, old in self._recent) > _RECENT_BYTES:
                self._recent.popleft()
            yield from _inside(start, batch, rows)


def _without_views(column: pa.Array) -> pa.Array:
    readable = without_views(column.type)
    # Nothing is converted here, and text that is not UTF-8 stays.
    return column if readable == column.type else column.cast(readable, safe=False)


def _inside(start: int, batch: pa.RecordBatch, rows: Sequence[int]) -> Iterator[pa.RecordBatch]:
    inside = [row - start for row in rows if start <= row < start + len(batch)]
    if inside:
        yield batch.take(pa.array(inside))


def _leaves(dtype: pa.DataType) -> list[pa.DataType]:
    """List the types of the Parquet columns that hold a column of this type."""
    stored = getattr(dtype, "storage_type", dtype)
    return [leaf for i in range(stored.num_fields) for leaf in _leaves(stored.field(i).type)] or [dtype]


def _has_dictionary(chunk: pq.ColumnChunkMetaData) -> bool:
    """Whether a column of strings or bytes has its values in a dictionary, at least at first."""
    return chunk.physical_type == "BYTE_ARRAY" and any("DICTIONARY" in name for name in chunk.encodings)


def _hides_its_size(chunk: pq.ColumnChunkMetaData, dtype: pa.DataType) -> bool:
    """Whether Arrow does not keep shared values as a dictionary: differences from others, and extensions (JSON)."""
    if chunk.physical_type != "BYTE_ARRAY":
        return False
    return "DELTA_BYTE_ARRAY" in chunk.encodings or (isinstance(dtype, pa.BaseExtensionType) and _has_dictionary(chunk))
