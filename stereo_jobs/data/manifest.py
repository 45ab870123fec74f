"""Manifests: Parquet files in, validated rows out.

A manifest is checked whole before any model loads (`inspect`, `stream_ids`); what can only be seen in a single
row (an empty prompt, a broken image) becomes that row's error and never stops the others.
"""

import fnmatch
import hashlib
import math
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field

from stereo_jobs.data.images import InputError
from stereo_jobs.data.reader import InputReader
from stereo_jobs.data.shards import hub_feature
from stereo_jobs.data.storage import NotFoundError, Storage, open_storage
from stereo_jobs.errors import ManifestError, StereoJobsError, StorageError, StorageUnavailableError
from stereo_jobs.records import ID_PATTERN, ID_RULE, Camera, Row, RowError
from stereo_jobs.spec import Recipe, ScaleRange, StorageSpec, check_scale_percent

REQUIRED = {
    "text": ("id", "prompt"),
    "depth": ("id", "prompt"),
    "image": ("id", "image"),
    "inpaint": ("id", "image", "mask"),
}
"""Columns a mode cannot do without."""

INPUTS = {
    "text": (),
    "depth": ("image", "depth"),
    "image": ("image", "depth", "disparity", "given_right", "true_right", "true_disparity"),
    "inpaint": ("image", "mask", "depth", "disparity"),
}
"""Image columns that a mode reads, where the row has them."""

_MAPS = ("depth", "disparity", "true_disparity")

MAX_PROMPT = 2000
"""Characters; CLIP reads about 300 of them."""

_IMAGE_TYPES = "binary, struct<bytes, path> or string (a URI)"
_KINDS = {
    "id": "string",
    "prompt": "string",
    "negative_prompt": "string",
    "seed": "integer",
    "scale_percent": "number",
    "image": _IMAGE_TYPES,
    "mask": _IMAGE_TYPES,
    "depth": _IMAGE_TYPES,
    "depth_kind": "string",
    "focal_px": "number",
    "baseline": "number",
    "doffs_px": "number",
    "disparity": _IMAGE_TYPES,
    "given_right": _IMAGE_TYPES,
    "true_right": _IMAGE_TYPES,
    "true_disparity": _IMAGE_TYPES,
    "true_nonocc_left": _IMAGE_TYPES,
}
"""Known columns and their types; all others are carried through as `src_*`."""

_CACHED_GROUP_BYTES = 256 * 1024**2


class ManifestFile(BaseModel):
    """One Parquet file of a manifest, as a plan lists it."""

    model_config = ConfigDict(frozen=True)

    uri: str
    size: int
    tag: str = Field(description="Changes with the content: S3 ETag, or SHA-256 of a local file.")
    rows: int


def split_uri(uri: str, settings: StorageSpec) -> tuple[Storage, str]:
    """The storage of an object's folder, and the object's name in it."""
    folder, _, name = uri.rpartition("/")
    return open_storage(folder or ("/" if uri.startswith("/") else "."), settings), name


# --- Finding and checking files ---


def find(patterns: Sequence[str], settings: StorageSpec) -> list[str]:
    """URIs of all Parquet files that the patterns (file, glob, folder or prefix) name, sorted, each once.

    Raises:
        ManifestError: a pattern matches nothing.
    """
    found: set[str] = set()
    for pattern in patterns:
        matches = _glob(pattern, settings) if any(c in pattern for c in "*?[") else _named(pattern, settings)
        if not matches:
            raise ManifestError(f"manifest {pattern}: no Parquet file there")
        found.update(matches)
    return sorted(found)


def _named(pattern: str, settings: StorageSpec) -> list[str]:
    storage, name = split_uri(pattern, settings)
    if name and storage.exists(name):
        return [storage.locate(name)]
    folder = open_storage(pattern, settings)
    try:
        return [folder.locate(info.key) for info in folder.list() if info.key.endswith(".parquet")]
    except NotFoundError:
        return []


def _glob(pattern: str, settings: StorageSpec) -> list[str]:
    fixed = pattern[: min(pattern.index(c) for c in "*?[" if c in pattern)].rpartition("/")[0]
    storage = open_storage(fixed or ".", settings)
    wanted = pattern[len(fixed) :].lstrip("/").split("/")
    return [
        storage.locate(info.key)
        for info in storage.list()
        if len(parts := info.key.split("/")) == len(wanted) and all(map(fnmatch.fnmatchcase, parts, wanted))
    ]


