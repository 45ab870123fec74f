"""Manifests that are wrong in every way, through `stereo-jobs plan`, `run --local` with the stand-in, and `verify`.

A valid table is mutated as a table (types, columns, single cells, how it is written) or as a file (bytes, lengths,
the counts in its footer). After a run that succeeds, the dataset must be whole: `verify` says so, rows whose cells
were left as they are have not failed, and each row still has its own prompt and further columns.
"""

import io
import json
import random
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from stereo_jobs.data.shards import read_table
from stereo_jobs.run import driver
from tests import standin
from tests.fuzz.cases import Record, command

ROWS = 7
"""A number whose encoding in a footer is rare enough to be found there."""


@dataclass
class Mutant:
    """A manifest in the making.

    Attributes:
        columns: arrays by name; `doubled` puts further columns of the same names behind them.
        touched: rows that may fail for what was done to them; None: the manifest may be refused as a whole.
        options: for the Parquet writer.
        mode: of the recipe.
        variants: pairs per row.
        rows: how many it has; None where that cannot be said of its bytes.
        made: how it came about.
    """

    columns: dict[str, pa.Array]
    mode: str
    variants: int = 1
    rows: int | None = None
    doubled: list[tuple[str, pa.Array]] = field(default_factory=list)
    touched: set[int] | None = field(default_factory=set)
    options: dict[str, Any] = field(default_factory=dict)
    metadata: dict[bytes, bytes] | None = None
    made: list[str] = field(default_factory=list)

    def say(self, text: str) -> None:
        self.made.append(text[:80])

    def touch(self, *rows: int) -> None:
        """These rows may fail now."""
        if self.touched is not None:
            self.touched |= set(rows)

    def table(self) -> pa.Table:
        pairs = [*self.columns.items(), *self.doubled]
        schema = pa.schema([pa.field(name, array.type) for name, array in pairs], self.metadata)
        return pa.Table.from_arrays([array for _, array in pairs], schema=schema)

    def file(self) -> bytes:
        buffer = io.BytesIO()
        pq.write_table(self.table(), buffer, **self.options)
        return buffer.getvalue()


