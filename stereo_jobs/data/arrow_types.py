"""Types of carried columns: the plain form in which they are written, and the one that the columns of all files share.

Arrow has many types for one value: text may be a dictionary, a view or an extension. A dataset has the plain one, which
`datasets` loads. A plain value has the same bits.
"""

from collections.abc import Callable, Mapping

import pyarrow as pa

from stereo_jobs.errors import ManifestError

Change = Callable[[pa.DataType], pa.DataType]


def changed(dtype: pa.DataType, change: Change) -> pa.DataType:
    """Rebuild a type with other leaves. A map and an extension count as leaves."""
    if pa.types.is_struct(dtype):
        return pa.struct([_changed_field(dtype.field(i), change) for i in range(dtype.num_fields)])
    if pa.types.is_list(dtype):
        return pa.list_(_changed_field(dtype.value_field, change))
    if pa.types.is_large_list(dtype):
        return pa.large_list(_changed_field(dtype.value_field, change))
    if pa.types.is_fixed_size_list(dtype):
        return pa.list_(_changed_field(dtype.value_field, change), dtype.list_size)
    return change(dtype)


def _changed_field(field: pa.Field, change: Change) -> pa.Field:
    return field.with_type(changed(field.type, change))


def without_views(dtype: pa.DataType) -> pa.DataType:
    """Replace views and extensions, for which Arrow lacks functions, by what they stand for; keep dictionaries."""
    return changed(dtype, _without_view)


def _without_view(leaf: pa.DataType) -> pa.DataType:
    if isinstance(leaf, pa.BaseExtensionType):
        return without_views(leaf.storage_type)
    if pa.types.is_map(leaf):
        key, item = (_changed_field(field, _without_view) for field in (leaf.key_field, leaf.item_field))
        return pa.map_(key, item, leaf.keys_sorted)
    if pa.types.is_string_view(leaf):
        return pa.string()
    return pa.binary() if pa.types.is_binary_view(leaf) else leaf


def plain(dtype: pa.DataType) -> pa.DataType:
    """Return the type in which a dataset holds the values of a type.

    Dictionaries become their values, extensions their storage, views text or bytes, decimals of 32 and 64 bits those
    of 128, maps lists of `{key, value}`. All other types stay.

    Raises:
        TypeError: the type is a list view, which Arrow does not read back as it was written.
    """
    return changed(dtype, _plain_leaf)


def _plain_leaf(leaf: pa.DataType) -> pa.DataType:
    if isinstance(leaf, pa.BaseExtensionType):
        return plain(leaf.storage_type)
    if pa.types.is_map(leaf):
        key, item = (_changed_field(field, _plain_leaf) for field in (leaf.key_field, leaf.item_field))
        return pa.list_(pa.struct([("key", key.type), ("value", item.type)]))
    if pa.types.is_dictionary(leaf):
        return plain(leaf.value_type)
    if pa.types.is_list_view(leaf) or pa.types.is_large_list_view(leaf):
        raise TypeError(f"type {leaf}, which Arrow does not read back as it was written")
    if pa.types.is_decimal32(leaf) or pa.types.is_decimal64(leaf):
        return pa.decimal128(leaf.precision, leaf.scale)
    return _without_view(leaf)


# --- One type for the columns of several files ---

_KINDS: tuple[Callable[[pa.DataType], bool], ...] = (
    pa.types.is_integer,
    pa.types.is_floating,
    pa.types.is_decimal,
    lambda dtype: pa.types.is_string(dtype) or pa.types.is_large_string(dtype),
    lambda dtype: pa.types.is_binary(dtype) or pa.types.is_large_binary(dtype) or pa.types.is_fixed_size_binary(dtype),
)
"""Leaves that differ in width alone: of two in one line, the wider one holds all values of both."""


