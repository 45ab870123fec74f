"""Reads and writes shards: Parquet files of pairs, whose footer also holds their plan and the rows that failed."""

import io
import json
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import TypeAdapter

from stereo_jobs.data.images import encode_disparity, encode_png
from stereo_jobs.records import (
    CARRIED_PREFIX,
    DATASET_COLUMNS,
    IMAGE_COLUMNS,
    RowError,
    ShardRecord,
    StereoPair,
)

FOOTER_KEY = b"stereo_jobs"
_ERRORS = TypeAdapter(list[RowError])
_ROW_GROUP_BYTES = 64 * 1024**2


class Footer(NamedTuple):
    """The footer of a shard: its record (without checksum), its failed rows, the resolved recipe."""

    record: ShardRecord
    errors: list[RowError]
    recipe: dict[str, Any]


def encode_pair(pair: StereoPair) -> dict[str, Any]:
    """Encode a pair: its image columns as PNG and TIFF, and the columns that are plain fields of it."""
    images = {
        "left": ("png", encode_png(pair.left)),
        "right": ("png", encode_png(pair.right)),
        "disparity": ("tiff", encode_disparity(pair.disparity)),
        "mask_nonocc_left": ("png", encode_png(pair.mask_nonocc_left)),
        "mask_hole_right": ("png", encode_png(pair.mask_hole_right)),
        "mask_border_right": ("png", encode_png(pair.mask_border_right)),
    }
    if pair.disparity_requested is not None:
        images["disparity_requested"] = ("tiff", encode_disparity(pair.disparity_requested))
    height, width = pair.left.shape[:2]
    return {
        "id": pair.id,
        "width": width,
        "height": height,
        "disparity_of": pair.disparity_of,
        "unet_evaluations": pair.unet_evaluations,
        "left_psnr": pair.left_psnr,
        "unsafe": pair.model_scores.unsafe,
        **{name: {"bytes": data, "path": f"{pair.id}.{name}.{suffix}"} for name, (suffix, data) in images.items()},
    }


