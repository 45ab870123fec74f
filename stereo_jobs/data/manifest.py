"""Manifests: Parquet files in, validated rows out.

Columns and ids of all files are checked before any model is loaded (`inspect`, `stream_ids`). A rule that a single row
breaks (an empty prompt, a damaged image) becomes the error of that row and never stops the others.
"""

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args

import pyarrow as pa
import pyarrow.compute as pc

from stereo_jobs.data.arrow_types import plain
from stereo_jobs.data.images import InputError
from stereo_jobs.data.manifest_files import ManifestFile, open_file, split_uri, unreadable
from stereo_jobs.data.reader import InputReader
from stereo_jobs.data.row_groups import UNREADABLE, RowGroups
from stereo_jobs.data.shards import hub_feature
from stereo_jobs.errors import ManifestError
from stereo_jobs.logs import names_shown
from stereo_jobs.records import ID_PATTERN, ID_RULE, Camera, DisparityEncoding, Row, RowError
from stereo_jobs.spec import Encoding, Recipe, ScaleRange, StorageSpec, check_scale_percent

REQUIRED = {
    "text": ("id", "prompt"),
    "depth": ("id", "prompt"),
    "image": ("id", "image"),
    "inpaint": ("id", "image", "mask"),
}
"""Columns that each mode needs."""

INPUTS = {
    "text": (),
    "depth": ("image", "depth"),
    "image": ("image", "depth", "disparity", "given_right", "true_right", "true_disparity"),
    "inpaint": ("image", "mask", "depth", "disparity"),
}
"""Image columns that each mode reads from the rows that have them."""

_CAMERA = ("focal_px", "baseline", "doffs_px")
_MAPS = ("depth", "disparity", "true_disparity")

MAX_PROMPT = 2000
"""Longest prompt in characters; CLIP reads about 300 of them."""

_IMAGE_TYPES = "binary, struct<bytes, path> or string (a URI)"
KNOWN = {
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
    "disparity_scale": "number",
    "disparity_encoding": "string",
    "disparity_unknown": "number",
    "given_right": _IMAGE_TYPES,
    "true_right": _IMAGE_TYPES,
    "true_disparity": _IMAGE_TYPES,
    "true_nonocc_left": _IMAGE_TYPES,
}
"""Known columns and their types; all other columns are carried through as `src_*`."""

SCALARS = frozenset(name for name, kind in KNOWN.items() if kind != _IMAGE_TYPES)
"""Known columns that are no images: every mode reads those that a file has."""

MAX_EXACT = 2**53
"""Largest whole number up to which a float64 holds every one."""


# --- Checking files ---


MOST_GROUP_BYTES = 256 * 1024**2
"""Bytes of a row group that many shards may share: each reads it from its start, and workers share nothing."""
_FEW_SHARDS = 8
"""Shards that may share a larger row group."""


def inspect(
    uri: str,
    recipe: Recipe,
    settings: StorageSpec,
    partitions: Mapping[str, str | None] | None = None,
    shard_rows: int | None = None,
) -> tuple[ManifestFile, pa.Schema]:
    """Check the columns of one file and their types; returns its listing and the schema of its carried columns.

    A file without rows gives nothing to a dataset: its columns are not checked, and it has none that are carried.

    Args:
        uri: the file.
        recipe: its mode needs some columns.
        settings: S3 access.
        partitions: columns that the file's folders give it. A column in the file has precedence.
        shard_rows: pairs of a shard, to compare row groups with; None: they are not looked at.

    Raises:
        ManifestError: a rule is broken; the message names file, column and rule.
    """
    storage, name = split_uri(uri, settings)
    file = open_file(uri, settings)
    schema, rows = file.schema, file.metadata.num_rows
    from_folders = {key: value for key, value in (partitions or {}).items() if rows and key not in schema.names}
    carried = pa.schema([])
    try:
        if rows:
            carried = check_schema(schema, recipe)
            _check_folders(from_folders)
    except ValueError as error:
        raise ManifestError(f"manifest {uri}: {error}") from None
    if shard_rows is not None:
        try:
            _check_row_groups(uri, file, recipe.variants.per_row, shard_rows)
        except UNREADABLE as error:
            raise unreadable(uri, settings, "cannot be read", error) from None
    for key in from_folders:
        carried = carried.append(pa.field(key, pa.string()))
    listing = ManifestFile(
        uri=uri, size=storage.size(name), tag=storage.content_tag(name), rows=rows, partitions=from_folders
    )
    return listing, carried


