"""Manifests: found, checked whole before anything starts, read row by row."""

import itertools
import os
import re
import uuid
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stereo_jobs.data import manifest
from stereo_jobs.data.images import encode_disparity, encode_png
from stereo_jobs.data.manifest import (
    INPUTS,
    MAX_PROMPT,
    REQUIRED,
    ManifestFile,
    ManifestReader,
    carried_schema,
    find,
    inspect,
    stream_ids,
    to_row,
)
from stereo_jobs.data.reader import InputReader
from stereo_jobs.data.storage import open_storage
from stereo_jobs.errors import ManifestError, StorageError
from stereo_jobs.records import Camera
from stereo_jobs.spec import Recipe, StorageSpec

LOCAL = StorageSpec()
NO_INPUTS = InputReader((), 1000, LOCAL)


def parquet_bytes(table, **options):
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, **options)
    return sink.getvalue().to_pybytes()


@pytest.fixture
def write(tmp_path):
    """Writes one manifest from columns, or a table."""
    count = itertools.count()

    def make(columns, name=None, **options):
        path = tmp_path / (name or f"m{next(count)}.parquet")
        path.parent.mkdir(parents=True, exist_ok=True)
        table = columns if isinstance(columns, pa.Table) else pa.table(columns)
        pq.write_table(table, path, **options)
        return str(path)

    return make


def listed(uri):
    return ManifestFile(uri=uri, size=0, tag="", rows=1)


def invalid_utf8(*values):
    """A string column with raw bytes in it, as a careless writer leaves them."""
    offsets = pa.py_buffer(np.cumsum([0, *map(len, values)], dtype=np.int32).tobytes())
    return pa.StringArray.from_buffers(len(values), offsets, pa.py_buffer(b"".join(values)))


# --- Finding ---


def test_files_globs_folders_and_lists_are_found(write, tmp_path):
    a, b, deep = (write({"id": ["x"]}, name) for name in ("in/a.parquet", "in/b.parquet", "in/sub/c.parquet"))
    (tmp_path / "in/notes.txt").write_text("not a manifest")
    folder = str(tmp_path / "in")
    assert find([a], LOCAL) == [a]
    assert find([f"file://{a}"], LOCAL) == [a]
    assert find([f"{folder}/*.parquet"], LOCAL) == [a, b]
    assert find([f"{folder}/?.parquet"], LOCAL) == [a, b]
    assert find([f"{folder}/*/[cd].parquet"], LOCAL) == [deep]
    assert find([folder], LOCAL) == find([f"{folder}/"], LOCAL) == [a, b, deep]
    assert find([b, f"{folder}/*.parquet", a], LOCAL) == [a, b]


def test_relative_paths_are_found(write, tmp_path, monkeypatch):
    a = write({"id": ["x"]}, "a.parquet")
    monkeypatch.chdir(tmp_path)
    assert find(["a.parquet"], LOCAL) == find(["*.parquet"], LOCAL) == find(["."], LOCAL) == [a]


@pytest.mark.parametrize("pattern", ["missing.parquet", "*.parquet", "empty", "empty/"])
def test_a_pattern_that_matches_nothing_is_refused(tmp_path, pattern):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ManifestError, match="no Parquet file there"):
        find([f"{tmp_path}/{pattern}"], LOCAL)


def test_manifests_on_s3_are_found_checked_and_read(s3_server):
    settings = StorageSpec(endpoint_url=s3_server)
    uri = f"s3://jobs/{uuid.uuid4().hex}"
    storage = open_storage(uri, settings)
    table = pa.table({"id": ["a", "b", "c"], "prompt": ["one", "two", "three"], "note": [1, 2, 3]})
    for name in ("in/a.parquet", "in/b.parquet", "in/c.txt"):
        storage.create(name, parquet_bytes(table, row_group_size=2))
    names = [f"{uri}/in/a.parquet", f"{uri}/in/b.parquet"]
    for pattern in ("in", "in/", "in/*.parquet", "i?/[ab].parquet"):
        assert find([f"{uri}/{pattern}"], settings) == names
    assert find(names[:1], settings) == names[:1]
    with pytest.raises(ManifestError, match="no Parquet file there"):
        find([f"{uri}/elsewhere"], settings)
    file, carried = inspect(names[0], Recipe(), settings)
    assert (file.rows, file.size, carried.names) == (3, storage.size("in/a.parquet"), ["note"])
    assert file.tag == storage.content_tag("in/a.parquet")
    assert [i for ids in stream_ids(file, settings) for i in ids.to_pylist()] == ["a", "b", "c"]
    cells = ManifestReader(settings).read(names[0], [1, 2])
    assert cells == [{"id": "b", "prompt": "two", "note": 2}, {"id": "c", "prompt": "three", "note": 3}]
    storage.create("in/broken.parquet", b"garbage")
    with pytest.raises(ManifestError, match="not a readable Parquet file"):
        inspect(f"{uri}/in/broken.parquet", Recipe(), settings)
    with pytest.raises(ManifestError, match="no such file"):
        inspect(f"{uri}/in/gone.parquet", Recipe(), settings)


