"""JSON lines and JSON arrays. Text stays text, numbers stay numbers; known columns get the type that a plan needs."""

import json
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from stereo_jobs.data.building.rows import Record, RowSource, WrittenFloat
from stereo_jobs.data.building.source import BATCH_ROWS, SourceFile
from stereo_jobs.data.manifest import KNOWN
from stereo_jobs.errors import ManifestError

_Object = dict[str, Any]


class JsonRows(RowSource):
    """A file of objects, each a row: one a line, or all in an array, which is read as a whole.

    Raises:
        ManifestError: it is not JSON or not of objects, or a carried column mixes text, numbers, lists and objects.
    """

    def __init__(self, file: SourceFile) -> None:
        self.file, self.where, self.left_out = file, file.where, []
        start = next((line.strip() for line in file.lines() if line.strip()), "")
        self._is_array = start.startswith("[")
        self.place = "element" if self._is_array else "line"
        self._types: dict[str, pa.DataType | ManifestError] = {}
        self._survey()
        self.columns = list(self._types)

    def records(self) -> Iterator[Record]:
        """Read all rows; what an object lacks is null."""
        for number, each in self._objects():
            yield number, [each.get(name) for name in self.columns]

    def carried_type(self, column: str) -> pa.DataType:
        """Return the type that all values of a column have. Raises ManifestError if there is none."""
        found = self._types[column]
        if isinstance(found, ManifestError):
            raise found
        return found

    def _type(self, name: str, source: str) -> pa.DataType:
        found = self._types[source]
        if isinstance(found, pa.StructType) and KNOWN.get(name, "").startswith("binary"):
            return found  # a picture as an object with its path
        return super()._type(name, source)

    def _survey(self) -> None:
        """Find all columns and their types."""
        batch: list[tuple[int, _Object]] = []
        for each in self._objects():
            batch.append(each)
            if len(batch) == BATCH_ROWS:
                self._learn(batch)
                batch = []
        self._learn(batch)

    def _learn(self, batch: list[tuple[int, _Object]]) -> None:
        for name in dict.fromkeys(name for _, each in batch for name in each):
            known = self._types.setdefault(name, pa.null())
            if isinstance(known, ManifestError):
                continue
            try:
                self._types[name] = _common(known, pa.array([each.get(name) for _, each in batch]).type)
            except (ValueError, TypeError, OverflowError):
                self._types[name] = self._odd_one(name, known, batch)

    def _odd_one(self, name: str, known: pa.DataType, batch: list[tuple[int, _Object]]) -> ManifestError:
        """Find the first value that does not go with those before it."""
        place = f"{self.where} {self.place}"
        for number, each in batch:
            try:
                found = pa.array([each.get(name)]).type
            except (ValueError, TypeError, OverflowError) as error:
                return _no_column(f"{place} {number}", name, error)
            try:
                known = _common(known, found)
            except (ValueError, TypeError):
                return ManifestError(
                    f"{place} {number}: {name}: is {found} here, but {known} before; write all its values as text"
                )
        for number, each in batch:
            try:
                pa.array([each.get(name)], known)
            except (ValueError, TypeError, OverflowError) as error:
                return _no_column(f"{place} {number}", name, error)
        return ManifestError(f"{self.where}: {name}: its values have no type in common; write all of them as text")

    def _objects(self) -> Iterator[tuple[int, _Object]]:
        """Read all objects with their numbers: lines from 1, elements of an array from 0."""
        found: Iterator[tuple[int, Any]]
        if self._is_array:
            found = iter(enumerate(self._parsed("".join(self.file.lines()), 1)))
        else:
            found = (
                (number, self._parsed(line, number)) for number, line in enumerate(self.file.lines(), 1) if line.strip()
            )
        for number, each in found:
            if not isinstance(each, dict):
                raise ManifestError(
                    f"{self.where} {self.place} {number}: must be an object with a value for each column, as "
                    '{"prompt": "a red star"}'
                )
            yield number, each

    def _parsed(self, text: str, first_line: int) -> Any:
        try:
            return json.loads(text, parse_float=WrittenFloat, object_pairs_hook=_without_twins)
        except (ValueError, RecursionError) as error:
            line, why = first_line, str(error)
            if isinstance(error, RecursionError):
                why = "nested too deeply"
            elif isinstance(error, json.JSONDecodeError):
                line, why = first_line + error.lineno - 1, f"column {error.colno}: {error.msg}"
            raise ManifestError(
                f"{self.where} line {line}: cannot be read ({why}); write an object a line, or an array of them"
            ) from None


def _no_column(place: str, name: str, error: Exception) -> ManifestError:
    return ManifestError(f"{place}: {name}: cannot be held in a column ({error}); write all its values as text")


def _without_twins(pairs: list[tuple[str, Any]]) -> _Object:
    """Make an object. Raises ValueError if two of its values share a name."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} appears twice in an object")
    return found


def _common(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    """Return the type that holds values of both. Raises TypeError, ValueError."""
    schemas = [pa.schema([("x", dtype)]) for dtype in (one, other)]
    return pa.unify_schemas(schemas, promote_options="permissive").field("x").type