def open_file(uri: str, settings: StorageSpec) -> pq.ParquetFile:
    """Open one manifest file. Raises ManifestError if it is missing or not Parquet."""
    storage, name = split_uri(uri, settings)
    filesystem, path = storage.for_pyarrow(name)
    try:
        return pq.ParquetFile(filesystem.open_input_file(path))
    except FileNotFoundError:
        raise ManifestError(f"manifest {uri}: no such file") from None
    except (pa.ArrowInvalid, OSError) as error:
        raise _unreadable(uri, settings, "not a readable Parquet file", error) from None


def inspect(uri: str, recipe: Recipe, settings: StorageSpec) -> tuple[ManifestFile, pa.Schema]:
    """Check one file's columns and types; returns its listing and the schema of its carried columns.

    Raises:
        ManifestError: naming the file, the column and the rule.
    """
    storage, name = split_uri(uri, settings)
    file = open_file(uri, settings)
    schema = file.schema_arrow
    given = ("given_right",) if recipe.method.right_view == "given" else ()
    for column in (*REQUIRED[recipe.mode], *given):
        if column not in schema.names:
            needing = "method.right_view given" if column in given else f"mode {recipe.mode}"
            raise ManifestError(
                f"manifest {uri}: {needing} needs the column {column!r}; it has {', '.join(schema.names) or 'none'}"
            )
    for column in schema.names:
        # pyarrow finds no column by a name that two share.
        if schema.names.count(column) > 1:
            raise ManifestError(f"manifest {uri}: column {column!r} appears twice")
        kind = _KINDS.get(column)
        if kind and not _fits(schema.field(column).type, kind):
            raise ManifestError(f"manifest {uri}: column {column!r} must be {kind}, not {schema.field(column).type}")
    if "scale_percent" in schema.names and recipe.variants.scale_percent:
        raise ManifestError(
            f"manifest {uri}: has a column 'scale_percent', and recipe.variants.scale_percent is set too; "
            "drop one of them"
        )
    if file.metadata.num_rows == 0:
        raise ManifestError(f"manifest {uri}: has no rows")
    carried = _carried(schema)
    for field in carried:
        try:
            hub_feature(field.type)
        except TypeError as error:
            raise ManifestError(
                f"manifest {uri}: column {field.name!r} cannot be carried through ({error}); drop or cast it"
            ) from None
    listing = ManifestFile(uri=uri, size=storage.size(name), tag=storage.content_tag(name), rows=file.metadata.num_rows)
    return listing, carried


def carried_schema(uri: str, settings: StorageSpec) -> pa.Schema:
    """Names and types of the columns of a file that are carried through as `src_*`."""
    return _carried(open_file(uri, settings).schema_arrow)


def _carried(schema: pa.Schema) -> pa.Schema:
    return pa.schema([_plain(field) for field in schema if field.name not in _KINDS])


def _plain(field: pa.Field) -> pa.Field:
    dtype = field.type
    return pa.field(field.name, dtype.value_type if pa.types.is_dictionary(dtype) else dtype)


def _fits(dtype: pa.DataType, kind: str) -> bool:
    if pa.types.is_dictionary(dtype):
        dtype = dtype.value_type
    text = pa.types.is_string(dtype) or pa.types.is_large_string(dtype)
    if kind == "string":
        return bool(text)
    if kind == "integer":
        return bool(pa.types.is_integer(dtype))
    if kind == "number":
        return bool(pa.types.is_integer(dtype) or pa.types.is_floating(dtype))
    inline = pa.types.is_binary(dtype) or pa.types.is_large_binary(dtype)
    struct = pa.types.is_struct(dtype) and {dtype.field(i).name for i in range(dtype.num_fields)} <= {
        "bytes",
        "path",
    }
    return bool(text or inline or struct)


def stream_ids(file: ManifestFile, settings: StorageSpec) -> Iterator[pa.Array]:
    """All ids of a file, batch by batch, each checked.

    Raises:
        ManifestError: naming the file, the row (from 0) and the offending id.
    """
    parquet = open_file(file.uri, settings)
    start = 0
    try:
        for batch in parquet.iter_batches(batch_size=16_384, columns=["id"]):
            ids = batch.column(0).cast(pa.string())
            good = pc.fill_null(pc.match_substring_regex(ids, ID_PATTERN.replace("$", r"\z")), False)
            if not pc.all(good).as_py():
                at = pc.index(good, False).as_py()
                raw = ids[at].cast(pa.binary()).as_py()
                value = None if raw is None else raw.decode(errors="replace")
                shown = "null" if value is None else repr(value[:80]) + ("..." if len(value) > 80 else "")
                raise ManifestError(f"manifest {file.uri} row {start + at}: id {shown} must be {ID_RULE}")
            yield ids
            start += len(ids)
    except (pa.ArrowInvalid, OSError) as error:
        raise _unreadable(file.uri, settings, f"cannot be read after row {start}", error) from None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _unreadable(uri: str, settings: StorageSpec, what: str, error: Exception) -> StereoJobsError:
    """What a read that failed means: the store is away or refuses, or the file is broken."""
    if "AWS Error" in str(error):  # Arrow has no kinds of these; boto3 has
        storage, name = split_uri(uri, settings)
        try:
            storage.exists(name)
        except StorageError as problem:
            return problem
        return StorageUnavailableError(f"manifest {uri}: {what} just now ({_first_line(error)})")
    return ManifestError(f"manifest {uri}: {what} ({_first_line(error)})")


