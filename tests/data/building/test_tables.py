"""Parquet and Arrow files, folders of them, folders of the library `datasets`."""

import datetime
import io
import json

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from PIL import Image

from stereo_jobs.errors import ManifestError
from tests.data.building.helpers import build_and_plan, built

ROWS = pa.table({"prompt": ["a red star", "a ball"], "n": pa.array([1, None], pa.int16()), "key": [7, 8]})


def png(colour: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), colour).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["parquet", "feather", "arrow file", "arrow stream"])
def test_a_table_of_any_kind_keeps_its_types(tmp_path, kind):
    source = tmp_path / f"t.{kind.split()[0]}"
    if kind == "parquet":
        pq.write_table(ROWS, source)
    elif kind == "feather":
        pyarrow.feather.write_feather(ROWS, source)
    else:
        with (pa.ipc.new_file if kind == "arrow file" else pa.ipc.new_stream)(source, ROWS.schema) as writer:
            writer.write_table(ROWS, 1)
    assert built(source, tmp_path, id_from="key") == [
        {"id": "7", "prompt": "a red star", "n": 1},
        {"id": "8", "prompt": "a ball", "n": None},
    ]
    assert pq.read_schema(tmp_path / "built.parquet").field("n").type == pa.int16()


def test_known_text_columns_become_text(tmp_path):
    days = pa.array([datetime.date(2024, 1, 1), datetime.date(2024, 1, 2)])
    columns = {"id": days, "prompt": [1984, 2001], "negative_prompt": pa.nulls(2), "x": pa.nulls(2), "day": days}
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    assert built(tmp_path / "t.parquet", tmp_path)[0] == {
        "id": "2024-01-01",
        "prompt": "1984",
        "negative_prompt": None,
        "x": None,
        "day": datetime.date(2024, 1, 1),
    }


def test_files_of_a_folder_may_differ(tmp_path):
    folder = tmp_path / "t"
    (folder / "part=2").mkdir(parents=True)
    pq.write_table(pa.table({"prompt": ["a"], "n": [1], "s": [{"x": 1}]}), folder / "1.parquet")
    pq.write_table(pa.table({"s": [{"y": "q", "x": 2}], "prompt": ["b"]}), folder / "part=2/2.parquet")
    pq.write_table(pa.table({"n": [1.5], "prompt": pa.array(["c"], pa.large_string())}), folder / "3.parquet")
    for name in ("_SUCCESS", ".1.parquet.crc", "_delta.parquet", "notes.md"):
        (folder / name).write_text("x")
    made = build_and_plan(folder, tmp_path / "m.parquet")
    assert pq.ParquetFile(tmp_path / "m.parquet").read().to_pylist() == [
        {"id": "t-000000", "prompt": "a", "n": 1.0, "s": {"x": 1, "y": None}},
        {"id": "t-000001", "prompt": "c", "n": 1.5, "s": None},
        {"id": "t-000002", "prompt": "b", "n": None, "s": {"x": 2, "y": "q"}},
    ]
    assert [each.line() for each in made.left_out] == [
        "left out 1 file with a hidden name: .1.parquet.crc",
        "left out 1 file whose name does not end as that of a Parquet or Arrow file: notes.md",
        "left out 2 files whose name begins with _: _SUCCESS, _delta.parquet",
        "left out 1 column whose values stand in the names of folders only: part",
    ]


def test_columns_that_do_not_fit_are_refused_by_file(tmp_path):
    (tmp_path / "t").mkdir()
    pq.write_table(pa.table({"prompt": ["a"], "n": [1]}), tmp_path / "t/1.parquet")
    pq.write_table(pa.table({"prompt": ["a"], "n": ["x"]}), tmp_path / "t/2.parquet")
    with pytest.raises(ManifestError, match=r"2\.parquet: its columns do not fit those of other files .*Field n"):
        built(tmp_path / "t", tmp_path)