# --- Checking ---


def test_inspect_lists_the_file_and_its_carried_columns(write):
    columns = {
        "id": ["a", "b"],
        "prompt": pa.array(["x", "y"], pa.large_string()),
        "seed": pa.array([1, None], pa.uint8()),
        "scale_percent": pa.array([8, 9], pa.int32()),
        "category": pa.array(["k", "k"]).dictionary_encode(),
        "when": pa.array([0, 1], pa.timestamp("us", tz="UTC")),
    }
    uri = write(columns)
    file, carried = inspect(uri, Recipe(), LOCAL)
    assert (file.uri, file.rows) == (uri, 2)
    assert file.size > 0
    assert carried == carried_schema(uri, LOCAL)
    assert carried == pa.schema([("category", pa.string()), ("when", pa.timestamp("us", tz="UTC"))])


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"id": ["a"]}, "needs the column 'prompt'; it has id"),
        ({"prompt": ["a"]}, "needs the column 'id'; it has prompt"),
        ({"id": [1], "prompt": ["a"]}, "column 'id' must be string, not int64"),
        ({"id": ["a"], "prompt": [1.5]}, "column 'prompt' must be string, not double"),
        ({"id": ["a"], "prompt": ["x"], "seed": [0.5]}, "column 'seed' must be integer, not double"),
        ({"id": ["a"], "prompt": ["x"], "scale_percent": ["8"]}, "column 'scale_percent' must be number, not string"),
        ({"id": ["a"], "prompt": ["x"], "image": [1]}, r"column 'image' must be binary, struct<bytes, path> or string"),
        ({"id": ["a"], "prompt": ["x"], "image": [{"data": b""}]}, "column 'image' must be binary"),
        ({"id": pa.array([], pa.string()), "prompt": pa.array([], pa.string())}, "has no rows"),
        ({"id": ["a"], "prompt": ["x"], "wait": pa.array([1], pa.duration("s"))}, "column 'wait' cannot be carried"),
        ({"id": ["a"], "prompt": ["x"], "none": [None]}, "column 'none' cannot be carried through.*drop or cast it"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_by_column(write, columns, words):
    uri = write(columns)
    with pytest.raises(ManifestError, match=words) as caught:
        inspect(uri, Recipe(), LOCAL)
    assert uri in str(caught.value)


@pytest.mark.parametrize("twice", ["id", "prompt", "note"])
def test_a_column_named_twice_is_refused(write, twice):
    arrays = [pa.array(["a"])] * 4
    uri = write(pa.Table.from_arrays(arrays, names=["id", "prompt", "note", twice]))
    with pytest.raises(ManifestError, match=f"column '{twice}' appears twice"):
        inspect(uri, Recipe(), LOCAL)


def test_scales_given_twice_are_refused(write):
    uri = write({"id": ["a"], "prompt": ["x"], "scale_percent": [8.0]})
    recipe = Recipe(variants={"scale_percent": (4, 8)})
    with pytest.raises(ManifestError, match="drop one of them"):
        inspect(uri, recipe, LOCAL)


def test_a_broken_file_is_refused(write, tmp_path):
    good = Path(write({"id": ["a"] * 100, "prompt": ["x"] * 100})).read_bytes()
    broken = {"garbage": b"not parquet at all", "empty": b"", "truncated": good[:-20], "half": good[: len(good) // 2]}
    for name, content in broken.items():
        path = tmp_path / f"{name}.parquet"
        path.write_bytes(content)
        with pytest.raises(ManifestError, match="not a readable Parquet file") as caught:
            inspect(str(path), Recipe(), LOCAL)
        assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(ManifestError, match="no such file"):
        inspect(f"{tmp_path}/gone.parquet", Recipe(), LOCAL)


# --- Ids ---


@pytest.mark.parametrize(
    "bad", ["../evil", "a/b", "x" * 1000, ".hidden", None, "", "newline\n", "a b", "umlaut-ü", "a~1", "nul\0"]
)
def test_a_bad_id_is_refused_with_file_and_row(write, bad):
    uri = write({"id": pa.array(["fine", "also.fine", bad, "fine-3"], pa.string())})
    with pytest.raises(ManifestError, match=r"row 2: id .* must be 1 to 200 characters") as caught:
        list(stream_ids(listed(uri), LOCAL))
    assert uri in str(caught.value)
    assert len(str(caught.value)) < len(uri) + 300


def test_the_row_of_a_bad_id_is_counted_over_all_batches(write):
    ids = [f"r{i}" for i in range(70_000)] + ["../evil"]
    uri = write({"id": ids}, row_group_size=20_000)
    with pytest.raises(ManifestError, match=r"row 70000: id '../evil'"):
        list(stream_ids(listed(uri), LOCAL))


def test_an_id_that_is_not_text_is_refused(write):
    uri = write({"id": invalid_utf8(b"fine", b"\xff\xfe")})
    with pytest.raises(ManifestError, match="row 1: id"):
        list(stream_ids(listed(uri), LOCAL))


@pytest.mark.parametrize("encode", [pa.array, lambda ids: pa.array(ids, pa.large_string()), None])
def test_good_ids_are_streamed(write, encode):
    ids = ["a", "x" * 200, "A-b_c.9", "-", "_"]
    column = encode(ids) if encode else pa.array(ids).dictionary_encode()
    uri = write({"id": column, "prompt": ["p"] * 5})
    streamed = list(stream_ids(listed(uri), LOCAL))
    assert [i for array in streamed for i in array.to_pylist()] == ids
    assert {array.type for array in streamed} == {pa.string()}


# --- Reading rows ---


@pytest.mark.parametrize("cached_bytes", [None, 0])
def test_rows_are_read_across_row_groups(write, monkeypatch, cached_bytes):
    if cached_bytes is not None:
        monkeypatch.setattr(manifest, "_CACHED_GROUP_BYTES", cached_bytes)
    table = pa.table({"id": [f"r{i}" for i in range(1000)], "n": range(1000)})
    uri = write(table, row_group_size=300)
    reader = ManifestReader(LOCAL)
    for rows in ([0], [299, 300, 301], [5, 599, 600, 999], list(range(250, 650)), [7, 7]):
        assert reader.read(uri, rows) == [{"id": f"r{i}", "n": i} for i in rows]


def test_one_reader_serves_several_files(write):
    uris = [write({"id": [f"{name}{i}" for i in range(4)]}) for name in "ab"]
    reader = ManifestReader(LOCAL)
    assert [reader.read(uri, [2])[0]["id"] for uri in (*uris, *uris)] == ["a2", "b2", "a2", "b2"]


def test_fewer_rows_than_planned_are_refused(write):
    uri = write({"id": ["a", "b"]})
    with pytest.raises(ManifestError, match="has 2 rows, fewer than when the job was planned"):
        ManifestReader(LOCAL).read(uri, [1, 2])


def test_every_string_type_reads_as_text(write):
    values = ["a", "b"]
    uri = write(
        {
            "id": pa.array(values, pa.large_string()),
            "prompt": pa.array(values).dictionary_encode(),
            "note": pa.array(values).dictionary_encode(),
        }
    )
    assert ManifestReader(LOCAL).read(uri, [1]) == [{"id": "b", "prompt": "b", "note": "b"}]


@pytest.mark.parametrize("cached_bytes", [2**20, 0])
@pytest.mark.parametrize("column", ["prompt", "note"])
def test_text_that_is_not_utf8_fails_only_its_row(write, monkeypatch, cached_bytes, column):
    monkeypatch.setattr(manifest, "_CACHED_GROUP_BYTES", cached_bytes)
    columns = {"id": ["a", "b", "c"], "prompt": ["x", "y", "z"]} | {column: invalid_utf8(b"one", b"\xff\xfe", b"three")}
    rows = [to_row(c, 0, Recipe(), (), NO_INPUTS) for c in ManifestReader(LOCAL).read(write(columns), [0, 1, 2])]
    assert [row.error and row.error.error_message for row in rows] == [None, f"{column}: not valid UTF-8", None]
    assert [{"prompt": row.prompt, **row.carried}[column] for row in (rows[0], rows[2])] == ["one", "three"]


# --- From cells to a row ---


def row_of(recipe=None, variant=0, **cells):
    cells = {"id": "row", "prompt": "a circle"} | cells
    return to_row(cells, variant, recipe or Recipe(), (), NO_INPUTS)


def test_a_plain_row_takes_its_defaults_from_the_recipe():
    row = row_of(Recipe(negative_prompt="blurry", scale_percent=6), note=3)
    assert (row.id, row.prompt, row.negative_prompt, row.scale_percent) == ("row", "a circle", "blurry", 6.0)
    assert (row.carried, row.error) == ({"note": 3}, None)
    assert row_of(Recipe(negative_prompt="blurry"), negative_prompt="dark").negative_prompt == "dark"


def test_a_derived_seed_depends_on_job_seed_and_id_alone():
    seed = row_of().seed
    assert seed == row_of(prompt="another", note=1).seed
    assert seed == row_of(Recipe(scale_percent=4)).seed
    assert len({seed, row_of(id="other").seed, row_of(Recipe(seed=1)).seed}) == 3
    assert 0 <= seed < 2**63


def test_a_given_seed_is_kept():
    assert row_of(seed=0).seed == 0
    assert row_of(seed=2**63 - 1).seed == 2**63 - 1
    assert row_of(Recipe(seed=9), seed=5).seed == 5


def test_variants_have_their_own_ids_and_seeds():
    recipe = Recipe(variants={"seeds": 3})
    rows = [row_of(recipe, k) for k in range(3)]
    assert [row.id for row in rows] == ["row~0", "row~1", "row~2"]
    assert len({row.seed for row in rows}) == 3
    assert rows[0].seed == row_of().seed
    given = [row_of(recipe, k, seed=5).seed for k in range(3)]
    assert given[0] == 5
    assert len({*given, *(row.seed for row in rows)}) == 6


def test_scale_variants_share_a_seed():
    recipe = Recipe(variants={"seeds": 2, "scale_percent": (4, 8, -6)})
    rows = [row_of(recipe, k) for k in range(recipe.variants.per_row)]
    assert [row.scale_percent for row in rows] == [4, 8, -6, 4, 8, -6]
    assert [row.seed for row in rows] == [rows[0].seed] * 3 + [rows[3].seed] * 3
    assert rows[0].seed != rows[3].seed


@pytest.mark.parametrize(("low", "high"), [(2.0, 6.0), (-6.0, -2.0)])
def test_a_scale_range_is_drawn_evenly_and_fixed_by_the_seed(low, high):
    recipe = Recipe(scale_percent={"min": low, "max": high})
    scales = [row_of(recipe, id=f"r{i}").scale_percent for i in range(2000)]
    assert scales == [row_of(recipe, id=f"r{i}").scale_percent for i in range(2000)]
    assert all(low <= scale <= high for scale in scales)
    assert abs(np.mean(scales) - (low + high) / 2) < 0.1
    assert np.histogram(scales, 4, (low, high))[0].min() > 400


def test_a_scale_in_the_manifest_wins_and_null_takes_the_recipe_s():
    assert row_of(scale_percent=3).scale_percent == 3.0
    assert row_of(scale_percent=None).scale_percent == 8.0


@pytest.mark.parametrize(
    ("cells", "words"),
    [
        ({"prompt": None}, "prompt: must not be empty"),
        ({"prompt": " \n"}, "prompt: must not be empty"),
        ({"prompt": "x" * (MAX_PROMPT + 1)}, "prompt: at most 2000 characters, got 2001"),
        ({"negative_prompt": "x" * 3000}, "negative_prompt: at most 2000 characters, got 3000"),
        ({"seed": -1}, "seed: must be from 0 to 2\\*\\*63 - 1, got -1"),
        ({"seed": 2**63}, "seed: must be from 0"),
        ({"scale_percent": 0.08}, "scale_percent: must be a percentage.*looks like a fraction: write 8, got 0.08"),
        ({"scale_percent": float("nan")}, "scale_percent: must be a percentage"),
        ({"scale_percent": 0}, "scale_percent: must be a percentage"),
    ],
)
def test_a_rule_broken_by_one_row_becomes_its_error(cells, words):
    row = row_of(**cells)
    assert (row.error.id, row.error.error_type) == ("row", "InvalidRow")
    assert re.match(words, row.error.error_message)


def test_image_columns_are_read_when_the_mode_needs_them():
    png = encode_png(np.zeros((2, 2, 3), np.uint8))
    cells = {"id": "row", "prompt": "x", "image": png, "mask": None}
    row = to_row(cells, 0, Recipe(), ("image",), NO_INPUTS)
    assert (row.inputs, row.error, row.carried) == ({"image": png}, None, {})
    assert to_row(cells, 0, Recipe(), (), NO_INPUTS).inputs == {}
    failed = to_row(cells, 0, Recipe(mode="inpaint"), ("image", "mask"), NO_INPUTS)
    assert failed.error.error_message.startswith("mask: must be bytes")
    assert failed.inputs == {}
    broken = to_row(cells | {"image": b"not an image"}, 0, Recipe(), ("image",), NO_INPUTS)
    assert broken.error.error_message.startswith("image: not a readable image")


# --- Modes ---

PNG = encode_png(np.zeros((2, 2, 3), np.uint8))
MAP = encode_disparity(np.ones((2, 2), np.float32))
COLUMNS = {"id": "row", "prompt": "a circle", "image": PNG, "mask": PNG, "depth": MAP, "disparity": MAP}
COLUMNS |= {"given_right": PNG, "true_right": PNG, "true_disparity": MAP}


def row_in(mode, method=None, leave_out=(), **cells):
    """A row with every column that any mode reads, but for some."""
    cells = {name: value for name, value in COLUMNS.items() if name not in leave_out} | cells
    return to_row(cells, 0, Recipe(mode=mode, method=method or {}), INPUTS[mode], NO_INPUTS)


@pytest.mark.parametrize("mode", REQUIRED)
def test_each_mode_has_its_required_columns(write, mode):
    required = REQUIRED[mode]
    assert set(required) - {"id", "prompt"} <= set(INPUTS[mode])
    cells = {name: [COLUMNS[name]] for name in required}
    file, carried = inspect(write(cells), Recipe(mode=mode), LOCAL)
    assert (file.rows, len(carried)) == (1, 0)
    for column in required:
        others = {name: values for name, values in cells.items() if name != column} | {"note": ["x"]}
        with pytest.raises(ManifestError, match=f"mode {mode} needs the column '{column}'; it has"):
            inspect(write(others), Recipe(mode=mode), LOCAL)


def test_right_views_of_another_program_need_their_column(write):
    recipe = Recipe(mode="image", method={"right_view": "given"})
    cells = {"id": ["a"], "image": [PNG]}
    with pytest.raises(ManifestError, match="right_view given needs the column 'given_right'; it has id, image"):
        inspect(write(cells), recipe, LOCAL)
    file, carried = inspect(write(cells | {"given_right": [PNG]}), recipe, LOCAL)
    assert (file.rows, len(carried)) == (1, 0)


@pytest.mark.parametrize(("mode", "column"), [(mode, column) for mode, names in INPUTS.items() for column in names])
def test_inputs_are_read_where_the_row_has_them(mode, column):
    assert row_in(mode).inputs == {name: COLUMNS[name] for name in INPUTS[mode]}
    for missing in (row_in(mode, leave_out=[column]), row_in(mode, **{column: None})):
        if column in REQUIRED[mode]:
            assert missing.error.error_message.startswith(f"{column}: must be bytes")
        else:
            assert missing.error is None
            assert missing.inputs == {name: COLUMNS[name] for name in INPUTS[mode] if name != column}


@pytest.mark.parametrize(("column", "cell"), [("depth", b"no map"), ("depth", PNG[:20]), ("image", b"no image")])
def test_a_broken_optional_input_fails_its_row(column, cell):
    assert row_in("image", **{column: cell}).error.error_message.startswith(f"{column}: not a readable")


def test_a_broken_npy_header_fails_its_row_alone():
    """What numpy's parser raises for it is neither a ValueError nor an OSError."""
    for data in (b"\x93NUMPY\x01\x00v\x00{'descr': '<f4',", b"\x93NUMPY\x01\x00\x05\x00(((((", b"\x93NUMPY"):
        assert row_in("depth", depth=data).error.error_message.startswith("depth: not a readable map")


@pytest.mark.parametrize("mode", ["image", "inpaint"])
@pytest.mark.parametrize("prompt", [None, "", " "])
def test_photos_need_no_prompt(mode, prompt):
    row = row_in(mode, prompt=prompt)
    assert (row.error, row.prompt.strip()) == (None, "")
    assert row_in(mode, leave_out=["prompt"]).prompt == ""


@pytest.mark.parametrize("mode", ["text", "depth"])
def test_pictures_that_are_made_need_a_prompt(mode):
    assert row_in(mode, prompt=" ").error.error_message == "prompt: must not be empty"


def test_depth_mode_needs_a_map_or_an_image():
    assert row_in("depth", leave_out=["image"]).error is None
    assert row_in("depth", leave_out=["depth"]).error is None
    neither = row_in("depth", leave_out=["image", "depth"])
    assert neither.error.error_message.startswith("depth: mode depth needs a depth map, or an image to estimate it")


def test_the_kind_of_depth_and_the_camera_are_read():
    row = row_in("image", depth_kind="metric", focal_px=700, baseline=0.1, doffs_px=31.1)
    assert (row.depth_kind, row.camera, row.error) == ("metric", Camera(700, 0.1, 31.1), None)
    plain = row_in("image")
    assert (plain.depth_kind, plain.camera) == ("inverse", Camera(None, None, None))
    wrong = row_in("image", depth_kind="disparity")
    assert wrong.error.error_message == "depth_kind: must be inverse or metric, got 'disparity'"


METRIC = {"geometry": "metric"}
METRIC_CELLS = {"depth_kind": "metric", "focal_px": 700.0, "baseline": 0.1}


@pytest.mark.parametrize("mode", ["image", "inpaint"])
def test_metric_geometry_takes_a_disparity_or_a_metric_depth(mode):
    assert row_in(mode, METRIC).error is None
    assert row_in(mode, METRIC, ["disparity"], **METRIC_CELLS).error is None
    assert row_in(mode, METRIC, ["depth"]).error is None


@pytest.mark.parametrize(
    ("leave_out", "cells", "words"),
    [
        (["disparity", "depth"], METRIC_CELLS, "it lacks depth$"),
        (["disparity"], {"depth_kind": "metric"}, "it lacks focal_px, baseline$"),
        (["disparity"], METRIC_CELLS | {"baseline": None}, "it lacks baseline$"),
        (["disparity"], METRIC_CELLS | {"depth_kind": None}, "its depth_kind is not metric$"),
        (["disparity"], METRIC_CELLS | {"depth_kind": "inverse"}, "its depth_kind is not metric$"),
    ],
)
def test_metric_geometry_says_what_it_lacks(leave_out, cells, words):
    message = row_in("image", METRIC, leave_out, **cells).error.error_message
    assert message.startswith("disparity: geometry metric needs a disparity in pixels, or a metric depth with focal_px")
    assert re.search(words, message)


@pytest.mark.parametrize(
    ("cells", "words"),
    [
        ({"focal_px": 0.0}, "focal_px: must be above 0, got 0.0"),
        ({"focal_px": float("inf")}, "focal_px: must be above 0, got inf"),
        ({"baseline": -0.1}, "baseline: must be above 0, got -0.1"),
        ({"baseline": float("nan")}, "baseline: must be above 0, got nan"),
        ({"doffs_px": float("nan")}, "doffs_px: must be finite, got nan"),
    ],
)
def test_the_camera_of_a_metric_depth_must_be_possible(cells, words):
    row = row_in("image", METRIC, ["disparity"], **(METRIC_CELLS | cells))
    assert row.error.error_message == words
    assert row_in("image", METRIC, **(METRIC_CELLS | cells)).error is None  # its disparity needs no camera


def test_metric_geometry_counts_only_what_the_mode_reads():
    """Depth mode reads no disparity, and may not fall back on what an estimator finds."""
    assert row_in("depth", METRIC, **METRIC_CELLS).error is None
    assert "it lacks focal_px, baseline" in row_in("depth", METRIC).error.error_message


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "m.parquet")
    for uri in find([str(tmp_path)], LOCAL):
        with pytest.raises(StorageError, match=r"m\.parquet: not a regular file"):
            inspect(uri, Recipe(), LOCAL)
    with pytest.raises(StorageError, match="not a regular file"):
        find([str(tmp_path / "m.parquet")], LOCAL)


def test_file_uris_name_absolute_paths(make_manifest):
    path = make_manifest()
    for pattern in (
        f"file://{path}",
        f"file://localhost{path}",
        f"file://{path.parent}/",
        f"file://{path.parent}/*.parquet",
    ):
        assert find([pattern], LOCAL) == [str(path)]
    with pytest.raises(StorageError, match="write a local file as file:///folder/name"):
        find([f"file:{path.name}"], LOCAL)