def _check_row_groups(uri: str, file: RowGroups, variants: int, shard_rows: int) -> None:
    """Refuse large row groups of which each of many shards would read a part. Raises ManifestError or UNREADABLE."""
    for group in range(file.metadata.num_row_groups):
        pairs, size = file.metadata.row_group(group).num_rows * variants, file.stored_bytes(group)
        if size > MOST_GROUP_BYTES and pairs > _FEW_SHARDS * shard_rows:
            raise ManifestError(
                f"manifest {uri}: row group {group} has {size // 1024**2} MB, and each of its "
                f"{-(-pairs // shard_rows)} shards would read all that lies before its own rows; above "
                f"{MOST_GROUP_BYTES // 1024**2} MB it may have at most {_FEW_SHARDS}: write small row groups with "
                f"`stereo-jobs manifest build {uri} TARGET`, or raise runtime.shard_rows to {-(-pairs // _FEW_SHARDS)}"
            )


def check_schema(schema: pa.Schema, recipe: Recipe) -> pa.Schema:
    """Check columns and their types; returns the schema of the carried ones. Raises ValueError."""
    _check_columns(schema, recipe)
    return _carried(schema)


def _check_columns(schema: pa.Schema, recipe: Recipe) -> None:
    """Check that the needed columns are there and the known ones have their types. Raises ValueError."""
    needed = dict.fromkeys(REQUIRED[recipe.mode], f"mode {recipe.mode}")
    if recipe.method.right_view == "given":
        needed["given_right"] = "method.right_view given"
    for column, why in needed.items():
        if column not in schema.names:
            raise ValueError(f"{why} needs the column {column!r}; it has {names_shown(schema.names) or 'none'}")
    for column in schema.names:
        # pyarrow finds no column by a name that two share.
        if schema.names.count(column) > 1:
            raise ValueError(f"column {column!r} appears twice; rename or drop one")
        kind = KNOWN.get(column)
        empty = column not in needed and pa.types.is_null(schema.field(column).type)
        if kind and not empty and not _fits(schema.field(column).type, kind):
            raise ValueError(f"column {column!r} must be {kind}, not {schema.field(column).type}; cast it")
    if "scale_percent" in schema.names and recipe.variants.scale_percent:
        raise ValueError("has a column 'scale_percent', and recipe.variants.scale_percent is set too; drop one of them")


def _check_folders(partitions: Mapping[str, str | None]) -> None:
    """Check that folders give no column that means something here. Raises ValueError."""
    for column, value in partitions.items():
        if column in KNOWN:
            raise ValueError(
                f"its folder {column}={value} would be the column {column!r}, which is read from files only; write it "
                "into the file, or rename the folder"
            )


def carried_schema(uri: str, settings: StorageSpec) -> pa.Schema:
    """Return names and plain types of the columns of a file that are carried through as `src_*`.

    Raises:
        ManifestError: the file cannot be read, or the dataset cannot hold a column.
    """
    try:
        return _carried(open_file(uri, settings).schema)
    except ValueError as error:
        raise ManifestError(f"manifest {uri}: {error}") from None


def _carried(schema: pa.Schema) -> pa.Schema:
    """Return the columns that are carried, in their plain types. Raises ValueError if the dataset cannot hold one."""
    carried = []
    for field in schema:
        if field.name in KNOWN:
            continue
        try:
            carried.append(pa.field(field.name, plain(field.type)))
            hub_feature(carried[-1].type)
        except TypeError as error:
            raise ValueError(f"column {field.name!r} cannot be carried through ({error}); drop or cast it") from None
    return pa.schema(carried)


def _fits(dtype: pa.DataType, kind: str) -> bool:
    """Return whether a column type is of one of the kinds in `KNOWN`."""
    try:
        dtype = plain(dtype)
    except TypeError:
        return False
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
    """Read and check all ids of a file, batch by batch.

    Raises:
        ManifestError: an id is not valid, or there are more or fewer of them than rows; the message names file, row
            (from 0) and id.
    """
    parquet = open_file(file.uri, settings)
    start = 0
    try:
        for group in range(parquet.metadata.num_row_groups):
            end = start + parquet.metadata.row_group(group).num_rows
            if not file.rows and start == end:
                continue  # a file without rows need not have ids
            (part,) = parquet.parts(group, ["id"])
            for batch in parquet.batches(group, part):
                yield _checked_ids(batch.column(0), file.uri, start)
                start += len(batch)
            if start != end:
                raise ManifestError(
                    f"manifest {file.uri}: its footer says that row group {group} ends after {end} rows, but it ends "
                    f"after {start}; write the file again"
                )
    except UNREADABLE as error:
        raise unreadable(file.uri, settings, f"cannot be read after row {start}", error) from None
    if start != file.rows:
        raise ManifestError(
            f"manifest {file.uri}: its footer says {file.rows} rows, but it holds {start}; write the file again"
        )


