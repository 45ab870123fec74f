"""Sources that are read row by row, from cells to columns; lines of text."""

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from decimal import Decimal, InvalidOperation
from typing import Any

import pyarrow as pa

from stereo_jobs.data.building.source import BATCH_BYTES, BATCH_ROWS, Source, SourceFile
from stereo_jobs.data.manifest import KNOWN
from stereo_jobs.errors import ManifestError

_NO_NUMBER = {"", "na", "n/a", "#n/a", "nan", "null", "none"}
"""What stands for "no number" in spreadsheets and data frames, in lower case."""

Record = tuple[int, Sequence[Any]]
"""The line at which a row begins, from 1, and its cells in the order of the source's columns."""


class WrittenFloat(float):
    """A number that remembers how it was written."""

    def __init__(self, text: str) -> None:
        self.written = text


class RowSource(Source):
    """A source of cells. Known columns get the type that a plan needs; the others stay as they are."""

    file: SourceFile
    place = "line"
    """What a record's number counts."""

    @abstractmethod
    def records(self) -> Iterator[Record]:
        """Read all rows from the start."""

    def carried_type(self, column: str) -> pa.DataType:
        """Return the type of a column of the source that is carried through: text, unless a kind knows better."""
        return pa.string()

    def count(self) -> int:
        """Return the number of rows."""
        return sum(1 for _ in self.records())

    def schema(self, chosen: Mapping[str, str]) -> pa.Schema:
        """Return the types of the manifest's columns."""
        return pa.schema([(name, self._type(name, source)) for name, source in chosen.items()])

    def _type(self, name: str, source: str) -> pa.DataType:
        known = {"string": pa.string(), "integer": pa.int64(), "number": pa.float64()}
        if name in KNOWN:
            return known.get(KNOWN[name], pa.string())  # a picture is named by its URI
        return self.carried_type(source)

    def tables(self, chosen: Mapping[str, str], schema: pa.Schema) -> Iterator[pa.Table]:
        """Read all rows, as tables of this schema that fit into memory."""
        places = {name: self.columns.index(source) for name, source in chosen.items()}
        for records in self._batches():
            columns = [self._column(field, records, places[field.name]) for field in schema]
            yield pa.table(columns, schema=schema)

    def _batches(self) -> Iterator[list[Record]]:
        batch: list[Record] = []
        size = 0
        for record in self.records():
            batch.append(record)
            size += sum(len(cell) for cell in record[1] if isinstance(cell, str))
            if len(batch) == BATCH_ROWS or size > BATCH_BYTES:
                yield batch
                batch, size = [], 0
        if batch:
            yield batch

    def _column(self, field: pa.Field, records: Sequence[Record], index: int) -> pa.Array:
        convert = _converter(field)
        try:
            return pa.array([convert(cells[index]) for _, cells in records], field.type)
        except (ValueError, TypeError, OverflowError):  # Arrow's own errors are such, too
            for line, cells in records:
                try:
                    pa.array([convert(cells[index])], field.type)
                except (ValueError, TypeError, OverflowError) as error:
                    why = "half of a character" if isinstance(error, UnicodeError) else error
                    raise ManifestError(f"{self.where} {self.place} {line}: {field.name}: {why}") from None
            raise


class Lines(RowSource):
    """A text file with a prompt in each line; blank lines are none."""

    def __init__(self, file: SourceFile) -> None:
        self.file, self.where, self.columns, self.left_out = file, file.where, ["prompt"], []

    def records(self) -> Iterator[Record]:
        """Read all prompts, without blanks around them."""
        for number, line in enumerate(self.file.lines(), 1):
            if text := line.strip():
                yield number, [text]


def _converter(field: pa.Field) -> Callable[[Any], Any]:
    """Return what makes a value of this column from a cell."""
    if field.name not in KNOWN:
        return lambda cell: cell
    if field.name == "id":
        return lambda cell: cell if cell == "" else _text(cell)
    return {pa.string(): _text, pa.int64(): _integer, pa.float64(): _number}.get(field.type, lambda cell: cell)


def _text(cell: Any) -> str | None:
    """Return text as it is written. A blank cell is none: no URI, no kind."""
    if cell is None or isinstance(cell, str):
        return cell or None
    if isinstance(cell, WrittenFloat):
        return cell.written
    if isinstance(cell, int) and not isinstance(cell, bool):
        return str(cell)
    raise ValueError(f"must be text, not {cell!r:.80}; put it in quotes")


def _decimal(cell: Any) -> Decimal | None:
    text = cell.written if isinstance(cell, WrittenFloat) else str("" if cell is None else cell).strip()
    if text.lower() in _NO_NUMBER:
        return None
    try:
        if "_" not in text:  # which Python takes
            return Decimal(text)
    except InvalidOperation:
        pass
    point = "; write it with a point" if "," in text else ""
    raise ValueError(f"must be a number, got {text[:80]!r}{point}")


def _integer(cell: Any) -> int | None:
    value = _decimal(cell)
    if value is None:
        return None
    if not (value.is_finite() and -(2**63) < value < 2**63 and value == value.to_integral_value()):
        raise ValueError(f"must be a whole number below 2**63, got {str(cell)[:80]!r}")
    return int(value)


def _number(cell: Any) -> float | None:
    value = _decimal(cell)
    if value is None:
        return None
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"must be a finite number, got {str(cell)[:80]!r}")
    return number