def write_shard(
    cells: Sequence[dict[str, Any]],
    carried: pa.Schema,
    record: ShardRecord,
    errors: Sequence[RowError],
    recipe: dict[str, Any],
) -> bytes:
    """Return one shard as Parquet bytes; without successful rows, a file of 0 rows that still has its footer.

    Args:
        cells: one dict for each successful row, by dataset column; missing columns become null. Carried cells are
            arrays of one cell, and are written bit for bit, or plain values.
        carried: names (without prefix) and types of the manifest's further columns.
        record: counts and timings for the footer.
        errors: the failed rows, for the footer.
        recipe: the resolved recipe, for the footer.
    """
    schema = DATASET_COLUMNS
    for field in carried:
        schema = schema.append(pa.field(CARRIED_PREFIX + field.name, field.type))
    footer = {
        "record": record.model_dump(),
        "errors": [vars(error) for error in errors],
        "recipe": recipe,
    }
    metadata = {
        FOOTER_KEY: json.dumps(footer).encode(),
        b"huggingface": json.dumps({"info": {"features": hub_features(schema)}}).encode(),
    }
    table = pa.Table.from_pylist(list(cells), schema=DATASET_COLUMNS)
    for field in carried:
        name = CARRIED_PREFIX + field.name
        chunks = [_carried_cell(row.get(name), field.type) for row in cells]
        table = table.append_column(pa.field(name, field.type), pa.chunked_array(chunks, field.type))
    table = table.replace_schema_metadata(metadata)
    buffer = io.BytesIO()
    per_row = max(1, table.nbytes // max(1, len(table)))
    options = {
        "compression": {path: "NONE" if _is_image(path) else "ZSTD" for path in _leaves(schema)},
        "use_dictionary": [path for path in _leaves(schema) if not _is_image(path)],
        "write_statistics": [path for path in _leaves(schema) if not _is_image(path)],
        "write_page_index": True,
    }
    with pq.ParquetWriter(buffer, table.schema, **options) as writer:
        if len(table):  # `datasets` cannot read a row group of 0 rows
            writer.write_table(table, row_group_size=max(1, _ROW_GROUP_BYTES // per_row))
    return buffer.getvalue()


def _carried_cell(value: Any, dtype: pa.DataType) -> pa.Array:
    """Return an array of one cell. A dictionary, at any depth, is replaced by the value that this cell has in it."""
    if not isinstance(value, pa.Array):
        return pa.array([value], dtype)
    # A cell is a slice of its column. Arrow casts a slice with nulls inside of lists wrongly, therefore it is copied.
    return value if value.type == dtype else value.take(pa.array([0])).cast(dtype)


def load_codecs() -> None:
    """Import what Arrow (pandas) and Pillow (its formats) import at first use, which takes a quarter of a second."""
    PIL.Image.init()
    _parquet_schema(pa.schema({"id": pa.string()}))


def read_table(data: bytes, columns: Sequence[str] | None = None) -> pa.Table:
    """Read the rows of a Parquet file that lies in memory.

    `pq.read_table` leaves a thread of Arrow's behind that still has to release a Python object; a process that ends
    just then aborts (apache/arrow#33975).

    Raises:
        pa.ArrowInvalid: the bytes are not Parquet.
    """
    return pq.ParquetFile(pa.BufferReader(data)).read(columns=columns, use_threads=False)


def read_footer(source: Any) -> Footer:
    """Read the footer of a shard.

    Args:
        source: an open `ParquetFile`, or the bytes of the whole file.

    Raises:
        ValueError: the source is not Parquet, or not a shard of this package.
    """
    try:
        parquet = source if isinstance(source, pq.ParquetFile) else pq.ParquetFile(pa.BufferReader(source))
        footer = json.loads((parquet.schema_arrow.metadata or {})[FOOTER_KEY])
        errors = _ERRORS.validate_python(footer["errors"])
        return Footer(ShardRecord.model_validate(footer["record"]), errors, footer["recipe"])
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"not readable as Parquet ({error})") from None
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"has no footer of stereo_jobs ({error})") from None


def _leaves(schema: pa.Schema) -> list[str]:
    """Paths of the columns as Parquet names them."""
    return [
        pq.ParquetSchema.column(parquet_schema, i).path
        for parquet_schema in [_parquet_schema(schema)]
        for i in range(len(parquet_schema))
    ]


def _parquet_schema(schema: pa.Schema) -> pq.ParquetSchema:
    sink = io.BytesIO()
    pq.write_table(schema.remove_metadata().empty_table(), sink)
    return pq.ParquetFile(sink).schema


def _is_image(path: str) -> bool:
    column, _, leaf = path.partition(".")
    return column in IMAGE_COLUMNS and leaf == "bytes"


# --- The `huggingface` metadata, with which `datasets` decodes images ---


def hub_features(schema: pa.Schema) -> dict[str, Any]:
    """Describe all columns in the form that the `datasets` library keeps in Parquet metadata."""
    return {
        field.name: {"_type": "Image"} if field.name in IMAGE_COLUMNS else hub_feature(field.type) for field in schema
    }


def hub_feature(dtype: pa.DataType) -> Any:
    """Describe one Arrow type in the form of `datasets`.

    Raises:
        TypeError: `datasets` does not know the type.
    """
    if pa.types.is_list(dtype) or pa.types.is_large_list(dtype) or pa.types.is_fixed_size_list(dtype):
        name = "LargeList" if pa.types.is_large_list(dtype) else "List"
        length = {"length": dtype.list_size} if pa.types.is_fixed_size_list(dtype) else {}
        return {"feature": hub_feature(dtype.value_type), **length, "_type": name}
    if pa.types.is_struct(dtype):
        names = [dtype.field(i).name for i in range(dtype.num_fields)]
        if len(set(names)) < len(names):
            raise TypeError(f"two fields of one name in {dtype}")
        return {dtype.field(i).name: hub_feature(dtype.field(i).type) for i in range(dtype.num_fields)}
    if not any(is_value(dtype) for is_value in _HUB_VALUES):
        raise TypeError(f"type {dtype}")
    if pa.types.is_timestamp(dtype) and dtype.tz and not _HUB_ZONE.fullmatch(dtype.tz):
        raise TypeError(f"time zone {dtype.tz!r}")
    if pa.types.is_date(dtype):
        return {"dtype": str(dtype).partition("[")[0], "_type": "Value"}  # date32[day], date64[ms]
    return {"dtype": _HUB_FLOATS.get(dtype) or str(dtype), "_type": "Value"}


_HUB_VALUES: tuple[Callable[[pa.DataType], bool], ...] = (
    *(pa.types.is_null, pa.types.is_boolean, pa.types.is_integer, pa.types.is_floating),
    *(pa.types.is_string, pa.types.is_large_string),
    *(pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary),
    *(pa.types.is_date, pa.types.is_time, pa.types.is_timestamp, pa.types.is_duration),
    *(pa.types.is_decimal128, pa.types.is_decimal256),
)
"""Types of single values that `datasets` can name."""
_HUB_FLOATS = {pa.float16(): "float16", pa.float32(): "float32", pa.float64(): "float64"}
_HUB_ZONE = re.compile(r"[a-zA-Z0-9/_+\-:]+")
"""Time zones that `datasets` can name."""
