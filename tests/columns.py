"""Columns of any Arrow type that Parquet holds, with any bits in them, and what such a column holds, spelled out."""

import decimal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from hypothesis import reject
from hypothesis import strategies as st

SIMPLE = st.sampled_from(
    [
        *(pa.int8(), pa.uint64(), pa.int64(), pa.float16(), pa.float32(), pa.float64(), pa.bool_(), pa.null()),
        *(pa.date32(), pa.timestamp("ms"), pa.timestamp("us", tz="UTC"), pa.timestamp("ns", tz="Europe/Berlin")),
        *(pa.time32("ms"), pa.time64("us"), pa.time64("ns"), pa.duration("s"), pa.duration("ns")),
        *(pa.decimal32(9, 3), pa.decimal64(12, 0), pa.decimal128(38, 38), pa.decimal256(76, 5)),
        *(pa.string(), pa.large_string(), pa.string_view()),
        *(pa.binary(), pa.large_binary(), pa.binary_view(), pa.binary(3)),
        *(pa.uuid(), pa.bool8(), pa.json_(), pa.json_(pa.large_string())),
        *(pa.dictionary(pa.int8(), pa.string()), pa.dictionary(pa.int32(), pa.int64())),
    ]
)
TYPES = st.recursive(
    SIMPLE,
    lambda inner: st.one_of(
        inner.map(pa.list_),
        inner.map(pa.large_list),
        inner.map(lambda kind: pa.list_(kind, 2)),
        # Arrow casts no text that is not UTF-8 in the views and extensions of a map.
        inner.filter(lambda kind: "view" not in str(kind) and "extension" not in str(kind)).map(
            lambda kind: pa.map_(pa.string(), kind)
        ),
        st.lists(inner, min_size=1, max_size=3).map(
            lambda kinds: pa.struct([(f"f{i}", k) for i, k in enumerate(kinds)])
        ),
    ),
    max_leaves=4,
)


def write(table, path, **options):
    """Write a manifest; what Arrow cannot write (some views in lists) or read (text, not UTF-8, shared) is no case."""
    try:
        pq.write_table(table, path, **options)
        pq.ParquetFile(path).read()
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid):
        reject()


@st.composite
def columns(draw, dtype, length):
    """A column of any bits: invalid UTF-8, years that Python does not know, every kind of NaN."""
    holes = draw(st.lists(st.booleans(), min_size=length, max_size=length))
    mask = pa.array(holes, pa.bool_())
    if isinstance(dtype, pa.BaseExtensionType):
        return pa.ExtensionArray.from_storage(dtype, draw(columns(dtype.storage_type, length)))
    if pa.types.is_null(dtype):
        return pa.nulls(length)
    if pa.types.is_dictionary(dtype):
        values = draw(columns(dtype.value_type, 3)).drop_null()  # Parquet has no nulls in a dictionary
        indices = [draw(st.integers(0, len(values) - 1)) if len(values) and not hole else None for hole in holes]
        return pa.DictionaryArray.from_arrays(pa.array(indices, dtype.index_type), values)
    if pa.types.is_nested(dtype):
        return _nested(draw, dtype, holes, mask)
    if pa.types.is_decimal(dtype):
        digits = [draw(st.integers(-(10**dtype.precision) + 1, 10**dtype.precision - 1)) for _ in holes]
        written = [decimal.Decimal((int(n < 0), tuple(map(int, str(abs(n)))), -dtype.scale)) for n in digits]
        return pa.array([None if hole else number for hole, number in zip(holes, written, strict=True)], dtype)
    if dtype == pa.bool_():
        values = pa.array([draw(st.booleans()) for _ in holes], dtype)
    elif pa.types.is_primitive(dtype) or pa.types.is_fixed_size_binary(dtype):
        size = dtype.bit_width // 8
        raw = draw(st.binary(min_size=length * size, max_size=length * size))
        values = pa.Array.from_buffers(dtype, length, [None, pa.py_buffer(raw)])
    else:
        return _text(draw, dtype, holes)
    return pc.if_else(mask, pa.scalar(None, dtype), values)


def _nested(draw, dtype, holes, mask):
    if pa.types.is_struct(dtype):
        fields = [dtype.field(i) for i in range(dtype.num_fields)]
        parts = [draw(columns(field.type, len(holes))) for field in fields]
        return pa.StructArray.from_arrays(parts, fields=fields, mask=mask)
    if pa.types.is_fixed_size_list(dtype):
        items = draw(columns(dtype.value_type, len(holes) * dtype.list_size))
        return pa.FixedSizeListArray.from_arrays(items, type=dtype, mask=mask)
    ends = np.cumsum([0, *(0 if hole else draw(st.integers(0, 3)) for hole in holes)])
    if pa.types.is_map(dtype):
        keys = pa.array([draw(st.text("ab", max_size=2)) for _ in range(int(ends[-1]))], pa.string())
        items = draw(columns(dtype.item_type, int(ends[-1])))
        return pa.MapArray.from_arrays(pa.array(ends, pa.int32()), keys, items, type=dtype, mask=mask)
    items = draw(columns(dtype.value_type, int(ends[-1])))
    kind, offsets = (pa.ListArray, pa.int32()) if pa.types.is_list(dtype) else (pa.LargeListArray, pa.int64())
    return kind.from_arrays(pa.array(ends, offsets), items, type=dtype, mask=mask)


def _text(draw, dtype, holes):
    values = pa.array([None if hole else draw(st.binary(max_size=20)) for hole in holes], pa.binary())
    if "string" in str(dtype):
        values = pa.Array.from_buffers(pa.string(), len(holes), values.buffers())
    return values.cast(dtype)


def bits(column):
    """What a column holds, comparable: numbers as their bits, text as bytes, a map as pairs, a shared value as such."""
    column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    dtype = column.type
    if isinstance(dtype, pa.BaseExtensionType):
        return bits(column.storage)
    if pa.types.is_dictionary(dtype):
        values = bits(column.dictionary)
        return [None if i is None else values[i] for i in column.indices.to_pylist()]
    if pa.types.is_struct(dtype):
        return list(zip(column.is_valid().to_pylist(), *map(bits, column.flatten()), strict=True))
    if pa.types.is_map(dtype):
        valid, offsets = column.is_valid().to_pylist(), column.offsets.to_pylist()
        pairs = list(zip([True] * len(column.keys), bits(column.keys), bits(column.items), strict=True))
        return [pairs[offsets[i] : offsets[i + 1]] if valid[i] else None for i in range(len(column))]
    if pa.types.is_nested(dtype):
        return [None if cell.values is None else bits(cell.values) for cell in column]
    if "string" in str(dtype) or "binary_view" in str(dtype):
        return column.cast(pa.large_binary()).to_pylist()
    if pa.types.is_primitive(dtype) and not pa.types.is_decimal(dtype) and dtype not in (pa.bool_(), pa.null()):
        return column.view(f"uint{dtype.bit_width}").to_pylist()
    return column.to_pylist()
