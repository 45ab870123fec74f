"""Types of carried columns: plain forms, and what the columns of two files have in common."""

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stereo_jobs.data.arrow_types import CarriedColumns, common, named, plain
from stereo_jobs.errors import ManifestError
from tests.columns import TYPES, bits, columns

ITEM = pa.field("item", pa.int8(), nullable=False)


@given(TYPES)
def test_a_plain_type_is_its_own_plain_type(dtype):
    assert plain(plain(dtype)) == plain(dtype)


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (pa.dictionary(pa.int8(), pa.large_string()), pa.large_string()),
        (pa.string_view(), pa.string()),
        (pa.list_(pa.binary_view(), 3), pa.list_(pa.binary(), 3)),
        (pa.uuid(), pa.binary(16)),
        (pa.fixed_shape_tensor(pa.float32(), [2, 3]), pa.list_(pa.float32(), 6)),
        (pa.decimal64(12, 2), pa.decimal128(12, 2)),
        (pa.map_(pa.string(), pa.uuid()), pa.list_(pa.struct([("key", pa.string()), ("value", pa.binary(16))]))),
        (pa.large_list(pa.field("item", pa.int8(), False)), pa.large_list(ITEM)),
        (pa.timestamp("ns", "Asia/Tokyo"), pa.timestamp("ns", "Asia/Tokyo")),
    ],
)
def test_plain_types(dtype, expected):
    assert plain(dtype) == expected


WIDER = [
    (pa.int8(), pa.int64(), pa.int64()),
    (pa.uint8(), pa.int8(), pa.int16()),
    (pa.uint32(), pa.int64(), pa.int64()),
    (pa.uint64(), pa.uint8(), pa.uint64()),
    (pa.float16(), pa.float64(), pa.float64()),
    (pa.string(), pa.large_string(), pa.large_string()),
    (pa.binary(4), pa.large_binary(), pa.large_binary()),
    (pa.decimal128(5, 2), pa.decimal128(9, 4), pa.decimal128(9, 4)),
    (pa.null(), pa.timestamp("ns"), pa.timestamp("ns")),
    (pa.list_(pa.int8()), pa.large_list(pa.int32()), pa.large_list(pa.int32())),
    (pa.list_(pa.int8(), 2), pa.list_(pa.int16(), 2), pa.list_(pa.int16(), 2)),
    (pa.list_(pa.int8(), 2), pa.list_(pa.int8(), 3), pa.list_(pa.int8())),
    (pa.list_(ITEM), pa.list_(pa.int8()), pa.list_(pa.int8())),
    (
        pa.struct([("a", pa.int8()), pa.field("b", pa.string(), nullable=False)]),
        pa.struct([pa.field("c", pa.bool_(), nullable=False), ("a", pa.int32())]),
        pa.struct([("a", pa.int32()), ("b", pa.string()), ("c", pa.bool_())]),
    ),
]
CONFLICTS = [
    (pa.string(), pa.int64()),
    (pa.string(), pa.binary()),
    (pa.uint64(), pa.int64()),
    (pa.int8(), pa.float64()),
    (pa.bool_(), pa.int8()),
    (pa.binary(3), pa.binary(4)),
    (pa.date32(), pa.timestamp("s")),
    (pa.timestamp("ms"), pa.timestamp("us")),
    (pa.timestamp("ms"), pa.timestamp("ms", "UTC")),
    (pa.duration("s"), pa.duration("ms")),
    (pa.decimal128(38, 0), pa.float64()),
    (pa.list_(pa.int8()), pa.int8()),
    (pa.struct([("a", pa.int8())]), pa.struct([("a", pa.string())])),
    (pa.struct([("a", pa.int8())]), pa.list_(pa.int8())),
]


@pytest.mark.parametrize(("first", "second", "expected"), WIDER)
def test_types_that_differ_in_width_alone_have_a_common_one(first, second, expected):
    assert common(first, second) == expected
    if not pa.types.is_struct(expected):  # whose fields come in the order of the first
        assert common(second, first) == expected


@pytest.mark.parametrize(("first", "second"), CONFLICTS)
def test_types_that_differ_in_kind_have_none(first, second):
    for pair in ((first, second), (second, first)):
        try:
            found = common(*pair)
        except (TypeError, pa.ArrowException):
            continue
        assert {first, second} == {pa.binary(3), pa.binary(4)}, found
        assert found == pa.binary()


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_a_common_type_holds_the_values_of_both(data):
    pairs = st.sampled_from([pair[:2] for pair in WIDER] + CONFLICTS) | st.tuples(TYPES, TYPES)
    kinds = [plain(dtype) for dtype in data.draw(pairs)]
    wrap = data.draw(st.sampled_from([lambda kind: kind, pa.list_, lambda kind: pa.struct([("x", kind)])]))
    kinds = [wrap(kind) for kind in kinds]
    try:
        shared = common(*kinds)
    except (TypeError, pa.ArrowException):
        return
    for kind in kinds:
        column = data.draw(columns(kind, 3))
        wider = column.cast(shared)
        assert wider.is_valid().equals(column.is_valid())
        if "null" not in str(kind):  # to which nothing can be cast back
            assert bits(wider.cast(kind)) == bits(column)


def test_columns_of_files_are_gathered_by_name():
    carried = CarriedColumns()
    carried.add("a", {"n": pa.int8(), "note": pa.null()})
    carried.add("b", {"note": pa.string(), "n": pa.int32(), "extra": pa.bool_()})
    carried.add("c", {})
    assert named(carried.schema) == {"n": "int32", "note": "string", "extra": "bool"}
    words = "manifest d: column 'note' is int64, but string in b; all files .* cast or drop it in one of them"
    with pytest.raises(ManifestError, match=words):
        carried.add("d", {"note": pa.int64()})


def test_planned_columns_do_not_change():
    planned = pa.schema([("n", pa.int32()), ("note", pa.string())])
    carried = CarriedColumns(planned)
    carried.add("a", {"note": pa.null(), "n": pa.int8(), "extra": pa.bool_()})
    carried.add("b", {"extra": pa.string()})
    assert (carried.schema, carried.left_out) == (planned, {"extra": "a"})
    words = "manifest c: column 'n' is int64, and the dataset has it as int32; .* choose a new output"
    with pytest.raises(ManifestError, match=words):
        carried.add("c", {"n": pa.int64()})
