"""Makes a manifest from lines of text, from a table, or from a folder of images."""

import io
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq

from stereo_jobs.data.images import IMAGE_SUFFIXES
from stereo_jobs.data.manifest import split_uri
from stereo_jobs.data.storage import AlreadyExistsError
from stereo_jobs.errors import ManifestError
from stereo_jobs.local_files import refuse_special
from stereo_jobs.logs import names_shown
from stereo_jobs.records import ID_RULE, valid_id
from stereo_jobs.spec import StorageSpec

ROW_GROUP_ROWS = 10_000
"""Rows per row group; small, because a shard reads only the row groups of its own rows."""


def build(source: Path, target: str, settings: StorageSpec) -> int:
    """Write a manifest; returns its number of rows. An existing one is never overwritten.

    Args:
        source: a .txt file with one prompt per line; a .csv or .jsonl file with a column `prompt` or `image`; or a
            folder of images, where the file names without extension become the ids.
        target: path or s3:// URI of the Parquet file.
        settings: S3 access.

    Raises:
        ManifestError: the source is missing, empty or of another kind, has neither prompts nor images, or has an id
            that is not valid or appears twice; or the target exists.
    """
    try:
        table = _read(source)
    except (OSError, UnicodeEncodeError) as error:
        reason = getattr(error, "strerror", None) or "a name in it is not UTF-8; rename it"
        raise ManifestError(f"{source}: cannot be read ({reason})") from None
    if table.num_rows == 0:
        raise ManifestError(f"{source}: has nothing in it that could become a row")
    if not {"prompt", "image"} & set(table.column_names):
        raise ManifestError(
            f"{source}: has neither a column 'prompt' nor 'image', but {names_shown(table.column_names)}; rename one"
        )
    if "id" not in table.column_names:
        digits = max(6, len(str(table.num_rows)))
        ids = [f"{_clean(source.stem)}-{i:0{digits}d}" for i in range(table.num_rows)]
        table = table.add_column(0, "id", pa.array(ids))
    elif not pa.types.is_string(table["id"].type):
        table = table.set_column(table.column_names.index("id"), "id", table["id"].cast(pa.string()))
    _check_ids(source, table["id"])
    publish(table, target, settings)
    return int(table.num_rows)


def publish(table: pa.Table, target: str, settings: StorageSpec, row_group_rows: int = ROW_GROUP_ROWS) -> None:
    """Write a table as a manifest. Raises ManifestError if the target exists."""
    buffer = io.BytesIO()
    # Workers read it page by page, and no store vouches for a part of an object.
    options = {"compression": "zstd", "row_group_size": row_group_rows, "write_page_checksum": True}
    pq.write_table(table, buffer, **options)
    storage, name = split_uri(target, settings)
    try:
        storage.create(name, buffer.getvalue())
    except AlreadyExistsError:
        raise ManifestError(
            f"{target}: exists already; a planned manifest must not change, choose a new name"
        ) from None


def _read(source: Path) -> pa.Table:
    if source.is_dir():
        return _folder(source)
    readers: dict[str, Callable[[Path], pa.Table]] = {
        ".txt": _lines,
        ".csv": pyarrow.csv.read_csv,
        ".jsonl": pyarrow.json.read_json,
    }
    reader = readers.get(source.suffix.lower())
    if reader is None:
        raise ManifestError(f"{source}: must be a .txt, .csv or .jsonl file, or a folder of images")
    try:
        refuse_special(source)
        return reader(source)
    except FileNotFoundError:
        raise ManifestError(f"{source}: no such file") from None
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ManifestError(f"{source}: cannot be read ({error})") from None


def _check_ids(source: Path, ids: pa.ChunkedArray) -> None:
    """Check that ids are valid and differ. Raises ManifestError, naming the row (from 0)."""
    seen: set[str] = set()
    for row, value in enumerate(ids.to_pylist()):
        if value is None or not valid_id(value):
            raise ManifestError(f"{source} row {row}: id {value!r} must be {ID_RULE}")
        if value in seen:
            raise ManifestError(f"{source} row {row}: id {value!r} appears twice; ids must differ")
        seen.add(value)


def _lines(source: Path) -> pa.Table:
    lines = [line.strip() for line in source.read_text(encoding="utf-8-sig").splitlines()]
    return pa.table({"prompt": pa.array([line for line in lines if line], pa.string())})


def _folder(source: Path) -> pa.Table:
    paths = [path for path in sorted(source.iterdir()) if path.suffix.lower() in IMAGE_SUFFIXES]
    for path in paths:
        if not path.is_file():
            raise ManifestError(
                f"{path}: not a regular file; a folder of images may hold no other thing of such a name"
            )
    return pa.table(
        {
            "id": pa.array(list(_distinct(_clean(path.stem) for path in paths)), pa.string()),
            "image": pa.array([str(path.resolve()) for path in paths], pa.string()),
        }
    )


def _clean(name: str) -> str:
    """Turn a file name into a valid id that is close to it."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name).lstrip(".")[:150] or "row"


def _distinct(names: Iterator[str]) -> Iterator[str]:
    """Append a number to each name that appeared before."""
    seen: set[str] = set()
    for name in names:
        unique, count = name, 1
        while unique in seen:
            count += 1
            unique = f"{name}-{count}"
        seen.add(unique)
        yield unique
