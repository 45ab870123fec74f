"""Parquet and Arrow files, folders of them, folders of the library `datasets`. Columns keep their types."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stereo_jobs.data.building.source import BATCH_BYTES, BATCH_ROWS, LeftOut, Source, SourceFile, sorted_out
from stereo_jobs.data.manifest import KNOWN
from stereo_jobs.data.row_groups import UNREADABLE
from stereo_jobs.errors import ManifestError
from stereo_jobs.spec import StorageSpec

TABLE_SUFFIXES = (".parquet", ".arrow", ".feather")


class Tables(Source):
    """Files with columns of their own types, as one table.

    Args:
        where: the file or folder, for messages.
        files: its files, in order.
        left_out: what is no such file.

    Raises:
        ManifestError: a file cannot be read, has two columns of one name, or a column has no type in common with the
            same column of the others.
    """

    def __init__(self, where: str, files: list[SourceFile], left_out: list[LeftOut]) -> None:
        self.where, self.left_out = where, left_out
        self._files = files
        merged = pa.schema([])
        for file in files:
            schema = self._opened(file).schema
            for name in schema.names:
                if schema.names.count(name) > 1:
                    raise ManifestError(f"{file.where}: column {name!r} appears twice; rename or drop one")
            plain = pa.schema([(field.name, field.type) for field in schema])
            try:
                merged = pa.unify_schemas([merged, plain], promote_options="permissive")
            except (pa.ArrowException, TypeError) as error:
                raise ManifestError(f"{file.where}: its columns do not fit those of other files ({error})") from None
        self._merged = merged
        self.columns = merged.names

    def count(self) -> int:
        """Return the number of rows."""
        return sum(self._opened(file).count() for file in self._files)

    def schema(self, chosen: Mapping[str, str]) -> pa.Schema:
        """Return the types of the manifest's columns: known text is text, all others are as they were."""
        types = {name: self._merged.field(source).type for name, source in chosen.items()}
        return pa.schema([(name, _as_known(name, dtype)) for name, dtype in types.items()])

    def tables(self, chosen: Mapping[str, str], schema: pa.Schema) -> Iterator[pa.Table]:
        """Read all rows, file by file; a column that a file lacks is null there."""
        for file in self._files:
            try:
                for batch in self._opened(file).batches():
                    yield _fitted(batch, chosen, schema)
            except UNREADABLE as error:
                raise _unreadable(file, error) from None

    @staticmethod
    def _opened(file: SourceFile) -> "_Parquet | _Arrow":
        try:
            return _Parquet(file) if file.suffix == ".parquet" else _Arrow(file)
        except FileNotFoundError:
            raise ManifestError(f"{file.where}: no such file") from None
        except UNREADABLE as error:
            raise _unreadable(file, error) from None


class _Parquet:
    def __init__(self, file: SourceFile) -> None:
        self._file = pq.ParquetFile(file.open_for_arrow(), pre_buffer=False)
        self.schema: pa.Schema = self._file.schema_arrow

    def count(self) -> int:
        return int(self._file.metadata.num_rows)

    def batches(self) -> Iterator[pa.RecordBatch]:
        metadata = self._file.metadata
        size = sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))
        rows = min(BATCH_ROWS, max(1, BATCH_BYTES * metadata.num_rows // max(1, size)))
        return self._file.iter_batches(rows, use_threads=False)  # type: ignore[no-any-return]


class _Arrow:
    """A file or a stream in the form of Arrow; `datasets` keeps streams."""

    def __init__(self, file: SourceFile) -> None:
        self._file = file.open_for_arrow()
        is_file = self._file.read(6) == b"ARROW1"
        self._file.seek(0)
        self._reader: Any = pa.ipc.open_file(self._file) if is_file else pa.ipc.open_stream(self._file)
        self._is_file = is_file
        self.schema: pa.Schema = self._reader.schema

    def count(self) -> int:
        return sum(batch.num_rows for batch in self._whole())

    def batches(self) -> Iterator[pa.RecordBatch]:
        for batch in self._whole():
            rows = min(BATCH_ROWS, max(1, BATCH_BYTES * batch.num_rows // max(1, batch.nbytes)))
            yield from (batch.slice(start, rows) for start in range(0, batch.num_rows, rows))

    def _whole(self) -> Iterator[pa.RecordBatch]:
        if self._is_file:
            return (self._reader.get_batch(i) for i in range(self._reader.num_record_batches))
        return iter(self._reader)


def _as_known(name: str, dtype: pa.DataType) -> pa.DataType:
    """Return the type of a column in the manifest."""
    kind = KNOWN.get(name)
    if kind in ("integer", "number") and pa.types.is_null(dtype):
        return pa.int64() if kind == "integer" else pa.float64()
    written = (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal, pa.types.is_temporal)
    if kind == "string" and (any(holds(dtype) for holds in written) or dtype == pa.string_view()):
        return pa.string()
    return dtype


def _fitted(batch: pa.RecordBatch, chosen: Mapping[str, str], schema: pa.Schema) -> pa.Table:
    names = set(batch.schema.names)
    columns = []
    for field in schema:
        source = chosen[field.name]
        column = batch.column(batch.schema.names.index(source)) if source in names else None
        columns.append(pa.nulls(len(batch), field.type) if column is None else _cast(column, field))
    return pa.table(columns, schema=schema)


def _cast(column: pa.Array, field: pa.Field) -> pa.Array:
    return column if column.type == field.type else column.cast(field.type)


def _unreadable(file: SourceFile, error: Exception) -> ManifestError:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return ManifestError(f"{file.where}: cannot be read ({reason})")


def dataset_files(folder: str, names: list[str], settings: StorageSpec) -> list[SourceFile] | None:
    """Return the files of a folder that `datasets` has saved, in its order; None if it is no such folder.

    Raises:
        ManifestError: it is a folder of several such folders.
    """
    if "dataset_dict.json" in names:
        splits = sorted({name.split("/")[0] for name in names if name.endswith("/state.json")})
        raise ManifestError(f"{folder}: has a data set in each of its folders {', '.join(splits)}; name one of them")
    if "state.json" not in names:
        return None
    with SourceFile(f"{folder}/state.json", settings).open() as file:
        try:
            listed = [entry["filename"] for entry in json.load(file)["_data_files"]]
        except (ValueError, KeyError, TypeError):
            raise ManifestError(f"{folder}/state.json: does not list the files of a data set; save it again") from None
    return [SourceFile(f"{folder}/{name}", settings) for name in listed]


def table_files(folder: str, names: list[str], settings: StorageSpec) -> tuple[list[SourceFile], list[LeftOut]]:
    """Return the Parquet and Arrow files of a folder, and what else is there."""
    partitions = LeftOut("column", "whose values stand in the names of folders only")
    for column in sorted({part.partition("=")[0] for name in names for part in name.split("/")[:-1] if "=" in part}):
        partitions.add(column)
    visible = [name for name in sorted(names) if not any(part.startswith("_") for part in name.split("/"))]
    marks = LeftOut("file", "whose name begins with _")
    for name in sorted(set(names) - set(visible)):
        marks.add(name)
    wanted, left_out = sorted_out(visible, TABLE_SUFFIXES, "a Parquet or Arrow file")
    return [SourceFile(f"{folder}/{name}", settings) for name in wanted], [*left_out, marks, partitions]