def _checked_ids(ids: pa.Array, uri: str, start: int) -> pa.StringArray:
    """Check ids, as text or as a dictionary of it, before they are spread out: a bad one may be long and shared."""
    pattern = ID_PATTERN.replace("$", r"\z")
    if pa.types.is_dictionary(ids.type):
        good = pc.match_substring_regex(ids.dictionary, pattern).take(ids.indices)
    else:
        good = pc.match_substring_regex(ids, pattern)
    good = pc.fill_null(good, False)
    if not pc.all(good).as_py():
        at = pc.index(good, False).as_py()
        raise ManifestError(f"manifest {uri} row {start + at}: id {_shown(ids[at])} must be {ID_RULE}")
    return ids.cast(pa.string())


def _shown(cell: pa.Scalar) -> str:
    """Quote the start of a text that may be long or no text at all."""
    value = cell.value if isinstance(cell, pa.DictionaryScalar) else cell
    if not value.is_valid:
        return "null"
    raw = value.as_buffer()
    start = raw.slice(0, min(320, raw.size)).to_pybytes().decode(errors="replace")[:80]
    return repr(start) + ("..." if raw.size > 80 else "")


# --- From cells to a row ---


def to_row(cells: dict[str, Any], variant: int, recipe: Recipe, wanted: Sequence[str], inputs: InputReader) -> Row:
    """Make one Row from the cells of a manifest row; a rule that this row breaks becomes its `error`.

    Args:
        cells: the row, as ManifestReader gives it: values of known columns, and what is carried of the others.
        variant: k of `<id>~k`; 0 where the recipe has no variants.
        recipe: seeds, scales and defaults come from it.
        wanted: image columns that the mode reads.
        inputs: reads these images, within its limits.
    """
    odd = {name: value for name, value in cells.items() if isinstance(value, Exception)}
    cells = cells | dict.fromkeys(odd)
    row_id = str(cells["id"]) + (f"~{variant}" if recipe.variants.per_row > 1 else "")
    seed, scale = _seed_and_scale(cells, variant, recipe)
    error: RowError | None = None
    images: dict[str, bytes] = {}
    disparity = DisparityEncoding()
    try:
        if odd:
            name, why = next(iter(odd.items()))
            raise ValueError(f"{name}: {'not valid UTF-8' if isinstance(why, UnicodeDecodeError) else why}")
        _check_cells(cells, scale, recipe)
        disparity = _disparity_encoding(cells, recipe)
        images = _read_images(cells, wanted, REQUIRED[recipe.mode], inputs)
    except (ValueError, InputError) as problem:
        error = RowError(row_id, "InvalidRow", str(problem))
    return Row(
        id=row_id,
        prompt=cells.get("prompt") or "",
        negative_prompt=cells.get("negative_prompt") or recipe.negative_prompt,
        seed=seed,
        scale_percent=scale,
        inputs=images,
        depth_kind=cells.get("depth_kind") or "inverse",
        camera=_camera(cells),
        carried={name: value for name, value in cells.items() if name not in KNOWN},
        error=error,
        disparity=disparity,
    )


def _seed_and_scale(cells: dict[str, Any], variant: int, recipe: Recipe) -> tuple[int, float]:
    """Return the seed and the scale of a variant: from the manifest row, else from the recipe."""
    scales = recipe.variants.scale_percent
    seed_index, scale_index = divmod(variant, max(1, len(scales)))
    seed = row_seed(recipe.seed, str(cells["id"]), cells.get("seed"), seed_index)
    scale = cells.get("scale_percent")
    if scale is None:
        scale = scales[scale_index] if scales else draw_scale(recipe, seed)
    return seed, float(scale)


def _read_images(
    cells: dict[str, Any], wanted: Sequence[str], required: Sequence[str], inputs: InputReader
) -> dict[str, bytes]:
    """Read the wanted image columns that the row has. Raises InputError, also for a missing required one."""
    return {
        column: (inputs.read_map if column in _MAPS else inputs.read_image)(cells.get(column), column)
        for column in wanted
        if cells.get(column) is not None or column in required
    }


def _disparity_encoding(cells: dict[str, Any], recipe: Recipe) -> DisparityEncoding:
    """Return what the row's disparities mean: from its cells, else from the recipe. Raises ValueError."""
    given = {name: cells.get(f"disparity_{name}") for name in ("encoding", "scale", "unknown")}
    encoding, scale, unknown = (
        getattr(recipe, f"disparity_{name}") if value is None else value for name, value in given.items()
    )
    if encoding not in get_args(Encoding):
        raise ValueError(f"disparity_encoding: must be {' or '.join(get_args(Encoding))}, got {encoding[:80]!r}")
    for name, value in (("scale", given["scale"]), ("unknown", given["unknown"])):
        if value is not None and not (math.isfinite(value) and abs(value) <= MAX_EXACT):
            raise ValueError(f"disparity_{name}: must be a number from -2**53 to 2**53, got {value}")
    if given["scale"] is not None and given["scale"] <= 0:
        raise ValueError(f"disparity_scale: must be above 0, the stored value of one pixel; got {given['scale']}")
    if encoding != "plain":
        if given["scale"] is not None:
            raise ValueError(f"disparity_scale: disparity_encoding {encoding} has one of its own; leave the cell empty")
        scale = None
    return DisparityEncoding(encoding, None if scale is None else float(scale), unknown)