@pytest.mark.parametrize(
    ("column", "words"),
    [
        ({"seed": ["1"]}, "column 'seed' must be integer, not string; cast it"),
        ({"prompt": [["a"]]}, "column 'prompt' must be string, not list"),
        ({"id": ["a b"]}, "row 0: id 'a b' must be"),
        ({"id": pa.array([None], pa.string())}, "row 0: id None must be"),
    ],
)
def test_what_no_plan_takes_is_refused(tmp_path, column, words):
    pq.write_table(pa.table({"prompt": ["a"]} | column), tmp_path / "t.parquet")
    with pytest.raises(ManifestError, match=words):
        built(tmp_path / "t.parquet", tmp_path)


def test_two_columns_of_a_name_are_refused(tmp_path):
    pq.write_table(pa.table([["a"], ["b"]], names=["prompt", "prompt"]), tmp_path / "t.parquet")
    with pytest.raises(ManifestError, match="column 'prompt' appears twice"):
        built(tmp_path / "t.parquet", tmp_path)


@pytest.mark.parametrize("name", ["t.parquet", "t.arrow", "t.feather"])
def test_a_damaged_file_is_one_line(tmp_path, name):
    if name == "t.parquet":
        pq.write_table(ROWS, tmp_path / name)
    else:
        pyarrow.feather.write_feather(ROWS, tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    for data in (b"", b"hello", whole[: len(whole) // 2], b"\0" * len(whole)):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ManifestError, match=rf"{name}: (cannot be read|has nothing)"):
            built(tmp_path / name, tmp_path)


def test_a_saved_data_set_is_read_in_its_order_with_its_pictures(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"text": datasets.Value("string"), "photo": datasets.Image()})
    pictures = [{"bytes": png(colour), "path": None} for colour in ("red", "blue", "green")]
    made = datasets.Dataset.from_dict({"text": ["a", "b", "c"], "photo": pictures}, features)
    made.save_to_disk(tmp_path / "set", num_shards=2)
    options = {"prompt_column": "text", "image_column": "photo", "id_from": "content"}
    rows = built(tmp_path / "set", tmp_path, **options)
    assert [row["prompt"] for row in rows] == ["a", "b", "c"]
    assert [row["image"]["bytes"] for row in rows] == [each["bytes"] for each in pictures]
    assert len({row["id"] for row in rows}) == 3
    made.to_parquet(tmp_path / "set.parquet")
    assert built(tmp_path / "set.parquet", tmp_path, **options) == rows


def test_a_saved_data_set_of_splits_asks_for_one(tmp_path):
    datasets = pytest.importorskip("datasets")
    split = datasets.Dataset.from_dict({"prompt": ["a"]})
    datasets.DatasetDict({"train": split, "test": split}).save_to_disk(tmp_path / "set")
    with pytest.raises(ManifestError, match="has a data set in each of its folders test, train; name one of them"):
        built(tmp_path / "set", tmp_path)
    assert built(tmp_path / "set/train", tmp_path) == [{"id": "train-000000", "prompt": "a"}]


def test_a_broken_list_of_files_is_refused(tmp_path):
    (tmp_path / "set").mkdir()
    for content in ("{", "[]", json.dumps({"_data_files": [1]})):
        (tmp_path / "set/state.json").write_text(content)
        with pytest.raises(ManifestError, match="does not list the files of a data set"):
            built(tmp_path / "set", tmp_path)
    (tmp_path / "set/state.json").write_text(json.dumps({"_data_files": [{"filename": "gone.arrow"}]}))
    with pytest.raises(ManifestError, match=r"gone\.arrow: no such file"):
        built(tmp_path / "set", tmp_path)


def test_pictures_inside_make_small_row_groups(tmp_path, monkeypatch):
    monkeypatch.setattr("stereo_jobs.data.building.tables.BATCH_BYTES", 20_000)
    pictures = [bytes([i]) * 2000 for i in range(64)]
    pq.write_table(pa.table({"prompt": [str(i) for i in range(64)], "image": pictures}), tmp_path / "t.parquet")
    assert [row["image"] for row in built(tmp_path / "t.parquet", tmp_path)] == pictures
    assert pq.read_metadata(tmp_path / "built.parquet").num_row_groups > 1
