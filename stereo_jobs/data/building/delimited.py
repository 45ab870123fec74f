"""CSV and TSV. Every cell is text as it is written; quoted cells may be of any length and have line breaks."""

import csv
import itertools
import sys
from collections.abc import Collection, Iterator, Sequence

from stereo_jobs.data.building.rows import Record, RowSource
from stereo_jobs.data.building.source import LeftOut, SourceFile
from stereo_jobs.data.manifest import KNOWN
from stereo_jobs.errors import ManifestError

_DELIMITERS = (",", ";", "\t", "|")
_OPEN_QUOTE = "a quoted cell begins in this row and never ends; close it, or double the quotes inside it"
_CLOSED_QUOTE = "text follows the end of a quoted cell; double the quotes inside it"


class Delimited(RowSource):
    """A table of cells with names in its first row.

    Args:
        file: the file.
        delimiter: what separates cells; None: a tab in `.tsv`, elsewhere what Excel's line `sep=` says, or that of
            comma, semicolon, tab and bar which finds most known names in the first row, then most names.
        wanted: further names that are expected in the first row.

    Raises:
        ManifestError: there is no first row, or two columns share a name.
    """

    def __init__(self, file: SourceFile, delimiter: str | None, wanted: Collection[str]) -> None:
        self.file, self.where = file, file.where
        self._first_line, said = self._excel_line()
        self._delimiter = delimiter or said or ("\t" if file.suffix == ".tsv" else None) or ","
        if not (delimiter or said or file.suffix == ".tsv"):
            names = {*KNOWN, *wanted}
            headers = {each: self._header(each, strict=False) for each in _DELIMITERS}
            found = {each: (len(names & set(header)), len(header)) for each, header in headers.items()}
            self._delimiter = max(_DELIMITERS, key=found.__getitem__)  # the first of the best
        header = self._header(self._delimiter)
        if not header:
            raise ManifestError(f"{self.where}: cannot be read (it is empty; its first row must name the columns)")
        self._width = len(header)
        self._named = [i for i, name in enumerate(header) if name]
        self.columns = [header[i] for i in self._named]
        for name in self.columns:
            if self.columns.count(name) > 1:
                raise ManifestError(f"{self.where}: column {name!r} appears twice; rename or drop one")
        self._blank_rows = LeftOut("row", "with no cell filled")
        self.left_out = [LeftOut("column", "without a name or a cell"), self._blank_rows]
        for i, name in enumerate(header, 1):
            if not name:
                self.left_out[0].add(f"column {i}")

    def records(self) -> Iterator[Record]:
        """Read all rows that have a cell. Raises ManifestError for a row of another length than the first one."""
        self._blank_rows.count = 0
        self._blank_rows.first.clear()
        rows = self._rows(self._delimiter)
        next(rows)
        for line, cells in rows:
            if not any(cells):
                self._blank_rows.add(f"line {line}")
                continue
            if len(cells) != self._width:
                raise ManifestError(
                    f"{self.where} line {line}: has {len(cells)} cells, but the first row names {self._width} columns; "
                    "put cells that contain the separator in quotes"
                )
            if len(self._named) < self._width:
                self._refuse_nameless(line, cells)
            yield line, [cells[i] for i in self._named]

    def _refuse_nameless(self, line: int, cells: Sequence[str]) -> None:
        for i, cell in enumerate(cells):
            if cell and i not in self._named:
                raise ManifestError(
                    f"{self.where} line {line}: column {i + 1} has a cell, {cell[:40]!r}, but no name; name it in the "
                    "first row, or empty it"
                )

    def _excel_line(self) -> tuple[int, str | None]:
        """Return the line at which the table begins, from 1, and the separator of a line `sep=;` before it."""
        first = next(self.file.lines(), "").rstrip("\r\n")
        if len(first) == 5 and first.startswith("sep="):
            return 2, first[4]
        return 1, None

    def _header(self, delimiter: str, *, strict: bool = True) -> list[str]:
        """Return the names of the first row; blank ones at places without a name."""
        return [name.strip() for name in next(self._rows(delimiter, strict=strict), (0, []))[1]]

    def _rows(self, delimiter: str, *, strict: bool = True) -> Iterator[tuple[int, list[str]]]:
        """Read rows that are no blank lines, each with the line at which it begins."""
        csv.field_size_limit(sys.maxsize)
        lines = itertools.islice(self.file.lines(), self._first_line - 1, None)
        reader = csv.reader(lines, delimiter=delimiter, strict=strict)
        while True:
            line = reader.line_num + self._first_line
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                reason = _OPEN_QUOTE if "end of data" in str(error) else _CLOSED_QUOTE
                raise ManifestError(f"{self.where} line {line}: {reason}") from None
            if cells:
                yield line, cells