def _camera(cells: dict[str, Any]) -> Camera:
    given = [cells.get(name) for name in _CAMERA]
    return Camera(*(None if value is None else float(value) for value in given))


def _check_cells(cells: dict[str, Any], scale: float, recipe: Recipe) -> None:
    """Check the cells of one row, except its images. Raises ValueError or InputError, naming column and rule."""
    for column in ("prompt", "negative_prompt"):
        text = cells.get(column) or ""
        if column == "prompt" and column in REQUIRED[recipe.mode] and not text.strip():
            raise ValueError("prompt: must not be empty")
        if len(text) > MAX_PROMPT:
            raise ValueError(f"{column}: at most {MAX_PROMPT} characters, got {len(text)}")
    given = cells.get("seed")
    if given is not None and not 0 <= given < 2**63:
        raise ValueError(f"seed: must be from 0 to 2**63 - 1, got {given}")
    for column in _CAMERA:
        value = cells.get(column)
        if isinstance(value, int) and abs(value) > MAX_EXACT:
            raise ValueError(f"{column}: a whole number must be from -2**53 to 2**53, got {value}; use a larger unit")
    if recipe.mode == "depth" and cells.get("depth") is None and cells.get("image") is None:
        raise ValueError("depth: mode depth needs a depth map, or an image to estimate it from; the row has neither")
    if (kind := cells.get("depth_kind")) not in (None, "inverse", "metric"):
        raise ValueError(f"depth_kind: must be inverse or metric, got {kind[:80]!r}")
    if recipe.method.geometry == "metric":
        has_disparity = "disparity" in INPUTS[recipe.mode] and cells.get("disparity") is not None
        has_depth = cells.get("depth") is not None
        check_metric_inputs(has_disparity, has_depth, cells.get("depth_kind"), _camera(cells))
    try:
        check_scale_percent(scale)
    except ValueError as error:
        raise ValueError(f"scale_percent: {error}, got {scale:g}") from None


def check_metric_inputs(has_disparity: bool, has_depth: bool, depth_kind: str | None, camera: Camera) -> None:
    """Check that a row determines its disparity in pixels (StereoDiffusion, Eq. 2), as metric geometry needs it.

    Args:
        has_disparity: whether the row has a disparity that its mode reads.
        has_depth: whether the row has a depth map.
        depth_kind: `inverse` or `metric`; None counts as inverse.
        camera: focal length and baseline of the row, for a metric depth.

    Raises:
        InputError: the row has neither a disparity nor a metric depth with its camera, or that camera is impossible.
    """
    if has_disparity:
        return
    missing = [] if has_depth else ["depth"]
    missing += [name for name in ("focal_px", "baseline") if getattr(camera, name) is None]
    if missing or depth_kind != "metric":
        lacking = f"it lacks {', '.join(missing)}" if missing else "its depth_kind is not metric"
        raise InputError(
            "disparity: geometry metric needs a disparity in pixels, or a metric depth with focal_px and baseline; "
            f"{lacking}"
        )
    for name, value in (("focal_px", camera.focal_px), ("baseline", camera.baseline)):
        if value is not None and not (math.isfinite(value) and value > 0):
            raise InputError(f"{name}: must be above 0, got {value}")
    if not math.isfinite(camera.doffs_px or 0):
        raise InputError(f"doffs_px: must be finite, got {camera.doffs_px}")


def row_seed(job_seed: int, row_id: str, given: int | None, index: int) -> int:
    """Return the 63-bit seed of a row.

    Args:
        job_seed: seed of the recipe.
        row_id: id of the manifest row.
        given: seed of the manifest row, which takes precedence over a hash of job seed and id.
        index: 0 for the first seed of a row; each further index gives another seed.
    """
    first = given if given is not None else _hash63(f"{job_seed}/{row_id}")
    return first & (2**63 - 1) if index == 0 else _hash63(f"{first}/{index}")


def draw_scale(recipe: Recipe, seed: int) -> float:
    """Return the scale in percent of the width for a row that has none: that of the recipe, or drawn from its range."""
    scale = recipe.scale_percent
    if isinstance(scale, ScaleRange):
        return scale.min + (scale.max - scale.min) * (_hash63(f"{seed}/scale_percent") / 2**63)
    return scale


def _hash63(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1