# --- Reading rows ---


class ManifestReader:
    """Reads single rows of manifest files; keeps the last row group, since shards follow one another."""

    def __init__(self, settings: StorageSpec) -> None:
        self.settings = settings
        self._file: tuple[str, pq.ParquetFile] | None = None
        self._group: tuple[tuple[str, int], pa.Table] | None = None
        self._lock = threading.Lock()

    def read(self, uri: str, rows: Sequence[int]) -> list[dict[str, Any]]:
        """Cells of the rows (indices into the file, ascending), in that order.

        Raises:
            ManifestError: the file cannot be read.
            StorageUnavailableError: not now.
        """
        with self._lock:
            try:
                return self._read(uri, rows)
            except (ManifestError, StorageUnavailableError):
                # The handle may have outlived its credentials or its connection: once more with a new one.
                self._file = self._group = None
                return self._read(uri, rows)

    def _read(self, uri: str, rows: Sequence[int]) -> list[dict[str, Any]]:
        parquet = self._open(uri)
        cells: list[dict[str, Any]] = []
        start = 0
        try:
            for group in range(parquet.metadata.num_row_groups):
                end = start + parquet.metadata.row_group(group).num_rows
                inside = [row - start for row in rows if start <= row < end]
                if inside:
                    cells += self._read_group(uri, parquet, group, inside)
                start = end
        except (pa.ArrowInvalid, OSError) as error:
            raise _unreadable(uri, self.settings, "cannot be read", error) from None
        if len(cells) != len(rows):
            raise ManifestError(f"manifest {uri}: has {start} rows, fewer than when the job was planned")
        return cells

    def _open(self, uri: str) -> pq.ParquetFile:
        if self._file is None or self._file[0] != uri:
            self._file = (uri, open_file(uri, self.settings))
        return self._file[1]

    def _read_group(self, uri: str, parquet: pq.ParquetFile, group: int, rows: list[int]) -> list[dict[str, Any]]:
        if parquet.metadata.row_group(group).total_byte_size <= _CACHED_GROUP_BYTES:
            if self._group is None or self._group[0] != (uri, group):
                self._group = ((uri, group), parquet.read_row_group(group))
            return _plain_cells(self._group[1].take(rows))
        cells: list[dict[str, Any]] = []
        start = 0
        for batch in parquet.iter_batches(batch_size=256, row_groups=[group]):
            inside = [row - start for row in rows if start <= row < start + len(batch)]
            if inside:
                cells += _plain_cells(batch.take(pa.array(inside)))
            start += len(batch)
        return cells


def _plain_cells(rows: pa.Table | pa.RecordBatch) -> list[dict[str, Any]]:
    """Cells as plain values. In place of one that Python cannot hold stands its error, which fails only its row."""
    try:
        return rows.to_pylist()  # type: ignore[no-any-return]
    except ValueError:
        return [{name: _plain_cell(rows[name][i]) for name in rows.schema.names} for i in range(len(rows))]


def _plain_cell(cell: pa.Scalar) -> Any:
    try:
        return cell.as_py()
    except ValueError as error:
        return error


