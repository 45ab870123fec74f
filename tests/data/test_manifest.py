"""Manifests: found, checked whole before anything starts, read row by row."""

import itertools
import os
import random
import re
import uuid
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stereo_jobs.data import manifest_reader, row_groups
from stereo_jobs.data.building.build import build
from stereo_jobs.data.images import encode_disparity, encode_png
from stereo_jobs.data.manifest import (
    INPUTS,
    KNOWN,
    MAX_PROMPT,
    REQUIRED,
    carried_schema,
    inspect,
    stream_ids,
    to_row,
)
from stereo_jobs.data.manifest_files import ManifestFile, find, split_uri
from stereo_jobs.data.manifest_reader import ManifestReader
from stereo_jobs.data.reader import InputReader
from stereo_jobs.data.row_groups import RowGroups
from stereo_jobs.data.storage import LocalStorage, open_storage
from stereo_jobs.errors import DriftError, ManifestError, StorageError
from stereo_jobs.records import Camera, DisparityEncoding
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


def listed(uri, rows=1, settings=LOCAL):
    """The file as a plan made now would list it."""
    storage, name = split_uri(uri, settings)
    return ManifestFile(uri=uri, size=storage.size(name), tag=storage.content_tag(name), rows=rows)


def read(reader, uri, rows, columns=None):
    """Rows as plain values; those that are carried are arrays of one cell."""
    cells = reader.read(listed(uri, settings=reader.settings), rows, columns)
    return [{name: plain(value) for name, value in row.items()} for row in cells]


def plain(value):
    if isinstance(value, pa.Array):
        (value,) = value.to_pylist()
    return value


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
    cells = read(ManifestReader(settings), names[0], [1, 2])
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
        ({"id": ["a"], "prompt": [None]}, "column 'prompt' must be string, not null"),
        (
            {"id": ["a"], "prompt": ["x"], "x": pa.array([[1]], pa.list_view(pa.int8()))},
            "'x' cannot be carried.*cast it",
        ),
        ({"id": ["a"], "prompt": ["x"], "x": pa.array([0], pa.timestamp("s", "odd zone"))}, "time zone 'odd zone'"),
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


def test_columns_that_hold_nothing_have_every_type(write):
    columns = {name: [None] for name in KNOWN} | {"id": ["a"], "prompt": ["x"]}
    uri = write(columns)
    file, carried = inspect(uri, Recipe(), LOCAL)
    (cells,) = ManifestReader(LOCAL).read(file, [0])
    row = to_row(cells, 0, Recipe(), (), NO_INPUTS)
    assert (row.id, row.prompt, row.error, row.inputs, len(carried)) == ("a", "x", None, {}, 0)


def test_a_file_without_rows_is_listed_whatever_its_columns_are(write):
    for columns in ({"id": pa.nulls(0), "x": pa.nulls(0)}, {"y": pa.array([], pa.list_view(pa.int8()))}):
        file, carried = inspect(write(columns), Recipe(), LOCAL, {"prompt": "p", "split": "test"})
        assert (file.rows, file.partitions, len(carried)) == (0, {}, 0)
        assert list(stream_ids(file, LOCAL)) == []


@pytest.mark.parametrize("column", ["seed", "prompt", "image"])
def test_a_folder_is_no_known_column_unless_the_file_has_it(write, column):
    table = {"id": ["a"], "prompt": ["x"]}
    uri = write(table)
    if column not in table:
        words = f"{uri}: its folder {column}=7 would be the column '{column}'.*rename the folder"
        with pytest.raises(ManifestError, match=words):
            inspect(uri, Recipe(), LOCAL, {column: "7"})
    else:
        assert inspect(uri, Recipe(), LOCAL, {column: "7"})[0].partitions == {}