def common(first: pa.DataType, second: pa.DataType) -> pa.DataType:
    """Return the plain type that holds every value of two plain types unchanged.

    Raises:
        TypeError: there is none.
    """
    if first == second or pa.types.is_null(second):
        return first
    if pa.types.is_null(first):
        return second
    if pa.types.is_struct(first) and pa.types.is_struct(second):
        return _common_struct(first, second)
    if _is_list(first) and _is_list(second):
        item = _common_field(first.value_field, second.value_field)
        if getattr(first, "list_size", None) == getattr(second, "list_size", None) is not None:
            return pa.list_(item, first.list_size)
        large = pa.types.is_large_list(first) or pa.types.is_large_list(second)
        return pa.large_list(item) if large else pa.list_(item)
    if any(is_kind(first) and is_kind(second) for is_kind in _KINDS):
        both = [pa.schema([("", dtype)]) for dtype in (first, second)]
        wider = pa.unify_schemas(both, promote_options="permissive").field(0).type
        if wider != pa.int64() or pa.uint64() not in (first, second):  # to Arrow, int64 is the wider one
            return wider
    raise TypeError(f"{first} and {second}")


def _common_struct(first: pa.DataType, second: pa.DataType) -> pa.DataType:
    """Return a struct with the fields of both; what one of them lacks becomes null."""
    fields = {dtype.field(i).name: dtype.field(i) for dtype in (second, first) for i in range(dtype.num_fields)}
    of_second = {second.field(i).name: second.field(i) for i in range(second.num_fields)}
    names = [first.field(i).name for i in range(first.num_fields)]
    shared = {name: _common_field(fields[name], of_second[name]) for name in names if name in of_second}
    names += [name for name in of_second if name not in names]
    return pa.struct([shared.get(name) or fields[name].with_nullable(True) for name in names])


def _common_field(first: pa.Field, second: pa.Field) -> pa.Field:
    return first.with_type(common(first.type, second.type)).with_nullable(first.nullable or second.nullable)


def _is_list(dtype: pa.DataType) -> bool:
    return bool(pa.types.is_list(dtype) or pa.types.is_large_list(dtype) or pa.types.is_fixed_size_list(dtype))


def named(schema: pa.Schema) -> dict[str, str]:
    """Return names and types of columns as plans list them."""
    return {field.name: str(field.type) for field in schema}


class CarriedColumns:
    """The carried columns of a manifest, while its files are looked at one after another.

    Args:
        planned: columns that the dataset already has, which no file changes; None for a new dataset.
    """

    def __init__(self, planned: pa.Schema | None = None) -> None:
        self._planned = planned is not None
        self._types: dict[str, pa.DataType] = {field.name: field.type for field in planned or ()}
        self._origin: dict[str, str] = {}
        """For each column, the file that gave it its type."""
        self.left_out: dict[str, str] = {}
        """Columns that the dataset does not have, each with the first file that has it."""

    @property
    def schema(self) -> pa.Schema:
        """Names and plain types of all columns so far."""
        return pa.schema(list(self._types.items()))

    def add(self, uri: str, columns: Mapping[str, pa.DataType]) -> None:
        """Add the columns of a file, by name. Columns that it lacks will be null in its rows.

        Raises:
            ManifestError: a column's type is in conflict; the message names both files, the column and both types.
        """
        for name, dtype in columns.items():
            there = self._types.get(name)
            if there is None and self._planned:
                self.left_out.setdefault(name, uri)
                continue
            try:
                wider = dtype if there is None else common(there, dtype)
            except (TypeError, pa.ArrowException):
                wider = None
            if wider is None or (self._planned and wider != there):
                raise ManifestError(self._conflict(uri, name, dtype))
            if wider != there:
                self._types[name], self._origin[name] = wider, uri

    def _conflict(self, uri: str, name: str, dtype: pa.DataType) -> str:
        there = self._types[name]
        if self._planned:
            return (
                f"manifest {uri}: column {name!r} is {dtype}, and the dataset has it as {there}; the columns of a "
                f"dataset do not change: cast it to {there}, drop it, or choose a new output"
            )
        return (
            f"manifest {uri}: column {name!r} is {dtype}, but {there} in {self._origin[name]}; all files of a "
            "manifest need one type for it: cast or drop it in one of them"
        )