def to_row(cells: dict[str, Any], variant: int, recipe: Recipe, wanted: Sequence[str], inputs: InputReader) -> Row:
    """One Row from a manifest row's cells; a rule broken by this row alone becomes its `error`.

    Args:
        cells: column name to value.
        variant: k of `<id>~k`; 0 where the recipe has no variants.
        recipe: gives seeds, scales and defaults.
        wanted: image columns that the mode reads.
        inputs: fetches them within bounds.
    """
    broken = [name for name, value in cells.items() if isinstance(value, ValueError)]
    cells_as_read, cells = cells, cells | dict.fromkeys(broken)
    scales = recipe.variants.scale_percent
    seed_index, scale_index = divmod(variant, max(1, len(scales)))
    row_id = str(cells["id"]) + (f"~{variant}" if recipe.variants.per_row > 1 else "")
    seed = row_seed(recipe.seed, str(cells["id"]), cells.get("seed"), seed_index)
    scale = cells.get("scale_percent")
    if scale is None:
        scale = scales[scale_index] if scales else draw_scale(recipe, seed)
    error: RowError | None = None
    images: dict[str, bytes] = {}
    try:
        if broken:
            why = cells_as_read[broken[0]]
            raise ValueError(f"{broken[0]}: {'not valid UTF-8' if isinstance(why, UnicodeDecodeError) else why}")
        _check_cells(cells, float(scale), recipe)
        images = {
            column: (inputs.read_map if column in _MAPS else inputs.read_image)(cells.get(column), column)
            for column in wanted
            if cells.get(column) is not None or column in REQUIRED[recipe.mode]
        }
    except (ValueError, InputError) as problem:
        error = RowError(row_id, "InvalidRow", str(problem))
    return Row(
        id=row_id,
        prompt=cells.get("prompt") or "",
        negative_prompt=cells.get("negative_prompt") or recipe.negative_prompt,
        seed=seed,
        scale_percent=float(scale),
        inputs=images,
        depth_kind=cells.get("depth_kind") or "inverse",
        camera=Camera(*(cells.get(name) for name in ("focal_px", "baseline", "doffs_px"))),
        carried={name: value for name, value in cells.items() if name not in _KINDS},
        error=error,
    )


def _check_cells(cells: dict[str, Any], scale: float, recipe: Recipe) -> None:
    for column in ("prompt", "negative_prompt"):
        text = cells.get(column) or ""
        if column == "prompt" and column in REQUIRED[recipe.mode] and not text.strip():
            raise ValueError("prompt: must not be empty")
        if len(text) > MAX_PROMPT:
            raise ValueError(f"{column}: at most {MAX_PROMPT} characters, got {len(text)}")
    given = cells.get("seed")
    if given is not None and not 0 <= given < 2**63:
        raise ValueError(f"seed: must be from 0 to 2**63 - 1, got {given}")
    if recipe.mode == "depth" and cells.get("depth") is None and cells.get("image") is None:
        raise ValueError("depth: mode depth needs a depth map, or an image to estimate it from; the row has neither")
    if (kind := cells.get("depth_kind")) not in (None, "inverse", "metric"):
        raise ValueError(f"depth_kind: must be inverse or metric, got {kind!r}")
    if recipe.method.geometry == "metric":
        _check_metric(cells, INPUTS[recipe.mode])
    try:
        check_scale_percent(scale)
    except ValueError as error:
        raise ValueError(f"scale_percent: {error}, got {scale:g}") from None


def _check_metric(cells: dict[str, Any], reads: Sequence[str]) -> None:
    """Metric geometry has to come from somewhere (Eq. 2), and the mode has to read it."""
    if cells.get("disparity") is not None and "disparity" in reads:
        return
    missing = [name for name in ("depth", "focal_px", "baseline") if cells.get(name) is None]
    if missing or cells.get("depth_kind") != "metric":
        lacking = f"it lacks {', '.join(missing)}" if missing else "its depth_kind is not metric"
        raise ValueError(
            "disparity: geometry metric needs a disparity in pixels, or a metric depth with focal_px and baseline; "
            f"{lacking}"
        )
    for name in ("focal_px", "baseline"):
        if not (math.isfinite(cells[name]) and cells[name] > 0):
            raise ValueError(f"{name}: must be above 0, got {cells[name]}")
    if not math.isfinite(cells.get("doffs_px") or 0):
        raise ValueError(f"doffs_px: must be finite, got {cells['doffs_px']}")


def row_seed(job_seed: int, row_id: str, given: int | None, index: int) -> int:
    """The 63-bit seed of a row: the manifest's own, else a hash of job seed and id; `index` counts variants."""
    first = given if given is not None else _hash63(f"{job_seed}/{row_id}")
    return first & (2**63 - 1) if index == 0 else _hash63(f"{first}/{index}")


def draw_scale(recipe: Recipe, seed: int) -> float:
    """The scale of a row that gives none, in percent of the width: the recipe's, or drawn by the seed in its range."""
    scale = recipe.scale_percent
    if isinstance(scale, ScaleRange):
        return scale.min + (scale.max - scale.min) * (_hash63(f"{seed}/scale_percent") / 2**63)
    return scale


def _hash63(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1