def test_columns_of_folders_are_carried_text_and_the_file_has_precedence(write):
    uri = write({"id": ["a", "b"], "prompt": ["x", "y"], "day": [1, 2]})
    file, carried = inspect(uri, Recipe(), LOCAL, {"split": "train", "day": "3", "none": None})
    assert carried == pa.schema([("day", pa.int64()), ("split", pa.string()), ("none", pa.string())])
    assert file.partitions == {"split": "train", "none": None}
    reader = ManifestReader(LOCAL)
    cells = reader.read(file, [0, 1])
    assert [[plain(row[name]) for name in carried.names] for row in cells] == [
        [1, "train", None],
        [2, "train", None],
    ]
    assert reader.read(file, [0], frozenset({"id"}), ("none", "gone"))[0].keys() == {"id", "none"}


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


@pytest.mark.parametrize("error", [pa.ArrowNotImplementedError, pa.ArrowTypeError, pa.ArrowKeyError, OSError])
def test_whatever_arrow_does_not_read_is_refused_in_one_line(write, monkeypatch, error):
    """A damaged footer may name types that Arrow does not have, such as integers of 65 bits."""

    def fail(*args, **options):
        raise error("not implemented:\nmore than 64 bits")

    planned = listed(write({"id": ["a"], "prompt": ["x"]}))
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", fail)
    with pytest.raises(ManifestError, match="cannot be read after row 0") as streamed:
        list(stream_ids(planned, LOCAL))
    with pytest.raises(ManifestError, match="cannot be read") as read:
        ManifestReader(LOCAL).read(planned, [0])
    monkeypatch.setattr(pq, "ParquetFile", fail)
    with pytest.raises(ManifestError, match="not a readable Parquet file") as opened:
        inspect(planned.uri, Recipe(), LOCAL)
    assert all("\n" not in str(caught.value) for caught in (streamed, read, opened))


def test_a_footer_whose_chunks_name_other_columns_is_read_by_its_schema_or_refused(write):
    column = b"negative_prompt"
    path = Path(write({"id": ["a", "a2"], "prompt": ["x", "x"], "negative_prompt": ["n", "n"]}))
    data = path.read_bytes()
    for at in [i for i in range(len(data)) if data.startswith(column, i)]:
        path.write_bytes(data[:at] + b"X" + data[at + 1 :])
        try:
            planned = listed(str(path))
            assert [row["id"] for row in ManifestReader(LOCAL).read(planned, [0, 1])] == ["a", "a2"]
        except ManifestError as error:
            assert len(str(error).splitlines()) == 1


def test_a_footer_with_statistics_of_another_schema_is_refused(tmp_path):
    """Arrow's binding ends the process at a histogram of another length; its reader raises an error."""
    path = tmp_path / "m.parquet"
    pq.write_table(pa.table({"id": pa.array(["a"]), "prompt": pa.array(["x"])}), path)
    optional, required = b"\x15\x0c\x25\x02\x18\x02id", b"\x15\x0c\x25\x00\x18\x02id"
    data = path.read_bytes()
    assert data.count(optional) == 1
    path.write_bytes(data.replace(optional, required))
    planned = listed(str(path))
    with pytest.raises(ManifestError, match=r"cannot be read after row 0 .*histogram"):
        list(stream_ids(planned, LOCAL))
    with pytest.raises(ManifestError, match=r"cannot be read .*histogram"):
        ManifestReader(LOCAL).read(planned, [0])


def test_a_cell_without_a_value_in_its_dictionary_fails_alone():
    """A damaged page may name more values than there are; Arrow notices when they are looked up."""
    words = pa.DictionaryArray.from_arrays(pa.array([0, 6], pa.int32()), pa.array(["x"]), safe=False)
    column = pa.StructArray.from_arrays([words], ["word"])
    good, bad = manifest_reader._single(column)
    assert good.cast(pa.struct({"word": pa.string()})).to_pylist() == [{"word": "x"}]
    assert isinstance(bad, IndexError)
    cells = {"id": "a", "prompt": "x", "info": bad}
    row = to_row(cells, 0, Recipe(), (), NO_INPUTS)
    assert row.error.error_message.startswith("info: Index 6 out of bounds")