def png(size: int = 8) -> bytes:
    """A small black picture."""
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((size, size, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def valid(rng: random.Random) -> Mutant:
    """A table that has every kind of column; all its rows can be made."""
    ids = [f"row-{i}" for i in range(ROWS)]
    mode = rng.choice(("text", "text", "image", "depth"))
    columns: dict[str, pa.Array] = {
        "id": pa.array(ids),
        "prompt": pa.array([f"a cube number {i}" for i in range(ROWS)]),
        "negative_prompt": pa.array([None if i % 2 else "blurred" for i in range(ROWS)]),
        "seed": pa.array(range(10, 10 + ROWS), pa.int64()),
        "scale_percent": pa.array([4.0 + i for i in range(ROWS)], pa.float64()),
        "depth_kind": pa.array(["inverse"] * ROWS),
        "focal_px": pa.array([100.0] * ROWS, pa.float64()),
        "baseline": pa.array([0.5] * ROWS, pa.float64()),
        "doffs_px": pa.array([0.0] * ROWS, pa.float64()),
        "note": pa.array([f"note {i}" for i in range(ROWS)]),
        "stamp": pa.array([datetime(2001, 1, 1 + i) for i in range(ROWS)], pa.timestamp("us")),
        "day": pa.array([date(2001, 1, 1 + i) for i in range(ROWS)], pa.date32()),
        "tags": pa.array([[f"t{i}", "x"] for i in range(ROWS)], pa.list_(pa.string())),
        "info": pa.array([{"a": i, "b": f"b{i}"} for i in range(ROWS)]),
        "score": pa.array([i / 7 for i in range(ROWS)], pa.float32()),
        "flag": pa.array([i % 2 == 0 for i in range(ROWS)]),
        "count": pa.array([2**40 + i for i in range(ROWS)], pa.int64()),
        "raw": pa.array([bytes([i]) * 3 for i in range(ROWS)], pa.binary()),
    }
    if mode in ("image", "depth"):
        columns["image"] = pa.array([png()] * ROWS, pa.binary())
    for name in rng.sample(sorted(columns), rng.randrange(len(columns))):
        if name not in ("id", "prompt", "image"):
            del columns[name]
    return Mutant(columns, mode, rng.choice((1, 1, 2)))


# --- Single cells ---

DAY_S = 86_400
ODD_STRINGS = {
    "an empty string": "",
    "a space": " ",
    "NUL": "a\0b",
    "colours": "\x1b[31mred\x1b[0m",
    "a C1 control": "a\x9b31mb",
    "DEL": "a\x7f",
    "new lines": "a\nb\r\nc\x85d\u2028e",
    "a bidi override": "abc\u202etxt",
    "an emoji": "\U0001f600",
    "not a character": "\uffff",
    "300 combining marks": "a" + "\u0301" * 300,
    "markup": "[bold]x[/] [/] [link=x]",
    "percent signs": "%s %n %(x)s {} {0}",
    "3000 characters": "x" * 3000,
    "5 MB": "y" * 5_000_000,
    "a path": "../../x",
    "a dot": ".hidden",
    "a number": "12",
    "spaces around": " row-1 ",
    "a variant": "row-1~1",
    "JSON": '{"a": NaN}',
    "a URI with a password": "s3://user:secret@bucket/x",
}
ODD_URIS = {
    "NUL in a path": "a\0b.png",
    "an unknown user": "~nobody-at-all/x.png",
    "another host": "file://host/x.png",
    "nothing there": "missing.png",
    "a long name": "x" * 5000,
    "a folder": ".",
    "S3 without a bucket": "s3:///x",
    "S3 with an odd bucket": "s3://B_\x1b[31m/x",
    "S3 and dots": "s3://b/%2e%2e/x",
    "another scheme": "gopher://x/y",
    "a device": "/dev/zero",
    "colours": "\x1b[31m.png",
    "a bidi override": "\u202egnp.x",
    "a loop of links": "loop.png",
    "nothing": "",
}


def _odd_images() -> dict[str, bytes]:
    bomb = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return {
        "no bytes": b"",
        "text": b"not an image",
        "half a PNG": png()[:30],
        "a PNG bomb": bomb,
        "an NPY": b"\x93NUMPY\x01\x00\x02\x00{}",
        "a PFM bomb": b"Pf 999999999 999999999 -1 ",
    }


def _as_utf8(values: list[bytes | None], dtype: pa.DataType) -> pa.Array:
    """A string array of bytes that need not be UTF-8."""
    binary = pa.array(values, pa.binary())
    array = pa.Array.from_buffers(pa.string(), len(binary), binary.buffers())
    return array if dtype == pa.string() else array.cast(dtype)


def _set(array: pa.Array, row: int, value: Any, dtype: pa.DataType | None = None) -> pa.Array:
    try:
        values = array.to_pylist()
    except (OverflowError, ValueError):  # an earlier mutation has put a date there that Python does not have
        cell = pa.nulls(1, array.type) if value is None else pa.array([value], array.type)
        return pa.concat_arrays([array.slice(0, row), cell, array.slice(row + 1)])
    values[row] = value
    return pa.array(values, dtype or array.type)


def _has(mutant: Mutant, rng: random.Random, names: tuple[str, ...]) -> str:
    """One of these columns; where the table has none, it gets one."""
    there = [name for name in names if name in mutant.columns]
    if there:
        return rng.choice(there)
    full = valid_column(names[0])
    mutant.columns[names[0]] = full
    return names[0]


def valid_column(name: str) -> pa.Array:
    """A column as it is in a table that has everything."""
    rng = random.Random(0)
    while name not in (mutant := valid(rng)).columns:
        pass
    return mutant.columns[name]


def _odd_string(rng: random.Random, mutant: Mutant) -> None:
    name = _has(mutant, rng, ("prompt", "negative_prompt", "note", "depth_kind", "id"))
    what, value = rng.choice(list(ODD_STRINGS.items()))
    row = rng.randrange(ROWS)
    mutant.columns[name] = _set(mutant.columns[name], row, value)
    mutant.touch(row)
    if name == "id":
        mutant.touched = None
    mutant.say(f"{name}[{row}] = {what}")


def _not_utf8(rng: random.Random, mutant: Mutant) -> None:
    name = _has(mutant, rng, ("note", "prompt", "negative_prompt", "depth_kind", "id", "tags", "info"))
    row, odd = rng.randrange(ROWS), rng.choice((b"\xff", b"a\xc3", b"\xed\xa0\x80", b"\xf8\x88\x80\x80\x80", b"\0\xfe"))
    if name == "tags":
        items = _as_utf8([odd if i == row else b"t" for i in range(ROWS)], pa.string())
        mutant.columns[name] = pa.ListArray.from_arrays(pa.array(range(ROWS + 1), pa.int32()), items)
    elif name == "info":
        inner = _as_utf8([odd if i == row else b"b" for i in range(ROWS)], pa.string())
        mutant.columns[name] = pa.StructArray.from_arrays([pa.array(range(ROWS)), inner], ["a", "b"])
    else:
        values = mutant.columns[name].cast(pa.binary()).to_pylist()  # what is no text by now cannot be made
        values[row] = odd
        mutant.columns[name] = _as_utf8(values, pa.string())
    mutant.touch(row)
    if name == "id":
        mutant.touched = None
    mutant.say(f"{name}[{row}] = {odd!r}")


def _odd_number(rng: random.Random, mutant: Mutant) -> None:
    name = _has(mutant, rng, ("focal_px", "baseline", "doffs_px", "scale_percent", "score"))
    row = rng.randrange(ROWS)
    value = rng.choice((float("nan"), float("inf"), float("-inf"), -1.0, 0.0, 1e308, 5e-324, -0.0, 0.08, 31.0, None))
    mutant.columns[name] = _set(mutant.columns[name], row, value)
    mutant.touch(row)
    mutant.say(f"{name}[{row}] = {value}")


def _odd_integer(rng: random.Random, mutant: Mutant) -> None:
    """Integers where numbers may be floats, some of which no float holds; and seeds."""
    name = _has(mutant, rng, ("focal_px", "baseline", "doffs_px", "scale_percent", "seed", "count"))
    row = rng.randrange(ROWS)
    dtype = rng.choice((pa.int64(), pa.uint64(), pa.int64()))
    large = (2**53 + 1, 2**62 + 1, 2**63 - 1, 2**63, 2**64 - 1, -1, -(2**63), -(2**53) - 1, 0, 1, None)
    low, high = (0, 2**64) if dtype == pa.uint64() else (-(2**63), 2**63)
    value = rng.choice([v for v in large if v is None or low <= v < high])
    values: list[int | None] = [6 + i for i in range(ROWS)]
    values[row] = value
    mutant.columns[name] = pa.array(values, dtype)
    mutant.touch(row)
    mutant.say(f"{name}[{row}] = {value} of {dtype}")


def _odd_time(rng: random.Random, mutant: Mutant) -> None:
    """Dates and times beyond the years that Python knows, and what else a clock may say."""
    unit = rng.choice(("s", "ms", "us", "ns"))
    zone = rng.choice((None, "UTC", "Europe/Berlin", "+07:30", "-23:59", "Not/AZone"))
    dtype = rng.choice(
        (
            *(pa.timestamp(unit), pa.timestamp(unit, zone), pa.date32(), pa.date64()),
            *(pa.time32("s"), pa.time64("ns"), pa.duration(unit)),
        )
    )
    storage = pa.int32() if dtype in (pa.date32(), pa.time32("s")) else pa.int64()
    top = 2**31 - 1 if storage == pa.int32() else 2**63 - 1
    year_10000 = {"s": 253402300800, "ms": 253402300800_000, "us": 253402300800_000_000}.get(unit, top)
    value = rng.choice((top, -top - 1, -top, min(top, year_10000), -1, min(top, 3_000_000), DAY_S, 0))
    row, name = rng.randrange(ROWS), rng.choice(("stamp", "day", "when"))
    values = [DAY_S * i for i in range(ROWS)]
    values[row] = value
    try:
        mutant.columns[name] = pa.array(values, storage).view(dtype)
    except pa.ArrowInvalid:
        mutant.columns[name] = pa.array(values, pa.int64()).cast(pa.timestamp("s"))
    if rng.random() < 0.2:
        mutant.columns[name] = pa.ListArray.from_arrays(pa.array(range(ROWS + 1), pa.int32()), mutant.columns[name])
    mutant.touch(row)
    if not _can_be_carried(dtype) or zone == "Not/AZone":  # which spoils the whole column
        mutant.touched = None
    mutant.say(f"{name}[{row}] = {value} of {dtype}")


def _can_be_carried(dtype: pa.DataType) -> bool:
    return bool(pa.types.is_timestamp(dtype) or pa.types.is_date(dtype))


def _null_cells(rng: random.Random, mutant: Mutant) -> None:
    name = _has(mutant, rng, tuple(mutant.columns))
    rows = rng.sample(range(ROWS), rng.randrange(1, ROWS + 1))
    for row in rows:
        mutant.columns[name] = _set(mutant.columns[name], row, None)
    mutant.touch(*rows)
    if name == "id":
        mutant.touched = None
    mutant.say(f"{name}{rows} = null")


def _odd_image(rng: random.Random, mutant: Mutant) -> None:
    """Image cells of every type, with one that is odd."""
    mutant.mode = rng.choice(("image", "image", "depth", "inpaint"))
    name = rng.choice(("image", "image", "depth", "disparity", "mask", "given_right"))
    row, form = rng.randrange(ROWS), rng.choice(("binary", "string", "struct", "not utf8", "large"))
    good, what = png(), "a good one"
    columns = {"image": pa.array([good] * ROWS, pa.binary())}
    if mutant.mode == "inpaint":
        columns["mask"] = pa.array([good] * ROWS, pa.binary())
    if form in ("binary", "large"):
        what, odd = rng.choice(list(_odd_images().items()))
        values = [odd if i == row else good for i in range(ROWS)]
        columns[name] = pa.array(values, pa.binary() if form == "binary" else pa.large_binary())
    elif form == "string":
        what, uri = rng.choice(list(ODD_URIS.items()))
        columns[name] = pa.array([uri if i == row else "good.png" for i in range(ROWS)])
    elif form == "not utf8":
        columns[name] = _as_utf8([b"\xff.png" if i == row else b"good.png" for i in range(ROWS)], pa.string())
        what = "a name that is not UTF-8"
    else:
        what, uri = rng.choice(list(ODD_URIS.items()))
        odd_cell = rng.choice(
            ({"bytes": None, "path": uri}, {"bytes": None, "path": None}, {"bytes": b"", "path": uri})
        )
        cells = [odd_cell if i == row else {"bytes": good, "path": None} for i in range(ROWS)]
        columns[name] = pa.array(cells, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    mutant.columns |= columns
    mutant.touch(row)
    mutant.say(f"mode {mutant.mode}, {name}[{row}] = {what} as {form}")


# --- Columns ---


def _types() -> dict[str, Callable[[], pa.Array]]:
    """Arrays of types that a column hardly has."""
    n = ROWS
    text = [f"v{i}" for i in range(n)]
    return {
        "null": lambda: pa.nulls(n),
        "bool": lambda: pa.array([True] * n),
        "int8": lambda: pa.array([5] * n, pa.int8()),
        "uint64": lambda: pa.array([2**64 - 1 - i for i in range(n)], pa.uint64()),
        "float16": lambda: pa.array([np.float16(6 + i) for i in range(n)], pa.float16()),
        "float32": lambda: pa.array([6.1 + i for i in range(n)], pa.float32()),
        "decimal": lambda: pa.array([Decimal("6.25")] * n, pa.decimal128(10, 2)),
        "wide decimal": lambda: pa.array([Decimal(10) ** 60] * n, pa.decimal256(76, 0)),
        "large string": lambda: pa.array(text, pa.large_string()),
        "string view": lambda: pa.array(text, pa.string_view()),
        "binary": lambda: pa.array([b"x"] * n, pa.binary()),
        "binary view": lambda: pa.array([b"x"] * n, pa.binary_view()),
        "fixed binary": lambda: pa.array([b"1234"] * n, pa.binary(4)),
        "list": lambda: pa.array([[1, None]] * n, pa.list_(pa.int64())),
        "large list": lambda: pa.array([["x"]] * n, pa.large_list(pa.string())),
        "fixed list": lambda: pa.array([[1.0, 2.0]] * n, pa.list_(pa.float32(), 2)),
        "list view": lambda: pa.array([[1]] * n, pa.list_view(pa.int64())),
        "deep list": lambda: pa.array([[[[[[[[[1]]]]]]]]] * n),
        "struct": lambda: pa.array([{"a": {"b": {"c": [1]}}}] * n),
        "struct without fields": lambda: pa.array([{}] * n, pa.struct([])),
        "struct of odd names": lambda: pa.array([{"\x1b[31m": 1, "": 2}] * n),
        "map": lambda: pa.array([[("a", 1)]] * n, pa.map_(pa.string(), pa.int64())),
        "dictionary": lambda: pa.array(text).dictionary_encode(),
        "dictionary of integers": lambda: pa.array(range(5, 5 + n)).dictionary_encode(),
        "dictionary of times": lambda: pa.array([2**60] * n, pa.timestamp("s")).dictionary_encode(),
        "list of dictionaries": lambda: pa.ListArray.from_arrays(
            pa.array(range(n + 1), pa.int32()), pa.array(text).dictionary_encode()
        ),
        "date32": lambda: pa.array([1] * n, pa.date32()),
        "date64": lambda: pa.array([date(2001, 1, 1)] * n, pa.date64()),
        "time32": lambda: pa.array([1] * n, pa.time32("s")),
        "time64": lambda: pa.array([1] * n, pa.time64("us")),
        "duration": lambda: pa.array([1] * n, pa.duration("s")),
        "timestamp of nanoseconds": lambda: pa.array([1001 + i for i in range(n)], pa.timestamp("ns")),
        "timestamp with a zone": lambda: pa.array([1] * n, pa.timestamp("us", "Europe/Berlin")),
        "UUID": lambda: pa.ExtensionArray.from_storage(pa.uuid(), pa.array([b"0123456789abcdef"] * n, pa.binary(16))),
        "JSON": lambda: pa.ExtensionArray.from_storage(pa.json_(), pa.array(['{"a": 1}'] * n)),
        "all true": lambda: pa.array([1] * n),
    }


def _another_type(rng: random.Random, mutant: Mutant) -> None:
    name = rng.choice([*mutant.columns, "note", "extra"])
    what, make = rng.choice(list(_types().items()))
    mutant.columns[name] = make()
    mutant.touched = None
    mutant.say(f"{name} of type {what}")


def _as_dictionary(rng: random.Random, mutant: Mutant) -> None:
    """A valid column, dictionary-encoded: another way to write the same, which must make the same rows."""
    name = _has(mutant, rng, ("prompt", "note", "id", "depth_kind", "negative_prompt"))
    mutant.columns[name] = mutant.columns[name].dictionary_encode()
    mutant.say(f"{name} as a dictionary")


def _large_strings(rng: random.Random, mutant: Mutant) -> None:
    name = _has(mutant, rng, ("prompt", "note", "id"))
    mutant.columns[name] = mutant.columns[name].cast(pa.large_string())
    mutant.say(f"{name} as large strings")


def _a_column_less(rng: random.Random, mutant: Mutant) -> None:
    name = rng.choice(list(mutant.columns))
    del mutant.columns[name]
    mutant.touched = None
    mutant.say(f"without {name}")


def _a_column_twice(rng: random.Random, mutant: Mutant) -> None:
    name = rng.choice(list(mutant.columns))
    mutant.doubled.append((name, mutant.columns[name]))
    mutant.touched = None
    mutant.say(f"{name} twice")


def _an_odd_name(rng: random.Random, mutant: Mutant) -> None:
    odd = (
        "",
        " ",
        "\x1b[31mred",
        "a\nb",
        "a\0b",
        "\u202etxt",
        "\x9b1m",
        "[bold]",
        "a.b",
        "src_note",
        "run_seconds",
        "left",
    )
    odd += (
        "x" * 10_000,
        "ID",
        "id ",
        "Prompt",
        "qc_epe",
        "bytes",
        "%s",
        "{}",
        "accepted",
        "\U0001f600",
        "row",
        "__index",
    )
    name = rng.choice(odd)
    mutant.columns[name] = pa.array([f"v{i}" for i in range(ROWS)])
    mutant.touched = None
    mutant.say(f"a column named {name[:30]!r}")


def _many_columns(rng: random.Random, mutant: Mutant) -> None:
    count = rng.choice((50, 300))
    mutant.columns |= {f"c{i}": pa.array(range(ROWS)) for i in range(count)}
    mutant.say(f"{count} columns more")


# --- Rows ---


def _an_id_twice(rng: random.Random, mutant: Mutant) -> None:
    one, other = rng.sample(range(ROWS), 2)
    ids = mutant.columns["id"].to_pylist()
    mutant.columns["id"] = _set(mutant.columns["id"], one, ids[other])
    mutant.touched = None
    mutant.say(f"id[{one}] = id[{other}]")


def _other_numbers_of_rows(rng: random.Random, mutant: Mutant) -> None:
    rows = [i % ROWS for i in range(rng.choice((0, 1, 2, 30, 60)))]
    mutant.columns = {name: array.take(pa.array(rows, pa.int64())) for name, array in mutant.columns.items()}
    if rng.random() < 0.7:
        mutant.columns["id"] = pa.array([f"row-{i}" for i in range(len(rows))], pa.string())
    mutant.touched = None
    mutant.say(f"{len(rows)} rows")


# --- How it is written ---


def _written_otherwise(rng: random.Random, mutant: Mutant) -> None:
    """Options of the writer that change nothing of what the file says."""
    options: dict[str, Any] = {
        "compression": rng.choice(("none", "snappy", "gzip", "zstd", "brotli", "lz4")),
        "version": rng.choice(("1.0", "2.4", "2.6")),
        "data_page_version": rng.choice(("1.0", "2.0")),
        "row_group_size": rng.choice((1, 2, 3, 100)),
        "use_dictionary": rng.random() < 0.5,
        "write_statistics": rng.random() < 0.5,
        "store_schema": rng.random() < 0.7,
        "data_page_size": rng.choice((1, 64, 1 << 20)),
        "write_page_checksum": rng.random() < 0.3,
        "write_page_index": rng.random() < 0.3,
    }
    chosen = rng.sample(sorted(options), rng.randrange(1, 5))
    mutant.options |= {name: options[name] for name in chosen}
    mutant.say(", ".join(f"{name} {options[name]}" for name in chosen))


def _odd_metadata(rng: random.Random, mutant: Mutant) -> None:
    odd = (b"", b"\xff", b"{", b"\0" * 100, b"{}", b'{"columns": 1}', b"x" * 1_000_000, b"/////wAAAAA=")
    keys = (b"ARROW:schema", b"pandas", b"stereo_jobs", b"huggingface", b"\xff", b"\x1b[31m", b"", b"fingerprint")
    mutant.metadata = {rng.choice(keys): rng.choice(odd) for _ in range(rng.randrange(1, 4))}
    mutant.touched = None
    mutant.say("metadata " + ", ".join(f"{key!r}: {value[:20]!r}" for key, value in mutant.metadata.items()))


CHANGES: tuple[tuple[int, Callable[[random.Random, Mutant], None]], ...] = (
    (6, _odd_string),
    (5, _not_utf8),
    (5, _odd_number),
    (6, _odd_integer),
    (8, _odd_time),
    (4, _null_cells),
    (8, _odd_image),
    (12, _another_type),
    (3, _as_dictionary),
    (2, _large_strings),
    (2, _a_column_less),
    (2, _a_column_twice),
    (4, _an_odd_name),
    (1, _many_columns),
    (2, _an_id_twice),
    (3, _other_numbers_of_rows),
    (5, _written_otherwise),
    (2, _odd_metadata),
)


# --- Bytes of the file ---


def _flipped(rng: random.Random, data: bytes) -> tuple[bytes, str]:
    out = bytearray(data)
    footer = struct.unpack("<I", data[-8:-4])[0] + 8
    where = rng.choice(("anywhere", "footer", "footer", "pages"))
    low, high = {"anywhere": (0, len(out)), "footer": (len(out) - footer, len(out)), "pages": (4, len(out) - footer)}[
        where
    ]
    for _ in range(rng.choice((1, 1, 2, 8))):
        out[rng.randrange(low, max(low + 1, high))] ^= 1 << rng.randrange(8)
    return bytes(out), f"bits flipped in {where}"


def _cut(rng: random.Random, data: bytes) -> tuple[bytes, str]:
    at = rng.choice((0, 1, 4, 8, 11, 12, len(data) - 1, len(data) - 4, len(data) - 8, rng.randrange(len(data))))
    return data[:at], f"cut to {at} of {len(data)} bytes"


def _lengthened(rng: random.Random, data: bytes) -> tuple[bytes, str]:
    return rng.choice((data + b"x", b"x" + data, data + data, data + bytes(1000))), "bytes more"


def _footer_length(rng: random.Random, data: bytes) -> tuple[bytes, str]:
    length = rng.choice((0, 1, 2**31 - 1, 2**32 - 1, len(data), len(data) - 12, 100))
    return data[:-8] + struct.pack("<I", length) + data[-4:], f"a footer said to be of {length} bytes"


def _varint(value: int) -> bytes:
    """Zigzag varint, as the footer's compact Thrift writes integers."""
    value = (value << 1) ^ (value >> 63)
    out = b""
    while value > 0x7F:
        out, value = out + bytes([value & 0x7F | 0x80]), value >> 7
    return out + bytes([value])


def _row_counts(rng: random.Random, data: bytes) -> tuple[bytes, str]:
    """One of the counts of rows or values in the footer becomes another number."""
    length = struct.unpack("<I", data[-8:-4])[0]
    footer = data[-8 - length : -8]
    mark = b"\x16" + _varint(ROWS)  # the next field, an i64, of that value
    places = [i for i in range(len(footer)) if footer.startswith(mark, i)]
    if not places:
        return data, "counts left as they are"
    # The file's own count stands first, that of the row group last; between them those of the columns.
    at = rng.choice((places[0], places[-1], rng.choice(places)))
    count = rng.choice((0, 1, ROWS - 1, ROWS + 1, 100, 2**31, 2**40, 2**62, -1, -(2**31)))
    footer = footer[:at] + b"\x16" + _varint(count) + footer[at + len(mark) :]
    return data[: -8 - length] + footer + struct.pack("<I", len(footer)) + data[-4:], f"{count} in place of {ROWS}"


FILE_CHANGES = (_flipped, _flipped, _flipped, _cut, _lengthened, _footer_length, _row_counts, _row_counts, _row_counts)


# --- The case ---


def work(rng: random.Random, folder: Path, record: Record) -> None:
    """Write one mutated manifest; plan it, make it, verify what came out."""
    mutant, data = make(rng)
    record.note("; ".join(mutant.made) or "valid")
    (folder / "good.png").write_bytes(png())
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "rows.parquet").write_bytes(data)
    (folder / "spec.json").write_text(json.dumps(_spec(mutant, rng)))
    # The stand-in in place of the models, wherever the run is started from.
    driver.run.__kwdefaults__["load"] = standin.load_with_images if mutant.mode != "text" else standin.load
    form = ["--json"] if rng.random() < 0.3 else []
    if command(record, "plan", "spec.json", *form):
        _refused(mutant, record, "plan")
        return
    if mutant.rows is not None and (planned := _planned(folder)) != mutant.rows:
        record.find("count", f"a file with another number of rows was planned: {mutant.rows} rows, {planned} planned")
    if command(record, "run", "spec.json", "--local", *form):
        _refused(mutant, record, "run")
        return
    if command(record, "verify", "out", *form):
        record.find("verify", "not ok after a run that succeeded")
    if mutant.touched is not None:
        _check(folder, mutant, record)


def make(rng: random.Random) -> tuple[Mutant, bytes]:
    """A manifest and its bytes; a table that Parquet cannot hold is left out."""
    mutant = valid(rng)
    weights = [weight for weight, _ in CHANGES]
    for _, mutate in rng.choices(CHANGES, weights, k=rng.choice((0, 1, 1, 1, 1, 2))):
        try:
            mutate(rng, mutant)
        # Text that is not UTF-8 already cannot be changed as text.
        except (
            pa.ArrowInvalid,
            pa.ArrowNotImplementedError,
            pa.ArrowTypeError,
            IndexError,
            UnicodeDecodeError,
        ) as error:
            mutant.say(f"{mutate.__name__.strip('_')} could not be made ({type(error).__name__})")
            mutant.touched = None
    try:
        data = mutant.file()
    except (pa.ArrowException, ValueError, OSError) as error:
        mutant = Mutant(valid(rng).columns, "text", made=[*mutant.made, f"not written ({error})"])
        data = mutant.file()
    mutant.rows = mutant.table().num_rows
    try:
        read_table(data)
    except (pa.ArrowException, OSError):  # pages of one byte are written as no reader takes them
        mutant.touched = mutant.rows = None
    if rng.random() < 0.3:
        change = rng.choice(FILE_CHANGES)
        data, made = change(rng, data)
        mutant.touched = None
        mutant.rows = mutant.rows if change is _row_counts else None
        mutant.say(made)
    return mutant, data


def _spec(mutant: Mutant, rng: random.Random) -> dict[str, Any]:
    recipe: dict[str, Any] = {"mode": mutant.mode, "quality": {"enabled": False}}
    recipe |= {"variants": {"seeds": mutant.variants}} if mutant.variants > 1 else {}
    return {
        "manifest": "rows.parquet",
        "output": "out",
        "recipe": recipe,
        "runtime": {
            "shard_rows": rng.choice((2, 3, 128)),
            "batch_size": 2,
            "lease_ttl_s": 0,
            "max_failure_ratio": 1.0,
            "row_attempts": 1,
            "log_format": rng.choice(("text", "text", "text", "json")),
        },
    }


def _refused(mutant: Mutant, record: Record, verb: str) -> None:
    """Odd cells fail their own rows; they may end neither the plan nor the run."""
    if mutant.touched is not None:
        record.find("ended", f"odd cells end the {verb}: {sorted(mutant.touched)}")


def _planned(folder: Path) -> int:
    """Rows of all files of the plan."""
    plans = [json.loads(path.read_text()) for path in (folder / "out/_job").glob("plan-*.json")]
    return sum(file["rows"] for plan in plans for file in plan["files"])


def _check(folder: Path, mutant: Mutant, record: Record) -> None:
    """Rows that were left as they are have been made, and every row has its own cells."""
    made = _rows_of(folder / "out" / "data")
    table = read_table((folder / "rows.parquet").read_bytes())
    ids = table["id"].to_pylist()
    variants = {name: name.rpartition("~")[0] if mutant.variants > 1 else name for name in made}
    lost = {i for i, name in enumerate(ids) if list(variants.values()).count(name) != mutant.variants}
    if wrong := lost - (mutant.touched or set()):
        record.find("lost", f"rows that nothing was done to failed: {sorted(wrong)} of {_errors(folder)}")
    for name, cells in made.items():
        row = ids.index(variants[name])
        for column, value in cells.items():
            source = column.removeprefix("src_")
            if source in table.column_names and not _same(table[source][row], value):
                given, kept = str(table[source][row])[:60], str(value)[:60]
                record.find("mixed", f"{column}: of row {row} was {given!r} and is {kept!r}")


def _rows_of(folder: Path) -> dict[str, dict[str, pa.Scalar]]:
    """Prompt and carried cells of a dataset, by id."""
    found: dict[str, dict[str, pa.Scalar]] = {}
    for path in sorted(folder.rglob("*.parquet")):
        table = read_table(path.read_bytes())
        names = [name for name in table.column_names if name == "prompt" or name.startswith("src_")]
        for row, name in enumerate(table["id"].to_pylist()):
            found[name] = {column: table[column][row] for column in names}
    return found


def _same(given: pa.Scalar, kept: pa.Scalar) -> bool:
    """Whether a cell came through; a prompt that is null is an empty one in the dataset."""
    if isinstance(given, pa.DictionaryScalar):
        given = given.value
    if not given.is_valid:
        return not kept.is_valid or kept.as_py() == ""
    if pa.types.is_floating(given.type):
        return np.array_equal(given.as_py(), kept.as_py(), equal_nan=True)
    try:
        return bool(given.cast(kept.type).equals(kept))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):  # date64 as date32, among others inside of a list
        return bool(given.as_py() == kept.as_py())


def _errors(folder: Path) -> list[str]:
    tables = [read_table(path.read_bytes()) for path in sorted((folder / "out/_job/errors").rglob("*.parquet"))]
    return [message for table in tables for message in table["error_message"].to_pylist()][:3]