# --- Ids ---


@pytest.mark.parametrize(
    "bad", ["../evil", "a/b", "x" * 1000, ".hidden", None, "", "newline\n", "a b", "umlaut-ü", "a~1", "nul\0"]
)
def test_a_bad_id_is_refused_with_file_and_row(write, bad):
    uri = write({"id": pa.array(["fine", "also.fine", bad, "fine-3"], pa.string())})
    with pytest.raises(ManifestError, match=r"row 2: id .* must be 1 to 200 characters") as caught:
        list(stream_ids(listed(uri, 4), LOCAL))
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


def test_a_large_row_group_is_not_shared_by_many_shards(write, tmp_path, monkeypatch):
    monkeypatch.setattr("stereo_jobs.data.manifest.MOST_GROUP_BYTES", 1024**2)
    monkeypatch.setattr("stereo_jobs.data.building.tables.BATCH_BYTES", 500_000)
    pictures = [random.Random(i).randbytes(30_000) for i in range(90)]
    uri = write({"id": [f"r{i}" for i in range(90)], "prompt": ["p"] * 90, "image": pictures}, row_group_size=70)
    with pytest.raises(ManifestError) as caught:
        inspect(uri, Recipe(), LOCAL, shard_rows=8)
    assert f"{uri}: row group 0 has 2 MB, and each of its 9 shards would read all" in str(caught.value)
    remedy = re.search(r"shard_rows to (\d+)", str(caught.value))
    assert inspect(uri, Recipe(), LOCAL, shard_rows=int(remedy[1]))[0].rows == 90
    with pytest.raises(ManifestError, match="each of its 18 shards"):
        inspect(uri, Recipe(variants={"seeds": 2}), LOCAL, shard_rows=8)
    build(uri, str(tmp_path / "small.parquet"), LOCAL)
    assert inspect(str(tmp_path / "small.parquet"), Recipe(), LOCAL, shard_rows=1)[0].rows == 90


@pytest.mark.parametrize("encode", [pa.array, lambda ids: pa.array(ids, pa.large_string()), None])
def test_good_ids_are_streamed(write, encode):
    ids = ["a", "x" * 200, "A-b_c.9", "-", "_"]
    column = encode(ids) if encode else pa.array(ids).dictionary_encode()
    uri = write({"id": column, "prompt": ["p"] * 5})
    streamed = list(stream_ids(listed(uri, 5), LOCAL))
    assert [i for array in streamed for i in array.to_pylist()] == ids
    assert {array.type for array in streamed} == {pa.string()}


@pytest.mark.parametrize("claimed", [2, 4, 2**40])
def test_a_footer_that_claims_other_rows_than_there_are_is_refused(write, claimed):
    uri = write({"id": ["a", "b", "c"]})
    with pytest.raises(ManifestError, match=f"its footer says {claimed} rows, but it holds 3; write the file again"):
        list(stream_ids(listed(uri, claimed), LOCAL))


def test_a_bad_id_that_many_rows_share_is_refused_before_it_is_spread_out(write):
    shared = pa.array(["x" * 1_000_000]).dictionary_encode().take(pa.array([0] * 10_000))
    with pytest.raises(ManifestError, match=r"row 0: id 'xxx[x]*'\.\.\. must be 1 to 200"):
        list(stream_ids(listed(write({"id": shared}, store_schema=False), 10_000), LOCAL))


# --- Reading rows ---


@pytest.mark.parametrize("wide_bytes", [2**20, 0])
@pytest.mark.parametrize("recent_bytes", [2**20, 0])
def test_rows_are_read_across_row_groups(write, monkeypatch, wide_bytes, recent_bytes):
    monkeypatch.setattr(row_groups, "_WIDE_BYTES", wide_bytes)
    monkeypatch.setattr(row_groups, "_RECENT_BYTES", recent_bytes)
    table = pa.table({"id": [f"r{i}" for i in range(1000)], "n": range(1000)})
    uri = write(table, row_group_size=300)
    reader = ManifestReader(LOCAL)
    for rows in ([0], [299, 300, 301], [5, 599, 600, 999], list(range(250, 650)), [7, 7]):
        assert read(reader, uri, rows) == [{"id": f"r{i}", "n": i} for i in rows]


def test_one_reader_serves_several_files(write):
    uris = [write({"id": [f"{name}{i}" for i in range(4)]}) for name in "ab"]
    reader = ManifestReader(LOCAL)
    assert [read(reader, uri, [2])[0]["id"] for uri in (*uris, *uris)] == ["a2", "b2", "a2", "b2"]


def test_fewer_rows_than_planned_are_refused(write):
    uri = write({"id": ["a", "b"]})
    with pytest.raises(ManifestError, match="has 2 rows, fewer than when the job was planned"):
        read(ManifestReader(LOCAL), uri, [1, 2])


@pytest.mark.parametrize("shared", [True, False])
def test_every_string_type_reads_as_text(write, shared):
    values = ["a", "b"]
    kinds = [pa.large_string(), pa.string_view(), pa.json_(), pa.json_(pa.string_view())]
    encoded = [pa.array(values).cast(kind) for kind in kinds] + [pa.array(values).dictionary_encode()]
    for column in encoded:
        uri = write({"id": column, "prompt": column, "note": column}, use_dictionary=shared)
        assert read(ManifestReader(LOCAL), uri, [1]) == [{"id": "b", "prompt": "b", "note": "b"}]
        assert [ids.to_pylist() for ids in stream_ids(inspect(uri, Recipe(), LOCAL)[0], LOCAL)] == [values]


@pytest.mark.parametrize("wide_bytes", [2**20, 0])
def test_text_that_is_not_utf8_fails_only_its_row_or_is_carried(write, monkeypatch, wide_bytes):
    monkeypatch.setattr(row_groups, "_WIDE_BYTES", wide_bytes)
    bad = invalid_utf8(b"one", b"\xff\xfe", b"three")
    for column, errors in (("prompt", [None, "prompt: not valid UTF-8", None]), ("note", [None] * 3)):
        uri = write({"id": ["a", "b", "c"], "prompt": ["x", "y", "z"]} | {column: bad})
        rows = [to_row(c, 0, Recipe(), (), NO_INPUTS) for c in ManifestReader(LOCAL).read(listed(uri), [0, 1, 2])]
        assert [row.error and row.error.error_message for row in rows] == errors
        if column == "note":
            assert [row.carried["note"].cast(pa.binary()).to_pylist() for row in rows] == [
                [b"one"],
                [b"\xff\xfe"],
                [b"three"],
            ]
        else:
            assert [rows[0].prompt, rows[2].prompt] == ["one", "three"]


def test_only_the_known_columns_asked_for_are_read(write):
    uri = write({"id": ["a"], "prompt": ["p"], "true_right": [b"large"], "note": [1]})
    assert read(ManifestReader(LOCAL), uri, [0], frozenset({"id"})) == [{"id": "a", "note": 1}]


@pytest.mark.parametrize("encoding", ["dictionary", "delta"])
@pytest.mark.parametrize("dtype", [pa.string(), pa.large_string()])
def test_a_value_that_many_rows_share_takes_memory_once(write, encoding, dtype):
    value, count = "x" * 400_000, 1000  # 400 MB, once spread out
    shared = pa.array([value], dtype)
    options = {"store_schema": False}
    if encoding == "delta":
        options |= {"use_dictionary": False, "column_encoding": {"id": "PLAIN", "shared": "DELTA_BYTE_ARRAY"}}
        chunk = shared.take(pa.array([0] * 50))
        columns = {"shared": pa.chunked_array([chunk] * (count // 50))}
    else:
        columns = {"shared": shared.dictionary_encode().take(pa.array([0] * count))}
    uri = write({"id": [f"r{i}" for i in range(count)], **columns}, **options)
    before = pa.total_allocated_bytes()
    reader = ManifestReader(LOCAL)
    cells = reader.read(listed(uri), [7, count - 1])
    assert [cell["id"] for cell in cells] == ["r7", f"r{count - 1}"]
    assert all(plain(cell["shared"].cast(dtype)) == value for cell in cells)
    assert pa.total_allocated_bytes() - before < 100_000_000


@pytest.mark.parametrize("dtype", [pa.string_view(), pa.json_(), pa.list_(pa.json_()), pa.binary(400_000)])
def test_a_value_of_another_type_that_many_rows_share_is_held_few_times(write, dtype):
    value, count = "x" * 400_000, 1000
    chunk = pa.array([value] * 10).cast(pa.binary() if dtype == pa.binary(400_000) else pa.string())
    if pa.types.is_list(dtype):
        chunk = pa.ListArray.from_arrays(pa.array(range(11), pa.int32()), chunk)
    ids = [f"r{i}" for i in range(count)]
    uri = write({"id": ids, "shared": pa.chunked_array([chunk.cast(dtype)] * (count // 10))})
    assert Path(uri).stat().st_size < 2_000_000
    before = pa.total_allocated_bytes()
    (cells,) = ManifestReader(LOCAL).read(listed(uri), [count - 1])
    assert value in str(cells["shared"].to_pylist())
    assert pa.total_allocated_bytes() - before < 100_000_000


def test_rows_that_share_an_input_share_its_bytes(write):
    shared = pa.array([b"picture" * 1000]).dictionary_encode().take(pa.array([0] * 50))
    one, *others = ManifestReader(LOCAL).read(
        listed(write({"id": [f"r{i}" for i in range(50)], "image": shared})), range(50)
    )
    assert all(other["image"] is one["image"] for other in others)


def test_shards_one_after_another_read_a_row_group_once(write, monkeypatch):
    uri = write({"id": [f"r{i}" for i in range(64)], "image": [bytes([i]) * 100_000 for i in range(64)]})
    started = []
    batches = RowGroups.batches
    monkeypatch.setattr(RowGroups, "batches", lambda self, *args: started.append(args) or batches(self, *args))
    reader = ManifestReader(LOCAL)
    for first in (0, 16, 8, 24, 32, 56):  # two shards of a worker may be read in either order
        rows = list(range(first, first + 8))
        assert [row["image"][0] for row in read(reader, uri, rows)] == rows
    assert len(started) == 2  # the ids, the images


# --- The planned file ---


def overwrite(path, data):
    """Write other content of the same size into a file, and set its time back."""
    before = path.stat()
    with path.open("r+b") as file:
        file.write(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_mtime_ns == before.st_mtime_ns


def test_a_file_overwritten_since_it_was_planned_is_refused(write):
    path = Path(write({"id": ["a", "b"], "prompt": ["old", "old"]}))
    old, planned, reader = path.read_bytes(), listed(str(path)), ManifestReader(LOCAL)
    reader.read(planned, [0])
    overwrite(path, old.replace(b"old", b"new"))
    for look in (lambda: reader.confirm(planned), lambda: reader.read(planned, [1])):
        with pytest.raises(DriftError, match=f"manifest {path}: its content changed since it was planned; restore it"):
            look()
    overwrite(path, old)
    assert [row["prompt"] for row in reader.read(planned, [1])] == ["old"]
    path.unlink()
    with pytest.raises(DriftError, match="gone since it was planned; restore it"):
        reader.confirm(planned)


def test_an_object_overwritten_since_it_was_planned_is_refused(s3_server):
    settings = StorageSpec(endpoint_url=s3_server)
    uri = f"s3://jobs/{uuid.uuid4().hex}/m.parquet"
    storage, name = split_uri(uri, settings)
    old = parquet_bytes(pa.table({"id": ["a", "b"], "prompt": ["old", "old"]}))
    storage.replace(name, old)
    planned, reader = listed(uri, settings=settings), ManifestReader(settings)
    reader.read(planned, [0])
    storage.replace(name, old.replace(b"old", b"new"))
    for look in (lambda: reader.confirm(planned), lambda: reader.read(planned, [1])):
        with pytest.raises(DriftError, match="its content changed"):
            look()


def test_a_file_that_was_only_touched_is_read_on(write, monkeypatch):
    path = Path(write({"id": ["a", "b"]}))
    planned, reader = listed(str(path)), ManifestReader(LOCAL)
    hashed = []
    tag = LocalStorage.content_tag
    monkeypatch.setattr(LocalStorage, "content_tag", lambda self, key: hashed.append(key) or tag(self, key))
    for _ in range(3):
        reader.read(planned, [0])
    path.touch()
    reader.read(planned, [1])
    assert len(hashed) == 2


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
        ({"seed": 2**64 - 1}, "seed: must be from 0"),
        ({"scale_percent": 2**63}, "scale_percent: must be a percentage"),
        ({"scale_percent": float("nan")}, "scale_percent: must be a percentage"),
        ({"focal_px": 2**53 + 1}, r"focal_px: a whole number must be from -2\*\*53 to 2\*\*53, got 9007199254740993"),
        ({"baseline": -(2**63)}, "baseline: a whole number must be from"),
        ({"doffs_px": 2**64 - 1}, "doffs_px: a whole number must be from"),
        ({"depth_kind": "x" * 10_000}, "depth_kind: must be inverse or metric, got 'x{80}'$"),
        ({"scale_percent": 0.08}, "scale_percent: must be a percentage.*looks like a fraction: write 8, got 0.08"),
        ({"scale_percent": float("nan")}, "scale_percent: must be a percentage"),
        ({"scale_percent": 0}, "scale_percent: must be a percentage"),
        ({"disparity_scale": 0}, "disparity_scale: must be above 0, the stored value of one pixel; got 0"),
        ({"disparity_scale": float("nan")}, r"disparity_scale: must be a number from -2\*\*53 to 2\*\*53, got nan"),
        ({"disparity_unknown": float("inf")}, "disparity_unknown: must be a number from"),
        ({"disparity_encoding": "kitti"}, "disparity_encoding: must be plain or foundation_stereo, got 'kitti'$"),
        (
            {"disparity_encoding": "foundation_stereo", "disparity_scale": 256.0},
            "disparity_scale: disparity_encoding foundation_stereo has one of its own; leave the cell empty",
        ),
    ],
)
def test_a_rule_broken_by_one_row_becomes_its_error(cells, words):
    row = row_of(**cells)
    assert (row.error.id, row.error.error_type) == ("row", "InvalidRow")
    assert re.match(words, row.error.error_message)


def test_what_disparities_mean_is_said_by_the_row_or_else_the_recipe():
    assert row_of().disparity == DisparityEncoding("plain", None, None)
    recipe = Recipe(disparity_scale=256, disparity_unknown=65535)
    assert row_of(recipe).disparity == DisparityEncoding("plain", 256.0, 65535)
    assert row_of(recipe, disparity_scale=4, disparity_unknown=0).disparity == DisparityEncoding("plain", 4.0, 0)
    three_bytes = DisparityEncoding("foundation_stereo", None, 65535)
    assert row_of(recipe, disparity_encoding="foundation_stereo").disparity == three_bytes
    three_bytes = Recipe(disparity_encoding="foundation_stereo")
    assert row_of(three_bytes, disparity_encoding="plain", disparity_scale=2).disparity.scale == 2.0


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
